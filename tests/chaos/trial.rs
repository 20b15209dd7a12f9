//! One run: a shop is opened, a crowd comes, things go wrong, everybody goes home, and what they saw is judged.
//!
//! What a run has left lies in `target/tmp/chaos-SEED/` while it goes on, and stays there when something was found, to be
//! judged again by `SOUK_CHAOS_RUN=that-folder cargo test --test chaos -- --ignored judged_again`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use crate::asking::Client;
use crate::checks::{Judgement, Run, judge};
use crate::crowd::{Crowd, Plan};
use crate::facts::Registrar;
use crate::faults::{Fault, Planned, Shop, strike_all};
use crate::history::{Asked, History, Outcome, Recorder, Wish};
use crate::linearizable::Verdict;
use crate::node::until;

/// When a clock is this far off, holds may run out.
const HOLDS_LAST_S: i64 = 6 * 60;
/// So many requests must be answered after the last fault before everybody goes home.
const AFTERMATH_ANSWERS: u64 = 50;

/// A run in which nothing was found.
pub struct Ended {
    pub judgement: Judgement,
    pub history: History,
}

/// The seed to run with: `SOUK_CHAOS_SEED`, or a new one; said in any case.
pub fn seed() -> u64 {
    let seed = given_seed().unwrap_or_else(|| fastrand::u64(..));
    println!("SOUK_CHAOS_SEED={seed}");
    seed
}

/// `SOUK_CHAOS_SEED`
pub fn given_seed() -> Option<u64> {
    std::env::var("SOUK_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok())
}

fn folder(seed: u64) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"))
}

/// Runs the schedule against the shop, with this crowd in it. Panics when anything is found.
pub async fn trial(mut shop: impl Shop, seed: u64, plan: &Plan, schedule: &[Planned]) -> Ended {
    let folder = folder(seed);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let recorder = Recorder::new(Some(&folder.join("history.jsonl")));
    let (addresses, operator) = (shop.addresses(), shop.operator());
    let mut steward = Client::new("steward".into(), fastrand::Rng::with_seed(seed), addresses.clone(), recorder.clone());
    open_shop(&mut steward, plan, &operator).await;

    let mut crowd = Crowd::begin(plan, seed, &addresses, &recorder, &operator);
    strike_all(&mut shop, schedule, &recorder).await;
    shop.is_well().await;
    let answers = recorder.answers() + AFTERMATH_ANSWERS;
    until("the crowd is served after the last fault", || async { recorder.answers() >= answers }).await;
    crowd.goes_home().await;
    let skus: Vec<String> = plan.stock.iter().map(|(sku, _)| sku.clone()).collect();
    let facts = Registrar::new(addresses, &shop.operator()).facts(&recorder.history(), &skus).await;
    crowd.hangs_up().await;

    let given = plan.stock.iter().cloned().collect();
    let run = Run { history: recorder.history(), facts, given, holds_expire: holds_expire(schedule) };
    let rest = json!({ "facts": run.facts, "given": run.given, "holds_expire": run.holds_expire });
    fs::write(folder.join("rest.json"), rest.to_string()).unwrap();
    let judgement = tell(&run);
    if judgement.findings.is_empty() {
        let _ = fs::remove_dir_all(&folder);
        return Ended { judgement, history: run.history };
    }
    let findings = judgement.findings.join("\n");
    let schedule: Vec<String> = schedule.iter().map(Planned::to_string).collect();
    let (schedule, log) = (schedule.join("\n"), shop.log());
    panic!("SOUK_CHAOS_SEED={seed}, kept in {}\n{findings}\n\n{schedule}\n\n{log}", folder.display());
}

fn holds_expire(schedule: &[Planned]) -> bool {
    schedule.iter().any(|planned| matches!(planned.fault, Fault::ClockJump { ahead_s, .. } if ahead_s.abs() >= HOLDS_LAST_S))
}

