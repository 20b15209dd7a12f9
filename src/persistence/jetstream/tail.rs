//! The whole stream in order, as every node follows it: no gap, no duplicate.
//!
//! What the stream republishes is fast and may be lost anywhere: by a leader that dies between storing and sending, a
//! connection that breaks, a subscriber that is behind. Sequences show it. A hole is read from the stream itself, and
//! about once a second, and after each reconnection, the stream's end is looked at, so that the last message is not
//! missed either. Followers get the newest from a ring in memory and all before it from the stream.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::envelope::Subjects;
use super::pace::{Backoff, Dice};
use super::stream::{JetStream, Stored};
use crate::persistence::journal::{Committed, EntityKey, Position, ReadError, Wake};

/// What followers can be served from memory.
const RING_BATCHES: usize = 16_384;
const RING_BYTES: usize = 16 * 1024 * 1024;
/// What a follower takes at a time.
const CHUNK_BATCHES: usize = 512;
/// How often the stream's end is looked at.
const LOOK_MS: u64 = 1_000;
/// One attempt at filling a hole asks so often.
const FILL_PAGES_MAX: u32 = 20;
/// A replica that is catching up may have holes. One that is there after this long is in the stream.
const HOLE_MS: u64 = 60_000;
/// A deposed leader may give an older end for a while. Longer than this, and the stream has lost something.
const SHORT_MS: u64 = 60_000;

/// A batch with its wake.
#[derive(Debug, Clone)]
pub struct Entry {
    pub committed: Committed,
    pub wake: Wake,
}

/// An entity, and where a batch of it stands.
pub type EntityAt = (EntityKey, u64);

impl Entry {
    fn sequence(&self) -> u64 {
        self.committed.batch.position.0
    }
}

#[derive(Default)]
struct Ring {
    entries: VecDeque<Entry>,
    bytes: usize,
}

#[derive(Debug, Clone, Default)]
struct Progress {
    /// All up to here was seen.
    reached: u64,
    /// Why nothing after `reached` can be read.
    broken: Option<ReadError>,
    closed: bool,
}

pub struct Tail {
    stream: Arc<dyn JetStream>,
    subjects: Subjects,
    dice: Arc<Dice>,
    ring: Mutex<Ring>,
    progress: watch::Sender<Progress>,
    doubts: Mutex<Doubts>,
}

/// What looks wrong with the stream, and since when.
#[derive(Debug, Default)]
struct Doubts {
    hole: Option<Instant>,
    short: Option<Instant>,
}

impl Tail {
    /// A tail that has seen everything up to `reached`. It moves while `run` is polled.
    pub fn new(stream: Arc<dyn JetStream>, subjects: Subjects, dice: Arc<Dice>, reached: u64) -> Arc<Tail> {
        let progress = watch::Sender::new(Progress { reached, ..Progress::default() });
        Arc::new(Tail { stream, subjects, dice, ring: Mutex::default(), progress, doubts: Mutex::default() })
    }

    pub fn reached(&self) -> u64 {
        self.progress.borrow().reached
    }

    /// The newest batch that is in memory.
    pub fn newest(&self) -> Option<EntityAt> {
        let ring = self.ring();
        let Committed { entity, batch } = &ring.entries.back()?.committed;
        Some((entity.clone(), batch.position.0))
    }

    /// Followers end.
    pub fn close(&self) {
        self.progress.send_modify(|progress| progress.closed = true);
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the stream until it is closed, or until what comes next can never be read.
    pub async fn run(self: Arc<Tail>) {
        let mut progress = self.progress.subscribe();
        let ended = progress.wait_for(|progress| progress.closed || progress.broken.is_some());
        tokio::select! {
            biased;
            _ = ended => {}
            never = self.follow_stream() => match never {},
        }
    }

    async fn follow_stream(&self) -> std::convert::Infallible {
        let mut connections = self.stream.connections();
        let mut backoff = Backoff::default();
        loop {
            let Ok(tail) = self.stream.tail().await else {
                backoff.wait(&self.dice).await;
                continue;
            };
            let mut tail = tail.ready_chunks(CHUNK_BATCHES);
            // What was stored before the subscription was there.
            let mut next_look = Instant::now();
            loop {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(next_look) => {
                        self.look_at_end().await;
                        next_look = Instant::now() + self.dice.about(Duration::from_millis(LOOK_MS));
                    }
                    changed = connections.changed() => match changed {
                        Ok(()) => next_look = Instant::now(),
                        Err(_) => break,
                    },
                    arrived = tail.next() => match arrived {
                        Some(messages) => self.arrived(messages).await,
                        None => break,
                    },
                }
            }
            backoff.wait(&self.dice).await;
        }
    }

