//! Somebody follows an order from one node to another while both it and its owner are elsewhere.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use souk::cluster::{Name, Owners, partition};
use souk::integrations::http_client::{Client, IDEMPOTENCY_KEY, Limits, Origin};
use souk::persistence::EntityKey;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::faults::Shop;
use crate::purchase::{purchase, text};
use crate::three_nodes::{Doors, NODES, Options, ThreeNodes, name};

const PATIENCE: Duration = Duration::from_secs(30);
/// Orders that are made until one lives where it is wanted.
const ORDERS_MAX: usize = 64;
const AGAIN: Duration = Duration::from_millis(50);
/// Its payment takes a while, so that whoever follows the order hears it live.
const SLOW_CARD: &str = "tok_slow";

async fn post(origin: &Origin, path: &str, token: &str, body: Value) -> (u16, Value) {
    let limits = Limits { request: PATIENCE, ..Limits::default() };
    let mut client = Client::new(origin.clone(), limits);
    if !token.is_empty() {
        client = client.with_token(token).unwrap();
    }
    let key = (IDEMPOTENCY_KEY, format!("push-{}", fastrand::u64(..)).parse().unwrap());
    let answer = client.post(path, &[key], Bytes::from(body.to_string())).await.unwrap();
    (answer.status.as_u16(), serde_json::from_slice(&answer.body).unwrap_or_default())
}

/// The events of an order, as its own records have them.
async fn records(origin: &Origin, order: &str, operator: &str) -> Vec<(u64, String)> {
    let mut client = Client::new(origin.clone(), Limits::default()).with_token(operator).unwrap();
    let answer = client.get(&format!("/api/cluster/entities/order/{order}"), &[]).await.unwrap();
    let inspected: Value = serde_json::from_slice(&answer.body).unwrap();
    let history = inspected["history"].as_array().unwrap_or_else(|| panic!("no history in {inspected}"));
    history.iter().map(|record| (record["entityversion"].as_u64().unwrap(), text(&record["type"]))).collect()
}

struct Follower {
    socket: WebSocketStream<TcpStream>,
}

impl Follower {
    async fn of(origin: &Origin, order: &str, token: &str, after: u64) -> Follower {
        let url = origin.to_string();
        let authority = url.strip_prefix("http://").unwrap().trim_end_matches('/');
        let stream = TcpStream::connect(authority).await.unwrap();
        let request = format!("ws://{authority}/ws").into_client_request().unwrap();
        let upgraded = timeout(PATIENCE, tokio_tungstenite::client_async(request, stream)).await.unwrap();
        let mut socket = upgraded.unwrap().0;
        let said = json!({ "type": "subscribe", "topic": format!("order:{order}"), "after": after, "token": token });
        socket.send(Message::text(said.to_string())).await.unwrap();
        Follower { socket }
    }

    /// The next event; `None` when the connection is over.
    async fn next(&mut self) -> Option<(u64, String)> {
        loop {
            let Message::Text(message) = timeout(PATIENCE, self.socket.next()).await.expect("something is heard")?.ok()? else {
                continue;
            };
            let message: Value = serde_json::from_str(&message).unwrap();
            match message["type"].as_str() {
                Some("event") => return Some((message["seq"].as_u64().unwrap(), text(&message["event"]["type"]))),
                Some("error" | "state") => panic!("{message}"),
                _ => {}
            }
        }
    }

    /// All that is heard until this event, with it.
    async fn hears_until(&mut self, event_type: &str) -> Vec<(u64, String)> {
        let mut heard = Vec::new();
        while heard.last().is_none_or(|(_, last)| last != event_type) {
            heard.push(self.next().await.unwrap_or_else(|| panic!("the connection ended after {heard:?}")));
        }
        heard
    }
}

fn owner(order: &str) -> String {
    let names = (0..NODES).map(|node| Name::parse(&name(node)).unwrap());
    Owners::among(names).of(partition(&EntityKey::new("order", order))).unwrap().to_string()
}

/// An order that lives on the node of this name, its id and token.
async fn order_on(origin: &Origin, wanted: &str) -> (String, String) {
    let mut body = purchase(SLOW_CARD);
    body["items"] = json!([{ "sku": "LAMP", "quantity": 1 }]);
    for _ in 0..ORDERS_MAX {
        let (status, order) = post(origin, "/api/orders", "", body.clone()).await;
        assert!(matches!(status, 201 | 202), "{status} {order}");
        if owner(&text(&order["id"])) == wanted {
            return (text(&order["id"]), text(&order["token"]));
        }
    }
    panic!("no order of {ORDERS_MAX} lives on {wanted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_an_order_hears_each_event_once_and_in_order_though_the_node_it_was_connected_to_is_killed() {
    let options = Options { doors: Doors::BalancerAndNodes, clocks: false, servers_can_be_cut: false, leave_seconds: 2 };
    let mut shop = ThreeNodes::start(options).await;
    let [n1, n2, n3] = [0, 1, 2].map(|node| shop.origin(node));
    let variant = json!({ "sku": "LAMP", "price": { "amount": 700, "currency": "EUR" }, "stock": 1_000 });
    let (status, made) = post(&n1, "/api/products", &shop.operator(), json!({ "title": "Lamp", "variants": [variant] })).await;
    assert_eq!(status, 201, "{made}");

    let (order, token) = order_on(&n2, "n3").await;
    let mut follower = Follower::of(&n1, &order, &token, 0).await;
    let mut heard = follower.hears_until("order.paid").await;
    shop.kill_node(0);
    assert_eq!(follower.next().await, None, "the connection ends with its node");

    // What happens now happens while nobody listens, or just when somebody does again.
    let after = heard.last().unwrap().0;
    let cancelled = async {
        loop {
            let (status, answer) = post(&n3, &format!("/api/orders/{order}/cancel"), &token, json!({})).await;
            match status {
                200..300 => return,
                503 => tokio::time::sleep(AGAIN).await,
                _ => panic!("{status} {answer}"),
            }
        }
    };
    let ((), mut follower) = tokio::join!(cancelled, Follower::of(&n2, &order, &token, after));
    heard.extend(follower.hears_until("order.refunded").await);
    let expected = records(&n2, &order, &shop.operator()).await;
    assert!(after > 1 && expected.len() > heard.iter().filter(|(seq, _)| *seq <= after).count());
    assert_eq!(heard, expected);
}
