//! What the tests of the machines share: `given(events).when(command).then(...)`, and an entity kept alive in memory.
//!
//! Every decision that passes through here is also checked for what must hold of all of them: events and state survive
//! JSON, and a state folded from the journal is the state that was decided against.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

use super::entity::Settled;
use super::{CommandId, Context, Decision, Entity, Money, Reply, Timestamp, money::Currency};

pub const NOON: i64 = 1_795_219_200_000;

/// The moment so many milliseconds after the tests' noon.
pub fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(NOON + millis)
}

pub fn eur(amount: i64) -> Money {
    Money::new(amount, Currency::EUR)
}

pub fn command_id(id: &str) -> CommandId {
    CommandId::from(id)
}

pub struct Given<E: Entity> {
    pub state: E::State,
    now: Timestamp,
    id: String,
    command: CommandId,
}

pub struct Then<E: Entity> {
    pub state: E::State,
    pub result: Result<Decision<E>, E::Rejection>,
}

impl<E: Entity> Clone for Given<E>
where
    E::State: Clone,
{
    fn clone(&self) -> Self {
        Given { state: self.state.clone(), now: self.now, id: self.id.clone(), command: self.command.clone() }
    }
}

pub fn given<E: Entity>(events: impl IntoIterator<Item = E::Event>) -> Given<E> {
    let mut state = E::State::default();
    events.into_iter().for_each(|event| E::evolve(&mut state, &event));
    Given { state, now: at(0), id: "me".to_owned(), command: command_id("c") }
}

impl<E: Entity> Given<E>
where
    E::State: Clone + PartialEq + Debug,
    E::Event: PartialEq + Debug,
    E::Reply: PartialEq + Debug,
    E::Rejection: PartialEq,
{
    pub fn id(mut self, id: &str) -> Self {
        self.id = id.to_owned();
        self
    }

    pub fn at(mut self, millis: i64) -> Self {
        self.now = at(millis);
        self
    }

    pub fn by(mut self, command: &str) -> Self {
        self.command = command_id(command);
        self
    }

    pub fn when(&self, command: E::Command) -> Then<E> {
        let context = Context { now: self.now, id: &self.id, command: &self.command, asker: "guest" };
        let mut state = self.state.clone();
        let result = E::decide(&state, command, &context);
        for event in result.iter().flat_map(|decision| &decision.events) {
            assert_eq!(&through_json(event), event, "an event survives JSON");
            E::evolve(&mut state, event);
        }
        assert_eq!(through_json(&state), state, "a state survives JSON");
        Then { state, result }
    }

    /// Carries the commands out one after the other, each accepted.
    pub fn after(mut self, commands: impl IntoIterator<Item = E::Command>) -> Self {
        for command in commands {
            let then = self.when(command);
            then.decision();
            self.state = then.state;
        }
        self
    }
}

impl<E: Entity> Then<E>
where
    E::Event: PartialEq + Debug,
    E::Reply: PartialEq + Debug,
    E::Rejection: PartialEq,
{
    pub fn decision(&self) -> &Decision<E> {
        self.result.as_ref().expect("the command is accepted")
    }

    #[track_caller]
    pub fn then(self, events: Vec<E::Event>, reply: E::Reply) -> Self {
        assert_eq!(self.decision().events, events);
        assert_eq!(self.decision().reply, Reply::Now(reply));
        self
    }

    #[track_caller]
    pub fn then_nothing_but(self, reply: E::Reply) -> Self {
        self.then(Vec::new(), reply)
    }

    #[track_caller]
    pub fn then_later(self, events: Vec<E::Event>) -> Self {
        assert_eq!(self.decision().events, events);
        assert_eq!(self.decision().reply, Reply::Later);
        self
    }

    #[track_caller]
    pub fn then_refused(self, rejection: E::Rejection) -> Self {
        match &self.result {
            Ok(decision) => panic!("accepted with {decision:?} instead of refused with {rejection:?}"),
            Err(refused) => assert_eq!(refused, &rejection),
        }
        self
    }

    #[track_caller]
    pub fn settles(self, settled: Vec<Settled<E>>) -> Self {
        assert_eq!(self.decision().settled, settled);
        self
    }

    #[track_caller]
    pub fn owing(self, debts: &[&str]) -> Self {
        let owed: Vec<String> = E::owes(&self.state).into_iter().map(|debt| debt.id).collect();
        assert_eq!(owed, debts);
        self
    }

    /// What came of it is what is given next.
    pub fn and(self) -> Given<E> {
        Given { state: self.state, now: at(0), id: "me".to_owned(), command: command_id("c") }
    }
}

