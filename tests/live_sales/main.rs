//! Flash sales as their watchers see them: over real sockets of a node in this process, and from a node that does not have
//! the sale.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod elsewhere;
mod shop;
mod watched;
