//! This node as a member: the task that runs the membership over the wire, and the handle by which the rest of the node
//! knows who owns what and asks others.
//!
//! What the task concludes is in force before it tells others of it. No lookup may wait for the task.

use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use ulid::Ulid;

use super::beat::{Beat, Incarnation, State};
use super::membership::{Event, Member, Membership, Routing, Rules, SILENCE_MS, Settings};
use super::placement::{Owners, PARTITIONS, Partition, Partitions, partition};
use super::register::{Done, OPERATION_MS, Operation};
use super::wire::{AskError, Incoming, Name, Outcome, Wire, WireError};
use crate::persistence::EntityKey;

const TICK_MS: u64 = 20;
/// Heartbeats that are taken in at once before anything else is looked at.
const BEATS_AT_ONCE_MAX: usize = 256;
/// Asks of others that are served at a time.
const SERVED_MAX: usize = 4_096;
/// Before the ears are opened again that were closed.
const DEAF_MS: u64 = 250;
/// How long a node that leaves waits for its entry in the register to say so.
const LEAVE_MS: u64 = 1_000;
/// A node alone has its lease for this long, which is for ever.
const ALONE_MS: u64 = 1_000 * 365 * 24 * 60 * 60 * 1_000;

/// Who answers for an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Here,
    Member(Name),
    /// This node is out of touch, or nobody has taken it yet: look again in a moment.
    Unknown,
}

/// Whether this node does its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Joining,
    InPlace,
    /// It hears nobody, or neither the register nor the others answer it: it acts for nothing.
    OutOfTouch,
    Leaving,
}

/// How long what this node has of an entity in memory may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// In the past when there is none.
    pub until: Instant,
    /// Another one whenever somebody else may have written in between. What came into memory under an earlier one is to be
    /// compared with the journal first.
    pub tenure: u64,
}

impl Lease {
    /// Ask this after having read, and before answering: what was read is then no older than the answer.
    pub fn is_valid(&self) -> bool {
        Instant::now() < self.until
    }
}

/// The members as this node sees them, itself among them, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Grows with each change.
    pub number: u64,
    pub name: Name,
    pub state: State,
    pub members: Vec<Member>,
    /// Among the active members.
    pub owners: Arc<Owners>,
    /// What is granted to this node.
    pub granted: Partitions,
    /// Whether all that hear this node know that it is draining.
    pub is_drained: bool,
}

impl View {
    /// The partitions that a member owns.
    pub fn partitions(&self, name: &Name) -> impl Iterator<Item = Partition> {
        Partition::all().filter(move |partition| self.owners.of(*partition) == Some(name))
    }
}

/// Another process has this node's name: this one must end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another process is the member {name}, with its door at {http}: give this one another --node-name, or stop that one")]
pub struct NameTaken {
    pub name: Name,
    pub http: Arc<str>,
}

/// What answers the asks of others: given the payload and how long the asker waits.
pub type Serve = Arc<dyn Fn(Bytes, Duration) -> BoxFuture<'static, Bytes> + Send + Sync>;

#[derive(Debug, Clone)]
pub struct Options {
    pub name: Name,
    /// Where this node's door is, as others should reach it.
    pub http: String,
    /// Another for each start of a process, later ones greater.
    pub born: Ulid,
}

/// What was counted since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub beats_sent: u64,
    pub beats_heard: u64,
    /// Sent by others and not heard.
    pub beats_missed: u64,
    pub view_changes: u64,
    pub lease_lost: u64,
    pub out_of_touch: u64,
    pub asks_answered: u64,
    pub asks_refused: u64,
    pub asks_timed_out: u64,
    pub asks_lost: u64,
    pub served: u64,
    pub served_overloaded: u64,
}

