//! The command line: serve, import, inspect, rehearse, admin, keys, migrate. Reads the configuration; everything else is in the library.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use futures_util::future::LocalBoxFuture;
use souk::actors::clock::Clock;
use souk::actors::gate::Bounds;
use souk::actors::live::Live;
use souk::admin::{AdminArgs, KeystoreArgs, SigningArgs, running_node};
use souk::cluster::Name;
use souk::domain::time::SECOND_MS;
use souk::http::Door;
use souk::http::browsers::Origin;
use souk::http::client_address::{Network, Proxies, ProxyHeader};
use souk::http::identity::keys::SHOWN_FIRST_MS;
use souk::http::identity::keystore::wrapping::WrappingKey;
use souk::http::limits::{Quota, Quotas};
use souk::http::tls::Tls;
use souk::integrations::http_client::{Client, percent_encoded};
use souk::integrations::import_command::{Destination, ImportArgs};
use souk::integrations::otlp::{self, Exporter};
use souk::log::Fields;
use souk::metrics::{Metrics, NodeCollector};
use souk::migrate::MigrateArgs;
use souk::node::{DataFolder, Joining, Node};
use souk::persistence::inspect::{Inspection, inspect};
use souk::persistence::nats_args::{DemandArgs, NatsArgs};
use souk::persistence::{Embedded, OpenError, Options, Position};
use souk::rehearse::RehearseArgs;
use souk::{actors, cores, demo, http};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// A marketplace backend made of actors: one program, nothing beside it.
#[derive(Parser)]
#[command(version, after_help = "Start here:\n  souk serve --demo        a shop with goods in it, at http://127.0.0.1:8080/")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(ServeArgs),
    Import(ImportArgs),
    Inspect(InspectArgs),
    Rehearse(RehearseArgs),
    Admin(AdminArgs),
    Keys(KeysArgs),
    Migrate(MigrateArgs),
}

/// Run a node: the API over HTTP and WebSocket, the journal in a data folder
#[derive(Args)]
#[command(after_help = "\
Examples:
  souk serve --demo                          try it: fills an empty folder with goods and accounts
  souk serve --listen 0.0.0.0:80 --data /var/lib/souk
  souk serve --node-name n1 --nats nats://a:4222,nats://b:4222,nats://c:4222 \\
      --nats-monitor http://a:8222,http://b:8222,http://c:8222

With --nats it is one of several nodes that are one shop, whose journal and keys are in NATS; a load balancer stands in
front of them. docs/cluster.md says what that takes, and `cluster-config/local/up` starts one on this machine.

The first admin is made by `souk admin create`. SIGTERM or Ctrl-C drains: no new work is taken, what is in flight is
finished, snapshots are written, and other nodes of a cluster go on with what lived here.")]
struct ServeArgs {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8080", env = "SOUK_LISTEN")]
    listen: SocketAddr,

    /// The data folder: journal, snapshots, read models; in a cluster only what can be rebuilt
    #[arg(long, value_name = "FOLDER", default_value = "./data", env = "SOUK_DATA")]
    data: PathBuf,

    /// Fill an empty shop with a small catalogue and accounts, and print their password
    #[arg(long, env = "SOUK_DEMO")]
    demo: bool,

    /// The key that signs access tokens, Ed25519 as PKCS#8 PEM; without it the data folder or the cluster has its own
    #[arg(long, value_name = "FILE", env = "SOUK_SIGNING_KEY")]
    signing_key: Option<PathBuf>,

    /// Speak TLS, and nothing else, with this certificate chain in PEM form; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key", env = "SOUK_TLS_CERT")]
    tls_cert: Option<PathBuf>,

    /// The private key of that certificate, in PEM form
    #[arg(long, value_name = "FILE", requires = "tls_cert", env = "SOUK_TLS_KEY")]
    tls_key: Option<PathBuf>,

