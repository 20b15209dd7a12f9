//! What is remembered: the journal, which is the truth, and the snapshots, which only spare replaying it.
//!
//! Nothing here knows what an order is: entities are keys, records are bytes with a version.

pub mod embedded;
pub mod inspect;
pub mod journal;
pub mod record;
pub mod snapshots;
mod write_ahead;

pub use embedded::{Embedded, OpenError, OpenReport, Options};
pub use journal::{Agenda, Append, AppendError, Batch, Committed, Done, EntityKey, Journal, Position, ReadError, Version, Wake};
pub use snapshots::{Snapshot, Snapshots};
