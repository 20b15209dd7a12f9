//! A flash sale with more buyers than units, while what it lives on is killed.
//!
//! Buyers claim, wait in line, pay, are declined, change their minds or just go. It is judged by what they and a watcher were
//! told, and by the sale's own records, one after the other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use souk::actors::clock::Clock;
use souk::actors::credential::sha256_hex;
use souk::cluster::{Name, Owners, partition};
use souk::domain::flash_sale::{ClaimNumber, ClaimPhase, Customer, Status};
use souk::domain::ids;
use souk::domain::order::Owner;
use souk::persistence::EntityKey;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::asking::{Client, Method};
use crate::facts::Registrar;
use crate::faults::{Fault, Shop};
use crate::history::{Outcome, Recorder};
use crate::life::Life;
use crate::one_node::OneNode;
use crate::purchase::{purchase, text};
use crate::three_nodes::{Doors, NODES, Options, ThreeNodes, name};
use crate::trial::seed;

const SKU: &str = "LANTERN";
const STOCK: u64 = 75;
const UNITS: u64 = 60;
const BUYERS: usize = 80;
/// Each may have so many, and asks for one or two at a time.
const LIMIT: u64 = 2;
/// Over how long they come.
const ARRIVE_MS: u64 = 6_000;
/// How long they think between a claim and its order, at most.
const THINK_MS: u64 = 2_500;
const CLAIM_SECONDS: u64 = 4;
const GRACE_SECONDS: u64 = 3;
const LASTS_MS: i64 = 30_000;
/// How often one comes again whose claim came to nothing.
const TURNS_MAX: usize = 3;
const PATIENCE: Duration = Duration::from_secs(5);
/// From the end of the sale until nothing of it is under way.
const SETTLES: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);

/// What a buyer was told.
#[derive(Default)]
struct Told {
    customer: u128,
    /// Units of each claim that was granted.
    granted: BTreeMap<ClaimNumber, u32>,
    /// When the first ticket was asked for, and when its answer was there.
    queued_us: Option<(u64, u64)>,
    /// When the last claim was granted.
    granted_us: u64,
    /// The claims that were paid for.
    paid: Vec<ClaimNumber>,
}

struct Buyer {
    client: Client,
    /// `/api/flash-sales/…`
    sale: String,
    token: String,
    told: Told,
}

impl Buyer {
    fn new(client: Client, sale: &str) -> Buyer {
        let token = format!("{}-{}", client.name, ulid::Ulid::new());
        let guest = Owner::Guest { token_sha256: sha256_hex(token.as_bytes()) };
        let told = Told { customer: Customer::of(&guest).unwrap().to_bits(), ..Told::default() };
        Buyer { client, sale: sale.to_owned(), token, told }
    }

    async fn buys(mut self) -> Told {
        let comes = Duration::from_millis(self.client.random.u64(..ARRIVE_MS));
        tokio::time::sleep(comes).await;
        for _ in 0..TURNS_MAX {
            let Some(claim) = self.claims().await else { break };
            if self.pays(&claim).await {
                break;
            }
        }
        self.told
    }

    /// A claim that can be paid. `None` when there is nothing more to be had.
    async fn claims(&mut self) -> Option<String> {
        let mut quantity = self.client.random.u64(1..=LIMIT);
        loop {
            let wish = self.client.wish(
                Method::Post,
                &format!("{}/claims", self.sale),
                Some(&self.token),
                json!({ "quantity": quantity }),
            );
            let asked_us = self.client.recorder.now_us();
            match self.client.ask(&wish).await {
                Outcome::Ok { status: 201, answer, .. } => {
                    let (id, units) = (text(&answer["id"]), answer["quantity"].as_u64().unwrap());
                    let before = self.told.granted.insert(ids::parse_claim(&id).unwrap().1, units as u32);
                    assert_eq!(before, None, "{id} is granted once");
                    self.told.granted_us = self.client.recorder.now_us();
                    return Some(id);
                }
                Outcome::Ok { status: 202, .. } => {
                    self.told.queued_us.get_or_insert((asked_us, self.client.recorder.now_us()));
                    self.waits().await?;
                }
                Outcome::Refused { status: 409, problem, .. } => {
                    let why = text(&problem["type"]);
                    if why.ends_with("out-of-stock") {
                        quantity = problem["available"].as_u64().unwrap();
                        continue;
                    }
                    let is_over = ["sold-out", "sale-over", "over-limit"].iter().any(|over| why.ends_with(over));
                    assert!(is_over, "{}: {problem}", self.client.name);
                    return None;
                }
                other => panic!("{}: {other:?}", self.client.name),
            }
        }
    }

