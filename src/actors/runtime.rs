//! The runtime that entities live in: asked from outside, woken by time, drained at the end.

use std::any::TypeId;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ractor::{Actor, ActorCell};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::agenda::Agenda;
use super::ask::{ASK_TIMEOUT, AskError, Caller, Failure};
use super::clock::Clock;
use super::conversation::{Letter, OutsidePort, Port};
use super::entity_actor::Watch;
use super::gate::{Bounds, NodeGate};
use super::kind::{AnyKind, Kind, KindHandle, Origin};
use super::reply::Outcome;
use super::supervisor::{KindSupervisor, Root};
use crate::domain::{Entity, EveryKind, Outside, Timestamp};
use crate::integrations::Integration;
use crate::persistence::{EntityKey, Journal, Position, ReadError, Snapshots, Version, Wake};

/// How the runtime behaves.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub bounds: Bounds,
    /// An entity that nobody used for so long leaves memory, in milliseconds.
    pub idle_ms: i64,
    /// Entities that may be in memory: the nearer, the sooner unused ones leave.
    pub residents_max: usize,
    /// Records after which an entity's snapshot is renewed.
    pub snapshot_every: u64,
    /// Entities woken each second at most, so that a start with many debts does not starve the shop.
    pub wakes_per_second: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            bounds: Bounds { per_entity: 1_024, per_node: 65_536 },
            idle_ms: 60_000,
            residents_max: 100_000,
            snapshot_every: 100,
            wakes_per_second: 20_000,
        }
    }
}

/// What every entity needs of its node.
pub struct Shared {
    pub journal: Arc<dyn Journal>,
    pub snapshots: Arc<Snapshots>,
    pub config: Config,
    pub clock: Clock,
    pub agenda: Agenda,
    pub node: Arc<NodeGate>,
    pub counters: Counters,
    kinds: OnceLock<HashMap<&'static str, Arc<dyn AnyKind>>>,
    outside: OnceLock<HashMap<&'static str, Arc<dyn Port>>>,
    draining: AtomicBool,
}

