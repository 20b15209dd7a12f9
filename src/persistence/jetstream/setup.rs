//! What the journal demands of NATS before it is trusted: servers, their settings, and the stream's.
//!
//! What is missing is made. What is there and wrong is refused with its name, never changed: it may be somebody's
//! decision. Three demands can be waived, each by a flag that names the risk; nothing else can.
//!
//! Whether a server flushes before it acknowledges cannot be asked over an ordinary connection. It is learnt from the
//! system account, when that is reachable, or from the servers' monitoring pages.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::StatusCode;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::pace::{Backoff, Dice};
use crate::persistence::nats::{Login, Nats, NatsError, NatsOptions, Prefix};

/// The oldest server that replicates with a flush for each raft append at a good rate.
const SERVER_VERSION_MIN: (u64, u64) = (2, 15);
const REPLICAS: usize = 3;
/// For JetStream to have a leader when a cluster starts as a whole.
const SETUP_MS: u64 = 20_000;
const ASK_MS: u64 = 3_000;
/// All servers of a cluster answer a ping within this.
const PING_MS: u64 = 500;
const MONITOR_MS: u64 = 3_000;
const MONITOR_PAGE_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Nothing is published with a message id; the window only costs memory.
const DUPLICATE_WINDOW_NS: u64 = 1_000_000_000;
const STREAM_NOT_FOUND: u64 = 10_059;
/// Servers that have just been started do not know each other yet.
pub const NO_PEERS: u64 = 10_005;
/// A server that the stream's leader has not heard for so long is out.
const OUT_NS: u64 = 3_000_000_000;
const OUT_WAIT_MS: u64 = 5_000;

/// What the operator demands, and what not.
#[derive(Debug, Clone, Default)]
pub struct Demands {
    /// Copies of each batch; 3, or as many as there are servers when they are fewer.
    pub replicas: Option<usize>,
    /// Run on servers older than 2.15, which are slow when they flush and were not tested.
    pub allow_old_server: bool,
    /// Run on servers that acknowledge before they flush, or may do so: a power failure of all of them loses what was
    /// acknowledged in the last two minutes.
    pub allow_lazy_sync: bool,
    /// Run with fewer than three copies: the loss of a disk, or of a server, is the loss of the journal or of its use.
    pub allow_single_replica: bool,
    /// `http://host:port` of each server's monitoring page.
    pub monitors: Vec<String>,
    /// A login to the system account.
    pub system: Option<Login>,
}

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error("JetStream: {0}")]
    JetStream(String),
    #[error("the NATS server {server} is version {version}; 2.15 or newer is needed (or the flag that allows older ones)")]
    OldServer { server: String, version: String },
    #[error(
        "the NATS server {server} acknowledges before it flushes: it needs `sync_interval: always` (or the flag that allows it)"
    )]
    LazySync { server: String },
    #[error(
        "whether the NATS server {server} flushes before it acknowledges (`sync_interval: always`) cannot be learnt: {why}. \
         Name its monitoring page or a login to the system account (or give the flag that allows lazy syncing)"
    )]
    UnknownSync { server: String, why: String },
    #[error("the journal would have {replicas} copies; 3 are needed (or the flag that allows fewer)")]
    FewReplicas { replicas: usize },
    #[error("the stream {stream} has {setting} = {actual}, which must be {wanted}")]
    Setting { stream: String, setting: String, actual: String, wanted: String },
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// When the stream was made: another one under its name is known by it.
    pub made: String,
    /// Copies of each batch. Whoever makes other streams for the shop makes them with as many.
    pub replicas: usize,
    /// The servers that hold the journal.
    pub servers: Vec<String>,
    /// What was allowed that the shipped default refuses, in words.
    pub risks: Vec<String>,
}

pub fn stream_name(prefix: &Prefix) -> String {
    format!("{prefix}-journal")
}

fn stream_subject(prefix: &Prefix) -> String {
    format!("{prefix}.j.>")
}

pub fn tail_subject(prefix: &Prefix) -> String {
    format!("{prefix}.t.>")
}

