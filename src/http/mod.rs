//! The door: HTTP, WebSocket and SSE on warp.
//!
//! - `server` accepts connections and bounds them; `routes` is the table of all that can be asked, and the one place
//!   where a request is matched, admitted and answered.
//! - `request` is what a handler gets, `answer` what it gives back; `problem` makes every error into one.
//! - `auth` says who may do what; `idempotency` makes a repeated POST safe.
//! - `products`, `inventory`, `carts`, `orders`, `cluster`, `health` and `live` hold the handlers.
//!
//! No rule of commerce may live here: handlers translate, entities decide.

pub mod answer;
pub mod auth;
pub mod carts;
pub mod cluster;
pub mod contacts;
pub mod health;
pub mod idempotency;
pub mod inventory;
pub mod live;
pub mod offers;
pub mod orders;
pub mod problem;
pub mod products;
pub mod request;
pub mod routes;
pub mod server;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::actors::Runtime;
use crate::actors::credential::Gate;
use crate::actors::live::Live;
use crate::actors::session::Sessions;
use crate::metrics::Metrics;
use crate::read_models::ReadModels;

pub use server::{ServeError, serve};

/// Everything about the door that an operator can set.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: SocketAddr,
    /// How this node is called among the others.
    pub node_name: String,
    /// Connections beyond these are turned away at once.
    pub connections_max: usize,
    /// SHA-256 of the operator's token; without it nobody is an admin.
    pub admin_token_sha256: Option<[u8; 32]>,
    /// How long a shutdown waits for what is in flight.
    pub drain_deadline: Duration,
    /// How long a checkout waits for its order to be settled before it answers 202.
    pub settle_wait: Duration,
    /// How long a list waits for the position that its reader asks for.
    pub read_model_wait: Duration,
    /// How long a request's head may take.
    pub head_timeout: Duration,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// How long a peer may refuse to take what we write.
    pub write_timeout: Duration,
    pub body_bytes_max: usize,
    /// How long a body may pause.
    pub body_chunk_timeout: Duration,
    /// How long a body may take in all.
    pub body_timeout: Duration,
    pub live_sessions_max: usize,
    /// Threads for live sessions.
    pub live_threads: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            node_name: "local".into(),
            connections_max: 10_000,
            admin_token_sha256: None,
            drain_deadline: Duration::from_secs(30),
            settle_wait: Duration::from_secs(2),
            read_model_wait: Duration::from_secs(2),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            body_bytes_max: 1024 * 1024,
            body_chunk_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            live_sessions_max: 20_000,
            live_threads: 2,
        }
    }
}

/// All that a handler can reach. Clones share it.
#[derive(Clone)]
pub struct Door {
    pub runtime: Runtime,
    pub read_models: Arc<ReadModels>,
    pub live: Live,
    pub sessions: Sessions,
    pub metrics: Metrics,
    pub config: Arc<Config>,
    pub gate: Gate,
    phase: Arc<watch::Sender<Phase>>,
}

/// Where the node is in its life, as load balancers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Starting,
    Ready,
    Draining,
}

impl Door {
    /// Starts the threads of the live sessions. The door stands at `Starting` until [`Door::opened`] is called.
    pub fn new(
        runtime: Runtime,
        read_models: Arc<ReadModels>,
        live: Live,
        metrics: Metrics,
        config: Config,
    ) -> Result<Self, io::Error> {
        let gate = Gate::new(config.admin_token_sha256);
        let sessions =
            Sessions::start(runtime.clone(), live.clone(), gate.clone(), config.live_threads, config.live_sessions_max)?;
        let phase = Arc::new(watch::Sender::new(Phase::Starting));
        Ok(Door { runtime, read_models, live, sessions, metrics, config: Arc::new(config), gate, phase })
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// For those who must notice that the node drains.
    pub fn watch_phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// The node has recovered and takes requests.
    pub fn opened(&self) {
        self.phase.send_if_modified(|phase| std::mem::replace(phase, (*phase).max(Phase::Ready)) != *phase);
    }

    /// From now on the node tells load balancers to look elsewhere.
    pub fn draining(&self) {
        self.phase.send_replace(Phase::Draining);
    }
}
