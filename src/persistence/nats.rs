//! How a node reaches NATS: addresses, who it is, TLS, and under which prefix its shop lives.
//!
//! The connection comes back by itself for as long as the node runs. Nothing here may wait without an end: a server that
//! cannot be reached at the start is an error with its reason, one that is lost later is tried again with a growing,
//! jittered wait.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use tokio::sync::watch;

/// A first connection that takes longer is an error.
const CONNECT_MS: u64 = 5_000;
/// A server that is silent for about three of these is given up and another one asked.
const PING_MS: u64 = 1_000;
const RECONNECT_FIRST_MS: u64 = 20;
const RECONNECT_LAST_MS: u64 = 2_000;
/// Commands that wait for the socket; whoever comes later waits in turn.
const OUTGOING_MAX: usize = 16_384;
/// Messages that wait for their subscriber; what comes later is dropped and seen as a gap.
const INCOMING_MAX: usize = 65_536;
const PREFIX_MAX_BYTES: usize = 32;

/// What all streams, buckets and subjects of one shop begin with, so that shops may share an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(Arc<str>);

impl Prefix {
    pub fn new(prefix: &str) -> Result<Prefix, NatsError> {
        let sound = (1..=PREFIX_MAX_BYTES).contains(&prefix.len())
            && prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        if sound { Ok(Prefix(prefix.into())) } else { Err(NatsError::Prefix { prefix: prefix.into() }) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Prefix("souk".into())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who the node is to the server.
#[derive(Clone, Default)]
pub enum Login {
    #[default]
    Nobody,
    /// A `.creds` file: a user's token and its key.
    Credentials(PathBuf),
    Password {
        user: String,
        password: String,
    },
    Token(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Login::Nobody => f.write_str("Nobody"),
            Login::Credentials(file) => write!(f, "Credentials({})", file.display()),
            Login::Password { user, .. } => write!(f, "Password({user}, …)"),
            Login::Token(_) => f.write_str("Token(…)"),
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Refuse to speak without TLS, whatever the address says.
    pub required: bool,
    /// Certificates to be trusted instead of the system's.
    pub authorities: Option<PathBuf>,
    /// The node's own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, Clone, Default)]
pub struct NatsOptions {
    /// `nats://host:port` or `tls://host:port`; any of them will do.
    pub urls: Vec<String>,
    pub login: Login,
    pub tls: Tls,
    pub prefix: Prefix,
    /// How the server's operator sees this connection.
    pub name: String,
}

#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    #[error("the NATS prefix {prefix:?} is not 1 to 32 of A–Z, a–z, 0–9, _ and -")]
    Prefix { prefix: String },
    #[error("no address of a NATS server was given")]
    NoAddress,
    #[error("{url:?} is not the address of a NATS server: {why}")]
    Address { url: String, why: String },
    #[error("{}: {why}", file.display())]
    File { file: PathBuf, why: String },
    #[error("NATS at {urls}: {why}")]
    Connect { urls: String, why: String },
}

/// A connection to NATS that outlives its sockets.
#[derive(Clone)]
pub struct Nats {
    client: Client,
    prefix: Prefix,
    connections: watch::Receiver<u64>,
}

impl Nats {
    pub async fn connect(options: &NatsOptions) -> Result<Nats, NatsError> {
        let addresses = addresses(&options.urls)?;
        for file in options.files() {
            // The client would say what failed, and not for which file.
            if let Err(error) = tokio::fs::metadata(file).await {
                return Err(NatsError::File { file: file.clone(), why: error.to_string() });
            }
        }
        let (connected, connections) = watch::channel(0);
        let connected = Arc::new(connected);
        let jitter = Mutex::new(fastrand::Rng::new());
        let mut client = ConnectOptions::new()
            .name(&options.name)
            .connection_timeout(Duration::from_millis(CONNECT_MS))
            .ping_interval(Duration::from_millis(PING_MS))
            .client_capacity(OUTGOING_MAX)
            .subscription_capacity(INCOMING_MAX)
            .max_reconnects(None)
            .reconnect_delay_callback(move |attempts| {
                let mut jitter = jitter.lock().unwrap_or_else(PoisonError::into_inner);
                Duration::from_millis(reconnect_ms(attempts, &mut jitter))
            })
            .event_callback(move |event| {
                let connected = connected.clone();
                async move {
                    match event {
                        Event::Connected => connected.send_modify(|count| *count += 1),
                        Event::SlowConsumer(_) => tracing::debug!("messages from NATS were dropped: a subscriber is behind"),
                        // As it was told to.
                        Event::Closed => tracing::debug!("the connection to NATS is closed"),
                        event => tracing::warn!(%event, "the connection to NATS"),
                    }
                }
            });
        client = match &options.login {
            Login::Nobody => client,
            Login::Token(token) => client.token(token.clone()),
            Login::Password { user, password } => client.user_and_password(user.clone(), password.clone()),
            Login::Credentials(file) => {
                let failed = |error: std::io::Error| NatsError::File { file: file.clone(), why: error.to_string() };
                client.credentials_file(file).await.map_err(failed)?
            }
        };
        if options.tls.required {
            client = client.require_tls(true);
        }
        if let Some(file) = &options.tls.authorities {
            client = client.add_root_certificates(file.clone());
        }
        if let Some((certificate, key)) = &options.tls.identity {
            client = client.add_client_certificate(certificate.clone(), key.clone());
        }
        let failed = |why: String| NatsError::Connect { urls: options.urls.join(", "), why };
        // The client's own bound is for each address.
        let limit = Duration::from_millis(CONNECT_MS).saturating_mul(addresses.len() as u32);
        match tokio::time::timeout(limit, client.connect(addresses)).await {
            Ok(Ok(client)) => Ok(Nats { client, prefix: options.prefix.clone(), connections }),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("no answer within {} ms", limit.as_millis()))),
        }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// Counts the connections that were made; it changes when one was lost and is back.
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.connections.clone()
    }

    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }
}

impl NatsOptions {
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let login = match &self.login {
            Login::Credentials(file) => Some(file),
            _ => None,
        };
        let identity = self.tls.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        login.into_iter().chain(&self.tls.authorities).chain(identity)
    }
}