    /// Takes what continues what was seen, and fills the holes that it shows.
    async fn arrived(&self, mut messages: Vec<Stored>) {
        // They come in order but for the moments around a change of leaders.
        messages.sort_by_key(|message| message.sequence);
        let mut messages = VecDeque::from(messages);
        while let Some(next) = messages.front() {
            let reached = self.reached();
            if next.sequence <= reached {
                messages.pop_front();
            } else if next.sequence == reached + 1 {
                let expected = reached + 1..;
                let run = messages.iter().zip(expected).take_while(|(message, sequence)| message.sequence == *sequence).count();
                let run: Vec<Stored> = messages.drain(..run).collect();
                // A copy that was damaged on its way is read from the stream instead.
                if self.take(run).is_err() {
                    self.fill(reached + 1).await;
                }
            } else {
                let hole = next.sequence - 1;
                self.fill(hole).await;
                if self.reached() < hole {
                    // Nobody has it now; a later look will find it.
                    return;
                }
            }
        }
    }

    async fn look_at_end(&self) {
        let Ok(extent) = self.stream.extent().await else { return };
        let reached = self.reached();
        if extent.last >= reached {
            self.doubts().short = None;
            if extent.last > reached {
                self.fill(extent.last).await;
            }
            return;
        }
        let since = *self.doubts().short.get_or_insert_with(Instant::now);
        if since.elapsed() >= Duration::from_millis(SHORT_MS) {
            let what = format!("the stream ends at {}, but this was acknowledged", extent.last);
            self.broken(ReadError::Corrupt { place: format!("position {reached}"), what });
        }
    }

    fn doubts(&self) -> MutexGuard<'_, Doubts> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from the stream what is missing up to `last`.
    async fn fill(&self, last: u64) {
        let mut backoff = Backoff::default();
        for _ in 0..FILL_PAGES_MAX {
            let reached = self.reached();
            if reached >= last {
                return;
            }
            let Ok(page) = self.stream.ask_any(None, reached + 1, CHUNK_BATCHES).await else { return };
            match in_order(page, reached) {
                Ok(page) if !page.is_empty() => {
                    self.doubts().hole = None;
                    if let Err(error) = self.take(page) {
                        return self.broken(error);
                    }
                    backoff = Backoff::default();
                }
                Ok(_) => backoff.wait(&self.dice).await,
                Err(hole) => {
                    let since = *self.doubts().hole.get_or_insert_with(Instant::now);
                    if since.elapsed() >= Duration::from_millis(HOLE_MS) {
                        return self.broken(hole);
                    }
                    backoff.wait(&self.dice).await;
                }
            }
        }
    }

