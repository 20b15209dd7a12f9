//! A crowd: buyers, vendors who adjust the stock, people who only look, and subscribers. Each is seeded, and what each does
//! next follows from its seed and the answers it got.
//!
//! The buyers keep to what can be judged afterwards: a cart that was checked out is not touched again, and no request is
//! made of which nobody could say later what it should have done to the stock.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::asking::{Addresses, Client, Method, Wish};
use crate::history::{Outcome, Recorder, Seeks};
use crate::purchase::{purchase, text};
use crate::subscriber::{Subject, Subscriber, Transport};

/// Things that those who look around know of.
const KNOWN_MAX: usize = 200;
/// How long everybody has to come to an end.
const GOING_HOME: Duration = Duration::from_secs(120);
/// Pages of a list that are read for one order: more than there are.
const PAGES_MAX: usize = 200;
const SETTLE_LOOKS_MAX: usize = 600;
const SETTLE_LOOK_EVERY: Duration = Duration::from_millis(100);

/// How many there are, and what they are after.
#[derive(Debug, Clone)]
pub struct Plan {
    pub buyers: usize,
    pub vendors: usize,
    pub lookers: usize,
    /// Subscribers that there may be at a time.
    pub subscribers_max: usize,
    /// Of a hundred carts and orders, so many are followed.
    pub followed_percent: u32,
    /// The longest rest between two deeds of a client.
    pub rest_ms: u64,
    /// How long each waits for an answer: some give up on a node that stands still, some hear what it says when it wakes.
    pub patience_ms: RangeInclusive<u64>,
    /// Sku and units at the beginning.
    pub stock: Vec<(String, u64)>,
}

impl Plan {
    /// A few people, and two goods that run out beside two that do not.
    pub fn small() -> Plan {
        let stock = [("RARE-1", 40), ("RARE-2", 90), ("MANY-1", 50_000), ("MANY-2", 50_000)];
        Plan {
            buyers: 6,
            vendors: 2,
            lookers: 2,
            subscribers_max: 48,
            followed_percent: 25,
            rest_ms: 40,
            patience_ms: 5_000..=5_000,
            stock: stock.map(|(sku, units)| (sku.to_owned(), units)).to_vec(),
        }
    }

    /// More people, of whom many wait for an answer while something is wrong, and others do not.
    pub fn of_a_cluster() -> Plan {
        Plan { buyers: 12, vendors: 3, lookers: 5, rest_ms: 60, patience_ms: 1_500..=7_000, ..Plan::small() }
    }
}

pub struct Crowd {
    tasks: JoinSet<()>,
    subscribers: Arc<Mutex<JoinSet<()>>>,
    is_open: watch::Sender<bool>,
    is_quiet: watch::Sender<bool>,
}

/// What everybody in the crowd shares.
#[derive(Clone)]
struct Square {
    plan: Arc<Plan>,
    operator: String,
    is_open: watch::Receiver<bool>,
    is_quiet: watch::Receiver<bool>,
    known: Arc<Mutex<VecDeque<(String, String)>>>,
    subscribers: Arc<Mutex<JoinSet<()>>>,
}

impl Crowd {
    /// Opens the shop's doors to everybody. `operator`: a token that may adjust the stock.
    pub fn begin(plan: &Plan, seed: u64, addresses: &Addresses, recorder: &Recorder, operator: &str) -> Crowd {
        let mut random = fastrand::Rng::with_seed(seed);
        let crowd = Crowd {
            tasks: JoinSet::new(),
            subscribers: Arc::default(),
            is_open: watch::Sender::new(true),
            is_quiet: watch::Sender::new(false),
        };
        let square = Square {
            plan: Arc::new(plan.clone()),
            operator: operator.to_owned(),
            is_open: crowd.is_open.subscribe(),
            is_quiet: crowd.is_quiet.subscribe(),
            known: Arc::default(),
            subscribers: Arc::clone(&crowd.subscribers),
        };
        let mut person = |name: String| {
            let mut random = random.fork();
            let patience = Duration::from_millis(random.u64(plan.patience_ms.clone()));
            let mut client = Client::new(name, random, addresses.clone(), recorder.clone());
            client.patience = patience;
            Person { client, square: square.clone(), followers: 0 }
        };
        let mut tasks = crowd.tasks;
        (0..plan.buyers).for_each(|n| drop(tasks.spawn(person(format!("buyer-{n}")).buys())));
        (0..plan.vendors).for_each(|n| drop(tasks.spawn(person(format!("vendor-{n}")).adjusts())));
        (0..plan.lookers).for_each(|n| drop(tasks.spawn(person(format!("looker-{n}")).looks())));
        Crowd { tasks, ..crowd }
    }

