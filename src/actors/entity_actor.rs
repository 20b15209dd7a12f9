//! One entity, alive: it decides, folds, has it written, and answers only what is durable.
//!
//! Commands are decided against the speculative state (all that was accepted so far) and their events queue up in
//! `pending`. One write is in flight at a time; when it lands, all that is pending goes out as the next. Callers travel
//! with their write and are answered by the journal's writer. If a write fails, everybody in it and behind it hears so,
//! the speculative state is dropped and the entity comes back from the journal.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::{Deserialize, Serialize};

use super::answers::{Answer, AnswerOf, Answers};
use super::ask::{Answered, AskError, Caller, Failure};
use super::conversation::{ATTEMPT, ATTEMPT_SLACK_MS, AnyAnswer, Attempt, Letter};
use super::gate::Gate;
use super::kind::Kind;
use super::reply::{Outcome, ReplyTo};
use super::retry::backoff_ms;
use crate::domain::entity::Hear;
use crate::domain::{CommandId, Context, Debt, Decision, Entity, Recipient, Reply, Timestamp};
use crate::persistence::record::{Cause, Payload, PayloadWriter};
use crate::persistence::{Append, AppendError, Batch, EntityKey, Position, ReadError, Version, Wake};

/// How many batches a replay reads at a time.
const READ_BATCHES: usize = 256;
/// A pending write is not let grow past this, in bytes: whoever comes later is told to retry.
const PENDING_BYTES_MAX: usize = 4 << 20;
/// So few records are replayed as fast as a snapshot is read: for them none is written on leaving.
const REPLAYED_AS_FAST: u64 = 16;
/// How many times a snapshot's weight is written to the journal before the next one.
const SNAPSHOT_SHARE: usize = 8;
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
    Watch { until: Instant, watch: Watch<E> },
    Heard { debt: String, answer: AnyAnswer, hear: Hear<E> },
    Landed(Result<Position, AppendError>),
    Wake,
    Passivate,
}

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
    key: EntityKey,
    id: Arc<str>,
    loaded: bool,
    /// Speculative: all that was decided, durable or not.
    state: E::State,
    version: Version,
    /// Of the newest write known to be durable.
    position: Position,
    /// The request that moved this entity last; its debts travel under it.
    correlation: Arc<str>,
    answers: Answers<E>,
    pending: Option<Pending>,
    in_flight: Option<InFlight<E>>,
    /// Callers of commands that were told to wait, with the moment when they no longer do.
    deferred: HashMap<CommandId, Vec<(Instant, ReplyTo<E>)>>,
    attempts: HashMap<String, Attempt>,
    /// Who waits to see something, and until when.
    watches: Vec<(Instant, Watch<E>)>,
    /// What the agenda was told.
    scheduled: Option<Timestamp>,
    /// Writes that failed since the last one that landed.
    failed_writes: u32,
    snapshot: Written,
}

/// Decided and not yet sent to the journal.
struct Pending {
    payload: PayloadWriter,
    expected: Version,
    waiters: Vec<Waiter>,
}

/// Sent to the journal and not yet heard of.
struct InFlight<E: Entity> {
    /// What the entity owes once this is durable.
    owed: Vec<Debt<E>>,
    /// Who waits for it to land, having changed nothing.
    waiters: Vec<Waiter>,
    /// Serialized as of this write, when one is due.
    snapshot: Option<Vec<u8>>,
    last: Version,
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
        if !entity.loaded {
            if let Err(error) = entity.load().await {
                return Err(entity.cannot_load(message, error));
            }
            entity.take_up(&myself);
        }
        let asked_to_leave = matches!(message, Message::Passivate);
        let version = entity.version;
        match message {
            Message::Command(message) => entity.on_command(*message)?,
            Message::View(look) => entity.on_view(look),
            Message::Watch { until, watch } => entity.on_watch(until, watch),
            Message::Heard { debt, answer, hear } => entity.on_heard(&debt, answer, hear)?,
            Message::Landed(Ok(position)) => entity.on_landed(position, &myself),
            Message::Landed(Err(error)) => entity.on_not_landed(error).await?,
            Message::Wake => entity.on_wake(&myself)?,
            Message::Passivate => entity.forget_expired(),
        }
        if entity.version != version {
            entity.show_to_watches();
        }
        entity.write_pending(&myself)?;
        // An entity that was never written is only somebody's wrong id: it does not stay.
        if asked_to_leave || entity.version == 0 {
            entity.leave_if_idle(&myself);
        }
        Ok(())
    }
}

