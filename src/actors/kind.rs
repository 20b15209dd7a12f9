//! All entities of one kind: who is resident, who is coming back, who was set aside, and how a message reaches them.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use futures_util::future::BoxFuture;
use ractor::{ActorCell, ActorId, ActorRef, ActorRuntime};
use serde_json::value::to_raw_value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ask::{AskError, Caller, Failure};
use super::conversation::{Letter, Port};
use super::courier::{About, Asks, Courier, Told};
use super::durations::{Counted, Durations};
use super::entity_actor::{Arguments, EntityActor, Message, Watch};
use super::gate::{Gate, Permit};
use super::notice::Board;
use super::placement::{Lease, Owner, Placement};
use super::reply::{Outcome, ReplyTo};
use super::retry::backoff_ms;
use super::runtime::{SetAside, Shared};
use crate::domain::time::MINUTE_MS;
use crate::domain::{Entity, SagaEnding, Timestamp};
use crate::persistence::{EntityKey, Version};

/// So many deaths within [`DEATHS_WITHIN_MS`] and an entity is set aside.
pub const DEATHS_MAX: usize = 5;
pub const DEATHS_WITHIN_MS: i64 = MINUTE_MS;
/// Upper bounds in microseconds: from a purchase on an idle node to an order that nobody paid.
const SAGA_US: [u64; 14] = [
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    10_000_000,
    60_000_000,
    300_000_000,
    1_800_000_000,
    7_200_000_000,
];

pub struct Kind<E: Entity> {
    pub shared: Arc<Shared>,
    places: DashMap<Arc<str>, Place<E>>,
    deaths: Mutex<HashMap<Arc<str>, VecDeque<Timestamp>>>,
    /// How long they took that were completed here.
    completed: Arc<Durations>,
    compensated: Arc<Durations>,
    supervisor: OnceLock<ActorCell>,
}

/// Where an entity is, other than in the journal only.
enum Place<E: Entity> {
    Resident(Seat<E>),
    /// It died and may come back at `until`.
    Restarting {
        until: Timestamp,
    },
    SetAside {
        reason: String,
        since: Timestamp,
    },
}

struct Seat<E: Entity> {
    actor: ActorRef<Message<E>>,
    gate: Arc<Gate>,
    board: Arc<Board<E>>,
    /// Under which it is known to be what the journal says.
    tenure: AtomicU64,
}

/// Whose message asks to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Outside,
    Conversation,
}

