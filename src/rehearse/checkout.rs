//! Full purchases over HTTP: create a cart, add an item, check out, read the order; again and again until the deadline.
//!
//! # What is checked afterwards
//!
//! For each sku: units sold (in this rehearsal's paid orders) + available + held + reserved = stock before + units added.
//! That is true only when the rehearsal is the shop's only customer. And of up to [`HISTORIES_MAX`] paid orders, spread
//! evenly over the run: each history has exactly one captured payment. Both need an admin's token.
//!
//! # Why an answer that was lost does not spoil the sums
//!
//! A checkout that timed out may have been carried out. Its buyer keeps its idempotency key and, when the rush is over,
//! sends the same request again: the service gives its first answer or carries it out now. What stays unknown even then
//! is reported, and so is any difference in the sums that it leaves.
//!
//! # Limits
//!
//! Each request has a timeout, each purchase a bounded number of requests, each buyer one connection and a bounded
//! memory. After the deadline a buyer finishes the purchase it is in, and no more.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderValue};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use ulid::Ulid;

use super::answers::{
    InventoryAnswer, OrderAnswer, POLL_EVERY, RehearseError, Setback, Settlement, checkout_body, expect, is_paid, parse,
    reason_of, settle, understood,
};
use super::latency::Latency;
use super::report::{Reasons, Step, progress_bar, write_reasons, write_steps};
use crate::integrations::http_client::{Client, IDEMPOTENCY_KEY, Limits, Origin, bearer, percent_encoded};

/// Orders whose history is read at the end.
pub const HISTORIES_MAX: usize = 1000;
/// Skus that are bought when none are named.
const SKUS_MAX: usize = 500;
const CATALOGUE_PAGES_MAX: usize = 5;
const HISTORY_PAGES_MAX: usize = 10;
/// Purchases whose outcome a buyer remembers as unknown; a service that loses more than these has failed anyway.
const UNKNOWN_MAX: usize = 1000;
/// A pause after a failure, so that a service that is down is not asked a thousand times a second.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// What is left of a `Retry-After` that asks for more.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);
/// Units of each sku that there shall be when the rush begins, unless told otherwise.
const STOCK_DEFAULT: u32 = 100_000;

const EXAMPLES: &str = "\
Examples:
  A hundred buyers for half a minute, with stock added first and the books checked afterwards:
    SOUK_TOKEN=$(souk admin token) souk rehearse checkout --buyers 100 --seconds 30

  Everybody wants the same thing, and there are only 500 of it:
    souk rehearse checkout --buyers 200 --sku OUT-001-39 --stock 500 --token $(souk admin token)

  For a script:
    souk rehearse checkout --json | jq .orders_per_second

All buyers come from one address: start the node with --no-limits, or most of them are told to wait (429).

The exit code is 0 when orders were paid and the books balance, else 1. Without an admin's token the books cannot be
read, and only the orders count. The books are right only if nobody else buys at the same time.";

/// Buyers who each purchase one thing after another: cart, item, checkout, order
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct CheckoutArgs {
    /// How many buyers there are at once
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=20_000), env = "SOUK_BUYERS")]
    pub buyers: u32,

    /// How long they buy
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400), env = "SOUK_SECONDS")]
    pub seconds: u64,

    /// The service
    #[arg(long, default_value = "http://127.0.0.1:8080", env = "SOUK_URL")]
    pub url: String,

    /// An admin's access token, to add stock first and check the books afterwards
    #[arg(long, env = "SOUK_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// A sku to buy; may be given several times. Without it, what the catalogue has in stock
    #[arg(long = "sku", value_name = "SKU", env = "SOUK_SKU", value_delimiter = ',')]
    pub skus: Vec<String>,

    /// Units of each sku that there shall be at the beginning, with --token [default: 100000]
    #[arg(long, value_name = "N", env = "SOUK_STOCK", requires = "token")]
    pub stock: Option<u32>,

    /// How long a buyer waits for one answer
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300), env = "SOUK_TIMEOUT_SECONDS")]
    pub timeout_seconds: u64,

    /// How long the service has, after the rush, to settle what it has reserved and what got lost
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=600), env = "SOUK_SETTLE_SECONDS")]
    pub settle_seconds: u64,

    /// Print the report as JSON
    #[arg(long, env = "SOUK_JSON")]
    pub json: bool,
}

