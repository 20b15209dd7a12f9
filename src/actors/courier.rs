//! A question for an entity, brought to whichever node has it.
//!
//! What nodes say to one another is JSON. A command travels under its id, so that bringing it twice has one effect, and
//! with the time that is left. Two nodes may differ for a moment about who has an entity: the one that is asked and does
//! not have it says so, and the courier looks again, until the caller's time is over. So does it when it hears nothing: a
//! question or an answer is lost without a word when the connection of the node that was asked breaks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ask::{Answered, AskError, Caller, Failure};
use super::kind::{Kind, Origin};
use super::placement::{Lease, NoAnswer, Owner, Placement, Standing};
use super::reply::Outcome;
use super::runtime::Census;
use crate::domain::{CommandId, Entity};
use crate::persistence::{EntityKey, Position, Version};

/// How soon a courier looks again who has an entity: at first, and at last.
const LOOK_AGAIN_FIRST: Duration = Duration::from_millis(5);
const LOOK_AGAIN_LAST: Duration = Duration::from_millis(200);

/// How long the first answer of another node is awaited before it is asked again.
const ANSWER_FIRST: Duration = Duration::from_secs(1);

/// What one node asks another.
#[derive(Debug, Serialize, Deserialize)]
pub enum Question {
    About(About),
    /// Who lives there.
    Census,
    /// To take an entity back, if it was set aside there.
    Release {
        kind: String,
        id: String,
    },
}

/// What is asked about one entity.
#[derive(Debug, Serialize, Deserialize)]
pub struct About {
    pub kind: String,
    pub id: String,
    /// How long the answer is waited for.
    pub wait_ms: u64,
    pub asks: Asks,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Asks {
    Command {
        command: Box<RawValue>,
        command_id: CommandId,
        asker: Arc<str>,
        correlation: Arc<str>,
        if_version: Option<Version>,
        is_conversation: bool,
    },
    /// The state, as soon as it is at a version beyond this one.
    State { beyond: Option<Version> },
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Told {
    Answered {
        reply: Box<RawValue>,
        version: Version,
        position: Position,
    },
    Rejected(Box<RawValue>),
    State {
        state: Box<RawValue>,
        version: Version,
        position: Position,
    },
    Census(Census),
    Released(bool),
    Failed(Failure),
    /// It is not here.
    Elsewhere,
}

impl Told {
    pub fn of<E: Entity>(outcome: Outcome<E>) -> Told {
        let told = match outcome {
            Ok(Answered { reply, version, position }) => {
                to_raw_value(&reply).map(|reply| Told::Answered { reply, version, position })
            }
            Err(AskError::Rejected(rejection)) => to_raw_value(&rejection).map(Told::Rejected),
            Err(AskError::Failed(Failure::Moved)) => Ok(Told::Elsewhere),
            Err(AskError::Failed(failure)) => Ok(Told::Failed(failure)),
        };
        told.unwrap_or_else(|error| Told::Failed(Failure::Unknown(format!("the answer cannot be told: {error}"))))
    }

    fn into_outcome<E: Entity>(self) -> Outcome<E> {
        let unclear = |error: serde_json::Error| Failure::Unknown(format!("the answer cannot be understood: {error}"));
        match self {
            Told::Answered { reply, version, position } => {
                let reply = serde_json::from_str(reply.get()).map_err(unclear)?;
                Ok(Answered { reply, version, position })
            }
            Told::Rejected(rejection) => Err(AskError::Rejected(serde_json::from_str(rejection.get()).map_err(unclear)?)),
            Told::Failed(failure) => Err(AskError::Failed(failure)),
            Told::Elsewhere => Err(AskError::Failed(Failure::Moved)),
            Told::State { .. } | Told::Census(_) | Told::Released(_) => {
                Err(AskError::Failed(Failure::Unknown("an answer to another question".into())))
            }
        }
    }
}

/// Asks a member, and says how that went in the terms of a caller.
pub async fn ask(placement: &dyn Placement, member: &str, question: &Question, wait: Duration) -> Result<Told, Failure> {
    let unclear = |error: serde_json::Error| Failure::NotWritten(format!("the question cannot be told: {error}"));
    let text = serde_json::to_vec(question).map_err(unclear)?;
    match placement.ask(member, Bytes::from(text), wait).await {
        Ok(answer) => serde_json::from_slice(&answer)
            .map_err(|error| Failure::Unknown(format!("the answer of {member} cannot be understood: {error}"))),
        Err(NoAnswer::NotThere) => Err(Failure::Moved),
        Err(NoAnswer::Lost(why)) => Err(Failure::Unknown(format!("{member}: {why}"))),
    }
}

/// How long to wait before the next look, after so many.
pub fn pause(looks: u32) -> Duration {
    LOOK_AGAIN_FIRST.saturating_mul(1 << looks.min(10)).min(LOOK_AGAIN_LAST).mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// How long to wait for the next answer, after so many that did not come.
pub fn patience(unanswered: u32) -> Duration {
    ANSWER_FIRST.saturating_mul(1 << unanswered.min(10))
}

/// A command on its way.
pub struct Courier<E: Entity> {
    pub kind: Arc<Kind<E>>,
    pub key: EntityKey,
    pub command: E::Command,
    pub caller: Caller,
    pub origin: Origin,
    pub until: Instant,
}

impl<E: Entity> Courier<E> {
    /// Whether a caller may be told this, which was decided here under `lease`. What was written counts while this node has
    /// the entity: a later owner may have come to life without it, and only who asks there makes it known. What rests on
    /// memory alone counts within the lease.
    pub fn is_final(placement: &dyn Placement, key: &EntityKey, lease: Lease, outcome: &Outcome<E>) -> bool {
        match outcome {
            Ok(_) => placement.owner(key) == Owner::Here && placement.lease(key).tenure == lease.tenure,
            Err(AskError::Rejected(_) | AskError::Failed(Failure::VersionDiffers { .. })) => lease.is_valid(),
            Err(AskError::Failed(Failure::Moved | Failure::OutOfReach(_) | Failure::Draining)) => false,
            Err(AskError::Failed(_)) => true,
        }
    }

    /// Brings the command to who has the entity, however often that changes.
    pub async fn carry(self, placement: Arc<dyn Placement>) -> Outcome<E> {
        let (mut looks, mut unanswered) = (0, 0);
        let mut failure = Failure::TimedOut;
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AskError::Failed(failure));
            }
            let outcome = match placement.owner(&self.key) {
                Owner::Here => self.here(&*placement, left).await,
                Owner::Member(member) => self.there(&*placement, &member, left, patience(unanswered)).await,
                Owner::Unknown => Err(AskError::Failed(Failure::OutOfReach("nobody knows who has it".into()))),
            };
            match outcome {
                // The same command again has no second effect, wherever it is decided. Once an outcome is unknown, the whole is,
                // unless a later attempt is answered.
                Err(AskError::Failed(unknown @ Failure::Unknown(_))) => {
                    failure = unknown;
                    unanswered += 1;
                }
                Err(AskError::Failed(again @ (Failure::Moved | Failure::OutOfReach(_) | Failure::Draining))) => {
                    if !matches!(failure, Failure::Unknown(_)) {
                        failure = again;
                        // Who asked had better ask another node. What entities owe each other can only wait.
                        if self.origin == Origin::Outside && placement.standing() == Standing::OutOfTouch {
                            return Err(AskError::Failed(failure));
                        }
                    }
                }
                // It was not let in this time, which says nothing of the time before.
                Err(AskError::Failed(Failure::Overloaded(_) | Failure::Restarting)) if unanswered > 0 => {}
                outcome => return outcome,
            }
            tokio::time::sleep(pause(looks).min(left)).await;
            looks += 1;
        }
    }

