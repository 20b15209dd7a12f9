//! A decision in the making, for entities that are small enough to be copied: each event is folded into a copy of the
//! state as soon as it is decided, so that what follows is decided against what came of it.

use super::{CommandId, Decision, Entity, Reply, entity::Settled};

pub struct Turn<E: Entity> {
    /// What the state will be when the events so far are folded in.
    pub state: E::State,
    events: Vec<E::Event>,
    settled: Vec<Settled<E>>,
}

impl<E: Entity> Turn<E>
where
    E::State: Clone,
{
    pub fn on(state: &E::State) -> Self {
        Turn { state: state.clone(), events: Vec::new(), settled: Vec::new() }
    }

    pub fn emit(&mut self, event: E::Event) {
        E::evolve(&mut self.state, &event);
        self.events.push(event);
    }

    pub fn settle(&mut self, command: CommandId, answer: Result<E::Reply, E::Rejection>) {
        self.settled.push((command, answer));
    }

    /// Gives the same answer to all who wait.
    pub fn settle_all(&mut self, commands: impl IntoIterator<Item = CommandId>, answer: &Result<E::Reply, E::Rejection>) {
        self.settled.extend(commands.into_iter().map(|command| (command, answer.clone())));
    }

    pub fn now(self, reply: E::Reply) -> Decision<E> {
        self.finish(Reply::Now(reply))
    }

    pub fn later(self) -> Decision<E> {
        self.finish(Reply::Later)
    }

    fn finish(self, reply: Reply<E::Reply>) -> Decision<E> {
        Decision { events: self.events, reply, settled: self.settled }
    }
}
