//! The promises under faults, kept.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::crowd::Plan;
use crate::faults::{Fault, Menu, Planned, Sort, schedule};
use crate::history::Outcome;
use crate::one_node::{self, OneNode};
use crate::three_nodes::{self, Doors, NODES, Options, ThreeNodes};
use crate::trial::{given_seed, judge_again, seed, tell_outages, trial};

/// Faults of the short run.
const FAULTS: usize = 5;
/// Seeds of the short run of three nodes, and faults of each.
const SEEDS: u64 = 10;
const FAULTS_OF_A_SEED: usize = 2;
/// What comes second there: none that takes ten seconds to recover from.
const SECOND: [Sort; 6] = [Sort::KillNode, Sort::KillLeader, Sort::Stop, Sort::Cut, Sort::ClockJump, Sort::RollNode];
/// Faults of each round of the soak.
const SOAK_FAULTS: usize = 10;
/// Longer than any write or command of a node waits.
const SOAK_SILENCE_MS: u64 = 14_000;
/// What `--leave-seconds` is when nobody says it.
const LEAVE_SECONDS_SHIPPED: u64 = 5;
const ROLL_REST_MS: u64 = 1_000;
/// Longer than a node takes for any answer.
const ROLL_PATIENCE_MS: u64 = 15_000;
const SOAK_MINUTES: u64 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_frozen_while_a_crowd_shops_one_node_keeps_every_promise_that_its_clients_can_check() {
    let menu =
        Menu { rest_ms: 1_200, down_ms: 500, stop_ms: 2_000, ..Menu::of(1, &[Sort::KillNode, Sort::KillNode, Sort::Stop]) };
    let seed = seed();
    let schedule = schedule(seed, &menu, FAULTS);
    let judgement = trial(OneNode::start(false).await, seed, &Plan::small(), &schedule).await.judgement;
    assert!(judgement.undecided() <= judgement.stock.len() / 2, "most of it was too much to search");
}

/// `SOUK_CHAOS_MINUTES` says how long.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a soak, by command"]
async fn soak_of_one_node() {
    let sorts = [&one_node::SORTS[..], &[Sort::ClockJump]].concat();
    soak(async |seed| {
        let schedule = schedule(seed, &Menu::of(1, &sorts), SOAK_FAULTS);
        trial(OneNode::start(true).await, seed, &Plan::small(), &schedule).await;
    })
    .await;
}

/// Rounds with one seed after the other until the time is over.
async fn soak(round: impl AsyncFn(u64)) {
    let minutes = std::env::var("SOUK_CHAOS_MINUTES").ok().and_then(|minutes| minutes.parse().ok()).unwrap_or(SOAK_MINUTES);
    let (began, span) = (Instant::now(), Duration::from_secs(minutes * 60));
    let first = seed();
    let mut rounds = 0;
    while rounds == 0 || began.elapsed() < span {
        let seed = first.wrapping_add(rounds);
        rounds += 1;
        println!("round {rounds}, SOUK_CHAOS_SEED={seed}, {} s of {} s", began.elapsed().as_secs(), span.as_secs());
        round(seed).await;
    }
}

/// What happens to three nodes: of ten seeds in a row, each begins with another sort of fault; the others are of the menu.
fn schedule_of_three(seed: u64, menu: &Menu, faults: usize) -> Vec<Planned> {
    let first = three_nodes::SORTS[usize::try_from(seed % three_nodes::SORTS.len() as u64).unwrap()];
    let mut planned = schedule(seed, &Menu { sorts: vec![first], ..menu.clone() }, 1);
    planned.extend(schedule(!seed, menu, faults - 1));
    planned
}

