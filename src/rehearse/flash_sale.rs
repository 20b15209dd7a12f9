//! A flash sale with many more buyers than units: they come, claim or wait in line, think, pay or change their minds.
//!
//! The rehearsal makes a sale of its own of one sku, lets everybody in without an account, ends it when everybody has
//! gone home, and then checks the books.
//!
//! # What is checked afterwards
//!
//! - No more was sold than there was, and what the sale says it sold is what its buyers have paid.
//! - Nothing is held any more once the sale is over.
//! - For the sku: units before + units added = units sold + units left, everywhere they can be.
//!
//! That is true only when nobody else buys the sku meanwhile.
//!
//! # Limits
//!
//! Buyers share a bounded number of connections, each request has a timeout and a bounded number of repeats under the same
//! key, and nobody stays past the end of the sale.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderValue};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use ulid::Ulid;

use super::answers::{RehearseError, Settlement, checkout_body, reason_of, settle, understood};
use super::chart::{Second, Timeline};
use super::checkout::{Auditor, skus_in_stock};
use super::latency::Latency;
use super::report::{Reasons, Step, progress_bar, write_reasons, write_steps};
use crate::domain::Timestamp;
use crate::integrations::http_client::{
    Answer, Client, ClientError, Header, IDEMPOTENCY_KEY, Limits, Origin, bearer, percent_encoded,
};

/// How long before its start the sale is made.
const LEAD_MS: i64 = 3_000;
/// How long the sale goes on after the last buyer could have come, so that claims can run out and go to the next.
const TAIL: Duration = Duration::from_secs(600);
/// How often the sale is looked at, for all buyers together.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often a buyer in line looks at its place: as often as its turn may come, within these.
const TURN_FIRST: Duration = Duration::from_secs(1);
const TURN_LAST: Duration = Duration::from_secs(15);
/// A pause before an answer that was lost is asked for again.
const AGAIN_FIRST: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(2);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  A hundred thousand buyers for a thousand units within half a minute:
    souk rehearse flash-sale --buyers 100000 --units 1000 --arrive-seconds 30 --token $(souk admin token)

  With a chart, and buyers who take their time and often change their minds:
    souk rehearse flash-sale --buyers 5000 --units 500 --think-ms 5000 --abandon-percent 40 --chart rush.svg

All buyers come from one address: start the node with --no-limits, or most of them are told to wait (429).

The exit code is 0 when units were sold and the books balance, else 1.";

/// Many buyers for few units: a sale of its own with its waiting room, claims and orders, and its books
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct FlashSaleArgs {
    /// How many buyers come
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000), env = "SOUK_BUYERS")]
    pub buyers: u32,

    /// How many units there are
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000), env = "SOUK_UNITS")]
    pub units: u32,

    /// The service
    #[arg(long, default_value = "http://127.0.0.1:8080", env = "SOUK_URL")]
    pub url: String,

    /// An admin's access token, to make the sale and check the books
    #[arg(long, env = "SOUK_TOKEN", hide_env_values = true)]
    pub token: String,

    /// What is on sale. Without it, the first sku that the catalogue has in stock
    #[arg(long, value_name = "SKU", env = "SOUK_SKU")]
    pub sku: Option<String>,

    /// Over how long they come; 0 is all at once
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=600), env = "SOUK_ARRIVE_SECONDS")]
    pub arrive_seconds: u64,

    /// How long a buyer thinks between a claim and its order, on average
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=600_000), env = "SOUK_THINK_MS")]
    pub think_ms: u64,

    /// How many of a hundred who have a claim change their minds: half of them say so, the others just go
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=100), env = "SOUK_ABANDON_PERCENT")]
    pub abandon_percent: u8,

    /// How often a request is sent again under the same key when its answer is lost or it is to come back later
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100), env = "SOUK_RETRIES")]
    pub retries: u32,

    /// How long a claim can be paid
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600), env = "SOUK_CLAIM_SECONDS")]
    pub claim_seconds: u32,

    /// Connections that the buyers share
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=20_000), env = "SOUK_CONNECTIONS")]
    pub connections: u32,

    /// How long a buyer waits for one answer
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300), env = "SOUK_TIMEOUT_SECONDS")]
    pub timeout_seconds: u64,

    /// How long the service has, after the rush, to settle
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600), env = "SOUK_SETTLE_SECONDS")]
    pub settle_seconds: u64,

    /// Draw throughput and latency over time into this file, as SVG
    #[arg(long, value_name = "FILE", env = "SOUK_CHART")]
    pub chart: Option<PathBuf>,

    /// Print the report as JSON
    #[arg(long, env = "SOUK_JSON")]
    pub json: bool,
}

