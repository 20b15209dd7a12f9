//! One hot sale in one process: durable claims a second beside what the journal takes of the same bytes, refusals a second,
//! and what a sale with a million claims costs: memory, the longest wait, and the time until it answers again after a crash.
//!
//! `cargo bench --bench flash_sale [-- claims | refusals | million | http]`; `benches/flash_sale/compare` sets it beside others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod compare;
mod sale;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use souk::actors::{AskError, Runtime};
use souk::domain::flash_sale::{ClaimNumber, Command, Event, QUANTITY_MAX, Rejection, Reply, State};
use souk::domain::{Entity, FlashSale, Timestamp};
use souk::persistence::{Append, Batch, Embedded, EntityKey, Journal, Options, Position, Wake};

use sale::{SALE, Started, caller, customer};

const SPAN: Duration = Duration::from_secs(4);
const CALLERS: [usize; 4] = [64, 256, 1_024, 4_096];
const MILLION: u64 = 1_000_000;
/// Buyers at once while a million claims are made.
const FILL_CALLERS: usize = 1_024;
static COMMANDS: AtomicU64 = AtomicU64::new(0);

fn main() {
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["fill", dir, snapshot_every] => tokio.block_on(fill(Path::new(dir), snapshot_every.parse().unwrap())),
        ["wake", dir] => tokio.block_on(wake(Path::new(dir))),
        ["compare", always, everysec, postgres, buyers] => compare::run(
            &tokio,
            &compare::Others {
                redis_always: always.parse().unwrap(),
                redis_everysec: everysec.parse().unwrap(),
                postgres: postgres.parse().unwrap(),
                buyers: buyers.parse().unwrap(),
            },
        ),
        ["http"] => compare::over_http(100_000),
        ["bare"] => tokio.block_on(compare::serve_bare()),
        ["alone"] => alone(),
        ["claims"] => claims(&tokio),
        ["refusals"] => tokio.block_on(refusals()),
        ["million"] => million(),
        _ => {
            claims(&tokio);
            tokio.block_on(refusals());
            million();
        }
    }
}

/// Has so many callers ask, each as soon as it was answered, until `until` says no. Returns how many were answered and the
/// waits, longest last.
async fn crowd(
    runtime: &Runtime,
    callers: usize,
    goes_on: impl Fn(u64) -> bool + Send + Sync + 'static,
    ask: impl Fn(u64) -> Command + Send + Sync + 'static,
    check: fn(Result<Reply, AskError<Rejection>>),
) -> (u64, Vec<Duration>) {
    let shared = Arc::new((AtomicU64::new(0), goes_on, ask));
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (runtime, shared) = (runtime.clone(), shared.clone());
            tokio::spawn(async move {
                let (next, goes_on, ask) = &*shared;
                let mut waits = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if !goes_on(number) {
                        return waits;
                    }
                    let began = Instant::now();
                    // Never a command's number again: it would get its first answer.
                    let caller = caller(COMMANDS.fetch_add(1, Ordering::Relaxed));
                    let outcome = runtime.ask::<FlashSale>(SALE, ask(number), caller).await;
                    waits.push(began.elapsed());
                    check(outcome.map(|answered| answered.reply));
                }
            })
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.unwrap());
    }
    waits.sort_unstable();
    (waits.len() as u64, waits)
}

fn claim(number: u64) -> Command {
    Command::Claim { customer: customer(number), quantity: 1, address: 0 }
}

// Claims ----------------------------------------------------------------------------------------------------------------

