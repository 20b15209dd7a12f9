//! Where entities live, as this node sees it, and the way to those that live elsewhere.
//!
//! Placement is about efficiency only: what is written stays right even when two nodes both believe that they have an
//! entity, because the journal refuses the one that knows less. What is *shown* from memory rests on the lease.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::persistence::EntityKey;

/// Who has an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Here,
    Member(Arc<str>),
    /// For the moment.
    Unknown,
}

/// Why a member did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It has not heard the question.
    #[error("nobody answers there")]
    NotThere,
    /// It may have heard the question.
    #[error("the answer was lost: {0}")]
    Lost(String),
}

/// A member as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberSeen {
    pub name: Arc<str>,
    pub is_self: bool,
    pub state: &'static str,
    /// Where its door is.
    pub http: String,
    /// Of the program.
    pub version: String,
    /// The partitions that it owns.
    pub partitions: Vec<u8>,
}

/// Whether this node does its part among the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Joining,
    InPlace,
    /// Nobody hears it: it acts for nothing.
    OutOfTouch,
    Leaving,
}

/// How long this node may rely on what it has of an entity in memory.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// Until then no other member can have taken over what this one owns: what it has in memory may be shown without a look
    /// at the journal. In the past when there is no lease.
    pub until: Instant,
    /// Another one whenever this node may have been without the lease, or the owners have changed: what came into memory
    /// under an earlier one is compared with the journal first.
    pub tenure: u64,
}

impl Lease {
    pub fn is_valid(&self) -> bool {
        Instant::now() <= self.until
    }
}

/// The members of a cluster, as one of them sees it.
pub trait Placement: Send + Sync + 'static {
    fn owner(&self, entity: &EntityKey) -> Owner;

    fn lease(&self, entity: &EntityKey) -> Lease;

    fn standing(&self) -> Standing;

    /// All members, by name.
    fn members(&self) -> Vec<MemberSeen>;

    /// Asks another member. Ends early when that member is taken for dead.
    fn ask<'a>(&'a self, member: &'a str, question: Bytes, wait: Duration) -> BoxFuture<'a, Result<Bytes, NoAnswer>>;
}
