use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use souk::actors::{Caller, Config, Runtime};
use souk::domain::{CommandId, Timestamp};
use souk::persistence::jetstream::{Demands, Replicated};
use souk::persistence::journal::Done;
use souk::persistence::migration::migrate;
use souk::persistence::nats::NatsOptions as NatsConnectOptions;
use souk::persistence::record::{Cause, PayloadWriter};
use souk::persistence::{
    Agenda, Append, Batch, Committed, Embedded, EntityKey, Journal, Options, Position, ReadError, SharedSnapshots, Snapshot,
    Snapshots, Version, Wake,
};
use tempfile::TempDir;

use crate::nats::{Nats, NatsOptions};
use crate::tally::{Command, Event, Tally, builder};
use crate::{DEADLINE, until};

const PREFIX: &str = "souk";
const RECORDS: u64 = 100_000;

async fn shared(nats: &Nats) -> SharedSnapshots {
    SharedSnapshots::open(&nats.client().await, PREFIX, nats.len().min(3)).await.unwrap()
}

/// A node's snapshots, its own being none yet.
async fn node(nats: &Nats) -> (TempDir, Snapshots) {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(folder.path()).over(shared(nats).await);
    (folder, snapshots)
}

fn key(id: &str) -> EntityKey {
    EntityKey::new("cart", id)
}