    /// Connections that may be open; past it those that rest longest give way, and then new ones are turned away
    #[arg(long, value_name = "N", default_value_t = 12_000, env = "SOUK_CONNECTIONS_MAX")]
    connections_max: usize,

    #[command(flatten)]
    limits: LimitArgs,

    #[command(flatten)]
    proxies: ProxyArgs,

    /// An origin whose pages may read answers (CORS); may be given several times, and without it there is none
    #[arg(long = "cors-origin", value_name = "URL", env = "SOUK_CORS_ORIGIN", value_delimiter = ',')]
    cors_origins: Vec<Origin>,

    /// Threads that work on requests, besides those of the journal, the pushes and the disk; if not said otherwise one for each
    /// core, and then each stays on its own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), env = "SOUK_THREADS")]
    threads: Option<u16>,

    /// Commands that may wait for one entity; past it callers hear 503 at once
    #[arg(long, value_name = "N", default_value_t = 1_024, env = "SOUK_WAITING_PER_ENTITY")]
    waiting_per_entity: usize,

    /// Commands that may wait on this node
    #[arg(long, value_name = "N", default_value_t = 65_536, env = "SOUK_WAITING_PER_NODE")]
    waiting_per_node: usize,

    /// Seconds after which an unused entity leaves memory
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(i64).range(1..=86_400), env = "SOUK_IDLE_SECONDS")]
    idle_seconds: i64,

    /// Entities that may be in memory; near it, unused ones leave sooner
    #[arg(long, value_name = "N", default_value_t = 100_000, env = "SOUK_RESIDENTS_MAX")]
    residents_max: usize,

    /// Records after which an entity's snapshot is renewed
    #[arg(long, value_name = "RECORDS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..), env = "SOUK_SNAPSHOT_EVERY")]
    snapshot_every: u64,

    /// Read the whole journal of a node that is alone back first, and refuse to start if any of it is damaged
    #[arg(long, env = "SOUK_CHECK_JOURNAL")]
    check_journal: bool,

    /// Send spans to this OpenTelemetry collector, by OTLP over plain HTTP as JSON
    #[arg(long, value_name = "URL", env = "SOUK_OTLP")]
    otlp: Option<String>,

    /// How log lines are written; RUST_LOG says which
    #[arg(long, value_enum, default_value_t = LogFormat::Pretty, env = "SOUK_LOG_FORMAT")]
    log_format: LogFormat,

    // Last: its headings would be those of all that follows.
    #[command(flatten)]
    cluster: ClusterArgs,
}

// No doc comment: clap would take it for the command's.
#[derive(Args)]
#[command(next_help_heading = "Cluster")]
struct ClusterArgs {
    /// This node's name among the others: unlike theirs, and the same at each start
    #[arg(long, value_name = "NAME", default_value = "n1", env = "SOUK_NODE_NAME", value_parser = Name::parse)]
    node_name: Name,

    /// This node's address as GET /api/cluster shows it to operators, if it is not where it listens
    #[arg(long, value_name = "URL", env = "SOUK_ADVERTISE")]
    advertise: Option<String>,

    /// Seal the keys that nodes share with this one, so that NATS holds nothing that opens: 64 hex digits, as
    /// `openssl rand -hex 32` makes them, the same for each node and from the first start on
    #[arg(long, value_name = "FILE", env = "SOUK_IDENTITY_KEY")]
    identity_key: Option<PathBuf>,

    /// Seconds for which a node that was told to stop still answers, so that load balancers notice in time
    #[arg(long, value_name = "SECONDS", default_value_t = 5, env = "SOUK_LEAVE_SECONDS")]
    leave_seconds: u64,

    #[command(flatten)]
    nats: NatsArgs,

    #[command(flatten)]
    demands: DemandArgs,
}