    /// Nobody begins anything new; everybody hears the last answers.
    pub async fn goes_home(&mut self) {
        self.is_open.send_replace(false);
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.unwrap()
            }
        };
        tokio::time::timeout(GOING_HOME, all).await.expect("everybody hears the last answers");
    }

    /// The shop is quiet: subscribers hear the last events.
    pub async fn hangs_up(self) {
        self.is_quiet.send_replace(true);
        let mut subscribers = std::mem::take(&mut *self.subscribers.lock().unwrap());
        let all = async {
            while let Some(ended) = subscribers.join_next().await {
                ended.unwrap()
            }
        };
        tokio::time::timeout(GOING_HOME, all).await.expect("every subscriber comes to an end");
    }
}

struct Person {
    client: Client,
    square: Square,
    followers: usize,
}

impl Person {
    fn chance(&mut self, percent: u32) -> bool {
        self.client.random.u32(0..100) < percent
    }

    async fn rests(&mut self) {
        let rest = Duration::from_millis(self.client.random.u64(0..=self.square.plan.rest_ms));
        tokio::time::sleep(rest).await;
    }

    fn is_open(&self) -> bool {
        *self.square.is_open.borrow()
    }

    fn sku(&mut self) -> String {
        let stock = &self.square.plan.stock;
        stock[self.client.random.usize(..stock.len())].0.clone()
    }

    fn two_skus(&mut self) -> [String; 2] {
        let stock = &self.square.plan.stock;
        let first = self.client.random.usize(..stock.len());
        let second = (first + self.client.random.usize(1..stock.len().max(2))) % stock.len();
        [first, second].map(|n| stock[n].0.clone())
    }

    /// Asks for a thing; sometimes, when it has its answer, once more under the same key.
    async fn post(&mut self, path: &str, token: Option<&str>, body: Value) -> Outcome {
        let wish = self.client.wish(Method::Post, path, token, body);
        self.ask(&wish).await
    }

    async fn ask(&mut self, wish: &Wish) -> Outcome {
        let outcome = self.client.ask(wish).await;
        if outcome.is_known() && self.chance(8) {
            self.client.try_once(wish).await;
        }
        outcome
    }

    fn knows(&self, path: &str, token: &str) {
        let mut known = self.square.known.lock().unwrap();
        if known.len() >= KNOWN_MAX {
            known.pop_front();
        }
        known.push_back((path.to_owned(), token.to_owned()));
    }

    fn follows(&mut self, kind: &str, id: &str, token: &str) {
        if !self.chance(self.square.plan.followed_percent) {
            return;
        }
        let mut subscribers = self.square.subscribers.lock().unwrap();
        while subscribers.try_join_next().is_some() {}
        if subscribers.len() >= self.square.plan.subscribers_max {
            return;
        }
        self.followers += 1;
        let name = format!("{}-follower-{}", self.client.name, self.followers);
        let client = self.client.companion(name);
        let transport = if kind == "order" && self.client.random.bool() { Transport::Sse } else { Transport::WebSocket };
        let subject = Subject { topic: format!("{kind}:{id}"), path: format!("/api/{kind}s/{id}"), token: token.to_owned() };
        subscribers.spawn(Subscriber::new(client, subject, transport).follow(self.square.is_quiet.clone()));
    }

    async fn buys(mut self) {
        while self.is_open() {
            match self.client.random.u32(0..100) {
                0..15 => self.buys_at_once().await,
                _ => self.buys_with_a_cart().await,
            };
            self.rests().await;
        }
    }

