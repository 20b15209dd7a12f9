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
    /// Oldest first.
    newest: VecDeque<(CommandId, AnswerOf<E>)>,
    /// Which of all the commands ever remembered a command is, counted from 0.
    ordinals: HashMap<CommandId, u64>,
    /// How many were forgotten: the ordinal of the oldest that is still here.
    forgotten: u64,
}

impl<E: Entity> Default for Answers<E> {
    fn default() -> Self {
        Answers { newest: VecDeque::new(), ordinals: HashMap::new(), forgotten: 0 }
    }
}

impl<E: Entity> Answers<E> {
    pub fn get(&self, command: &CommandId) -> Option<&AnswerOf<E>> {
        self.newest.get(self.place(command)?).map(|(_, answer)| answer)
    }

    pub fn put(&mut self, command: CommandId, answer: AnswerOf<E>) {
        if let Some(place) = self.place(&command) {
            if let Some((_, before)) = self.newest.get_mut(place) {
                *before = answer;
            }
            return;
        }
        self.ordinals.insert(command.clone(), self.forgotten + self.newest.len() as u64);
        self.newest.push_back((command, answer));
        if self.newest.len() > REMEMBERED_MAX
            && let Some((oldest, _)) = self.newest.pop_front()
        {
            self.ordinals.remove(&oldest);
            self.forgotten += 1;
        }
    }

    /// Oldest first, for a snapshot.
    pub fn iter(&self) -> impl Iterator<Item = &(CommandId, AnswerOf<E>)> {
        self.newest.iter()
    }

    fn place(&self, command: &CommandId) -> Option<usize> {
        let ordinal = self.ordinals.get(command)?;
        usize::try_from(ordinal - self.forgotten).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::payment::{Payment, Reply};

    #[test]
    fn the_newest_thousand_are_remembered_and_an_answer_can_come_later() {
        let mut answers = Answers::<Payment>::default();
        let id = |n: usize| CommandId(format!("c{n}"));
        for n in 0..REMEMBERED_MAX {
            answers.put(id(n), Answer::Later);
        }
        answers.put(id(7), Answer::Settled(Ok(Reply::Captured)));
        assert_eq!(answers.get(&id(0)), Some(&Answer::Later));
        answers.put(id(REMEMBERED_MAX), Answer::Later);
        answers.put(id(REMEMBERED_MAX + 1), Answer::Later);
        assert_eq!((answers.get(&id(0)), answers.get(&id(1))), (None, None));
        assert_eq!(answers.get(&id(7)), Some(&Answer::Settled(Ok(Reply::Captured))));
        assert_eq!(answers.iter().count(), REMEMBERED_MAX);
        assert_eq!(answers.iter().next().map(|(command, _)| command), Some(&id(2)));
    }
}
