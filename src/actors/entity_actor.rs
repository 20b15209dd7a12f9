//! One entity, alive: it decides, folds, has it written, and answers only what is durable.
//!
//! Commands are decided against the speculative state (all that was accepted so far) and their events queue up in
//! `pending`. One write is in flight at a time; when it lands, all that is pending goes out as the next. Callers travel
//! with their write and are answered as soon as it is durable. If a write fails, everybody in it and behind it hears so,
//! the speculative state is dropped and the entity comes back from the journal.

use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::answers::{Answer, AnswerOf, Answers};
use super::ask::{Answered, AskError, Caller, Failure};
use super::conversation::{ATTEMPT, ATTEMPT_SLACK_MS, AnyAnswer, Attempt, Letter};
use super::gate::Gate;
use super::kind::Kind;
use super::notice::Board;
use super::reply::{Outcome, ReplyTo};
use super::retry::backoff_ms;
use crate::domain::entity::Hear;
use crate::domain::{CommandId, Context, Debt, Decision, Entity, Recipient, Reply, Saga, Timestamp};
use crate::persistence::record::{Cause, Payload, PayloadWriter};
use crate::persistence::{Append, AppendError, Batch, EntityKey, Of, Position, ReadError, Snapshot, Version, Wake};

/// How many batches a replay reads at a time.
const READ_BATCHES: usize = 256;
/// And first, without a snapshot of this node's: who has more may find one of another's. Most entities have fewer.
const FIRST_BATCHES: usize = 32;
/// A pending write is not let grow past this, in bytes: whoever comes later is told to retry.
const PENDING_BYTES_MAX: usize = 4 << 20;
/// So few records are replayed as fast as a snapshot is read: for them none is written on leaving.
const REPLAYED_AS_FAST: u64 = 16;
/// How many times a snapshot's weight is written to the journal before the next one.
const SNAPSHOT_SHARE: usize = 8;
/// And this at most, where that would be more: what follows the newest snapshot is replayed by whoever comes to life.
const REPLAY_MAX_BYTES: usize = 128 << 20;
/// How long an entity that is to leave for another node waits for answers to what it is just delivering: it would only be
/// delivered again.
const LEAVE_WITHOUT_ANSWERS: Duration = Duration::from_secs(1);
/// Steps of time that are taken before a command at most: each may be a bounded part of what is due.
const ELAPSES_MAX: usize = 8;
/// How soon an entity is woken again whose time came and changed nothing.
const STILL_DUE_MS: i64 = 1_000;

/// Hears whether the write that it travels with is durable.
pub type Waiter = Box<dyn FnOnce(Result<Position, Failure>) + Send>;

type Look<E> = Box<dyn FnOnce(Result<(&<E as Entity>::State, Version), Failure>) -> Waiter + Send>;

/// Shown each new state until it has seen what it waits for; what it returns then runs once that state is durable.
pub type Watch<E> = Box<dyn FnMut(&<E as Entity>::State, Version) -> Option<Waiter> + Send>;

pub enum Message<E: Entity> {
    Command(Box<CommandMessage<E>>),
    View(Look<E>),
    Watch {
        until: Instant,
        watch: Watch<E>,
    },
    Heard {
        debt: String,
        answer: AnyAnswer,
        hear: Hear<E>,
    },
    Landed(Result<Position, AppendError>),
    Wake,
    /// The journal has this version, which may be more than this entity knows.
    Stored(Version),
    Passivate,
    /// Makes sure that nobody else wrote to this entity before it answers what comes after this.
    Confirm {
        tenure: u64,
    },
    /// What the journal says is this entity's newest batch: it answers what comes after this as one that knows it.
    Newest(Position, Confirmed),
    /// It belongs to another node now, or this node is going: it leaves as soon as nothing is under way.
    HandOver,
    /// Whoever was just answered had time to ask again: what is pending goes out.
    Write,
    /// A snapshot that was written beside this entity is done, and weighs so much; `None` when it came to nothing.
    Drawn(Option<usize>),
}

/// Hears whether the entity is what the journal says.
pub type Confirmed = Box<dyn FnOnce(Result<(), Failure>) + Send>;

pub struct CommandMessage<E: Entity> {
    command: E::Command,
    caller: Caller,
    deadline: Instant,
    reply: ReplyTo<E>,
}

impl<E: Entity> Message<E> {
    pub fn command(command: E::Command, caller: Caller, reply: ReplyTo<E>) -> Self {
        let deadline = Instant::now() + caller.timeout;
        Message::Command(Box::new(CommandMessage { command, caller, deadline, reply }))
    }
}

pub struct Arguments<E: Entity> {
    pub kind: Arc<Kind<E>>,
    pub gate: Arc<Gate>,
    pub board: Arc<Board<E>>,
    /// Under which this node has it.
    pub tenure: u64,
    pub key: EntityKey,
    pub id: Arc<str>,
}

pub struct EntityActor<E>(PhantomData<fn() -> E>);

impl<E> Default for EntityActor<E> {
    fn default() -> Self {
        EntityActor(PhantomData)
    }
}

