//! All entities of one kind: who is resident, who is coming back, who was set aside, and how a message reaches them.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use ractor::{ActorCell, ActorId, ActorRef, ActorRuntime};

use super::ask::{AskError, Caller, Failure};
use super::conversation::{Letter, Port};
use super::entity_actor::{Arguments, EntityActor, Message, Watch};
use super::gate::{Gate, Permit};
use super::reply::{Outcome, ReplyTo};
use super::retry::backoff_ms;
use super::runtime::{SetAside, Shared};
use crate::domain::time::MINUTE_MS;
use crate::domain::{Entity, Timestamp};
use crate::persistence::{EntityKey, Version};

/// So many deaths within [`DEATHS_WITHIN_MS`] and an entity is set aside.
pub const DEATHS_MAX: usize = 5;
pub const DEATHS_WITHIN_MS: i64 = MINUTE_MS;

pub struct Kind<E: Entity> {
    pub shared: Arc<Shared>,
    places: DashMap<Arc<str>, Place<E>>,
    deaths: Mutex<HashMap<Arc<str>, VecDeque<Timestamp>>>,
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
}

/// Whose message asks to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Outside,
    Conversation,
}

impl<E: Entity> Kind<E> {
    pub fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Kind { shared, places: DashMap::new(), deaths: Mutex::new(HashMap::new()), supervisor: OnceLock::new() })
    }

    pub fn supervised_by(&self, supervisor: ActorCell) {
        if self.supervisor.set(supervisor).is_err() {
            tracing::error!(kind = E::KIND, "a kind was given a second supervisor");
        }
    }

    /// Sends a command on its way; `ear` hears exactly once.
    pub fn submit(
        self: &Arc<Self>,
        id: &str,
        command: E::Command,
        caller: Caller,
        origin: Origin,
        ear: impl FnOnce(Outcome<E>) + Send + 'static,
    ) {
        match self.enter(id, origin) {
            Ok((actor, permit)) => {
                let reply = ReplyTo::new(permit, ear);
                // A message that cannot be delivered is dropped, and its caller thereby told.
                let _ = actor.send_message(Message::command(command, caller, reply));
            }
            Err(failure) => ear(Err(AskError::Failed(failure))),
        }
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
        let admit = |gate: &Arc<Gate>| match origin {
            Origin::Outside => gate.admit(self.shared.config.bounds, now),
            Origin::Conversation => gate.admit_conversation(self.shared.config.bounds, now),
        };
        if let Some(place) = self.places.get(id)
            && let Place::Resident(seat) = &*place
        {
            return Ok((seat.actor.clone(), admit(&seat.gate)?));
        }
        match self.places.entry(Arc::from(id)) {
            Entry::Occupied(mut occupied) => {
                match occupied.get() {
                    Place::Resident(seat) => return Ok((seat.actor.clone(), admit(&seat.gate)?)),
                    Place::SetAside { .. } => return Err(Failure::SetAside),
                    Place::Restarting { until } if *until > now => return Err(Failure::Restarting),
                    Place::Restarting { .. } => {}
                }
                let gate = Gate::new(self.shared.node.clone(), now);
                let permit = admit(&gate)?;
                let seat = self.activate(occupied.key().clone(), gate)?;
                let actor = seat.actor.clone();
                occupied.insert(Place::Resident(seat));
                Ok((actor, permit))
            }
            Entry::Vacant(vacant) => {
                let gate = Gate::new(self.shared.node.clone(), now);
                let permit = admit(&gate)?;
                let seat = self.activate(vacant.key().clone(), gate)?;
                let actor = seat.actor.clone();
                vacant.insert(Place::Resident(seat));
                Ok((actor, permit))
            }
        }
    }

    /// Starts the entity's actor. Whoever calls has been admitted: an actor without a seat would never leave.
    fn activate(self: &Arc<Self>, id: Arc<str>, gate: Arc<Gate>) -> Result<Seat<E>, Failure> {
        let supervisor = self.supervisor.get().ok_or(Failure::Draining)?.clone();
        let arguments = Arguments { kind: self.clone(), gate: gate.clone(), key: EntityKey::new(E::KIND, &id), id };
        let (actor, _starting) = ActorRuntime::spawn_linked_instant(None, EntityActor::<E>::default(), arguments, supervisor)
            .map_err(|error| {
                tracing::error!(kind = E::KIND, %error, "an entity's actor cannot be started");
                Failure::Restarting
            })?;
        self.shared.counters.activations.add(1);
        Ok(Seat { actor, gate })
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
    fn residents(&self) -> usize;
    fn set_aside(&self) -> Vec<SetAside>;
    fn release(&self, id: &str) -> bool;
    /// Asks residents to leave: those idle for so long, in milliseconds.
    fn sweep(&self, idle_ms: i64);
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

    fn residents(&self) -> usize {
        self.0.places.iter().filter(|place| matches!(&**place, Place::Resident(_))).count()
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
        for place in self.0.places.iter() {
            if let Place::Resident(seat) = &*place
                && seat.gate.may_leave(idle_ms, now)
            {
                let _ = seat.actor.send_message(Message::Passivate);
            }
        }
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self.0.clone()
    }

    fn name(&self) -> &'static str {
        E::KIND
    }
}