// ---- The report

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub passed: bool,
    pub buyers: u32,
    pub seconds: f64,
    pub skus: usize,
    pub orders_paid: u64,
    pub orders_per_second: f64,
    pub steps: Vec<Step>,
    /// Answers that said no, by what was asked and why.
    pub refusals: BTreeMap<String, u64>,
    /// Answers that never came or made no sense.
    pub errors: BTreeMap<String, u64>,
    /// Checkouts of which we could not learn in the end whether they were carried out.
    pub unknown: u64,
    /// `None` without an admin's token.
    pub books: Option<Books>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Books {
    pub balanced: bool,
    /// Summed over the skus.
    pub before: i64,
    pub added: i64,
    pub sold: i64,
    pub left: i64,
    /// The skus whose sums differ.
    pub differences: Vec<Difference>,
    /// Units that were still reserved when the time to settle was over.
    pub still_reserved: i64,
    /// Paid orders whose history was read.
    pub histories_checked: usize,
    /// Those of them that were not captured exactly once, with how often they were.
    pub captured_wrongly: BTreeMap<String, usize>,
    /// What kept us from reading them.
    pub unreadable: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    pub sku: String,
    pub before: i64,
    pub added: i64,
    pub sold: i64,
    pub left: i64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} orders paid in {:.1} s by {} buyers of {} skus: {:.1} orders/s\n",
            self.orders_paid, self.seconds, self.buyers, self.skus, self.orders_per_second
        )?;
        write_steps(f, &self.steps)?;
        write_reasons(f, "Refusals", &self.refusals)?;
        write_reasons(f, "Errors", &self.errors)?;
        if self.unknown > 0 {
            writeln!(f, "\n{} checkouts have an unknown outcome", self.unknown)?;
        }
        match &self.books {
            Some(books) => write!(f, "\n{books}")?,
            None => writeln!(f, "\nThe books were not checked: that needs an admin's --token.")?,
        }
        if self.orders_paid == 0 {
            writeln!(f, "No order was paid.")?;
        }
        Ok(())
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        let verdict = if self.balanced { "The books balance" } else { "THE BOOKS DO NOT BALANCE" };
        writeln!(f, "{verdict} (if nobody else bought or changed stock meanwhile).")?;
        writeln!(f, "  {} before + {} added = {} sold + {} left", self.before, self.added, self.sold, self.left)?;
        writeln!(f, "  {} orders' payments were looked at", self.histories_checked)?;
        for Difference { sku, before, added, sold, left } in self.differences.iter().take(SHOWN) {
            let off = sold + left - before - added;
            writeln!(f, "  {sku}: {before} before + {added} added, but {sold} sold + {left} left: {off:+}")?;
        }
        for (order, captures) in self.captured_wrongly.iter().take(SHOWN) {
            writeln!(f, "  {order}: captured {captures} times")?;
        }
        if self.still_reserved > 0 {
            writeln!(f, "  {} units are still reserved long after the last order", self.still_reserved)?;
        }
        self.unreadable.iter().take(SHOWN).try_for_each(|reason| writeln!(f, "  could not be read: {reason}"))
    }
}

// ---- What is read of the answers

