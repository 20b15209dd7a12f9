//! Who must be woken and when, as this node has it from the stream: a copy that may be deleted at any time.
//!
//! A follower folds every batch's wake into a local tree, with its position in the same write, so that what is there is
//! always as of one position. A first page is not answered before the copy has seen all that was acknowledged when it was
//! asked for: an entity that nobody calls would be forgotten.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;

use super::envelope::{wake_from_i64, wake_to_i64};
use super::tail::{Entry, Tail};
use crate::persistence::journal::{Agenda, EntityKey, Position, ReadError, Wake};

/// Batches that share one write.
const CHUNK_BATCHES: usize = 1_024;
/// Whoever waits for the agenda to be complete hears of it when it has not moved for so long.
const STUCK_MS: u64 = 10_000;
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Where the copy says which stream it is of, and how far. Entity keys have a slash.
const OF_STREAM: &[u8] = b"of";
const POSITION: &[u8] = b"position";

#[derive(Debug, thiserror::Error)]
#[error("the copy of the agenda in {}: {source}", dir.display())]
pub struct AgendaError {
    dir: PathBuf,
    source: io::Error,
}

/// The copy: on disk, or in memory where nothing has to outlive the node.
enum Copy {
    Disk(sled::Db),
    Memory(Mutex<BTreeMap<String, i64>>),
}

impl Copy {
    /// The copy of this very stream in `dir`, and its position; an empty one when there is none.
    fn open(dir: &Path, identity: &str) -> Result<(Copy, Position), sled::Error> {
        let db = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).open()?;
        if db.get(OF_STREAM)?.as_deref() != Some(identity.as_bytes()) {
            db.clear()?;
            db.insert(OF_STREAM, identity.as_bytes())?;
        }
        let position = db.get(POSITION)?.and_then(|bytes| bytes.as_ref().try_into().ok().map(u64::from_be_bytes));
        Ok((Copy::Disk(db), Position(position.unwrap_or(0))))
    }

    fn apply(&self, wakes: &[(EntityKey, Wake)], position: Position) -> Result<(), sled::Error> {
        match self {
            Copy::Disk(db) => {
                let mut batch = sled::Batch::default();
                for (entity, wake) in wakes {
                    match wake {
                        Wake::Never => batch.remove(entity.as_str()),
                        wake => batch.insert(entity.as_str(), &wake_to_i64(*wake).to_be_bytes()),
                    }
                }
                batch.insert(POSITION, &position.0.to_be_bytes());
                db.apply_batch(batch)
            }
            Copy::Memory(map) => {
                let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
                for (entity, wake) in wakes {
                    match wake {
                        Wake::Never => map.remove(entity.as_str()),
                        wake => map.insert(entity.as_str().to_owned(), wake_to_i64(*wake)),
                    };
                }
                Ok(())
            }
        }
    }

    fn page(&self, after: Option<&EntityKey>, limit: usize) -> Result<Agenda, sled::Error> {
        let bound = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_str()));
        match self {
            Copy::Disk(db) => {
                let start = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_str().as_bytes()));
                let pairs = db.range::<&[u8], _>((start, Bound::Unbounded));
                let parsed = pairs.filter_map(|pair| pair.map(|(key, wake)| parse(&key, &wake)).transpose());
                parsed.take(limit).collect()
            }
            Copy::Memory(map) => {
                let map = map.lock().unwrap_or_else(PoisonError::into_inner);
                let pairs = map.range::<str, _>((bound, Bound::Unbounded)).take(limit);
                Ok(pairs.filter_map(|(key, wake)| Some((EntityKey::parse(key)?, wake_from_i64(*wake)))).collect())
            }
        }
    }
}

/// `None` for what the copy says of itself.
fn parse(key: &[u8], wake: &[u8]) -> Option<(EntityKey, Wake)> {
    let key = EntityKey::parse(std::str::from_utf8(key).ok()?)?;
    Some((key, wake_from_i64(i64::from_be_bytes(wake.try_into().ok()?))))
}

/// The agenda of a journal, kept by `run`.
pub struct AgendaOf {
    copy: Copy,
    position: watch::Sender<Position>,
}

impl AgendaOf {
    /// `dir`: where the copy is; `None` keeps it in memory. `end`: where the stream ended just now.
    pub fn open(dir: Option<&Path>, identity: &str, end: Position) -> Result<AgendaOf, AgendaError> {
        let (copy, position) = match dir {
            None => (Copy::Memory(Mutex::default()), Position(0)),
            Some(dir) => open_or_begin_anew(dir, identity, end)
                .map_err(|error| AgendaError { dir: dir.to_owned(), source: io::Error::other(error) })?,
        };
        Ok(AgendaOf { copy, position: watch::Sender::new(position) })
    }