/// What the actor holds while its entity is resident.
pub struct Resident<E: Entity> {
    kind: Arc<Kind<E>>,
    gate: Arc<Gate>,
    board: Arc<Board<E>>,
    /// What stands on the board, if anything does, is of this state.
    is_noticed: bool,
    tenure: u64,
    key: EntityKey,
    id: Arc<str>,
    loaded: bool,
    /// Speculative: all that was decided, durable or not.
    state: E::State,
    version: Version,
    /// Where the newest batch of this entity stands that is known to be durable.
    position: Position,
    /// Nothing was acknowledged, before this node had the entity, that is not in the state: a write of this node has landed
    /// on top of it, or the journal was asked.
    proven: bool,
    /// The request that moved this entity last; its debts travel under it.
    correlation: Arc<str>,
    answers: Answers<E>,
    pending: Option<Pending>,
    in_flight: Option<InFlight<E>>,
    /// It waits for a [`Message::Write`] before it writes again.
    lingers: bool,
    /// Callers of commands that were told to wait, with the moment when they no longer do.
    deferred: BTreeMap<CommandId, Vec<(Instant, ReplyTo<E>)>>,
    attempts: HashMap<String, Attempt>,
    /// Who waits to see something, and until when.
    watches: Vec<(Instant, Watch<E>)>,
    /// What the agenda was told.
    scheduled: Option<Timestamp>,
    /// Writes that failed since the last one that landed.
    failed_writes: u32,
    /// Times that the journal could not be read since it last could.
    failed_loads: u32,
    /// Since when it is to leave for another node.
    handing_over: Option<Instant>,
    snapshot: Written,
    /// A snapshot is being written beside this.
    is_drawing: bool,
}

/// Decided and not yet sent to the journal.
struct Pending {
    payload: PayloadWriter,
    expected: Version,
    waiters: Vec<Waiter>,
}

/// Sent to the journal and not yet heard of.
struct InFlight<E: Entity> {
    /// How many are answered by it.
    callers: usize,
    /// What the entity owes once this is durable.
    owed: Vec<Debt<E>>,
    /// Who waits for it to land, having changed nothing.
    waiters: Vec<Waiter>,
    /// What the journal said was this entity's newest batch while this write was on its way, and who wants to hear that this
    /// is known.
    confirming: Vec<(Position, Option<Confirmed>)>,
    /// As of this write, when one is due.
    snapshot: Option<Taken<E>>,
    last: Version,
}

/// A snapshot that is not written yet.
enum Taken<E: Entity> {
    Bytes(Vec<u8>),
    /// To be serialized elsewhere: see [`Entity::picture`].
    Picture(Box<Picture<E>>),
}

struct Picture<E: Entity> {
    state: E::State,
    correlation: Arc<str>,
    answers: Vec<(CommandId, AnswerOf<E>)>,
}

impl<E: Entity> Picture<E> {
    fn write(&self, out: &mut dyn std::io::Write) -> Result<(), serde_json::Error> {
        let Picture { state, correlation, answers } = self;
        serde_json::to_writer(out, &SnapshotOut::<E> { state, correlation, answers: answers.iter().collect() })
    }
}

/// Tells the entity, whatever becomes of the writing.
struct Drawing<E: Entity> {
    entity: ActorRef<Message<E>>,
    bytes: Option<usize>,
}

impl<E: Entity> Drop for Drawing<E> {
    fn drop(&mut self) {
        let _ = self.entity.send_message(Message::Drawn(self.bytes));
    }
}

/// How much was written since the newest snapshot, and how large that is.
#[derive(Default)]
struct Written {
    version: Version,
    bytes: usize,
    bytes_since: usize,
}

#[derive(Serialize)]
#[serde(bound = "")]
struct SnapshotOut<'a, E: Entity> {
    state: &'a E::State,
    correlation: &'a str,
    answers: Vec<&'a (CommandId, AnswerOf<E>)>,
}

#[derive(Deserialize)]
#[serde(bound = "")]
struct SnapshotIn<E: Entity> {
    state: E::State,
    correlation: String,
    answers: Vec<(CommandId, AnswerOf<E>)>,
}

impl<E: Entity> Actor for EntityActor<E> {
    type Msg = Message<E>;
    type State = Resident<E>;
    type Arguments = Arguments<E>;

    async fn pre_start(&self, _myself: ActorRef<Self::Msg>, arguments: Arguments<E>) -> Result<Resident<E>, ActorProcessingErr> {
        Ok(Resident::new(arguments))
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Message<E>,
        entity: &mut Resident<E>,
    ) -> Result<(), ActorProcessingErr> {
        if let Message::Drawn(bytes) = message {
            entity.on_drawn(bytes);
            return Ok(());
        }
        // Also when it cannot be loaded: else it would never write again.
        if matches!(message, Message::Write) {
            entity.lingers = false;
        }
        if !entity.loaded {
            if let Err(error) = Box::pin(entity.load()).await {
                return entity.cannot_load(&myself, message, error);
            }
            entity.take_up(&myself);
        }
        let asked_to_leave = matches!(message, Message::Passivate | Message::HandOver);
        let version = entity.version;
        match message {
            Message::Command(message) => entity.on_command(*message).await?,
            Message::View(look) => entity.on_view(look),
            Message::Watch { until, watch } => entity.on_watch(until, watch),
            Message::Heard { debt, answer, hear } => entity.on_heard(&debt, answer, hear)?,
            Message::Landed(Ok(position)) => entity.on_landed(position, &myself).await?,
            Message::Landed(Err(error)) => entity.on_not_landed(error).await?,
            Message::Wake => entity.on_wake(&myself)?,
            Message::Stored(version) => entity.on_stored(version).await?,
            Message::Passivate => entity.forget_expired(),
            Message::Confirm { tenure } => {
                entity.begin_tenure(tenure);
                entity.confirm().await?;
            }
            Message::Newest(newest, tell) => entity.know(newest, Some(tell)).await?,
            Message::HandOver => entity.hand_over(),
            Message::Write | Message::Drawn(_) => {}
        }
        if entity.version != version {
            entity.show_to_watches();
        }
        entity.write_pending(&myself)?;
        entity.put_up_notice();
        // An entity that was never written is only somebody's wrong id: it does not stay.
        if asked_to_leave || entity.version == 0 {
            entity.leave_if_idle(&myself);
        }
        Ok(())
    }
}