#[derive(Deserialize)]
struct CartAnswer<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    token: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Page<T> {
    items: Vec<T>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct ProductItem {
    #[serde(default)]
    variants: Vec<VariantItem>,
}

#[derive(Deserialize)]
struct VariantItem {
    sku: String,
    /// Not every listing says it; a variant that does not is taken to be there.
    available: Option<i64>,
}

#[derive(Deserialize)]
struct HistoryItem {
    #[serde(rename = "type")]
    event: String,
}

// ---- The buyers

/// What all buyers share.
struct Stage {
    shelf: Vec<Ware>,
    checkout: Bytes,
    deadline: Instant,
    settle_within: Duration,
    /// In the name of each idempotency key, so that two rehearsals never share one.
    run: Ulid,
    orders_paid: AtomicU64,
    create_cart: Latency,
    add_item: Latency,
    check_out: Latency,
    read_order: Latency,
    purchase: Latency,
}

/// A thing to buy: the request that puts one into a cart.
struct Ware {
    add_item: Bytes,
}

/// What a buyer brings home.
#[derive(Default)]
struct Purse {
    sold: HashMap<String, i64>,
    sample: Sample,
    refusals: Reasons,
    errors: Reasons,
    unknown: Vec<Unknown>,
    /// Unknown outcomes past [`UNKNOWN_MAX`].
    forgotten: u64,
}

/// A checkout whose answer was lost.
struct Unknown {
    path: String,
    bearer: HeaderValue,
    key: HeaderValue,
}

/// Some of a buyer's paid orders, evenly spread, however many there will be: when it is full, every second one is
/// dropped and from then on only every second one is taken.
struct Sample {
    kept: Vec<String>,
    seen: usize,
    stride: usize,
    capacity: usize,
}

impl Default for Sample {
    fn default() -> Self {
        Sample { kept: Vec::new(), seen: 0, stride: 1, capacity: 16 }
    }
}

impl Sample {
    fn add(&mut self, order: &str) {
        if self.seen.is_multiple_of(self.stride) {
            if self.kept.len() >= self.capacity {
                let mut index = 0;
                self.kept.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                self.stride *= 2;
            }
            if self.seen.is_multiple_of(self.stride) {
                self.kept.push(order.to_owned());
            }
        }
        self.seen += 1;
    }
}

struct Buyer {
    stage: Arc<Stage>,
    client: Client,
    number: u32,
    purchases: u64,
    next_ware: usize,
    purse: Purse,
}

impl Buyer {
    async fn buy_until_deadline(&mut self) {
        let stage = Arc::clone(&self.stage);
        let mut pause = PAUSE_FIRST;
        while Instant::now() < stage.deadline {
            let wait = match self.purchase(&stage).await {
                Ok(()) => {
                    pause = PAUSE_FIRST;
                    continue;
                }
                Err(Setback::Refused { reason, wait }) => {
                    self.purse.refusals.add(reason, 1);
                    wait
                }
                Err(Setback::Failed(reason)) => {
                    self.purse.errors.add(reason, 1);
                    None
                }
            };
            // Never sooner than the service asked for, as long as that is within reason.
            let wait = wait.unwrap_or(pause).min(RETRY_AFTER_MAX).mul_f64(1.0 + fastrand::f64() / 2.0);
            pause = (pause * 2).min(PAUSE_MAX);
            sleep_until((Instant::now() + wait).min(stage.deadline)).await;
        }
    }

