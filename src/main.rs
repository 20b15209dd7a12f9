//! The command line: serve, import, inspect, rehearse. Reads the configuration; everything else is in the library.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sha2::{Digest, Sha256};
use souk::actors::gate::Bounds;
use souk::actors::live::Live;
use souk::http::Door;
use souk::integrations::http_client::{Client, Limits, Origin, percent_encoded};
use souk::integrations::import_command::{Destination, ImportArgs};
use souk::metrics::{Metrics, NodeCollector};
use souk::node::{DataFolder, Node};
use souk::persistence::inspect::{Inspection, inspect};
use souk::persistence::{Embedded, OpenError, Options, Position};
use souk::rehearse::RehearseArgs;
use souk::{actors, demo, http};

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// A marketplace backend made of actors: one program, nothing beside it.
#[derive(Parser)]
#[command(
    version,
    after_help = "Start here:\n  souk serve --demo        a shop with goods in it, at http://127.0.0.1:8080/api/products"
)]
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
}

/// Run a node: the API over HTTP and WebSocket, the journal in a data folder
#[derive(Args)]
#[command(after_help = "\
Examples:
  souk serve --demo                          try it: fills an empty folder with goods
  souk serve --listen 0.0.0.0:80 --data /var/lib/souk

The operator's token is in the file `admin-token` of the data folder, or given as SOUK_ADMIN_TOKEN. SIGTERM or Ctrl-C
drains: no new work is taken, what is in flight is finished, snapshots are written.")]
struct ServeArgs {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8080", env = "SOUK_LISTEN")]
    listen: SocketAddr,

    /// The data folder: journal, snapshots, read models
    #[arg(long, value_name = "FOLDER", default_value = "./data", env = "SOUK_DATA")]
    data: PathBuf,

    /// Fill an empty data folder with a small catalogue, and print the operator's token
    #[arg(long, env = "SOUK_DEMO")]
    demo: bool,

    /// The operator's token, at least 16 characters; without it one is made at the first start
    #[arg(long, value_name = "TOKEN", env = "SOUK_ADMIN_TOKEN", hide_env_values = true)]
    admin_token: Option<String>,

    /// This node's name
    #[arg(long, default_value = "n1", env = "SOUK_NODE_NAME")]
    node_name: String,

    /// Connections beyond these are turned away
    #[arg(long, value_name = "N", default_value_t = 10_000, env = "SOUK_CONNECTIONS_MAX")]
    connections_max: usize,

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

    /// Read the whole journal back first, and refuse to start if any of it is damaged
    #[arg(long, env = "SOUK_CHECK_JOURNAL")]
    check_journal: bool,

    /// How log lines are written; RUST_LOG says which
    #[arg(long, value_enum, default_value_t = LogFormat::Pretty, env = "SOUK_LOG_FORMAT")]
    log_format: LogFormat,
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

Kinds: product, inventory, cart, order, payment, request. When a node is running on the data folder, it is asked;
otherwise the journal is read here. Nothing is changed either way.")]
struct InspectArgs {
    kind: String,
    id: String,