impl<E: Entity> Resident<E> {
    fn new(Arguments { kind, gate, board, tenure, key, id }: Arguments<E>) -> Self {
        Resident {
            kind,
            gate,
            board,
            is_noticed: false,
            tenure,
            key,
            id,
            loaded: false,
            state: E::State::default(),
            version: 0,
            position: Position(0),
            proven: false,
            correlation: Arc::from(""),
            answers: Answers::default(),
            pending: None,
            in_flight: None,
            lingers: false,
            deferred: BTreeMap::new(),
            attempts: HashMap::new(),
            watches: Vec::new(),
            scheduled: None,
            failed_writes: 0,
            failed_loads: 0,
            handing_over: None,
            snapshot: Written::default(),
            is_drawing: false,
        }
    }

    // Coming to life ------------------------------------------------------------------------------------------------

    /// The newest snapshot, then the journal after it. Boxed where it is called: it is rare, and large enough to make every
    /// message slow that might lead to it.
    async fn load(&mut self) -> Result<(), ReadError> {
        self.take_down_notice();
        self.state = E::State::default();
        self.version = 0;
        self.position = Position(0);
        self.proven = self.kind.shared.placement().is_none();
        self.answers = Answers::default();
        self.snapshot = Written::default();
        let shared = Arc::clone(&self.kind.shared);
        let mut page = FIRST_BATCHES;
        if let Some(snapshot) = shared.snapshots.get(&self.key)
            && self.begin_from(snapshot).await?
        {
            page = READ_BATCHES;
        }
        let mut may_ask_others = true;
        loop {
            let batches = shared.journal.read(&self.key, self.version + 1, self.position, page).await?;
            for batch in &batches {
                self.replay(batch)?;
            }
            if batches.len() < page {
                break;
            }
            page = READ_BATCHES;
            // There is more, perhaps much more: its last owner may have left something better.
            if std::mem::take(&mut may_ask_others)
                && let Some(newer) = shared.snapshots.newer(&self.key, self.version).await
            {
                self.begin_from(newer).await?;
            }
        }
        self.loaded = true;
        self.gate.set_version(self.version);
        self.failed_loads = 0;
        Ok(())
    }

