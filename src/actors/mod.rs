//! How an entity lives: activation, mailbox, supervision, conversations, timers, sessions.

pub mod ask;

pub use ask::{Answered, AskError, Caller, Failure};
