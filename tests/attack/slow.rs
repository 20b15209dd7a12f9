//! Heads and bodies that never end, a byte at a time.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::node::Node;
use crate::shopper::buy;
use crate::wire::Line;

const EACH: usize = 100;
/// The head's timeout, the grain of a connection's clock, and some patience for a machine with much to do.
const HEAD_CUT: Duration = Duration::from_secs(20);
/// The same for a body's timeout in all.
const BODY_CUT: Duration = Duration::from_secs(40);

/// Sends this and then a byte now and then, until the connection is closed; returns how long that took and what was said.
async fn drip(node: &Node, start: &str) -> (Duration, String) {
    let mut line = node.connect().await;
    let began = Instant::now();
    line.write(start.as_bytes()).await;
    let mut pace = tokio::time::interval(Duration::from_millis(900));
    let said = loop {
        tokio::select! {
            said = line.rest(BODY_CUT * 2) => break said,
            _ = pace.tick() => {}
        }
        if !line.write(b"1").await {
            break line.rest(BODY_CUT).await;
        }
    };
    (began.elapsed(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_and_bodies_are_cut_off_while_others_are_served() {
    let node = Node::start(&[]).await;
    let heads = join_all((0..EACH).map(|_| drip(&node, "GET /api/products HTTP/1.1\r\nhost: souk\r\nx-slow: ")));
    let first_line = join_all((0..EACH).map(|_| drip(&node, "GET /api/products?q=")));
    let bodies =
        join_all((0..EACH).map(|_| drip(&node, "POST /api/carts HTTP/1.1\r\nhost: souk\r\ncontent-length: 1000\r\n\r\n")));
    let chunks = join_all(
        (0..EACH).map(|_| drip(&node, "POST /api/carts HTTP/1.1\r\nhost: souk\r\ntransfer-encoding: chunked\r\n\r\nfff\r\n")),
    );
    let silent = join_all((0..EACH).map(|_| async {
        let began = Instant::now();
        (Line::open(node.address).await.rest(BODY_CUT).await, began.elapsed())
    }));
    let shoppers = async {
        for _ in 0..30 {
            let bought = buy(&node).await;
            assert!(bought.took < Duration::from_secs(5), "{:?} to buy a lantern", bought.took);
        }
    };
    let (heads, first_line, bodies, chunks, silent, ()) = tokio::join!(heads, first_line, bodies, chunks, silent, shoppers);
    for (took, said) in heads.iter().chain(&first_line) {
        assert!(*took < HEAD_CUT && !said.contains("HTTP/1.1 2"), "{took:?}: {said}");
    }
    for (took, said) in bodies.iter().chain(&chunks) {
        assert!(
            *took < BODY_CUT && said.starts_with("HTTP/1.1 408 ") && said.contains("/problems/slow-body"),
            "{took:?}: {said}"
        );
    }
    for (said, took) in &silent {
        assert!(*took < HEAD_CUT && said.is_empty(), "{took:?}");
    }
    node.is_well().await;
}