#[derive(Default)]
struct Counters {
    beats_sent: AtomicU64,
    beats_heard: AtomicU64,
    beats_missed: AtomicU64,
    view_changes: AtomicU64,
    lease_lost: AtomicU64,
    out_of_touch: AtomicU64,
    asks_answered: AtomicU64,
    asks_refused: AtomicU64,
    asks_timed_out: AtomicU64,
    asks_lost: AtomicU64,
    served: AtomicU64,
    served_overloaded: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

struct Shared {
    name: Name,
    /// The moment from which milliseconds are counted.
    begun: Instant,
    routing: ArcSwap<Routing>,
    view: watch::Sender<Arc<View>>,
    members: ArcSwap<Vec<Member>>,
    counters: Counters,
    serve: OnceLock<Serve>,
    taken: watch::Sender<Option<NameTaken>>,
    /// Missing when the node is alone.
    road: Option<Road>,
}

struct Road {
    wire: Arc<dyn Wire>,
    commands: mpsc::Sender<Command>,
}

enum Command {
    Drain,
    Leave(oneshot::Sender<()>),
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Cluster(Arc<Shared>);

impl Cluster {
    /// A node without others: it owns everything, for ever.
    pub fn alone(options: Options) -> Self {
        let table = Arc::new(Owners::among([options.name.clone()]));
        let all: Partitions = Partition::all().collect();
        let routing = Routing { claimed: all, granted: all, lease_until_ms: ALONE_MS, ..Routing::nothing(table) };
        let settings = settings(&options);
        let member = Member {
            name: settings.name,
            incarnation: settings.incarnation,
            state: State::Active,
            http: settings.http,
            version: settings.version,
            unheard_ms: 0,
        };
        Cluster(Arc::new(shared(options.name, routing, State::Active, vec![member], None)))
    }

    /// Joins the others. Returns at once: the view tells when this node is active.
    pub async fn join(options: Options, wire: Arc<dyn Wire>) -> Result<Self, WireError> {
        let settings = settings(&options);
        let machine = Membership::new(settings, 0);
        let (commands, told) = mpsc::channel(8);
        let beats = wire.hear().await?;
        let road = Some(Road { wire: wire.clone(), commands });
        let (routing, members) = (machine.routing().clone(), machine.members().to_vec());
        let cluster = Cluster(Arc::new(shared(options.name, routing, State::Joining, members, road)));
        let task = Task {
            shared: cluster.0.clone(),
            wire,
            machine,
            beats,
            told,
            outcomes: FuturesUnordered::new(),
            view_number: 0,
            was_drained: false,
            is_listening: false,
            leaving: None,
        };
        tokio::spawn(task.run());
        Ok(cluster)
    }

    pub fn name(&self) -> &Name {
        &self.0.name
    }

    /// Who answers for an entity. Takes no lock and never waits.
    pub fn owner(&self, key: &EntityKey) -> Owner {
        let partition = partition(key);
        let routing = self.0.routing.load();
        if routing.is_here(partition, self.0.now_ms()) {
            return Owner::Here;
        }
        let owner = if routing.claimed.contains(partition) {
            routing.rivals.get(&partition)
        } else {
            routing.table.of(partition).filter(|name| **name != self.0.name)
        };
        owner.map_or(Owner::Unknown, |name| Owner::Member(name.clone()))
    }

    /// Until when this node may answer reads of this entity from memory. Takes no lock and never waits.
    pub fn lease(&self, key: &EntityKey) -> Lease {
        let partition = partition(key);
        let routing = self.0.routing.load();
        let until_ms = if routing.granted.contains(partition) { routing.lease_until_ms } else { 0 };
        Lease { until: self.0.begun + Duration::from_millis(until_ms), tenure: routing.grants[partition.index()] }
    }

    pub fn standing(&self) -> Standing {
        let members = self.0.members.load();
        // Without an entry of its own it is about to leave.
        let Some(itself) = members.iter().find(|member| member.name == self.0.name) else { return Standing::Leaving };
        let (routing, now_ms) = (self.0.routing.load(), self.0.now_ms());
        let is_heeded = now_ms < routing.lease_until_ms.max(routing.acknowledged_until_ms);
        match itself.state {
            State::Active if is_heeded => Standing::InPlace,
            State::Joining if itself.unheard_ms < SILENCE_MS => Standing::Joining,
            State::Active | State::Joining => Standing::OutOfTouch,
            State::Draining | State::Left => Standing::Leaving,
        }
    }

    /// How many partitions this node acts for at this moment.
    pub fn partitions_here(&self) -> usize {
        let (routing, now_ms) = (self.0.routing.load(), self.0.now_ms());
        routing.granted.iter().filter(|partition| routing.is_here(*partition, now_ms)).count()
    }

    pub fn lease_is_valid(&self, key: &EntityKey) -> bool {
        self.0.routing.load().is_leased(partition(key), self.0.now_ms())
    }

    /// Changes with the members, their states and their partitions.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.0.view.subscribe()
    }