    async fn purchase(&mut self, stage: &Stage) -> Result<(), Setback> {
        let began = Instant::now();
        let ware = &stage.shelf[self.next_ware];
        self.next_ware = (self.next_ware + 1) % stage.shelf.len();
        self.purchases += 1;

        let created = self.client.post("/api/carts", &[], Bytes::from_static(b"{}")).await;
        let created = expect("create cart", created, &[StatusCode::CREATED])?;
        stage.create_cart.record(began.elapsed());
        let cart: CartAnswer<'_> = parse("create cart", &created)?;
        let cart_path = format!("/api/carts/{}", cart.id);
        let bearer = bearer(&cart.token).map_err(|error| Setback::Failed(format!("create cart: {error}")))?;
        let authorization = (AUTHORIZATION, bearer.clone());

        let started = Instant::now();
        let headers = std::slice::from_ref(&authorization);
        let added = self.client.post(&format!("{cart_path}/items"), headers, ware.add_item.clone()).await;
        expect("add item", added, &[StatusCode::CREATED, StatusCode::OK])?;
        stage.add_item.record(started.elapsed());

        let started = Instant::now();
        let key = format!("rehearsal-{}-{}-{}", stage.run, self.number, self.purchases);
        let key = HeaderValue::from_str(&key).map_err(|error| Setback::Failed(error.to_string()))?;
        let path = format!("{cart_path}/checkout");
        let headers = [authorization, (IDEMPOTENCY_KEY, key.clone())];
        let answered = self.client.post(&path, &headers, stage.checkout.clone()).await;
        let lost = answered.as_ref().map_or(true, |answer| answer.status.is_server_error());
        let unknown = Unknown { path, bearer, key };
        if lost {
            self.remember(unknown);
            expect("checkout", answered, &[])?;
            return Ok(());
        }
        let answer = expect("checkout", answered, &[StatusCode::CREATED, StatusCode::ACCEPTED])?;
        stage.check_out.record(started.elapsed());
        let [authorization, _] = headers;
        match settle(&mut self.client, &answer, &authorization, stage.deadline + stage.settle_within).await {
            Settlement::Paid { order, lines } => {
                let started = Instant::now();
                let read = self.client.get(&format!("/api/orders/{order}"), std::slice::from_ref(&authorization)).await;
                let read = expect("read order", read, &[StatusCode::OK]);
                // Whatever reading says, the order was paid.
                self.book(&order, lines);
                stage.orders_paid.fetch_add(1, Ordering::Relaxed);
                stage.purchase.record(began.elapsed());
                let read = read?;
                stage.read_order.record(started.elapsed());
                let read: OrderAnswer<'_> = parse("read order", &read)?;
                match read.id == order && is_paid(&read.status) {
                    true => Ok(()),
                    false => Err(Setback::Failed(format!("read order: paid, but then read as {}", read.status))),
                }
            }
            Settlement::NotPaid { status } => {
                Err(Setback::Refused { reason: format!("checkout: the order is {status}"), wait: None })
            }
            Settlement::Unknown { reason } => {
                self.remember(unknown);
                Err(Setback::Failed(format!("checkout: {reason}")))
            }
        }
    }

    fn book(&mut self, order: &str, lines: Vec<(String, i64)>) {
        for (sku, quantity) in lines {
            *self.purse.sold.entry(sku).or_default() += quantity;
        }
        self.purse.sample.add(order);
    }

    fn remember(&mut self, unknown: Unknown) {
        match self.purse.unknown.len() < UNKNOWN_MAX {
            true => self.purse.unknown.push(unknown),
            false => self.purse.forgotten += 1,
        }
    }