impl<E: Entity> Kind<E> {
    pub fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Kind {
            shared,
            places: DashMap::new(),
            deaths: Mutex::new(HashMap::new()),
            completed: Arc::new(Durations::new(&SAGA_US)),
            compensated: Arc::new(Durations::new(&SAGA_US)),
            supervisor: OnceLock::new(),
        })
    }

    pub fn sagas_that(&self, ending: SagaEnding) -> &Arc<Durations> {
        match ending {
            SagaEnding::Completed => &self.completed,
            SagaEnding::Compensated => &self.compensated,
        }
    }

    pub fn supervised_by(&self, supervisor: ActorCell) {
        if self.supervisor.set(supervisor).is_err() {
            tracing::error!(kind = E::KIND, "a kind was given a second supervisor");
        }
    }

    /// Sends a command on its way to wherever the entity is; `ear` hears exactly once.
    pub fn submit(
        self: &Arc<Self>,
        id: &str,
        command: E::Command,
        caller: Caller,
        origin: Origin,
        ear: impl FnOnce(Outcome<E>) + Send + 'static,
    ) {
        let Some(placement) = self.shared.placement().cloned() else {
            return self.submit_here(id, command, caller, origin, ear);
        };
        let until = Instant::now() + caller.timeout;
        let courier = Courier { kind: self.clone(), key: EntityKey::new(E::KIND, id), command, caller, origin, until };
        let lease = placement.lease(&courier.key);
        if placement.owner(&courier.key) != Owner::Here || !lease.is_valid() {
            self.shared.on_tasks.spawn(async move { ear(courier.carry(placement).await) });
            return;
        }
        // As it nearly always goes: here, at once, and without a task of its own.
        let (command, caller, on_tasks) = (courier.command.clone(), courier.caller.clone(), self.shared.on_tasks.clone());
        self.submit_here(id, command, caller, origin, move |outcome| {
            match Courier::<E>::is_final(&*placement, &courier.key, lease, &outcome) {
                true => ear(outcome),
                false => drop(on_tasks.spawn(async move { ear(courier.carry(placement).await) })),
            }
        });
    }

    /// Sends a command to the entity on this node.
    pub fn submit_here(
        self: &Arc<Self>,
        id: &str,
        command: E::Command,
        caller: Caller,
        origin: Origin,
        ear: impl FnOnce(Outcome<E>) + Send + 'static,
    ) {
        if origin == Origin::Outside
            && let Some(rejection) = self.refuses(id, &command, &caller)
        {
            return ear(Err(AskError::Rejected(rejection)));
        }
        match self.enter(id, origin) {
            Ok((actor, permit)) => {
                let reply = ReplyTo::new(permit, ear);
                // A message that cannot be delivered is dropped, and its caller thereby told.
                let _ = actor.send_message(Message::command(command, caller, reply));
            }
            Err(failure) => ear(Err(AskError::Failed(failure))),
        }
    }

    /// What stands at the entity's door for whoever asks this. Who is refused there has used the entity all the same.
    fn refuses(&self, id: &str, command: &E::Command, caller: &Caller) -> Option<E::Rejection> {
        let place = self.places.get(id)?;
        let Place::Resident(seat) = &*place else { return None };
        if seat.board.is_empty() {
            return None;
        }
        let now = self.shared.clock.now();
        let rejection = seat.board.refuses(command, caller, self.tenure(id), now)?;
        seat.gate.touch(now);
        self.shared.counters.turned_away.add(1);
        Some(rejection)
    }

    fn tenure(&self, id: &str) -> u64 {
        self.shared.placement().map_or(0, |placement| placement.lease(&EntityKey::new(E::KIND, id)).tenure)
    }

    /// Shows the entity's newest state to `look`; what it returns runs once that state is durable, or is known not to be.
    pub fn look(
        self: &Arc<Self>,
        id: &str,
        look: impl FnOnce(Result<(&E::State, Version), Failure>) -> super::entity_actor::Waiter + Send + 'static,
    ) -> Result<(), Failure> {
        let (actor, permit) = self.enter(id, Origin::Outside)?;
        let guarded = move |state: Result<(&E::State, Version), Failure>| -> super::entity_actor::Waiter {
            let then = look(state);
            Box::new(move |durable| {
                then(durable);
                drop(permit);
            })
        };
        actor.send_message(Message::View(Box::new(guarded))).map_err(|_| Failure::Restarting)
    }

    /// Makes sure that what this node has of the entity may be shown, and says until when it may. Without a lease the
    /// journal is asked; what then comes after this in the entity's mailbox is seen later than the journal was asked.
    pub async fn confirm(self: &Arc<Self>, placement: &dyn Placement, id: &str, wait: Duration) -> Result<Lease, Failure> {
        let lease = placement.lease(&EntityKey::new(E::KIND, id));
        if lease.is_valid() {
            return Ok(lease);
        }
        let now = Instant::now();
        let confirmed = async {
            let newest = self.shared.journal.newest(&EntityKey::new(E::KIND, id)).await?;
            let (actor, permit) = self.enter(id, Origin::Conversation)?;
            let (tell, heard) = oneshot::channel();
            let confirm = Message::Newest(
                newest,
                Box::new(move |confirmed| {
                    drop(permit);
                    let _ = tell.send(confirmed);
                }),
            );
            actor.send_message(confirm).map_err(|_| Failure::Moved)?;
            heard.await.map_err(|_| Failure::Moved)?
        };
        match tokio::time::timeout(wait, confirmed).await {
            Ok(confirmed) => confirmed.map(|()| Lease { until: now + wait, ..lease }),
            Err(_) => Err(Failure::OutOfReach("the journal does not answer".into())),
        }
    }

    /// The entity's state in a form that another node can read, as soon as its version is beyond this one.
    async fn state(self: &Arc<Self>, id: &str, beyond: Option<Version>, wait: Duration) -> Result<Told, Failure> {
        let (tell, heard) = oneshot::channel();
        let mut tell = Some(tell);
        let watch: Watch<E> = Box::new(move |state, version| {
            if tell.as_ref().is_none_or(oneshot::Sender::is_closed) {
                return Some(Box::new(|_| ()));
            }
            if beyond.is_some_and(|beyond| version <= beyond) {
                return None;
            }
            let (tell, state) = (tell.take()?, to_raw_value(state));
            Some(Box::new(move |durable| {
                let _ = tell.send(durable.and_then(|position| {
                    let unclear =
                        |error: serde_json::Error| Failure::OutOfReach(format!("its state cannot be told: {error}").into());
                    Ok(Told::State { state: state.map_err(unclear)?, version, position })
                }));
            }))
        });
        let _permit = self.watch(id, Instant::now() + wait, watch)?;
        match tokio::time::timeout(wait, heard).await {
            Ok(Ok(told)) => told,
            Ok(Err(_)) => Err(Failure::Moved),
            Err(_) => Err(Failure::TimedOut),
        }
    }

    /// Answers another node.
    async fn serve(self: Arc<Self>, question: About) -> Result<Told, Failure> {
        let placement = self.shared.placement().cloned().ok_or(Failure::Moved)?;
        let key = EntityKey::new(E::KIND, &question.id);
        if placement.owner(&key) != Owner::Here {
            return Ok(Told::Elsewhere);
        }
        let wait = Duration::from_millis(question.wait_ms);
        match question.asks {
            Asks::Command { command, command_id, asker, correlation, if_version, is_conversation } => {
                let command = serde_json::from_str(command.get())
                    .map_err(|error| Failure::NotWritten(format!("the command cannot be understood: {error}")))?;
                let caller = Caller { command: command_id, asker, correlation, if_version, timeout: wait };
                let origin = if is_conversation { Origin::Conversation } else { Origin::Outside };
                let until = Instant::now() + wait;
                let courier = Courier { kind: self.clone(), key, command, caller, origin, until };
                Ok(Told::of::<E>(courier.here(&*placement, wait).await))
            }
            Asks::State { beyond } => {
                let lease = self.confirm(&*placement, &question.id, wait).await?;
                let told = self.state(&question.id, beyond, wait).await?;
                // Who waits for a change is not misled by an old state.
                if beyond.is_none() && !lease.is_valid() { Ok(Told::Elsewhere) } else { Ok(told) }
            }
        }
    }

    /// Shows each new state to `watch` until it returns something, which then runs as for [`Kind::look`]. The permit is for
    /// whoever waits, to hold for as long.
    pub fn watch(self: &Arc<Self>, id: &str, until: Instant, watch: Watch<E>) -> Result<Permit, Failure> {
        let (actor, permit) = self.enter(id, Origin::Outside)?;
        actor.send_message(Message::Watch { until, watch }).map_err(|_| Failure::Restarting)?;
        Ok(permit)
    }

    /// The entity's actor, made if need be, and leave to wait for it.
    fn enter(self: &Arc<Self>, id: &str, origin: Origin) -> Result<(ActorRef<Message<E>>, Permit), Failure> {
        let now = self.shared.clock.now();
        let tenure = self.tenure(id);
        let settle = |seat: &Seat<E>| {
            if seat.tenure.swap(tenure, Ordering::AcqRel) != tenure {
                let _ = seat.actor.send_message(Message::Confirm { tenure });
            }
            seat.actor.clone()
        };
        let admit = |gate: &Arc<Gate>| match origin {
            Origin::Outside => gate.admit(self.shared.config.bounds, now),
            Origin::Conversation => gate.admit_conversation(self.shared.config.bounds, now),
        };
        if let Some(place) = self.places.get(id)
            && let Place::Resident(seat) = &*place
        {
            let permit = admit(&seat.gate)?;
            return Ok((settle(seat), permit));
        }
        match self.places.entry(Arc::from(id)) {
            Entry::Occupied(mut occupied) => {
                match occupied.get() {
                    Place::Resident(seat) => {
                        let permit = admit(&seat.gate)?;
                        return Ok((settle(seat), permit));
                    }
                    Place::SetAside { .. } => return Err(Failure::SetAside),
                    Place::Restarting { until } if *until > now => return Err(Failure::Restarting),
                    Place::Restarting { .. } => {}
                }
                let gate = Gate::new(self.shared.node.clone(), now);
                let permit = admit(&gate)?;
                let seat = self.activate(occupied.key().clone(), gate, tenure)?;
                let actor = seat.actor.clone();
                occupied.insert(Place::Resident(seat));
                Ok((actor, permit))
            }
            Entry::Vacant(vacant) => {
                let gate = Gate::new(self.shared.node.clone(), now);
                let permit = admit(&gate)?;
                let seat = self.activate(vacant.key().clone(), gate, tenure)?;
                let actor = seat.actor.clone();
                vacant.insert(Place::Resident(seat));
                Ok((actor, permit))
            }
        }
    }

    /// Starts the entity's actor. Whoever calls has been admitted: an actor without a seat would never leave.
    fn activate(self: &Arc<Self>, id: Arc<str>, gate: Arc<Gate>, tenure: u64) -> Result<Seat<E>, Failure> {
        let supervisor = self.supervisor.get().ok_or(Failure::Draining)?.clone();
        let board = Arc::<Board<E>>::default();
        let key = EntityKey::new(E::KIND, &id);
        let arguments = Arguments { kind: self.clone(), gate: gate.clone(), board: board.clone(), tenure, key, id };
        let (actor, _starting) = ActorRuntime::spawn_linked_instant(None, EntityActor::<E>::default(), arguments, supervisor)
            .map_err(|error| {
                tracing::error!(kind = E::KIND, %error, "an entity's actor cannot be started");
                Failure::Restarting
            })?;
        self.shared.counters.activations.add(1);
        Ok(Seat { actor, gate, board, tenure: AtomicU64::new(tenure) })
    }

    /// In the order of their ids: the same states lead to the same steps.
    fn residents_that(&self, wanted: impl Fn(&str, &Seat<E>) -> bool) -> Vec<ActorRef<Message<E>>> {
        let found = self.places.iter().filter_map(|place| match &*place {
            Place::Resident(seat) if wanted(place.key(), seat) => Some((place.key().clone(), seat.actor.clone())),
            _ => None,
        });
        let mut found: Vec<_> = found.collect();
        found.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        found.into_iter().map(|(_, actor)| actor).collect()
    }

    /// Called by a resident that wants to leave: true, and it is no longer found, when nobody waits for it.
    pub fn leave(&self, id: &str, actor: ActorId) -> bool {
        self.places
            .remove_if(
                id,
                |_, place| matches!(place, Place::Resident(seat) if seat.actor.get_id() == actor && seat.gate.waiting() == 0),
            )
            .is_some()
    }

    /// Told by the supervisor when an actor ended by a panic or an error.
    pub fn died(&self, actor: ActorId, reason: &str) {
        let Some(id) = self.places.iter().find_map(|place| match &*place {
            Place::Resident(seat) if seat.actor.get_id() == actor => Some(place.key().clone()),
            _ => None,
        }) else {
            return;
        };
        self.shared.counters.deaths.add(1);
        let now = self.shared.clock.now();
        let deaths = self.count_death(&id, now);
        let place = if deaths >= DEATHS_MAX {
            tracing::error!(kind = E::KIND, %id, reason, "set aside: it failed {deaths} times within a minute; release it at POST /api/cluster/set-aside/{}/{id}/release", E::KIND);
            Place::SetAside { reason: reason.to_owned(), since: now }
        } else {
            let until = now.plus_ms(backoff_ms(deaths as u32));
            tracing::warn!(kind = E::KIND, %id, reason, deaths, %until, "an entity failed and comes back from the journal");
            self.shared.agenda.set(&EntityKey::new(E::KIND, &id), until);
            Place::Restarting { until }
        };
        self.places.insert(id, place);
    }

    fn count_death(&self, id: &Arc<str>, now: Timestamp) -> usize {
        let mut all = self.deaths.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, times| {
            times.retain(|at| now.since_ms(*at) < DEATHS_WITHIN_MS);
            !times.is_empty()
        });
        let times = all.entry(id.clone()).or_default();
        times.push_back(now);
        times.len()
    }
}

