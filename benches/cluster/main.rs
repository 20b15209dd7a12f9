//! What the cluster promises in numbers: how long an entity is away when its node or its stream's leader dies, what a drain
//! costs, what one hot entity and many quiet ones can take, and what three nodes are worth beside one.
//!
//! `cargo bench --bench cluster` measures all of it, `… -- death` one of `death`, `leader`, `drain`, `hot`, `spread` and
//! `purchases`. Three nats-servers with `sync_interval: always`, the nodes and the load share this machine's cores. It
//! asserts nothing: a table at the end says what was promised, what was measured, and whether the one is the other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/support/nats.rs"]
mod nats;
#[allow(dead_code, reason = "tests use more of it")]
#[path = "../../tests/support/node.rs"]
mod node;
#[path = "../../tests/runtime/tally.rs"]
mod tally;

mod buyers;
mod death;
mod drain;
mod entities;
mod leader;
mod purchases;
mod shop;

use std::time::Duration;

/// A line of the table.
pub struct Line {
    pub what: String,
    pub target: String,
    pub measured: String,
    /// Nothing was promised where there is none.
    pub is_met: Option<bool>,
}

pub fn percentile(sorted: &[Duration], per_mille: usize) -> Duration {
    let at = (sorted.len() * per_mille).div_ceil(1_000).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

pub fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1_000.0;
    if ms < 100.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

pub fn progress(what: &str) {
    println!("{what}");
}

fn main() {
    // cargo test runs benches too, to see that they start.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut table = Vec::new();
    runtime.block_on(async {
        for name in ["death", "leader", "drain", "hot", "spread", "purchases"] {
            if !is_wanted(name) {
                continue;
            }
            progress(&format!("{name} …"));
            table.extend(match name {
                "death" => death::measure().await,
                "leader" => leader::measure().await,
                "drain" => drain::measure().await,
                "hot" => entities::hot().await,
                "spread" => entities::spread().await,
                _ => purchases::measure().await,
            });
        }
    });
    println!("\n{:<72} {:<18} {:<44} met", "what", "target", "measured");
    for Line { what, target, measured, is_met } in table {
        let is_met = is_met.map_or("", |is_met| if is_met { "yes" } else { "NO" });
        println!("{what:<72} {target:<18} {measured:<44} {is_met}");
    }
    // What is left of runtimes in this process would only say that the servers are gone.
    std::process::exit(0);
}