    /// Returns when its turn has come or its place is lost; `None` when the sale is over.
    async fn waits(&mut self) -> Option<()> {
        loop {
            let pause = Duration::from_millis(self.client.random.u64(100..500));
            tokio::time::sleep(pause).await;
            let own = self.client.get(&format!("{}/claims", self.sale), Some(&self.token)).await;
            let own = own.answer().unwrap_or_else(|| panic!("{}: {own:?}", self.client.name)).clone();
            let is_offered = own["claims"].as_array().unwrap().iter().any(|claim| claim["status"] == "offered");
            if is_offered || own["ticket"].is_null() {
                return Some(());
            }
            let sale = self.client.get(&self.sale, None).await;
            let status = text(&sale.answer().unwrap_or_else(|| panic!("{sale:?}"))["status"]);
            if ["ended", "cancelled"].contains(&status.as_str()) {
                return None;
            }
        }
    }

    /// Whether it was paid.
    async fn pays(&mut self, claim: &str) -> bool {
        let thinks = Duration::from_millis(self.client.random.u64(..THINK_MS));
        tokio::time::sleep(thinks).await;
        let card = match self.client.random.u32(0..100) {
            // Just goes.
            0..15 => return false,
            15..30 => {
                let path = format!("{}/claims/{claim}", self.sale);
                let wish = self.client.wish(Method::Delete, &path, Some(&self.token), Value::Null);
                self.client.ask(&wish).await;
                return false;
            }
            30..45 => "tok_declined",
            _ => "tok_ok",
        };
        let mut body = purchase(card);
        body["claim_id"] = json!(claim);
        let mut outcome = self.client.post("/api/orders", Some(&self.token), body).await;
        let number = ids::parse_claim(claim).unwrap().1;
        loop {
            let (id, status) = match &outcome {
                Outcome::Ok { answer, .. } => (text(&answer["id"]), text(&answer["status"])),
                // It ran out while what was asked was on its way.
                Outcome::Refused { status: 409, .. } => return false,
                other => panic!("{}: {other:?}", self.client.name),
            };
            match status.as_str() {
                "pending" | "reserved" => {
                    tokio::time::sleep(LOOK).await;
                    outcome = self.client.get(&format!("/api/orders/{id}"), Some(&self.token)).await;
                }
                "paid" => {
                    self.told.paid.push(number);
                    return true;
                }
                _ => return false,
            }
        }
    }
}

/// Somebody who watches from the beginning, and comes back to any address with what was seen last.
struct Watcher {
    client: Client,
    topic: String,
    seq: u64,
    last: Value,
    pictures: usize,
}

impl Watcher {
    /// Until the sale is over and its last picture is seen; returns how many were.
    async fn watches(mut self, mut is_over: watch::Receiver<Option<Value>>) -> usize {
        while is_over.borrow().is_none() {
            tokio::select! {
                _ = self.watches_once(None) => {}
                _ = async { drop(is_over.wait_for(Option::is_some).await) } => {}
            }
            tokio::time::sleep(LOOK / 4).await;
        }
        let shown = is_over.borrow().clone();
        let sees = async {
            while Some(&self.last) != shown.as_ref() {
                self.watches_once(shown.as_ref()).await;
            }
        };
        let seen = timeout(SETTLES, sees).await;
        assert!(seen.is_ok(), "the watcher's last picture is {}, and the sale is {shown:?}", self.last);
        self.pictures
    }