/// A kind as the runtime holds it, whatever its type.
pub trait AnyKind: Port {
    /// Wakes an entity whose time has come, resident or not.
    fn wake(&self, id: &str);
    /// The journal has this version of an entity. A resident that does not know it is behind.
    fn stored(&self, id: &str, version: Version);
    fn residents(&self) -> usize;
    /// The most commands that wait for one of them.
    fn deepest(&self) -> usize;
    fn sagas(&self) -> [(SagaEnding, Counted); 2];
    fn set_aside(&self) -> Vec<SetAside>;
    fn release(&self, id: &str) -> bool;
    /// Asks residents to leave: those idle for so long, in milliseconds.
    fn sweep(&self, idle_ms: i64);
    /// Asks those to leave that belong elsewhere; how many there still are.
    fn hand_over(&self) -> usize;
    /// Answers another node.
    fn serve(&self, question: About) -> BoxFuture<'static, Told>;
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn name(&self) -> &'static str;
}

/// `Port` needs an owned handle to spawn actors from.
pub struct KindHandle<E: Entity>(pub Arc<Kind<E>>);

impl<E: Entity> Port for KindHandle<E> {
    fn post(&self, to: &str, letter: Letter) {
        let Letter { request, caller, answer } = letter;
        match request.downcast::<E::Command>() {
            Ok(command) => self.0.submit(to, *command, caller, Origin::Conversation, move |outcome| {
                answer(match outcome {
                    Ok(answered) => Ok(Box::new(Ok::<E::Reply, E::Rejection>(answered.reply))),
                    Err(AskError::Rejected(rejection)) => Ok(Box::new(Err::<E::Reply, E::Rejection>(rejection))),
                    Err(AskError::Failed(failure)) => Err(failure),
                });
            }),
            Err(_) => answer(Err(Failure::NotWritten(format!("not a command of {}", E::KIND)))),
        }
    }
}

