//! Snapshots that all nodes see, so that an entity's new owner need not replay a long life.
//!
//! A bucket of NATS under the nodes' own snapshots, and as disposable: what fails is logged and means "none". Writing
//! never holds anybody up. What waits to be written is bounded, and of one entity only the newest waits; all that waits
//! goes out together, a few times a second, so that a busy entity costs no more than that.
//!
//! A snapshot that one message cannot bear is cut into chunks. The head (under the entity's key) says how large it is and
//! how it was cut; chunk `i` lies under the same key and `.i`. Chunks are written before their head, and its checksum
//! decides: a reader that meets the chunks of another version finds nothing. One that shrank leaves chunks behind, which
//! nobody reads.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::bucket::{Bucket, BucketError, BucketOptions, key_of};
use super::journal::{EntityKey, Version};
use super::snapshots::{Head, SNAPSHOT_MAX_BYTES, Snapshot, checksum};

/// How long somebody who comes to life waits for a snapshot.
const READ_MS: u64 = 300;
/// How long the pause between two rounds of writing is at least.
const ROUND_MS: u64 = 250;
/// And after one that failed.
const FAILED_ROUND_MS: u64 = 2_000;
/// Entities whose snapshots may wait; past it the one that waits longest is let go.
const WAITING_MAX: usize = 4_096;
const WAITING_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Messages that are written or read at once.
const AT_ONCE: usize = 8;
const CHUNK_BYTES: usize = 256 * 1024;
/// Of a server's largest message, what the subject, headers and head may take.
const MESSAGE_SLACK_BYTES: usize = 8 * 1024;
/// How the chunks are cut, in each head.
const CUT_BYTES: usize = 4;

pub struct SharedSnapshots {
    shared: Arc<Shared>,
    writer: tokio::task::JoinHandle<()>,
}

struct Shared {
    bucket: Bucket,
    chunk_bytes: usize,
    waiting: Mutex<Waiting>,
    /// Something waits.
    wanted: Notify,
    /// Nobody wants to wait for the next round.
    hurried: Notify,
    /// A round has ended.
    written: Notify,
}

#[derive(Default)]
struct Waiting {
    snapshots: HashMap<EntityKey, Snapshot>,
    /// Each of the same keys once, the one that waits longest first.
    order: VecDeque<EntityKey>,
    bytes: usize,
    is_writing: bool,
    /// Let go since somebody was told.
    dropped: usize,
}

impl Waiting {
    fn put(&mut self, entity: EntityKey, snapshot: Snapshot) {
        self.bytes += snapshot.bytes.len();
        match self.snapshots.insert(entity.clone(), snapshot) {
            Some(older) => self.bytes -= older.bytes.len(),
            None => self.order.push_back(entity),
        }
        while self.order.len() > WAITING_MAX || (self.bytes > WAITING_MAX_BYTES && self.order.len() > 1) {
            let Some(longest) = self.order.pop_front() else { break };
            self.bytes -= self.snapshots.remove(&longest).map_or(0, |snapshot| snapshot.bytes.len());
            self.dropped += 1;
        }
    }

    fn take(&mut self) -> Vec<(EntityKey, Snapshot)> {
        self.bytes = 0;
        self.is_writing = true;
        if self.dropped > 0 {
            tracing::warn!(dropped = self.dropped, "shared snapshots are written too slowly: some were let go");
            self.dropped = 0;
        }
        let mut taken = std::mem::take(&mut self.snapshots);
        self.order.drain(..).filter_map(|entity| taken.remove(&entity).map(|snapshot| (entity, snapshot))).collect()
    }

    fn is_idle(&self) -> bool {
        self.order.is_empty() && !self.is_writing
    }
}

