//! The real program under attack: whoever means harm is refused or cut off, and everybody else is served meanwhile.
//!
//! `node` runs the program, `wire` speaks to it by hand, `shopper` buys. The other files are one kind of attack each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bodies;
mod crowd;
mod heads;
mod logins;
mod multiplexed;
mod node;
mod payments;
mod shopper;
mod slow;
mod sockets;
mod tls;
mod wire;
