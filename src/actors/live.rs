//! The hub of live push: one task follows the journal and hands each batch to whoever watches its entity.
//!
//! A watcher registers first and reads the journal afterwards, so that nothing can fall between the two; versions tell
//! it what it has already seen. The hub itself promises only this: each batch of a watched entity is offered in order,
//! and a watcher that could not take one is told that it missed something. It must never wait for a watcher.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::shown;
use super::topic::topic_name;
use crate::persistence::record::Payload;
use crate::persistence::{Committed, EntityKey, Journal, Position, Version};

/// How long the follower waits before it follows anew after the journal could not be read.
const FOLLOW_AGAIN: Duration = Duration::from_secs(1);

/// Whoever wants to hear of an entity's new batches.
pub trait Watcher: Send + Sync + 'static {
    /// Must return at once. A watcher that has no room takes note that it missed something.
    fn push(&self, pushed: &Arc<Pushed>);
}

/// A batch on its way to those who watch its entity; made into text once for all of them.
#[derive(Debug)]
pub struct Pushed {
    pub entity: EntityKey,
    pub first: Version,
    pub last: Version,
    payload: Bytes,
    frames: OnceLock<Vec<(Version, Utf8Bytes)>>,
}

impl Pushed {
    pub fn new(committed: Committed) -> Self {
        let (first, last) = (committed.batch.first, committed.batch.last());
        Pushed { entity: committed.entity, first, last, payload: committed.batch.payload, frames: OnceLock::new() }
    }

    /// The batch's records as WebSocket texts, each with its version.
    pub fn frames(&self) -> &[(Version, Utf8Bytes)] {
        self.frames.get_or_init(|| frames(&self.entity, &self.payload))
    }
}

/// A payload's records as WebSocket texts. What cannot be read is logged and left out: the journal's own readers are the
/// ones to raise the alarm.
pub fn frames(entity: &EntityKey, payload: &[u8]) -> Vec<(Version, Utf8Bytes)> {
    #[derive(Serialize)]
    struct Frame<'a> {
        #[serde(rename = "type")]
        frame_type: &'static str,
        topic: &'a str,
        seq: Version,
        event: &'a RawValue,
    }
    let Some(topic) = topic_name(entity) else { return Vec::new() };
    let render = || -> Result<Vec<_>, serde_json::Error> {
        let payload = Payload::parse(payload)?;
        payload
            .events
            .iter()
            .map(|record| {
                let event = shown::event(entity.kind(), entity.id(), record)?;
                let frame = Frame { frame_type: "event", topic: &topic, seq: record.version, event: &event };
                Ok((record.version, serde_json::to_string(&frame)?.into()))
            })
            .collect()
    };
    render().unwrap_or_else(|error| {
        tracing::error!(%entity, %error, "a batch cannot be pushed: its payload is unreadable");
        Vec::new()
    })
}

/// The hub. Clones share it.
#[derive(Clone)]
pub struct Live(Arc<Hub>);

/// A watcher under the id of its watch.
type Watching = (u64, Arc<dyn Watcher>);

struct Hub {
    watched: DashMap<EntityKey, Vec<Watching>>,
    /// Number of watches: while it is 0 a batch costs one load.
    watches: AtomicUsize,
    next_id: AtomicU64,
    follower: OnceLock<tokio::task::AbortHandle>,
}

/// Held for as long as the watcher wants to hear.
#[must_use]
pub struct Watch {
    hub: Arc<Hub>,
    key: EntityKey,
    id: u64,
}

impl Live {
    /// Follows the journal from its newest batch on. Call it inside the node's tokio runtime.
    pub fn start(journal: Arc<dyn Journal>) -> Self {
        let hub = Arc::new(Hub {
            watched: DashMap::new(),
            watches: AtomicUsize::new(0),
            next_id: AtomicU64::new(0),
            follower: OnceLock::new(),
        });
        let after = journal.highest();
        let follower = tokio::spawn(follow(Arc::downgrade(&hub), journal, after));
        let _ = hub.follower.set(follower.abort_handle());
        Live(hub)
    }

    pub fn watch(&self, key: EntityKey, watcher: Arc<dyn Watcher>) -> Watch {
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        self.0.watched.entry(key.clone()).or_default().push((id, watcher));
        self.0.watches.fetch_add(1, Ordering::Release);
        Watch { hub: self.0.clone(), key, id }
    }