impl SharedSnapshots {
    /// Opens the snapshots of the shop with this prefix, making their bucket if there is none.
    pub async fn open(client: &Client, prefix: &str, replicas: usize) -> Result<Self, BucketError> {
        let options = BucketOptions {
            name: format!("{prefix}-snapshots"),
            description: "Souk: the newest state of entities; may be deleted when no node runs".to_owned(),
            replicas,
            glances: true,
            notices: None,
        };
        let bucket = Bucket::open(client, &options).await?;
        let message_max_bytes = client.server_info().max_payload;
        let chunk_bytes = CHUNK_BYTES.min(message_max_bytes.saturating_sub(MESSAGE_SLACK_BYTES).max(1));
        let shared = Arc::new(Shared {
            bucket,
            chunk_bytes,
            waiting: Mutex::default(),
            wanted: Notify::new(),
            hurried: Notify::new(),
            written: Notify::new(),
        });
        Ok(SharedSnapshots { writer: tokio::spawn(Arc::clone(&shared).write_on()), shared })
    }

    /// Has the entity's snapshot replaced, soon.
    pub fn put(&self, entity: &EntityKey, snapshot: &Snapshot) {
        self.shared.waiting().put(entity.clone(), snapshot.clone());
        self.shared.wanted.notify_one();
    }

    /// The entity's snapshot, if there is a newer one than this within `READ_MS`.
    pub async fn newer(&self, entity: &EntityKey, than: Version) -> Option<Snapshot> {
        let found = tokio::time::timeout(Duration::from_millis(READ_MS), self.shared.read(entity, than)).await;
        match found {
            Ok(Ok(found)) => found,
            Ok(Err(reason)) => {
                tracing::debug!(%entity, reason, "the shared snapshot is not usable");
                None
            }
            Err(_) => {
                tracing::debug!(%entity, "the shared snapshot did not come in time");
                None
            }
        }
    }

    /// Waits until nothing waits to be written any more, and says whether it came to that.
    pub async fn flush(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        loop {
            let written = self.shared.written.notified();
            tokio::pin!(written);
            written.as_mut().enable();
            if self.shared.waiting().is_idle() {
                return true;
            }
            self.shared.hurried.notify_one();
            if tokio::time::timeout_at(until, written).await.is_err() {
                return false;
            }
        }
    }
}