    /// The data folder of the node, running or stopped
    #[arg(long, value_name = "FOLDER", default_value = "./data", env = "SOUK_DATA")]
    data: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = match &cli.command {
        Command::Serve(args) => args.log_format,
        _ => LogFormat::Pretty,
    };
    log_to_stderr(format, matches!(cli.command, Command::Serve(_)));
    let mut tokio = match &cli.command {
        // Buyers on one thread take as little as can be from the server that they measure.
        Command::Rehearse(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let tokio = match tokio.enable_all().build() {
        Ok(tokio) => tokio,
        Err(error) => return failed(&error),
    };
    let ended = tokio.block_on(async {
        match cli.command {
            Command::Serve(args) => serve(args).await.map(|()| ExitCode::SUCCESS),
            Command::Import(args) => import(args).await,
            Command::Inspect(args) => inspect_entity(args).await.map(|()| ExitCode::SUCCESS),
            Command::Rehearse(args) => Ok(args.run().await),
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

fn log_to_stderr(format: LogFormat, serving: bool) {
    // The store below the journal tells of its own housekeeping at this level.
    let default = if serving { "info,fjall=warn,lsm_tree=warn" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Pretty => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

// Serve -------------------------------------------------------------------------------------------------------------

/// How long a start waits for lists and search to know all that the journal does.
const LISTS_WAIT: Duration = Duration::from_secs(10);
/// How long a drain may take in all.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

async fn serve(args: ServeArgs) -> Result<(), Failed> {
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
    let node = Node::open(&folder, journal, config).await?;
    let token = admin_token(&folder, args.admin_token)?;
    // Taken before anything is said of it: port 0 asks the system for a free one.
    let listener = http::server::bind(args.listen)?;
    let url = url_of(listener.local_addr()?);
    if args.demo {
        if node.runtime.journal().highest() == Position(0) {
            let products = demo::fill(&node.runtime).await.map_err(|error| format!("the demo could not be set up: {error}"))?;
            println!("The demo shop has {products} products.");
        }
        println!("Operator's token: {token}");
        println!("Shop:             {url}/api/products");
        io::stdout().flush()?;
    }

    if !node.read_models.reached(node.runtime.journal().highest(), LISTS_WAIT).await {
        tracing::warn!("the lists are still catching up with the journal; until then they show less");
    }
    let door_config = http::Config {
        listen: args.listen,
        node_name: args.node_name,
        connections_max: args.connections_max,
        admin_token_sha256: Some(Sha256::digest(token.as_bytes()).into()),
        drain_deadline: DRAIN_DEADLINE,
        ..http::Config::default()
    };
    let live = Live::start(node.journal.clone());
    let collector = NodeCollector { runtime: node.runtime.clone(), read_models: node.read_models.clone() };
    let metrics = Metrics::new(|registry| registry.register_collector(Box::new(collector)));
    let door = Door::new(node.runtime.clone(), node.read_models.clone(), live, metrics, door_config)?;
    fs::write(folder.address(), format!("{url}\n"))?;

    let (journal, runtime) = (node.journal.clone(), node.runtime.clone());
    let end = async move {
        tokio::select! {
            () = told_to_stop() => None,
            reason = journal.poisoned() => Some(format!("the journal can no longer be written: {}", reason.unwrap_or_default())),
            reason = runtime.fatal() => Some(reason),
        }
    };
    let (told, mut fatal) = tokio::sync::watch::channel(None);
    let shutdown = async move {
        let reason = end.await;
        let _ = told.send(reason);
    };
    http::server::serve_on(listener, door, shutdown).await;
    let _ = fs::remove_file(folder.address());
    let fatal = fatal.borrow_and_update().clone();
    node.close(DRAIN_DEADLINE).await;
    match fatal {
        Some(reason) => Err(reason.into()),
        None => Ok(()),
    }
}

/// Where somebody on this machine reaches the node.
fn url_of(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}")
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

/// The token given, else the one kept in the data folder, else a new one that is kept there, readable by this user only.
fn admin_token(folder: &DataFolder, given: Option<String>) -> Result<String, Failed> {
    if let Some(token) = given {
        return match token.len() {
            16.. => Ok(token),
            _ => Err("the operator's token must have at least 16 characters".into()),
        };
    }
    let path = folder.admin_token();
    match fs::read_to_string(&path) {
        Ok(token) if token.trim().len() >= 16 => return Ok(token.trim().to_owned()),
        Ok(_) => {
            return Err(
                format!("{} holds no token of at least 16 characters; delete it and a new one is made", path.display()).into()
            );
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("{}: {error}", path.display()).into()),
    }
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
    let token = hex(&bytes);
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    tracing::info!("the operator's token is in {}", path.display());
    Ok(token)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// Import ------------------------------------------------------------------------------------------------------------

async fn import(args: ImportArgs) -> Result<ExitCode, Failed> {
    let report = match args.destination() {
        Destination::Node { url } => args.into_node(url).await?,
        Destination::DataFolder(path) => {
            let node =
                Node::open(&DataFolder::open(path)?, Options::default(), actors::Config::default()).await.map_err(|error| {
                    format!("{error}. If a node is running on this folder, import into it with --url and --token.")
                })?;
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
    let folder = DataFolder::open(&args.data)?;
    let inspection = match Embedded::open(&folder.journal(), Options::default()) {
        Ok((journal, _)) => {
            let inspection = inspect(&*journal, &args.kind, &args.id).await;
            journal.close();
            inspection?
        }
        Err(OpenError::InUse { .. }) => ask_running_node(&folder, &args).await?,
        Err(error) => return Err(error.into()),
    };
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&inspection)?),
        false => print_inspection(&inspection)?,
    }
    Ok(())
}

/// The journal belongs to the running node, which left its address and the operator's token in the data folder.
async fn ask_running_node(folder: &DataFolder, args: &InspectArgs) -> Result<Inspection, Failed> {
    let address = fs::read_to_string(folder.address())
        .map_err(|_| "the data folder is in use by a process that is not serving (an import?): try again when it is done")?;
    let token = fs::read_to_string(folder.admin_token()).unwrap_or_default();
    let token = std::env::var("SOUK_ADMIN_TOKEN").unwrap_or(token);
    let mut client = Client::new(Origin::parse(address.trim())?, Limits::default()).with_token(token.trim())?;
    let path = format!("/api/cluster/entities/{}/{}", args.kind, percent_encoded(&args.id));
    let answer = client.get(&path, &[]).await?;
    match answer.status.as_u16() {
        200 => Ok(serde_json::from_slice(&answer.body)?),
        _ => Err(format!("the node at {} answered {}: {}", address.trim(), answer.status, String::from_utf8_lossy(&answer.body))
            .into()),
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