impl<E: Entity> Resident<E> {
    fn new(Arguments { kind, gate, key, id }: Arguments<E>) -> Self {
        Resident {
            kind,
            gate,
            key,
            id,
            loaded: false,
            state: E::State::default(),
            version: 0,
            position: Position(0),
            correlation: Arc::from(""),
            answers: Answers::default(),
            pending: None,
            in_flight: None,
            deferred: HashMap::new(),
            attempts: HashMap::new(),
            watches: Vec::new(),
            scheduled: None,
            failed_writes: 0,
            snapshot: Written::default(),
        }
    }

    // Coming to life ------------------------------------------------------------------------------------------------

    /// The newest snapshot, then the journal after it.
    async fn load(&mut self) -> Result<(), ReadError> {
        self.state = E::State::default();
        self.version = 0;
        self.answers = Answers::default();
        self.snapshot = Written::default();
        let journal = self.kind.shared.journal.clone();
        self.position = journal.highest();
        let mut from = 1;
        if let Some((version, size, snapshot)) = self.read_snapshot() {
            // The batch that the snapshot ends with must be in the journal, else it is of another life of this folder.
            let batches = journal.read(&self.key, version, READ_BATCHES).await?;
            if batches.first().is_some_and(|batch| batch.first <= version && version <= batch.last()) {
                self.state = snapshot.state;
                self.correlation = snapshot.correlation.into();
                self.version = version;
                for (command, answer) in snapshot.answers {
                    self.answers.put(command, answer);
                }
                self.snapshot = Written { version, bytes: size, bytes_since: 0 };
                from = version + 1;
            } else {
                tracing::warn!(entity = %self.key, version, "a snapshot of what is not in the journal is ignored");
            }
        }
        loop {
            let batches = journal.read(&self.key, from, READ_BATCHES).await?;
            for batch in &batches {
                self.replay(batch)?;
            }
            from = self.version + 1;
            if batches.len() < READ_BATCHES {
                break;
            }
        }
        self.loaded = true;
        Ok(())
    }

    fn read_snapshot(&self) -> Option<(Version, usize, SnapshotIn<E>)> {
        let stored = self.kind.shared.snapshots.get(&self.key)?;
        if stored.format != E::SNAPSHOT_FORMAT {
            return None;
        }
        match serde_json::from_slice(&stored.bytes) {
            Ok(snapshot) => Some((stored.version, stored.bytes.len(), snapshot)),
            Err(error) => {
                tracing::warn!(entity = %self.key, %error, "a snapshot that cannot be read is ignored");
                None
            }
        }
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
        self.snapshot.bytes_since += batch.payload.len();
        Ok(())
    }

    /// Tells the caller what the matter is, and ends the actor.
    fn cannot_load(&self, message: Message<E>, error: ReadError) -> ActorProcessingErr {
        match message {
            Message::Command(message) => message.reply.fail(Failure::Unreadable(error.clone())),
            Message::View(look) => look(Err(Failure::Unreadable(error.clone())))(Ok(self.position)),
            _ => {}
        }
        error.into()
    }

    // Deciding ------------------------------------------------------------------------------------------------------

