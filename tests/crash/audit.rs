//! What the node must still know, and what must add up, when nobody buys.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use souk::integrations::http_client::{Client, Header, Limits, Origin, bearer, percent_encoded};

use crate::node::{operator, until};
use crate::purchase::lines;
use crate::shopper::{Memory, OrderMemory, STOCK};

/// How long the stock is waited for.
const LOOKS_MAX: usize = 400;
const LOOK_EVERY: Duration = Duration::from_millis(25);

pub struct Auditor {
    origin: Origin,
    admin: String,
    client: tokio::sync::Mutex<Client>,
}

/// The end of an order: what it was, and what it sold.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    pub status: String,
    pub sold: BTreeMap<String, u64>,
}

fn authorization(token: &str) -> Header {
    (hyper::header::AUTHORIZATION, bearer(token).unwrap())
}

/// Whether an order that is `now` is at least as far as the answer said.
fn is_as_far(said: &OrderMemory, now: &str) -> bool {
    match said.status.as_str() {
        "pending" => true,
        "reserved" => now != "pending",
        "paid" if said.cancel_asked => ["paid", "cancelled", "refunded"].contains(&now),
        "cancelled" => ["cancelled", "refunded"].contains(&now),
        other => now == other,
    }
}

/// Whether an order can still change by itself.
fn is_final(order: &Value) -> bool {
    let payment = order["payment"]["status"].as_str().unwrap();
    let is_ended = !["pending", "reserved"].contains(&order["status"].as_str().unwrap());
    is_ended && !["authorizing", "capturing", "voiding", "refunding"].contains(&payment)
}

impl Auditor {
    pub fn new(origin: Origin, data: &Path) -> Auditor {
        let admin = operator(data);
        let client = Client::new(origin.clone(), Limits::default()).into();
        Auditor { origin, admin, client }
    }

    pub async fn get(&self, path: &str, token: &str) -> (u16, Value) {
        let answer = self.client.lock().await.get(path, &[authorization(token)]).await;
        let answer = answer.unwrap_or_else(|error| panic!("GET {path} at {}: {error}", self.origin));
        (answer.status.as_u16(), serde_json::from_slice(&answer.body).unwrap())
    }

    async fn found(&self, path: &str, token: &str) -> Value {
        match self.get(path, token).await {
            (200, found) => found,
            other => panic!("{path} is missing: {other:?}"),
        }
    }

    pub async fn open_shop(&self) {
        for (sku, stock) in STOCK {
            let variant = json!({ "sku": sku, "price": { "amount": 700, "currency": "EUR" }, "stock": stock });
            let body = Bytes::from(json!({ "title": sku, "variants": [variant] }).to_string());
            let answer = self.client.lock().await.post("/api/products", &[authorization(&self.admin)], body).await.unwrap();
            assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        }
    }

    /// Awaits that so many commands wait for an answer.
    pub async fn until_waiting(&self, count: u64) {
        until("so many requests are in flight", || async {
            self.found("/api/cluster", &self.admin).await["waiting"].as_u64().unwrap() >= count
        })
        .await;
    }

    /// Reads everything back that was acknowledged, and balances the books. `ends`: the orders audited before, of which
    /// only some are read again unless `all` are.
    pub async fn audit(&self, memory: &Memory, ends: &mut BTreeMap<String, End>, all: bool) {
        for (id, said) in &memory.orders {
            if !all && ends.contains_key(id) && fastrand::u8(..) > 30 {
                continue;
            }
            let end = self.audit_order(id, said).await;
            if let Some(before) = ends.insert(id.clone(), end.clone()) {
                assert_eq!(before, end, "{id} was at its end");
            }
        }
        let held = self.audit_carts(memory).await;
        self.audit_stock(ends, &held).await;
        self.assert_all_at_ease().await;
    }

