//! How an entity lives: activation, mailbox, supervision, conversations, timers, sessions.

pub mod ask;
pub mod credential;
pub mod live;
pub mod runtime;
pub mod session;
pub mod shown;
pub mod topic;

pub use ask::{Answered, AskError, Caller, Failure};
pub use runtime::Runtime;
