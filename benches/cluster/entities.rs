//! Commands a second through whole runtimes over a replicated journal: one entity that everybody wants, and many that are
//! asked now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use futures_util::StreamExt;
use souk::actors::members::Members;
use souk::actors::{Caller, Config, Runtime};
use souk::cluster::{self, Cluster, Name, NatsWire, NatsWireOptions, State};
use souk::domain::CommandId;
use souk::node::follow_members;
use souk::persistence::Snapshots;
use souk::persistence::jetstream::{Demands, Replicated};
use souk::persistence::nats::{Nats as Connection, NatsOptions};
use tempfile::TempDir;
use tokio::sync::mpsc;
use ulid::Ulid;

use crate::nats::Nats;
use crate::tally::{self, Command, Tally};
use crate::{Line, ms, percentile, progress};

const TIME: Duration = Duration::from_secs(8);
/// As many as may wait for one entity by default.
const CALLERS: [usize; 2] = [512, 1_000];
const HOT_TARGET: f64 = 50_000.0;
const ENTITIES: u64 = 10_000;
const PER_SECOND: u64 = 5_000;
const SPREAD_TARGET: Duration = Duration::from_millis(6);
/// About what a tally writes for one command.
const PAYLOAD_BYTES: usize = 430;
const OPENING: usize = 256;
/// Before that, connections, caches and the servers' files have found their sizes.
const WARM: Duration = Duration::from_secs(2);

/// A member of a cluster with tallies only, in this process.
struct Member {
    runtime: Runtime,
    cluster: Cluster,
    _dir: TempDir,
}

impl Member {
    async fn join(nats: &Nats, name: &str) -> Member {
        let dir = tempfile::tempdir().unwrap();
        let options = NatsOptions { urls: nats.urls(), name: name.into(), ..NatsOptions::default() };
        let connection = Connection::connect(&options).await.unwrap();
        let monitors = (0..nats.len()).map(|index| format!("http://{}", nats.monitor_address(index))).collect();
        let demands = Demands { monitors, ..Demands::default() };
        let agenda = Some(dir.path().join("agenda"));
        let (journal, prepared) = Replicated::connect(&connection, &options, &demands, agenda).await.unwrap();
        let snapshots = Arc::new(Snapshots::open(&dir.path().join("snapshots")));
        let wire = NatsWireOptions { prefix: connection.prefix().as_str().to_owned(), replicas: Some(prepared.replicas) };
        let wire = NatsWire::open(connection.client().clone(), &wire).await.unwrap();
        let options = cluster::Options { name: Name::parse(name).unwrap(), http: format!("http://{name}"), born: Ulid::new() };
        let cluster = Cluster::join(options, Arc::new(wire)).await.unwrap();
        let builder = tally::builder(journal, snapshots, Config::default());
        let runtime = builder.among(Arc::new(Members::new(cluster.clone()))).start().await.unwrap();
        let serving = runtime.clone();
        cluster.serve(Arc::new(move |question, _| {
            let serving = serving.clone();
            Box::pin(async move { serving.serve(&question).await.into() })
        }));
        tokio::spawn(follow_members(cluster.clone(), runtime.clone()));
        Member { runtime, cluster, _dir: dir }
    }

    async fn join_all(nats: &Nats, names: &[&str]) -> Vec<Member> {
        let mut members = Vec::new();
        for name in names {
            members.push(Member::join(nats, name).await);
        }
        for member in &members {
            let mut view = member.cluster.view();
            let among = view.wait_for(|view| view.state == State::Active && view.owners.names().len() == names.len());
            tokio::time::timeout(Duration::from_secs(30), among).await.unwrap().unwrap();
        }
        members
    }
}

fn caller(number: u64) -> Caller {
    Caller::new(CommandId(number.to_string()), "bench", "bench")
}