/// The stream's settings. `false`, `null` and what the server leaves out are the same.
fn settings(prefix: &Prefix) -> Map<String, Value> {
    let Value::Object(settings) = json!({
        "subjects": [stream_subject(prefix)],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "duplicate_window": DUPLICATE_WINDOW_NS,
        "allow_direct": true,
        "deny_delete": true,
        "deny_purge": true,
        "allow_rollup_hdrs": false,
        "allow_msg_ttl": false,
        "no_ack": false,
        "sealed": false,
        "republish": { "src": stream_subject(prefix), "dest": tail_subject(prefix) },
        "mirror": null,
        "sources": null,
        "subject_transform": null,
    }) else {
        return Map::new();
    };
    settings
}

/// Makes the stream when it is missing, and refuses what would not keep the journal's promises.
pub async fn prepare(nats: &Nats, options: &NatsOptions, demands: &Demands) -> Result<Prepared, SetupError> {
    let dice = Dice::new(fastrand::u64(..));
    let mut risks = Vec::new();
    let mut risk = |allowed: bool, error: SetupError| {
        if !allowed {
            return Err(error);
        }
        tracing::warn!(risk = %error, "allowed by a flag");
        risks.push(error.to_string());
        Ok(())
    };

    let stream = stream_name(nats.prefix());
    let copies = copies(nats, &stream, &dice).await?;
    let servers = servers(nats, demands, copies.is_some(), &dice).await;
    for (server, version) in &servers {
        if !is_new_enough(version) {
            risk(demands.allow_old_server, SetupError::OldServer { server: server.clone(), version: version.clone() })?;
        }
    }
    // What is there was made when all servers were; one of them may be out now.
    let possible = REPLICAS.min(servers.len().max(1)).max(copies.unwrap_or(0));
    let replicas = demands.replicas.unwrap_or(possible);
    if replicas < REPLICAS {
        risk(demands.allow_single_replica, SetupError::FewReplicas { replicas })?;
    }

    let mut info = stream_info(nats, &stream, replicas, &dice).await?;
    check_settings(nats.prefix(), &info["config"], replicas)?;

    let holders = holders(nats, &info);
    let synced = sync_of_servers(nats, options, demands).await;
    // A server that was lost a moment ago is not yet known to be out.
    let is_unclear = |info: &Value| {
        let mut silent = holders.iter().filter(|server| !synced.known.contains_key(*server) && !servers.contains_key(*server));
        copies.is_some() && silent.any(|server| !is_out(info, server))
    };
    let (deadline, mut backoff) = (Instant::now() + Duration::from_millis(OUT_WAIT_MS), Backoff::default());
    while is_unclear(&info) && Instant::now() < deadline {
        backoff.wait(&dice).await;
        info = stream_info(nats, &stream, replicas, &dice).await?;
    }
    for server in &holders {
        match synced.known.get(server) {
            Some(true) => {}
            Some(false) => risk(demands.allow_lazy_sync, SetupError::LazySync { server: server.clone() })?,
            None if copies.is_some() && !servers.contains_key(server) && is_out(&info, server) => {
                tracing::warn!(%server, "a NATS server is out, and whether it flushes before it acknowledges cannot be learnt");
            }
            None => {
                let why = synced.why_not.clone();
                risk(demands.allow_lazy_sync, SetupError::UnknownSync { server: server.clone(), why })?;
            }
        }
    }
    let made = info["created"].as_str().unwrap_or_default().to_owned();
    Ok(Prepared { replicas, made, servers: holders.into_iter().collect(), risks })
}

// ---------------------------------------------------------------------------------------------- servers

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map_while(|number| number.parse::<u64>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= SERVER_VERSION_MIN
}

