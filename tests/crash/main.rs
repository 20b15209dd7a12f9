//! The real program, killed and told to stop at any moment, with shoppers in it.
//!
//! `node` runs the program, `shopper` loads it and remembers each answer, `audit` reads back and balances the books.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod audit;
#[path = "../support/node.rs"]
mod node;
mod promises;
#[path = "../support/purchase.rs"]
mod purchase;
mod shopper;