    fn on_command(&mut self, message: CommandMessage<E>) -> Result<(), ActorProcessingErr> {
        let CommandMessage { command, caller, deadline, reply } = message;
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
        if let Some(expected) = caller.if_version
            && expected != self.version
        {
            reply.fail(Failure::VersionDiffers { actual: self.version });
            return Ok(());
        }
        if self.pending.as_ref().is_some_and(|pending| pending.payload.bytes() > PENDING_BYTES_MAX) {
            reply.fail(Failure::Overloaded("the journal is behind with this entity"));
            return Ok(());
        }
        let now = self.kind.shared.clock.now();
        let context = Context { now, id: &self.id, command: &caller.command, asker: &caller.asker };
        match E::decide(&self.state, command, &context) {
            Ok(decision) => {
                self.correlation = caller.correlation.clone();
                self.accept(decision, &caller.command, &caller.asker, now, Some((deadline, reply)))
            }
            Err(rejection) => {
                reply.answer(Err(AskError::Rejected(rejection)));
                Ok(())
            }
        }
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
        let Decision { events, reply, settled } = decision;
        if events.is_empty() && settled.is_empty() {
            if let (Some((_, caller)), Reply::Now(reply)) = (caller, reply) {
                self.answer_when_durable(caller, Ok(reply));
            }
            return Ok(());
        }
        let pending = self.pending.get_or_insert_with(|| Pending {
            payload: PayloadWriter::default(),
            expected: self.version,
            waiters: Vec::new(),
        });
        let correlation = self.correlation.clone();
        tracing::debug!(entity = %self.key, trace = %correlation, %command, asker, events = events.len(), "decided");
        let cause = Cause { command, correlation: &correlation, asker, time: now };
        for event in &events {
            self.version += 1;
            pending.payload.event(&self.key, self.version, cause, event)?;
            E::evolve(&mut self.state, event);
        }
        if let Some((deadline, caller)) = caller {
            let answer: AnswerOf<E> = match reply {
                Reply::Now(reply) => Answer::Settled(Ok(reply)),
                Reply::Later => Answer::Later,
            };
            pending.payload.answer(command, &answer)?;
            self.answers.put(command.clone(), answer.clone());
            match answer {
                Answer::Settled(answer) => pending.waiters.push(answering(caller, answer, self.version)),
                Answer::Later => self.deferred.entry(command.clone()).or_default().push((deadline, caller)),
            }
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
        if self.in_flight.is_some() {
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
        let payload = payload.finish(wake)?;
        self.snapshot.bytes_since += payload.len();
        let snapshot = self.snapshot_if_due()?;
        if let Some(bytes) = &snapshot {
            self.snapshot = Written { version: self.version, bytes: bytes.len(), bytes_since: 0 };
            self.kind.shared.counters.snapshots.add(1);
        }
        self.in_flight = Some(InFlight { owed, waiters: Vec::new(), snapshot, last: self.version });
        self.kind.shared.counters.writes.add(1);
        let append = Append { entity: self.key.clone(), expected, count, payload: payload.into(), wake };
        let myself = myself.clone();
        self.kind.shared.journal.append(
            append,
            Box::new(move |result| {
                let durable = result.clone().map_err(Failure::from);
                // The entity first: its next write can then join the journal's next flush.
                let _ = myself.send_message(Message::Landed(result));
                for waiter in waiters {
                    waiter(durable.clone());
                }
            }),
        );
        Ok(())
    }

    fn on_landed(&mut self, position: Position, myself: &ActorRef<Message<E>>) {
        self.position = position;
        self.failed_writes = 0;
        let Some(landed) = self.in_flight.take() else {
            return;
        };
        for waiter in landed.waiters {
            waiter(Ok(position));
        }
        if let Some(bytes) = landed.snapshot {
            self.kind.shared.snapshots.put(&self.key, landed.last, E::SNAPSHOT_FORMAT, &bytes);
        }
        self.deliver(landed.owed, myself);
        self.schedule();
        self.gate.set_at_rest(E::is_at_rest(&self.state));
    }

    /// Nobody knows what is on disk but the disk: everything speculative is dropped and read again.
    async fn on_not_landed(&mut self, error: AppendError) -> Result<(), ActorProcessingErr> {
        self.failed_writes += 1;
        // Once for each entity: a store that is full fails them all, again and again.
        if self.failed_writes == 1 {
            tracing::warn!(entity = %self.key, trace = %self.correlation, %error, "a write failed; the entity comes back from the journal");
        }
        self.kind.shared.counters.failed_writes.add(1);
        let failure = Failure::from(error);
        let behind = self.pending.take().map(|pending| pending.waiters).unwrap_or_default();
        let (beside, last) = self.in_flight.take().map(|in_flight| (in_flight.waiters, in_flight.last)).unwrap_or_default();
        for waiter in behind.into_iter().chain(beside) {
            waiter(Err(failure.clone()));
        }
        for (_, caller) in self.deferred.drain().flat_map(|(_, callers)| callers) {
            caller.fail(Failure::Unknown("a write of this entity failed".into()));
        }
        self.loaded = false;
        self.load().await?;
        if self.version >= last {
            // It was stored after all.
            self.failed_writes = 0;
        }
        self.take_up_later(self.kind.shared.clock.now().plus_ms(backoff_ms(self.failed_writes)));
        Ok(())
    }

    /// A snapshot is due after so many records, and not before several times as much was written as the last one weighed:
    /// so a large entity spends little on snapshots beside what it spends on its journal.
    fn snapshot_if_due(&self) -> Result<Option<Vec<u8>>, serde_json::Error> {
        let records = self.version - self.snapshot.version;
        if records < self.kind.shared.config.snapshot_every || self.snapshot.bytes_since < self.snapshot.bytes * SNAPSHOT_SHARE {
            return Ok(None);
        }
        self.snapshot_bytes().map(Some)
    }

    fn snapshot_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&SnapshotOut::<E> {
            state: &self.state,
            correlation: &self.correlation,
            answers: self.answers.iter().collect(),
        })
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
            let attempt = self.attempts.entry(debt.id).or_insert(Attempt { tries: 0, again_at: not_before });
            attempt.again_at = attempt.again_at.max(not_before);
        }
        self.schedule_from(not_before);
    }

    /// Posts what is owed durably and is not under way already.
    fn deliver(&mut self, owed: Vec<Debt<E>>, myself: &ActorRef<Message<E>>) {
        self.attempts.retain(|id, _| owed.iter().any(|debt| debt.id == *id));
        let now = self.kind.shared.clock.now();
        for debt in owed {
            let attempt = self.attempts.entry(debt.id.clone()).or_insert(Attempt { tries: 0, again_at: now });
            if attempt.again_at <= now {
                attempt.tries = attempt.tries.saturating_add(1);
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

    fn leave_if_idle(&mut self, myself: &ActorRef<Message<E>>) {
        let draining = self.kind.shared.is_draining();
        let busy = self.pending.is_some()
            || self.in_flight.is_some()
            || !self.deferred.is_empty()
            // What is still owed is in the journal's agenda, for the next start.
            || (!self.attempts.is_empty() && !draining);
        if busy || !self.kind.leave(&self.id, myself.get_id()) {
            return;
        }
        if self.version - self.snapshot.version > REPLAYED_AS_FAST {
            match self.snapshot_bytes() {
                Ok(bytes) => self.kind.shared.snapshots.put(&self.key, self.version, E::SNAPSHOT_FORMAT, &bytes),
                Err(error) => tracing::warn!(entity = %self.key, %error, "no snapshot was written"),
            }
        }
        // The agenda may have woken this actor a moment ago, and that message dies with it: it is told once more.
        if let Some(due) = E::due(&self.state) {
            self.kind.shared.agenda.set(&self.key, due);
        }
        self.kind.shared.counters.passivations.add(1);
        myself.stop(None);
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
            AppendError::Conflict { .. } | AppendError::NotWritten(_) => Failure::NotWritten(error.to_string()),
            AppendError::Unknown(what) => Failure::Unknown(what),
        }
    }
}