    /// How many watches there are.
    pub fn watches(&self) -> usize {
        self.0.watches.load(Ordering::Relaxed)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(follower) = self.follower.get() {
            follower.abort();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let emptied = match self.hub.watched.get_mut(&self.key) {
            Some(mut watchers) => {
                watchers.retain(|(id, _)| *id != self.id);
                watchers.is_empty()
            }
            None => false,
        };
        if emptied {
            self.hub.watched.remove_if(&self.key, |_, watchers| watchers.is_empty());
        }
        self.hub.watches.fetch_sub(1, Ordering::Release);
    }
}

impl Hub {
    fn offer(&self, committed: Committed) {
        if self.watches.load(Ordering::Acquire) == 0 {
            return;
        }
        // The list is copied out: a watcher may end its watch while it is told, and no lock may be held then.
        let Some(watchers) = self.watched.get(&committed.entity).map(|watchers| watchers.value().clone()) else { return };
        let pushed = Arc::new(Pushed::new(committed));
        for (_, watcher) in watchers {
            watcher.push(&pushed);
        }
    }
}

async fn follow(hub: std::sync::Weak<Hub>, journal: Arc<dyn Journal>, mut after: Position) {
    loop {
        let mut batches = journal.follow(after);
        while let Some(next) = batches.next().await {
            match next {
                Ok(committed) => {
                    after = committed.batch.position;
                    let Some(hub) = hub.upgrade() else { return };
                    hub.offer(committed);
                }
                Err(error) => {
                    tracing::error!(%error, position = after.0, "live push cannot read the journal and tries again");
                    break;
                }
            }
        }
        if hub.strong_count() == 0 {
            return;
        }
        tokio::time::sleep(FOLLOW_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persistence::{Append, Batch, ReadError, Wake, journal::Done};
    use futures_util::future::BoxFuture;
    use futures_util::stream::{self, BoxStream};
    use std::sync::Mutex;

    struct Quiet;

    impl Journal for Quiet {
        fn append(&self, _: Append, _: Done) {}
        fn read<'a>(
            &'a self,
            _: &'a EntityKey,
            _: Version,
            _: Position,
            _: usize,
        ) -> BoxFuture<'a, Result<Vec<Batch>, ReadError>> {
            Box::pin(async { Ok(Vec::new()) })
        }
        fn newest<'a>(&'a self, _: &'a EntityKey) -> BoxFuture<'a, Result<Position, ReadError>> {
            Box::pin(async { Ok(Position(0)) })
        }
        fn follow(&self, _: Position) -> BoxStream<'static, Result<Committed, ReadError>> {
            stream::pending().boxed()
        }
        fn end(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
            Box::pin(std::future::ready(Ok(self.highest())))
        }

        fn highest(&self) -> Position {
            Position(0)
        }
        fn agenda<'a>(&'a self, _: Option<&'a EntityKey>, _: usize) -> BoxFuture<'a, Result<Vec<(EntityKey, Wake)>, ReadError>> {
            Box::pin(async { Ok(Vec::new()) })
        }
    }

    #[derive(Default)]
    struct Heard(Mutex<Vec<(Version, Version)>>);

    impl Watcher for Heard {
        fn push(&self, pushed: &Arc<Pushed>) {
            self.0.lock().unwrap().push((pushed.first, pushed.last));
        }
    }

    fn batch(entity: &EntityKey, first: Version, count: u32) -> Committed {
        let payload = Bytes::from_static(b"{\"events\":[]}");
        Committed { entity: entity.clone(), batch: Batch { first, count, position: Position(1), payload } }
    }

    #[tokio::test]
    async fn a_watcher_hears_its_entity_until_it_lets_go() {
        let live = Live::start(Arc::new(Quiet));
        let (mine, other) = (EntityKey::new("cart", "a"), EntityKey::new("cart", "b"));
        let heard = Arc::new(Heard::default());
        let watch = live.watch(mine.clone(), heard.clone());
        live.0.offer(batch(&mine, 1, 2));
        live.0.offer(batch(&other, 1, 1));
        live.0.offer(batch(&mine, 3, 1));
        drop(watch);
        live.0.offer(batch(&mine, 4, 1));
        assert_eq!(*heard.0.lock().unwrap(), [(1, 2), (3, 3)]);
        assert_eq!((live.watches(), live.0.watched.len()), (0, 0));
    }
}