    /// Asks again for the answers that were lost, with the same keys, until `deadline`; returns how many stay unknown.
    async fn learn_the_unknown(&mut self, deadline: Instant) -> u64 {
        let stage = Arc::clone(&self.stage);
        let mut left = self.purse.forgotten;
        for unknown in std::mem::take(&mut self.purse.unknown) {
            let learned = timeout_at(deadline, ask_again(&mut self.client, &unknown, &stage.checkout, deadline)).await;
            match learned {
                Ok(Settlement::Paid { order, lines }) => {
                    self.book(&order, lines);
                    stage.orders_paid.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Settlement::NotPaid { .. }) => {}
                Ok(Settlement::Unknown { .. }) | Err(_) => left += 1,
            }
        }
        left
    }
}

async fn ask_again(client: &mut Client, unknown: &Unknown, body: &Bytes, deadline: Instant) -> Settlement {
    let headers = [(AUTHORIZATION, unknown.bearer.clone()), (IDEMPOTENCY_KEY, unknown.key.clone())];
    let mut pause = PAUSE_FIRST;
    loop {
        match client.post(&unknown.path, &headers, body.clone()).await {
            Ok(answer) if answer.status.is_success() => return settle(client, &answer, &headers[0], deadline).await,
            // Too many requests says nothing about what came of the first one; any other refusal is its answer.
            Ok(answer) if answer.status.is_client_error() && answer.status != StatusCode::TOO_MANY_REQUESTS => {
                return Settlement::NotPaid { status: reason_of(&answer) };
            }
            Ok(_) | Err(_) => {}
        }
        if Instant::now() >= deadline {
            return Settlement::Unknown { reason: "no answer".to_owned() };
        }
        sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

// ---- The auditor

/// Reads and corrects the stock, and judges in the end. Has a connection of its own, with the admin's token.
pub(super) struct Auditor {
    pub client: Client,
    pub run: Ulid,
    pub settle_within: Duration,
}

/// A sku's stock before the rush.
pub(super) struct Opening {
    pub before: i64,
    pub added: i64,
}

impl Auditor {
    pub async fn inventory(&mut self, sku: &str) -> Result<InventoryAnswer, RehearseError> {
        let answer = self.client.get(&format!("/api/inventory/{}", percent_encoded(sku)), &[]).await?;
        understood(&format!("the stock of {sku}"), &answer)
    }

    /// Makes sure that at least `stock` units of a sku are available.
    pub async fn open(&mut self, sku: &str, stock: u32) -> Result<Opening, RehearseError> {
        let item = self.inventory(sku).await?;
        let added = (i64::from(stock) - item.available).max(0);
        if added > 0 {
            let what = format!("adding stock to {sku}");
            let key = HeaderValue::from_str(&format!("rehearsal-{}-{}", self.run, percent_encoded(sku)))
                .map_err(|error| RehearseError::NotUnderstood { what: what.clone(), reason: error.to_string() })?;
            let body = serde_json::json!({ "delta": added, "reason": "rehearsal" }).to_string();
            let path = format!("/api/inventory/{}/adjustments", percent_encoded(sku));
            let answer = self.client.post(&path, &[(IDEMPOTENCY_KEY, key)], body.into()).await?;
            if !answer.status.is_success() {
                return Err(RehearseError::Refused { what, reason: reason_of(&answer) });
            }
        }
        Ok(Opening { before: item.units(), added })
    }

    async fn judge(&mut self, openings: &BTreeMap<String, Opening>, sold: &HashMap<String, i64>, orders: &[String]) -> Books {
        let mut books = Books::default();
        let deadline = Instant::now() + self.settle_within;
        for (sku, opening) in openings {
            let item = match self.settled(sku, deadline).await {
                Ok(item) => item,
                Err(error) => {
                    books.unreadable.push(error.to_string());
                    continue;
                }
            };
            let sold = sold.get(sku).copied().unwrap_or(0);
            let Opening { before, added } = *opening;
            let left = item.units();
            books.before += before;
            books.added += added;
            books.sold += sold;
            books.left += left;
            books.still_reserved += item.reserved;
            if sold + left != before + added {
                books.differences.push(Difference { sku: sku.clone(), before, added, sold, left });
            }
        }
        for (sku, sold) in sold.iter().filter(|(sku, _)| !openings.contains_key(*sku)) {
            books.differences.push(Difference { sku: sku.clone(), before: 0, added: 0, sold: *sold, left: 0 });
        }
        for order in orders {
            match self.captures(order).await {
                Ok(captures) => {
                    books.histories_checked += 1;
                    if captures != 1 {
                        books.captured_wrongly.insert(order.clone(), captures);
                    }
                }
                Err(error) => books.unreadable.push(error.to_string()),
            }
            // A service that no longer answers is not asked a thousand times.
            if books.unreadable.len() >= 20 {
                break;
            }
        }
        books.balanced = books.differences.is_empty()
            && books.captured_wrongly.is_empty()
            && books.unreadable.is_empty()
            && books.still_reserved == 0;
        books
    }

    /// The stock of a sku as soon as nothing of it is reserved, or as it is at the deadline.
    async fn settled(&mut self, sku: &str, deadline: Instant) -> Result<InventoryAnswer, RehearseError> {
        loop {
            let item = self.inventory(sku).await;
            let done = item.as_ref().is_ok_and(|item| item.reserved == 0);
            if done || Instant::now() + POLL_EVERY > deadline {
                return item;
            }
            sleep(POLL_EVERY).await;
        }
    }

    async fn captures(&mut self, order: &str) -> Result<usize, RehearseError> {
        let what = format!("the history of {order}");
        let (mut captures, mut cursor) = (0, None::<String>);
        for _ in 0..HISTORY_PAGES_MAX {
            let query = cursor.map(|cursor| format!("?cursor={}", percent_encoded(&cursor))).unwrap_or_default();
            let answer = self.client.get(&format!("/api/orders/{}/history{query}", percent_encoded(order)), &[]).await?;
            let page: Page<HistoryItem> = understood(&what, &answer)?;
            captures += page.items.iter().filter(|item| item.event == "order.payment.captured").count();
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(captures);
            }
        }
        Err(RehearseError::NotUnderstood { what, reason: format!("it has more than {HISTORY_PAGES_MAX} pages") })
    }
}

// ---- The run

/// Runs the rehearsal from the first look at the stock to the verdict.
pub async fn run(args: &CheckoutArgs) -> Result<Report, RehearseError> {
    let origin = Origin::parse(&args.url)?;
    let limits = Limits { request: Duration::from_secs(args.timeout_seconds), ..Limits::default() };
    let (run, settle_within) = (Ulid::new(), Duration::from_secs(args.settle_seconds));
    let mut skus = match args.skus.is_empty() {
        true => skus_in_stock(&mut Client::new(origin.clone(), limits)).await?,
        false => args.skus.clone(),
    };
    skus.sort();
    skus.dedup();
    let mut auditor = match &args.token {
        Some(token) => Some(Auditor { client: Client::new(origin.clone(), limits).with_token(token)?, run, settle_within }),
        None => None,
    };
    let mut openings = BTreeMap::new();
    if let Some(auditor) = &mut auditor {
        for sku in &skus {
            let opening = auditor.open(sku, args.stock.unwrap_or(STOCK_DEFAULT)).await?;
            openings.insert(sku.clone(), opening);
        }
    }

    let ware = |sku: &String| Ware { add_item: serde_json::json!({ "sku": sku, "quantity": 1 }).to_string().into() };
    let began = Instant::now();
    let stage = Arc::new(Stage {
        shelf: skus.iter().map(ware).collect(),
        checkout: checkout_body(),
        deadline: began + Duration::from_secs(args.seconds),
        settle_within,
        run,
        orders_paid: AtomicU64::new(0),
        create_cart: Latency::default(),
        add_item: Latency::default(),
        check_out: Latency::default(),
        read_order: Latency::default(),
        purchase: Latency::default(),
    });
    let buyers = rush(args, &stage, &origin, limits).await;
    let seconds = began.elapsed().as_secs_f64();
    let paid_in_time = stage.orders_paid.load(Ordering::Relaxed);

    let (purse, unknown) = come_home(buyers, settle_within).await;
    let orders_paid = stage.orders_paid.load(Ordering::Relaxed);
    let books = match &mut auditor {
        Some(auditor) => Some(auditor.judge(&openings, &purse.sold, &spread(&purse.sample.kept, HISTORIES_MAX)).await),
        None => None,
    };
    let step = |name, latency: &Latency| Step { name, took: latency.summary() };
    Ok(Report {
        passed: orders_paid > 0 && books.as_ref().is_none_or(|books| books.balanced),
        buyers: args.buyers,
        seconds,
        skus: skus.len(),
        orders_paid,
        orders_per_second: paid_in_time as f64 / seconds,
        steps: vec![
            step("create cart", &stage.create_cart),
            step("add item", &stage.add_item),
            step("checkout", &stage.check_out),
            step("read order", &stage.read_order),
            step("purchase", &stage.purchase),
        ],
        refusals: purse.refusals.0,
        errors: purse.errors.0,
        unknown,
        books,
    })
}

/// Lets all buyers buy until the deadline; shows how it goes when somebody watches.
async fn rush(args: &CheckoutArgs, stage: &Arc<Stage>, origin: &Origin, limits: Limits) -> Vec<Buyer> {
    let mut at_work = JoinSet::new();
    for number in 0..args.buyers {
        let mut buyer = Buyer {
            stage: Arc::clone(stage),
            client: Client::new(origin.clone(), limits),
            number,
            purchases: 0,
            // Not all at the same sku at the same time, unless there is only one.
            next_ware: number as usize % stage.shelf.len(),
            purse: Purse::default(),
        };
        buyer.purse.sample.capacity = (2 * HISTORIES_MAX / args.buyers as usize).max(16);
        let last = stage.deadline + limits.request * 6 + stage.settle_within;
        at_work.spawn(async move {
            // The requests' own timeouts end it long before; this only makes sure. The purse is kept in any case.
            let _ = timeout_at(last, buyer.buy_until_deadline()).await;
            buyer
        });
    }

    let bar = progress_bar(args.seconds, args.json, "s");
    let began = Instant::now();
    let mut buyers = Vec::with_capacity(args.buyers as usize);
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    while !at_work.is_empty() {
        tokio::select! {
            Some(home) = at_work.join_next() => buyers.extend(home.ok()),
            _ = tick.tick() => {
                bar.set_position(began.elapsed().as_secs().min(args.seconds));
                bar.set_message(format!("{} orders", stage.orders_paid.load(Ordering::Relaxed)));
            }
        }
    }
    bar.finish_and_clear();
    buyers
}

/// Lets the buyers learn what they do not know, all at once, and puts together what they bring; also how many outcomes
/// stay unknown.
async fn come_home(buyers: Vec<Buyer>, settle_within: Duration) -> (Purse, u64) {
    let deadline = Instant::now() + settle_within;
    let (mut all, unknown) = (Purse::default(), Arc::new(AtomicUsize::new(0)));
    let mut learning = JoinSet::new();
    for mut buyer in buyers {
        let unknown = Arc::clone(&unknown);
        learning.spawn(async move {
            let left = buyer.learn_the_unknown(deadline).await;
            unknown.fetch_add(usize::try_from(left).unwrap_or(usize::MAX), Ordering::Relaxed);
            buyer.purse
        });
    }
    while let Some(purse) = learning.join_next().await {
        let Ok(purse) = purse else { continue };
        purse.sold.into_iter().for_each(|(sku, sold)| *all.sold.entry(sku).or_default() += sold);
        all.sample.kept.extend(purse.sample.kept);
        all.refusals.merge(purse.refusals);
        all.errors.merge(purse.errors);
    }
    (all, unknown.load(Ordering::Relaxed) as u64)
}

/// At most `most` of them, evenly spread.
fn spread(orders: &[String], most: usize) -> Vec<String> {
    let taken = orders.len().min(most);
    (0..taken).map(|index| orders[index * orders.len() / taken].clone()).collect()
}

pub(super) async fn skus_in_stock(client: &mut Client) -> Result<Vec<String>, RehearseError> {
    let (mut skus, mut path) = (Vec::new(), "/api/products?limit=100&in_stock=true".to_owned());
    for _ in 0..CATALOGUE_PAGES_MAX {
        let answer = client.get(&path, &[]).await?;
        let page: Page<ProductItem> = understood("the catalogue", &answer)?;
        let variants = page.items.into_iter().flat_map(|product| product.variants);
        skus.extend(variants.filter(|variant| variant.available != Some(0)).map(|variant| variant.sku));
        match page.next_cursor {
            Some(cursor) if skus.len() < SKUS_MAX => {
                path = format!("/api/products?limit=100&in_stock=true&cursor={}", percent_encoded(&cursor));
            }
            _ => break,
        }
    }
    skus.truncate(SKUS_MAX);
    match skus.is_empty() {
        true => Err(RehearseError::NothingToBuy),
        false => Ok(skus),
    }
}
