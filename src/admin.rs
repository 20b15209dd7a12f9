//! What an operator does from a node's own machine: the first admin, and tokens for scripts.
//!
//! Whoever can read the signing key, of a data folder or of a cluster, may do anything anyhow; here that becomes a token,
//! and never a default password. A running node is asked over HTTP, a stopped one is opened here.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use ulid::Ulid;

use crate::actors::clock::Clock;
use crate::actors::credential::OPERATOR;
use crate::actors::{self, Caller};
use crate::domain::time::{MINUTE_MS, SECOND_MS};
use crate::domain::user::{Command, Role};
use crate::domain::{CommandId, Timestamp, User, ids};
use crate::http::identity::keys::Keys;
use crate::http::identity::keystore::wrapping::WrappingKey;
use crate::http::identity::keystore::{Keystore, SharedKeystore};
use crate::http::identity::operators_token;
use crate::http::identity::seals::{HELD_MS, Vault};
use crate::http::sealing::GUESTS_PREFIX;
use crate::http::users::{self, NewAccount};
use crate::integrations::http_client::{Client, Limits, Origin, percent_encoded};
use crate::node::{DataFolder, Node, NodeError};
use crate::persistence::nats::Nats;
use crate::persistence::nats_args::NatsArgs;
use crate::persistence::{OpenError, Options};

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Random bytes of a password that is made here.
const PASSWORD_BYTES: usize = 15;
const DAY_MS: i64 = 24 * 60 * MINUTE_MS;
/// Older days are taken for forgotten.
const FORGOTTEN_DAYS_MAX: i64 = 3_660;
const CLOSE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Make an admin's account or a token for a script, or forget guests
#[derive(Args)]
#[command(after_help = "\
Examples:
  souk admin create --email ada@example.com --name Ada
  SOUK_ADMIN_PASSWORD=… souk admin create --email ada@example.com
  souk admin forget-guests --before 2026-01-01
  souk admin create --email ada@example.com --nats nats://127.0.0.1:4222 --url http://127.0.0.1:8080
  curl -H \"Authorization: Bearer $(souk admin token)\" http://127.0.0.1:8080/api/cluster")]
pub struct AdminArgs {
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Subcommand)]
enum AdminCommand {
    /// Make an account that is an admin, or an admin of an account
    Create(CreateArgs),
    /// Print an access token with every permission, good for 15 minutes
    Token(SigningArgs),
    /// Destroy the keys of what guests said before a day, so that nobody can read it any more
    ForgetGuests(ForgetArgs),
}

#[derive(Args)]
struct ForgetArgs {
    /// The first day (UTC) that is kept, as 2026-01-01
    #[arg(long, value_name = "DATE", value_parser = day)]
    before: Timestamp,

    #[command(flatten)]
    keystore: KeystoreArgs,
}

fn day(text: &str) -> Result<Timestamp, &'static str> {
    Timestamp::parse(&format!("{text}T00:00:00Z")).ok_or("expected a day as 2026-01-01")
}

impl ForgetArgs {
    async fn run(self) -> Result<(), Failed> {
        let vault = Vault::new(self.keystore.open().await?);
        let mut forgotten = 0;
        for days in 1..=FORGOTTEN_DAYS_MAX {
            let key = format!("{GUESTS_PREFIX}{}", self.before.plus_ms(-days * DAY_MS).date());
            if vault.has_key(&key).await? && vault.destroy(&key).await? {
                forgotten += 1;
            }
        }
        let seconds = HELD_MS / SECOND_MS.unsigned_abs();
        println!("{forgotten} days of guests are forgotten. A running node may have their keys in memory for {seconds} seconds.");
        Ok(())
    }
}

#[derive(Args)]
struct CreateArgs {
    /// The e-mail address to log in with; an account that has it already becomes an admin
    #[arg(long)]
    email: String,

    /// How the account's holder is called
    #[arg(long, default_value = "Admin")]
    name: String,

    /// Read the password from standard input; without it SOUK_ADMIN_PASSWORD counts, else one is made and printed
    #[arg(long)]
    password_stdin: bool,

    /// A node of the cluster; without it the one that runs on the data folder is asked
    #[arg(long, value_name = "URL", requires = "nats")]
    url: Option<String>,

    #[command(flatten)]
    signing: SigningArgs,
}

// No doc comment: clap would take it for the command's.
#[derive(Args)]
pub struct KeystoreArgs {
    /// The data folder of the node, running or stopped
    #[arg(long, value_name = "FOLDER", default_value = "./data", env = "SOUK_DATA")]
    data: PathBuf,