// ---- The report

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub passed: bool,
    pub sale: String,
    pub buyers: u32,
    pub units: u32,
    pub seconds: f64,
    pub claims: u64,
    pub tickets: u64,
    pub orders_paid: u64,
    /// In the second in which there were most.
    pub claims_per_second_most: u64,
    pub orders_per_second_most: u64,
    pub steps: Vec<Step>,
    /// Why buyers went home with nothing.
    pub refusals: BTreeMap<String, u64>,
    /// Answers that never came or made no sense.
    pub errors: BTreeMap<String, u64>,
    pub books: Books,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chart: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Books {
    pub balanced: bool,
    pub before: i64,
    pub added: i64,
    /// What the sale says.
    pub sold: i64,
    /// What the buyers paid.
    pub paid: i64,
    pub held: i64,
    pub left: i64,
    /// Orders of which their buyers could not learn whether they were paid.
    pub unknown: i64,
    /// What kept us from reading them.
    pub unreadable: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} of {} units sold to {} buyers in {:.1} s: {} claims (at most {} a second), {} orders (at most {} a second), {} waited in line\n",
            self.books.sold,
            self.units,
            self.buyers,
            self.seconds,
            self.claims,
            self.claims_per_second_most,
            self.orders_paid,
            self.orders_per_second_most,
            self.tickets
        )?;
        write_steps(f, &self.steps)?;
        write_reasons(f, "Went home with nothing", &self.refusals)?;
        write_reasons(f, "Errors", &self.errors)?;
        let Books { balanced, before, added, sold, paid, held, left, unknown, unreadable } = &self.books;
        let verdict = if *balanced { "The books balance" } else { "THE BOOKS DO NOT BALANCE" };
        writeln!(f, "\n{verdict} (if nobody else bought or changed stock meanwhile).")?;
        writeln!(f, "  {before} before + {added} added = {sold} sold + {left} left")?;
        writeln!(f, "  {sold} sold by the sale, {paid} paid by its buyers, {unknown} unknown, {held} still held")?;
        unreadable.iter().try_for_each(|reason| writeln!(f, "  could not be read: {reason}"))?;
        if let Some(chart) = &self.chart {
            writeln!(f, "\nThe chart is in {}", chart.display())?;
        }
        Ok(())
    }
}

// ---- What is read of the answers

#[derive(Deserialize)]
struct SaleAnswer {
    id: String,
    status: String,
    #[serde(default)]
    sold: i64,
    #[serde(default)]
    held: i64,
}

impl SaleAnswer {
    fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "sold_out" | "ended" | "cancelled")
    }
}

/// A claim, or a place in line.
#[derive(Deserialize)]
struct ClaimAnswer<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    token: Option<Cow<'a, str>>,
    #[serde(default)]
    ticket: Option<TicketAnswer>,
}

#[derive(Deserialize)]
struct TicketAnswer {
    #[serde(default)]
    estimated_wait_seconds: Option<f64>,
}

#[derive(Deserialize)]
struct OwnAnswer<'a> {
    #[serde(borrow, default)]
    claims: Vec<OwnClaim<'a>>,
    #[serde(default)]
    ticket: Option<TicketAnswer>,
}

#[derive(Deserialize)]
struct OwnClaim<'a> {
    #[serde(borrow)]
    status: Cow<'a, str>,
}

// ---- The buyers

/// What all buyers share.
struct Stage {
    sale: String,
    units: u32,
    claim: Bytes,
    opens: Instant,
    /// When everybody must have gone home.
    closes: Instant,
    arrive: Duration,
    think: Duration,
    abandon_percent: u8,
    retries: u32,
    /// In the name of each idempotency key, so that two rehearsals never share one.
    run: Ulid,
    connections: Semaphore,
    idle: Mutex<Vec<Client>>,
    origin: Origin,
    limits: Limits,
    is_over: watch::Receiver<bool>,
    timeline: Timeline,
    claims: AtomicU64,
    tickets: AtomicU64,
    orders_paid: AtomicU64,
    unknown: AtomicU64,
    home: AtomicU64,
    refusals: Mutex<Reasons>,
    errors: Mutex<Reasons>,
    claiming: Latency,
    waiting: Latency,
    ordering: Latency,
    whole: Latency,
}