    /// Until this is seen, the connection is over, or nothing is heard.
    async fn watches_once(&mut self, wanted: Option<&Value>) -> Option<()> {
        let url = self.client.address(None).await?;
        let authority = url.strip_prefix("http://")?.trim_end_matches('/').to_owned();
        let stream = timeout(PATIENCE, tokio::net::TcpStream::connect(&authority)).await.ok()?.ok()?;
        let request = format!("ws://{authority}/ws").into_client_request().ok()?;
        let (mut socket, _) = timeout(PATIENCE, tokio_tungstenite::client_async(request, stream)).await.ok()?.ok()?;
        let said = json!({ "type": "subscribe", "topic": self.topic, "after": self.seq });
        socket.send(Message::text(said.to_string())).await.ok()?;
        while Some(&self.last) != wanted {
            let Message::Text(heard) = timeout(PATIENCE, socket.next()).await.ok()??.ok()? else { continue };
            let heard: Value = serde_json::from_str(&heard).unwrap();
            if heard["type"] != "state" {
                continue;
            }
            let seq = heard["seq"].as_u64().unwrap();
            assert!(seq > self.seq, "{seq} after {}", self.seq);
            let units = |name: &str| heard["state"][name].as_u64().unwrap();
            let of_all = units("available") + units("held") + units("sold");
            // What is left at the end is not the sale's any more.
            assert!(of_all == UNITS || (of_all < UNITS && heard["state"]["status"] == "ended"), "{heard}");
            (self.seq, self.last) = (seq, heard["state"].clone());
            self.pictures += 1;
        }
        Some(())
    }
}

/// Makes the product and the sale, approved and on.
async fn open(steward: &mut Client, operator: &str) -> String {
    let price = json!({ "amount": 700, "currency": "EUR" });
    let variant = json!({ "sku": SKU, "price": price, "stock": STOCK });
    let made = steward.post("/api/products", Some(operator), json!({ "title": "Lantern", "variants": [variant] })).await;
    assert_eq!(made.status(), Some(201), "{made:?}");
    let now = Clock::default().now();
    let terms = json!({
        "sku": SKU, "price": price, "quantity": UNITS, "per_customer_limit": LIMIT, "guests": true,
        "starts_at": now, "ends_at": now.plus_ms(LASTS_MS), "claim_seconds": CLAIM_SECONDS,
        "admission_seconds": CLAIM_SECONDS, "grace_seconds": GRACE_SECONDS,
    });
    let made = steward.post("/api/flash-sales", Some(operator), terms).await;
    let id = text(&made.answer().unwrap_or_else(|| panic!("{made:?}"))["id"]);
    let approved = steward.post(&format!("/api/flash-sales/{id}/approve"), Some(operator), json!({})).await;
    assert_eq!(approved.status(), Some(200), "{approved:?}");
    id
}

/// Runs the sale while `strikes` happens, and judges it.
async fn sale<S: Shop>(mut shop: S, strikes: impl AsyncFnOnce(&mut S, &str)) {
    let (seed, recorder) = (seed(), Recorder::new(None));
    let mut random = fastrand::Rng::with_seed(seed);
    let (addresses, operator) = (shop.addresses(), shop.operator());
    let mut client = |name: String| Client::new(name, random.fork(), addresses.clone(), recorder.clone());
    let mut steward = client("steward".into());
    let id = open(&mut steward, &operator).await;
    let path = format!("/api/flash-sales/{id}");

    let (tell_over, is_over) = watch::channel(None);
    let topic = format!("flash_sale:{id}");
    let watcher = Watcher { client: client("watcher".into()), topic, seq: 0, last: Value::Null, pictures: 0 };
    let watcher = tokio::spawn(watcher.watches(is_over));
    let buyers = (0..BUYERS).map(|number| tokio::spawn(Buyer::new(client(format!("buyer-{number}")), &path).buys()));
    let buyers: Vec<_> = buyers.collect();
    strikes(&mut shop, &id).await;
    let struck_us = recorder.now_us();
    shop.is_well().await;
    let told: Vec<Told> = join_all(buyers).await.into_iter().map(Result::unwrap).collect();

    // It ends by itself, and what was under way settles.
    let deadline = Instant::now() + Duration::from_millis(LASTS_MS.unsigned_abs()) + SETTLES;
    let (shown, item) = loop {
        let sale = steward.get(&path, None).await.answer().unwrap().clone();
        let item = steward.get(&format!("/api/inventory/{SKU}"), Some(&operator)).await.answer().unwrap().clone();
        let nothing = |shown: &Value, names: &[&str]| names.iter().all(|name| shown[name] == 0);
        if sale["status"] == "ended" && nothing(&sale, &["held"]) && nothing(&item, &["allotted", "reserved", "held"]) {
            break (sale, item);
        }
        assert!(Instant::now() < deadline, "SOUK_CHAOS_SEED={seed}: it does not settle: {sale} {item}\n{}", shop.log());
        tokio::time::sleep(LOOK).await;
    };
    tell_over.send_replace(Some(shown.clone()));
    let pictures = watcher.await.unwrap();

    let records = Registrar::new(addresses, &operator).records("flash_sale", &id).await;
    let life = Life::of(&id, records.iter().map(|record| (record.event_type.as_str(), &record.data)));
    let sold = shown["sold"].as_u64().unwrap();
    println!(
        "  {} records, {sold} of {UNITS} sold, {} had a ticket, {} claims were granted, {pictures} pictures were seen",
        records.len(),
        told.iter().filter(|told| told.queued_us.is_some()).count(),
        told.iter().map(|told| told.granted.len()).sum::<usize>(),
    );
    judge(&life, &told);
    assert_eq!((life.state.book.status, u64::from(life.state.book.sold)), (Status::Ended, sold));
    assert_eq!(item["on_hand"], STOCK - sold, "what was not sold is in the stock again");
    assert!(told.iter().any(|told| told.queued_us.is_some()), "somebody had to wait");
    assert!(told.iter().any(|told| told.granted_us > struck_us), "the sale went on after the last blow");
    // Those who were left waiting would have taken them.
    assert!(sold == UNITS || shown["waiting"] == 0, "{shown}");
}

