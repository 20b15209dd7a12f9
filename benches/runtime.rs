//! Durable entity commands a second through the whole runtime, beside bare fjall committing the same bytes in the same
//! run; and what an activation and an idle resident cost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/runtime/tally.rs"]
mod tally;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use souk::actors::gate::Bounds;
use souk::actors::{Caller, Config, Runtime};
use souk::domain::CommandId;
use souk::persistence::{Embedded, EntityKey, Journal, Options, Position, Snapshots};
use tally::{Command, Tally};

const SPAN: Duration = Duration::from_secs(3);
const CALLERS: [usize; 4] = [1, 16, 256, 2048];

fn main() {
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if std::env::args().any(|argument| argument == "activation") {
        return tokio.block_on(activation());
    }
    println!(
        "durable commands/s, {} s each; bare = fjall committing records of the same size, grouped the same way",
        SPAN.as_secs()
    );
    println!("{:>8} {:>14} {:>14} {:>14} {:>12}", "callers", "bare fjall", "many entities", "one entity", "many / bare");
    for callers in CALLERS {
        let bare = bare_fjall(callers);
        let many = tokio.block_on(commands(callers, |caller, _| format!("t{caller}")));
        let one = tokio.block_on(commands(callers, |_, _| "hot".to_owned()));
        println!("{callers:>8} {bare:>14.0} {many:>14.0} {one:>14.0} {:>12.2}", many / bare);
    }
    tokio.block_on(activation());
    tokio.block_on(memory());
}

async fn start(dir: &std::path::Path, config: Config) -> (Runtime, Arc<Embedded>) {
    let (journal, _) = Embedded::open(&dir.join("journal"), Options::default()).unwrap();
    let snapshots = Arc::new(Snapshots::open(&dir.join("snapshots")));
    (tally::builder(journal.clone(), snapshots, config).start().await.unwrap(), journal)
}

fn roomy() -> Config {
    Config { bounds: Bounds { per_entity: 4_096, per_node: 65_536 }, ..Config::default() }
}

fn caller(command: String) -> Caller {
    Caller::new(CommandId(command), "bench", "bench")
}

async fn commands(callers: usize, id: impl Fn(usize, u64) -> String + Send + Sync + 'static) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let (runtime, journal) = start(dir.path(), roomy()).await;
    let (done, id) = (Arc::new(AtomicU64::new(0)), Arc::new(id));
    let began = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|n| {
            let (runtime, done, id) = (runtime.clone(), done.clone(), id.clone());
            tokio::spawn(async move {
                let mut round = 0;
                while began.elapsed() < SPAN {
                    round += 1;
                    let asked = runtime.ask::<Tally>(&id(n, round), Command::Add(1), caller(format!("{n}-{round}"))).await;
                    asked.unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let rate = done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    drop(runtime);
    journal.close();
    rate
}

/// Threads that wait for a group commit of their record, as the journal's callers do, with nothing around it.
fn bare_fjall(callers: usize) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::builder(dir.path()).manual_journal_persist(true).open().unwrap();
    let records = database.keyspace("records", KeyspaceCreateOptions::default).unwrap();
    // The size of one Tally record with its envelope.
    let payload = vec![b'x'; 430];
    let began = Instant::now();
    let mut written = 0_u64;
    // With one group of `callers` records in each flush this is the most that any caller-paced journal could reach.
    while began.elapsed() < SPAN {
        let mut batch = database.batch().durability(Some(PersistMode::SyncData));
        for caller in 0..callers {
            batch.insert(&records, format!("tally/t{caller}\0{written:016}"), payload.as_slice());
        }
        batch.commit().unwrap();
        written += callers as u64;
    }
    written as f64 / began.elapsed().as_secs_f64()
}

async fn activation() {
    let dir = tempfile::tempdir().unwrap();
    // No snapshot is written, so each activation replays its hundred records.
    let config = Config { snapshot_every: u64::MAX, ..roomy() };
    let (runtime, journal) = start(dir.path(), config).await;
    const ENTITIES: usize = 200;
    for n in 0..100 * ENTITIES {
        let asked = runtime.ask::<Tally>(&format!("t{}", n % ENTITIES), Command::Add(1), caller(n.to_string())).await;
        asked.unwrap();
    }
    drop(runtime);
    journal.close();
    std::fs::remove_dir_all(dir.path().join("snapshots")).unwrap();
    let (runtime, journal) = start(dir.path(), config).await;
    let mut times: Vec<Duration> = Vec::new();
    for n in 0..ENTITIES {
        let began = Instant::now();
        let total = runtime.view::<Tally, _>(&format!("t{n}"), |state, _| state.total).await.unwrap();
        times.push(began.elapsed());
        assert_eq!(total, 100);
    }
    times.sort();
    println!("activation of an entity with 100 records: p50 {:?}, p99 {:?}", times[ENTITIES / 2], times[ENTITIES * 99 / 100]);
    drop(runtime);
    journal.close();
}

async fn memory() {
    let dir = tempfile::tempdir().unwrap();
    let (runtime, journal) = start(dir.path(), roomy()).await;
    const ENTITIES: usize = 50_000;
    let before = resident_bytes();
    let tasks: Vec<_> = (0..64)
        .map(|t| {
            let runtime = runtime.clone();
            tokio::spawn(async move {
                for n in (t..ENTITIES).step_by(64) {
                    runtime.ask::<Tally>(&format!("t{n}"), Command::Add(1), caller(n.to_string())).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let census = runtime.census().residents["tally"];
    let after = resident_bytes();
    println!(
        "{census} idle residents: {} bytes each (resident set, the journal's memtables included)",
        (after - before) / census as u64
    );
    let _ = journal.read(&EntityKey::new("tally", "t0"), 1, Position(0), 1).await;
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