    /// The key that seals what the nodes of a cluster share, 64 hex digits, if they were given one
    #[arg(long, value_name = "FILE", env = "SOUK_IDENTITY_KEY")]
    identity_key: Option<PathBuf>,

    #[command(flatten)]
    nats: NatsArgs,
}

impl KeystoreArgs {
    /// The cluster's keystore, if one is named, else the data folder's. Neither is made.
    pub async fn open(&self) -> Result<Arc<dyn Keystore>, Failed> {
        match self.shared().await? {
            Some(shared) => Ok(Arc::new(shared)),
            None => Ok(self.folder()?.keystore()),
        }
    }

    /// Of a node that is alone, and has its keys there.
    fn folder(&self) -> Result<DataFolder, NodeError> {
        let folder = DataFolder::existing(&self.data)?;
        folder.is_alone()?;
        Ok(folder)
    }

    async fn shared(&self) -> Result<Option<SharedKeystore>, Failed> {
        if !self.nats.is_given() {
            return Ok(None);
        }
        let wrapping = self.identity_key.as_deref().map(WrappingKey::read).transpose()?;
        let nats = Nats::connect(&self.nats.options("souk admin")?).await?;
        Ok(Some(SharedKeystore::open_existing(nats.client(), nats.prefix().as_str(), wrapping).await?))
    }

    /// The keys that sign: the cluster's, else the folder's.
    pub async fn signing_keys(&self) -> Result<Keys, Failed> {
        let now = Clock::default().now();
        match self.shared().await? {
            Some(shared) => Ok(Keys::shared_existing(Arc::new(shared), now).await?),
            None => Ok(Keys::open_existing(&self.folder()?.keys(), now)?),
        }
    }
}

// No doc comment: clap would take it for the command's.
#[derive(Args)]
pub struct SigningArgs {
    /// The key that signs access tokens, when it is neither the data folder's nor the cluster's own
    #[arg(long, value_name = "FILE", env = "SOUK_SIGNING_KEY")]
    signing_key: Option<PathBuf>,

    #[command(flatten)]
    keystore: KeystoreArgs,
}

impl SigningArgs {
    /// A token with every permission.
    pub async fn token(&self) -> Result<String, Failed> {
        let now = Clock::default().now();
        let keys = match &self.signing_key {
            Some(file) => Keys::given(file, now)?,
            None if self.keystore.nats.is_given() => self.keystore.signing_keys().await?,
            None => self.keystore.folder()?.signing_keys(None)?,
        };
        Ok(operators_token(keys, now)?)
    }

    pub fn names_cluster(&self) -> bool {
        self.keystore.nats.is_given()
    }

    pub fn data(&self) -> &Path {
        &self.keystore.data
    }

    /// A client of the node at this address, or of the one that runs on the data folder, with every permission.
    pub async fn node_of_cluster(&self, url: Option<&str>) -> Result<Client, Failed> {
        let token = self.token().await?;
        let client = match url {
            Some(url) => Some(Client::new(Origin::parse(url)?, Limits::default()).with_token(&token)?),
            None => running_node(&DataFolder::existing(self.data())?, &token)?,
        };
        Ok(client.ok_or("--url: which node of the cluster is to be asked?")?)
    }
}

impl AdminArgs {
    pub async fn run(self) -> Result<(), Failed> {
        match self.command {
            AdminCommand::Token(signing) => println!("{}", signing.token().await?),
            AdminCommand::Create(args) => args.run().await?,
            AdminCommand::ForgetGuests(args) => args.run().await?,
        }
        Ok(())
    }
}

