//! Shoppers who buy over HTTP, remember every answer, and send what was not answered again under the same key.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, HeaderValue};
use serde_json::{Value, json};
use souk::integrations::http_client::{Answer, Client, Header, IDEMPOTENCY_KEY, Limits, Origin, bearer};
use tokio::sync::watch;

use crate::node::DEADLINE;
use crate::purchase::{lines, purchase, text};

/// Sku and units at the beginning: two that run out, two that do not.
pub const STOCK: [(&str, u64); 4] = [("RARE-1", 25), ("RARE-2", 60), ("MANY-1", 50_000), ("MANY-2", 50_000)];

/// What was acknowledged. Each entry was in an answer that a shopper has read.
#[derive(Default)]
pub struct Memory {
    pub carts: BTreeMap<String, CartMemory>,
    pub orders: BTreeMap<String, OrderMemory>,
    pub answers: usize,
    pub repeated: usize,
}

pub struct CartMemory {
    pub token: String,
    /// By sku, as of the last answer that showed the cart.
    pub lines: BTreeMap<String, u64>,
    /// Whether a checkout was asked for: from then on the order decides what is in it.
    pub is_checked_out: bool,
}

#[derive(Clone)]
pub struct OrderMemory {
    pub token: String,
    pub status: String,
    pub cancel_asked: bool,
}

/// Where the node is, or nowhere; and whether new purchases are begun.
#[derive(Clone, Default)]
pub struct Scene {
    pub origin: Option<Origin>,
    pub is_open: bool,
}

pub struct Shopper {
    name: String,
    random: fastrand::Rng,
    scene: watch::Receiver<Scene>,
    memory: Arc<Mutex<Memory>>,
    /// Whether some payments take three seconds.
    with_slow: bool,
    client: Option<(String, Client)>,
    keys: usize,
}

impl Shopper {
    pub fn new(
        name: String,
        random: fastrand::Rng,
        scene: watch::Receiver<Scene>,
        memory: Arc<Mutex<Memory>>,
        with_slow: bool,
    ) -> Self {
        Shopper { name, random, scene, memory, with_slow, client: None, keys: 0 }
    }

    /// Buys until the shop closes; every purchase that was begun is brought to its end.
    pub async fn shop(mut self) {
        while self.scene.borrow().is_open {
            self.buy().await;
        }
    }

    /// One definite answer: sent again under the same key for as long as it takes, to whichever node there is.
    async fn post(&mut self, path: &str, token: Option<&str>, body: &Value) -> (u16, Value) {
        self.keys += 1;
        let key = HeaderValue::from_str(&format!("{}-{}", self.name, self.keys)).unwrap();
        let mut headers: Vec<Header> = vec![(IDEMPOTENCY_KEY, key)];
        headers.extend(token.map(|token| (AUTHORIZATION, bearer(token).unwrap())));
        let body = Bytes::from(body.to_string());
        let answered = async {
            loop {
                match self.send(path, &headers, body.clone()).await {
                    Some(answer) if answer.status.as_u16() < 500 => return answer,
                    Some(answer) if matches!(answer.status.as_u16(), 503 | 504) => {}
                    Some(answer) => panic!("{path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body)),
                    None => {}
                }
                self.memory.lock().unwrap().repeated += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let answer = tokio::time::timeout(DEADLINE, answered).await.unwrap_or_else(|_| panic!("{path} is never answered"));
        self.memory.lock().unwrap().answers += 1;
        (answer.status.as_u16(), serde_json::from_slice(&answer.body).unwrap())
    }

    async fn send(&mut self, path: &str, headers: &[Header], body: Bytes) -> Option<Answer> {
        let origin = self.scene.wait_for(|scene| scene.origin.is_some()).await.unwrap().origin.clone().unwrap();
        let url = origin.to_string();
        if self.client.as_ref().is_none_or(|(to, _)| *to != url) {
            self.client = Some((url, Client::new(origin, Limits::default())));
        }
        let (_, client) = self.client.as_mut()?;
        client.post(path, headers, body).await.ok()
    }

    async fn buy(&mut self) {
        let token = match self.random.u32(0..100) {
            0..15 => "tok_declined",
            15..20 if self.with_slow => "tok_slow",
            _ => "tok_ok",
        };
        match self.random.u32(0..100) {
            0..15 => self.order_at_once(token).await,
            _ => self.buy_with_cart(token).await,
        }
    }

    fn sku(&mut self) -> &'static str {
        STOCK[self.random.usize(..STOCK.len())].0
    }

    async fn buy_with_cart(&mut self, payment: &str) {
        let (status, cart) = self.post("/api/carts", None, &json!({})).await;
        assert_eq!(status, 201, "{cart}");
        let (id, token) = (text(&cart["id"]), text(&cart["token"]));
        let memory = CartMemory { token: token.clone(), lines: BTreeMap::new(), is_checked_out: false };
        self.memory.lock().unwrap().carts.insert(id.clone(), memory);
        let mut has_lines = false;
        for _ in 0..self.random.u32(1..=2) {
            let item = json!({ "sku": self.sku(), "quantity": self.random.u32(1..=3) });
            match self.post(&format!("/api/carts/{id}/items"), Some(&token), &item).await {
                (200, cart) => {
                    has_lines = true;
                    self.remember_cart(&id, |memory| memory.lines = lines(&cart));
                }
                (409, _) => {}
                other => panic!("{other:?}"),
            }
        }
        if !has_lines || self.random.u32(0..100) < 15 {
            return;
        }
        self.remember_cart(&id, |memory| memory.is_checked_out = true);
        match self.post(&format!("/api/carts/{id}/checkout"), Some(&token), &purchase(payment)).await {
            (201 | 202, order) => self.ordered(&order, &token).await,
            (409, _) => {}
            other => panic!("{other:?}"),
        }
    }

    async fn order_at_once(&mut self, payment: &str) {
        let (first, second) = (self.sku(), self.sku());
        let mut body = purchase(payment);
        body["items"] = json!([{ "sku": first, "quantity": 1 }, { "sku": second, "quantity": 2 }]);
        match self.post("/api/orders", None, &body).await {
            (201 | 202, order) => {
                let token = text(&order["token"]);
                self.ordered(&order, &token).await;
            }
            (409, _) => {}
            other => panic!("{other:?}"),
        }
    }

    async fn ordered(&mut self, order: &Value, token: &str) {
        let (id, status) = (text(&order["id"]), text(&order["status"]));
        let memory = OrderMemory { token: token.to_owned(), status: status.clone(), cancel_asked: false };
        self.memory.lock().unwrap().orders.insert(id.clone(), memory);
        if status == "paid" && self.random.u32(0..100) < 20 {
            self.remember_order(&id, |memory| memory.cancel_asked = true);
            match self.post(&format!("/api/orders/{id}/cancel"), Some(token), &json!({})).await {
                (200, order) => self.remember_order(&id, |memory| memory.status = text(&order["status"])),
                other => panic!("{other:?}"),
            }
        }
    }

    fn remember_cart(&self, id: &str, note: impl FnOnce(&mut CartMemory)) {
        note(self.memory.lock().unwrap().carts.get_mut(id).unwrap());
    }

    fn remember_order(&self, id: &str, note: impl FnOnce(&mut OrderMemory)) {
        note(self.memory.lock().unwrap().orders.get_mut(id).unwrap());
    }
}
