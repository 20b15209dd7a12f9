//! Durable appends per second through the cluster's journal, beside bare publishes of the same bytes with the same
//! expectations in the same run, on one nats-server and on three, all with `sync_interval: always`.
//!
//! `cargo bench --bench cluster_journal`, or with a number of seconds for each figure: `… -- 5`. The servers run on the
//! same cores. The bare ones go to a stream of their own that republishes nothing and is followed by nobody; each is
//! measured in turns, several times over, and the medians are compared.

// A bench that cannot go on should stop with the reason.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

#[path = "../tests/support/nats.rs"]
mod nats;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use futures_util::StreamExt;
use souk::persistence::jetstream::{Demands, Replicated};
use souk::persistence::nats::{Nats as Connection, NatsOptions as Options};
use souk::persistence::{Append, AppendError, EntityKey, Journal, Position, Wake};
use tokio::sync::{mpsc, oneshot};

use crate::nats::{Nats, NatsOptions};

const PAYLOAD_BYTES: usize = 300;
const WRITERS: [usize; 4] = [1, 16, 256, 1_024];
const ROUNDS: usize = 3;
/// Callers that wait for the one hot entity.
const CALLERS: [usize; 3] = [64, 512, 2_048];

static BUSY: AtomicU64 = AtomicU64::new(0);

struct Figure {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

struct Load {
    stop: AtomicBool,
    total: AtomicU64,
}

/// Runs `writers` tasks for a while; each answers how long each of its writes took.
async fn measure<F>(writers: usize, time: Duration, write: impl Fn(usize, Arc<Load>) -> F) -> Figure
where
    F: Future<Output = Vec<Duration>> + Send + 'static,
{
    let load = Arc::new(Load { stop: AtomicBool::new(false), total: AtomicU64::new(0) });
    let begun = Instant::now();
    let tasks: Vec<_> = (0..writers).map(|writer| tokio::spawn(write(writer, load.clone()))).collect();
    tokio::time::sleep(time).await;
    load.stop.store(true, Ordering::Relaxed);
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.expect("ended"));
    }
    let elapsed = begun.elapsed();
    waits.sort_unstable();
    Figure {
        per_second: load.total.load(Ordering::Relaxed) as f64 / elapsed.as_secs_f64(),
        p50: waits[waits.len() / 2],
        p99: waits[waits.len() * 99 / 100],
    }
}

fn median(mut figures: Vec<Figure>) -> Figure {
    figures.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    figures.swap_remove(figures.len() / 2)
}

async fn append(journal: &Replicated, append: Append) -> Result<Position, AppendError> {
    let (done, answer) = oneshot::channel();
    journal.append(append, Box::new(move |result| drop(done.send(result))));
    answer.await.expect("answered")
}

async fn ours(journal: Arc<Replicated>, entity: EntityKey, load: Arc<Load>) -> Vec<Duration> {
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let (mut waits, mut expected, mut after) = (Vec::new(), 0, Position(0));
    while !load.stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let batch = Append { entity: entity.clone(), expected, after, count: 1, payload: payload.clone(), wake: Wake::Never };
        after = append(&journal, batch).await.expect("stored");
        expected += 1;
        waits.push(begun.elapsed());
    }
    load.total.fetch_add(expected, Ordering::Relaxed);
    waits
}