/// One entity that everybody wants, at its own node.
pub async fn hot() -> Vec<Line> {
    let nats = Nats::three().await;
    let members = Member::join_all(&nats, &["n1"]).await;
    let mut lines = Vec::new();
    for callers in CALLERS {
        let id: Arc<str> = format!("hot-{callers}").into();
        let (done, numbers) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let begun = Instant::now();
        let tasks: Vec<_> = (0..callers)
            .map(|_| {
                let (runtime, id) = (members[0].runtime.clone(), id.clone());
                let (done, numbers) = (done.clone(), numbers.clone());
                tokio::spawn(async move {
                    while begun.elapsed() < WARM + TIME {
                        let number = numbers.fetch_add(1, Ordering::Relaxed);
                        runtime.ask::<Tally>(&id, Command::Add(1), caller(number)).await.unwrap();
                        if begun.elapsed() > WARM {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let rate = done.load(Ordering::Relaxed) as f64 / (begun.elapsed() - WARM).as_secs_f64();
        progress(&format!("  {callers} callers: {rate:.0} commands/s"));
        lines.push(Line {
            what: format!("one hot entity, {callers} callers"),
            target: format!("≥ {HOT_TARGET}/s"),
            measured: format!("{rate:.0}/s"),
            is_met: Some(rate >= HOT_TARGET),
        });
    }
    lines
}

/// Sends at a steady rate; what had to wait to be sent has waited.
async fn steadily<F>(what: &str, ask: impl Fn(u64) -> F) -> Steady
where
    F: Future<Output = bool> + Send + 'static,
{
    let (heard, mut hear) = mpsc::unbounded_channel();
    let begun = Instant::now();
    let mut late = Duration::ZERO;
    for number in 0..PER_SECOND * (WARM + TIME).as_secs() {
        let meant_for = begun + Duration::from_micros(number * 1_000_000 / PER_SECOND);
        if meant_for > Instant::now() {
            tokio::time::sleep_until(meant_for.into()).await;
        }
        if meant_for - begun > WARM {
            late = late.max(meant_for.elapsed());
        }
        let (asked, heard) = (ask(number), heard.clone());
        tokio::spawn(async move {
            let is_done = asked.await;
            let _ = heard.send((meant_for, meant_for.elapsed(), is_done));
        });
    }
    drop(heard);
    let (mut times, mut failed) = (Vec::new(), 0);
    while let Some((meant_for, took, is_done)) = hear.recv().await {
        if meant_for - begun > WARM {
            times.push(took);
            failed += usize::from(!is_done);
        }
    }
    let rate = times.len() as f64 / (begun.elapsed() - WARM).as_secs_f64();
    times.sort_unstable();
    let [p50, p99, last] = [500, 990, 1_000].map(|per_mille| percentile(&times, per_mille));
    progress(&format!(
        "  {what}: {rate:.0}/s, p50 {}, p99 {}, last {}, {failed} failed; the load was late by {} at most",
        ms(p50),
        ms(p99),
        ms(last),
        ms(late)
    ));
    Steady { p50, p99, failed }
}

struct Steady {
    p50: Duration,
    p99: Duration,
    failed: usize,
}

/// The same rate of bare publishes with expectations, to a stream that nobody follows.
async fn bare(nats: &Nats) -> Steady {
    let context = ContextBuilder::new().max_ack_inflight(100_000).build(nats.client().await);
    let subjects = vec!["bare.>".into()];
    let config = jetstream::stream::Config { name: "bare".into(), subjects, num_replicas: 3, ..Default::default() };
    context.create_stream(config).await.unwrap();
    let sequences: Arc<Vec<AtomicU64>> = Arc::new((0..ENTITIES).map(|_| AtomicU64::new(0)).collect());
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    steadily("bare publishes", |number| {
        let (context, sequences, payload) = (context.clone(), sequences.clone(), payload.clone());
        async move {
            let id = number % ENTITIES;
            let sequence = &sequences[id as usize];
            let publish = PublishMessage::build().payload(payload);
            let publish = publish.expected_last_subject_sequence(sequence.load(Ordering::Relaxed));
            let Ok(sent) = context.send_publish(format!("bare.t{id}"), publish).await else { return false };
            match sent.await {
                Ok(stored) => sequence.store(stored.sequence, Ordering::Relaxed),
                Err(_) => return false,
            }
            true
        }
    })
    .await
}

/// Many entities, asked at a steady rate.
pub async fn spread() -> Vec<Line> {
    let mut lines = Vec::new();
    let nats = Nats::three().await;
    let of_bare = bare(&nats).await;
    for names in [&["n1"][..], &["n1", "n2", "n3"]] {
        let nats = Nats::three().await;
        let members = Member::join_all(&nats, names).await;
        let runtimes: Vec<Runtime> = members.iter().map(|member| member.runtime.clone()).collect();
        let runtimes = &runtimes;
        let opened = futures_util::stream::iter(0..ENTITIES).map(|number| async move {
            let runtime = &runtimes[number as usize % runtimes.len()];
            runtime.ask::<Tally>(&format!("t{number}"), Command::Add(1), caller(number)).await.unwrap();
        });
        opened.buffer_unordered(OPENING).for_each(|()| async {}).await;
        let nodes = names.len();
        let Steady { p50, p99, failed } = steadily(&format!("{nodes} node(s)"), |number| {
            let runtime = runtimes[number as usize % runtimes.len()].clone();
            let id = format!("t{}", fastrand::u64(..ENTITIES));
            async move { runtime.ask::<Tally>(&id, Command::Add(1), caller(ENTITIES + number)).await.is_ok() }
        })
        .await;
        let how = if nodes == 1 { "one node" } else { "three nodes, each command at any of them" };
        lines.push(Line {
            what: format!("{PER_SECOND} commands/s over {ENTITIES} entities, {how}: p99"),
            target: format!("≤ {}", ms(SPREAD_TARGET)),
            measured: format!(
                "{} (p50 {}, {failed} failed; bare publishes {}, p50 {})",
                ms(p99),
                ms(p50),
                ms(of_bare.p99),
                ms(of_bare.p50)
            ),
            is_met: Some(p99 <= SPREAD_TARGET && failed == 0),
        });
    }
    lines
}
