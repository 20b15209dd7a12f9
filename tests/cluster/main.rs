//! The cluster over real nats-servers: who is a member, who owns what, who may answer from memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod members;
mod node;

#[path = "../support/nats.rs"]
mod nats;
