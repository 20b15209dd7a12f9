//! What the quiet shop's own API says, when everybody has gone home: to be held against what the clients saw.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::header::{AUTHORIZATION, HOST};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use souk::integrations::http_client::percent_encoded;
use tokio::net::TcpStream;

use crate::asking::Addresses;
use crate::history::History;
use crate::purchase::lines;

/// How long the shop has to settle everything after the last fault.
const SETTLES_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests at a time.
const AT_ONCE: usize = 8;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    pub orders: BTreeMap<String, Order>,
    pub carts: BTreeMap<String, Cart>,
    pub items: BTreeMap<String, Item>,
    /// Every order's status, as the operator's list has it.
    pub listed: BTreeMap<String, String>,
    pub set_aside: Value,
}

/// A record of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    #[serde(rename = "entityversion")]
    pub version: u64,
    #[serde(rename = "type")]
    pub event_type: String,
    #[serde(default)]
    pub data: Value,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// As its holder sees it; null when it is not there.
    pub shown: Value,
    /// Whether it owes nothing any more.
    pub is_settled: bool,
    pub history: Vec<Record>,
    /// The history of its payment.
    pub payment: Vec<Record>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cart {
    /// As its holder sees it; null when it was deleted or is not there.
    pub shown: Value,
    pub is_settled: bool,
    pub history: Vec<Record>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Item {
    pub shown: Value,
    pub history: Vec<Record>,
}

impl Order {
    pub fn status(&self) -> &str {
        self.shown["status"].as_str().unwrap_or("missing")
    }

    /// Whether its units left the stock, for good or for a while.
    pub fn was_paid(&self) -> bool {
        ["paid", "shipped", "refunded"].contains(&self.status())
    }

    pub fn lines(&self) -> BTreeMap<String, u64> {
        if self.shown.is_null() { BTreeMap::new() } else { lines(&self.shown) }
    }
}

impl Cart {
    /// What it holds of each sku.
    pub fn holds(&self) -> BTreeMap<String, u64> {
        if self.shown["status"] == "open" { lines(&self.shown) } else { BTreeMap::new() }
    }
}

/// Looks around in the quiet shop, from any of its addresses. Waits until everything is settled, or no longer: what is not
/// settled then is in the facts as such.
#[derive(Clone)]
pub struct Registrar {
    addresses: Addresses,
    operator: String,
    deadline: Instant,
}

impl Registrar {
    pub fn new(addresses: Addresses, operator: &str) -> Registrar {
        Registrar { addresses, operator: operator.to_owned(), deadline: Instant::now() + SETTLES_WITHIN }
    }

    pub async fn facts(&self, history: &History, skus: &[String]) -> Facts {
        let mut tokens: BTreeMap<String, String> = BTreeMap::new();
        let mut orders: BTreeSet<String> = BTreeSet::new();
        for asked in history.known() {
            if let Some(answer) = asked.outcome.answer() {
                let (id, token) = (answer["id"].as_str().unwrap_or(""), answer["token"].as_str());
                if id.starts_with("cart_") {
                    tokens.extend(token.map(|token| (id.to_owned(), token.to_owned())));
                } else if id.starts_with("ord_") {
                    orders.insert(id.to_owned());
                }
            } else if let crate::history::Outcome::Refused { problem, .. } = &asked.outcome {
                orders.extend(problem["order_id"].as_str().map(str::to_owned));
            }
        }
        // What nobody was told of is looked at as well.
        orders.extend(self.list().await.into_keys());
        let mut facts = Facts::default();
        let found = futures_util::stream::iter(tokens).map(async |(id, token)| (id.clone(), self.cart(&id, &token).await));
        facts.carts = found.buffer_unordered(AT_ONCE).collect().await;
        let found = futures_util::stream::iter(orders).map(async |id| (id.clone(), self.order(&id).await));
        facts.orders = found.buffer_unordered(AT_ONCE).collect().await;
        let mut held: BTreeMap<String, u64> = BTreeMap::new();
        for (sku, units) in facts.carts.values().flat_map(Cart::holds) {
            *held.entry(sku).or_default() += units;
        }
        for sku in skus {
            let held = held.get(sku).copied().unwrap_or(0);
            facts.items.insert(sku.clone(), self.item(sku, held).await);
        }
        facts.listed = loop {
            // The list follows the journal a little behind.
            let listed = self.list().await;
            let is_behind = facts
                .orders
                .iter()
                .any(|(id, order)| !order.shown.is_null() && listed.get(id).map(String::as_str) != Some(order.status()));
            if !is_behind || self.is_over() {
                break listed;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        facts.set_aside = self.set_aside().await;
        facts
    }

    fn is_over(&self) -> bool {
        Instant::now() > self.deadline
    }

    async fn cart(&self, id: &str, token: &str) -> Cart {
        loop {
            let inspected = self.inspect("cart", id).await;
            let state = inspected.as_ref().map_or(Value::Null, |found| found["state"].clone());
            let is_asking = |line: &Value| !line["asked"].is_null() || line["changes"] != serde_json::json!([]);
            let is_asking = state["lines"].as_object().is_some_and(|lines| lines.values().any(is_asking));
            let owes_nothing = state["releasing"].as_object().is_none_or(serde_json::Map::is_empty);
            let is_settled = !is_asking && owes_nothing && state["phase"].get("checking_out").is_none();
            if is_settled || self.is_over() {
                let shown = self.get(&format!("/api/carts/{id}"), token).await.unwrap_or_default();
                return Cart { shown, is_settled, history: records(inspected) };
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn order(&self, id: &str) -> Order {
        loop {
            let inspected = self.inspect("order", id).await;
            let state = inspected.as_ref().map_or(Value::Null, |found| found["state"].clone());
            let status = state["status"].as_str().unwrap_or("missing");
            let owes = |value: &Value| value.as_str().is_some_and(|text| text.starts_with("owing"));
            let owes = owes(&state["payment"]) || state["stock"].as_array().is_some_and(|stock| stock.iter().any(owes));
            // A cancelled order whose money is on its way back is not refunded yet.
            let goes_on = status == "cancelled" && ["captured", "refunded"].contains(&state["payment"].as_str().unwrap_or(""));
            let is_settled = !owes && !goes_on && !["pending", "reserved"].contains(&status);
            if is_settled || self.is_over() {
                let shown = self.get(&format!("/api/orders/{id}"), &self.operator).await.unwrap_or_default();
                let payment = format!("pay_{}", id.strip_prefix("ord_").unwrap_or(id));
                let payment = records(self.inspect("payment", &payment).await);
                return Order { shown, is_settled, history: records(inspected), payment };
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits for what was given back a moment ago.
    async fn item(&self, sku: &str, held: u64) -> Item {
        let path = format!("/api/inventory/{}", percent_encoded(sku));
        loop {
            let shown = self.get(&path, &self.operator).await.unwrap_or_default();
            if (shown["held"] == held && shown["reserved"] == 0) || self.is_over() {
                return Item { shown, history: records(self.inspect("inventory", &percent_encoded(sku)).await) };
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// What each node has set aside.
    async fn set_aside(&self) -> Value {
        let mut all = Vec::new();
        for node in self.addresses.borrow().clone() {
            let alone = Registrar { addresses: tokio::sync::watch::Sender::new(vec![node]).subscribe(), ..self.clone() };
            let cluster = alone.get("/api/cluster", &self.operator).await.unwrap_or_default();
            all.extend(cluster["set_aside"].as_array().cloned().unwrap_or_default());
        }
        Value::Array(all)
    }

    async fn list(&self) -> BTreeMap<String, String> {
        let mut listed = BTreeMap::new();
        let mut cursor = String::new();
        loop {
            let Some(page) = self.get(&format!("/api/orders?limit=100{cursor}"), &self.operator).await else { return listed };
            for order in page["items"].as_array().into_iter().flatten() {
                listed.insert(order["id"].as_str().unwrap().to_owned(), order["status"].as_str().unwrap().to_owned());
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={}", percent_encoded(next)),
                None => return listed,
            }
        }
    }

    /// An entity's own history.
    pub async fn records(&self, kind: &str, id: &str) -> Vec<Record> {
        records(self.inspect(kind, id).await)
    }

    async fn inspect(&self, kind: &str, id: &str) -> Option<Value> {
        self.get(&format!("/api/cluster/entities/{kind}/{id}"), &self.operator).await
    }

    /// `None` when it is not there. Whatever else is asked again: the shop is to be well by now.
    async fn get(&self, path: &str, token: &str) -> Option<Value> {
        loop {
            match tokio::time::timeout(ANSWER_TIMEOUT, self.try_get(path, token)).await {
                Ok(Some((200, body))) => return Some(serde_json::from_slice(&body).unwrap()),
                Ok(Some((404, _))) => return None,
                other => assert!(!self.is_over(), "GET {path}: {:?}", other.map(|answer| answer.map(|(status, _)| status))),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// On a connection of its own, and without the client's limit: the history of a busy item is long.
    async fn try_get(&self, path: &str, token: &str) -> Option<(u16, Bytes)> {
        let known = self.addresses.borrow().clone();
        let url = known.get(fastrand::usize(..known.len().max(1)))?;
        let authority = url.strip_prefix("http://")?.trim_end_matches('/');
        let stream = TcpStream::connect(authority).await.ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let driver = tokio::spawn(connection);
        let request = Request::get(path).header(HOST, authority).header(AUTHORIZATION, format!("Bearer {token}"));
        let answer = sender.send_request(request.body(Empty::<Bytes>::new()).ok()?).await.ok()?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.ok()?.to_bytes();
        drop(sender);
        driver.abort();
        Some((status, body))
    }
}

fn records(inspected: Option<Value>) -> Vec<Record> {
    let Some(mut inspected) = inspected else { return Vec::new() };
    let history = inspected["history"].take();
    history.as_array().into_iter().flatten().map(|record| serde_json::from_value(record.clone()).unwrap()).collect()
}
