//! Somebody who only wants to buy a lantern.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::node::Node;
use crate::wire::{Heard, Line};

pub const SKU: &str = "LANTERN-S";

pub struct Bought {
    pub token: String,
    pub cart: String,
    pub order: String,
    pub took: Duration,
}

async fn post<T: AsyncRead + AsyncWrite + Unpin>(line: &mut Line<T>, path: &str, token: &str, body: &Value) -> Heard {
    let token = if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
    line.ask("POST", path, &format!("{token}content-type: application/json\r\n"), &body.to_string()).await
}

/// A cart with one lantern in it: its id and its token.
pub async fn fill_cart<T: AsyncRead + AsyncWrite + Unpin>(line: &mut Line<T>) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let made = post(line, "/api/carts", "", &json!({})).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let (cart, token) = (text(&made.json()["id"]), text(&made.json()["token"]));
    let added = post(line, &format!("/api/carts/{cart}/items"), &token, &json!({ "sku": SKU, "quantity": 1 })).await;
    assert_eq!(added.status, 200, "{}", added.text());
    (cart, token)
}

pub async fn check_out<T: AsyncRead + AsyncWrite + Unpin>(line: &mut Line<T>, cart: &str, token: &str, payment: &str) -> Heard {
    let purchase = json!({
        "payment": { "provider": "sandbox", "token": payment },
        "shipping_address": { "name": "Ada", "line1": "1 Way", "city": "Fez", "postal_code": "30000", "country": "MA" },
        "email": "ada@souk.test",
    });
    post(line, &format!("/api/carts/{cart}/checkout"), token, &purchase).await
}

/// A whole purchase over this connection.
pub async fn buy_on<T: AsyncRead + AsyncWrite + Unpin>(line: &mut Line<T>) -> Bought {
    let began = Instant::now();
    let (cart, token) = fill_cart(line).await;
    let order = check_out(line, &cart, &token, "tok_ok").await;
    assert_eq!((order.status, &order.json()["status"]), (201, &json!("paid")), "{}", order.text());
    let order = order.json()["id"].as_str().unwrap().to_owned();
    Bought { token, cart, order, took: began.elapsed() }
}

/// A whole purchase over a connection of its own.
pub async fn buy(node: &Node) -> Bought {
    buy_on(&mut node.connect().await).await
}

pub async fn cancel(node: &Node, bought: &Bought) -> Heard {
    let path = format!("/api/orders/{}/cancel", bought.order);
    post(&mut node.connect().await, &path, &bought.token, &json!({ "reason": "changed my mind" })).await
}