/// Ten seeds, or the one of `SOUK_CHAOS_SEED`.
#[tokio::test(flavor = "multi_thread")]
async fn through_the_death_and_silence_of_any_process_three_nodes_keep_every_promise_that_their_clients_can_check() {
    let options = Options { doors: Doors::BalancerAndNodes, clocks: true, servers_can_be_cut: false, leave_seconds: 2 };
    let menu = Menu { rest_ms: 1_500, down_ms: 1_000, cut_ms: 5_000, ..Menu::of(NODES, &SECOND) };
    let rounds = given_seed().map_or(SEEDS, |_| 1);
    let (first, began) = (seed(), Instant::now());
    let mut outages: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut undecided = 0;
    for seed in (0..rounds).map(|round| first.wrapping_add(round)) {
        println!("SOUK_CHAOS_SEED={seed}, {} s so far", began.elapsed().as_secs());
        let schedule = schedule_of_three(seed, &menu, FAULTS_OF_A_SEED);
        let shop = ThreeNodes::start(options).await;
        let ended = trial(shop, seed, &Plan::of_a_cluster(), &schedule).await;
        undecided += ended.judgement.undecided();
        for (sort, waited_ms) in ended.history.outages_ms() {
            outages.entry(sort.to_owned()).or_default().extend(waited_ms);
        }
    }
    println!("in all, {} s:", began.elapsed().as_secs());
    outages.values_mut().for_each(|waited_ms| waited_ms.sort_unstable());
    tell_outages(&outages.iter().map(|(sort, waited_ms)| (sort.as_str(), waited_ms.clone())).collect());
    let judged = usize::try_from(rounds).unwrap() * Plan::of_a_cluster().stock.len();
    assert!(undecided <= judged / 2, "most of it was too much to search");
}

/// `SOUK_CHAOS_MINUTES` says how long.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a soak, by command"]
async fn soak_of_three_nodes() {
    let options = Options { doors: Doors::BalancerAndNodes, clocks: true, servers_can_be_cut: true, leave_seconds: 2 };
    soak(async |seed| {
        let sorts = [&three_nodes::SORTS[..], &[Sort::CutLeader, Sort::CutLeader]].concat();
        let menu = Menu { stop_ms: SOAK_SILENCE_MS, cut_ms: SOAK_SILENCE_MS, ..Menu::of(NODES, &sorts) };
        let schedule = schedule_of_three(seed, &menu, SOAK_FAULTS);
        trial(ThreeNodes::start(options).await, seed, &Plan::of_a_cluster(), &schedule).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_three_nodes_is_drained_and_replaced_while_a_crowd_shops_and_nobody_sees_more_than_a_503_to_be_repeated() {
    let options =
        Options { doors: Doors::BalancerOnly, clocks: false, servers_can_be_cut: false, leave_seconds: LEAVE_SECONDS_SHIPPED };
    let schedule: Vec<Planned> =
        (0..NODES).map(|node| Planned { rest_ms: ROLL_REST_MS, fault: Fault::RollNode { node } }).collect();
    // Nobody gives up on what takes its time.
    let plan = Plan { patience_ms: ROLL_PATIENCE_MS..=ROLL_PATIENCE_MS, ..Plan::of_a_cluster() };
    let history = trial(ThreeNodes::start(options).await, seed(), &plan, &schedule).await.history;
    for (what, has_key) in [("with a key", true), ("without a key", false)] {
        let attempts = history.wishes.values().flat_map(|wish| &wish.attempts).filter(|asked| asked.key.is_some() == has_key);
        let (mut count, mut failed) = (0, Vec::new());
        for attempt in attempts {
            count += 1;
            if let Outcome::Unknown { why } = &attempt.outcome {
                failed.push((why, attempt));
            }
        }
        println!("  of {count} requests {what}, {} failed and were repeated", failed.len());
        let worse = failed.iter().find(|(why, _)| !why.starts_with("503"));
        assert!(worse.is_none(), "{worse:?}");
    }
}

#[test]
#[ignore = "judges what a run has left in SOUK_CHAOS_RUN"]
fn judged_again() {
    let folder = std::env::var("SOUK_CHAOS_RUN").expect("SOUK_CHAOS_RUN names the folder of a run");
    let findings = judge_again(Path::new(&folder)).findings;
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}
