//! A request that bears an `Idempotency-Key`: which body the key was used with, the seed of all ids that its handler
//! makes, and the answer once it is known.
//!
//! The seed is what makes a repeat safe after a crash between the effect and the answer: the repeat makes the same ids
//! and the same command ids, so that it meets what is there already. One entity for each key; the id says whose.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Context, Decision, Entity};

pub struct Request;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub begun: Option<Begun>,
    pub answer: Option<Answer>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// A keyed hash of what was asked, in hex: it may hold a password.
    pub fingerprint: String,
    pub seed: Seed,
}

/// Where the ids of one request come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// A ULID.
    pub id: String,
    /// 32 random bytes in hex, from which a guest's token is made.
    pub secret: String,
}

/// An answer as it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// The name of the key that the body is sealed by; `None` when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_by: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// `seed` counts only when the key is new.
    Begin {
        fingerprint: String,
        seed: Seed,
    },
    Finish {
        answer: Answer,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Not answered yet: work with this seed.
    Begun { seed: Seed },
    /// The answer that was given first.
    Finished(Answer),
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("this Idempotency-Key was used with another body")]
    Differs,
    #[error("this request was never begun")]
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "request.begun")]
    Begun { fingerprint: String, seed: Seed },
    #[serde(rename = "request.answered")]
    Answered { answer: Answer },
}

impl Entity for Request {
    const KIND: &'static str = "request";
    const SNAPSHOT_FORMAT: u32 = 1;

    type State = State;
    type Command = Command;
    type Event = Event;
    type Reply = Reply;
    type Rejection = Rejection;

    fn decide(state: &State, command: Command, _context: &Context<'_>) -> Result<Decision<Self>, Rejection> {
        match (command, &state.begun) {
            (Command::Begin { fingerprint, seed }, None) => {
                Ok(Decision::now(vec![Event::Begun { fingerprint, seed: seed.clone() }], Reply::Begun { seed }))
            }
            (Command::Begin { fingerprint, .. }, Some(begun)) if fingerprint != begun.fingerprint => Err(Rejection::Differs),
            (Command::Begin { .. }, Some(begun)) => Ok(Decision::now(
                Vec::new(),
                match &state.answer {
                    Some(answer) => Reply::Finished(answer.clone()),
                    None => Reply::Begun { seed: begun.seed.clone() },
                },
            )),
            (Command::Finish { .. }, None) => Err(Rejection::Unknown),
            // Two attempts may run side by side: the first to finish is what every later one hears.
            (Command::Finish { answer }, Some(_)) => Ok(match &state.answer {
                Some(first) => Decision::now(Vec::new(), Reply::Finished(first.clone())),
                None => Decision::now(vec![Event::Answered { answer: answer.clone() }], Reply::Finished(answer)),
            }),
        }
    }

    fn is_at_rest(state: &State) -> bool {
        state.answer.is_some()
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Begun { fingerprint, seed } => {
                state.begun = Some(Begun { fingerprint: fingerprint.clone(), seed: seed.clone() });
            }
            Event::Answered { answer } => state.answer = Some(answer.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{CommandId, Timestamp, entity};

    fn seed(id: &str) -> Seed {
        Seed { id: id.into(), secret: "s".into() }
    }

    fn answer(body: &str) -> Answer {
        Answer { status: 201, headers: BTreeMap::new(), body: body.into(), sealed_by: None }
    }

    fn begin(fingerprint: &str, id: &str) -> Command {
        Command::Begin { fingerprint: fingerprint.into(), seed: seed(id) }
    }

    fn begun(fingerprint: &str, id: &str) -> Event {
        Event::Begun { fingerprint: fingerprint.into(), seed: seed(id) }
    }

    #[test]
    fn a_key_gives_its_first_seed_until_it_is_answered_and_then_its_first_answer() {
        type Case = (&'static str, Vec<Event>, Command, Result<(usize, Reply), Rejection>);
        let answered = || vec![begun("f", "1"), Event::Answered { answer: answer("first") }];
        let cases: Vec<Case> = vec![
            ("a new key", vec![], begin("f", "1"), Ok((1, Reply::Begun { seed: seed("1") }))),
            ("repeated while under way", vec![begun("f", "1")], begin("f", "2"), Ok((0, Reply::Begun { seed: seed("1") }))),
            ("repeated when answered", answered(), begin("f", "2"), Ok((0, Reply::Finished(answer("first"))))),
            ("another body while under way", vec![begun("f", "1")], begin("g", "2"), Err(Rejection::Differs)),
            ("another body when answered", answered(), begin("g", "2"), Err(Rejection::Differs)),
            ("finished", vec![begun("f", "1")], Command::Finish { answer: answer("a") }, Ok((1, Reply::Finished(answer("a"))))),
            (
                "finished twice: the first stands",
                answered(),
                Command::Finish { answer: answer("second") },
                Ok((0, Reply::Finished(answer("first")))),
            ),
            ("finished without a beginning", vec![], Command::Finish { answer: answer("a") }, Err(Rejection::Unknown)),
        ];
        let command_id = CommandId::from("c");
        let context = Context { now: Timestamp::default(), id: "k", command: &command_id, asker: "guest" };
        for (name, given, when, then) in cases {
            let mut state = State::default();
            given.iter().for_each(|event| Request::evolve(&mut state, event));
            let outcome = Request::decide(&state, when, &context).map(|decision| match decision.reply {
                entity::Reply::Now(reply) => (decision.events.len(), reply),
                entity::Reply::Later => panic!("{name}: never later"),
            });
            assert_eq!(outcome, then, "{name}");
        }
    }

    #[test]
    fn its_records_keep_their_names() {
        assert_eq!(
            serde_json::to_string(&begun("f", "1")).unwrap(),
            r#"{"type":"request.begun","data":{"fingerprint":"f","seed":{"id":"1","secret":"s"}}}"#
        );
        assert_eq!(
            serde_json::to_string(&Event::Answered { answer: answer("{}") }).unwrap(),
            r#"{"type":"request.answered","data":{"answer":{"status":201,"headers":{},"body":"{}"}}}"#
        );
    }
}
