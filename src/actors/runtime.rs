//! The runtime that entities live in: asked from outside, woken by time, drained at the end.

use std::any::TypeId;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use ractor::{Actor, ActorCell};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::agenda::Agenda;
use super::ask::{ASK_TIMEOUT, AskError, Caller, Failure};
use super::clock::{Clock, Source};
use super::conversation::{Letter, OutsidePort, Port};
use super::courier::{self, About, Asks, Question, Told};
use super::durations::{Counted, Durations};
use super::entity_actor::Watch;
use super::gate::{Bounds, NodeGate};
use super::kind::{AnyKind, Kind, KindHandle, Origin};
use super::placement::{MemberSeen, Owner, Placement, Standing};
use super::reply::Outcome;
use super::supervisor::{KindSupervisor, Root};
use crate::domain::{Entity, EveryKind, Outside, SagaEnding, Timestamp};
use crate::integrations::Integration;
use crate::persistence::{Committed, EntityKey, Journal, Position, ReadError, Snapshots, Version, Wake};

/// How long other members are waited for when an operator asks about all of them.
const MEMBERS_WAIT: Duration = Duration::from_secs(2);

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
    pub clock: Source,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            bounds: Bounds { per_entity: 1_024, per_node: 65_536 },
            idle_ms: 60_000,
            residents_max: 100_000,
            snapshot_every: 100,
            wakes_per_second: 20_000,
            clock: Source::System,
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
    /// Empty on a node that is alone: everything lives here.
    placement: OnceLock<Arc<dyn Placement>>,
    /// Where tasks are started, from whatever thread.
    pub on_tasks: Handle,
    kinds: OnceLock<BTreeMap<&'static str, Arc<dyn AnyKind>>>,
    outside: OnceLock<HashMap<&'static str, Arc<dyn Port>>>,
    draining: AtomicBool,
    live_sessions: OnceLock<Box<dyn Fn() -> usize + Send + Sync>>,
}

/// What happened since the start; read by the metrics.
#[derive(Debug)]
pub struct Counters {
    pub activations: Counter,
    pub passivations: Counter,
    /// Those that left because another member has them now.
    pub handovers: Counter,
    pub deaths: Counter,
    /// Commands that were refused by a notice, without asking the entity.
    pub turned_away: Counter,
    pub writes: Counter,
    pub failed_writes: Counter,
    /// Those that failed because somebody else had written first.
    pub conflicts: Counter,
    pub snapshots: Counter,
    /// From handing a batch to the journal until it is durable.
    pub appends: Arc<Durations>,
}

/// Upper bounds in microseconds: from a local disk's flush to a stream that elects a new leader.
const APPEND_US: [u64; 14] =
    [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000];

impl Default for Counters {
    fn default() -> Self {
        Counters {
            activations: Counter::default(),
            passivations: Counter::default(),
            handovers: Counter::default(),
            deaths: Counter::default(),
            turned_away: Counter::default(),
            writes: Counter::default(),
            failed_writes: Counter::default(),
            conflicts: Counter::default(),
            snapshots: Counter::default(),
            appends: Arc::new(Durations::new(&APPEND_US)),
        }
    }
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

    pub fn placement(&self) -> Option<&Arc<dyn Placement>> {
        self.placement.get()
    }