/// Why a buyer went home with nothing.
enum Home {
    Refused(String),
    Failed(String),
}

impl From<ClientError> for Home {
    fn from(error: ClientError) -> Self {
        Home::Failed(error.to_string())
    }
}

fn count(reasons: &Mutex<Reasons>, reason: String) {
    reasons.lock().unwrap_or_else(PoisonError::into_inner).add(reason, 1);
}

impl Stage {
    fn second(&self) -> &Second {
        self.timeline.at(self.opens.elapsed())
    }

    /// One of the shared connections, for as long as one request takes.
    async fn with<T>(&self, ask: impl AsyncFnOnce(&mut Client) -> T) -> T {
        let _permit = self.connections.acquire().await;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut client = idle.unwrap_or_else(|| Client::new(self.origin.clone(), self.limits));
        let answer = ask(&mut client).await;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
        answer
    }

    /// Sent again under the same key while its answer is lost, or while the service asks to come back later.
    async fn post(&self, path: &str, headers: &[Header], body: &Bytes) -> Result<Answer, ClientError> {
        let mut pause = AGAIN_FIRST;
        for attempt in 0.. {
            let answered = self.with(async |client| client.post(path, headers, body.clone()).await).await;
            let wait = match &answered {
                Ok(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS || answer.status.is_server_error() => {
                    answer.retry_after().unwrap_or(pause).min(RETRY_AFTER_MAX)
                }
                Ok(_) => return answered,
                Err(_) => pause,
            };
            if attempt >= self.retries || Instant::now() >= self.closes {
                return answered;
            }
            sleep(wait.mul_f64(1.0 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(AGAIN_MAX);
        }
        unreachable!("the last attempt returns")
    }
}

struct Buyer {
    stage: Arc<Stage>,
    number: u32,
    turn: u32,
    authorization: Option<Header>,
}

impl Buyer {
    async fn come(mut self) {
        let stage = Arc::clone(&self.stage);
        sleep_until(stage.opens + stage.arrive.mul_f64(fastrand::f64())).await;
        let began = Instant::now();
        match timeout_at(stage.closes, self.buy(&stage, began)).await {
            Ok(Ok(())) => {}
            Ok(Err(Home::Refused(reason))) => count(&stage.refusals, reason),
            Ok(Err(Home::Failed(reason))) => count(&stage.errors, reason),
            Err(_) => count(&stage.refusals, "waited until the end".to_owned()),
        }
        stage.home.fetch_add(1, Ordering::Relaxed);
    }

    async fn buy(&mut self, stage: &Stage, began: Instant) -> Result<(), Home> {
        let claim = self.claim(stage).await?;
        sleep(stage.think.mul_f64(2.0 * fastrand::f64())).await;
        if fastrand::u8(0..100) < stage.abandon_percent {
            if fastrand::bool() {
                let path = format!("/api/flash-sales/{}/claims/{claim}", stage.sale);
                let headers = self.headers(None)?;
                stage.with(async |client| client.delete(&path, &headers).await).await?;
                return Err(Home::Refused("gave the claim up".to_owned()));
            }
            return Err(Home::Refused("just went".to_owned()));
        }
        let started = Instant::now();
        let headers = self.headers(Some("order"))?;
        let answered = stage.post("/api/orders", &headers, &order_body(&claim)).await;
        let answer = match answered {
            Ok(answer) if !answer.status.is_server_error() => answer,
            lost => {
                stage.unknown.fetch_add(1, Ordering::Relaxed);
                return Err(Home::Failed(lost.map_or_else(|error| format!("order: {error}"), |answer| reason_of(&answer))));
            }
        };
        if !answer.status.is_success() {
            return Err(Home::Refused(format!("order: {}", reason_of(&answer))));
        }
        let authorization = self.authorization.clone().ok_or_else(|| Home::Failed("no token".to_owned()))?;
        let settled = stage.with(async |client| settle(client, &answer, &authorization, stage.closes).await).await;
        match settled {
            Settlement::Paid { .. } => {
                stage.ordering.record(started.elapsed());
                stage.whole.record(began.elapsed());
                stage.orders_paid.fetch_add(1, Ordering::Relaxed);
                stage.second().orders.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Settlement::NotPaid { status } => Err(Home::Refused(format!("the order is {status}"))),
            Settlement::Unknown { reason } => {
                stage.unknown.fetch_add(1, Ordering::Relaxed);
                Err(Home::Failed(format!("order: {reason}")))
            }
        }
    }

    /// The claim's id, at once or when the buyer's turn has come.
    async fn claim(&mut self, stage: &Stage) -> Result<String, Home> {
        let path = format!("/api/flash-sales/{}/claims", stage.sale);
        let mut queued = None;
        loop {
            let started = Instant::now();
            self.turn += 1;
            let headers = self.headers(Some(&format!("claim-{}", self.turn)))?;
            let answer = stage.post(&path, &headers, &stage.claim).await?;
            let second = stage.second();
            second.latency.record(started.elapsed());
            stage.claiming.record(started.elapsed());
            if !answer.status.is_success() {
                second.refusals.fetch_add(1, Ordering::Relaxed);
                return Err(Home::Refused(format!("claim: {}", reason_of(&answer))));
            }
            let told: ClaimAnswer<'_> =
                serde_json::from_slice(&answer.body).map_err(|error| Home::Failed(format!("claim: not understood: {error}")))?;
            if let Some(token) = &told.token {
                self.authorization = Some((AUTHORIZATION, bearer(token)?));
            }
            if let (StatusCode::CREATED, Some(id)) = (answer.status, told.id) {
                if let Some(queued) = queued {
                    stage.waiting.record(Instant::now().duration_since(queued));
                }
                stage.claims.fetch_add(1, Ordering::Relaxed);
                second.claims.fetch_add(1, Ordering::Relaxed);
                return Ok(id.into_owned());
            }
            if queued.is_none() {
                queued = Some(started);
                stage.tickets.fetch_add(1, Ordering::Relaxed);
                second.tickets.fetch_add(1, Ordering::Relaxed);
            }
            self.wait_for_turn(stage, &path, told.ticket).await?;
        }
    }

    /// Returns when an offer waits to be taken up.
    async fn wait_for_turn(&self, stage: &Stage, path: &str, mut ticket: Option<TicketAnswer>) -> Result<(), Home> {
        let headers = self.headers(None)?;
        let mut is_over = stage.is_over.clone();
        loop {
            let estimate = ticket.and_then(|ticket| ticket.estimated_wait_seconds).unwrap_or_default().clamp(0.0, 3_600.0);
            let pause = Duration::from_secs_f64(estimate / 4.0).clamp(TURN_FIRST, TURN_LAST);
            let over = tokio::select! {
                over = is_over.wait_for(|over| *over) => over.is_ok(),
                () = sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)) => false,
            };
            if over {
                return Err(Home::Refused("in line until it was sold out or over".to_owned()));
            }
            let answer = stage.with(async |client| client.get(path, &headers).await).await?;
            let own: OwnAnswer<'_> = match understood("own claims", &answer) {
                Ok(own) => own,
                // Whoever waits asks again.
                Err(_) if answer.status == StatusCode::TOO_MANY_REQUESTS || answer.status.is_server_error() => {
                    ticket = None;
                    continue;
                }
                Err(error) => return Err(Home::Failed(error.to_string())),
            };
            if own.claims.iter().any(|claim| claim.status == "offered") {
                return Ok(());
            }
            match own.ticket {
                Some(waits) => ticket = Some(waits),
                None => return Err(Home::Refused("missed the turn".to_owned())),
            }
        }
    }

    fn headers(&self, step: Option<&str>) -> Result<Vec<Header>, Home> {
        let mut headers: Vec<Header> = self.authorization.iter().cloned().collect();
        if let Some(step) = step {
            let key = format!("rehearsal-{}-{}-{step}", self.stage.run, self.number);
            headers.push((IDEMPOTENCY_KEY, HeaderValue::from_str(&key).map_err(|error| Home::Failed(error.to_string()))?));
        }
        Ok(headers)
    }
}

fn order_body(claim: &str) -> Bytes {
    let mut body: serde_json::Value = serde_json::from_slice(&checkout_body()).unwrap_or_default();
    body["claim_id"] = claim.into();
    body.to_string().into()
}

// ---- The sale

/// Makes the sale and has it approved; returns its id.
async fn make_sale(auditor: &mut Auditor, args: &FlashSaleArgs, sku: &str, opens: Timestamp) -> Result<String, RehearseError> {
    #[derive(Deserialize)]
    struct Item {
        product_id: Option<String>,
    }
    #[derive(Deserialize)]
    struct Product {
        variants: Vec<Variant>,
    }
    #[derive(Deserialize)]
    struct Variant {
        sku: String,
        price: serde_json::Value,
    }
    let encoded = percent_encoded(sku);
    let item: Item = understood(sku, &auditor.client.get(&format!("/api/inventory/{encoded}"), &[]).await?)?;
    let what = format!("the product of {sku}");
    let product = item.product_id.ok_or(RehearseError::NothingToBuy)?;
    let product: Product = understood(&what, &auditor.client.get(&format!("/api/products/{product}"), &[]).await?)?;
    let variant = product.variants.into_iter().find(|variant| variant.sku == sku).ok_or(RehearseError::NothingToBuy)?;
    let lasts_ms = (args.arrive_seconds as i64) * 1_000 + TAIL.as_millis() as i64;
    let body = serde_json::json!({
        "sku": sku,
        "price": variant.price,
        "quantity": args.units,
        "per_customer_limit": 1,
        "starts_at": opens,
        "ends_at": opens.plus_ms(lasts_ms),
        "claim_seconds": args.claim_seconds,
        "admission_seconds": args.claim_seconds,
        "guests": true,
    });
    let sale: SaleAnswer = understood("the sale", &auditor.client.post("/api/flash-sales", &[], body.to_string().into()).await?)?;
    let approve = format!("/api/flash-sales/{}/approve", sale.id);
    let approved = auditor.client.post(&approve, &[], Bytes::from_static(b"{}")).await?;
    match approved.status.is_success() {
        true => Ok(sale.id),
        false => Err(RehearseError::Refused { what: "approving the sale".to_owned(), reason: reason_of(&approved) }),
    }
}

async fn look(client: &mut Client, sale: &str) -> Result<SaleAnswer, RehearseError> {
    understood("the sale", &client.get(&format!("/api/flash-sales/{sale}"), &[]).await?)
}

/// Tells all buyers when there is nothing more to wait for.
async fn watch_sale(mut client: Client, sale: String, is_over: watch::Sender<bool>) {
    while !is_over.is_closed() {
        if look(&mut client, &sale).await.is_ok_and(|sale| sale.is_over()) {
            let _ = is_over.send(true);
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Ends the sale, waits until nothing of it is under way, and adds up.
async fn judge(auditor: &mut Auditor, stage: &Stage, sku: &str, before: i64, added: i64) -> Books {
    let paid = stage.orders_paid.load(Ordering::Relaxed) as i64;
    let unknown = stage.unknown.load(Ordering::Relaxed) as i64;
    let mut books = Books { before, added, paid, unknown, ..Books::default() };
    let deadline = Instant::now() + auditor.settle_within;
    let cancel = format!("/api/flash-sales/{}/cancel", stage.sale);
    let reason = Bytes::from_static(br#"{"reason":"the rehearsal is over"}"#);
    if let Err(error) = auditor.client.post(&cancel, &[], reason).await {
        books.unreadable.push(error.to_string());
    }
    loop {
        let read = async {
            let sale = look(&mut auditor.client, &stage.sale).await?;
            Ok::<_, RehearseError>((sale, auditor.inventory(sku).await?))
        };
        match read.await {
            Ok((sale, item)) => {
                (books.sold, books.held, books.left) = (sale.sold, sale.held, item.units());
                let is_settled = sale.held == 0 && item.reserved == 0 && item.allotted == 0;
                if is_settled || Instant::now() >= deadline {
                    break;
                }
            }
            Err(error) if Instant::now() >= deadline => {
                books.unreadable.push(error.to_string());
                break;
            }
            Err(_) => {}
        }
        sleep(LOOK_EVERY).await;
    }
    books.balanced = books.unreadable.is_empty()
        && books.held == 0
        && books.before + books.added == books.sold + books.left
        && (paid..=paid + unknown).contains(&books.sold)
        && books.sold <= i64::from(stage.units);
    books
}

/// Runs the rehearsal from the making of the sale to the verdict.
pub async fn run(args: &FlashSaleArgs) -> Result<Report, RehearseError> {
    let origin = Origin::parse(&args.url)?;
    let limits = Limits { request: Duration::from_secs(args.timeout_seconds), ..Limits::default() };
    let (run, settle_within) = (Ulid::new(), Duration::from_secs(args.settle_seconds));
    let mut auditor = Auditor { client: Client::new(origin.clone(), limits).with_token(&args.token)?, run, settle_within };
    let sku = match &args.sku {
        Some(sku) => sku.clone(),
        None => skus_in_stock(&mut auditor.client).await?.into_iter().next().ok_or(RehearseError::NothingToBuy)?,
    };
    let opening = auditor.open(&sku, args.units).await?;
    let now = Timestamp::from_millis(i64::try_from(run.timestamp_ms()).unwrap_or_default());
    let starts_at = now.plus_ms(LEAD_MS);
    let sale = make_sale(&mut auditor, args, &sku, starts_at).await?;

    let since = Instant::now();
    let (tell_over, is_over) = watch::channel(false);
    let watcher = tokio::spawn(watch_sale(Client::new(origin.clone(), limits), sale.clone(), tell_over));
    // Those who come a little late are not told that it has not started.
    let opens = since + Duration::from_millis(LEAD_MS.unsigned_abs());
    let arrive = Duration::from_secs(args.arrive_seconds);
    let stage = Arc::new(Stage {
        sale: sale.clone(),
        units: args.units,
        claim: Bytes::from_static(br#"{"quantity":1}"#),
        opens,
        closes: opens + arrive + TAIL,
        arrive,
        think: Duration::from_millis(args.think_ms),
        abandon_percent: args.abandon_percent,
        retries: args.retries,
        run,
        connections: Semaphore::new(args.connections as usize),
        idle: Mutex::default(),
        origin,
        limits,
        is_over,
        timeline: Timeline::over(arrive + TAIL),
        claims: AtomicU64::new(0),
        tickets: AtomicU64::new(0),
        orders_paid: AtomicU64::new(0),
        unknown: AtomicU64::new(0),
        home: AtomicU64::new(0),
        refusals: Mutex::default(),
        errors: Mutex::default(),
        claiming: Latency::default(),
        waiting: Latency::default(),
        ordering: Latency::default(),
        whole: Latency::default(),
    });
    rush(args, &stage).await;
    let lasted = opens.elapsed();
    watcher.abort();

    let books = judge(&mut auditor, &stage, &sku, opening.before, opening.added).await;
    let chart = match &args.chart {
        Some(file) => match stage.timeline.draw(file, lasted) {
            Ok(()) => Some(file.clone()),
            Err(error) => {
                count(&stage.errors, format!("the chart: {error}"));
                None
            }
        },
        None => None,
    };
    let step = |name, latency: &Latency| Step { name, took: latency.summary() };
    let reasons = |reasons: &Mutex<Reasons>| std::mem::take(&mut *reasons.lock().unwrap_or_else(PoisonError::into_inner)).0;
    let most = |of: fn(&Second) -> &AtomicU64| stage.timeline.most(of);
    Ok(Report {
        passed: books.balanced && books.sold > 0,
        sale,
        buyers: args.buyers,
        units: args.units,
        seconds: lasted.as_secs_f64(),
        claims: stage.claims.load(Ordering::Relaxed),
        tickets: stage.tickets.load(Ordering::Relaxed),
        orders_paid: stage.orders_paid.load(Ordering::Relaxed),
        claims_per_second_most: most(|second| &second.claims),
        orders_per_second_most: most(|second| &second.orders),
        steps: vec![
            step("claim", &stage.claiming),
            step("in line", &stage.waiting),
            step("order", &stage.ordering),
            step("purchase", &stage.whole),
        ],
        refusals: reasons(&stage.refusals),
        errors: reasons(&stage.errors),
        books,
        chart,
    })
}

/// Lets everybody come and go home; shows how it goes when somebody watches.
async fn rush(args: &FlashSaleArgs, stage: &Arc<Stage>) {
    let mut buyers = JoinSet::new();
    for number in 0..args.buyers {
        let buyer = Buyer { stage: Arc::clone(stage), number, turn: 0, authorization: None };
        buyers.spawn(buyer.come());
    }
    let bar = progress_bar(args.buyers.into(), args.json, "buyers went home");
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    while !buyers.is_empty() {
        tokio::select! {
            Some(_) = buyers.join_next() => {}
            _ = tick.tick() => {
                bar.set_position(stage.home.load(Ordering::Relaxed));
                let (claims, orders) = (stage.claims.load(Ordering::Relaxed), stage.orders_paid.load(Ordering::Relaxed));
                bar.set_message(format!("{claims} claims, {orders} orders"));
            }
        }
    }
    bar.finish_and_clear();
}
