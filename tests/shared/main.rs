//! What the nodes of a cluster share besides the journal, on real servers: keys, secret, vault and snapshots; and what an
//! operator sees of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod command;
#[path = "../runtime/faulty.rs"]
#[allow(dead_code)]
mod faulty;
mod folders;
mod keys;
mod migration;
#[path = "../support/nats.rs"]
mod nats;
#[path = "../support/node.rs"]
#[allow(dead_code)]
mod node;
mod readiness;
mod snapshots;
#[path = "../runtime/tally.rs"]
mod tally;

use std::future::Future;
use std::time::{Duration, Instant};

/// Longer than anything here may take.
pub const DEADLINE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

/// Asks until it is so.
pub async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(LOOK).await;
    }
}