    /// Adds messages that continue what was seen.
    fn take(&self, messages: Vec<Stored>) -> Result<(), ReadError> {
        let mut reached = self.reached();
        let mut result = Ok(());
        {
            let mut ring = self.ring();
            for stored in messages {
                match entry(&self.subjects, &stored) {
                    Ok(entry) => {
                        reached = stored.sequence;
                        ring.bytes += entry.committed.batch.payload.len();
                        ring.entries.push_back(entry);
                    }
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
            while ring.entries.len() > RING_BATCHES || ring.bytes > RING_BYTES {
                match ring.entries.pop_front() {
                    Some(oldest) => ring.bytes -= oldest.committed.batch.payload.len(),
                    None => break,
                }
            }
        }
        self.progress.send_if_modified(|progress| std::mem::replace(&mut progress.reached, reached) != reached);
        result
    }

    fn broken(&self, error: ReadError) {
        tracing::error!(%error, "the journal cannot be followed any further");
        self.progress.send_modify(|progress| progress.broken = Some(error));
    }

    /// From memory, when nothing between `after` and the ring's oldest batch has been dropped from it.
    fn recent(&self, after: u64) -> Option<VecDeque<Entry>> {
        let ring = self.ring();
        let oldest = ring.entries.front()?.sequence();
        let skip = usize::try_from((after + 1).checked_sub(oldest)?).ok()?;
        Some(ring.entries.iter().skip(skip).take(CHUNK_BATCHES).cloned().collect())
    }

    /// Everything after `after`, in order, without end.
    pub fn follow(self: &Arc<Tail>, after: Position) -> BoxStream<'static, Result<Entry, ReadError>> {
        let follower = Follower {
            progress: self.progress.subscribe(),
            tail: self.clone(),
            after: after.0,
            chunk: VecDeque::new(),
            ended: false,
        };
        stream::unfold(follower, Follower::next).boxed()
    }
}

/// What of a page continues `reached` without a hole; an error when its first message does not.
fn in_order(page: Vec<Stored>, reached: u64) -> Result<Vec<Stored>, ReadError> {
    if let Some(first) = page.first()
        && first.sequence != reached + 1
    {
        let what = format!("it is missing: position {} comes next", first.sequence);
        return Err(ReadError::Corrupt { place: format!("position {}", reached + 1), what });
    }
    let in_order = page.iter().zip(reached + 1..).take_while(|(stored, sequence)| stored.sequence == *sequence).count();
    Ok(page.into_iter().take(in_order).collect())
}

fn entry(subjects: &Subjects, stored: &Stored) -> Result<Entry, ReadError> {
    subjects.batch(stored).map(|(committed, wake)| Entry { committed, wake })
}

struct Follower {
    progress: watch::Receiver<Progress>,
    tail: Arc<Tail>,
    /// The position last taken into `chunk`.
    after: u64,
    chunk: VecDeque<Entry>,
    ended: bool,
}

impl Follower {
    async fn next(mut self) -> Option<(Result<Entry, ReadError>, Follower)> {
        loop {
            if let Some(entry) = self.chunk.pop_front() {
                return Some((Ok(entry), self));
            }
            if self.ended {
                return None;
            }
            let Progress { reached, broken, closed } = self.progress.borrow_and_update().clone();
            if closed {
                return None;
            }
            if reached <= self.after {
                if let Some(error) = broken {
                    self.ended = true;
                    return Some((Err(error), self));
                }
                if self.progress.changed().await.is_err() {
                    return None;
                }
                continue;
            }
            self.chunk = match self.tail.recent(self.after) {
                Some(chunk) => chunk,
                None => match self.read_stream().await {
                    Ok(chunk) => chunk,
                    Err(error) => {
                        // What cannot be read is not skipped: the follower sees the error and then the end.
                        self.ended = true;
                        return Some((Err(error), self));
                    }
                },
            };
            if let Some(last) = self.chunk.back() {
                self.after = last.sequence();
            }
        }
    }

    /// What comes after `after`, from any replica. It is known to be there.
    async fn read_stream(&mut self) -> Result<VecDeque<Entry>, ReadError> {
        let mut backoff = Backoff::default();
        let mut hole_since = None;
        loop {
            if self.progress.borrow().closed {
                return Ok(VecDeque::new());
            }
            match self.tail.stream.ask_any(None, self.after + 1, CHUNK_BATCHES).await {
                Ok(page) => match in_order(page, self.after) {
                    Ok(page) if !page.is_empty() => {
                        return page.iter().map(|stored| entry(&self.tail.subjects, stored)).collect();
                    }
                    Ok(_) => {}
                    Err(hole) => {
                        let since = *hole_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= Duration::from_millis(HOLE_MS) {
                            return Err(hole);
                        }
                    }
                },
                Err(error) => tracing::debug!(%error, after = self.after, "the journal cannot be followed just now"),
            }
            backoff.wait(&self.tail.dice).await;
        }
    }
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tail").field("progress", &*self.progress.borrow()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::future::BoxFuture;
    use tokio::sync::mpsc;