impl Drop for SharedSnapshots {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write_on(self: Arc<Self>) {
        loop {
            self.wanted.notified().await;
            let round = self.waiting().take();
            let writing = stream::iter(round).map(|(entity, snapshot)| self.write(entity, snapshot));
            // The first that does not get through speaks for all behind it: whoever waits for NATS here makes a queue.
            let done = writing.buffer_unordered(AT_ONCE).try_for_each(|()| async { Ok(()) }).await;
            self.waiting().is_writing = false;
            self.written.notify_waiters();
            let pause = match done {
                Ok(()) => ROUND_MS,
                Err(error) => {
                    tracing::warn!(%error, "shared snapshots were not written");
                    FAILED_ROUND_MS
                }
            };
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(pause)) => {}
                () = self.hurried.notified() => {}
            }
        }
    }

    async fn write(&self, entity: EntityKey, snapshot: Snapshot) -> Result<(), BucketError> {
        let bytes = &snapshot.bytes;
        if bytes.len() > SNAPSHOT_MAX_BYTES {
            return Ok(());
        }
        let key = key_of(&entity);
        let mut head = BytesMut::from(Head::of(&entity, &snapshot).encode().as_slice());
        head.put_u32_le(self.chunk_bytes as u32);
        if bytes.len() <= self.chunk_bytes {
            head.put_slice(bytes);
        } else {
            let chunks = (0..bytes.len()).step_by(self.chunk_bytes).enumerate().map(|(index, start)| {
                let chunk = bytes.slice(start..bytes.len().min(start + self.chunk_bytes));
                let key = format!("{key}.{index}");
                async move { self.bucket.put(&key, chunk).await }
            });
            stream::iter(chunks).buffer_unordered(AT_ONCE).try_for_each(|()| async { Ok(()) }).await?;
        }
        self.bucket.put(&key, head.freeze()).await
    }

    async fn read(&self, entity: &EntityKey, than: Version) -> Result<Option<Snapshot>, String> {
        let key = key_of(entity);
        let Some(value) = self.bucket.glance(&key).await.map_err(|error| error.to_string())? else { return Ok(None) };
        let head = Head::decode(&value).ok_or("its head is cut")?;
        let (len, rest) = (head.len as usize, value.slice(Head::BYTES.min(value.len())..));
        let cut = rest.first_chunk::<CUT_BYTES>().ok_or("its head is cut")?;
        let (cut, inline) = (u32::from_le_bytes(*cut) as usize, rest.slice(CUT_BYTES..));
        if head.version <= than {
            return Ok(None);
        }
        if cut == 0 || len > SNAPSHOT_MAX_BYTES {
            return Err("its head is wrong".into());
        }
        let bytes = if len <= cut { inline } else { self.chunks(&key, len, len.div_ceil(cut)).await? };
        let snapshot = Snapshot { version: head.version, position: head.position, format: head.format, bytes };
        if snapshot.bytes.len() != len || checksum(entity, &snapshot) != head.crc {
            return Err("its checksum does not match".into());
        }
        Ok(Some(snapshot))
    }

    async fn chunks(&self, key: &str, len: usize, count: usize) -> Result<Bytes, String> {
        let chunks = (0..count).map(|index| async move {
            let chunk = self.bucket.glance(&format!("{key}.{index}")).await.map_err(|error| error.to_string())?;
            chunk.ok_or_else(|| format!("chunk {index} is missing"))
        });
        let whole = BytesMut::with_capacity(len);
        let whole = stream::iter(chunks).buffered(AT_ONCE).try_fold(whole, |mut whole, chunk| async move {
            whole.extend_from_slice(&chunk);
            Ok(whole)
        });
        Ok(whole.await?.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal::Position;
    use super::*;

    fn key(id: &str) -> EntityKey {
        EntityKey::new("cart", id)
    }

    fn snapshot(version: Version, len: usize) -> Snapshot {
        Snapshot { version, position: Position(version), format: 1, bytes: vec![0; len].into() }
    }

    #[test]
    fn of_one_entity_only_the_newest_waits_and_it_keeps_its_turn() {
        let mut waiting = Waiting::default();
        waiting.put(key("a"), snapshot(1, 10));
        waiting.put(key("b"), snapshot(1, 10));
        waiting.put(key("a"), snapshot(2, 30));
        assert_eq!((waiting.bytes, waiting.is_idle()), (40, false));
        let taken: Vec<_> = waiting.take().into_iter().map(|(entity, snapshot)| (entity, snapshot.version)).collect();
        assert_eq!(taken, [(key("a"), 2), (key("b"), 1)]);
        assert_eq!((waiting.bytes, waiting.order.len(), waiting.is_writing), (0, 0, true));
    }

    #[test]
    fn no_more_waits_than_the_bounds_and_the_longest_is_let_go_first() {
        let mut waiting = Waiting::default();
        for n in 0..WAITING_MAX + 10 {
            waiting.put(key(&n.to_string()), snapshot(1, 1));
        }
        assert_eq!((waiting.order.len(), waiting.snapshots.len(), waiting.dropped), (WAITING_MAX, WAITING_MAX, 10));
        assert!(!waiting.snapshots.contains_key(&key("9")) && waiting.snapshots.contains_key(&key("10")));

        let mut waiting = Waiting::default();
        for n in 0..3 {
            waiting.put(key(&n.to_string()), snapshot(1, WAITING_MAX_BYTES / 2 + 1));
        }
        assert_eq!((waiting.order.len(), waiting.bytes), (1, WAITING_MAX_BYTES / 2 + 1));
        assert_eq!(waiting.take().len(), 1);
    }
}