/// A client of the node that runs on this data folder, with every permission. `None` when none does.
pub fn running_node(folder: &DataFolder, token: &str) -> Result<Option<Client>, Failed> {
    match fs::read_to_string(folder.address()) {
        Ok(address) if address.starts_with("https:") => {
            Err(format!("the node at {} speaks TLS, which is not spoken here: stop it first", address.trim()).into())
        }
        Ok(address) => Ok(Some(Client::new(Origin::parse(address.trim())?, Limits::default()).with_token(token)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl CreateArgs {
    /// The password, and whether it was made here.
    fn password(&self) -> Result<(String, bool), Failed> {
        if self.password_stdin {
            let mut password = String::new();
            io::stdin().take(1024).read_to_string(&mut password)?;
            return Ok((password.trim_end_matches(['\r', '\n']).to_owned(), false));
        }
        if let Ok(password) = std::env::var("SOUK_ADMIN_PASSWORD") {
            return Ok((password, false));
        }
        let mut bytes = [0_u8; PASSWORD_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
        Ok((actors::credential::hex(&bytes), true))
    }

    async fn run(self) -> Result<(), Failed> {
        let (password, made) = self.password()?;
        let SigningArgs { keystore, signing_key } = &self.signing;
        let existed = match keystore.nats.is_given() {
            true => self.in_running(self.signing.node_of_cluster(self.url.as_deref()).await?, &password).await?,
            false => self.in_folder(&keystore.data, signing_key.as_deref(), &password).await?,
        };
        match (existed, made) {
            (true, _) => println!("The account {} is an admin now; its password is what it was.", self.email),
            (false, true) => println!("The admin {} can log in with the password {password}", self.email),
            (false, false) => println!("The admin {} can log in.", self.email),
        }
        Ok(())
    }

    /// Whether the account existed.
    async fn in_folder(&self, data: &Path, signing_key: Option<&Path>, password: &str) -> Result<bool, Failed> {
        let folder = DataFolder::open(data)?;
        match Node::open(&folder, signing_key, Options::default(), actors::Config::default()).await {
            Ok(node) => {
                let created = self.in_stopped(&node, password).await;
                node.close(CLOSE_TIMEOUT).await;
                created
            }
            Err(NodeError::Journal(OpenError::InUse { .. })) => match running_node(&folder, &self.signing.token().await?)? {
                Some(client) => self.in_running(client, password).await,
                None => {
                    Err("the data folder is in use by a process that is not serving (an import?): try again when it is done"
                        .into())
                }
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the account existed.
    async fn in_stopped(&self, node: &Node, password: &str) -> Result<bool, Failed> {
        let Some(email) = users::Email::parse(&self.email) else {
            return Err("--email: this cannot be an e-mail address".into());
        };
        let email_id = node.identity.email_id(email.normal());
        let holder = node.runtime.view::<crate::domain::Email, _>(&email_id, |state, _| state.holder.clone()).await?;
        let caller = || Caller::new(CommandId(format!("admin:{}", Ulid::new())), OPERATOR, "souk admin create");
        let existed = holder.is_some();
        let user = match holder {
            Some(holder) => holder.user,
            None => {
                let user = format!("{}_{}", ids::USER, Ulid::new());
                let new = NewAccount { email: self.email.clone(), password: password.to_owned().into(), name: self.name.clone() };
                let made = users::register(&node.runtime, &node.identity, &user, new, caller()).await;
                made.map_err(|problem| problem.to_string())?;
                user
            }
        };
        node.runtime.ask::<User>(&user, Command::GrantRole { role: Role::Admin }, caller()).await?;
        Ok(existed)
    }

    /// Whether the account existed.
    async fn in_running(&self, mut client: Client, password: &str) -> Result<bool, Failed> {
        let body = serde_json::to_vec(&json!({ "email": self.email, "password": password, "name": self.name }))?;
        let made = client.post("/api/users", &[], body.into()).await?;
        let existed = match made.status.as_u16() {
            201 => false,
            409 => true,
            _ => return Err(told(&made.body).into()),
        };
        let found = client.get(&format!("/api/users?email={}", percent_encoded(&self.email)), &[]).await?;
        let user: Value = serde_json::from_slice(&found.body)?;
        let Some(user) = user.get("id").and_then(Value::as_str) else { return Err(told(&found.body).into()) };
        let body = serde_json::to_vec(&json!({ "role": "admin" }))?;
        let granted = client.post(&format!("/api/users/{user}/roles"), &[], body.into()).await?;
        if granted.status.is_success() { Ok(existed) } else { Err(told(&granted.body).into()) }
    }
}

/// What a problem says, for a person.
fn told(body: &[u8]) -> String {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let errors = problem.get("errors").and_then(Value::as_array).into_iter().flatten();
    let errors = errors.filter_map(|error| {
        Some(format!("{}: {}", error.get("pointer")?.as_str()?.trim_start_matches('/'), error.get("message")?.as_str()?))
    });
    let errors: Vec<String> = errors.collect();
    match (errors.is_empty(), problem.get("title").and_then(Value::as_str)) {
        (false, _) => errors.join("; "),
        (true, Some(title)) => title.to_owned(),
        (true, None) => String::from_utf8_lossy(body).into_owned(),
    }
}