async fn bare(context: jetstream::Context, subject: String, load: Arc<Load>) -> Vec<Duration> {
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let (mut waits, mut sequence) = (Vec::new(), 0);
    while !load.stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        sequence = loop {
            let publish = PublishMessage::build().payload(payload.clone()).expected_last_subject_sequence(sequence);
            // A leader of three refuses for a moment what follows a message that it has just acknowledged.
            match context.send_publish(subject.clone(), publish).await.expect("sent").await {
                Ok(stored) => break stored.sequence,
                Err(_) => {
                    BUSY.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        waits.push(begun.elapsed());
    }
    load.total.fetch_add(waits.len() as u64, Ordering::Relaxed);
    waits
}

/// One entity, written as its actor does: all that queued behind the write in flight is the next one.
async fn hot(journal: Arc<Replicated>, entity: EntityKey, callers: usize, time: Duration) -> (f64, f64) {
    let (ask, mut asked) = mpsc::channel::<oneshot::Sender<()>>(callers);
    let load = Arc::new(Load { stop: AtomicBool::new(false), total: AtomicU64::new(0) });
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (ask, load) = (ask.clone(), load.clone());
            tokio::spawn(async move {
                while !load.stop.load(Ordering::Relaxed) {
                    let (answer, answered) = oneshot::channel();
                    ask.send(answer).await.expect("there");
                    answered.await.expect("answered");
                    load.total.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    drop(ask);
    let begun = Instant::now();
    let writer = tokio::spawn(async move {
        let (mut expected, mut after, mut messages) = (0, Position(0), 0u64);
        let mut waiting = Vec::new();
        while asked.recv_many(&mut waiting, callers).await > 0 {
            let count = waiting.len() as u32;
            let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES * waiting.len()]);
            let batch = Append { entity: entity.clone(), expected, after, count, payload, wake: Wake::Never };
            after = append(&journal, batch).await.expect("stored");
            expected += u64::from(count);
            messages += 1;
            for answer in waiting.drain(..) {
                let _ = answer.send(());
            }
        }
        messages
    });
    tokio::time::sleep(time).await;
    load.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("ended");
    }
    let messages = writer.await.expect("ended");
    let elapsed = begun.elapsed().as_secs_f64();
    (load.total.load(Ordering::Relaxed) as f64 / elapsed, messages as f64 / elapsed)
}

async fn open(nats: &Nats) -> (Arc<Replicated>, Connection) {
    let options = Options { urls: nats.urls(), ..Options::default() };
    let connection = Connection::connect(&options).await.expect("connected");
    let demands = Demands {
        monitors: (0..nats.len()).map(|index| format!("http://{}", nats.monitor_address(index))).collect(),
        allow_single_replica: true,
        ..Demands::default()
    };
    let (journal, _) = Replicated::connect(&connection, &options, &demands, None).await.expect("opens");
    (journal, connection)
}

async fn bench(servers: usize, time: Duration) {
    let nats = Nats::start(NatsOptions { servers, ..NatsOptions::default() }).await;
    let (journal, _connection) = open(&nats).await;
    let context = ContextBuilder::new().max_ack_inflight(100_000).build(nats.client().await);
    let config = jetstream::stream::Config {
        name: "bare".into(),
        subjects: vec!["bare.>".into()],
        num_replicas: servers.min(3),
        ..Default::default()
    };
    context.create_stream(config).await.expect("made");
    println!("{servers} server(s), durable appends/s of {PAYLOAD_BYTES} bytes, medians of {ROUNDS}");
    println!("{:>8} {:>10} {:>10} {:>7} {:>10} {:>10}", "writers", "bare", "journal", "ratio", "p50", "p99");
    for writers in WRITERS {
        let (mut bare_figures, mut our_figures) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let figure =
                measure(writers, time, |writer, load| bare(context.clone(), format!("bare.{writers}-{round}-{writer}"), load));
            bare_figures.push(figure.await);
            let figure = measure(writers, time, |writer, load| {
                let entity = EntityKey::new("cart", &format!("{writers}-{round}-{writer}"));
                ours(journal.clone(), entity, load)
            });
            our_figures.push(figure.await);
        }
        let (bare, ours) = (median(bare_figures), median(our_figures));
        let ratio = ours.per_second / bare.per_second * 100.0;
        println!(
            "{writers:>8} {:>10.0} {:>10.0} {ratio:>6.0}% {:>10.1?} {:>10.1?}",
            bare.per_second, ours.per_second, ours.p50, ours.p99
        );
    }
    println!("{} bare publishes were refused and sent again", BUSY.swap(0, Ordering::Relaxed));
    println!("one hot entity, {PAYLOAD_BYTES} bytes for each command");
    for callers in CALLERS {
        let entity = EntityKey::new("flash_sale", &callers.to_string());
        let (commands, messages) = hot(journal.clone(), entity, callers, time).await;
        println!("{callers:>8} callers: {commands:>8.0} commands/s in {messages:.0} messages/s");
    }
    reads(&journal).await;
}

/// What an activation and a new read model cost.
async fn reads(journal: &Arc<Replicated>) {
    let highest = journal.highest();
    let begun = Instant::now();
    let mut stream = journal.follow(Position(0));
    while let Some(Ok(committed)) = stream.next().await {
        if committed.batch.position >= highest {
            break;
        }
    }
    println!("{} batches followed from the first: {:.0}/s", highest.0, highest.0 as f64 / begun.elapsed().as_secs_f64());
    let entity = EntityKey::new("cart", "16-0-3");
    let newest = journal.newest(&entity).await.expect("known");
    let whole = journal.read(&entity, 1, Position(0), usize::MAX).await.expect("readable").len();
    let timed = async |what: &str, from: u64, near: Position, limit: usize| {
        let begun = Instant::now();
        for _ in 0..200 {
            journal.read(&entity, from, near, limit).await.expect("readable");
        }
        println!("{what} of an entity of {whole}: {:.2?}", begun.elapsed() / 200);
    };
    timed("the newest batch", whole as u64, newest, 1).await;
    timed("the first 256 batches", 1, Position(0), 256).await;
    timed("one batch from the middle, place unknown,", whole as u64 / 2, Position(0), 1).await;
    let begun = Instant::now();
    for id in 0..200 {
        journal.read(&EntityKey::new("cart", &format!("never-{id}")), 1, Position(0), 256).await.expect("readable");
    }
    println!("an entity that was never written: {:.2?}", begun.elapsed() / 200);
}

fn main() {
    let seconds = std::env::args().filter_map(|arg| arg.parse::<f64>().ok()).next().unwrap_or(2.0);
    let time = Duration::from_secs_f64(seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    for servers in [1, 3] {
        runtime.block_on(bench(servers, time));
    }
}
