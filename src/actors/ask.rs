//! What a caller of an entity says and hears.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::CommandId;
use crate::persistence::{Position, ReadError, Version};

/// How long a caller waits unless it says otherwise.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Who asks, under which command id, and for how long.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The same id again gets the same answer and has no second effect.
    pub command: CommandId,
    /// An account, `guest`, or another entity as `kind/id`.
    pub asker: Arc<str>,
    /// The request that started it all.
    pub correlation: Arc<str>,
    /// The command is decided only if the entity is at this version (If-Match).
    pub if_version: Option<Version>,
    /// A command that has waited longer is not decided any more.
    pub timeout: Duration,
}

impl Caller {
    pub fn new(command: CommandId, asker: impl Into<Arc<str>>, correlation: impl Into<Arc<str>>) -> Self {
        Caller { command, asker: asker.into(), correlation: correlation.into(), if_version: None, timeout: ASK_TIMEOUT }
    }
}

/// An answer that is durable.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered<R> {
    pub reply: R,
    /// The entity's version as of the answer.
    pub version: Version,
    /// A read that asks for at least this position sees what was answered.
    pub position: Position,
}

/// Why there is no reply.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AskError<R> {
    /// The domain said no. Nothing was written, and nothing will be.
    #[error("{0}")]
    Rejected(R),
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// Why an entity could not answer, whatever was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// Too many commands wait already. Not decided: retry later.
    #[error("overloaded: {0}")]
    Overloaded(Cow<'static, str>),
    /// The entity is at another version than the caller knows.
    #[error("the entity is at version {actual}")]
    VersionDiffers { actual: Version },
    /// Not answered in time; it may still come about. The same command id asks again safely.
    #[error("no answer in time; the outcome is unknown")]
    TimedOut,
    /// The entity's actor ended before it answered; it comes back from the journal. The same command id asks again safely.
    #[error("the entity failed while it worked on this; the outcome is unknown")]
    Died,
    /// It failed too often and waits for an operator.
    #[error("the entity is set aside after failing repeatedly")]
    SetAside,
    /// It failed a moment ago and is coming back.
    #[error("the entity is being restarted")]
    Restarting,
    /// Nothing was written.
    #[error("not written: {0}")]
    NotWritten(String),
    /// It may have been written. The same command id asks again safely.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    #[error(transparent)]
    Unreadable(ReadError),
    /// The entity lives on another node now. Not decided there where this was said; whoever asked looks for it again.
    #[error("the entity moved to another node")]
    Moved,
    /// This node does not know who has the entity, or cannot reach it, or cannot be sure that it still has it itself.
    #[error("the entity's node cannot be reached: {0}")]
    OutOfReach(Cow<'static, str>),
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Draining,
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Corrupt { .. } => Failure::Unreadable(error),
            ReadError::Unreadable(why) => Failure::OutOfReach(why.into()),
        }
    }
}