    use super::super::envelope::WriteId;
    use super::super::stream::{Extent, Message, NoAnswer, PublishError, Which};
    use super::*;
    use crate::persistence::journal::{Append, EntityKey};
    use crate::persistence::nats::Prefix;

    /// A stream whose tail and replicas are as unkind as real ones.
    struct Model {
        stored: Mutex<Vec<Stored>>,
        chance: Mutex<fastrand::Rng>,
        tails: Mutex<Vec<mpsc::UnboundedSender<Stored>>>,
        connections: watch::Sender<u64>,
        /// While it is set nothing fails, so that everything can settle.
        kind: std::sync::atomic::AtomicBool,
    }

    impl Model {
        fn new(seed: u64) -> Arc<Model> {
            Arc::new(Model {
                stored: Mutex::default(),
                chance: Mutex::new(fastrand::Rng::with_seed(seed)),
                tails: Mutex::default(),
                connections: watch::Sender::new(0),
                kind: false.into(),
            })
        }

        fn one_in(&self, n: u32) -> bool {
            !self.kind.load(std::sync::atomic::Ordering::Relaxed) && self.chance.lock().unwrap().u32(..n) == 0
        }

        fn store(&self, subjects: &Subjects, version: u64) {
            let append = Append {
                entity: EntityKey::new("cart", "a"),
                expected: version,
                after: Position(version),
                count: 1,
                payload: Bytes::from(version.to_string()),
                wake: Wake::Never,
            };
            let Message { subject, head, payload, .. } = subjects.message(&append, WriteId(0));
            let stored = {
                let mut all = self.stored.lock().unwrap();
                let sequence = all.len() as u64 + 1;
                all.push(Stored { sequence, subject, head: Some(head), payload });
                all.clone()
            };
            let mut tails = self.tails.lock().unwrap();
            if self.one_in(40) {
                tails.clear();
            }
            if self.one_in(40) {
                self.connections.send_modify(|count| *count += 1);
            }
            for tail in tails.iter() {
                let mut sent = vec![stored.len() - 1];
                if self.one_in(5) {
                    sent.clear();
                }
                // An older one again, or late.
                if self.one_in(5) {
                    sent.insert(0, self.chance.lock().unwrap().usize(..stored.len()));
                }
                for at in sent {
                    let mut copy = stored[at].clone();
                    if self.one_in(20) {
                        copy.payload = Bytes::from_static(b"damaged on its way");
                    }
                    let _ = tail.send(copy);
                }
            }
        }
    }

    impl JetStream for Model {
        fn publish<'a>(&'a self, _: &'a Message, _: Duration) -> BoxFuture<'a, Result<u64, PublishError>> {
            unreachable!("a tail only reads")
        }

        fn ask_leader<'a>(&'a self, _: &'a str, _: Which, _: Duration) -> BoxFuture<'a, Result<Option<Stored>, NoAnswer>> {
            unreachable!()
        }

        fn ask_any<'a>(&'a self, _: Option<&'a str>, from: u64, limit: usize) -> BoxFuture<'a, Result<Vec<Stored>, NoAnswer>> {
            Box::pin(async move {
                tokio::task::yield_now().await;
                if self.one_in(4) {
                    return Err(NoAnswer("an election".into()));
                }
                let mut known = self.stored.lock().unwrap().clone();
                if self.one_in(3) {
                    known.truncate(self.chance.lock().unwrap().usize(..=known.len()));
                }
                let limit = if self.one_in(3) { 1 } else { limit };
                Ok(known.into_iter().skip(from as usize - 1).take(limit).collect())
            })
        }

        fn ask_newest<'a>(&'a self, _: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Stored>, NoAnswer>> {
            unreachable!()
        }

        fn proven_end(&self, _: Duration) -> BoxFuture<'_, Result<u64, NoAnswer>> {
            unreachable!()
        }

