//! Races, each made to happen: the real kinds on the real runtime over the real journal, in process.
//!
//! `shop` is the fixture, `bank` a payment provider that is unreliable on command. `stock`, `carts`,
//! `payments`, `sales` and `accounts` hold the races; `saga` runs whole purchases with a fault at each write.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod accounts;
#[path = "../support/bank.rs"]
mod bank;
#[path = "../support/books.rs"]
mod books;
mod carts;
// Shared with the runtime's own tests, which use the rest of it.
#[allow(dead_code)]
#[path = "../runtime/faulty.rs"]
mod faulty;
#[path = "../support/ledger.rs"]
mod ledger;
mod payments;
mod saga;
#[path = "../support/sale.rs"]
#[allow(dead_code, reason = "what was granted is compared elsewhere")]
mod sale;
mod sales;
mod shop;
mod stock;