fn claims(tokio: &tokio::runtime::Runtime) {
    println!("durable claims/s of one sale, {} s each; journal = the same batches appended one after the other", SPAN.as_secs());
    println!(
        "{:>8} {:>12} {:>12} {:>8} {:>10} {:>10} {:>10} {:>10}",
        "callers", "journal", "claims", "share", "work", "p50", "p99", "longest"
    );
    for callers in CALLERS {
        let (rate, work, batches, waits) = tokio.block_on(claims_by(callers));
        let bare = bare_journal(&batches);
        let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
        println!(
            "{callers:>8} {bare:>12.0} {rate:>12.0} {:>8.2} {work:>10.2?} {:>10.2?} {:>10.2?} {:>10.2?}",
            rate / bare,
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}

/// Claims a second, what the processors do for each, some of what the journal holds of them, and the waits.
async fn claims_by(callers: usize) -> (f64, Duration, Vec<Batch>, Vec<Duration>) {
    let dir = tempfile::tempdir().unwrap();
    let Started { runtime, journal } = sale::start(dir.path(), 100).await;
    sale::open(&runtime, QUANTITY_MAX).await;
    let (began, before) = (Instant::now(), worked());
    let (done, waits) = crowd(
        &runtime,
        callers,
        move |_| began.elapsed() < SPAN,
        claim,
        |outcome| {
            assert!(matches!(outcome, Ok(Reply::Claimed { .. })), "{outcome:?}");
        },
    )
    .await;
    let rate = done as f64 / began.elapsed().as_secs_f64();
    let work = (worked() - before).div_f64(done as f64);
    let batches = journal.read(&EntityKey::new("flash_sale", SALE), 10, Position(0), 500).await.unwrap();
    drop(runtime);
    journal.close();
    (rate, work, batches, waits)
}

fn worked() -> Duration {
    let (user, kernel) = sale::processor(std::process::id());
    user + kernel
}

/// Claims a second when their batches are appended one after the other, with nothing around it.
fn bare_journal(batches: &[Batch]) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Embedded::open(dir.path(), Options::default()).unwrap();
    let entity = EntityKey::new("flash_sale", SALE);
    let (mut expected, mut after) = (0, Position(0));
    let began = Instant::now();
    for Batch { count, payload, .. } in batches.iter().cycle() {
        if began.elapsed() >= SPAN {
            break;
        }
        let (entity, payload, wake) = (entity.clone(), payload.clone(), Wake::Never);
        let append = Append { entity, expected, after, count: *count, payload, wake };
        let (tell, heard) = mpsc::channel();
        journal.append(append, Box::new(move |result| tell.send(result).unwrap()));
        after = heard.recv().unwrap().unwrap();
        expected += u64::from(*count);
    }
    let rate = expected as f64 / began.elapsed().as_secs_f64();
    journal.close();
    rate
}

// Refusals ----------------------------------------------------------------------------------------------------------------

async fn refusals() {
    println!("refusals/s of one sale by 256 callers, {} s each", SPAN.as_secs());
    let dir = tempfile::tempdir().unwrap();
    let Started { runtime, journal } = sale::start(dir.path(), 100).await;
    sale::open(&runtime, 1_000).await;
    crowd(&runtime, 256, |number| number < 1_000, claim, |outcome| drop(outcome.unwrap())).await;
    for buyer in 0..1_000 {
        sale::pay(&runtime, buyer).await;
    }
    refuse(&runtime, "sold out", |outcome| {
        assert!(matches!(outcome, Err(AskError::Rejected(Rejection::SoldOut))), "{outcome:?}")
    })
    .await;
    drop(runtime);
    journal.close();

    let dir = tempfile::tempdir().unwrap();
    let Started { runtime, journal } = sale::start(dir.path(), 100).await;
    sale::open(&runtime, 1).await;
    let filled = u64::from(souk::domain::flash_sale::LINE_MAX) + 1;
    crowd(&runtime, 4_096, move |number| number < filled, claim, |outcome| drop(outcome.unwrap())).await;
    refuse(&runtime, "line full", |outcome| {
        assert!(matches!(outcome, Err(AskError::Rejected(Rejection::LineFull))), "{outcome:?}")
    })
    .await;
    drop(runtime);
    journal.close();
}

async fn refuse(runtime: &Runtime, what: &str, check: fn(Result<Reply, AskError<Rejection>>)) {
    let began = Instant::now();
    let strangers = |number: u64| claim(number + 100_000_000);
    let (done, waits) = crowd(runtime, 256, move |_| began.elapsed() < SPAN, strangers, check).await;
    let rate = done as f64 / began.elapsed().as_secs_f64();
    println!("{what:>12} {rate:>12.0}   p50 {:?}, p99 {:?}", waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
}

// A million claims ----------------------------------------------------------------------------------------------------------

fn million() {
    again(&["alone"]);
    for (what, snapshot_every) in [("with snapshots", 100), ("without", u64::MAX)] {
        let dir = tempfile::tempdir().unwrap();
        println!("a sale with {MILLION} claims, {FILL_CALLERS} callers, {what}:");
        again(&["fill", dir.path().to_str().unwrap(), &snapshot_every.to_string()]);
        again(&["wake", dir.path().to_str().unwrap()]);
    }
}

/// This program once more, as a process of its own.
fn again(arguments: &[&str]) {
    let status = std::process::Command::new(std::env::current_exe().unwrap()).args(arguments).status().unwrap();
    assert!(status.success());
}

/// The state by itself, as it is folded from its events: what it takes, and how long a claim waits for a snapshot's picture.
fn alone() {
    let before = sale::resident_bytes();
    let mut state = State::default();
    let until = Timestamp::from_millis(1_790_000_000_000);
    for number in 0..MILLION {
        let event = Event::Claimed {
            claim: number as ClaimNumber,
            customer: customer(number),
            quantity: 1,
            until,
            command: number,
            address: 0,
            admits_from_us: None,
        };
        FlashSale::evolve(&mut state, &event);
    }
    let began = Instant::now();
    let picture = FlashSale::picture(&state);
    let took = began.elapsed();
    let resident = sale::resident_bytes().saturating_sub(before) >> 20;
    println!("the state of {MILLION} claims by itself: {resident} MB resident, a picture of it after {took:.2?}");
    assert_eq!(picture.map(|picture| picture.book.claims().len()), Some(MILLION as ClaimNumber));
}

async fn fill(dir: &Path, snapshot_every: u64) {
    let Started { runtime, .. } = sale::start(dir, snapshot_every).await;
    sale::open(&runtime, QUANTITY_MAX).await;
    let before = sale::resident_bytes();
    let began = Instant::now();
    let (done, waits) = crowd(&runtime, FILL_CALLERS, |number| number < MILLION, claim, |outcome| drop(outcome.unwrap())).await;
    let took = began.elapsed();
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
    println!(
        "  {:.0} claims/s; waits: p50 {:.2?}, p99 {:.2?}, p99.99 {:.2?}, longest {:.2?}; {} snapshots; {} MB more resident at the peak, {} MB now",
        done as f64 / took.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(0.9999),
        at(1.0),
        runtime.counters().snapshots.get(),
        sale::peak_bytes().saturating_sub(before) >> 20,
        sale::resident_bytes().saturating_sub(before) >> 20,
    );
    // As if killed: nothing is drained, nothing closed.
    std::process::exit(0);
}

async fn wake(dir: &Path) {
    let began = Instant::now();
    let Started { runtime, journal } = sale::start(dir, 100).await;
    let (opened, before) = (began.elapsed(), sale::resident_bytes());
    let began = Instant::now();
    let shown = sale::look(&runtime).await;
    let took = began.elapsed();
    println!(
        "  after a crash: the node's journal open after {opened:.2?}; the first answer of the sale after {took:.2?} more, {} units held; {} MB more resident",
        shown.held,
        sale::resident_bytes().saturating_sub(before) >> 20
    );
    drop(runtime);
    journal.close();
}
