//! What every thing with a life of its own has in common: a decision, a fold, its debts and its next moment.
//!
//! Pure values only. This module must never read a clock, do I/O, await, or know how an entity is kept alive.

use std::any::Any;
use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::time::Timestamp;

/// A kind of entity: its state, what may be asked of it, and the rules that answer.
///
/// `decide` and `evolve` are the only places where a rule of commerce lives. The runtime calls `decide` against the
/// latest state, folds the events with `evolve`, and makes them durable before anybody hears the reply.
pub trait Entity: Sized + Send + Sync + 'static {
    /// The name in keys, logs and metrics, e.g. `order`.
    const KIND: &'static str;
    /// Raised when the serialized `State` changes shape: older snapshots are then ignored and the journal replayed.
    const SNAPSHOT_FORMAT: u32;
    /// Fields of state and events, by name, that are not shown even to an operator who inspects.
    const HIDDEN: &'static [&'static str] = &[];

    type State: Default + Serialize + DeserializeOwned + Send + Sync + 'static;
    type Command: Clone + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// Adjacently tagged by serde as `type` (dotted, lower case) and `data`, which become the CloudEvents attributes.
    type Event: Serialize + DeserializeOwned + Send + 'static;
    type Reply: Serialize + DeserializeOwned + Clone + Send + 'static;
    type Rejection: std::error::Error + Serialize + DeserializeOwned + Clone + Send + Sync + 'static;

    /// Answers a command from the state alone. A rejection has no effect and leaves no record.
    fn decide(state: &Self::State, command: Self::Command, context: &Context<'_>) -> Result<Decision<Self>, Self::Rejection>;

    /// Folds one event. Must accept every event that was ever journaled.
    fn evolve(state: &mut Self::State, event: &Self::Event);

    /// The messages that this state still has to deliver. A debt is gone when an event has folded it away.
    fn owes(_state: &Self::State) -> Vec<Debt<Self>> {
        Vec::new()
    }

    /// The next moment at which time itself will change this state; the runtime then sends [`Entity::elapse`].
    fn due(_state: &Self::State) -> Option<Timestamp> {
        None
    }

    /// The command that the runtime sends when `due` has come. Asked only of kinds that have a `due`.
    fn elapse() -> Option<Self::Command> {
        None
    }

    /// Whether the state itself recognises the command that was answered with this when it comes again, and says the same:
    /// the answer is then not kept beside it.
    fn knows_again(_reply: &Self::Reply) -> bool {
        false
    }

    /// A copy of all that is serialized of the state, where that costs next to nothing because what is large is shared: a
    /// snapshot is then written from it beside the entity. `None` where the state is small.
    fn picture(_state: &Self::State) -> Option<Self::State> {
        None
    }

    /// What can be put up at the entity's door, so that who comes in vain hears so without asking it; `None` where nobody
    /// does. It says what `decide` would, until an event is folded or `due` has come, and is made anew after each.
    fn notice(_state: &Self::State) -> Option<Box<dyn Notice<Self>>> {
        None
    }

    /// Whether nothing more is to be expected of it: it is then let out of memory soon after its last use.
    fn is_at_rest(_state: &Self::State) -> bool {
        false
    }

    /// The saga that this entity leads, for whoever measures; `None` where it leads none.
    fn saga(_state: &Self::State) -> Option<Saga> {
        None
    }
}

/// Tells who comes in vain. It never refuses whoever has something of the entity, however long ago they asked for it.
pub trait Notice<E: Entity>: Send + Sync {
    /// What the command is refused with by the state that this was made of; `None` when only the entity can say.
    fn refuses(&self, command: &E::Command) -> Option<E::Rejection>;
}

/// How far a saga has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saga {
    pub begun: Timestamp,
    /// `None` while it is under way.
    pub ending: Option<SagaEnding>,
}

/// A saga ends in one of these ways and in no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SagaEnding {
    Completed,
    /// All that was done is undone.
    Compensated,
}

/// What `decide` may know besides the state and the command.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub now: Timestamp,
    /// The entity's own id, without its kind.
    pub id: &'a str,
    pub command: &'a CommandId,
    /// Who asks: an account, `guest`, or another entity as `kind/id`.
    pub asker: &'a str,
}