/// Name and version of every server that answers, at least of the one that is connected.
async fn versions(nats: &Nats) -> BTreeMap<String, String> {
    let connected = nats.client().server_info();
    let mut servers = BTreeMap::from([(connected.server_name, connected.version)]);
    // The only question that every server answers to any account; what it says of connections is of no interest.
    for answer in ping(nats, "$SYS.REQ.ACCOUNT.PING.CONNZ", Bytes::from_static(b"{\"limit\":1}")).await {
        let server = &answer["server"];
        if let (Some(name), Some(version), Some(true)) =
            (server["name"].as_str(), server["ver"].as_str(), server["jetstream"].as_bool())
        {
            servers.insert(name.into(), version.into());
        }
    }
    servers
}

/// All servers. Those that are needed to make the stream are awaited.
async fn servers(nats: &Nats, demands: &Demands, is_made: bool, dice: &Dice) -> BTreeMap<String, String> {
    let is_cluster = nats.client().server_info().cluster.is_some();
    let needed = if is_cluster && !is_made && !demands.allow_single_replica { REPLICAS } else { 1 };
    let deadline = Instant::now() + Duration::from_millis(SETUP_MS);
    let mut backoff = Backoff::default();
    loop {
        let servers = versions(nats).await;
        if servers.len() >= needed || Instant::now() >= deadline {
            return servers;
        }
        backoff.wait(dice).await;
    }
}

/// All answers to a question that every server may answer.
async fn ping(nats: &Nats, subject: &str, body: Bytes) -> Vec<Value> {
    let client = nats.client();
    let inbox = client.new_inbox();
    let deadline = Instant::now() + Duration::from_millis(PING_MS);
    let mut answers = Vec::new();
    let asked = async {
        let mut messages = client.subscribe(inbox.clone()).await.ok()?;
        client.publish_with_reply(subject.to_owned(), inbox, body).await.ok()?;
        while let Some(message) = messages.next().await {
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                break;
            }
            answers.extend(serde_json::from_slice::<Value>(&message.payload));
        }
        Some(())
    };
    let _ = timeout_at(deadline, asked).await;
    answers
}

/// The servers that have a copy of the stream.
fn holders(nats: &Nats, info: &Value) -> BTreeSet<String> {
    let cluster = &info["cluster"];
    let replicas = cluster["replicas"].as_array().into_iter().flatten().map(|replica| &replica["name"]);
    let names: BTreeSet<String> =
        replicas.chain([&cluster["leader"]]).filter_map(|name| name.as_str().map(ToOwned::to_owned)).collect();
    // A server of its own leaves all this out.
    if names.is_empty() { BTreeSet::from([nats.client().server_info().server_name]) } else { names }
}

/// Whether the stream's leader has lost touch with a server. Of one that it has never heard, a new leader says 0.
fn is_out(info: &Value, server: &str) -> bool {
    let mut replicas = info["cluster"]["replicas"].as_array().into_iter().flatten();
    replicas.any(|replica| {
        replica["name"] == server
            && match replica["active"].as_u64() {
                None | Some(0) => replica["current"] != true,
                Some(ns) => ns >= OUT_NS,
            }
    })
}

struct Synced {
    /// Whether a server flushes before it acknowledges.
    known: BTreeMap<String, bool>,
    /// Why it is not known of the others.
    why_not: String,
}

async fn sync_of_servers(nats: &Nats, options: &NatsOptions, demands: &Demands) -> Synced {
    let mut known = BTreeMap::new();
    let mut failures = Vec::new();
    let mut learn = |answers: Vec<Value>| {
        for answer in answers {
            let config = &answer["data"]["config"];
            if let (Some(name), true) = (answer["server"]["name"].as_str(), config.is_object()) {
                known.insert(name.to_owned(), config["sync_always"] == true);
            }
        }
    };
    const SETTINGS: &str = "$SYS.REQ.SERVER.PING.JSZ";
    // An account may be given this by the system account's export.
    learn(ping(nats, SETTINGS, Bytes::new()).await);
    if let Some(login) = &demands.system {
        match Nats::connect(&NatsOptions { login: login.clone(), ..options.clone() }).await {
            Ok(system) => learn(ping(&system, SETTINGS, Bytes::new()).await),
            Err(error) => failures.push(format!("the system account: {error}")),
        }
    }
    for monitor in &demands.monitors {
        match monitored(monitor).await {
            Ok((server, always)) => drop(known.insert(server, always)),
            Err(why) => failures.push(format!("{monitor}: {why}")),
        }
    }
    let why_not = if failures.is_empty() { "nobody was asked who would know".into() } else { failures.join("; ") };
    Synced { known, why_not }
}

