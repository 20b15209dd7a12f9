//! The door as its clients meet it: the real program on a loopback port, over real sockets.
//!
//! `server` starts and ends servers, `client` speaks HTTP by hand, so that also what no proper client would send can be
//! sent. Every answer that is read through `client` is checked against the contract's conventions on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod accounts;
mod client;
mod errors;
mod flash_sales;
mod gateway;
mod hostile;
mod idempotency;
mod limits;
mod lists;
mod live;
mod purchase;
mod routes;
mod server;
#[allow(dead_code)]
#[path = "../support/mod.rs"]
mod support;
mod traces;