    async fn audit_order(&self, id: &str, said: &OrderMemory) -> End {
        let path = format!("/api/orders/{id}");
        let order = self.found(&path, &said.token).await;
        let status = order["status"].as_str().unwrap();
        assert!(is_as_far(said, status), "{id} was said to be {} and is {status}", said.status);
        until(&format!("{id} comes to its end"), || async { is_final(&self.found(&path, &said.token).await) }).await;
        let order = self.found(&path, &said.token).await;
        let status = order["status"].as_str().unwrap().to_owned();
        assert!(is_as_far(said, &status), "{id} was said to be {} and is {status}", said.status);

        let history = self.found(&format!("{path}/history?limit=100"), &said.token).await;
        let payment = format!("payment/pay_{}", id.strip_prefix("ord_").unwrap());
        let captured = if ["paid", "refunded"].contains(&status.as_str()) { 1 } else { 0 };
        assert_eq!(count(&history["items"], "order.paid"), captured, "{id} is {status}: {history}");
        assert_eq!(count(&history["items"], "order.payment.captured"), captured, "{id} is {status}: {history}");
        if let (200, payment) = self.get(&format!("/api/cluster/entities/{payment}"), &self.admin).await {
            assert_eq!(count(&payment["history"], "payment.success"), captured, "{id} is {status}: {payment}");
            assert_eq!(count(&payment["history"], "payment.refunded"), usize::from(status == "refunded"), "{id}: {payment}");
        } else {
            assert_eq!(captured, 0, "{id} is {status} and nobody was asked for money");
        }
        let sold = if status == "paid" { lines(&order) } else { BTreeMap::new() };
        End { status, sold }
    }

    /// Returns what open carts have in them, by sku.
    async fn audit_carts(&self, memory: &Memory) -> BTreeMap<String, u64> {
        let mut held = BTreeMap::new();
        for (id, said) in &memory.carts {
            let path = format!("/api/carts/{id}");
            until(&format!("{id} is not being checked out"), || async {
                self.found(&path, &said.token).await["status"] != "checking_out"
            })
            .await;
            let cart = self.found(&path, &said.token).await;
            if !said.is_checked_out {
                assert_eq!((cart["status"].as_str(), lines(&cart)), (Some("open"), said.lines.clone()), "{id}");
            }
            if cart["status"] == "open" {
                for (sku, quantity) in lines(&cart) {
                    *held.entry(sku).or_default() += quantity;
                }
            }
        }
        held
    }

    async fn audit_stock(&self, ends: &BTreeMap<String, End>, held: &BTreeMap<String, u64>) {
        for (sku, stock) in STOCK {
            let sold: u64 = ends.values().filter_map(|end| end.sold.get(sku)).sum();
            let held = held.get(sku).copied().unwrap_or(0);
            let expected = json!([stock - sold, 0, held, stock - sold - held]);
            let mut actual = Value::Null;
            // What was cancelled a moment ago is still on its way back.
            for _ in 0..LOOKS_MAX {
                let item = self.found(&format!("/api/inventory/{sku}"), &self.admin).await;
                actual = json!([item["on_hand"], item["reserved"], item["held"], item["available"]]);
                if actual == expected {
                    break;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            assert_eq!(actual, expected, "{sku}: on hand, reserved, held, available");
        }
    }

    async fn assert_all_at_ease(&self) {
        let cluster = self.found("/api/cluster", &self.admin).await;
        assert_eq!(cluster["set_aside"], json!([]));
    }

    /// Every order that the node lists and that took money is one that a shopper was told of.
    pub async fn assert_nothing_invented(&self, ends: &BTreeMap<String, End>) {
        // The list follows the journal a little behind.
        until("the list has every order as it ended", || async {
            let listed = self.list().await;
            ends.iter().all(|(id, end)| listed.get(id) == Some(&end.status))
        })
        .await;
        for (id, status) in self.list().await.iter().filter(|(_, status)| *status != "cancelled") {
            assert!(ends.contains_key(id), "{id} is {status} and nobody was told");
        }
    }

    /// Every order's status, as the operator's list has it.
    async fn list(&self) -> BTreeMap<String, String> {
        let mut listed = BTreeMap::new();
        let mut cursor = String::new();
        loop {
            let page = self.found(&format!("/api/orders?limit=100{cursor}"), &self.admin).await;
            for order in page["items"].as_array().unwrap() {
                listed.insert(order["id"].as_str().unwrap().to_owned(), order["status"].as_str().unwrap().to_owned());
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={}", percent_encoded(next)),
                None => return listed,
            }
        }
    }
}

fn count(records: &Value, event_type: &str) -> usize {
    records.as_array().unwrap().iter().filter(|record| record["type"] == event_type).count()
}
