//! The way back to a caller: answered exactly once, whatever happens to whoever was to answer.

use super::ask::{Answered, AskError, Failure};
use super::gate::Permit;
use crate::domain::Entity;

/// What a caller of `E` hears.
pub type Outcome<E> = Result<Answered<<E as Entity>::Reply>, AskError<<E as Entity>::Rejection>>;

type Ear<E> = Box<dyn FnOnce(Outcome<E>) + Send>;

/// A caller that waits. Dropped unanswered (an actor panicked, a queue was cut) it hears [`Failure::Died`].
pub struct ReplyTo<E: Entity> {
    ear: Option<Ear<E>>,
    /// Admission lasts until the answer.
    _permit: Permit,
}

impl<E: Entity> ReplyTo<E> {
    pub fn new(permit: Permit, ear: impl FnOnce(Outcome<E>) + Send + 'static) -> Self {
        ReplyTo { ear: Some(Box::new(ear)), _permit: permit }
    }

    pub fn answer(mut self, outcome: Outcome<E>) {
        if let Some(ear) = self.ear.take() {
            ear(outcome);
        }
    }

    pub fn fail(self, failure: Failure) {
        self.answer(Err(AskError::Failed(failure)));
    }
}

impl<E: Entity> Drop for ReplyTo<E> {
    fn drop(&mut self) {
        if let Some(ear) = self.ear.take() {
            ear(Err(AskError::Failed(Failure::Died)));
        }
    }
}