impl ClusterArgs {
    /// `None` for a node that is alone.
    fn joining(&self, url: &str) -> Result<Option<Joining>, Failed> {
        if !self.nats.is_given() {
            return Ok(None);
        }
        Ok(Some(Joining {
            nats: self.nats.options(&format!("souk {}", self.node_name))?,
            demands: self.demands.demands(),
            identity_key: self.identity_key.as_deref().map(WrappingKey::read).transpose()?,
            name: self.node_name.clone(),
            http: self.advertise.clone().unwrap_or_else(|| url.to_owned()),
        }))
    }
}

// No doc comment: clap would take it for the command's.
#[derive(Args)]
struct LimitArgs {
    /// Reads of one caller: an average rate, and how many may come at once; 0 is no limit
    #[arg(long, value_name = "QUOTA", default_value_t = Quotas::default().reads, env = "SOUK_LIMIT_READS")]
    limit_reads: Quota,

    /// Writes of one caller
    #[arg(long, value_name = "QUOTA", default_value_t = Quotas::default().writes, env = "SOUK_LIMIT_WRITES")]
    limit_writes: Quota,

    /// Requests from one address that show or set a password
    #[arg(long, value_name = "QUOTA", default_value_t = Quotas::default().login, env = "SOUK_LIMIT_LOGIN")]
    limit_login: Quota,

    /// Checkouts of one caller
    #[arg(long, value_name = "QUOTA", default_value_t = Quotas::default().checkout, env = "SOUK_LIMIT_CHECKOUT")]
    limit_checkout: Quota,

    /// Claims of one caller in flash sales
    #[arg(long, value_name = "QUOTA", default_value_t = Quotas::default().claims, env = "SOUK_LIMIT_CLAIMS")]
    limit_claims: Quota,

    /// Requests with a token of `souk admin token`, whatever they are
    #[arg(long, value_name = "QUOTA", default_value_t = Quotas::default().operator, env = "SOUK_LIMIT_OPERATOR")]
    limit_operator: Quota,

    /// No such limits at all: for a rehearsal, whose buyers all come from one address
    #[arg(long, env = "SOUK_NO_LIMITS")]
    no_limits: bool,
}

impl LimitArgs {
    fn quotas(&self) -> Quotas {
        if self.no_limits {
            return Quotas::UNLIMITED;
        }
        Quotas {
            reads: self.limit_reads,
            writes: self.limit_writes,
            login: self.limit_login,
            checkout: self.limit_checkout,
            claims: self.limit_claims,
            operator: self.limit_operator,
        }
    }
}

#[derive(Args)]
struct ProxyArgs {
    /// A proxy that is believed about where a request comes from, by its address or range; may be given several times
    #[arg(long = "trusted-proxy", value_name = "CIDR", env = "SOUK_TRUSTED_PROXY", value_delimiter = ',')]
    trusted: Vec<Network>,

    /// The header in which those proxies say it; the other one is not read
    #[arg(long, value_enum, default_value_t = ProxyHeaderName::XForwardedFor, env = "SOUK_PROXY_HEADER")]
    proxy_header: ProxyHeaderName,
}

