//! The door: HTTP, WebSocket and SSE on warp.
//!
//! - `server` accepts connections and bounds them, `tls` keeps them private; `routes` is the table of all that can be
//!   asked, and the one place where a request is matched, admitted and answered.
//! - `client_address` says where a request comes from, `limits` how much one caller may ask, `browsers` what
//!   pages may do with an answer. `compression` makes large ones smaller.
//! - `request` is what a handler gets, `answer` what it gives back; `problem` makes every error into one.
//! - `identity` holds what accounts rest on: passwords, keys, tokens, seals. `bearers` says who a token is of, and `auth`
//!   whether they may do this; `idempotency` makes a repeated POST safe.
//! - `openapi` is the contract, made of the structs that are read and written; `docs` shows it as a page.
//! - `pages` is the shop window: what people see in a browser, made of what the API answers.
//! - `products`, `inventory`, `carts`, `orders`, `flash_sales`, `claims`, `users`, `sessions`, `shops`, `cluster`, `health` and
//!   `live` hold the handlers; `sealing` says whose key seals what is personal, `proof_of_work` what a claim may have to show.
//!
//! No rule of commerce may live here: handlers translate, entities decide.

pub mod answer;
pub mod auth;
pub mod bearers;
pub mod browsers;
pub mod carts;
pub mod claims;
pub mod client_address;
pub mod cluster;
pub mod compression;
pub mod docs;
pub mod flash_sales;
pub mod health;
pub mod idempotency;
pub mod identity;
pub mod inventory;
pub mod limits;
pub mod live;
pub mod offers;
pub mod openapi;
pub mod orders;
pub mod pages;
pub mod problem;
pub mod products;
pub mod proof_of_work;
pub mod request;
pub mod routes;
pub mod sealing;
pub mod server;
pub mod sessions;
pub mod shops;
pub mod tls;
pub mod users;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::actors::Runtime;
use crate::actors::live::Live;
use crate::actors::session::Sessions;
use crate::domain::Timestamp;
use crate::metrics::{Metrics, Refused};
use crate::read_models::ReadModels;

use bearers::Bearers;
use browsers::Origin;
use client_address::Proxies;
use flash_sales::KnownSales;
use identity::Identity;
use limits::{Budget, Limits, Quotas};

pub use server::{ServeError, serve};

/// Everything about the door that an operator can set.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: SocketAddr,
    /// How this node is called among the others.
    pub node_name: String,
    /// Connections beyond these are turned away at once.
    pub connections_max: usize,
    /// How much one caller may ask.
    pub quotas: Quotas,
    /// Whom to believe about where a request comes from.
    pub proxies: Proxies,
    /// Whose pages may read answers.
    pub cors_origins: Vec<Origin>,
    /// How long a shutdown waits for what is in flight.
    pub drain_deadline: Duration,
    /// How long a checkout waits for its order to be settled before it answers 202.
    pub settle_wait: Duration,
    /// How long a list waits for the position that its reader asks for.
    pub read_model_wait: Duration,
    /// With it the door speaks TLS, and nothing else.
    pub tls: Option<Arc<tls::Tls>>,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
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
            connections_max: 12_000,
            quotas: Quotas::default(),
            proxies: Proxies::default(),
            cors_origins: Vec::new(),
            drain_deadline: Duration::from_secs(30),
            settle_wait: Duration::from_secs(2),
            read_model_wait: Duration::from_secs(2),
            tls: None,
            handshake_timeout: Duration::from_secs(10),
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
    pub identity: Arc<Identity>,
    pub gate: Arc<Bearers>,
    pub limits: Arc<Limits>,
    pub sales: Arc<KnownSales>,
    phase: Arc<watch::Sender<Phase>>,
}

/// Where the node is in its life, as load balancers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Starting,
    Ready,
    /// It still answers, and wants to be asked no more.
    Leaving,
    Draining,
}

impl Door {
    /// Starts the threads of the live sessions. The door stands at `Starting` until [`Door::opened`] is called.
    pub fn new(
        runtime: Runtime,
        read_models: Arc<ReadModels>,
        live: Live,
        identity: Arc<Identity>,
        metrics: Metrics,
        config: Config,
    ) -> Result<Self, io::Error> {
        let gate = Arc::new(Bearers::new(runtime.clone(), Arc::clone(&identity)));
        let sessions =
            Sessions::start(runtime.clone(), live.clone(), gate.clone(), config.live_threads, config.live_sessions_max)?;
        let phase = Arc::new(watch::Sender::new(Phase::Starting));
        let limits = Arc::new(Limits::new(config.quotas));
        runtime.count_live_sessions_by(sessions.counter());
        // Told from the start on: the first refusal is then seen as one.
        for budget in Budget::ALL {
            let _ = metrics.http_requests_refused.get_or_create(&Refused { budget: budget.name() });
        }
        let (config, sales) = (Arc::new(config), Arc::new(KnownSales::default()));
        Ok(Door { runtime, read_models, live, sessions, metrics, config, identity, gate, limits, sales, phase })
    }

    pub fn now(&self) -> Timestamp {
        self.runtime.now()
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

    /// Called, it tells load balancers from then on to look elsewhere, while the door still stands open.
    pub fn leaving(&self) -> impl Fn() + Send + use<> {
        let phase = Arc::clone(&self.phase);
        move || {
            phase.send_if_modified(|phase| std::mem::replace(phase, (*phase).max(Phase::Leaving)) != *phase);
        }
    }

    /// The door closes.
    pub fn draining(&self) {
        self.phase.send_replace(Phase::Draining);
    }
}
