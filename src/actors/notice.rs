//! What an entity has put up at its door: whoever comes in vain is told so there, without mailbox, journal or gate.
//!
//! A notice says what the entity's durable state would. It is taken down before anything is accepted on top of that state,
//! and so before anybody hears of it; it counts until the state's next moment has come, and in a cluster under the tenure in
//! which the entity was known to be what the journal says, while the lease holds. It never refuses a command that was
//! answered, as far as the entity itself remembers.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use arc_swap::ArcSwapOption;

use super::ask::Caller;
use crate::domain::{CommandId, Entity, Timestamp, entity::Notice};

/// Where an entity's notice stands, seen from any thread.
pub struct Board<E: Entity>(ArcSwapOption<Posted<E>>);

struct Posted<E: Entity> {
    notice: Box<dyn Notice<E>>,
    until: Option<Timestamp>,
    tenure: u64,
    /// Hashes of the commands whose answers are remembered: two that are alike only let one in more.
    answered: HashSet<u64>,
    hashes: RandomState,
}

impl<E: Entity> Default for Board<E> {
    fn default() -> Self {
        Board(ArcSwapOption::empty())
    }
}

impl<E: Entity> Board<E> {
    pub fn put_up<'a>(
        &self,
        notice: Box<dyn Notice<E>>,
        until: Option<Timestamp>,
        tenure: u64,
        answered: impl Iterator<Item = &'a CommandId>,
    ) {
        let hashes = RandomState::new();
        let answered = answered.map(|command| hashes.hash_one(command)).collect();
        self.0.store(Some(Posted { notice, until, tenure, answered, hashes }.into()));
    }

    pub fn is_empty(&self) -> bool {
        self.0.load().is_none()
    }

    pub fn take_down(&self) {
        self.0.store(None);
    }

    /// What this command is refused with; `None` when the entity must be asked.
    pub fn refuses(&self, command: &E::Command, caller: &Caller, tenure: u64, now: Timestamp) -> Option<E::Rejection> {
        let posted = self.0.load();
        let posted = posted.as_ref().filter(|posted| posted.tenure == tenure)?;
        if caller.if_version.is_some() || posted.until.is_some_and(|until| until <= now) {
            return None;
        }
        let rejection = posted.notice.refuses(command)?;
        (!posted.answered.contains(&posted.hashes.hash_one(&caller.command))).then_some(rejection)
    }
}