fn addresses(urls: &[String]) -> Result<Vec<ServerAddr>, NatsError> {
    if urls.is_empty() {
        return Err(NatsError::NoAddress);
    }
    let parse =
        |url: &String| url.parse::<ServerAddr>().map_err(|error| NatsError::Address { url: url.clone(), why: error.to_string() });
    urls.iter().map(parse).collect()
}

/// Doubles with each attempt; anything from half of it to all of it, so that nodes do not come back in step.
fn reconnect_ms(attempts: usize, jitter: &mut fastrand::Rng) -> u64 {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let full = (RECONNECT_FIRST_MS << doublings).min(RECONNECT_LAST_MS);
    jitter.u64(full / 2..=full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_one_plain_token() {
        for good in ["souk", "Shop_2-b", &"x".repeat(32)] {
            assert_eq!(Prefix::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a.b", "a b", "ü", "*", ">", &"x".repeat(33)] {
            assert!(Prefix::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_wait_before_a_reconnection_grows_to_its_bound() {
        let mut jitter = fastrand::Rng::with_seed(1);
        for (attempts, full) in [(0, 20), (1, 20), (2, 40), (5, 320), (8, 2_000), (1_000_000, 2_000)] {
            for _ in 0..100 {
                let wait = reconnect_ms(attempts, &mut jitter);
                assert!((full / 2..=full).contains(&wait), "{attempts}: {wait}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_connection_is_said() {
        let options = |urls: &[&str]| NatsOptions { urls: urls.iter().map(ToString::to_string).collect(), ..Default::default() };
        let said = async |options: NatsOptions| match Nats::connect(&options).await {
            Ok(_) => panic!("it connected"),
            Err(error) => error.to_string(),
        };
        assert!(said(options(&[])).await.contains("no address"));
        assert!(said(options(&["nats://a b"])).await.contains("nats://a b"));
        // Nobody listens on a port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("nats://127.0.0.1:{port}");
        let refused = said(options(&[&url])).await;
        assert!(refused.contains(&url), "{refused}");
        let file = PathBuf::from("/nowhere/node.creds");
        let missing = said(NatsOptions { login: Login::Credentials(file), ..options(&[&url]) }).await;
        assert!(missing.contains("/nowhere/node.creds"), "{missing}");
        let hidden = Login::Password { user: "u".into(), password: "geheim".into() };
        assert!(!format!("{hidden:?} {:?}", Login::Token("geheim".into())).contains("geheim"));
    }
}