impl ProxyArgs {
    fn proxies(self) -> Proxies {
        let header = match self.proxy_header {
            ProxyHeaderName::XForwardedFor => ProxyHeader::XForwardedFor,
            ProxyHeaderName::Forwarded => ProxyHeader::Forwarded,
        };
        Proxies { trusted: self.trusted, header }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum ProxyHeaderName {
    XForwardedFor,
    Forwarded,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Pretty,
    Json,
}

/// Print an entity's state and history, from the journal alone
#[derive(Args)]
#[command(after_help = "\
Examples:
  souk inspect order ord_01ARZ3NDEKTSV4RRFFQ69G5FAV
  souk inspect inventory LANTERN-S --data /var/lib/souk
  souk inspect inventory LANTERN-S --nats nats://127.0.0.1:4222 --url http://127.0.0.1:8080

Kinds: product, inventory, cart, order, payment, request, user, email, shop. When a node is running on the data folder,
it is asked; otherwise the journal is read here. In a cluster a node is asked, with a token made from the keys in NATS.
Nothing is changed either way. What is personal in an account is sealed, and an e-mail's id is its keyed hash.")]
struct InspectArgs {
    kind: String,
    id: String,

    /// A node of the cluster; without it the one that runs on the data folder is asked
    #[arg(long, value_name = "URL", requires = "nats")]
    url: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    signing: SigningArgs,
}

/// The keys that sign access tokens: make a new one, or see which there are
#[derive(Args)]
#[command(after_help = "\
Examples:
  souk keys rotate --data /var/lib/souk      a new key; a running node takes it up within seconds
  souk keys show --data /var/lib/souk        which key signs, and until when the others verify
  souk keys show --json                      the public keys, as /.well-known/jwks.json shows them
  souk keys rotate --nats nats://a:4222      the same in a cluster, for all its nodes

A new key is shown for some seconds before it signs, and a replaced one verifies for a day, so nobody is logged out. If a
key may have been stolen, rotate and remove it as well: within half a minute all tokens that it signed are refused, and
clients renew them.")]
struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Make a new key, and remove those that have retired
    Rotate(KeystoreArgs),
    /// Take a key away that may have been stolen: within half a minute all tokens that it signed are refused
    Remove {
        /// The key's id, as `souk keys show` has it
        #[arg(value_name = "KEY")]
        kid: String,

        #[command(flatten)]
        keystore: KeystoreArgs,
    },
    /// List the keys, newest first; nothing secret is shown
    Show {
        /// Print the public keys as a JSON Web Key Set
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        keystore: KeystoreArgs,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = match &cli.command {
        Command::Serve(args) => args.log_format,
        _ => LogFormat::Pretty,
    };
    let serving = match &cli.command {
        Command::Serve(args) => Some(args),
        _ => None,
    };
    let exporter = match listen(format, serving) {
        Ok(exporter) => exporter,
        Err(error) => return failed(&*error),
    };
    let mut tokio = match &cli.command {
        // Buyers on one thread take as little as can be from the server that they measure.
        Command::Rehearse(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if let Command::Serve(ServeArgs { threads, .. }) = &cli.command {
        let one_for_each_core = || thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.map_or_else(one_for_each_core, usize::from);
        cores::spread(tokio.worker_threads(threads), threads);
    }
    let tokio = match tokio.enable_all().build() {
        Ok(tokio) => tokio,
        Err(error) => return failed(&error),
    };
    let ended = tokio.block_on(async {
        if let Some(exporter) = exporter {
            tokio::spawn(exporter.run());
        }
        match cli.command {
            Command::Serve(args) => serve(args).await.map(|()| ExitCode::SUCCESS),
            Command::Import(args) => import(args).await,
            Command::Inspect(args) => inspect_entity(args).await.map(|()| ExitCode::SUCCESS),
            Command::Rehearse(args) => Ok(args.run().await),
            Command::Admin(args) => args.run().await.map(|()| ExitCode::SUCCESS),
            Command::Migrate(args) => args.run().await.map(|()| ExitCode::SUCCESS),
            Command::Keys(args) => keys(args.command).await.map(|()| ExitCode::SUCCESS),
        }
    });
    // Blocking reads that are still under way must not keep the process.
    tokio.shutdown_timeout(Duration::from_secs(1));
    ended.unwrap_or_else(|error| failed(&*error))
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("souk: {error}");
    ExitCode::FAILURE
}

/// Says where log lines go, and spans if they are wanted; what is returned then sends them.
fn listen(format: LogFormat, serving: Option<&ServeArgs>) -> Result<Option<Exporter>, Failed> {
    // The store below the journal tells of its own housekeeping at this level.
    let default = if serving.is_some() { "info,fjall=warn,lsm_tree=warn" } else { "warn" };
    // Not an `EnvFilter`, which has to be asked at each span's every step.
    let filter = std::env::var("RUST_LOG").ok().filter(|said| !said.is_empty());
    let filter: Targets = filter.as_deref().unwrap_or(default).parse().map_err(|error| format!("RUST_LOG: {error}"))?;
    // Colours are for a person who looks; to format them costs each request something.
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colours);
    let log = match format {
        LogFormat::Pretty => log.fmt_fields(Fields).with_target(false).boxed(),
        LogFormat::Json => log.json().boxed(),
    };
    let (spans, exporter) = match serving.and_then(|args| Some((args.otlp.as_deref()?, &args.cluster.node_name))) {
        Some((url, node)) => otlp::to(url, node.as_str()).map(|(recorder, exporter)| (Some(recorder), Some(exporter)))?,
        None => (None, None),
    };
    let registry = tracing_subscriber::registry();
    match spans {
        // Spans are told whatever the log is made to say.
        Some(recorder) => {
            let spans = recorder.with_filter(Targets::new().with_target("souk", tracing::Level::INFO));
            registry.with(log.with_filter(filter)).with(spans).init();
        }
        // One filter for all costs each request less than one for each of them.
        None => registry.with(log).with(filter).init(),
    }
    Ok(exporter)
}

// Serve -------------------------------------------------------------------------------------------------------------

/// How long a start waits for lists and search to know all that the journal does.
const LISTS_WAIT: Duration = Duration::from_secs(10);
/// Files that may be open besides sockets: most of them the journal's.
const OTHER_FILES: u64 = 1_000;
/// How long a node looks for its place among the members.
const JOIN_WAIT: Duration = Duration::from_secs(60);
/// How long a drain may take in all.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

async fn serve(args: ServeArgs) -> Result<(), Failed> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Some(Arc::new(Tls::open(certificate, key)?)),
        _ => None,
    };
    let folder = DataFolder::open(&args.data)?;
    let config = actors::Config {
        bounds: Bounds { per_entity: args.waiting_per_entity, per_node: args.waiting_per_node },
        idle_ms: args.idle_seconds * 1_000,
        residents_max: args.residents_max,
        snapshot_every: args.snapshot_every,
        ..actors::Config::default()
    };
    let mut journal = Options::default();
    if args.check_journal {
        journal.verify_batches = usize::MAX;
    }
    // Taken before anything is said of it: port 0 asks the system for a free one.
    let listener = http::server::bind(args.listen)?;
    let url = url_of(listener.local_addr()?, tls.is_some());
    let joining = args.cluster.joining(&url)?;
    let leave_after = joining.as_ref().map(|_| Duration::from_secs(args.cluster.leave_seconds));
    let node = match joining {
        Some(joining) => Node::join(&folder, args.signing_key.as_deref(), joining, config).await?,
        None => Node::open(&folder, args.signing_key.as_deref(), journal, config).await?,
    };
    let mut ready: LocalBoxFuture<'_, Result<(), Failed>> = Box::pin(becomes_ready(&node, &folder, args.demo, &url));
    if leave_after.is_none() {
        // Nobody else could be asked meanwhile: clients wait until it is ready.
        ready.await?;
        ready = Box::pin(async { Ok(()) });
    }

    let defaults = http::Config::default();
    let (connections_max, live_sessions_max) = within_file_limit(args.connections_max, defaults.live_sessions_max);
    let door_config = http::Config {
        listen: args.listen,
        node_name: args.cluster.node_name.as_str().to_owned(),
        connections_max,
        live_sessions_max,
        quotas: args.limits.quotas(),
        proxies: args.proxies.proxies(),
        cors_origins: args.cors_origins,
        drain_deadline: DRAIN_DEADLINE,
        tls,
        ..defaults
    };
    let live = Live::start(node.journal.clone());
    let collector = NodeCollector {
        runtime: node.runtime.clone(),
        read_models: node.read_models.clone(),
        payment_providers: node.payment_providers.clone(),
        cluster: node.cluster().cloned(),
    };
    let metrics = Metrics::new(|registry| registry.register_collector(Box::new(collector)));
    let door = Door::new(node.runtime.clone(), node.read_models.clone(), live, node.identity.clone(), metrics, door_config)?;
    let (must_end, hand_over, leaving) = (node.must_end(), node.hand_over(DRAIN_DEADLINE), door.leaving());
    let (told, mut fatal) = tokio::sync::watch::channel(None);
    let (fails, failed) = tokio::sync::oneshot::channel();
    let ready = async move {
        if let Err(error) = ready.await {
            let _ = fails.send(error.to_string());
            std::future::pending::<()>().await;
        }
    };
    let shutdown = async move {
        let reason = tokio::select! {
            () = told_to_stop() => None,
            reason = must_end => Some(reason),
            Ok(reason) = failed => Some(reason),
        };
        if let (None, Some(leave_after)) = (&reason, leave_after) {
            // Others go on with what lives here, and load balancers turn to them, before the door closes.
            leaving();
            tokio::join!(hand_over, tokio::time::sleep(leave_after));
        }
        let _ = told.send(reason);
    };
    http::server::serve_on(listener, door, ready, shutdown).await;
    let _ = fs::remove_file(folder.address());
    let fatal = fatal.borrow_and_update().clone();
    node.close(DRAIN_DEADLINE).await;
    match fatal {
        Some(reason) => Err(reason.into()),
        None => Ok(()),
    }
}

/// All that a node does between its start and its first request.
async fn becomes_ready(node: &Node, folder: &DataFolder, demo: bool, url: &str) -> Result<(), Failed> {
    if tokio::time::timeout(JOIN_WAIT, node.has_joined()).await.is_err() {
        return Err("this node has found no place among the members: see the log above".into());
    }
    if demo {
        if node.runtime.journal().highest() == Position(0) {
            let filled = demo::fill(&node.runtime, &node.identity).await;
            let products = filled.map_err(|error| format!("the demo could not be set up: {error}"))?;
            println!("The demo shop has {products} products.");
        }
        println!("Accounts: {}, all with the password {}", demo::ACCOUNTS.join(", "), demo::PASSWORD);
        println!("Shop:     {url}/ (sell at /vendor, operate at /operator)");
        io::stdout().flush()?;
    }
    if !node.read_models.reached(node.runtime.journal().highest(), LISTS_WAIT).await {
        tracing::warn!("the lists are still catching up with the journal; until then they show less");
    }
    fs::write(folder.address(), format!("{url}\n"))?;
    Ok(())
}

/// Has the system let this process open as many files as it ever would, and returns how many connections and live
/// sessions there may be of those that are wanted. With more, the journal could find no file left to open.
fn within_file_limit(connections: usize, sessions: usize) -> (usize, usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let Some(files) = (if raised.is_ok() { maximum } else { current }) else { return (connections, sessions) };
    let room = usize::try_from(files - OTHER_FILES.min(files / 2)).unwrap_or(usize::MAX);
    let allowed = connections.min(room / 4 * 3);
    if allowed < connections {
        tracing::warn!(allowed, wanted = connections, files, "fewer connections than wanted: the limit of open files is too low");
    }
    (allowed, sessions.min(room - allowed))
}

/// Where somebody on this machine reaches the node.
fn url_of(mut address: SocketAddr, is_tls: bool) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let scheme = if is_tls { "https" } else { "http" };
    format!("{scheme}://{address}")
}