    /// Whether this node has that entity, as far as it knows.
    pub fn is_here(&self, entity: &EntityKey) -> bool {
        self.placement().is_none_or(|placement| placement.owner(entity) == Owner::Here)
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
        self.kinds.get().into_iter().flat_map(BTreeMap::values)
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SetAside {
    pub kind: String,
    pub id: String,
    pub reason: String,
    pub since: Timestamp,
}

/// Who lives on this node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Census {
    pub residents: BTreeMap<String, usize>,
    pub set_aside: Vec<SetAside>,
    /// Commands that wait for an answer.
    pub waiting: usize,
    /// Entities with a timer or a debt.
    pub agenda: usize,
    pub live_sessions: usize,
    /// Entities that left because another node has them now. A node of an older version does not say it.
    #[serde(default)]
    pub handovers: u64,
}

/// Collects the kinds before the start.
pub struct Builder {
    shared: Arc<Shared>,
    kinds: Vec<Starting>,
    by_type: BTreeMap<TypeId, Arc<dyn AnyKind>>,
    outside: HashMap<&'static str, Arc<dyn Port>>,
}

type Supervise = Box<dyn FnOnce(ActorCell) -> futures_util::future::BoxFuture<'static, Result<(), ractor::SpawnErr>> + Send>;

struct Starting {
    handle: Arc<dyn AnyKind>,
    supervise: Supervise,
}

impl Builder {
    /// Call it within a tokio runtime.
    pub fn new(journal: Arc<dyn Journal>, snapshots: Arc<Snapshots>, config: Config) -> Self {
        let shared = Shared {
            journal,
            snapshots,
            config,
            clock: Clock::new(config.clock),
            agenda: Agenda::default(),
            node: Arc::default(),
            counters: Counters::default(),
            placement: OnceLock::new(),
            on_tasks: Handle::current(),
            kinds: OnceLock::new(),
            outside: OnceLock::new(),
            draining: AtomicBool::new(false),
            live_sessions: OnceLock::new(),
        };
        Builder { shared: Arc::new(shared), kinds: Vec::new(), by_type: BTreeMap::new(), outside: HashMap::new() }
    }

    /// The node is one of several.
    pub fn among(self, placement: Arc<dyn Placement>) -> Self {
        let _ = self.shared.placement.set(placement);
        self
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
        let woken = match read_agenda(&shared).await {
            // Nothing is this node's yet, and it is read again whenever that changes.
            Err(ReadError::Unreadable(why)) if shared.placement().is_some() => {
                tracing::warn!(why, "the agenda cannot be read yet");
                0
            }
            read => read?,
        };
        if woken > 0 {
            tracing::info!(entities = woken, "entities have timers or debts from before this start");
        }
        let mut tasks = vec![tokio::spawn(keep_time(shared.clone())), tokio::spawn(sweep(shared.clone()))];
        if shared.placement().is_some() {
            tasks.push(tokio::spawn(heed_others(shared.clone())));
        }
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
    by_type: BTreeMap<TypeId, Arc<dyn AnyKind>>,
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
    /// Sends a command, at once; what is returned waits for its durable answer.
    pub fn ask<E: Entity>(&self, id: &str, command: E::Command, caller: Caller) -> impl Future<Output = Outcome<E>> + use<E> {
        self.ask_from::<E>(Origin::Outside, id, command, caller)
    }

    /// The same for what the node itself asks on behalf of many: it passes a crowd as a message between entities does.
    pub fn ask_for_many<E: Entity>(
        &self,
        id: &str,
        command: E::Command,
        caller: Caller,
    ) -> impl Future<Output = Outcome<E>> + use<E> {
        self.ask_from::<E>(Origin::Conversation, id, command, caller)
    }

    // Sent before anything is waited for, so that whoever waits need not carry the command along.
    fn ask_from<E: Entity>(
        &self,
        origin: Origin,
        id: &str,
        command: E::Command,
        caller: Caller,
    ) -> impl Future<Output = Outcome<E>> + use<E> {
        let timeout = caller.timeout;
        let sent = self.kind::<E>().map(|kind| {
            let (tell, heard) = oneshot::channel();
            kind.submit(id, command, caller, origin, move |outcome| {
                let _ = tell.send(outcome);
            });
            heard
        });
        async move {
            match tokio::time::timeout(timeout, sent?).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(AskError::Failed(Failure::Died)),
                Err(_) => Err(AskError::Failed(Failure::TimedOut)),
            }
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
        let Some(placement) = self.0.shared.placement() else {
            return view_here(&kind, id, look).await;
        };
        let until = Instant::now() + ASK_TIMEOUT;
        let key = EntityKey::new(E::KIND, id);
        let mut looks = Looks::default();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let failure = match placement.owner(&key) {
                Owner::Here => match kind.confirm(&**placement, id, left).await {
                    Ok(lease) => {
                        let seen = view_here(&kind, id, look).await?;
                        return if lease.is_valid() {
                            Ok(seen)
                        } else {
                            Err(Failure::OutOfReach("this node was cut off".into()))
                        };
                    }
                    Err(failure) => failure,
                },
                Owner::Member(member) => match state_there::<E>(&**placement, &member, id, None, left, looks).await {
                    Ok((state, version, _)) => return Ok(look(&state, version)),
                    Err(failure) => failure,
                },
                Owner::Unknown => Failure::OutOfReach("nobody knows who has it".into()),
            };
            if placement.standing() == Standing::OutOfTouch {
                return Err(failure);
            }
            look_again(failure, until, &mut looks).await?;
        }
    }

