//! What a member tells all others four times a second.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::wire::Name;

/// Members that a heartbeat can tell of; one that tells of more is ignored.
pub const MEMBERS_MAX: usize = 128;

/// One life of a member: a process, and how often it has joined anew. Later ones are greater, as far as the clocks of
/// different machines agree; nothing is unsafe where they do not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Incarnation {
    pub process: Ulid,
    pub life: u32,
}

impl Incarnation {
    pub fn first(process: Ulid) -> Self {
        Incarnation { process, life: 0 }
    }

    pub fn next(self) -> Self {
        Incarnation { life: self.life.saturating_add(1), ..self }
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.process, self.life)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("not an incarnation: {0:?}")]
pub struct IncarnationError(String);

impl TryFrom<String> for Incarnation {
    type Error = IncarnationError;

    fn try_from(text: String) -> Result<Self, IncarnationError> {
        let parsed = text.split_once('.').and_then(|(process, life)| {
            Some(Incarnation { process: Ulid::from_string(process).ok()?, life: life.parse().ok()? })
        });
        parsed.ok_or(IncarnationError(text))
    }
}

impl From<Incarnation> for String {
    fn from(incarnation: Incarnation) -> String {
        incarnation.to_string()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Listens, and owns nothing yet.
    Joining,
    Active,
    /// Owns nothing any more, and hands over what it had.
    Draining,
    /// Its last word.
    Left,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    pub member: Name,
    pub incarnation: Incarnation,
    /// Grows by one with each heartbeat of the process.
    pub seq: u64,
    pub state: State,
    /// Where its door is.
    pub http: Arc<str>,
    /// Of its program.
    pub version: Arc<str>,
    pub hears: Vec<Heard>,
}

/// A member that the sender hears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    pub member: Name,
    pub incarnation: Incarnation,
    /// Of its newest heartbeat.
    pub seq: u64,
    /// Whether the sender gives partitions to it.
    pub counts: bool,
}

impl Beat {
    /// Among whom the sender divides the partitions, in order.
    pub fn counted(&self) -> Vec<Name> {
        let itself = (self.state == State::Active).then(|| self.member.clone());
        let mut names: Vec<Name> =
            self.hears.iter().filter(|heard| heard.counts).map(|heard| heard.member.clone()).chain(itself).collect();
        names.sort();
        names.dedup();
        names
    }
}