/// Judges a run and says what there was of it.
fn tell(run: &Run) -> Judgement {
    let began = Instant::now();
    let judgement = judge(run);
    let history = &run.history;
    let attempts: usize = history.wishes.values().map(|wish| wish.attempts.len()).sum();
    let unknown = attempts - history.known().count();
    let heard: usize = history.followed.values().map(Vec::len).sum();
    let mut statuses: BTreeMap<&str, usize> = BTreeMap::new();
    run.facts.orders.values().for_each(|order| *statuses.entry(order.status()).or_default() += 1);
    println!(
        "  {} wishes in {attempts} attempts, {unknown} of unknown outcome; orders {statuses:?}; {} subscribers heard {heard} events",
        history.wishes.len(),
        history.followed.len(),
    );
    let took = |wish: &Wish| Some((wish.known()?.answered_us - wish.first().asked_us) / 1_000);
    let mut took_ms: Vec<u64> = history.wishes.values().filter_map(took).collect();
    took_ms.sort_unstable();
    println!("  a wish took {}", quantiles(&took_ms));
    if let Some(slowest) = history.wishes.values().max_by_key(|wish| took(wish)) {
        println!("  longest took {} {}:", slowest.first().method, slowest.first().path);
        for attempt in &slowest.attempts {
            let Asked { asked_us, answered_us, address, outcome, .. } = attempt;
            let came = match outcome {
                Outcome::Unknown { why } => why.clone(),
                known => format!("{:?}", known.status()),
            };
            println!("    {} to {} ms at {address}: {came}", asked_us / 1_000, answered_us / 1_000);
        }
    }
    for (why, count) in history.unknown() {
        println!("  {count} attempts ended with {why}");
    }
    tell_outages(&history.outages_ms());
    for judged in &judgement.stock {
        let verdict = match &judged.verdict {
            Verdict::Linearizable => "linearizable".to_owned(),
            Verdict::Not { .. } => "NOT linearizable".to_owned(),
            Verdict::Undecided { looked_at } => format!("could not be decided: {looked_at} states looked at"),
        };
        println!("  {}: {} calls, {verdict}", judged.sku, judged.calls);
    }
    println!("  judged in {} ms, {} findings", began.elapsed().as_millis(), judgement.findings.len());
    judgement
}

/// How long the clients waited whom a fault hit.
pub fn tell_outages(outages_ms: &BTreeMap<&str, Vec<u64>>) {
    for (sort, waited_ms) in outages_ms {
        println!("  {sort}: whom it hit waited {}", quantiles(waited_ms));
    }
}

fn quantiles(sorted_ms: &[u64]) -> String {
    let Some(last) = sorted_ms.len().checked_sub(1) else { return "nothing".to_owned() };
    let at = |percent: usize| sorted_ms[last * percent / 100];
    format!("{} ms at the median, {} at p99, {} at most ({} of them)", at(50), at(99), at(100), sorted_ms.len())
}

/// Judges again what a run has left.
pub fn judge_again(folder: &Path) -> Judgement {
    let rest: Value = serde_json::from_slice(&fs::read(folder.join("rest.json")).unwrap()).unwrap();
    let run = Run {
        history: History::read(&folder.join("history.jsonl")),
        facts: serde_json::from_value(rest["facts"].clone()).unwrap(),
        given: serde_json::from_value(rest["given"].clone()).unwrap(),
        holds_expire: rest["holds_expire"] == true,
    };
    tell(&run)
}

async fn open_shop(steward: &mut Client, plan: &Plan, operator: &str) {
    for (sku, stock) in &plan.stock {
        let variant = json!({ "sku": sku, "price": { "amount": 700, "currency": "EUR" }, "stock": stock });
        let body = json!({ "title": sku, "variants": [variant] });
        let made = steward.post("/api/products", Some(operator), body).await;
        assert_eq!(made.status(), Some(201), "{made:?}");
    }
}
