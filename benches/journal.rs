//! Durable appends per second through `Embedded`, beside a bare fjall group commit of the same bytes in the same run.
//!
//! `cargo bench --bench journal`, or with a number of seconds for each figure: `cargo bench --bench journal -- 5`.
//! The bare one is what a single thread can do that drains a queue into one key space and flushes: no versions, no
//! index, no followers. Each is measured in turns, several times over, and the medians are compared.

// A bench that cannot go on should stop with the reason.
#![allow(clippy::expect_used)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use souk::persistence::{Append, AppendError, Done, Embedded, EntityKey, Journal, Options, Position, Wake};
use tokio::sync::oneshot;

const PAYLOAD_BYTES: usize = 300;
const WRITERS: [usize; 4] = [1, 16, 256, 2_048];
const ROUNDS: usize = 3;

/// The least that could be measured: a queue, one thread, one batch, one flush.
#[derive(Clone)]
struct Bare(Arc<(Mutex<Waiting>, Condvar)>);

/// What is queued, and whether that is all.
type Waiting = (Vec<(Append, Done)>, bool);

impl Bare {
    fn open(dir: &Path) -> (Bare, std::thread::JoinHandle<()>) {
        let database = Database::builder(dir).manual_journal_persist(true).open().expect("opens");
        let space = database.keyspace("bare", KeyspaceCreateOptions::default).expect("opens");
        let bare = Bare(Arc::default());
        let queue = bare.0.clone();
        let thread = std::thread::spawn(move || {
            loop {
                let mut waiting = queue.0.lock().expect("lock");
                while waiting.0.is_empty() && !waiting.1 {
                    waiting = queue.1.wait(waiting).expect("lock");
                }
                let drained = std::mem::take(&mut waiting.0);
                drop(waiting);
                if drained.is_empty() {
                    return;
                }
                let mut batch = database.batch().durability(Some(PersistMode::SyncData));
                for (append, _) in &drained {
                    let mut key = append.entity.as_str().as_bytes().to_vec();
                    key.extend_from_slice(&append.expected.to_be_bytes());
                    batch.insert(&space, key, &append.payload[..]);
                }
                batch.commit().expect("commits");
                for (_, done) in drained {
                    done(Ok(Position(0)));
                }
            }
        });
        (bare, thread)
    }

    fn append(&self, append: Append, done: Done) {
        let (queue, arrived) = &*self.0;
        let mut waiting = queue.lock().expect("lock");
        waiting.0.push((append, done));
        if waiting.0.len() == 1 {
            arrived.notify_one();
        }
    }

    fn close(&self) {
        self.0.0.lock().expect("lock").1 = true;
        self.0.1.notify_one();
    }
}

struct Figure {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

/// `writers` tasks, each with an entity of its own and one write in flight, as entity actors have.
async fn measure(writers: usize, time: Duration, append: impl Fn(Append, Done) + Send + Sync + 'static) -> Figure {
    let append = Arc::new(append);
    let stop = Arc::new(AtomicBool::new(false));
    let total = Arc::new(AtomicU64::new(0));
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let begun = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let (append, stop, total, payload) = (append.clone(), stop.clone(), total.clone(), payload.clone());
            tokio::spawn(async move {
                let entity = EntityKey::new("cart", &format!("01KAJ4Y3N0Q6M8W2Z{writer:09}"));
                let mut version = 0;
                let mut waits = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let (done, answer) = oneshot::channel::<Result<Position, AppendError>>();
                    let asked = Instant::now();
                    let entity = entity.clone();
                    let batch = Append {
                        entity,
                        expected: version,
                        after: Position(0),
                        count: 1,
                        payload: payload.clone(),
                        wake: Wake::Never,
                    };
                    append(batch, Box::new(move |result| drop(done.send(result))));
                    answer.await.expect("answered").expect("stored");
                    waits.push(asked.elapsed());
                    version += 1;
                }
                total.fetch_add(version, Ordering::Relaxed);
                waits
            })
        })
        .collect();
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.expect("ended"));
    }
    waits.sort_unstable();
    Figure {
        per_second: total.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64(),
        p50: waits[waits.len() / 2],
        p99: waits[waits.len() * 99 / 100],
    }
}

fn median(mut figures: Vec<Figure>) -> Figure {
    figures.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    figures.swap_remove(figures.len() / 2)
}

fn main() {
    let seconds = std::env::args().filter_map(|arg| arg.parse::<f64>().ok()).next().unwrap_or(2.0);
    let time = Duration::from_secs_f64(seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    println!("durable appends/s of {PAYLOAD_BYTES} bytes, median of {ROUNDS} rounds of {seconds} s");
    println!("{:>8} {:>12} {:>12} {:>7} {:>12} {:>12}", "writers", "bare fjall", "Embedded", "ratio", "p50", "p99");
    for writers in WRITERS {
        let (mut bare_figures, mut our_figures) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let dir = tempfile::tempdir().expect("a folder");
            let (bare, thread) = Bare::open(dir.path());
            let queue = bare.clone();
            bare_figures.push(runtime.block_on(measure(writers, time, move |append, done| queue.append(append, done))));
            bare.close();
            thread.join().expect("ended");
            let dir = tempfile::tempdir().expect("a folder");
            let (journal, _) = Embedded::open(dir.path(), Options::default()).expect("opens");
            let queue = journal.clone();
            our_figures.push(runtime.block_on(measure(writers, time, move |append, done| queue.append(append, done))));
            journal.close();
        }
        let (bare, ours) = (median(bare_figures), median(our_figures));
        let ratio = ours.per_second / bare.per_second * 100.0;
        println!(
            "{writers:>8} {:>12.0} {:>12.0} {ratio:>6.0}% {:>12.1?} {:>12.1?}",
            bare.per_second, ours.per_second, ours.p50, ours.p99
        );
    }
    times(&runtime);
}

/// What an activation and a rebuild of a read model cost.
fn times(runtime: &tokio::runtime::Runtime) {
    use futures_util::StreamExt;
    let dir = tempfile::tempdir().expect("a folder");
    let begun = Instant::now();
    let (journal, _) = Embedded::open(dir.path(), Options::default()).expect("opens");
    println!("created in {:.1?}", begun.elapsed());
    let queue = journal.clone();
    runtime.block_on(measure(1_024, Duration::from_secs(2), move |append, done| queue.append(append, done)));
    journal.close();
    drop(journal);
    let begun = Instant::now();
    let (journal, report) = Embedded::open(dir.path(), Options::default()).expect("opens");
    let highest = report.highest;
    println!("{} batches reopened in {:.1?}", highest.0, begun.elapsed());
    runtime.block_on(async {
        let begun = Instant::now();
        let mut stream = journal.follow(Position(0));
        while let Some(Ok(committed)) = stream.next().await {
            if committed.batch.position == highest {
                break;
            }
        }
        println!("followed from the disk: {:.0} batches/s", highest.0 as f64 / begun.elapsed().as_secs_f64());
        let entity = EntityKey::new("cart", &format!("01KAJ4Y3N0Q6M8W2Z{:09}", 7));
        let begun = Instant::now();
        for _ in 0..1_000 {
            assert_eq!(journal.read(&entity, 1, Position(0), 10).await.expect("readable").len(), 10);
        }
        println!("10 batches of one entity read in {:.1?}", begun.elapsed() / 1_000);
    });
}