fn snapshot(version: Version, len: usize) -> Snapshot {
    let bytes: Vec<u8> = (0..len).map(|i| ((i as u64 * 31 + version) % 251) as u8).collect();
    Snapshot { version, position: Position(version + 7), format: 3, bytes: bytes.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_any_size_that_one_node_wrote_is_there_for_another() {
    let nats = Nats::three().await;
    let ((_a, one), (_b, two)) = (node(&nats).await, node(&nats).await);
    let chunk = 256 * 1024;
    let sizes = [0, 1, 5_000, chunk - 1, chunk, chunk + 1, 3 * chunk, 5_000_000];
    for size in sizes {
        one.put(&key(&format!("of {size} bytes.")), &snapshot(size as u64 + 17, size));
    }
    assert!(one.flush(DEADLINE).await);
    for size in sizes {
        let entity = key(&format!("of {size} bytes."));
        assert_eq!(two.get(&entity), None, "this node has none of its own");
        // A replica may hear of it a moment later.
        until("it is there", async || two.newer(&entity, 16).await.is_some()).await;
        let found = two.newer(&entity, 16).await.unwrap();
        assert!(found == snapshot(size as u64 + 17, size), "{size}");
        assert_eq!(two.newer(&entity, size as u64 + 17).await, None, "nothing newer");
        assert_eq!(two.get(&entity).unwrap().version, found.version, "from then on it is here");
    }
    assert_eq!(two.newer(&key("unknown"), 0).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn young_entities_are_not_shared_and_a_newer_snapshot_replaces_an_older() {
    let nats = Nats::one().await;
    let ((_a, one), (_b, two)) = (node(&nats).await, node(&nats).await);
    one.put(&key("young"), &snapshot(16, 10));
    for (version, size) in [(17, 600_000), (20, 300_000), (30, 10), (40, 900_000)] {
        one.put(&key("old"), &snapshot(version, size));
        assert!(one.flush(DEADLINE).await);
        let found = two.newer(&key("old"), 0).await.unwrap();
        assert!(found == snapshot(version, size), "{version}");
    }
    assert_eq!(two.newer(&key("young"), 0).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_torn_missing_or_wrong_is_no_snapshot() {
    let nats = Nats::one().await;
    let (_a, one) = node(&nats).await;
    let bucket = jetstream::new(nats.client().await).get_key_value("souk-snapshots").await.unwrap();
    let whole = async || {
        one.put(&key("a"), &snapshot(20, 600_000));
        assert!(one.flush(DEADLINE).await);
        let (_b, fresh) = node(&nats).await;
        assert!(fresh.newer(&key("a"), 0).await.is_some());
    };
    for harm in 0..6 {
        whole().await;
        match harm {
            0 => bucket.delete("cart.a.1").await.unwrap(),
            1 => drop(bucket.put("cart.a.0", vec![0; 256 * 1024].into()).await.unwrap()),
            2 => drop(bucket.put("cart.a.2", "short".into()).await.unwrap()),
            3 => drop(bucket.put("cart.a", "cut".into()).await.unwrap()),
            4 => {
                let mut head = bucket.get("cart.a").await.unwrap().unwrap().to_vec();
                head[0] ^= 1;
                bucket.put("cart.a", head.into()).await.unwrap();
            }
            _ => bucket.delete("cart.a").await.unwrap(),
        }
        let (_b, fresh) = node(&nats).await;
        assert_eq!(fresh.newer(&key("a"), 0).await, None, "harm {harm}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_servers_nobody_waits_long_and_nothing_fails() {
    let mut nats = Nats::one().await;
    let (_a, one) = node(&nats).await;
    one.put(&key("a"), &snapshot(20, 100));
    assert!(one.flush(DEADLINE).await);
    nats.kill(0);
    let begun = Instant::now();
    assert_eq!(one.newer(&key("b"), 0).await, None);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    for n in 0..10_000 {
        one.put(&key("a"), &snapshot(20 + n, 100));
    }
    assert_eq!(one.get(&key("a")).unwrap().version, 10_019);
    nats.restart(0);
    nats.ready().await.unwrap();
    let (_b, two) = node(&nats).await;
    until("the newest is shared again", async || {
        one.put(&key("a"), &snapshot(10_020, 100));
        two.newer(&key("a"), 10_019).await.is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_no_larger_than_the_server_takes() {
    let options = NatsOptions { extra: "max_payload: 64KB".into(), ..NatsOptions::default() };
    let nats = Nats::start(options).await;
    let ((_a, one), (_b, two)) = (node(&nats).await, node(&nats).await);
    one.put(&key("a"), &snapshot(20, 1_000_000));
    assert!(one.flush(DEADLINE).await);
    assert!(two.newer(&key("a"), 0).await == Some(snapshot(20, 1_000_000)));
}

/// Counts what is read of it.
struct Counting {
    inner: Arc<dyn Journal>,
    batches: AtomicUsize,
}

impl Journal for Counting {
    fn append(&self, append: Append, done: Done) {
        self.inner.append(append, done);
    }

    fn read<'a>(
        &'a self,
        entity: &'a EntityKey,
        from: Version,
        near: Position,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Batch>, ReadError>> {
        async move {
            let read = self.inner.read(entity, from, near, limit).await?;
            self.batches.fetch_add(read.len(), Ordering::Relaxed);
            Ok(read)
        }
        .boxed()
    }

    fn newest<'a>(&'a self, entity: &'a EntityKey) -> BoxFuture<'a, Result<Position, ReadError>> {
        self.inner.newest(entity)
    }

    fn follow(&self, after: Position) -> BoxStream<'static, Result<Committed, ReadError>> {
        self.inner.follow(after).boxed()
    }

    fn end(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(std::future::ready(Ok(self.highest())))
    }

    fn highest(&self) -> Position {
        self.inner.highest()
    }

    fn agenda<'a>(&'a self, after: Option<&'a EntityKey>, limit: usize) -> BoxFuture<'a, Result<Agenda, ReadError>> {
        self.inner.agenda(after, limit)
    }
}

/// Writes a tally's life: batches of 50 records, each of which adds 1.
async fn write_life(journal: &Embedded, id: &str, records: u64) {
    let entity = EntityKey::new("tally", id);
    let mut after = Position(0);
    for first in (0..records).step_by(50) {
        let mut payload = PayloadWriter::default();
        for version in first + 1..=first + 50 {
            let command = CommandId(format!("c{version}"));
            let cause = Cause { command: &command, correlation: "r", asker: "t", time: Timestamp::from_millis(0) };
            payload.event(&entity, version, cause, &Event::Added { id: id.into(), amount: 1 }).unwrap();
            payload.answer(&command, &serde_json::json!({ "Settled": { "Ok": version } })).unwrap();
        }
        let (count, payload) = (payload.count(), payload.finish(Wake::Never).unwrap());
        let append = Append { entity: entity.clone(), expected: first, after, count, payload: payload.into(), wake: Wake::Never };
        let (done, landed) = tokio::sync::oneshot::channel();
        journal.append(append, Box::new(move |result| drop(done.send(result))));
        after = landed.await.unwrap().unwrap();
    }
}

async fn total(runtime: &Runtime, id: &str) -> i64 {
    runtime.view::<Tally, _>(id, |state, _| state.total).await.unwrap()
}

/// How long it took without and with another node's snapshot, and how many batches were read with it.
async fn comes_to_life(nats: &Nats, journal: Arc<dyn Journal>) -> (Duration, Duration, usize) {
    let counting = || Arc::new(Counting { inner: journal.clone(), batches: AtomicUsize::new(0) });

    let (_a, former) = node(nats).await;
    let former = Arc::new(former);
    let alone = counting();
    let runtime = builder(alone.clone(), former.clone(), Config::default()).start().await.unwrap();
    let begun = Instant::now();
    assert_eq!(total(&runtime, "a").await, RECORDS as i64);
    let replayed = begun.elapsed();
    assert!(alone.batches.load(Ordering::Relaxed) >= RECORDS as usize / 50, "nothing was there to begin from");
    let command = || Caller::new(CommandId::from("one more"), "tester", "test");
    runtime.ask::<Tally>("a", Command::Add(1), command()).await.unwrap();
    assert!(former.flush(DEADLINE).await);

    let (_b, next) = node(nats).await;
    let counting = counting();
    let runtime = builder(counting.clone(), Arc::new(next), Config::default()).start().await.unwrap();
    let begun = Instant::now();
    assert_eq!(total(&runtime, "a").await, RECORDS as i64 + 1);
    let took = begun.elapsed();
    let read = counting.batches.load(Ordering::Relaxed);
    // What was answered by the former owner is known to the next.
    runtime.ask::<Tally>("a", Command::Add(1), command()).await.unwrap();
    assert_eq!(total(&runtime, "a").await, RECORDS as i64 + 1);
    (replayed, took, read)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_with_100_000_records_comes_to_life_from_another_nodes_snapshot() {
    let nats = Nats::three().await;
    let folder = tempfile::tempdir().unwrap();
    let (embedded, _) = Embedded::open(&folder.path().join("journal"), Options::default()).unwrap();
    write_life(&embedded, "a", RECORDS).await;
    let options = NatsConnectOptions { urls: nats.urls(), name: "test".into(), ..NatsConnectOptions::default() };
    let monitors = (0..nats.len()).map(|index| format!("http://{}", nats.monitor_address(index))).collect();
    let demands = Demands { monitors, replicas: Some(3), ..Demands::default() };
    let connection = souk::persistence::nats::Nats::connect(&options).await.unwrap();
    let (stream, _) = Replicated::connect(&connection, &options, &demands, None).await.unwrap();
    migrate(&*embedded, &*stream, |_| {}).await.unwrap();

    let journals: [(&str, Arc<dyn Journal>); 2] = [("the embedded journal", embedded), ("a stream on three servers", stream)];
    for (on, journal) in journals {
        let (replayed, took, read) = comes_to_life(&nats, journal).await;
        eprintln!("{RECORDS} records on {on}: {replayed:?} replayed, {took:?} from a shared snapshot and {read} batches");
        assert!(read < 300, "{read} batches were read");
        assert!(took < replayed / 2, "{took:?} instead of {replayed:?}");
    }
}
