//! How an entity lives: activation, mailbox, supervision, conversations, timers, sessions.
//!
//! Nothing here knows what an order is; a kind of entity is a type that implements [`crate::domain::Entity`], registered
//! in one line. `docs/runtime.md` says what this guarantees and what may surprise.

pub mod agenda;
pub mod answers;
pub mod ask;
pub mod clock;
pub mod conversation;
mod entity_actor;
pub mod gate;
mod kind;
mod reply;
pub mod retry;
pub mod runtime;
mod supervisor;

pub use ask::{Answered, AskError, Caller, Failure};
pub use conversation::Integration;
pub use runtime::{Builder, Census, Config, Runtime, SetAside};
