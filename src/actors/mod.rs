//! How an entity lives: activation, mailbox, supervision, conversations, timers, sessions.
//!
//! Nothing here knows what an order is; a kind of entity is a type that implements [`crate::domain::Entity`], registered
//! in one line. `docs/runtime.md` says what this guarantees and what may surprise.

pub mod agenda;
pub mod answers;
pub mod ask;
pub mod board;
pub mod clock;
pub mod conversation;
mod courier;
pub mod credential;
pub mod durations;
mod entity_actor;
pub mod gate;
mod kind;
pub mod live;
pub mod members;
mod notice;
pub mod permissions;
pub mod placement;
mod reply;
pub mod retry;
pub mod runtime;
pub mod session;
pub mod shown;
mod supervisor;
pub mod topic;

pub use ask::{Answered, AskError, Caller, Failure};
pub use runtime::{Builder, Census, Config, Runtime, SetAside};
