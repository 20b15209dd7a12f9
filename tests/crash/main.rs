//! The real program, killed and told to stop at any moment, with shoppers in it.
//!
//! `node` runs the program, `shopper` loads it and remembers each answer, `audit` reads back and balances the books.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod audit;
mod node;
mod promises;
mod shopper;