/// A server's name and whether it flushes, from its monitoring page.
async fn monitored(url: &str) -> Result<(String, bool), String> {
    let address = url.strip_prefix("http://").ok_or("only http:// can be asked")?.trim_end_matches('/');
    let host = if address.contains(':') { address.to_owned() } else { format!("{address}:8222") };
    let asked = async {
        let mut socket = TcpStream::connect(&host).await?;
        let request = format!("GET /varz HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        socket.take(MONITOR_PAGE_MAX_BYTES).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(Duration::from_millis(MONITOR_MS), asked).await.map_err(|_| "no answer".to_owned())?;
    let answer = answer.map_err(|error| error.to_string())?;
    let body = answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(&[][..], |at| &answer[at + 4..]);
    let page: Value = serde_json::from_slice(body).map_err(|_| "not a monitoring page".to_owned())?;
    let name = page["server_name"].as_str().ok_or("not a monitoring page")?;
    Ok((name.to_owned(), page["jetstream"]["config"]["sync_always"] == true))
}

// ---------------------------------------------------------------------------------------------- the stream

enum Asked {
    Answer(Value),
    /// Worth asking again.
    NotNow(String),
    Refused {
        code: u64,
        what: String,
    },
}

async fn ask(nats: &Nats, subject: String, body: Bytes) -> Asked {
    let answer = match timeout(Duration::from_millis(ASK_MS), nats.client().request(subject, body)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Asked::NotNow(error.to_string()),
        Err(_) => return Asked::NotNow(format!("no answer within {ASK_MS} ms")),
    };
    let answer: Value = match serde_json::from_slice(&answer.payload) {
        Ok(answer) => answer,
        Err(error) => return Asked::NotNow(error.to_string()),
    };
    let error = &answer["error"];
    if error.is_null() {
        return Asked::Answer(answer);
    }
    let what = error["description"].as_str().unwrap_or("refused").to_owned();
    match (error["code"].as_u64(), error["err_code"].as_u64()) {
        (Some(500..), _) | (_, Some(NO_PEERS)) => Asked::NotNow(what),
        (_, code) => Asked::Refused { code: code.unwrap_or(0), what },
    }
}

/// How many copies the stream is to have; `None` when there is no stream.
async fn copies(nats: &Nats, stream: &str, dice: &Dice) -> Result<Option<usize>, SetupError> {
    let deadline = Instant::now() + Duration::from_millis(SETUP_MS);
    let mut backoff = Backoff::default();
    loop {
        match ask(nats, format!("$JS.API.STREAM.INFO.{stream}"), Bytes::new()).await {
            Asked::Answer(info) => {
                return Ok(info["config"]["num_replicas"].as_u64().and_then(|copies| usize::try_from(copies).ok()));
            }
            Asked::Refused { code: STREAM_NOT_FOUND, .. } => return Ok(None),
            Asked::Refused { what, code } => return Err(SetupError::JetStream(format!("{stream}: {what} ({code})"))),
            Asked::NotNow(why) if Instant::now() >= deadline => return Err(SetupError::JetStream(format!("{stream}: {why}"))),
            Asked::NotNow(_) => backoff.wait(dice).await,
        }
    }
}

/// The stream's state and settings as they are, after making it if need be.
async fn stream_info(nats: &Nats, stream: &str, replicas: usize, dice: &Dice) -> Result<Value, SetupError> {
    let mut settings = settings(nats.prefix());
    settings.retain(|_, value| !value.is_null() && *value != false);
    settings.insert("name".into(), stream.into());
    settings.insert("num_replicas".into(), replicas.into());
    let create = Bytes::from(Value::Object(settings).to_string());
    let deadline = Instant::now() + Duration::from_millis(SETUP_MS);
    let mut backoff = Backoff::default();
    loop {
        let found = match ask(nats, format!("$JS.API.STREAM.INFO.{stream}"), Bytes::new()).await {
            Asked::Refused { code: STREAM_NOT_FOUND, .. } => {
                ask(nats, format!("$JS.API.STREAM.CREATE.{stream}"), create.clone()).await
            }
            found => found,
        };
        match found {
            // Until somebody leads the stream, the answer does not say who holds it.
            Asked::Answer(info) if info["cluster"].is_null() || info["cluster"]["leader"].is_string() => return Ok(info),
            Asked::Refused { what, code } => return Err(SetupError::JetStream(format!("{stream}: {what} ({code})"))),
            Asked::NotNow(why) if Instant::now() >= deadline => return Err(SetupError::JetStream(format!("{stream}: {why}"))),
            Asked::Answer(_) if Instant::now() >= deadline => {
                return Err(SetupError::JetStream(format!("{stream}: nobody leads it")));
            }
            Asked::Answer(_) | Asked::NotNow(_) => backoff.wait(dice).await,
        }
    }
}

fn check_settings(prefix: &Prefix, config: &Value, replicas: usize) -> Result<(), SetupError> {
    let wrong = |setting: &str, actual: &Value, wanted: String| SetupError::Setting {
        stream: stream_name(prefix),
        setting: setting.into(),
        actual: actual.to_string(),
        wanted,
    };
    let is_nothing = |value: &Value| value.is_null() || *value == false || *value == 0;
    for (setting, wanted) in settings(prefix) {
        let actual = &config[&setting];
        if *actual != wanted && !(is_nothing(actual) && is_nothing(&wanted)) {
            return Err(wrong(&setting, actual, wanted.to_string()));
        }
    }
    if config["persist_mode"] == "async" {
        return Err(wrong("persist_mode", &config["persist_mode"], "\"default\"".into()));
    }
    let actual = &config["num_replicas"];
    match actual.as_u64() {
        Some(actual) if actual >= replicas as u64 => Ok(()),
        _ => Err(wrong("num_replicas", actual, format!("{replicas} or more"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for good in ["2.15.0", "2.15.1", "2.100.0", "3.0.0", "2.15.0-RC.1"] {
            assert!(is_new_enough(good), "{good}");
        }
        for bad in ["2.14.9", "2.9.0", "1.99.0", "", "x"] {
            assert!(!is_new_enough(bad), "{bad}");
        }
    }

    #[test]
    fn a_wrong_setting_is_named_with_what_it_should_be() {
        let prefix = Prefix::default();
        let config = |change: &[(&str, Value)]| {
            let mut config = settings(&prefix);
            // As the server leaves them out.
            config.retain(|_, value| !value.is_null() && *value != false);
            config.insert("num_replicas".into(), 3.into());
            config.extend(change.iter().map(|(name, value)| (name.to_string(), value.clone())));
            Value::Object(config)
        };
        check_settings(&prefix, &config(&[]), 3).unwrap();
        check_settings(&prefix, &config(&[("num_replicas", 5.into()), ("description", "ours".into())]), 3).unwrap();
        for (setting, value) in [
            ("storage", json!("memory")),
            ("num_replicas", json!(1)),
            ("max_age", json!(1)),
            ("max_msgs", json!(1_000)),
            ("discard", json!("old")),
            ("deny_delete", json!(false)),
            ("deny_purge", Value::Null),
            ("allow_direct", json!(false)),
            ("allow_msg_ttl", json!(true)),
            ("republish", Value::Null),
            ("subjects", json!(["souk.j.>", "more"])),
            ("persist_mode", json!("async")),
            ("mirror", json!({"name": "x"})),
        ] {
            let said = check_settings(&prefix, &config(&[(setting, value)]), 3).unwrap_err().to_string();
            assert!(said.contains(setting) && said.contains("souk-journal"), "{said}");
        }
    }
}
