//! What is remembered: the journal, which is the truth, and the snapshots, which only spare replaying it.
//!
//! Nothing here knows what an order is: entities are keys, records are bytes with a version.

pub mod bucket;
pub mod embedded;
pub mod inspect;
pub mod jetstream;
pub mod journal;
pub mod migration;
pub mod nats;
pub mod nats_args;
pub mod record;
mod room;
pub mod shared_snapshots;
pub mod snapshots;
pub mod token;
mod write_ahead;

pub use embedded::{Embedded, OpenError, OpenReport, Options};
pub use journal::{Agenda, Append, AppendError, Batch, Committed, Done, EntityKey, Journal, Position, ReadError, Version, Wake};
pub use shared_snapshots::SharedSnapshots;
pub use snapshots::{Of, Snapshot, Snapshots};
