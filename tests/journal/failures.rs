//! Servers die, stop and come back under a journal that is written all the while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use souk::persistence::jetstream::Replicated;
use souk::persistence::nats::{Nats as Connection, NatsOptions};
use souk::persistence::{AppendError, Journal, Position};

use crate::jetstream::{demands, open, options};
use crate::nats::Nats;
use crate::promises::{append_after, cart, next, payloads, within};

const WRITERS: u64 = 16;
/// Elections take their time on a machine that has much else to do.
const OUTAGE: Duration = Duration::from_secs(120);

/// Writers that go on whatever happens, and what they believe to have written.
struct Crowd {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    writers: Vec<tokio::task::JoinHandle<Wrote>>,
}

struct Wrote {
    payloads: Vec<String>,
    unknown: u32,
    longest: Duration,
}

impl Crowd {
    fn starts(journals: &[Arc<Replicated>]) -> Crowd {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writers = (0..WRITERS).map(|writer| {
            let journal = journals[writer as usize % journals.len()].clone();
            tokio::spawn(writes(journal, writer, stop.clone(), written.clone()))
        });
        let writers = writers.collect();
        Crowd { stop, written, writers }
    }

    /// Waits until so many more writes were answered.
    async fn writes(&self, more: u64, nats: &Nats) {
        let begun = self.written.load(Ordering::Relaxed);
        let awaited = async {
            while self.written.load(Ordering::Relaxed) < begun + more {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(OUTAGE, awaited).await.is_err() {
            let written = self.written.load(Ordering::Relaxed) - begun;
            let logs: Vec<String> = (0..nats.len()).map(|server| nats.log(server)).collect();
            panic!("only {written} of {more} writes were answered within {OUTAGE:?}:\n{}", logs.join("\n----\n"));
        }
    }

    /// Compares what was stored with what the writers heard; answers how many batches there are.
    async fn ends(self, journals: &[Arc<Replicated>]) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = 0;
        let (mut unknown, mut longest) = (0, Duration::ZERO);
        for (writer, task) in self.writers.into_iter().enumerate() {
            let wrote = within(task).await.expect("the writer ended well");
            for journal in journals {
                assert_eq!(payloads(&**journal, &cart(writer)).await, wrote.payloads, "writer {writer}");
            }
            total += wrote.payloads.len() as u64;
            unknown += wrote.unknown;
            longest = longest.max(wrote.longest);
        }
        println!("{total} batches, {unknown} writes of unknown outcome, the longest took {longest:.1?}");
        total
    }
}

async fn writes(journal: Arc<Replicated>, writer: u64, stop: Arc<AtomicBool>, written: Arc<AtomicU64>) -> Wrote {
    let entity = cart(writer);
    let mut wrote = Wrote { payloads: Vec::new(), unknown: 0, longest: Duration::ZERO };
    let (mut after, mut serial) = (Position(0), 0);
    while !stop.load(Ordering::Relaxed) {
        serial += 1;
        let payload = format!("{writer}-{serial}");
        let expected = wrote.payloads.len() as u64;
        let begun = Instant::now();
        match append_after(&*journal, &entity, expected, after, &payload).await {
            Ok(position) => {
                assert!(position > after);
                after = position;
                wrote.payloads.push(payload);
            }
            // Nobody else writes this entity: a conflict would be a write of its own taken for somebody else's.
            Err(AppendError::Conflict { .. }) => panic!("writer {writer}, batch {serial}: a conflict with itself"),
            Err(AppendError::NotWritten(_)) => {}
            Err(AppendError::Unknown(_)) => {
                wrote.unknown += 1;
                let stored = within(async {
                    loop {
                        match journal.read(&entity, 1, Position(0), usize::MAX).await {
                            Ok(stored) => return stored,
                            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                        }
                    }
                })
                .await;
                if let Some(newest) = stored.last().filter(|newest| newest.position > after) {
                    assert_eq!(newest.payload, payload.as_bytes());
                    after = newest.position;
                    wrote.payloads.push(payload);
                }
            }
        }
        wrote.longest = wrote.longest.max(begun.elapsed());
        written.store(written.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
    wrote
}

/// Follows from the beginning and demands every position, in order, once.
async fn sees_all(journal: &Arc<Replicated>, total: u64) {
    let mut stream = journal.follow(Position(0));
    for position in 1..=total {
        assert_eq!(next(&mut stream).await.batch.position, Position(position));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_missed_when_leaders_are_killed() {
    let mut nats = within(Nats::three()).await;
    let journals = [open(&nats, "souk").await, open(&nats, "souk").await];
    let follower = tokio::spawn({
        let journal = journals[1].clone();
        async move {
            // One that was there all the time: it must see the same as one that comes later.
            let mut stream = journal.follow(Position(0));
            let mut last = 0;
            while let Some(Ok(committed)) = futures_util::StreamExt::next(&mut stream).await {
                assert_eq!(committed.batch.position, Position(last + 1));
                last += 1;
            }
            last
        }
    });
    let crowd = Crowd::starts(&journals);
    crowd.writes(300, &nats).await;
    for _ in 0..2 {
        let leader = within(nats.awaits_leader("souk-journal")).await;
        nats.kill(leader);
        crowd.writes(300, &nats).await;
        nats.restart(leader);
        within(nats.ready()).await.expect("it comes back");
        crowd.writes(100, &nats).await;
    }
    let total = crowd.ends(&journals).await;
    for journal in &journals {
        sees_all(journal, total).await;
        assert_eq!(journal.highest(), Position(total));
    }
    journals[1].close();
    assert_eq!(within(follower).await.expect("it ended well"), total);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_missed_when_the_leader_stops_and_goes_on() {
    let nats = within(Nats::three()).await;
    let journals = [open(&nats, "souk").await, open(&nats, "souk").await];
    let crowd = Crowd::starts(&journals);
    crowd.writes(300, &nats).await;
    let leader = within(nats.awaits_leader("souk-journal")).await;
    nats.pause(leader);
    // Until the others have agreed on another one.
    crowd.writes(300, &nats).await;
    nats.resume(leader);
    crowd.writes(300, &nats).await;
    let total = crowd.ends(&journals).await;
    for journal in &journals {
        sees_all(journal, total).await;
    }
}

/// The leader wakes up, and still takes itself for the leader until the others are heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_newest_is_never_taken_from_a_leader_that_was_deposed() {
    let nats = within(Nats::three()).await;
    let journal = open(&nats, "souk").await;
    let mut after = append_after(&*journal, &cart("a"), 0, Position(0), "x").await.expect("stored");
    let leader = within(nats.awaits_leader("souk-journal")).await;
    let options = NatsOptions { urls: vec![nats.url(leader)], ..options(&nats, "souk") };
    let connection = Connection::connect(&options).await.expect("connected");
    let (beside, _) = Replicated::connect(&connection, &options, &demands(&nats), None).await.expect("it opens");
    assert_eq!(within(beside.newest(&cart("a"))).await, Ok(after));
    assert_eq!(within(beside.newest(&cart("b"))).await, Ok(Position(0)));

    nats.pause(leader);
    for expected in 1..20 {
        after = append_after(&*journal, &cart("a"), expected, after, "x").await.expect("stored");
    }
    let b = append_after(&*journal, &cart("b"), 0, Position(0), "x").await.expect("stored");
    nats.resume(leader);
    within(async {
        let mut answers = 0;
        while answers < 20 {
            let (newest_a, newest_b) = (beside.newest(&cart("a")).await, beside.newest(&cart("b")).await);
            assert!(newest_a.as_ref().is_err() || newest_a == Ok(after), "{newest_a:?}");
            assert!(newest_b.as_ref().is_err() || newest_b == Ok(b), "{newest_b:?}");
            answers += u32::from(newest_a.is_ok() && newest_b.is_ok());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_server_that_is_killed_and_comes_back_has_all_that_was_acknowledged() {
    let mut nats = within(Nats::one()).await;
    let journals = [open(&nats, "souk").await];
    let crowd = Crowd::starts(&journals);
    for _ in 0..3 {
        crowd.writes(300, &nats).await;
        nats.kill(0);
        nats.restart(0);
        within(nats.ready()).await.expect("it comes back");
    }
    crowd.writes(300, &nats).await;
    let total = crowd.ends(&journals).await;
    sees_all(&journals[0], total).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_in_time_is_said_to_be_unknown_or_not_written_and_never_stored_twice() {
    let mut nats = within(Nats::three()).await;
    let journal = open(&nats, "souk").await;
    let first = append_after(&*journal, &cart("a"), 0, Position(0), "first").await.expect("stored");
    // Two of three: nothing can be agreed on.
    let leader = within(nats.awaits_leader("souk-journal")).await;
    let gone = [(leader + 1) % 3, (leader + 2) % 3];
    gone.iter().for_each(|server| nats.kill(*server));
    let begun = Instant::now();
    let heard = append_after(&*journal, &cart("a"), 1, first, "second").await;
    assert!(matches!(heard, Err(AppendError::Unknown(_) | AppendError::NotWritten(_))), "{heard:?}");
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    gone.iter().for_each(|server| nats.restart(*server));
    within(nats.ready()).await.expect("they come back");
    within(nats.awaits_leader("souk-journal")).await;
    // What was unknown may land even now, and then stands in the way of the next once.
    within(async {
        loop {
            let Ok(newest) = journal.newest(&cart("a")).await else { continue };
            let Ok(stored) = journal.read(&cart("a"), 1, Position(0), 9).await else { continue };
            if append_after(&*journal, &cart("a"), stored.len() as u64, newest, "third").await.is_ok() {
                return;
            }
        }
    })
    .await;
    let stored = payloads(&*journal, &cart("a")).await;
    assert!(stored == ["first", "third"] || stored == ["first", "second", "third"], "{stored:?}");
}