pub fn through_json<T: Serialize + DeserializeOwned>(value: &T) -> T {
    let text = serde_json::to_string(value).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// An entity that lives in memory as the runtime would keep it: with its journal, and the callers that wait.
pub struct Live<E: Entity> {
    pub id: String,
    pub state: E::State,
    pub journal: Vec<String>,
    /// The first answer to each command that left a record.
    pub answers: Vec<Settled<E>>,
    pub waiting: BTreeSet<CommandId>,
}

impl<E: Entity> Live<E>
where
    E::State: Clone + PartialEq + Debug,
    E::Event: Debug,
    E::Reply: Debug,
{
    pub fn new(id: &str) -> Self {
        Live { id: id.to_owned(), state: E::State::default(), journal: Vec::new(), answers: Vec::new(), waiting: BTreeSet::new() }
    }

    pub fn first_answer(&self, command: &CommandId) -> Option<Result<E::Reply, E::Rejection>> {
        self.answers.iter().find(|(answered, _)| answered == command).map(|(_, answer)| answer.clone())
    }

    /// Has the command decided and folded in; `None` when the answer comes later, and then into `answers`.
    pub fn handle(&mut self, id: &CommandId, command: E::Command, now: Timestamp) -> Option<Result<E::Reply, E::Rejection>> {
        let context = Context { now, id: &self.id, command: id, asker: "test" };
        let decision = match E::decide(&self.state, command, &context) {
            Ok(decision) => decision,
            Err(rejection) => return Some(Err(rejection)),
        };
        for event in &decision.events {
            self.journal.push(serde_json::to_string(event).unwrap());
            E::evolve(&mut self.state, event);
        }
        if matches!(decision.reply, Reply::Later) {
            self.waiting.insert(id.clone());
        }
        for (command, answer) in decision.settled {
            assert!(self.waiting.remove(&command), "{command} is answered though nobody waits for it");
            self.answers.push((command, answer));
        }
        match decision.reply {
            Reply::Now(reply) => {
                if !decision.events.is_empty() {
                    self.answers.push((id.clone(), Ok(reply.clone())));
                }
                Some(Ok(reply))
            }
            Reply::Later if self.waiting.contains(id) => None,
            Reply::Later => self.first_answer(id),
        }
    }

    /// Sends the clock's command for as long as a moment has come.
    pub fn elapse(&mut self, now: Timestamp) {
        for _ in 0..8 {
            if E::due(&self.state).is_none_or(|due| due > now) {
                return;
            }
            let id = CommandId(format!("elapse/{}", self.journal.len()));
            if let Some(command) = E::elapse() {
                self.handle(&id, command, now);
            }
        }
        panic!("what is due is never done: {:?}", self.state);
    }

    pub fn assert_replays(&self) {
        let mut state = E::State::default();
        for record in &self.journal {
            E::evolve(&mut state, &serde_json::from_str(record).unwrap());
        }
        assert_eq!(state, self.state, "the journal of {} gives its state", self.id);
    }
}

/// Numbers from which a world draws all that happens in it, so that proptest can shrink a failure to the few that matter.
pub struct Choices {
    numbers: Vec<u16>,
    next: usize,
}

impl Choices {
    pub fn new(numbers: Vec<u16>) -> Self {
        Choices { numbers, next: 0 }
    }

    pub fn is_over(&self) -> bool {
        self.next >= self.numbers.len()
    }

    pub fn below(&mut self, bound: usize) -> usize {
        let number = self.numbers.get(self.next).copied().unwrap_or(0);
        self.next += 1;
        usize::from(number) % bound.max(1)
    }

    /// True once in so many times; never when the choices are used up.
    pub fn one_in(&mut self, times: usize) -> bool {
        !self.is_over() && self.below(times) == 0
    }
}

/// Asks one of many entities, as the runtime would: `None` when the answer comes later. `remembers`: whether it knows its
/// first answer to each command.
pub fn ask<E: Entity>(
    entities: &mut BTreeMap<String, Live<E>>,
    to: &str,
    id: &CommandId,
    command: E::Command,
    now: Timestamp,
    remembers: bool,
) -> Option<Result<E::Reply, E::Rejection>>
where
    E::State: Clone + PartialEq + Debug,
    E::Event: Debug,
    E::Reply: Debug,
{
    let entity = entities.entry(to.to_owned()).or_insert_with(|| Live::new(to));
    if remembers {
        if entity.waiting.contains(id) {
            return None;
        }
        if let Some(answer) = entity.first_answer(id) {
            return Some(answer);
        }
    }
    entity.handle(id, command, now)
}

pub fn boxed<T: Send + 'static>(answer: T) -> Box<dyn Any + Send> {
    Box::new(answer)
}

/// Folds the records of all entities of a kind, in no order, into one state.
pub fn fold_in_disorder<E: Entity>(entities: &BTreeMap<String, Live<E>>, random: &mut fastrand::Rng) {
    let mut records: Vec<&String> = entities.values().flat_map(|entity| &entity.journal).collect();
    random.shuffle(&mut records);
    let mut state = E::State::default();
    for record in records {
        E::evolve(&mut state, &serde_json::from_str(record).unwrap());
        let _ = (E::owes(&state), E::due(&state), E::is_at_rest(&state));
    }
}