fn judge(life: &Life, told: &[Told]) {
    let claims = life.state.book.claims();
    for one in told {
        for (number, units) in &one.granted {
            assert_eq!(life.granted.get(number), Some(units), "claim {number} is in the records as its buyer was told");
            assert_eq!(claims.get(*number).unwrap().customer.to_bits(), one.customer, "claim {number} is its buyer's");
        }
        for number in &one.paid {
            let phase = claims.get(*number).unwrap().phase;
            assert_eq!(phase, ClaimPhase::Sold, "claim {number} was paid");
        }
        assert!(one.queued_us.is_none() || life.tickets.contains_key(&one.customer), "who was given a ticket has it");
    }
    // What was paid is what was sold, unless somebody never learnt of it: nobody does here.
    let paid: u32 = told.iter().flat_map(|one| one.paid.iter().map(|number| one.granted[number])).sum();
    assert_eq!(life.state.book.sold, paid, "sold is what buyers have paid");
    // Whoever had a ticket before another asked for one is before them.
    let mut queued: Vec<_> = told.iter().filter_map(|one| Some((one.queued_us?, *life.tickets.get(&one.customer)?))).collect();
    queued.sort_unstable();
    for (index, ((_, answered_us), ticket)) in queued.iter().enumerate() {
        let later = queued[index + 1..].iter().filter(|((asked_us, _), _)| asked_us > answered_us);
        for (_, other) in later {
            assert!(ticket < other, "ticket {ticket} was given before {other} was asked for");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_midst_of_a_sale_a_node_sells_each_unit_once_and_keeps_the_line() {
    sale(OneNode::start(false).await, async |shop, _| {
        for rest_ms in [700, 900, 1_200, 1_500, 2_000] {
            tokio::time::sleep(Duration::from_millis(rest_ms)).await;
            shop.strike(Fault::KillNode { node: 0, down_ms: 0 }).await;
            shop.is_well().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sale_whose_owner_is_killed_twice_sells_each_unit_once_and_keeps_the_line() {
    let options = Options { doors: Doors::BalancerAndNodes, clocks: false, servers_can_be_cut: false, leave_seconds: 2 };
    sale(ThreeNodes::start(options).await, async |shop, sale| {
        let mut alive: Vec<usize> = (0..NODES).collect();
        for rest_ms in [1_500, 4_500] {
            tokio::time::sleep(Duration::from_millis(rest_ms)).await;
            let names = alive.iter().map(|node| Name::parse(&name(*node)).unwrap());
            let owner = Owners::among(names).of(partition(&EntityKey::new("flash_sale", sale))).unwrap().to_string();
            let owner = alive.remove(alive.iter().position(|node| name(*node) == owner).unwrap());
            println!("  {} owns the sale and is killed", name(owner));
            shop.kill_node(owner);
        }
        shop.start_missing();
    })
    .await;
}