/// Resolves on SIGTERM or Ctrl-C.
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("draining");
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "signals cannot be heard; only a kill ends this node");
            std::future::pending::<()>().await;
        }
    }
}

// Import ------------------------------------------------------------------------------------------------------------

async fn import(args: ImportArgs) -> Result<ExitCode, Failed> {
    let report = match args.destination() {
        Destination::Node { url } => args.into_node(url).await?,
        Destination::DataFolder(path) => {
            let node = Node::open(&DataFolder::open(path)?, None, Options::default(), actors::Config::default()).await.map_err(
                |error| format!("{error}. If a node is running on this folder, import into it with --url and --token."),
            )?;
            let report = args.into_catalogue(node.catalogue()).await;
            node.close(DRAIN_DEADLINE).await;
            report?
        }
    };
    print!("{report}");
    Ok(if report.row_errors_count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

// Inspect -----------------------------------------------------------------------------------------------------------

async fn inspect_entity(args: InspectArgs) -> Result<(), Failed> {
    let inspection = match args.signing.names_cluster() {
        true => ask_node(args.signing.node_of_cluster(args.url.as_deref()).await?, &args).await?,
        false => inspect_folder(&DataFolder::open(args.signing.data())?, &args).await?,
    };
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&inspection)?),
        false => print_inspection(&inspection)?,
    }
    Ok(())
}