    /// The members with the time since they were last heard, as of a moment ago.
    pub fn members(&self) -> Arc<Vec<Member>> {
        self.0.members.load_full()
    }

    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.0.counters;
        Counts {
            beats_sent: of(&counters.beats_sent),
            beats_heard: of(&counters.beats_heard),
            beats_missed: of(&counters.beats_missed),
            view_changes: of(&counters.view_changes),
            lease_lost: of(&counters.lease_lost),
            out_of_touch: of(&counters.out_of_touch),
            asks_answered: of(&counters.asks_answered),
            asks_refused: of(&counters.asks_refused),
            asks_timed_out: of(&counters.asks_timed_out),
            asks_lost: of(&counters.asks_lost),
            served: of(&counters.served),
            served_overloaded: of(&counters.served_overloaded),
        }
    }

    /// Asks another member. Ends early when nobody listens there, the connection is lost, or the member is taken for dead.
    pub async fn ask(&self, member: &Name, payload: Bytes, patience: Duration) -> Result<Bytes, AskError> {
        let Some(road) = &self.0.road else {
            return Err(AskError::NoSuchMember(member.clone()));
        };
        let answered = tokio::select! {
            biased;
            answered = road.wire.ask(member, payload, patience) => answered,
            () = self.is_lost(member) => Err(AskError::Lost(format!("{member} is taken for dead"))),
        };
        count(match &answered {
            Ok(_) => &self.0.counters.asks_answered,
            Err(AskError::NoSuchMember(_) | AskError::Overloaded(_) | AskError::TooLarge { .. }) => &self.0.counters.asks_refused,
            Err(AskError::TimedOut(_)) => &self.0.counters.asks_timed_out,
            Err(AskError::Lost(_)) => &self.0.counters.asks_lost,
        });
        answered
    }

    /// Returns when a member that was there is there no more, be it that it came back: who was killed and is started again
    /// before it was missed, or joins anew, does not answer what it was asked before.
    async fn is_lost(&self, name: &Name) {
        let mut view = self.view();
        let life = |view: &View| view.members.iter().find(|member| member.name == *name).map(|member| member.incarnation);
        let was = view.wait_for(|view| life(view).is_some()).await.ok().and_then(|view| life(&view));
        if was.is_none() || view.wait_for(|view| life(view) != was).await.is_err() {
            pending().await
        }
    }

    /// From now on, `serve` answers what others ask. Before that, they hear that there is too much to do.
    pub fn serve(&self, serve: Serve) {
        if self.0.serve.set(serve).is_err() {
            tracing::error!("asks of other members are served already");
        }
    }

    /// Gives all partitions up. Answers when all that hear this node know, or at the deadline with `false`. Then hand over what
    /// is in memory, and `leave`.
    pub async fn drain(&self, deadline: Duration) -> bool {
        let Some(road) = &self.0.road else {
            return true;
        };
        let mut view = self.view();
        let drained =
            async { road.commands.send(Command::Drain).await.is_ok() && view.wait_for(|view| view.is_drained).await.is_ok() };
        timeout(deadline, drained).await.unwrap_or(false)
    }

    /// Says good-bye. Nobody is answered after this.
    pub async fn leave(&self) {
        let Some(road) = &self.0.road else {
            return;
        };
        let (told, gone) = oneshot::channel();
        if road.commands.send(Command::Leave(told)).await.is_ok() {
            // The task drops the sender when it ends, and it ends within its own time.
            let _ = gone.await;
        }
    }

    /// Returns when another process has taken this node's name, and this one must end.
    pub async fn name_taken(&self) -> NameTaken {
        let mut taken = self.0.taken.subscribe();
        let taken = taken.wait_for(Option::is_some).await.ok().and_then(|taken| taken.clone());
        match taken {
            Some(taken) => taken,
            None => pending().await,
        }
    }
}

fn settings(options: &Options) -> Settings {
    Settings {
        name: options.name.clone(),
        incarnation: Incarnation::first(options.born),
        http: options.http.as_str().into(),
        version: env!("CARGO_PKG_VERSION").into(),
        seed: fastrand::u64(..),
        rules: Rules::default(),
    }
}

