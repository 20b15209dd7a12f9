//! What a member needs of the network. `nats_wire` is the real one; a simulation puts a model here.
//!
//! Two roads that fail apart from each other: messages between members (heartbeats to all, asks to one), which may be lost,
//! delayed, doubled and reordered; and the register, a small replicated table with a compare-and-set for each member,
//! which may be out of reach or leave the outcome of a write unknown, but never forgets a write that it acknowledged while
//! a majority of its servers lives.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

/// A member's name is a token of a subject.
pub const NAME_BYTES_MAX: usize = 64;

/// The name of a member: 1 to 64 of `A-Z a-z 0-9 _ -`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a node's name is 1 to {NAME_BYTES_MAX} characters of A-Z, a-z, 0-9, _ and -, not {0:?}")]
pub struct NameError(String);

impl Name {
    pub fn parse(name: &str) -> Result<Self, NameError> {
        let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
        let is_token = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        if fits && is_token { Ok(Name(name.into())) } else { Err(NameError(name.chars().take(NAME_BYTES_MAX).collect())) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Name::parse(&name)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.as_str().to_owned()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why an ask has no answer. Only after the first two and `TooLarge` is it certain that the ask had no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nobody listens under that name. Known at once.
    #[error("no member named {0} listens")]
    NoSuchMember(Name),
    #[error("{0} has too much to do")]
    Overloaded(Name),
    /// The ask, or else the answer, in which case the ask took effect.
    #[error("{what} of {bytes} bytes is larger than the {bytes_max} that a message may have")]
    TooLarge { what: &'static str, bytes: usize, bytes_max: usize },
    #[error("{0} did not answer in time")]
    TimedOut(Name),
    #[error("the connection was lost: {0}")]
    Lost(String),
}

/// An ask as the member that was asked sees it.
pub struct Incoming {
    pub payload: Bytes,
    /// After this nobody waits for the answer.
    pub patience: Duration,
    pub answer: Answer,
}

/// The way back. Dropped unused, it leaves the asker to its deadline.
pub struct Answer(Box<dyn FnOnce(Outcome) -> BoxFuture<'static, ()> + Send>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Answered(Bytes),
    Overloaded,
}

impl Answer {
    pub fn new(send: impl FnOnce(Outcome) -> BoxFuture<'static, ()> + Send + 'static) -> Self {
        Answer(Box::new(send))
    }

    /// Returns when the answer is on its way, or cannot be sent.
    pub async fn send(self, outcome: Outcome) {
        (self.0)(outcome).await;
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WireError(pub String);

/// What the register holds for one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub member: Name,
    /// Grows with each write, over all members.
    pub sequence: u64,
    pub payload: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// The entry is another one by now. Nothing was written.
    #[error("the register's entry has changed")]
    Changed,
    /// It may have been written.
    #[error("it is unknown whether the register was written: {0}")]
    Unknown(String),
}

pub trait Wire: Send + Sync + 'static {
    /// Sends a heartbeat to all who listen, the sender among them. Never waits; may lose it.
    fn broadcast(&self, beat: Bytes);

    /// Heartbeats from now on, the node's own among them. A slow reader misses some.
    fn hear(&self) -> BoxFuture<'_, Result<BoxStream<'static, Bytes>, WireError>>;

    /// Asks one member, within `patience`.
    fn ask<'a>(&'a self, member: &'a Name, payload: Bytes, patience: Duration) -> BoxFuture<'a, Result<Bytes, AskError>>;

    /// What others ask of the member of that name, from now on.
    fn listen<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<BoxStream<'static, Incoming>, WireError>>;

    /// Writes a member's entry if its newest has the sequence `expected` (0: there is none). Answers the new sequence when a
    /// majority of the register's servers has it.
    fn put<'a>(&'a self, member: &'a Name, expected: u64, payload: Bytes) -> BoxFuture<'a, Result<u64, PutError>>;

    /// The newest entry of every member. May be behind what was acknowledged: an answer that lacks one's own newest entry is
    /// not to be used.
    fn read(&self) -> BoxFuture<'_, Result<Vec<Entry>, WireError>>;
}