async fn inspect_folder(folder: &DataFolder, args: &InspectArgs) -> Result<Inspection, Failed> {
    folder.is_alone()?;
    match Embedded::open(&folder.journal(), Options::default()) {
        Ok((journal, _)) => {
            let inspection = inspect(&*journal, &args.kind, &args.id, None).await;
            journal.close();
            Ok(inspection?)
        }
        // The journal belongs to the running node, which left its address in the data folder.
        Err(OpenError::InUse { .. }) => match running_node(folder, &args.signing.token().await?)? {
            Some(client) => ask_node(client, args).await,
            None => {
                Err("the data folder is in use by a process that is not serving (an import?): try again when it is done".into())
            }
        },
        Err(error) => Err(error.into()),
    }
}

async fn ask_node(mut client: Client, args: &InspectArgs) -> Result<Inspection, Failed> {
    let path = format!("/api/cluster/entities/{}/{}", args.kind, percent_encoded(&args.id));
    let answer = client.get(&path, &[]).await?;
    match answer.status.as_u16() {
        200 => Ok(serde_json::from_slice(&answer.body)?),
        _ => Err(format!("the node answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body)).into()),
    }
}

fn print_inspection(inspection: &Inspection) -> Result<(), Failed> {
    println!("{} {}, version {}", inspection.kind, inspection.id, inspection.version);
    println!("\nstate\n{}", serde_json::to_string_pretty(&inspection.state)?);
    println!("\nhistory");
    for record in &inspection.history {
        let text = |name: &str| record.get(name).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        let version = record.get("entityversion").and_then(serde_json::Value::as_u64).unwrap_or_default();
        let data = record.get("data").map(ToString::to_string).unwrap_or_default();
        println!("{version:>6}  {}  {:<28} by {}  {data}", text("time"), text("type"), text("askedby"));
    }
    Ok(())
}

// Keys --------------------------------------------------------------------------------------------------------------

async fn keys(command: KeysCommand) -> Result<(), Failed> {
    let now = Clock::default().now();
    match command {
        KeysCommand::Rotate(keystore) => {
            let kid = keystore.signing_keys().await?.rotate_anywhere(now).await?;
            println!("The new key is {kid}. It signs in {} seconds.", SHOWN_FIRST_MS / SECOND_MS);
        }
        KeysCommand::Remove { kid, keystore } => {
            keystore.signing_keys().await?.remove(&kid).await?;
            println!("The key {kid} is gone.");
        }
        KeysCommand::Show { json, keystore } => {
            let keys = keystore.signing_keys().await?.current(now);
            if json {
                println!("{}", serde_json::to_string_pretty(&keys.to_jwks(now))?);
                return Ok(());
            }
            let signs = keys.signing(now).map(|key| key.kid.as_str());
            for key in keys.verifying(now) {
                let made = key.made.map(|made| made.to_string()).unwrap_or_default();
                let does = match key.retires() {
                    _ if signs == Some(key.kid.as_str()) => "signs".to_owned(),
                    Some(retires) => format!("verifies until {retires}"),
                    None => "will sign within seconds".to_owned(),
                };
                println!("{}  made {made}  {does}", key.kid);
            }
        }
    }
    Ok(())
}