fn shared(name: Name, routing: Routing, state: State, members: Vec<Member>, road: Option<Road>) -> Shared {
    let view = View {
        number: 0,
        name: name.clone(),
        state,
        members: members.clone(),
        owners: routing.table.clone(),
        granted: routing.granted,
        is_drained: false,
    };
    Shared {
        name,
        begun: Instant::now(),
        routing: ArcSwap::from_pointee(routing),
        view: watch::channel(Arc::new(view)).0,
        members: ArcSwap::from_pointee(members),
        counters: Counters::default(),
        serve: OnceLock::new(),
        taken: watch::channel(None).0,
        road,
    }
}

/// Runs the state machine.
struct Task {
    shared: Arc<Shared>,
    wire: Arc<dyn Wire>,
    machine: Membership,
    beats: BoxStream<'static, Bytes>,
    told: mpsc::Receiver<Command>,
    /// The operation of the register that is under way; at most one, and one that was given up.
    outcomes: FuturesUnordered<BoxFuture<'static, (u64, Done)>>,
    view_number: u64,
    was_drained: bool,
    is_listening: bool,
    leaving: Option<(oneshot::Sender<()>, Instant)>,
}

impl Task {
    async fn run(mut self) {
        let mut ticks = interval(Duration::from_millis(TICK_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // After a pause, what was heard meanwhile comes before the conclusion that nobody was heard.
                biased;
                beat = self.beats.next() => match beat {
                    Some(beat) => self.hear(beat),
                    None => self.open_ears().await,
                },
                Some((id, done)) = self.outcomes.next() => {
                    let now_ms = self.shared.now_ms();
                    self.machine.done(id, done, now_ms);
                }
                Some(command) = self.told.recv() => self.obey(command),
                _ = ticks.tick() => {
                    let now_ms = self.shared.now_ms();
                    self.machine.tick(now_ms);
                }
            }
            if self.conclude() {
                return;
            }
        }
    }

    fn hear(&mut self, first: Bytes) {
        let now_ms = self.shared.now_ms();
        let mut next = Some(first);
        for _ in 0..BEATS_AT_ONCE_MAX {
            let Some(bytes) = next else { break };
            match serde_json::from_slice::<Beat>(&bytes) {
                Ok(beat) => {
                    count(&self.shared.counters.beats_heard);
                    self.machine.hear(beat, now_ms);
                }
                Err(error) => tracing::debug!(%error, "a heartbeat is not understood"),
            }
            next = self.beats.next().now_or_never().flatten();
        }
    }

    /// The connection closed the subscription. Meanwhile this node hears nobody, and finds out by itself.
    async fn open_ears(&mut self) {
        sleep(Duration::from_millis(DEAF_MS)).await;
        match timeout(Duration::from_millis(OPERATION_MS), self.wire.hear()).await {
            Ok(Ok(beats)) => self.beats = beats,
            Ok(Err(error)) => tracing::warn!(%error, "heartbeats cannot be heard"),
            Err(_) => tracing::warn!("heartbeats cannot be heard: no answer"),
        }
        let now_ms = self.shared.now_ms();
        self.machine.tick(now_ms);
    }

    fn obey(&mut self, command: Command) {
        let now_ms = self.shared.now_ms();
        match command {
            Command::Drain => self.machine.drain(now_ms),
            Command::Leave(told) => {
                self.machine.leave(now_ms);
                self.leaving = Some((told, Instant::now() + Duration::from_millis(LEAVE_MS)));
            }
        }
    }

    /// Puts into force what follows from what was just heard, then tells others. Says whether this was the last time.
    fn conclude(&mut self) -> bool {
        let now_ms = self.shared.now_ms();
        if **self.shared.routing.load() != *self.machine.routing() {
            self.shared.routing.store(Arc::new(self.machine.routing().clone()));
        }
        self.shared.members.store(Arc::new(self.machine.members().to_vec()));
        self.shared.counters.beats_missed.store(self.machine.missed(), Ordering::Relaxed);
        self.show(now_ms);
        for event in self.machine.take_events() {
            self.tell(event);
        }
        if let Some(beat) = self.machine.beat(now_ms) {
            match serde_json::to_vec(&beat) {
                Ok(bytes) => self.wire.broadcast(bytes.into()),
                Err(error) => tracing::error!(%error, "a heartbeat cannot be written"),
            }
            count(&self.shared.counters.beats_sent);
        }
        if let Some((id, operation)) = self.machine.operation(now_ms) {
            self.outcomes.push(operate(self.wire.clone(), id, operation));
        }
        if !self.is_listening && self.machine.state() == State::Active {
            self.is_listening = true;
            tokio::spawn(listen(self.shared.clone(), self.wire.clone()));
        }
        let is_taken = self.shared.taken.borrow().is_some();
        let is_gone = self.leaving.as_ref().is_some_and(|(_, until)| self.outcomes.is_empty() || Instant::now() >= *until);
        is_taken || is_gone
    }

