//! Who lives where: which nodes there are, which of them owns an entity, and how one asks another.
//!
//! - [`placement`]: from an entity's key to a partition, and from a partition to its owner. Pure.
//! - [`membership`]: who is a member, what each claims, and whether this node may answer reads from memory. A state machine
//!   that is told the time; the protocol is explained at its head.
//! - [`register`]: this node's entry in the replicated register, on which grants and leases rest. Pure.
//! - [`wire`]: what all this needs of the network, as a trait; [`nats_wire`] is NATS behind it.
//! - [`member`]: the task that runs the one over the other, and the handle that the rest of the node holds.
//!
//! Nothing here may decide whether a write is right: the journal's version check does. What goes wrong here costs a
//! forwarded command or a conflict.

pub mod beat;
pub mod member;
pub mod membership;
pub mod nats_wire;
pub mod placement;
pub mod register;
pub mod wire;

pub use beat::State;
pub use member::{Cluster, Lease, NameTaken, Options, Owner, Standing, View};
pub use membership::Member;
pub use nats_wire::{NatsWire, NatsWireOptions};
pub use placement::{Owners, PARTITIONS, Partition, partition};
pub use wire::{AskError, Name, Wire, WireError};
