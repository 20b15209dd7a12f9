//! What every journal promises, and what the embedded one and that of a cluster promise besides.
//!
//! `promises` is written against `dyn Journal`: another store runs the same sentences by handing in its own `Opener`.

// The helpers of tests fail as tests do; clippy only knows functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "journal/embedded.rs"]
mod embedded;
#[path = "journal/failures.rs"]
mod failures;
#[path = "journal/jetstream.rs"]
mod jetstream;
#[path = "support/nats.rs"]
mod nats;
#[path = "journal/promises.rs"]
mod promises;
#[path = "journal/servers.rs"]
mod servers;
