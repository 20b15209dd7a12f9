//! How the command line says where NATS is, and what is demanded of it.

use std::path::PathBuf;

use clap::Args;

use super::jetstream::Demands;
use super::nats::{Login, NatsError, NatsOptions, Prefix, Tls};

// No doc comment: clap would take it for the command's.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "NATS")]
pub struct NatsArgs {
    /// The NATS servers that hold the shop of a cluster, as nats://host:port or tls://host:port, with commas between
    /// them; any one that answers will do
    #[arg(long, value_name = "URL", value_delimiter = ',', env = "SOUK_NATS")]
    nats: Vec<String>,

    /// What the names of this shop's streams, buckets and subjects begin with, so that several shops can share an account
    #[arg(long, value_name = "NAME", default_value = "souk", env = "SOUK_NATS_PREFIX")]
    nats_prefix: String,

    /// Log in with a credentials file
    #[arg(long, value_name = "FILE", env = "SOUK_NATS_CREDS", conflicts_with_all = ["nats_user", "nats_token"])]
    nats_creds: Option<PathBuf>,

    /// Log in as this user
    #[arg(long, value_name = "NAME", env = "SOUK_NATS_USER", requires = "nats_password", conflicts_with = "nats_token")]
    nats_user: Option<String>,

    /// With this password; better given as SOUK_NATS_PASSWORD, which other users of the machine do not see
    #[arg(long, value_name = "PASSWORD", env = "SOUK_NATS_PASSWORD", hide_env_values = true, requires = "nats_user")]
    nats_password: Option<String>,

    /// Log in with a token; better given as SOUK_NATS_TOKEN
    #[arg(long, value_name = "TOKEN", env = "SOUK_NATS_TOKEN", hide_env_values = true)]
    nats_token: Option<String>,

    /// Speak TLS, with servers whose certificates come from this authority, as PEM; without it from the system's
    #[arg(long, value_name = "FILE", env = "SOUK_NATS_CA")]
    nats_ca: Option<PathBuf>,

    /// Show the servers this certificate, as PEM
    #[arg(long, value_name = "FILE", env = "SOUK_NATS_CERT", requires = "nats_key")]
    nats_cert: Option<PathBuf>,

    /// The private key of that certificate
    #[arg(long, value_name = "FILE", env = "SOUK_NATS_KEY", requires = "nats_cert")]
    nats_key: Option<PathBuf>,
}

impl NatsArgs {
    pub fn is_given(&self) -> bool {
        !self.nats.is_empty()
    }

    /// `name`: how the servers' operator sees this connection.
    pub fn options(&self, name: &str) -> Result<NatsOptions, NatsError> {
        let login = match (&self.nats_creds, &self.nats_user, &self.nats_password, &self.nats_token) {
            (Some(file), ..) => Login::Credentials(file.clone()),
            (_, Some(user), Some(password), _) => Login::Password { user: user.clone(), password: password.clone() },
            (.., Some(token)) => Login::Token(token.clone()),
            _ => Login::Nobody,
        };
        let identity = self.nats_cert.clone().zip(self.nats_key.clone());
        let tls = Tls { required: self.nats_ca.is_some() || identity.is_some(), authorities: self.nats_ca.clone(), identity };
        Ok(NatsOptions { urls: self.nats.clone(), login, tls, prefix: Prefix::new(&self.nats_prefix)?, name: name.to_owned() })
    }
}

// No doc comment: clap would take it for the command's.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "NATS")]
pub struct DemandArgs {
    /// Servers that are to hold each batch, when the streams are made; without it 3, or all if they are fewer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=5), env = "SOUK_REPLICAS")]
    replicas: Option<u8>,

    /// Where each server's monitoring page is, as http://host:port: a node does not start on servers of which it cannot
    /// learn whether they flush before they acknowledge
    #[arg(id = "nats_monitor", long = "nats-monitor", value_name = "URL", value_delimiter = ',', env = "SOUK_NATS_MONITOR")]
    monitors: Vec<String>,

    /// Or a credentials file of the system account, which says the same of all servers
    #[arg(id = "nats_system_creds", long = "nats-system-creds", value_name = "FILE", env = "SOUK_NATS_SYSTEM_CREDS")]
    system: Option<PathBuf>,

    /// Take servers older than 2.15
    #[arg(long, env = "SOUK_ALLOW_OLD_SERVER")]
    allow_old_server: bool,

    /// Take servers that acknowledge before they flush: a power failure of all of them loses what was acknowledged last
    #[arg(long, env = "SOUK_ALLOW_LAZY_SYNC")]
    allow_lazy_sync: bool,

    /// Take fewer than three replicas: a lost disk may be a lost shop
    #[arg(long, env = "SOUK_ALLOW_SINGLE_REPLICA")]
    allow_single_replica: bool,
}

impl DemandArgs {
    pub fn demands(&self) -> Demands {
        Demands {
            replicas: self.replicas.map(usize::from),
            allow_old_server: self.allow_old_server,
            allow_lazy_sync: self.allow_lazy_sync,
            allow_single_replica: self.allow_single_replica,
            monitors: self.monitors.clone(),
            system: self.system.clone().map(Login::Credentials),
        }
    }
}
