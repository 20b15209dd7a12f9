//! Log-ins by the hundred: passwords are made to be slow to check, and nobody else may feel it.
//!
//! How much slower checkouts become is measured by `cargo bench --bench door`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::node::Node;
use crate::shopper::buy;

const STORM: usize = 200;
const PURCHASES: usize = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_log_ins_stalls_no_checkout_and_those_past_the_queue_are_told_to_come_back() {
    // Each from an address of its own, so that guessing is not what stops them.
    let node = Arc::new(Node::start(&["--trusted-proxy", "127.0.0.1"]).await);
    let over = Arc::new(AtomicBool::new(false));
    let (checked, busy) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let storm: Vec<_> = (0..STORM)
        .map(|number| {
            let (node, over, checked, busy) = (node.clone(), over.clone(), checked.clone(), busy.clone());
            tokio::spawn(async move {
                let mut line = node.connect().await;
                for attempt in 0_u32.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let from = format!("198.{}.{}.{}", number % 250, attempt / 250 % 250, attempt % 250);
                    let headers = format!("content-type: application/json\r\nx-forwarded-for: {from}\r\n");
                    let body = json!({ "email": format!("{number}-{attempt}@souk.test"), "password": "not this one" });
                    let heard = line.ask("POST", "/api/sessions", &headers, &body.to_string()).await;
                    match heard.status {
                        401 => checked.fetch_add(1, Ordering::Relaxed),
                        503 => {
                            assert!(heard.header("retry-after").is_some(), "{}", heard.head);
                            busy.fetch_add(1, Ordering::Relaxed)
                        }
                        _ => panic!("{}", heard.text()),
                    };
                }
            })
        })
        .collect();
    crate::node::until("the queue of passwords is full", || async { busy.load(Ordering::Relaxed) > 0 }).await;
    for _ in 0..PURCHASES {
        let bought = buy(&node).await;
        assert!(bought.took < Duration::from_secs(5), "{:?} to buy a lantern", bought.took);
    }
    over.store(true, Ordering::Relaxed);
    for line in storm {
        line.await.unwrap();
    }
    assert!(checked.load(Ordering::Relaxed) > 0, "nobody's password was looked at");
}