impl<E: Entity> AnyKind for KindHandle<E> {
    fn wake(&self, id: &str) {
        // Whoever has it knows its agenda too.
        if !self.0.shared.is_here(&EntityKey::new(E::KIND, id)) {
            return;
        }
        match self.0.enter(id, Origin::Conversation) {
            Ok((actor, _permit)) => {
                let _ = actor.send_message(Message::Wake);
            }
            Err(Failure::SetAside) => {}
            Err(_) => {
                let key = EntityKey::new(E::KIND, id);
                self.0.shared.agenda.set(&key, self.0.shared.clock.now().plus_ms(backoff_ms(3)));
            }
        }
    }

    fn stored(&self, id: &str, version: Version) {
        if let Some(place) = self.0.places.get(id)
            && let Place::Resident(seat) = &*place
            && seat.gate.version() < version
        {
            let _ = seat.actor.send_message(Message::Stored(version));
        }
    }

    fn residents(&self) -> usize {
        self.0.places.iter().filter(|place| matches!(&**place, Place::Resident(_))).count()
    }

    fn deepest(&self) -> usize {
        let waiting = self.0.places.iter().map(|place| match &*place {
            Place::Resident(seat) => seat.gate.waiting(),
            Place::Restarting { .. } | Place::SetAside { .. } => 0,
        });
        waiting.max().unwrap_or_default()
    }

