//! Shoppers whose payments never work: nobody else pays for it.

use futures_util::future::join_all;

use crate::node::{Node, until};
use crate::shopper::{buy, check_out, fill_cart};

/// How often a breaker came into a state.
async fn times(node: &Node, state: &str) -> u64 {
    let name = format!("souk_breaker_transitions_total{{provider=\"sandbox\",state=\"{state}\"}}");
    node.metric(&name).await as u64
}

/// Orders something and pays with a token that plays an outage.
async fn choke(node: &Node) {
    let mut line = node.connect().await;
    let (cart, token) = fill_cart(&mut line).await;
    assert_eq!(check_out(&mut line, &cart, &token, "tok_error").await.status, 202);
}

#[tokio::test]
async fn one_shopper_whose_payments_fail_closes_the_door_for_nobody_and_many_close_it_for_a_moment() {
    let node = Node::start(&[]).await;
    choke(&node).await;
    until("it has failed often", || async { node.metric("souk_provider_failed_total{provider=\"sandbox\"}").await >= 5.0 }).await;
    assert_eq!(times(&node, "open").await, 0);
    for _ in 0..5 {
        buy(&node).await;
    }
    // Several of them with nobody else in the shop are what an outage looks like.
    join_all((0..6).map(|_| choke(&node))).await;
    until("the provider is left alone", || async { times(&node, "open").await > 0 }).await;
    // Somebody whose payment has not failed is the next probe: paid at once or within moments, and never declined.
    let mut line = node.connect().await;
    let (cart, token) = fill_cart(&mut line).await;
    let order = check_out(&mut line, &cart, &token, "tok_ok").await;
    assert!(matches!(order.status, 201 | 202), "{}", order.text());
    let (path, bearer) =
        (format!("/api/orders/{}", order.json()["id"].as_str().unwrap()), format!("authorization: Bearer {token}\r\n"));
    until("the order is paid", || async { node.connect().await.ask("GET", &path, &bearer, "").await.json()["status"] == "paid" })
        .await;
}
