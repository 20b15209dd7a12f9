//! Admission: how many commands may wait for one entity and for the whole node. ractor's mailbox has no bound, so
//! whoever would send must first pass here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use super::ask::Failure;
use crate::domain::Timestamp;
use crate::persistence::Version;

/// Messages between entities pass an entity's gate up to this multiple of the bound for outside callers, and do not
/// count for the node: a purchase under way must never wait behind the commands that wait for it.
const CONVERSATION_SHARE: usize = 16;
/// How long an entity at rest stays unused in memory: somebody may look at what has just been concluded.
const REST_MS: i64 = 1_000;

/// Counts what waits for the whole node.
#[derive(Debug, Default)]
pub struct NodeGate {
    waiting: AtomicUsize,
}

impl NodeGate {
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Counts what waits for one entity, and when it was last used.
#[derive(Debug)]
pub struct Gate {
    waiting: AtomicUsize,
    last_used_ms: AtomicI64,
    /// Said by the entity: nothing more is to be expected of it.
    at_rest: AtomicBool,
    /// What the entity knows to be in the journal, or on its way there.
    version: AtomicU64,
    node: Arc<NodeGate>,
}

/// Leave to wait for an answer; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    counts_for_node: bool,
}

/// The bounds that a gate keeps.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub per_entity: usize,
    pub per_node: usize,
}

impl Gate {
    pub fn new(node: Arc<NodeGate>, now: Timestamp) -> Arc<Self> {
        Arc::new(Gate {
            waiting: AtomicUsize::new(0),
            last_used_ms: AtomicI64::new(now.as_millis()),
            at_rest: AtomicBool::new(false),
            version: AtomicU64::new(0),
            node,
        })
    }

    /// Admits a caller from outside.
    pub fn admit(self: &Arc<Self>, bounds: Bounds, now: Timestamp) -> Result<Permit, Failure> {
        if self.node.waiting.fetch_add(1, Ordering::Relaxed) >= bounds.per_node {
            self.node.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Failure::Overloaded("too many commands wait on this node".into()));
        }
        let permit = Permit { gate: self.clone(), counts_for_node: true };
        self.enter(bounds.per_entity, now, permit)
    }

    /// Admits a message of a conversation.
    pub fn admit_conversation(self: &Arc<Self>, bounds: Bounds, now: Timestamp) -> Result<Permit, Failure> {
        let permit = Permit { gate: self.clone(), counts_for_node: false };
        self.enter(bounds.per_entity * CONVERSATION_SHARE, now, permit)
    }

    /// Counts the permit in; over the bound it is dropped, which counts it out again.
    fn enter(&self, bound: usize, now: Timestamp, permit: Permit) -> Result<Permit, Failure> {
        self.last_used_ms.store(now.as_millis(), Ordering::Relaxed);
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= bound {
            return Err(Failure::Overloaded("too many commands wait for this entity".into()));
        }
        Ok(permit)
    }

    /// Somebody used the entity without waiting for it.
    pub fn touch(&self, now: Timestamp) {
        self.last_used_ms.store(now.as_millis(), Ordering::Relaxed);
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    pub fn set_at_rest(&self, at_rest: bool) {
        self.at_rest.store(at_rest, Ordering::Relaxed);
    }

    pub fn version(&self) -> Version {
        self.version.load(Ordering::Relaxed)
    }

    pub fn set_version(&self, version: Version) {
        self.version.store(version, Ordering::Relaxed);
    }

    /// Whether nobody waits and it was not used for `idle_ms`, or for `REST_MS` when it is at rest.
    pub fn may_leave(&self, idle_ms: i64, now: Timestamp) -> bool {
        let span_ms = if self.at_rest.load(Ordering::Relaxed) { idle_ms.min(REST_MS) } else { idle_ms };
        // With no span to wait for, a clock that was set back meanwhile keeps nobody.
        let is_idle = span_ms <= 0 || now.as_millis() - self.last_used_ms.load(Ordering::Relaxed) >= span_ms;
        self.waiting() == 0 && is_idle
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.waiting.fetch_sub(1, Ordering::AcqRel);
        if self.counts_for_node {
            self.gate.node.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { per_entity: 2, per_node: 3 };

    #[test]
    fn an_entity_and_a_node_admit_so_many_and_no_more() {
        let (node, now) = (Arc::new(NodeGate::default()), Timestamp::default());
        let (a, b) = (Gate::new(node.clone(), now), Gate::new(node.clone(), now));
        let first = a.admit(BOUNDS, now).unwrap();
        let _second = a.admit(BOUNDS, now).unwrap();
        assert!(a.admit(BOUNDS, now).is_err(), "a third for one entity");
        let _third = b.admit(BOUNDS, now).unwrap();
        assert!(b.admit(BOUNDS, now).is_err(), "a fourth for the node");
        assert_eq!((a.waiting(), b.waiting(), node.waiting()), (2, 1, 3), "a refusal leaves no trace");
        drop(first);
        assert!(a.admit(BOUNDS, now).is_ok());
    }

    #[test]
    fn an_entity_at_rest_leaves_sooner_and_never_while_somebody_waits() {
        let start = Timestamp::default();
        let gate = Gate::new(Arc::default(), start);
        let leaves = |after_ms| gate.may_leave(60_000, start.plus_ms(after_ms));
        assert_eq!((leaves(59_999), leaves(60_000)), (false, true));
        gate.set_at_rest(true);
        assert_eq!((leaves(REST_MS - 1), leaves(REST_MS)), (false, true));
        assert!(gate.may_leave(0, start), "a full memory does not wait");
        assert!(gate.may_leave(0, start.plus_ms(-60_000)), "nor does a drain after the clock was set back");
        let waits = gate.admit(BOUNDS, start).unwrap();
        assert!(!leaves(60_000));
        drop(waits);
        assert!(leaves(60_000));
    }

    #[test]
    fn conversations_pass_a_node_that_is_full() {
        let (node, now) = (Arc::new(NodeGate::default()), Timestamp::default());
        let gate = Gate::new(node, now);
        let full = Bounds { per_entity: 1, per_node: 0 };
        assert!(gate.admit(full, now).is_err());
        let held: Vec<_> = (0..CONVERSATION_SHARE).map(|_| gate.admit_conversation(full, now).unwrap()).collect();
        assert!(gate.admit_conversation(full, now).is_err());
        drop(held);
        assert_eq!(gate.waiting(), 0);
    }
}
