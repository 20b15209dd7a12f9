//! What entities owe one another, and how it is delivered: every message as often as needed, with one effect.
//!
//! Roles: the debtor's actor, whose state says what it owes; the recipient, an entity or an integration.
//! 1. When a write that leaves a debt has landed, the debtor posts it with a deadline under the id `kind/id:debt`.
//! 2. The recipient answers when its own write has landed. A message past its deadline is not decided any more, and the
//!    debtor sends another only after that deadline: at most one attempt of a debt is ever alive.
//! 3. The debtor hears the answer as a command to itself, and the event that follows takes the debt out of its state.
//!
//! Anything lost on the way (an answer, an actor, the process) leaves the debt in the journal, and step 1 repeats, after a
//! backoff or on the next start. That a repeat does nothing twice is the recipient's rule: it knows its reservation by
//! the order that made it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tracing::Instrument;

use super::ask::{Caller, Failure};
use super::retry::CAP_MS;
use crate::domain::{Outside, Timestamp};
use crate::integrations::{Call, Integration};

/// How long an attempt of a debt may take; then its outcome is unknown.
pub const ATTEMPT: Duration = Duration::from_secs(10);
/// How much later than its deadline an attempt is taken for dead.
pub const ATTEMPT_SLACK_MS: i64 = 1_000;
/// No attempt is put off for longer.
const WAIT_MAX_MS: i64 = CAP_MS + ATTEMPT.as_millis() as i64 + ATTEMPT_SLACK_MS;
/// Calls to one outside recipient that may be under way at once.
const CALLS_MAX: usize = 1_024;

/// An answer whose type the debt knows.
pub type AnyAnswer = Result<Box<dyn Any + Send>, Failure>;

/// A debt under way.
pub struct Letter {
    pub request: Box<dyn Any + Send>,
    pub caller: Caller,
    /// Called once, from any thread.
    pub answer: Box<dyn FnOnce(AnyAnswer) + Send>,
}

/// Where letters can be sent to.
pub trait Port: Send + Sync + 'static {
    fn post(&self, to: &str, letter: Letter);
}

/// The newest attempt to deliver a debt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    pub tries: u32,
    /// Not before.
    pub again_at: Timestamp,
    /// Posted and not answered yet.
    pub under_way: bool,
}

impl Attempt {
    /// Whether it is to be tried again. A time so far off was noted before the clock was set back.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.again_at <= now || self.again_at > now.plus_ms(WAIT_MAX_MS)
    }
}

type Carry<T> = Box<dyn Fn(<T as Outside>::Request, Call) -> BoxFuture<'static, <T as Outside>::Answer> + Send + Sync>;

/// The way to an integration.
pub struct OutsidePort<T: Outside> {
    carry: Carry<T>,
    room: Arc<Semaphore>,
}

impl<T: Outside> OutsidePort<T> {
    pub fn new(integration: Arc<impl Integration<T>>) -> Self {
        OutsidePort {
            carry: Box::new(move |request, call| {
                let integration = integration.clone();
                Box::pin(async move { integration.carry(request, call).await })
            }),
            room: Arc::new(Semaphore::new(CALLS_MAX)),
        }
    }
}

impl<T: Outside> Port for OutsidePort<T> {
    fn post(&self, _to: &str, letter: Letter) {
        let Letter { request, caller, answer } = letter;
        let Ok(request) = request.downcast::<T::Request>() else {
            return answer(Err(Failure::NotWritten(format!("not a request to {}", T::NAME))));
        };
        let Ok(place) = self.room.clone().try_acquire_owned() else {
            return answer(Err(Failure::Overloaded("too many calls to this provider are under way".into())));
        };
        // What is logged on the way shows whose request it was, however long ago.
        let span = tracing::info_span!("call", to = T::NAME, key = %caller.command, trace = %caller.correlation);
        let call = (self.carry)(*request, Call::new(caller.command.0, caller.correlation)).instrument(span);
        tokio::spawn(async move {
            let outcome = tokio::time::timeout(caller.timeout, call).await;
            drop(place);
            answer(match outcome {
                Ok(reply) => Ok(Box::new(reply)),
                Err(_) => Err(Failure::TimedOut),
            });
        });
    }
}
