//! WebSockets that listen at others' doors, and such as speak nonsense.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::node::Node;
use crate::shopper::{buy, cancel, fill_cart};
use crate::wire::PATIENCE;

struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn open(node: &Node) -> Socket {
        let stream = TcpStream::connect(node.address).await.unwrap();
        let url = format!("ws://{}/ws", node.address);
        let (socket, _) = timeout(PATIENCE, tokio_tungstenite::client_async(url, stream)).await.unwrap().unwrap();
        Socket(socket)
    }

    async fn say(&mut self, what: &Value) {
        self.0.send(Message::text(what.to_string())).await.unwrap();
    }

    async fn subscribe(&mut self, topic: &str, token: &str) {
        self.say(&json!({ "type": "subscribe", "topic": topic, "token": token, "after": 0 })).await;
    }

    async fn hear(&mut self) -> Value {
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("nothing is heard") {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn whoever_subscribes_to_others_orders_and_carts_is_refused_and_hears_nothing() {
    let node = Node::start(&[]).await;
    let victim = buy(&node).await;
    let (other_cart, other_token) = fill_cart(&mut node.connect().await).await;
    let (order, cart) = (format!("order:{}", victim.order), format!("cart:{}", victim.cart));
    let mut owner = Socket::open(&node).await;
    owner.subscribe(&order, &victim.token).await;
    assert_eq!(owner.hear().await["type"], "subscribed");

    let mut stranger = Socket::open(&node).await;
    // With no token, with its own, with something that looks like one; in spellings that a careless check would let through.
    let upper = victim.order.to_uppercase();
    let truncated = &victim.token[..victim.token.len() - 1];
    for token in ["", other_token.as_str(), truncated, "null", "*", "' or 1=1 --"] {
        for topic in [order.as_str(), cart.as_str()] {
            stranger.subscribe(topic, token).await;
            let heard = stranger.hear().await;
            assert_eq!(
                (&heard["type"], &heard["code"]),
                (&json!("error"), &json!("not-found")),
                "{topic} with {token:?}: {heard}"
            );
        }
    }
    for topic in [
        "order:*",
        "order:",
        "cart:*",
        "*",
        "order:%",
        "orders",
        "payment:pay_1",
        "request:x",
        "user:usr_1",
        &format!("order:{upper}"),
        &format!("order: {}", victim.order),
        &format!("{order}\0"),
        &format!("ORDER:{}", victim.order),
        &format!("{order}:{cart}"),
        &format!("inventory:{}", victim.order),
        &format!("cart:{other_cart}/../{}", victim.cart),
    ] {
        stranger.subscribe(topic, &other_token).await;
        let heard = stranger.hear().await;
        assert_eq!(heard["type"], "error", "{topic}: {heard}");
    }
    // Its own cart it may hear; a second token on the same socket opens nothing else.
    stranger.subscribe(&format!("cart:{other_cart}"), &other_token).await;
    assert_eq!(stranger.hear().await["type"], "subscribed");

    assert_eq!(cancel(&node, &victim).await.status, 200);
    while owner.hear().await["event"]["type"] != "order.refunded" {}
    // Whatever is pushed to the stranger comes before the answer to its ping.
    stranger.say(&json!({ "type": "ping" })).await;
    loop {
        let heard = stranger.hear().await;
        if heard["type"] == "pong" {
            break;
        }
        assert_eq!(heard["topic"], format!("cart:{other_cart}"), "{heard}");
        assert!(!heard.to_string().contains(&victim.order), "{heard}");
    }
}

#[tokio::test]
async fn a_socket_that_breaks_the_protocol_is_closed_and_costs_nothing() {
    let node = Node::start(&[]).await;
    let before = node.resident_bytes();
    let masked = |first: u8, payload: &[u8]| {
        let mut frame = vec![first, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
        frame.extend(payload);
        frame
    };
    let frames: [(&str, Vec<u8>); 8] = [
        ("unmasked", vec![0x81, 0x02, b'h', b'i']),
        ("an exbibyte announced", vec![0x81, 0xff, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("100 MiB announced", vec![0x82, 0xff, 0, 0, 0, 0, 0x06, 0x40, 0, 0, 0, 0, 0, 0]),
        ("a continuation of nothing", masked(0x80, b"x")),
        ("not UTF-8", masked(0x81, b"\xff\xfe")),
        ("reserved bits", masked(0xf1, b"x")),
        ("an unknown opcode", masked(0x8b, b"x")),
        ("a close with half a code", masked(0x88, b"\x03")),
    ];
    for (name, frame) in frames {
        let mut line = node.connect().await;
        let upgraded = line.ask(
            "GET",
            "/ws",
            "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            "",
        );
        assert_eq!(upgraded.await.status, 101, "{name}");
        line.write(&frame).await;
        let said = line.rest(Duration::from_secs(20)).await;
        assert!(said.len() < 1_000, "{name}: {} bytes", said.len());
    }
    // Deep nesting and floods of messages go through the same reader as every other message.
    let mut socket = Socket::open(&node).await;
    socket.0.send(Message::text("[".repeat(10_000))).await.unwrap();
    assert_eq!(socket.hear().await["type"], "error");
    assert!(node.resident_bytes().saturating_sub(before) < 64 * 1024 * 1024);
    buy(&node).await;
}