/// A command's identity. Seen twice, it has one effect and one answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommandId(pub String);

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for CommandId {
    fn from(id: &str) -> Self {
        CommandId(id.to_owned())
    }
}

/// The outcome of an accepted command.
pub struct Decision<E: Entity> {
    pub events: Vec<E::Event>,
    pub reply: Reply<E::Reply>,
    /// Answers to earlier commands whose reply was [`Reply::Later`].
    pub settled: Vec<Settled<E>>,
}

/// The answer to a command that was told [`Reply::Later`].
pub type Settled<E> = (CommandId, Result<<E as Entity>::Reply, <E as Entity>::Rejection>);

/// When the caller hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply<R> {
    /// As soon as the decision's events are durable.
    Now(R),
    /// When a later decision settles this command; the state must remember that it owes the answer.
    Later,
}

impl<E: Entity> Decision<E> {
    pub fn now(events: Vec<E::Event>, reply: E::Reply) -> Self {
        Decision { events, reply: Reply::Now(reply), settled: Vec::new() }
    }

    /// Whether anything of it must be durable before it is answered.
    pub fn is_to_be_written(&self) -> bool {
        !self.events.is_empty() || !self.settled.is_empty()
    }

    pub fn later(events: Vec<E::Event>) -> Self {
        Decision { events, reply: Reply::Later, settled: Vec::new() }
    }

    /// Also answers an earlier command that was told [`Reply::Later`].
    pub fn settle(mut self, command: CommandId, answer: Result<E::Reply, E::Rejection>) -> Self {
        self.settled.push((command, answer));
        self
    }
}

impl<E: Entity> fmt::Debug for Decision<E>
where
    E::Event: fmt::Debug,
    E::Reply: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decision")
            .field("events", &self.events)
            .field("reply", &self.reply)
            .field("settled", &self.settled)
            .finish()
    }
}

/// Something outside of Souk that can owe us an answer, reached through an integration.
pub trait Outside: 'static {
    const NAME: &'static str;
    type Request: Send + 'static;
    type Answer: Send + 'static;
}

/// A message that an entity must get delivered. Its id is stable for as long as it is owed and unique within the
/// entity: it is the idempotency key of each attempt.
pub struct Debt<E: Entity> {
    pub id: String,
    pub to: Recipient,
    request: Box<dyn Any + Send>,
    hear: Hear<E>,
}

/// Turns an answer into the command with which the debtor takes note of it; `None` leaves the debt owed.
pub type Hear<E> = Box<dyn FnOnce(Box<dyn Any + Send>) -> Option<<E as Entity>::Command> + Send>;

/// Where a debt goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipient {
    Entity { kind: &'static str, id: String },
    Outside { name: &'static str },
}

impl<E: Entity> Debt<E> {
    /// Owes `command` to another entity.
    pub fn tell<T: Entity>(
        id: impl Into<String>,
        to: impl Into<String>,
        command: T::Command,
        hear: impl FnOnce(Result<T::Reply, T::Rejection>) -> Option<E::Command> + Send + 'static,
    ) -> Self {
        Debt {
            id: id.into(),
            to: Recipient::Entity { kind: T::KIND, id: to.into() },
            request: Box::new(command),
            hear: Box::new(move |answer| answer.downcast::<Result<T::Reply, T::Rejection>>().ok().and_then(|a| hear(*a))),
        }
    }

    /// Owes a request to something outside; the debt's id travels as the idempotency key.
    pub fn call<T: Outside>(
        id: impl Into<String>,
        request: T::Request,
        hear: impl FnOnce(T::Answer) -> Option<E::Command> + Send + 'static,
    ) -> Self {
        Debt {
            id: id.into(),
            to: Recipient::Outside { name: T::NAME },
            request: Box::new(request),
            hear: Box::new(move |answer| answer.downcast::<T::Answer>().ok().and_then(|a| hear(*a))),
        }
    }

    /// The request and the ear, for the courier. The request is the recipient's `Command` or `Request`; the answer to
    /// hear is its `Result<Reply, Rejection>` or `Answer`.
    pub fn into_parts(self) -> (Box<dyn Any + Send>, Hear<E>) {
        (self.request, self.hear)
    }
}

impl<E: Entity> fmt::Debug for Debt<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Debt").field("id", &self.id).field("to", &self.to).finish_non_exhaustive()
    }
}
