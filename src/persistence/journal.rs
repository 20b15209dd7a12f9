//! The journal as the rest of Souk knows it: append at an expected version, read one entity, follow everything.
//!
//! A batch is all that one entity writes at once: one or more records with consecutive versions. It is stored whole or
//! not at all, never changed, and never stored on top of a version that its writer had not seen.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::domain::Timestamp;

/// One batch of one entity; a larger one is a mistake of its writer.
pub const PAYLOAD_MAX_BYTES: usize = 16 * 1024 * 1024;

/// `kind/id`. The kind has no slash.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntityKey(Arc<str>);

impl EntityKey {
    pub fn new(kind: &str, id: &str) -> Self {
        EntityKey(format!("{kind}/{id}").into())
    }

    /// `None` when there is no slash.
    pub fn parse(key: &str) -> Option<Self> {
        key.contains('/').then(|| EntityKey(key.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn kind(&self) -> &str {
        self.0.split_once('/').map_or("", |(kind, _)| kind)
    }

    pub fn id(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, id)| id)
    }
}

impl fmt::Display for EntityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How many records an entity has: its first record is version 1, and 0 is an entity that was never written.
pub type Version = u64;

/// Where a batch stands among all batches; the first is 1. Positions only grow, in the order in which batches became
/// durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub u64);

/// When an entity must be woken if nobody calls it, as of its newest batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// It owes something.
    Now,
    At(Timestamp),
    Never,
}

/// A batch to be stored.
#[derive(Debug, Clone)]
pub struct Append {
    pub entity: EntityKey,
    /// The entity's version that the batch was decided against; its records get the versions after it.
    pub expected: Version,
    /// Where the entity's newest batch stands, the one that ends with `expected`; 0 when there is none. A store may check
    /// this instead of the version, and must check one of them.
    pub after: Position,
    /// Number of records in `payload`, at least 1.
    pub count: u32,
    pub payload: Bytes,
    pub wake: Wake,
}

/// Called once by the journal when the batch is durable, or is known not to be, or may be. Runs on the journal's own
/// thread: it must be quick and must not block.
pub type Done = Box<dyn FnOnce(Result<Position, AppendError>) + Send>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Somebody else wrote first. Nothing was stored.
    #[error("the entity is at version {actual}, not at the expected {expected}")]
    Conflict { expected: Version, actual: Version },
    /// Nothing was stored.
    #[error("not written: {0}")]
    NotWritten(String),
    /// It may have been stored: read the entity before deciding anything anew.
    #[error("it is unknown whether this was written: {0}")]
    Unknown(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ReadError {
    /// What is stored is not what was written. `place` names the key.
    #[error("the journal is corrupt at {place}: {what}")]
    Corrupt { place: String, what: String },
    #[error("the journal cannot be read: {0}")]
    Unreadable(String),
}

/// A batch as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub first: Version,
    pub count: u32,
    pub position: Position,
    pub payload: Bytes,
}

impl Batch {
    pub fn last(&self) -> Version {
        self.first + u64::from(self.count) - 1
    }
}

/// A batch as followers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    pub entity: EntityKey,
    pub batch: Batch,
}

/// What `Journal::agenda` answers.
pub type Agenda = Vec<(EntityKey, Wake)>;

/// The one thing that must not be lost.
pub trait Journal: Send + Sync + 'static {
    /// Queues a batch. Batches of one entity must come one at a time; those of all entities share a flush.
    fn append(&self, append: Append, done: Done);

    /// The batches of one entity that hold records of version `from` and later, oldest first, at most `limit` batches.
    /// Fewer than `limit` means that these were the last. `near` is where the first of them stands, or somewhere before
    /// it: a store that has to search begins there; 0 when unknown.
    fn read<'a>(
        &'a self,
        entity: &'a EntityKey,
        from: Version,
        near: Position,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Batch>, ReadError>>;

    /// Where the newest batch of an entity stands, 0 when there is none: nothing that was acknowledged before this was
    /// asked is missing from the answer, whoever wrote it.
    fn newest<'a>(&'a self, entity: &'a EntityKey) -> BoxFuture<'a, Result<Position, ReadError>>;

    /// Every batch after `after`, in order, without end: it waits for those to come.
    fn follow(&self, after: Position) -> BoxStream<'static, Result<Committed, ReadError>>;

    /// The position of the newest durable batch; 0 when there is none.
    fn highest(&self) -> Position;

    /// The same, whoever wrote it: nothing that was acknowledged before this was asked lies behind the answer.
    fn end(&self) -> BoxFuture<'_, Result<Position, ReadError>>;

    /// Entities whose newest batch asked to be woken: those after `after` in key order, at most `limit`.
    fn agenda<'a>(&'a self, after: Option<&'a EntityKey>, limit: usize) -> BoxFuture<'a, Result<Agenda, ReadError>>;

    /// A payload of more bytes than this is not written.
    fn batch_bytes_max(&self) -> usize {
        PAYLOAD_MAX_BYTES
    }
}
