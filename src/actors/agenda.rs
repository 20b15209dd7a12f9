//! Who must be woken when, in memory: timers of resident and of passivated entities alike, and retries of debts.
//!
//! The journal keeps the lasting part on disk (`wake_at`); this is filled from it at start. One entry for each entity.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::Timestamp;
use crate::persistence::EntityKey;

#[derive(Default)]
pub struct Agenda {
    entries: Mutex<Entries>,
    /// Told when the earliest entry changed.
    earlier: Notify,
}

#[derive(Default)]
struct Entries {
    by_time: BTreeSet<(Timestamp, EntityKey)>,
    by_entity: HashMap<EntityKey, Timestamp>,
}

impl Agenda {
    /// Wakes the entity at `at` and not at the time noted before.
    pub fn set(&self, entity: &EntityKey, at: Timestamp) {
        let mut entries = self.lock();
        if let Some(before) = entries.by_entity.insert(entity.clone(), at) {
            entries.by_time.remove(&(before, entity.clone()));
        }
        entries.by_time.insert((at, entity.clone()));
        if entries.by_time.first().is_some_and(|(first, _)| *first >= at) {
            self.earlier.notify_one();
        }
    }

    pub fn cancel(&self, entity: &EntityKey) {
        let mut entries = self.lock();
        if let Some(at) = entries.by_entity.remove(entity) {
            entries.by_time.remove(&(at, entity.clone()));
        }
    }

    /// Takes out at most `limit` entities whose time has come.
    pub fn take_due(&self, now: Timestamp, limit: usize) -> Vec<EntityKey> {
        let mut entries = self.lock();
        let mut due = Vec::new();
        while due.len() < limit {
            match entries.by_time.first() {
                Some((at, _)) if *at <= now => {}
                _ => break,
            }
            if let Some((_, entity)) = entries.by_time.pop_first() {
                entries.by_entity.remove(&entity);
                due.push(entity);
            }
        }
        due
    }

    /// The earliest time noted.
    pub fn next(&self) -> Option<Timestamp> {
        self.lock().by_time.first().map(|(at, _)| *at)
    }

    pub fn len(&self) -> usize {
        self.lock().by_entity.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Resolves when an entry became the earliest.
    pub async fn earlier(&self) {
        self.earlier.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn each_entity_is_due_once_at_the_time_set_last() {
        let agenda = Agenda::default();
        let (a, b, c) = (EntityKey::new("k", "a"), EntityKey::new("k", "b"), EntityKey::new("k", "c"));
        agenda.set(&a, at(10));
        agenda.set(&b, at(20));
        agenda.set(&a, at(30));
        agenda.set(&c, at(5));
        agenda.cancel(&c);
        assert_eq!(agenda.next(), Some(at(20)));
        assert_eq!(agenda.take_due(at(19), 10), []);
        assert_eq!(agenda.take_due(at(30), 1), [b]);
        assert_eq!(agenda.take_due(at(30), 10), [a]);
        assert!(agenda.is_empty());
    }
}
