//! Souk: a marketplace backend made of actors, as one program.
//!
//! A map for a reader who has five minutes. Imports run downhill only, in this order:
//!
//! - [`node`] puts a node together from the parts below; `main.rs` is its command line, [`demo`] fills an empty one,
//!   [`admin`] is for whoever operates it, [`migrate`] for whose shop outgrows a machine.
//! - [`http`]: the door. Requests become commands, answers and errors become JSON; no rule of commerce lives there.
//! - [`rehearse`]: a crowd of buyers against a running service, through the door only.
//! - [`actors`]: how an entity lives. One supervised actor for each cart, order, inventory item…; commands are decided
//!   against its state, written to the journal, and only then answered. Messages between entities, timers, live push.
//! - [`read_models`]: what is looked up across entities (product search, order lists), folded from the journal.
//! - [`integrations`]: the world outside: payment providers, product files.
//! - [`cluster`]: who lives where: members, owners, and how one node asks another.
//! - [`persistence`]: the journal, which is the truth, and the snapshots, which only spare replaying it.
//! - [`domain`]: what commerce is. Pure state machines, one file for each kind of entity; start with `domain/order.rs`.
//!
//! `docs/paths/` follows a command, an activation and a checkout step by step; `docs/runtime.md` says what is guaranteed.

pub mod actors;
pub mod admin;
pub mod cluster;
pub mod cores;
pub mod demo;
pub mod domain;
#[cfg(test)]
mod hostile;
pub mod http;
pub mod integrations;
pub mod log;
pub mod metrics;
pub mod migrate;
pub mod node;
pub mod persistence;
pub mod read_models;
pub mod rehearse;

/// Entities come and go by the thousand each second, which is what the system's allocator is worst at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