    /// Takes the snapshot for all that came before it, if it can be used; else nothing changes.
    async fn begin_from(&mut self, stored: Snapshot) -> Result<bool, ReadError> {
        let Snapshot { version, position, format, bytes } = stored;
        if format != E::SNAPSHOT_FORMAT {
            return Ok(false);
        }
        let snapshot: SnapshotIn<E> = match serde_json::from_slice(&bytes) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::warn!(entity = %self.key, %error, "a snapshot that cannot be read is ignored");
                return Ok(false);
            }
        };
        // The batch that the snapshot ends with must be in the journal, else it is of another life of this folder.
        let batches = self.kind.shared.journal.read(&self.key, version, position, 1).await?;
        if !batches.first().is_some_and(|batch| batch.last() == version && batch.position == position) {
            tracing::warn!(entity = %self.key, version, "a snapshot of what is not in the journal is ignored");
            return Ok(false);
        }
        self.position = position;
        self.state = snapshot.state;
        self.correlation = snapshot.correlation.into();
        self.version = version;
        self.answers = Answers::default();
        for (command, answer) in snapshot.answers {
            self.answers.put(command, answer);
        }
        self.snapshot = Written { version, bytes: bytes.len(), bytes_since: 0 };
        Ok(true)
    }

    fn replay(&mut self, batch: &Batch) -> Result<(), ReadError> {
        let corrupt = |what: String| ReadError::Corrupt { place: format!("{} version {}", self.key, batch.first), what };
        let payload = Payload::parse(&batch.payload).map_err(|error| corrupt(error.to_string()))?;
        for record in &payload.events {
            if record.version <= self.version {
                continue;
            }
            if record.version != self.version + 1 {
                return Err(corrupt(format!("version {} follows version {}", record.version, self.version)));
            }
            let event: E::Event = record.event().map_err(|error| corrupt(format!("{}: {error}", record.event_type)))?;
            E::evolve(&mut self.state, &event);
            self.version = record.version;
            if *self.correlation != *record.correlation {
                self.correlation = Arc::from(&*record.correlation);
            }
        }
        for answered in &payload.answers {
            let answer = serde_json::from_str(answered.answer.get())
                .map_err(|error| corrupt(format!("the answer of {}: {error}", answered.command)))?;
            self.answers.put(answered.command.clone(), answer);
        }
        self.position = batch.position;
        self.snapshot.bytes_since += batch.payload.len();
        Ok(())
    }

    /// Tells the caller what the matter is. Damage ends the actor; a journal that cannot be reached is asked again for the
    /// next message, and for what this entity owes a little later.
    fn cannot_load(
        &mut self,
        myself: &ActorRef<Message<E>>,
        message: Message<E>,
        error: ReadError,
    ) -> Result<(), ActorProcessingErr> {
        let is_damage = matches!(error, ReadError::Corrupt { .. });
        let failure = Failure::from(error.clone());
        match message {
            Message::Command(message) => message.reply.fail(failure),
            Message::View(look) => look(Err(failure))(Ok(self.position)),
            Message::Newest(_, tell) => tell(Err(failure)),
            Message::Wake | Message::Heard { .. } | Message::Landed(_) | Message::Stored(_) => {
                self.failed_loads += 1;
                let again_at = self.kind.shared.clock.now().plus_ms(backoff_ms(self.failed_loads));
                // What was heard is lost, but the attempt is over: the debt need not wait for its deadline.
                if let Message::Heard { debt, .. } = &message
                    && let Some(attempt) = self.attempts.get_mut(debt)
                {
                    *attempt = Attempt { tries: attempt.tries, again_at, under_way: false };
                }
                self.kind.shared.agenda.set(&self.key, again_at);
            }
            Message::Confirm { tenure } => self.begin_tenure(tenure),
            Message::Watch { .. } | Message::Passivate | Message::HandOver | Message::Write | Message::Drawn(_) => {}
        }
        if is_damage {
            return Err(error.into());
        }
        self.leave_if_idle(myself);
        Ok(())
    }

    // Deciding ------------------------------------------------------------------------------------------------------

    async fn on_command(&mut self, message: CommandMessage<E>) -> Result<(), ActorProcessingErr> {
        let CommandMessage { mut command, caller, deadline, reply } = message;
        loop {
            if Instant::now() > deadline {
                reply.fail(Failure::TimedOut);
                return Ok(());
            }
            match self.answers.get(&caller.command) {
                Some(Answer::Settled(answer)) => {
                    let answer = answer.clone();
                    self.answer_when_durable(reply, answer);
                    return Ok(());
                }
                Some(Answer::Later) => {
                    self.defer(caller.command, deadline, reply);
                    return Ok(());
                }
                None => {}
            }
            // Half of what the journal takes is left to what this command decides.
            let pending_bytes_max = PENDING_BYTES_MAX.min(self.kind.shared.journal.batch_bytes_max() / 2);
            if self.pending.as_ref().is_some_and(|pending| pending.payload.bytes() > pending_bytes_max) {
                reply.fail(Failure::Overloaded("the journal is behind with this entity".into()));
                return Ok(());
            }
            let now = self.kind.shared.clock.now();
            self.let_time_pass(now)?;
            let again = (!self.proven && self.in_flight.is_none()).then(|| command.clone());
            match self.decide(command, &caller, now) {
                Ok(decision) if again.is_none() || decision.is_to_be_written() => {
                    self.correlation = caller.correlation.clone();
                    return self.accept(decision, &caller.command, &caller.asker, now, Some((deadline, reply)));
                }
                Err(error) if self.proven => {
                    reply.answer(Err(error));
                    return Ok(());
                }
                Err(error) if again.is_none() => {
                    self.wait_until_durable(Box::new(move |durable| {
                        reply.answer(Err(durable.err().map_or(error, AskError::Failed)));
                    }));
                    return Ok(());
                }
                Ok(_) | Err(_) => {}
            }
            // What is answered without a write must not rest on a state that somebody else has moved on from.
            self.confirm().await?;
            match again {
                Some(again) if self.proven => command = again,
                _ => {
                    reply.fail(Failure::OutOfReach("the journal does not answer".into()));
                    return Ok(());
                }
            }
        }
    }

    fn decide(&self, command: E::Command, caller: &Caller, now: Timestamp) -> Result<Decision<E>, AskError<E::Rejection>> {
        if let Some(expected) = caller.if_version
            && expected != self.version
        {
            return Err(AskError::Failed(Failure::VersionDiffers { actual: self.version }));
        }
        let context = Context { now, id: &self.id, command: &caller.command, asker: &caller.asker };
        E::decide(&self.state, command, &context).map_err(AskError::Rejected)
    }

    /// Does what time has brought, so that a command finds it done: what has run out by now, nobody can use any more.
    fn let_time_pass(&mut self, now: Timestamp) -> Result<(), ActorProcessingErr> {
        for _ in 0..ELAPSES_MAX {
            let is_due = E::due(&self.state).is_some_and(|due| due <= now);
            let Some(command) = E::elapse().filter(|_| is_due) else { break };
            if !self.decide_own(command, CommandId(format!("due:{now}")))? {
                break;
            }
        }
        Ok(())
    }

    /// A command of the entity to itself: an answer that it heard, or time. Its rules make a repeat harmless, so its answer
    /// is not remembered.
    fn decide_own(&mut self, command: E::Command, id: CommandId) -> Result<bool, ActorProcessingErr> {
        let now = self.kind.shared.clock.now();
        let asker = self.key.as_str().to_owned();
        let context = Context { now, id: &self.id, command: &id, asker: &asker };
        match E::decide(&self.state, command, &context) {
            Ok(decision) => {
                let changed = !decision.events.is_empty();
                self.accept(decision, &id, &asker, now, None)?;
                Ok(changed)
            }
            Err(rejection) => {
                tracing::warn!(entity = %self.key, trace = %self.correlation, command = %id, %rejection, "an entity rejects what it heard");
                Ok(false)
            }
        }
    }

    fn accept(
        &mut self,
        decision: Decision<E>,
        command: &CommandId,
        asker: &str,
        now: Timestamp,
        caller: Option<(Instant, ReplyTo<E>)>,
    ) -> Result<(), ActorProcessingErr> {
        let is_to_be_written = decision.is_to_be_written();
        let Decision { events, reply, settled } = decision;
        if !is_to_be_written {
            if let (Some((_, caller)), Reply::Now(reply)) = (caller, reply) {
                self.answer_when_durable(caller, Ok(reply));
            }
            return Ok(());
        }
        self.take_down_notice();
        let pending = self.pending.get_or_insert_with(|| Pending {
            payload: PayloadWriter::default(),
            expected: self.version,
            waiters: Vec::new(),
        });
        let correlation = self.correlation.clone();
        tracing::debug!(entity = %self.key, trace = %correlation, %command, asker, events = events.len(), "decided");
        let cause = Cause { command, correlation: &correlation, asker, time: now };
        let was_under_way = E::saga(&self.state).is_some_and(|saga| saga.ending.is_none());
        for event in &events {
            self.version += 1;
            pending.payload.event(&self.key, self.version, cause, event)?;
            E::evolve(&mut self.state, event);
        }
        if was_under_way && let Some(Saga { begun, ending: Some(ending) }) = E::saga(&self.state) {
            let took = Duration::from_millis(now.since_ms(begun).max(0).unsigned_abs());
            let sagas = self.kind.sagas_that(ending).clone();
            // Counted with the write: what is not durable has not ended.
            pending.waiters.push(Box::new(move |durable| {
                if durable.is_ok() {
                    sagas.count(took);
                }
            }));
        }
        match (caller, reply) {
            (Some((_, caller)), Reply::Now(reply)) if E::knows_again(&reply) => {
                pending.waiters.push(answering(caller, Ok(reply), self.version));
            }
            (Some((_, caller)), Reply::Now(reply)) => {
                let answer: AnswerOf<E> = Answer::Settled(Ok(reply.clone()));
                pending.payload.answer(command, &answer)?;
                self.answers.put(command.clone(), answer);
                pending.waiters.push(answering(caller, Ok(reply), self.version));
            }
            (Some((deadline, caller)), Reply::Later) => {
                pending.payload.answer(command, &AnswerOf::<E>::Later)?;
                self.answers.put(command.clone(), Answer::Later);
                self.deferred.entry(command.clone()).or_default().push((deadline, caller));
            }
            (None, _) => {}
        }
        for (command, answer) in settled {
            let journaled = AnswerOf::<E>::Settled(answer.clone());
            pending.payload.answer(&command, &journaled)?;
            for (_, caller) in self.deferred.remove(&command).unwrap_or_default() {
                pending.waiters.push(answering(caller, answer.clone(), self.version));
            }
            self.answers.put(command, journaled);
        }
        Ok(())
    }

    fn defer(&mut self, command: CommandId, deadline: Instant, reply: ReplyTo<E>) {
        let now = Instant::now();
        let callers = self.deferred.entry(command).or_default();
        for (_, expired) in callers.extract_if(.., |(until, _)| *until < now) {
            expired.fail(Failure::TimedOut);
        }
        callers.push((deadline, reply));
    }

    fn forget_expired(&mut self) {
        let now = Instant::now();
        self.deferred.retain(|_, callers| {
            callers.retain(|(until, _)| *until >= now);
            !callers.is_empty()
        });
        self.watches.retain(|(until, _)| *until >= now);
    }

    fn on_view(&mut self, look: Look<E>) {
        let waiter = look(Ok((&self.state, self.version)));
        self.wait_until_durable(waiter);
    }

    fn on_watch(&mut self, until: Instant, mut watch: Watch<E>) {
        match watch(&self.state, self.version) {
            Some(waiter) => self.wait_until_durable(waiter),
            None => self.watches.push((until, watch)),
        }
    }

    fn show_to_watches(&mut self) {
        if self.watches.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut seen = Vec::new();
        self.watches.retain_mut(|(until, watch)| {
            let waiter = watch(&self.state, self.version);
            let goes_on = waiter.is_none() && *until >= now;
            seen.extend(waiter);
            goes_on
        });
        seen.into_iter().for_each(|waiter| self.wait_until_durable(waiter));
    }

    fn answer_when_durable(&mut self, reply: ReplyTo<E>, answer: Result<E::Reply, E::Rejection>) {
        let waiter = answering(reply, answer, self.version);
        self.wait_until_durable(waiter);
    }

    /// What was seen may rest on events that are not durable yet: whoever saw it hears with them.
    fn wait_until_durable(&mut self, waiter: Waiter) {
        match (&mut self.pending, &mut self.in_flight) {
            (Some(pending), _) => pending.waiters.push(waiter),
            (None, Some(in_flight)) => in_flight.waiters.push(waiter),
            (None, None) => waiter(Ok(self.position)),
        }
    }

    // Writing -------------------------------------------------------------------------------------------------------

    fn write_pending(&mut self, myself: &ActorRef<Message<E>>) -> Result<(), ActorProcessingErr> {
        if self.in_flight.is_some() || self.lingers {
            return Ok(());
        }
        let Some(Pending { payload, expected, waiters }) = self.pending.take() else {
            return Ok(());
        };
        let owed = E::owes(&self.state);
        let wake = match (owed.is_empty(), E::due(&self.state)) {
            (false, _) => Wake::Now,
            (true, Some(at)) => Wake::At(at),
            (true, None) => Wake::Never,
        };
        let count = payload.count();
        if expected + u64::from(count) != self.version {
            return Err(format!("{count} records on top of version {expected} do not make version {}", self.version).into());
        }
        let payload = payload.finish(wake)?;
        self.snapshot.bytes_since += payload.len();
        let snapshot = self.snapshot_if_due()?;
        if let Some(taken) = &snapshot {
            self.count_snapshot(taken);
        }
        let callers = waiters.len();
        self.in_flight =
            Some(InFlight { callers, owed, waiters: Vec::new(), confirming: Vec::new(), snapshot, last: self.version });
        self.gate.set_version(self.version);
        self.kind.shared.counters.writes.add(1);
        let append = Append { entity: self.key.clone(), expected, after: self.position, count, payload: payload.into(), wake };
        let myself = myself.clone();
        let (appends, handed, on_tasks) =
            (self.kind.shared.counters.appends.clone(), Instant::now(), self.kind.shared.on_tasks.clone());
        self.kind.shared.journal.append(
            append,
            Box::new(move |result| {
                if result.is_ok() {
                    appends.count(handed.elapsed());
                }
                let durable = result.clone().map_err(Failure::from);
                let tell_entity = move || drop(myself.send_message(Message::Landed(result)));
                let answer_all = move || waiters.into_iter().for_each(|waiter| waiter(durable.clone()));
                if callers > 1 {
                    // To wake a crowd from the journal's own thread would take as long as the next flush. Before the entity,
                    // which gives it time to ask again.
                    on_tasks.spawn(async move { answer_all() });
                    tell_entity();
                } else {
                    // The entity first: its next write can then join the journal's next flush.
                    tell_entity();
                    answer_all();
                }
            }),
        );
        Ok(())
    }

    /// Lets a crowd that was just answered ask again before the next write, so that fewer and larger ones are flushed. When
    /// there is nothing else to do this takes no time.
    async fn linger(&mut self, myself: &ActorRef<Message<E>>) {
        self.lingers = true;
        tokio::task::yield_now().await;
        // Behind all that came meanwhile.
        self.lingers = myself.send_message(Message::Write).is_ok();
    }

    async fn on_landed(&mut self, position: Position, myself: &ActorRef<Message<E>>) -> Result<(), ActorProcessingErr> {
        self.position = position;
        self.failed_writes = 0;
        self.proven = true;
        let Some(landed) = self.in_flight.take() else {
            return Ok(());
        };
        for waiter in landed.waiters {
            waiter(Ok(position));
        }
        if let Some(taken) = landed.snapshot {
            self.put_snapshot(landed.last, taken, myself);
        }
        self.deliver(landed.owed, myself);
        self.schedule();
        self.gate.set_at_rest(E::is_at_rest(&self.state));
        if landed.callers > 1 {
            self.linger(myself).await;
        }
        let mut is_outdated = false;
        for (newest, tell) in landed.confirming {
            let is_known = newest <= position;
            is_outdated |= !is_known;
            hear(tell, if is_known { Ok(()) } else { Err(Failure::Moved) });
        }
        if is_outdated { self.start_afresh(&Failure::Moved).await } else { Ok(()) }
    }

    /// Nobody knows what is on disk but the disk: everything speculative is dropped and read again.
    async fn on_not_landed(&mut self, error: AppendError) -> Result<(), ActorProcessingErr> {
        self.failed_writes += 1;
        // Once for each entity: a store that is full fails them all, again and again.
        if self.failed_writes == 1 {
            tracing::warn!(entity = %self.key, trace = %self.correlation, %error, "a write failed; the entity comes back from the journal");
        }
        self.kind.shared.counters.failed_writes.add(1);
        if matches!(error, AppendError::Conflict { .. }) {
            self.kind.shared.counters.conflicts.add(1);
        }
        let failure = Failure::from(error);
        let in_flight = self.in_flight.take();
        let last = in_flight.as_ref().map_or(0, |in_flight| in_flight.last);
        let (beside, confirming) = in_flight.map(|in_flight| (in_flight.waiters, in_flight.confirming)).unwrap_or_default();
        for waiter in beside {
            waiter(Err(failure.clone()));
        }
        for (_, tell) in confirming {
            hear(tell, Err(failure.clone()));
        }
        self.start_afresh(&failure).await?;
        if self.version >= last {
            // It was stored after all.
            self.failed_writes = 0;
        }
        // What could not be read again owes nothing that anybody knows of: it is woken when it may be readable, see above.
        if self.loaded {
            self.take_up_later(self.kind.shared.clock.now().plus_ms(backoff_ms(self.failed_writes)));
        }
        Ok(())
    }

    /// Forgets all that it knows, and what it was about to write on top of that, and reads it again. Where the journal cannot
    /// be reached, the next message reads it. Whoever waits hears `why`.
    async fn start_afresh(&mut self, why: &Failure) -> Result<(), ActorProcessingErr> {
        self.drop_pending(why);
        self.send_deferred_away(why);
        self.loaded = false;
        match Box::pin(self.load()).await {
            Ok(()) => {}
            Err(ReadError::Unreadable(why)) => tracing::warn!(entity = %self.key, why, "an entity cannot be read again yet"),
            Err(damage) => return Err(damage.into()),
        }
        // It may owe something that it did not know of.
        let now = self.kind.shared.clock.now();
        self.kind.shared.agenda.set(&self.key, now.plus_ms(backoff_ms(self.failed_writes)));
        Ok(())
    }

    fn drop_pending(&mut self, why: &Failure) {
        for waiter in self.pending.take().map(|pending| pending.waiters).unwrap_or_default() {
            waiter(Err(why.clone()));
        }
    }

    /// Whoever waits for an answer that comes later may ask again, wherever the entity is then: the command is known there.
    fn send_deferred_away(&mut self, why: &Failure) {
        for (_, caller) in std::mem::take(&mut self.deferred).into_values().flatten() {
            caller.fail(why.clone());
        }
    }

    /// See [`Message::Confirm`].
    async fn confirm(&mut self) -> Result<(), ActorProcessingErr> {
        match self.kind.shared.journal.newest(&self.key).await {
            Ok(newest) => self.know(newest, None).await,
            // Not known is as good as wrong: it is then read again.
            Err(ReadError::Unreadable(_)) if self.in_flight.is_some() => self.know(Position(Version::MAX), None).await,
            Err(ReadError::Unreadable(_)) => {
                // What time has brought a moment ago rests on what is not known any more. Were it written, it would land on
                // a state that is read again meanwhile.
                self.drop_pending(&Failure::OutOfReach("the journal cannot be read".into()));
                self.loaded = false;
                Ok(())
            }
            Err(damage) => Err(damage.into()),
        }
    }

    /// See [`Message::Newest`].
    async fn know(&mut self, newest: Position, tell: Option<Confirmed>) -> Result<(), ActorProcessingErr> {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.confirming.push((newest, tell));
            return Ok(());
        }
        if newest > self.position {
            self.start_afresh(&Failure::Moved).await?;
        }
        self.proven = self.loaded && newest <= self.position;
        self.loaded = self.proven;
        hear(tell, if self.proven { Ok(()) } else { Err(Failure::OutOfReach("the journal cannot be read".into())) });
        Ok(())
    }

    /// See [`Message::Stored`]. A write that is under way will hear of it.
    async fn on_stored(&mut self, version: Version) -> Result<(), ActorProcessingErr> {
        if version <= self.version || self.in_flight.is_some() {
            return Ok(());
        }
        tracing::debug!(entity = %self.key, version, "somebody else wrote; the entity is read again");
        self.start_afresh(&Failure::Moved).await
    }

    /// A snapshot is due after so many records, and not before several times as much was written as the last one weighed:
    /// so a large entity spends little on snapshots beside what it spends on its journal.
    fn snapshot_if_due(&self) -> Result<Option<Taken<E>>, serde_json::Error> {
        let records = self.version - self.snapshot.version;
        let enough = self.snapshot.bytes.saturating_mul(SNAPSHOT_SHARE).min(REPLAY_MAX_BYTES);
        if self.is_drawing || records < self.kind.shared.config.snapshot_every || self.snapshot.bytes_since < enough {
            return Ok(None);
        }
        self.picture().map_or_else(|| self.snapshot_bytes(), Ok).map(Some)
    }

    fn picture(&self) -> Option<Taken<E>> {
        let state = E::picture(&self.state)?;
        let answers = self.answers.iter().cloned().collect();
        Some(Taken::Picture(Box::new(Picture { state, correlation: self.correlation.clone(), answers })))
    }

    fn snapshot_bytes(&self) -> Result<Taken<E>, serde_json::Error> {
        let (state, correlation, answers) = (&self.state, &*self.correlation, self.answers.iter().collect());
        serde_json::to_vec(&SnapshotOut::<E> { state, correlation, answers }).map(Taken::Bytes)
    }

    fn count_snapshot(&mut self, taken: &Taken<E>) {
        let bytes = match taken {
            Taken::Bytes(bytes) => bytes.len(),
            // It is weighed when it is written.
            Taken::Picture(_) => self.snapshot.bytes,
        };
        self.snapshot = Written { version: self.version, bytes, bytes_since: 0 };
        self.kind.shared.counters.snapshots.add(1);
    }

    /// As of the newest batch that is durable, which ends with `version`.
    fn put_snapshot(&mut self, version: Version, taken: Taken<E>, myself: &ActorRef<Message<E>>) {
        let (snapshots, key) = (&self.kind.shared.snapshots, &self.key);
        let (position, format) = (self.position, E::SNAPSHOT_FORMAT);
        match taken {
            Taken::Bytes(bytes) => snapshots.put(key, &Snapshot { version, position, format, bytes: bytes.into() }),
            Taken::Picture(picture) => {
                let (snapshots, key) = (snapshots.clone(), key.clone());
                let drawing = Drawing { entity: myself.clone(), bytes: None };
                self.is_drawing = true;
                self.kind.shared.on_tasks.spawn_blocking(move || {
                    // All of it, or the entity would be told at once.
                    let mut drawing = drawing;
                    drawing.bytes = snapshots.draw(&key, Of { version, position, format }, |out| picture.write(out));
                });
            }
        }
    }

    fn on_drawn(&mut self, bytes: Option<usize>) {
        self.is_drawing = false;
        self.snapshot.bytes = bytes.unwrap_or(self.snapshot.bytes);
    }

    // What stands at the door ---------------------------------------------------------------------------------------

    /// As soon as all of the state is durable, and known to be what the journal says.
    fn put_up_notice(&mut self) {
        if self.is_noticed || !self.loaded || !self.proven || self.pending.is_some() || self.in_flight.is_some() {
            return;
        }
        self.is_noticed = true;
        if let Some(notice) = E::notice(&self.state) {
            let answered = self.answers.iter().map(|(command, _)| command);
            self.board.put_up(notice, E::due(&self.state), self.tenure, answered);
        }
    }

    /// Before anything is accepted that it does not know of.
    fn take_down_notice(&mut self) {
        if std::mem::take(&mut self.is_noticed) {
            self.board.take_down();
        }
    }

    fn begin_tenure(&mut self, tenure: u64) {
        self.take_down_notice();
        self.tenure = tenure;
    }

    // Conversing ----------------------------------------------------------------------------------------------------

    /// Carries on what the journal says this entity owes and waits for. Whoever brought it to life, nobody else need know
    /// of it: a former owner's last write can land after the agenda was read.
    fn take_up(&mut self, myself: &ActorRef<Message<E>>) {
        let owed = E::owes(&self.state);
        self.deliver(owed, myself);
        self.schedule();
        self.gate.set_at_rest(E::is_at_rest(&self.state));
    }

    /// The same, but not before the store had time to recover: the answers to what is owed would have to be written too.
    fn take_up_later(&mut self, not_before: Timestamp) {
        let owed = E::owes(&self.state);
        self.attempts.retain(|id, _| owed.iter().any(|debt| debt.id == *id));
        for debt in owed {
            let attempt = self.attempts.entry(debt.id).or_insert(Attempt { tries: 0, again_at: not_before, under_way: false });
            attempt.again_at = attempt.again_at.max(not_before);
        }
        self.schedule_from(not_before);
    }

    /// Posts what is owed durably and is not under way already.
    fn deliver(&mut self, owed: Vec<Debt<E>>, myself: &ActorRef<Message<E>>) {
        self.attempts.retain(|id, _| owed.iter().any(|debt| debt.id == *id));
        let now = self.kind.shared.clock.now();
        for debt in owed {
            let attempt = self.attempts.entry(debt.id.clone()).or_insert(Attempt { tries: 0, again_at: now, under_way: false });
            if attempt.is_due(now) {
                attempt.tries = attempt.tries.saturating_add(1);
                attempt.under_way = true;
                attempt.again_at = now.plus_ms(ATTEMPT.as_millis() as i64 + ATTEMPT_SLACK_MS);
                self.post(debt, myself.clone());
            }
        }
    }

    fn post(&self, debt: Debt<E>, myself: ActorRef<Message<E>>) {
        let shared = &self.kind.shared;
        let mut caller = Caller::new(CommandId(format!("{}:{}", self.key, debt.id)), self.key.as_str(), self.correlation.clone());
        caller.timeout = ATTEMPT;
        let (id, to) = (debt.id.clone(), debt.to.clone());
        let (request, hear) = debt.into_parts();
        let letter = Letter {
            request,
            caller,
            answer: Box::new(move |answer| {
                let _ = myself.send_message(Message::Heard { debt: id, answer, hear });
            }),
        };
        match to {
            Recipient::Entity { kind, id } => shared.post_to_entity(kind, &id, letter),
            Recipient::Outside { name } => shared.post_outside(name, letter),
        }
    }

    fn on_heard(&mut self, debt: &str, answer: AnyAnswer, hear: Hear<E>) -> Result<(), ActorProcessingErr> {
        // Whatever was heard: unless it leads to an event that pays the debt, it is tried again, later.
        let now = self.kind.shared.clock.now();
        if let Some(attempt) = self.attempts.get_mut(debt) {
            attempt.again_at = now.plus_ms(backoff_ms(attempt.tries));
            attempt.under_way = false;
            if let Err(failure) = &answer
                && attempt.tries % 5 == 0
            {
                tracing::warn!(entity = %self.key, trace = %self.correlation, debt, tries = attempt.tries, %failure, "a debt cannot be delivered yet");
            }
        }
        if let Ok(answer) = answer
            && let Some(command) = hear(answer)
        {
            self.decide_own(command, CommandId(format!("heard:{debt}")))?;
        }
        if self.pending.is_none() && self.in_flight.is_none() {
            self.schedule();
        }
        Ok(())
    }

    fn on_wake(&mut self, myself: &ActorRef<Message<E>>) -> Result<(), ActorProcessingErr> {
        self.scheduled = None;
        let now = self.kind.shared.clock.now();
        let mut not_before = now;
        if E::due(&self.state).is_some_and(|due| due <= now)
            && let Some(command) = E::elapse()
        {
            let changed = self.decide_own(command, CommandId(format!("due:{now}")))?;
            if !changed {
                not_before = now.plus_ms(STILL_DUE_MS);
            }
        }
        // While a write is under way nothing is delivered; when it has landed, or has not, all this is looked at again.
        if self.pending.is_none() && self.in_flight.is_none() {
            let owed = E::owes(&self.state);
            self.deliver(owed, myself);
            self.schedule_from(not_before);
        }
        Ok(())
    }

    fn schedule(&mut self) {
        self.schedule_from(Timestamp::default());
    }

    /// Tells the agenda when this entity must be woken next, if it does not know already.
    fn schedule_from(&mut self, not_before: Timestamp) {
        let retry = self.attempts.values().map(|attempt| attempt.again_at).min();
        let due = E::due(&self.state);
        match (due.into_iter().chain(retry).min(), self.scheduled) {
            // Woken a little early is harmless; told anew at each change is not.
            (Some(at), Some(told)) if told <= at => {}
            (Some(at), _) => {
                let at = at.max(not_before);
                self.kind.shared.agenda.set(&self.key, at);
                self.scheduled = Some(at);
            }
            (None, Some(_)) => {
                self.kind.shared.agenda.cancel(&self.key);
                self.scheduled = None;
            }
            (None, None) => {}
        }
    }

    // Leaving -------------------------------------------------------------------------------------------------------

    /// Nobody waits here any more for what will happen elsewhere.
    fn hand_over(&mut self) {
        self.handing_over.get_or_insert_with(Instant::now);
        self.send_deferred_away(&Failure::Moved);
        self.watches.clear();
    }

    fn leave_if_idle(&mut self, myself: &ActorRef<Message<E>>) {
        // What is still owed is in the journal's agenda, for whoever has the entity next.
        let waits_for_answers = match self.handing_over {
            Some(since) => since.elapsed() < LEAVE_WITHOUT_ANSWERS && self.attempts.values().any(|attempt| attempt.under_way),
            None => !self.attempts.is_empty() && !self.kind.shared.is_draining(),
        };
        let is_writing = self.pending.is_some() || self.in_flight.is_some() || self.is_drawing;
        if is_writing || !self.deferred.is_empty() || waits_for_answers {
            return;
        }
        let is_worth_it = self.version - self.snapshot.version > REPLAYED_AS_FAST;
        // What is written beside it, it waits for: who comes to life meanwhile would read what was before.
        if is_worth_it
            && self.gate.waiting() == 0
            && let Some(picture) = self.picture()
        {
            self.count_snapshot(&picture);
            return self.put_snapshot(self.version, picture, myself);
        }
        if !self.kind.leave(&self.id, myself.get_id()) {
            return;
        }
        if is_worth_it {
            match self.snapshot_bytes() {
                Ok(bytes) => self.put_snapshot(self.version, bytes, myself),
                Err(error) => tracing::warn!(entity = %self.key, %error, "no snapshot was written"),
            }
        }
        // The agenda may have woken this actor a moment ago, and that message dies with it: it is told once more.
        if let Some(due) = E::due(&self.state) {
            self.kind.shared.agenda.set(&self.key, due);
        }
        self.kind.shared.counters.passivations.add(1);
        if self.handing_over.is_some() {
            self.kind.shared.counters.handovers.add(1);
        }
        myself.stop(None);
    }
}

fn hear(tell: Option<Confirmed>, confirmed: Result<(), Failure>) {
    if let Some(tell) = tell {
        tell(confirmed);
    }
}

/// Answers a caller once the write that it travels with is durable.
fn answering<E: Entity>(caller: ReplyTo<E>, answer: Result<E::Reply, E::Rejection>, version: Version) -> Waiter {
    Box::new(move |durable| {
        let outcome: Outcome<E> = match (durable, answer) {
            (Ok(position), Ok(reply)) => Ok(Answered { reply, version, position }),
            (Ok(_), Err(rejection)) => Err(AskError::Rejected(rejection)),
            (Err(failure), _) => Err(AskError::Failed(failure)),
        };
        caller.answer(outcome);
    })
}

impl From<AppendError> for Failure {
    fn from(error: AppendError) -> Self {
        match error {
            // Somebody else has it now.
            AppendError::Conflict { .. } => Failure::Moved,
            AppendError::NotWritten(_) => Failure::NotWritten(error.to_string()),
            AppendError::Unknown(what) => Failure::Unknown(what),
        }
    }
}
