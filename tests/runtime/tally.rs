//! An entity with one of everything: sums, debts, timers, answers that come later, and faults on command.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use souk::domain::entity::Notice;
use souk::domain::{CommandId, Context, Debt, Decision, Entity, Saga, SagaEnding, Timestamp};

pub struct Tally;

/// From this total on, snapshots are written beside the entity.
pub const RICH: i64 = 1_000_000;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub id: String,
    pub total: i64,
    /// By number: to whom, how much.
    pub giving: BTreeMap<u64, (String, i64)>,
    pub taken: BTreeSet<(String, u64)>,
    pub alarm: Option<Timestamp>,
    pub rung: u32,
    pub waiting: Vec<CommandId>,
    /// Takes nothing new.
    #[serde(default)]
    pub is_closed: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command {
    Add(i64),
    /// Takes `amount` out of here and owes it to `to`.
    Give {
        to: String,
        number: u64,
        amount: i64,
    },
    Take {
        from: String,
        number: u64,
        amount: i64,
    },
    HeardTaken {
        number: u64,
    },
    SetAlarm(Timestamp),
    Ring,
    /// Answered by the next `Settle`.
    WaitForSettle,
    Settle,
    /// Until it is opened again, or the alarm rings.
    Close,
    Open,
    Refuse,
    PanicInDecide,
    /// Journals an event that no state survives.
    PanicInEvolve,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[error("refused")]
pub struct Refused;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "tally.added")]
    Added { id: String, amount: i64 },
    #[serde(rename = "tally.giving")]
    Giving { id: String, to: String, number: u64, amount: i64 },
    #[serde(rename = "tally.given")]
    Given { number: u64 },
    #[serde(rename = "tally.taken")]
    Taken { from: String, number: u64, amount: i64 },
    #[serde(rename = "tally.alarm_set")]
    AlarmSet { at: Timestamp },
    #[serde(rename = "tally.rung")]
    Rung,
    #[serde(rename = "tally.waited")]
    Waited { command: CommandId },
    #[serde(rename = "tally.settled")]
    Settled,
    #[serde(rename = "tally.closed")]
    Closed,
    #[serde(rename = "tally.opened")]
    Opened,
    #[serde(rename = "tally.poisoned")]
    Poisoned,
}

struct Closed {
    taken: BTreeSet<(String, u64)>,
}

impl Notice<Tally> for Closed {
    fn refuses(&self, command: &Command) -> Option<Refused> {
        match command {
            Command::Take { from, number, .. } if !self.taken.contains(&(from.clone(), *number)) => Some(Refused),
            _ => None,
        }
    }
}

impl Entity for Tally {
    const KIND: &'static str = "tally";
    const SNAPSHOT_FORMAT: u32 = 1;
    type State = State;
    type Command = Command;
    type Event = Event;
    /// The total after the command.
    type Reply = i64;
    type Rejection = Refused;

    fn decide(state: &State, command: Command, context: &Context<'_>) -> Result<Decision<Self>, Refused> {
        let id = context.id.to_owned();
        Ok(match command {
            Command::Add(amount) => Decision::now(vec![Event::Added { id, amount }], state.total + amount),
            Command::Give { to, number, amount } => {
                Decision::now(vec![Event::Giving { id, to, number, amount }], state.total - amount)
            }
            Command::Take { from, number, .. } if state.taken.contains(&(from.clone(), number)) => {
                Decision::now(vec![], state.total)
            }
            Command::Take { .. } if state.is_closed => return Err(Refused),
            Command::Take { from, number, amount } => {
                Decision::now(vec![Event::Taken { from, number, amount }], state.total + amount)
            }
            Command::HeardTaken { number } if state.giving.contains_key(&number) => {
                Decision::now(vec![Event::Given { number }], state.total)
            }
            Command::HeardTaken { .. } => Decision::now(vec![], state.total),
            Command::SetAlarm(at) => Decision::now(vec![Event::AlarmSet { at }], state.total),
            Command::Ring if state.alarm.is_some_and(|at| at <= context.now) => Decision::now(vec![Event::Rung], state.total),
            Command::Ring => Decision::now(vec![], state.total),
            Command::WaitForSettle => Decision::later(vec![Event::Waited { command: context.command.clone() }]),
            Command::Settle => {
                let decision = Decision::now(vec![Event::Settled], state.total);
                state.waiting.iter().fold(decision, |decision, command| decision.settle(command.clone(), Ok(state.total)))
            }
            Command::Close => Decision::now(vec![Event::Closed], state.total),
            Command::Open => Decision::now(vec![Event::Opened], state.total),
            Command::Refuse => return Err(Refused),
            Command::PanicInDecide => panic!("as commanded"),
            Command::PanicInEvolve => Decision::now(vec![Event::Poisoned], 0),
        })
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Added { id, amount } => {
                state.id.clone_from(id);
                state.total += amount;
            }
            Event::Giving { id, to, number, amount } => {
                state.id.clone_from(id);
                state.total -= amount;
                state.giving.insert(*number, (to.clone(), *amount));
            }
            Event::Given { number } => {
                state.giving.remove(number);
            }
            Event::Taken { from, number, amount } => {
                state.total += amount;
                state.taken.insert((from.clone(), *number));
            }
            Event::AlarmSet { at } => state.alarm = Some(*at),
            Event::Rung => {
                state.alarm = None;
                state.rung += 1;
                state.is_closed = false;
            }
            Event::Waited { command } => state.waiting.push(command.clone()),
            Event::Settled => state.waiting.clear(),
            Event::Closed => state.is_closed = true,
            Event::Opened => state.is_closed = false,
            Event::Poisoned => panic!("as journaled"),
        }
    }

    fn owes(state: &State) -> Vec<Debt<Self>> {
        let owed = state.giving.iter().map(|(number, (to, amount))| {
            let (number, amount) = (*number, *amount);
            let command = Command::Take { from: state.id.clone(), number, amount };
            Debt::tell::<Tally>(format!("give/{number}"), to.clone(), command, move |taken| {
                taken.ok().map(|_| Command::HeardTaken { number })
            })
        });
        owed.collect()
    }

    fn due(state: &State) -> Option<Timestamp> {
        state.alarm
    }

    fn elapse() -> Option<Command> {
        Some(Command::Ring)
    }

    /// Only of rich ones: the others are small.
    fn picture(state: &State) -> Option<State> {
        (state.total >= RICH).then(|| state.clone())
    }

    fn notice(state: &State) -> Option<Box<dyn Notice<Self>>> {
        state.is_closed.then(|| -> Box<dyn Notice<Self>> { Box::new(Closed { taken: state.taken.clone() }) })
    }

    /// Under way while somebody waits.
    fn saga(state: &State) -> Option<Saga> {
        let ending = state.waiting.is_empty().then_some(SagaEnding::Completed);
        Some(Saga { begun: Timestamp::default(), ending })
    }
}

/// A runtime that knows tallies only.
pub fn builder(
    journal: std::sync::Arc<dyn souk::persistence::Journal>,
    snapshots: std::sync::Arc<souk::persistence::Snapshots>,
    config: souk::actors::Config,
) -> souk::actors::Builder {
    use souk::domain::EveryKind;
    let mut builder = souk::actors::Builder::new(journal, snapshots, config);
    builder.kind::<Tally>();
    builder
}
