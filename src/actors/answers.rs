//! What each command was answered, so that the same command again gets the same answer and no second effect.
//!
//! Filled from journaled answers only; kept in snapshots and rebuilt by replay.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::domain::{CommandId, Entity};

/// The newest commands of an entity whose answers are remembered.
pub const REMEMBERED_MAX: usize = 1_000;

/// How a command was answered, as journaled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer<R, J> {
    Settled(Result<R, J>),
    /// A later decision settles it.
    Later,
}

/// An answer of an entity of kind `E`.
pub type AnswerOf<E> = Answer<<E as Entity>::Reply, <E as Entity>::Rejection>;

/// The answers of one entity's newest commands.
pub struct Answers<E: Entity> {
    by_command: HashMap<CommandId, AnswerOf<E>>,
    /// Oldest first.
    order: VecDeque<CommandId>,
}

impl<E: Entity> Default for Answers<E> {
    fn default() -> Self {
        Answers { by_command: HashMap::new(), order: VecDeque::new() }
    }
}

impl<E: Entity> Answers<E> {
    pub fn get(&self, command: &CommandId) -> Option<&AnswerOf<E>> {
        self.by_command.get(command)
    }

    pub fn put(&mut self, command: CommandId, answer: AnswerOf<E>) {
        if self.by_command.insert(command.clone(), answer).is_none() {
            self.order.push_back(command);
            if self.order.len() > REMEMBERED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.by_command.remove(&oldest);
            }
        }
    }

    /// Oldest first, for a snapshot.
    pub fn iter(&self) -> impl Iterator<Item = (&CommandId, &AnswerOf<E>)> {
        self.order.iter().filter_map(|command| self.by_command.get(command).map(|answer| (command, answer)))
    }
}