        fn extent(&self) -> BoxFuture<'_, Result<Extent, NoAnswer>> {
            Box::pin(async move {
                if self.one_in(3) {
                    return Err(NoAnswer("an election".into()));
                }
                let last = self.stored.lock().unwrap().len() as u64;
                let last = if self.one_in(5) { last / 2 } else { last };
                Ok(Extent { first: 1, last, identity: String::new() })
            })
        }

        fn tail(&self) -> BoxFuture<'_, Result<BoxStream<'static, Stored>, NoAnswer>> {
            Box::pin(async move {
                let (sender, receiver) = mpsc::unbounded_channel();
                self.tails.lock().unwrap().push(sender);
                Ok(stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver))).boxed())
            })
        }

        fn connections(&self) -> watch::Receiver<u64> {
            self.connections.subscribe()
        }

        fn message_bytes_max(&self) -> usize {
            1 << 20
        }
    }

    async fn sees_all(seed: u64) {
        const STORED: u64 = 400;
        let subjects = Subjects::new(&Prefix::default());
        let model = Model::new(seed);
        let mut chance = fastrand::Rng::with_seed(seed);
        let before = chance.u64(..50);
        (0..before).for_each(|version| model.store(&subjects, version));
        let tail = Tail::new(model.clone(), subjects.clone(), Arc::new(Dice::new(seed)), before);
        let task = tokio::spawn(tail.clone().run());
        let follow = |after: u64| {
            let tail = tail.clone();
            async move {
                let mut entries = tail.follow(Position(after));
                for sequence in after + 1..=STORED {
                    let entry = entries.next().await.unwrap().unwrap();
                    assert_eq!((entry.sequence(), entry.committed.batch.first), (sequence, sequence), "seed {seed}");
                }
            }
        };
        let followers: Vec<_> = [0, before, before / 2, 200].map(|after| tokio::spawn(follow(after))).into_iter().collect();
        for version in before..STORED {
            model.store(&subjects, version);
            if chance.u8(..4) == 0 {
                tokio::time::sleep(Duration::from_millis(chance.u64(..200))).await;
            }
        }
        model.kind.store(true, std::sync::atomic::Ordering::Relaxed);
        for follower in followers {
            tokio::time::timeout(Duration::from_secs(600), follower).await.unwrap_or_else(|_| panic!("seed {seed}")).unwrap();
        }
        assert_eq!(tail.reached(), STORED);
        tail.close();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn followers_see_every_batch_once_and_in_order_however_unkind_the_stream() {
        for seed in 0..300 {
            sees_all(seed).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_lost_what_was_seen_of_it_is_an_error_and_not_a_surprise() {
        let subjects = Subjects::new(&Prefix::default());
        let model = Model::new(1);
        model.kind.store(true, std::sync::atomic::Ordering::Relaxed);
        (0..5).for_each(|version| model.store(&subjects, version));
        let tail = Tail::new(model.clone(), subjects, Arc::new(Dice::new(1)), 5);
        let mut entries = tail.follow(Position(5));
        let task = tokio::spawn(tail.clone().run());
        model.stored.lock().unwrap().truncate(3);
        let heard = tokio::time::timeout(Duration::from_secs(600), entries.next()).await.unwrap();
        assert!(matches!(heard, Some(Err(ReadError::Corrupt { .. }))), "{heard:?}");
        assert!(entries.next().await.is_none());
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_hole_that_stays_is_an_error_with_its_place() {
        let subjects = Subjects::new(&Prefix::default());
        let model = Model::new(1);
        model.kind.store(true, std::sync::atomic::Ordering::Relaxed);
        (0..5).for_each(|version| model.store(&subjects, version));
        model.stored.lock().unwrap().remove(2);
        let tail = Tail::new(model.clone(), subjects, Arc::new(Dice::new(1)), 4);
        let mut entries = tail.follow(Position(0));
        assert!(entries.next().await.unwrap().is_ok() && entries.next().await.unwrap().is_ok());
        // The model skips by place, so the fourth stands where the third should.
        let heard = tokio::time::timeout(Duration::from_secs(600), entries.next()).await.unwrap();
        assert!(matches!(&heard, Some(Err(ReadError::Corrupt { place, .. })) if place == "position 3"), "{heard:?}");
    }
}
