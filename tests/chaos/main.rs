//! The shop under faults, judged by what its clients saw.
//!
//! `trial` is one run. Its crowd (`crowd`, `asking`, `subscriber`) writes down what it sees (`history`), and nothing else is
//! believed but what the quiet shop's API says in the end (`facts`). `checks` judges both, `stock` and `linearizable` with it.
//! `faults` says what goes wrong; `one_node` and `three_nodes` are shops it can happen to, `proxy` and `wall_clock` are
//! what it takes.
//!
//!     cargo test --test chaos                                                short runs, and the tests of all this
//!     SOUK_CHAOS_SEED=7 cargo test --test chaos -- --nocapture killed        the same run again, as far as processes allow
//!     SOUK_CHAOS_SEED=7 cargo test --test chaos -- --nocapture through       the same of three nodes, one seed instead of ten
//!     SOUK_CHAOS_MINUTES=30 cargo test --test chaos -- --ignored --nocapture soak_of_one_node
//!     SOUK_CHAOS_MINUTES=30 cargo test --test chaos -- --ignored --nocapture soak_of_three_nodes
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod asking;
mod checks;
mod crowd;
mod facts;
mod faults;
#[path = "../support/haproxy.rs"]
#[allow(dead_code)]
mod haproxy;
mod history;
#[path = "../support/sale.rs"]
mod life;
mod linearizable;
mod live_push;
#[path = "../support/nats.rs"]
mod nats;
#[path = "../support/node.rs"]
#[allow(dead_code)]
mod node;
mod one_node;
mod proxy;
#[path = "../support/purchase.rs"]
mod purchase;
mod sale;
mod stock;
mod subscriber;
mod three_nodes;
mod trial;
mod trials;
mod wall_clock;