    fn card(&mut self) -> &'static str {
        match self.client.random.u32(0..100) {
            0..15 => "tok_declined",
            15..17 => "tok_slow",
            _ => "tok_ok",
        }
    }

    /// `None` as soon as something is refused or given up.
    async fn buys_with_a_cart(&mut self) -> Option<()> {
        let cart = self.post("/api/carts", None, json!({})).await.answer()?.clone();
        let (id, token) = (text(&cart["id"]), text(&cart["token"]));
        let path = format!("/api/carts/{id}");
        self.knows(&path, &token);
        self.follows("cart", &id, &token);
        let skus = self.two_skus();
        let mut has_lines = false;
        for sku in skus.iter().take(self.client.random.usize(1..=2)) {
            let body = json!({ "sku": sku, "quantity": self.client.random.u32(1..=3) });
            let added = self.post(&format!("{path}/items"), Some(&token), body).await;
            if !added.is_known() {
                return None;
            }
            has_lines |= added.answer().is_some();
            self.rests().await;
        }
        match self.client.random.u32(0..100) {
            // Walks away.
            0..8 => return None,
            8..16 => {
                let wish = self.client.wish(Method::Delete, &path, Some(&token), Value::Null);
                self.ask(&wish).await;
                return None;
            }
            _ if !has_lines => return None,
            _ => {}
        }
        let body = purchase(self.card());
        let ordered = self.post(&format!("{path}/checkout"), Some(&token), body).await;
        self.has_ordered(&ordered, &token).await
    }

    async fn buys_at_once(&mut self) -> Option<()> {
        let [first, second] = self.two_skus();
        let mut body = purchase(self.card());
        body["items"] = json!([{ "sku": first, "quantity": 1 }]);
        if second != first && self.client.random.bool() {
            body["items"] = json!([{ "sku": first, "quantity": 1 }, { "sku": second, "quantity": 2 }]);
        }
        let ordered = self.post("/api/orders", None, body).await;
        let token = text(&ordered.answer()?["token"]);
        self.has_ordered(&ordered, &token).await
    }

    async fn has_ordered(&mut self, ordered: &Outcome, token: &str) -> Option<()> {
        let order = ordered.answer()?;
        let id = text(&order["id"]);
        let path = format!("/api/orders/{id}");
        self.knows(&path, token);
        self.follows("order", &id, token);
        let mut status = text(&order["status"]);
        if self.chance(10) {
            self.seeks(Seeks { order: id.clone(), status: status.clone(), position: ordered.position()? }).await;
        }
        for _ in 0..SETTLE_LOOKS_MAX {
            if !["pending", "reserved"].contains(&status.as_str()) {
                break;
            }
            tokio::time::sleep(SETTLE_LOOK_EVERY).await;
            status = text(&self.client.get(&path, Some(token)).await.answer()?["status"]);
        }
        if status == "paid" && self.chance(15) {
            self.post(&format!("{path}/cancel"), Some(token), json!({})).await;
            self.client.get(&path, Some(token)).await;
        }
        Some(())
    }

    /// Reads the operator's list of orders, any node's, until it has this one.
    async fn seeks(&mut self, seeks: Seeks) -> Option<()> {
        let operator = self.square.operator.clone();
        let mut cursor = String::new();
        for _ in 0..PAGES_MAX {
            let page = self.client.list(&format!("/api/orders?limit=50{cursor}"), &operator, &seeks).await.answer()?.clone();
            let is_found = page["items"].as_array()?.iter().any(|order| order["id"] == seeks.order.as_str());
            cursor = format!("&cursor={}", page["next_cursor"].as_str().filter(|_| !is_found)?);
        }
        None
    }

    /// More and less of something, each with a reason of its own, by which it is found again.
    async fn adjusts(mut self) {
        let operator = self.square.operator.clone();
        let mut count = 0;
        while self.is_open() {
            count += 1;
            let delta = self.client.random.i64(1..=4) * if self.client.random.u32(0..5) < 3 { 1 } else { -1 };
            let body = json!({ "delta": delta, "reason": format!("{} {count}", self.client.name) });
            let path = format!("/api/inventory/{}/adjustments", self.sku());
            let wish = self.client.wish(Method::Post, &path, Some(&operator), body);
            // Some do not ask again, and never know.
            match self.chance(25) {
                true => drop(self.client.try_once(&wish).await),
                false => drop(self.ask(&wish).await),
            }
            self.rests().await;
            self.rests().await;
        }
    }

    async fn looks(mut self) {
        let operator = self.square.operator.clone();
        while self.is_open() {
            let known = {
                let known = self.square.known.lock().unwrap();
                (!known.is_empty() && self.client.random.bool()).then(|| known[self.client.random.usize(..known.len())].clone())
            };
            match known {
                Some((path, token)) => self.client.get(&path, Some(&token)).await,
                None => {
                    let sku = self.sku();
                    self.client.get(&format!("/api/inventory/{sku}"), Some(&operator)).await
                }
            };
            self.rests().await;
        }
    }
}