/// What happened since the start; read by the metrics.
#[derive(Debug, Default)]
pub struct Counters {
    pub activations: Counter,
    pub passivations: Counter,
    pub deaths: Counter,
    pub writes: Counter,
    pub failed_writes: Counter,
    pub snapshots: Counter,
}

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Shared {
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub fn post_to_entity(&self, kind: &str, id: &str, letter: Letter) {
        match self.kinds.get().and_then(|kinds| kinds.get(kind)) {
            Some(kind) => kind.post(id, letter),
            None => (letter.answer)(Err(Failure::NotWritten(format!("no such kind: {kind}")))),
        }
    }

    pub fn post_outside(&self, name: &str, letter: Letter) {
        match self.outside.get().and_then(|ports| ports.get(name)) {
            Some(port) => port.post(name, letter),
            None => (letter.answer)(Err(Failure::NotWritten(format!("nothing carries to {name}")))),
        }
    }

    fn kinds(&self) -> impl Iterator<Item = &Arc<dyn AnyKind>> {
        self.kinds.get().into_iter().flat_map(HashMap::values)
    }

    fn wake(&self, entity: &EntityKey) {
        match self.kinds.get().and_then(|kinds| kinds.get(entity.kind())) {
            Some(kind) => kind.wake(entity.id()),
            None => tracing::error!(%entity, "the journal's agenda names a kind that this program does not know"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the supervision tree cannot be started: {0}")]
    Supervision(#[from] ractor::SpawnErr),
    #[error("the agenda cannot be read: {0}")]
    Agenda(#[from] ReadError),
}

/// An entity that failed too often.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct SetAside {
    pub kind: String,
    pub id: String,
    pub reason: String,
    pub since: Timestamp,
}

/// Who lives on this node.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Census {
    pub residents: BTreeMap<&'static str, usize>,
    pub set_aside: Vec<SetAside>,
    /// Commands that wait for an answer.
    pub waiting: usize,
    /// Entities with a timer or a debt.
    pub agenda: usize,
}

/// Collects the kinds before the start.
pub struct Builder {
    shared: Arc<Shared>,
    kinds: Vec<Starting>,
    by_type: HashMap<TypeId, Arc<dyn AnyKind>>,
    outside: HashMap<&'static str, Arc<dyn Port>>,
}

type Supervise = Box<dyn FnOnce(ActorCell) -> futures_util::future::BoxFuture<'static, Result<(), ractor::SpawnErr>> + Send>;

struct Starting {
    handle: Arc<dyn AnyKind>,
    supervise: Supervise,
}

impl Builder {
    pub fn new(journal: Arc<dyn Journal>, snapshots: Arc<Snapshots>, config: Config) -> Self {
        let shared = Shared {
            journal,
            snapshots,
            config,
            clock: Clock::default(),
            agenda: Agenda::default(),
            node: Arc::default(),
            counters: Counters::default(),
            kinds: OnceLock::new(),
            outside: OnceLock::new(),
            draining: AtomicBool::new(false),
        };
        Builder { shared: Arc::new(shared), kinds: Vec::new(), by_type: HashMap::new(), outside: HashMap::new() }
    }

    /// Registers who carries requests to something outside.
    pub fn outside<T: Outside>(mut self, integration: Arc<impl Integration<T>>) -> Self {
        self.outside.insert(T::NAME, Arc::new(OutsidePort::<T>::new(integration)));
        self
    }

    /// Starts the supervision tree, reads the agenda, and begins to wake who owes something.
    pub async fn start(self) -> Result<Runtime, StartError> {
        let Builder { shared, kinds, by_type, outside } = self;
        let (fatal, fatal_heard) = watch::channel(None);
        let (root, _join) = Actor::spawn(None, Root, fatal).await?;
        let names = kinds.iter().map(|kind| (kind.handle.name(), kind.handle.clone())).collect();
        for kind in kinds {
            (kind.supervise)(root.get_cell()).await?;
        }
        let _ = shared.kinds.set(names);
        let _ = shared.outside.set(outside);
        let woken = read_agenda(&shared).await?;
        if woken > 0 {
            tracing::info!(entities = woken, "entities have timers or debts from before this start");
        }
        let tasks = vec![tokio::spawn(keep_time(shared.clone())), tokio::spawn(sweep(shared.clone()))];
        Ok(Runtime(Arc::new(Inner { shared, by_type, root: root.get_cell(), fatal: fatal_heard, tasks })))
    }
}

/// Registers a kind of entity.
impl EveryKind for Builder {
    fn kind<E: Entity>(&mut self) {
        let kind = Kind::<E>::new(self.shared.clone());
        let handle: Arc<dyn AnyKind> = Arc::new(KindHandle(kind.clone()));
        self.by_type.insert(TypeId::of::<E>(), handle.clone());
        self.kinds.push(Starting {
            handle,
            supervise: Box::new(move |root| {
                Box::pin(async move {
                    let supervisor = KindSupervisor::start(kind.clone(), root).await?;
                    kind.supervised_by(supervisor);
                    Ok(())
                })
            }),
        });
    }
}

/// The runtime's face to the door. Cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    by_type: HashMap<TypeId, Arc<dyn AnyKind>>,
    root: ActorCell,
    fatal: watch::Receiver<Option<String>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.root.stop(None);
    }
}

impl Runtime {
    /// Sends a command and waits for its durable answer.
    pub async fn ask<E: Entity>(&self, id: &str, command: E::Command, caller: Caller) -> Outcome<E> {
        let kind = self.kind::<E>()?;
        let (tell, heard) = oneshot::channel();
        let timeout = caller.timeout;
        kind.submit(id, command, caller, Origin::Outside, move |outcome| {
            let _ = tell.send(outcome);
        });
        match tokio::time::timeout(timeout, heard).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(AskError::Failed(Failure::Died)),
            Err(_) => Err(AskError::Failed(Failure::TimedOut)),
        }
    }

    /// Looks at the newest state; what it saw is durable when this returns. An entity that was never written shows its
    /// default state at version 0.
    pub async fn view<E: Entity, T: Send + 'static>(
        &self,
        id: &str,
        look: impl FnOnce(&E::State, Version) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let kind = self.kind::<E>()?;
        let (tell, heard) = oneshot::channel();
        kind.look(id, move |state| {
            let seen = state.map(|(state, version)| look(state, version));
            Box::new(move |durable| {
                let _ = tell.send(durable.and(seen));
            })
        })?;
        match tokio::time::timeout(ASK_TIMEOUT, heard).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(_)) => Err(Failure::Died),
            Err(_) => Err(Failure::TimedOut),
        }
    }

    /// Waits until `look` has seen what it looks for in a state of this entity, at most for `timeout`. What it saw is
    /// durable, as of the position given, when this returns.
    pub async fn watch<E: Entity, T: Send + 'static>(
        &self,
        id: &str,
        timeout: Duration,
        mut look: impl FnMut(&E::State, Version) -> Option<T> + Send + 'static,
    ) -> Result<(T, Position), Failure> {
        let kind = self.kind::<E>()?;
        let (tell, heard) = oneshot::channel();
        let mut tell = Some(tell);
        let watch: Watch<E> = Box::new(move |state, version| {
            if tell.as_ref().is_none_or(oneshot::Sender::is_closed) {
                return Some(Box::new(|_| ()));
            }
            let seen = look(state, version)?;
            let tell = tell.take()?;
            Some(Box::new(move |durable| {
                let _ = tell.send(durable.map(|position| (seen, position)));
            }))
        });
        // Held here and not with the watch: what is never seen must not keep the entity, nor a place among those that wait.
        let _permit = kind.watch(id, Instant::now() + timeout, watch)?;
        match tokio::time::timeout(timeout, heard).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(_)) => Err(Failure::Died),
            Err(_) => Err(Failure::TimedOut),
        }
    }

    fn kind<E: Entity>(&self) -> Result<Arc<Kind<E>>, Failure> {
        if self.0.shared.is_draining() {
            return Err(Failure::Draining);
        }
        let kind = self.0.by_type.get(&TypeId::of::<E>()).cloned().and_then(|kind| kind.as_any().downcast().ok());
        kind.ok_or_else(|| Failure::NotWritten(format!("no such kind: {}", E::KIND)))
    }

    pub fn journal(&self) -> &Arc<dyn Journal> {
        &self.0.shared.journal
    }

    pub fn clock(&self) -> &Clock {
        &self.0.shared.clock
    }

    pub fn now(&self) -> Timestamp {
        self.0.shared.clock.now()
    }

    pub fn counters(&self) -> &Counters {
        &self.0.shared.counters
    }

    pub fn census(&self) -> Census {
        let shared = &self.0.shared;
        Census {
            residents: shared.kinds().map(|kind| (kind.name(), kind.residents())).collect(),
            set_aside: shared.kinds().flat_map(|kind| kind.set_aside()).collect(),
            waiting: shared.node.waiting(),
            agenda: shared.agenda.len(),
        }
    }

    /// Takes an entity back that was set aside; false when it was not.
    pub fn release(&self, kind: &str, id: &str) -> bool {
        self.0.shared.kinds.get().and_then(|kinds| kinds.get(kind)).is_some_and(|kind| kind.release(id))
    }

    /// Resolves when the node can no longer keep its word and must end.
    pub async fn fatal(&self) -> String {
        let mut fatal = self.0.fatal.clone();
        match fatal.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The root supervisor is gone because the runtime is: nothing more will fail.
            Err(_) => std::future::pending().await,
        }
    }

    /// Takes no new work, lets what is in flight finish, has every entity write its snapshot and leave. Returns whether
    /// all left before the deadline; those that did not are in the journal all the same.
    pub async fn drain(&self, deadline: Duration) -> bool {
        let shared = &self.0.shared;
        shared.draining.store(true, Ordering::Release);
        let emptied = async {
            loop {
                if shared.node.waiting() == 0 {
                    shared.kinds().for_each(|kind| kind.sweep(0));
                    if shared.kinds().all(|kind| kind.residents() == 0) {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let all_left = tokio::time::timeout(deadline, emptied).await.is_ok();
        self.0.tasks.iter().for_each(JoinHandle::abort);
        all_left
    }
}

/// Fills the agenda from the journal.
async fn read_agenda(shared: &Arc<Shared>) -> Result<usize, ReadError> {
    const PAGE: usize = 10_000;
    let (mut after, mut count, now) = (None, 0, shared.clock.now());
    loop {
        let page = shared.journal.agenda(after.as_ref(), PAGE).await?;
        for (entity, wake) in &page {
            match wake {
                Wake::Now => shared.agenda.set(entity, now),
                Wake::At(at) => shared.agenda.set(entity, *at),
                Wake::Never => continue,
            }
            count += 1;
        }
        if page.len() < PAGE {
            return Ok(count);
        }
        after = page.into_iter().last().map(|(entity, _)| entity);
    }
}

/// Wakes entities when their time comes, at a bounded rate.
async fn keep_time(shared: Arc<Shared>) {
    const ROUNDS_PER_SECOND: usize = 50;
    let at_once = (shared.config.wakes_per_second / ROUNDS_PER_SECOND).max(1);
    // A draining node leaves what is due to its next start.
    while !shared.is_draining() {
        let due = shared.agenda.take_due(shared.clock.now(), at_once);
        due.iter().for_each(|entity| shared.wake(entity));
        let pause = if due.len() == at_once {
            Duration::from_millis(1_000 / ROUNDS_PER_SECOND as u64)
        } else {
            let wait_ms = shared.agenda.next().map_or(60_000, |at| at.since_ms(shared.clock.now()).clamp(1, 60_000));
            Duration::from_millis(wait_ms.unsigned_abs())
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.agenda.earlier(), if due.len() < at_once => {}
            () = shared.clock.moved() => {}
        }
    }
}

/// Asks idle entities to leave, four times within the idle span and at least once a second.
async fn sweep(shared: Arc<Shared>) {
    let Config { idle_ms, residents_max, .. } = shared.config;
    let pause = Duration::from_millis((idle_ms / 4).clamp(10, 1_000).unsigned_abs());
    loop {
        tokio::time::sleep(pause).await;
        let residents = shared.kinds().map(|kind| kind.residents()).sum();
        let idle_ms = idle_span_ms(idle_ms, residents, residents_max);
        shared.kinds().for_each(|kind| kind.sweep(idle_ms));
    }
}

/// How long an entity may stay unused: the whole span while half of the room is free, then ever shorter.
fn idle_span_ms(idle_ms: i64, residents: usize, residents_max: usize) -> i64 {
    let free = residents_max.saturating_sub(residents) as i128;
    let half = (residents_max / 2).max(1) as i128;
    (i128::from(idle_ms) * free.min(half) / half) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuller_the_memory_the_sooner_an_unused_entity_leaves() {
        for (residents, span) in [(0, 60_000), (50, 60_000), (75, 30_000), (99, 1_200), (100, 0), (500, 0)] {
            assert_eq!(idle_span_ms(60_000, residents, 100), span, "{residents}");
        }
    }
}