    fn show(&mut self, now_ms: u64) {
        let is_drained = self.machine.is_drained(now_ms);
        if self.view_number == self.machine.view_number() && self.was_drained == is_drained {
            return;
        }
        (self.view_number, self.was_drained) = (self.machine.view_number(), is_drained);
        count(&self.shared.counters.view_changes);
        let routing = self.machine.routing();
        let number = self.shared.view.borrow().number + 1;
        self.shared.view.send_replace(Arc::new(View {
            number,
            name: self.shared.name.clone(),
            state: self.machine.state(),
            members: self.machine.members().to_vec(),
            owners: routing.table.clone(),
            granted: routing.granted,
            is_drained,
        }));
    }

    fn tell(&self, event: Event) {
        match event {
            Event::Joined(name) => tracing::info!(member = %name, "a member was heard"),
            Event::Left(name) => tracing::info!(member = %name, "a member has left"),
            Event::Lost(name) => tracing::warn!(member = %name, "a member is silent and out"),
            Event::Restarted(name) => tracing::info!(member = %name, "a member was started anew"),
            Event::StateIs(name, state) => tracing::info!(member = %name, ?state, "a member"),
            Event::Granted { gained, lost } => {
                tracing::info!(gained = gained.len(), lost = lost.len(), "partitions of this node");
            }
            Event::LeaseGained => tracing::info!("reads are answered from memory"),
            // Given up, and not lost.
            Event::LeaseLost if matches!(self.machine.state(), State::Draining | State::Left) => {}
            Event::LeaseLost => {
                count(&self.shared.counters.lease_lost);
                tracing::warn!("reads are not answered from memory: the lease was lost");
            }
            Event::OutOfTouch => {
                count(&self.shared.counters.out_of_touch);
                tracing::warn!("this node was paused or out of touch with NATS, and joins anew");
            }
            Event::Doubled { http } => tracing::error!(%http, "another process has this node's name, and should end"),
            Event::NameTaken { http } => {
                tracing::error!(%http, "another process has this node's name");
                self.shared.taken.send_replace(Some(NameTaken { name: self.shared.name.clone(), http }));
            }
        }
    }
}

fn operate(wire: Arc<dyn Wire>, id: u64, operation: Operation) -> BoxFuture<'static, (u64, Done)> {
    async move {
        let done = match operation {
            Operation::Put { member, expected, payload } => Done::Put(wire.put(&member, expected, payload).await),
            Operation::Read => Done::Read(wire.read().await),
        };
        (id, done)
    }
    .boxed()
}

/// Serves what others ask, for as long as the node lives.
async fn listen(shared: Arc<Shared>, wire: Arc<dyn Wire>) {
    let permits = Arc::new(Semaphore::new(SERVED_MAX));
    while shared.taken.borrow().is_none() {
        match timeout(Duration::from_millis(OPERATION_MS), wire.listen(&shared.name)).await {
            Ok(Ok(mut asks)) => {
                while let Some(incoming) = asks.next().await {
                    serve(&shared, &permits, incoming);
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "asks of other members cannot be heard"),
            Err(_) => tracing::warn!("asks of other members cannot be heard: no answer"),
        }
        sleep(Duration::from_millis(DEAF_MS)).await;
    }
}

fn serve(shared: &Arc<Shared>, permits: &Arc<Semaphore>, incoming: Incoming) {
    let Incoming { payload, patience, answer } = incoming;
    let (Ok(permit), Some(serve)) = (permits.clone().try_acquire_owned(), shared.serve.get().cloned()) else {
        count(&shared.counters.served_overloaded);
        // If even this would have to wait, the asker meets its deadline.
        let _ = answer.send(Outcome::Overloaded).now_or_never();
        return;
    };
    count(&shared.counters.served);
    tokio::spawn(async move {
        if let Ok(answered) = timeout(patience, serve(payload, patience)).await {
            answer.send(Outcome::Answered(answered)).await;
        }
        drop(permit);
    });
}

const _: () = assert!(PARTITIONS <= 1 << u8::BITS, "a partition is one byte of the hash");