    fn sagas(&self) -> [(SagaEnding, Counted); 2] {
        [SagaEnding::Completed, SagaEnding::Compensated].map(|ending| (ending, self.0.sagas_that(ending).counted()))
    }

    fn set_aside(&self) -> Vec<SetAside> {
        let aside = self.0.places.iter().filter_map(|place| match &*place {
            Place::SetAside { reason, since } => {
                Some(SetAside { kind: E::KIND.to_owned(), id: place.key().to_string(), reason: reason.clone(), since: *since })
            }
            _ => None,
        });
        aside.collect()
    }

    fn release(&self, id: &str) -> bool {
        let released = self.0.places.remove_if(id, |_, place| matches!(place, Place::SetAside { .. })).is_some();
        if released {
            self.0.deaths.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
            self.0.shared.agenda.set(&EntityKey::new(E::KIND, id), self.0.shared.clock.now());
        }
        released
    }

    fn sweep(&self, idle_ms: i64) {
        let now = self.0.shared.clock.now();
        // Places of entities that came back or were never called again are forgotten with their backoff.
        self.0.places.retain(|_, place| !matches!(place, Place::Restarting { until } if now.since_ms(*until) > DEATHS_WITHIN_MS));
        for actor in self.0.residents_that(|_, seat| seat.gate.may_leave(idle_ms, now)) {
            let _ = actor.send_message(Message::Passivate);
        }
    }

    fn hand_over(&self) -> usize {
        let Some(placement) = self.0.shared.placement() else { return 0 };
        // What failed here may fare better elsewhere.
        self.0.places.retain(|id, place| {
            matches!(place, Place::Resident(_)) || placement.owner(&EntityKey::new(E::KIND, id)) == Owner::Here
        });
        let leaving = self.0.residents_that(|id, _| placement.owner(&EntityKey::new(E::KIND, id)) != Owner::Here);
        for actor in &leaving {
            let _ = actor.send_message(Message::HandOver);
        }
        leaving.len()
    }

    fn serve(&self, question: About) -> BoxFuture<'static, Told> {
        let served = self.0.clone().serve(question);
        Box::pin(async move {
            served.await.unwrap_or_else(|failure| match failure {
                Failure::Moved => Told::Elsewhere,
                failure => Told::Failed(failure),
            })
        })
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self.0.clone()
    }

    fn name(&self) -> &'static str {
        E::KIND
    }
}