    /// Decided on this node.
    pub async fn here(&self, placement: &dyn Placement, left: Duration) -> Outcome<E> {
        let lease = self.kind.confirm(placement, self.key.id(), left).await?;
        let mut caller = self.caller.clone();
        caller.timeout = left;
        let (tell, heard) = oneshot::channel();
        self.kind.submit_here(self.key.id(), self.command.clone(), caller, self.origin, move |outcome| {
            let _ = tell.send(outcome);
        });
        let outcome = match tokio::time::timeout(left, heard).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(AskError::Failed(Failure::Died)),
            Err(_) => Err(AskError::Failed(Failure::TimedOut)),
        };
        if Self::is_final(placement, &self.key, lease, &outcome) { outcome } else { Err(AskError::Failed(Failure::Moved)) }
    }

    /// Decided on another node within the time that is left, if it says so in time.
    async fn there(&self, placement: &dyn Placement, member: &str, left: Duration, patience: Duration) -> Outcome<E> {
        let command = to_raw_value(&self.command).map_err(|error| Failure::NotWritten(error.to_string()))?;
        let question = Question::About(About {
            kind: E::KIND.to_owned(),
            id: self.key.id().to_owned(),
            wait_ms: left.as_millis() as u64,
            asks: Asks::Command {
                command,
                command_id: self.caller.command.clone(),
                asker: self.caller.asker.clone(),
                correlation: self.caller.correlation.clone(),
                if_version: self.caller.if_version,
                is_conversation: self.origin == Origin::Conversation,
            },
        });
        ask(placement, member, &question, left.min(patience)).await?.into_outcome::<E>()
    }
}