    /// Waits until `look` has seen what it looks for in a state of this entity, at most for `timeout`. What it saw is
    /// durable, as of the position given, when this returns.
    pub async fn watch<E: Entity, T: Send + 'static>(
        &self,
        id: &str,
        timeout: Duration,
        look: impl FnMut(&E::State, Version) -> Option<T> + Send + 'static,
    ) -> Result<(T, Position), Failure> {
        let kind = self.kind::<E>()?;
        let until = Instant::now() + timeout;
        // Shared, because the entity may move while it is watched.
        let look = Arc::new(Mutex::new(look));
        let Some(placement) = self.0.shared.placement() else {
            return watch_here(&kind, id, until, &look).await;
        };
        let key = EntityKey::new(E::KIND, id);
        let (mut looks, mut beyond) = (Looks::default(), None);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let failure = match placement.owner(&key) {
                Owner::Here => match watch_here(&kind, id, until, &look).await {
                    Err(failure @ (Failure::Died | Failure::Moved)) => failure,
                    seen => return seen,
                },
                Owner::Member(member) => match state_there::<E>(&**placement, &member, id, beyond, left, looks).await {
                    Ok((state, version, position)) => {
                        let seen = look.lock().unwrap_or_else(PoisonError::into_inner)(&state, version);
                        if let Some(seen) = seen {
                            return Ok((seen, position));
                        }
                        beyond = Some(version);
                        continue;
                    }
                    Err(failure) => failure,
                },
                Owner::Unknown => Failure::OutOfReach("nobody knows who has it".into()),
            };
            look_again(failure, until, &mut looks).await?;
        }
    }

    /// Answers another node.
    pub async fn serve(&self, question: &[u8]) -> Vec<u8> {
        let told = match serde_json::from_slice::<Question>(question) {
            Ok(Question::Census) => Told::Census(self.census()),
            Ok(Question::Release { kind, id }) => Told::Released(self.release_here(&kind, &id)),
            Ok(Question::About(question)) => match self.0.shared.kinds.get().and_then(|kinds| kinds.get(&*question.kind)) {
                Some(kind) => kind.serve(question).await,
                None => Told::Failed(Failure::NotWritten(format!("no such kind: {}", question.kind))),
            },
            Err(error) => Told::Failed(Failure::NotWritten(format!("the question cannot be understood: {error}"))),
        };
        serde_json::to_vec(&told).unwrap_or_default()
    }

    /// To be called whenever it changed who has what: what belongs elsewhere is asked to leave, and what is owed or due of
    /// all that belongs here now is taken up. Returns how many still have to leave.
    pub async fn placement_changed(&self) -> Result<usize, ReadError> {
        let leaving = self.hand_over();
        read_agenda(&self.0.shared).await?;
        Ok(leaving)
    }

    /// Whether this node does its part; always so when it is alone.
    pub fn standing(&self) -> Standing {
        self.0.shared.placement().map_or(Standing::InPlace, |placement| placement.standing())
    }

    /// Asks what belongs elsewhere to leave; how many there still are.
    pub fn hand_over(&self) -> usize {
        self.0.shared.kinds().map(|kind| kind.hand_over()).sum()
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
            residents: shared.kinds().map(|kind| (kind.name().to_owned(), kind.residents())).collect(),
            set_aside: shared.kinds().flat_map(|kind| kind.set_aside()).collect(),
            waiting: shared.node.waiting(),
            agenda: shared.agenda.len(),
            live_sessions: shared.live_sessions.get().map_or(0, |count| count()),
            handovers: shared.counters.handovers.get(),
        }
    }

    /// How live sessions are counted, which are none of the runtime's.
    pub fn count_live_sessions_by(&self, count: impl Fn() -> usize + Send + Sync + 'static) {
        let _ = self.0.shared.live_sessions.set(Box::new(count));
    }

    /// All members with what lives on each, as far as they can be reached. `None` on a node that is alone.
    pub async fn members(&self) -> Option<Vec<(MemberSeen, Option<Census>)>> {
        let placement = self.0.shared.placement()?;
        let ask = |member: MemberSeen| async move {
            let census = match member.is_self {
                true => Some(self.census()),
                false => match courier::ask(&**placement, &member.name, &Question::Census, MEMBERS_WAIT).await {
                    Ok(Told::Census(census)) => Some(census),
                    _ => None,
                },
            };
            (member, census)
        };
        Some(futures_util::future::join_all(placement.members().into_iter().map(ask)).await)
    }

    /// Takes an entity back that was set aside, on whichever node; false when it was not.
    pub async fn release(&self, kind: &str, id: &str) -> bool {
        if self.release_here(kind, id) {
            return true;
        }
        let Some(placement) = self.0.shared.placement() else { return false };
        let ask = |member: MemberSeen| async move {
            let question = Question::Release { kind: kind.to_owned(), id: id.to_owned() };
            matches!(courier::ask(&**placement, &member.name, &question, MEMBERS_WAIT).await, Ok(Told::Released(true)))
        };
        let others = placement.members().into_iter().filter(|member| !member.is_self);
        futures_util::future::join_all(others.map(ask)).await.contains(&true)
    }

    /// The most commands that wait for one entity, by kind.
    pub fn deepest(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.0.shared.kinds().map(|kind| (kind.name(), kind.deepest()))
    }

    /// How long sagas took, by kind; nothing of kinds that led none.
    pub fn sagas(&self) -> impl Iterator<Item = (&'static str, SagaEnding, Counted)> {
        self.0.shared.kinds().flat_map(|kind| {
            let counted = kind.sagas().into_iter().filter(|(_, counted)| counted.count > 0);
            counted.map(|(ending, counted)| (kind.name(), ending, counted))
        })
    }

    fn release_here(&self, kind: &str, id: &str) -> bool {
        self.0.shared.kinds.get().and_then(|kinds| kinds.get(kind)).is_some_and(|kind| kind.release(id))
    }

    /// Resolves when the node can no longer keep its word and must end.
    pub async fn fatal(&self) -> String {
        let mut fatal = self.0.fatal.clone();
        let heard = fatal.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match heard {
            Some(reason) => reason,
            // The root supervisor is gone because the runtime is: nothing more will fail.
            None => std::future::pending().await,
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

/// Shows the state of an entity of this node.
async fn view_here<E: Entity, T: Send + 'static>(
    kind: &Arc<Kind<E>>,
    id: &str,
    look: impl FnOnce(&E::State, Version) -> T + Send + 'static,
) -> Result<T, Failure> {
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

/// Shows each state of an entity of this node until one has what is looked for.
async fn watch_here<E: Entity, T: Send + 'static>(
    kind: &Arc<Kind<E>>,
    id: &str,
    until: Instant,
    look: &Arc<Mutex<impl FnMut(&E::State, Version) -> Option<T> + Send + 'static>>,
) -> Result<(T, Position), Failure> {
    let (tell, heard) = oneshot::channel();
    let (mut tell, look) = (Some(tell), look.clone());
    let watch: Watch<E> = Box::new(move |state, version| {
        if tell.as_ref().is_none_or(oneshot::Sender::is_closed) {
            return Some(Box::new(|_| ()));
        }
        let seen = look.lock().unwrap_or_else(PoisonError::into_inner)(state, version)?;
        let tell = tell.take()?;
        Some(Box::new(move |durable| {
            let _ = tell.send(durable.map(|position| (seen, position)));
        }))
    });
    let _permit = kind.watch(id, until, watch)?;
    match tokio::time::timeout_at(until, heard).await {
        Ok(Ok(seen)) => seen,
        Ok(Err(_)) => Err(Failure::Died),
        Err(_) => Err(Failure::TimedOut),
    }
}

/// The state of an entity of another node, once its version is beyond this one.
async fn state_there<E: Entity>(
    placement: &dyn Placement,
    member: &str,
    id: &str,
    beyond: Option<Version>,
    wait: Duration,
    looks: Looks,
) -> Result<(E::State, Version, Position), Failure> {
    let wait_ms = wait.as_millis() as u64;
    let question = Question::About(About { kind: E::KIND.to_owned(), id: id.to_owned(), wait_ms, asks: Asks::State { beyond } });
    match courier::ask(placement, member, &question, wait.min(courier::patience(looks.unanswered))).await? {
        Told::State { state, version, position } => match serde_json::from_str(state.get()) {
            Ok(state) => Ok((state, version, position)),
            Err(error) => Err(Failure::OutOfReach(format!("the answer of {member} cannot be understood: {error}").into())),
        },
        Told::Elsewhere => Err(Failure::Moved),
        Told::Failed(failure) => Err(failure),
        Told::Answered { .. } | Told::Rejected(_) | Told::Census(_) | Told::Released(_) => {
            Err(Failure::OutOfReach(format!("{member} answered another question").into()))
        }
    }
}

/// How often was looked in vain.
#[derive(Clone, Copy, Default)]
struct Looks {
    all: u32,
    unanswered: u32,
}

/// Waits a moment if another look may help, and fails if not.
async fn look_again(failure: Failure, until: Instant, looks: &mut Looks) -> Result<(), Failure> {
    let left = until.saturating_duration_since(Instant::now());
    let may_help = matches!(
        failure,
        Failure::Moved | Failure::OutOfReach(_) | Failure::Unknown(_) | Failure::Draining | Failure::Died | Failure::Restarting
    );
    if !may_help || left.is_zero() {
        return Err(failure);
    }
    tokio::time::sleep(courier::pause(looks.all).min(left)).await;
    looks.all += 1;
    looks.unanswered += u32::from(matches!(failure, Failure::Unknown(_)));
    Ok(())
}

/// Fills the agenda from the journal.
async fn read_agenda(shared: &Arc<Shared>) -> Result<usize, ReadError> {
    const PAGE: usize = 10_000;
    let (mut after, mut count, now) = (None, 0, shared.clock.now());
    loop {
        let page = shared.journal.agenda(after.as_ref(), PAGE).await?;
        for (entity, wake) in &page {
            if !shared.is_here(entity) {
                continue;
            }
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

/// A clock that is corrected by so little was not set back.
const CLOCK_JITTER_MS: i64 = 1_000;

/// Wakes entities when their time comes, at a bounded rate.
async fn keep_time(shared: Arc<Shared>) {
    const ROUNDS_PER_SECOND: usize = 50;
    let at_once = (shared.config.wakes_per_second / ROUNDS_PER_SECOND).max(1);
    let mut before = shared.clock.now();
    // A draining node leaves what is due to its next start.
    while !shared.is_draining() {
        let now = shared.clock.now();
        if now.plus_ms(CLOCK_JITTER_MS) < before {
            tracing::warn!(by_ms = before.since_ms(now), "the clock was set back");
            // Debts that wait to be tried again would wait for the time that was.
            if let Err(error) = read_agenda(&shared).await {
                tracing::warn!(%error, "who owes something cannot be read");
            }
        }
        before = now;
        let due = shared.agenda.take_due(shared.clock.now(), at_once);
        due.iter().for_each(|entity| shared.wake(entity));
        let pause = if due.len() == at_once {
            Duration::from_millis(1_000 / ROUNDS_PER_SECOND as u64)
        } else {
            let wait_ms = shared.agenda.next().map_or(60_000, |at| at.since_ms(shared.clock.now()).clamp(1, 60_000));
            Duration::from_millis(wait_ms.unsigned_abs())
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep(pause) => {}
            () = shared.agenda.earlier(), if due.len() < at_once => {}
            () = shared.clock.moved() => {}
        }
    }
}

/// Tells residents what somebody else wrote to them: a former owner whose last write was still on its way.
async fn heed_others(shared: Arc<Shared>) {
    let mut follower = shared.journal.follow(shared.journal.highest());
    while let Some(committed) = follower.next().await {
        match committed {
            Ok(Committed { entity, batch }) => {
                if let Some(kind) = shared.kinds.get().and_then(|kinds| kinds.get(entity.kind())) {
                    kind.stored(entity.id(), batch.last());
                }
            }
            Err(error) => return tracing::error!(%error, "what others write is not heard any more"),
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
        for kind in shared.kinds() {
            kind.sweep(idle_ms);
            // Whoever came to life here by a look at an older picture of the cluster.
            kind.hand_over();
        }
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