    /// Follows the journal until it is closed.
    pub async fn run(self: Arc<AgendaOf>, tail: Arc<Tail>) {
        let after = *self.position.borrow();
        let mut entries = tail.follow(after).ready_chunks(CHUNK_BATCHES);
        while let Some(chunk) = entries.next().await {
            // An error is the last that a follower says, and the tail has logged it.
            let read: Vec<Entry> = chunk.into_iter().map_while(Result::ok).collect();
            let Some(position) = read.last().map(|entry| entry.committed.batch.position) else { continue };
            let wakes: Vec<(EntityKey, Wake)> = read.into_iter().map(|entry| (entry.committed.entity, entry.wake)).collect();
            if let Err(error) = self.copy.apply(&wakes, position) {
                tracing::error!(%error, "the copy of the agenda cannot be written");
                return;
            }
            self.position.send_replace(position);
        }
    }

    /// As it is once the copy has seen the stream up to `end`.
    pub async fn page(&self, after: Option<&EntityKey>, limit: usize, end: Position) -> Result<Agenda, ReadError> {
        let mut moves = self.position.subscribe();
        loop {
            let position = *moves.borrow_and_update();
            if position >= end {
                break;
            }
            let stuck = || {
                let (at, end) = (position.0, end.0);
                ReadError::Unreadable(format!("the agenda does not get on: it is at position {at} of {end}"))
            };
            let moved = tokio::time::timeout(Duration::from_millis(STUCK_MS), moves.changed()).await;
            moved.map_err(|_| stuck())?.map_err(|_| stuck())?;
        }
        self.copy.page(after, limit).map_err(|error| ReadError::Unreadable(format!("the copy of the agenda: {error}")))
    }
}

/// What cannot be read, or is ahead of its stream, is a copy of something else.
fn open_or_begin_anew(
    dir: &Path,
    identity: &str,
    end: Position,
) -> Result<(Copy, Position), Box<dyn std::error::Error + Send + Sync>> {
    match Copy::open(dir, identity) {
        Ok((copy, position)) if position <= end => return Ok((copy, position)),
        Ok((_, position)) => tracing::warn!(position = position.0, end = end.0, "the copy of the agenda is ahead of its stream"),
        Err(error) => tracing::warn!(%error, "the copy of the agenda cannot be read"),
    }
    std::fs::remove_dir_all(dir)?;
    Ok(Copy::open(dir, identity)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> EntityKey {
        EntityKey::new("cart", id)
    }

    #[test]
    fn a_copy_goes_on_where_it_was_and_one_of_another_stream_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let open = |identity: &str, end| AgendaOf::open(Some(dir.path()), identity, Position(end)).unwrap();
        let agenda = open("first", 9);
        assert_eq!(*agenda.position.borrow(), Position(0));
        agenda.copy.apply(&[(key("a"), Wake::Now), (key("b"), Wake::Never)], Position(7)).unwrap();
        drop(agenda);
        let agenda = open("first", 9);
        assert_eq!(*agenda.position.borrow(), Position(7));
        assert_eq!(agenda.copy.page(None, 9).unwrap(), [(key("a"), Wake::Now)]);
        drop(agenda);
        for (identity, end) in [("second", 9), ("second", 3)] {
            let agenda = open(identity, end);
            assert_eq!(*agenda.position.borrow(), Position(0), "{identity}, {end}");
            assert_eq!(agenda.copy.page(None, 9).unwrap(), []);
            agenda.copy.apply(&[(key("a"), Wake::Now)], Position(5)).unwrap();
        }
    }

    #[test]
    fn both_copies_answer_pages_in_the_order_of_keys() {
        let dir = tempfile::tempdir().unwrap();
        let copies = [Copy::Memory(Mutex::default()), Copy::open(dir.path(), "x").unwrap().0];
        for copy in copies {
            let wakes = ["b", "c", "a", "d"].map(|id| (key(id), Wake::Now));
            copy.apply(&wakes, Position(4)).unwrap();
            copy.apply(&[(key("d"), Wake::Never)], Position(5)).unwrap();
            let page = |after: Option<&str>, limit| {
                let page = copy.page(after.map(key).as_ref(), limit).unwrap();
                page.into_iter().map(|(key, _)| key.id().to_owned()).collect::<Vec<_>>()
            };
            assert_eq!(page(None, 9), ["a", "b", "c"]);
            assert_eq!(page(Some("a"), 1), ["b"]);
            assert_eq!(page(Some("c"), 9), Vec::<String>::new());
        }
    }
}
