//! JetStream as the journal uses it, and no more: what stands above this runs as well over a model of it.
//!
//! What may be relied on is little. An answer may be lost in either direction. What was published may be stored after
//! its publisher has given up. Any replica may be behind, and so may one that takes itself for the leader.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::sync::watch;

use super::envelope::Head;

/// A message on its way into the stream.
#[derive(Debug, Clone)]
pub struct Message {
    pub subject: Arc<str>,
    pub head: Head,
    pub payload: Bytes,
    /// The sequence of the subject's newest message, 0 when there is none: it is stored on top of this or not at all.
    pub after: u64,
}

/// A message in the stream. Messages that are there are committed: no later failure takes them back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub sequence: u64,
    pub subject: Arc<str>,
    /// `None` when its headers are not ours.
    pub head: Option<Head>,
    pub payload: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Codes 10071 and 10164: something newer is there, or another copy is on its way, or the leader has just changed.
    /// This copy is not stored.
    #[error("refused: not the subject's last sequence ({code})")]
    WrongSequence { code: u64 },
    /// This copy is not stored and another would not be either.
    #[error("refused: {what} ({code})")]
    Refused { code: u64, what: String },
    /// This copy never left, or found nobody.
    #[error("not sent: {0}")]
    NotSent(String),
    /// No answer that says anything. The copy may be stored, now or later.
    #[error("no answer: {0}")]
    Lost(String),
}

/// Nothing was learnt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("JetStream does not answer: {0}")]
pub struct NoAnswer(pub String);

/// Which message the leader is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Last,
    /// The first at this sequence or after it.
    From(u64),
}

/// How far the stream reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// 1 unless messages were deleted; larger than `last` when there are none.
    pub first: u64,
    pub last: u64,
    /// Tells this stream from one of the same name that was made before or after it.
    pub identity: String,
}

pub trait JetStream: Send + Sync + 'static {
    /// Answers the message's sequence when a quorum has it.
    fn publish<'a>(&'a self, message: &'a Message, within: Duration) -> BoxFuture<'a, Result<u64, PublishError>>;

    /// A message of a subject, from whoever leads the stream or believes that it does; `None` when it knows none.
    fn ask_leader<'a>(
        &'a self,
        subject: &'a str,
        which: Which,
        within: Duration,
    ) -> BoxFuture<'a, Result<Option<Stored>, NoAnswer>>;

    /// Messages at `from` and after it, in order, from any replica, at most `limit`: of one subject, or of all. Fewer mean
    /// that this replica knows no more, or that the page is heavy.
    fn ask_any<'a>(&'a self, subject: Option<&'a str>, from: u64, limit: usize) -> BoxFuture<'a, Result<Vec<Stored>, NoAnswer>>;

    /// The newest message of each subject that has one, from any replica, as of one moment there.
    fn ask_newest<'a>(&'a self, subjects: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Stored>, NoAnswer>>;

    /// The last sequence, from a leader that a quorum followed at some moment after this was asked: all that was
    /// acknowledged before this was asked is at that sequence or before it.
    fn proven_end(&self, within: Duration) -> BoxFuture<'_, Result<u64, NoAnswer>>;

    /// As the leader knows it, or whoever believes to be that.
    fn extent(&self) -> BoxFuture<'_, Result<Extent, NoAnswer>>;

    /// Messages as they are stored, from about now on. Any of them may be missing, repeated or late; it ends when it has to
    /// be asked for anew.
    fn tail(&self) -> BoxFuture<'_, Result<BoxStream<'static, Stored>, NoAnswer>>;

    /// Changes when a connection was lost and is back: the tail has missed something then.
    fn connections(&self) -> watch::Receiver<u64>;

    /// The largest message that the server takes, in bytes, headers included.
    fn message_bytes_max(&self) -> usize;
}
