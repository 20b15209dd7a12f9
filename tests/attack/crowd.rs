//! Connections that do nothing but take places.

use std::time::Duration;

use crate::node::{Node, open_files, until};
use crate::shopper::buy;
use crate::wire::Line;

/// How many are held, where the system allows it.
const CROWD: usize = 10_000;
/// What the test and its node need besides.
const OTHER_FILES: u64 = 1_500;
const OPENED_AT_ONCE: usize = 200;

/// A connection that was used once and rests.
async fn resting(node: &Node) -> Line {
    let mut line = node.connect().await;
    assert_eq!(line.ask("GET", "/health/live", "", "").await.status, 200);
    line
}

async fn crowd(node: &Node, count: usize) -> Vec<Line> {
    let mut lines = Vec::with_capacity(count);
    while lines.len() < count {
        let some = (0..OPENED_AT_ONCE.min(count - lines.len())).map(|_| resting(node));
        lines.extend(futures_util::future::join_all(some).await);
    }
    lines
}

#[tokio::test]
async fn ten_thousand_idle_connections_are_held_and_new_shoppers_are_served() {
    let allowed = open_files(CROWD as u64 + OTHER_FILES) - OTHER_FILES;
    let count = CROWD.min(usize::try_from(allowed).unwrap());
    if count < CROWD {
        eprintln!("this system lets a process hold only {count} connections and not {CROWD}: the test holds these");
    }
    let node = Node::start(&[]).await;
    let mut lines = crowd(&node, count).await;
    assert!(node.metric("souk_http_connections").await >= count as f64);
    for _ in 0..20 {
        let bought = buy(&node).await;
        assert!(bought.took < Duration::from_secs(5), "{:?} to buy a lantern", bought.took);
    }
    // And they are really held: each of a sample is still answered.
    for line in lines.iter_mut().step_by(100) {
        assert_eq!(line.ask("GET", "/health/live", "", "").await.status, 200);
    }
}

#[tokio::test]
async fn whoever_only_rests_gives_way_when_all_places_are_taken() {
    const PLACES: usize = 100;
    let node = Node::start(&["--connections-max", "100"]).await;
    until("the connection that looked at the start is gone", || async { node.metric("souk_http_connections").await <= 1.0 })
        .await;
    // One of them is in the middle of something: its order's events.
    let mut busy = node.connect().await;
    let bought = crate::shopper::buy_on(&mut busy).await;
    let (path, token) = (format!("/api/orders/{}/events", bought.order), format!("authorization: Bearer {}\r\n", bought.token));
    assert_eq!(busy.ask("GET", &path, &token, "").await.status, 200);
    let mut others = crowd(&node, PLACES - 1).await;
    // The newcomer is turned away while nobody has rested for long, and let in soon.
    until("a new shopper is served", || async {
        let mut line = node.connect().await;
        line.write(b"GET /api/products HTTP/1.1\r\nhost: souk\r\n\r\n").await;
        line.hear().await.is_some_and(|heard| heard.status == 200)
    })
    .await;
    for _ in 0..10 {
        buy(&node).await;
    }
    assert!(node.metric("souk_http_connections").await <= PLACES as f64 + 1.0);
    let mut gone = 0;
    for line in &mut others {
        let asked = line.write(b"GET /health/live HTTP/1.1\r\nhost: souk\r\n\r\n").await;
        gone += usize::from(!asked || line.hear().await.is_none());
    }
    assert!((1..PLACES / 2).contains(&gone), "{gone} had to go");
    let cancelled = crate::shopper::cancel(&node, &bought).await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.text());
    let heard = busy.until_text("order.cancelled").await;
    assert!(heard, "whoever was in the middle of something was cut off");
}
