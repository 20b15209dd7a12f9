//! What accounts rest on: passwords, keys, tokens and seals. Nothing here knows a route or an entity.
//!
//! - `passwords` hashes and verifies on threads of its own; `guesses` makes whoever guesses wait ever longer.
//! - `keys` keeps the keys that sign access tokens; `tokens` signs, verifies and revokes them.
//! - `secret` is the installation's own, for ids made of e-mails; `seals` encrypts personal data under a key for each
//!   user, and destroys it.
//! - `keystore` is where all of these lie: a folder, or a bucket that the nodes of a cluster share; `private_file` writes
//!   what only this user of the machine may read.
//!
//! No password, key, token or opened seal may be logged, put into an error or shown by `Debug`. Time is handed in.

pub mod guesses;
pub mod keys;
pub mod keystore;
pub mod passwords;
mod private_file;
pub mod seals;
pub mod secret;
pub mod tokens;

use std::path::Path;
use std::sync::Arc;

use guesses::Guesses;
use keys::{Keys, KeysError};
use keystore::{Keystore, KeystoreError};
use passwords::{PasswordError, Passwords};
use seals::Vault;
use secret::{Secret, SecretError};
use tokens::{SignError, Subject, Tokens};

use crate::actors::credential::OPERATOR;
use crate::domain::Timestamp;

/// All of it, as one node has it.
pub struct Identity {
    pub secret: Secret,
    pub tokens: Tokens,
    pub passwords: Passwords,
    pub guesses: Guesses,
    pub vault: Vault,
}

/// Who issues access tokens, and for whom: the shops of one installation, and its API.
const ISSUER: &str = "souk";
const AUDIENCE: &str = "souk";

/// Why an identity cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
    #[error(transparent)]
    Passwords(#[from] PasswordError),
    #[error(transparent)]
    Token(#[from] SignError),
}

impl Identity {
    /// Reads or makes the secret, and starts the threads that hash.
    pub async fn open(keys: Keys, store: Arc<dyn Keystore>) -> Result<Self, IdentityError> {
        let secret = Secret::open(&*store, store.has_vault().await?).await?;
        Identity::with(secret, keys, store)
    }

    /// The same over a keystore that nodes share, whose keys sign unless one is given. `has_accounts`: whether there may be
    /// any, as far as the caller knows; then the secret must be there.
    pub async fn open_shared(
        store: Arc<dyn Keystore>,
        given: Option<&Path>,
        has_accounts: bool,
        now: Timestamp,
    ) -> Result<Self, IdentityError> {
        // Before any key: nothing is made where something was lost.
        let secret = Secret::open(&*store, has_accounts || store.has_vault().await?).await?;
        let keys = match given {
            Some(file) => Keys::given(file, now)?,
            None => Keys::shared(Arc::clone(&store), now).await?,
        };
        Identity::with(secret, keys, store)
    }

    fn with(secret: Secret, keys: Keys, store: Arc<dyn Keystore>) -> Result<Self, IdentityError> {
        let (keys, vault) = (Arc::new(keys), Vault::new(store));
        Keys::follow(&keys);
        vault.listen();
        Ok(Identity {
            secret,
            tokens: Tokens::new(keys, ISSUER, AUDIENCE),
            passwords: Passwords::start()?,
            guesses: Guesses::default(),
            vault,
        })
    }

    /// The id of the entity that holds an e-mail address, which comes in its one normal form.
    pub fn email_id(&self, normalised_email: &str) -> String {
        self.secret.email_id(normalised_email)
    }
}

/// A token for whoever operates a node from its own machine: to read its signing key is to be allowed anything.
pub fn operators_token(keys: Keys, now: Timestamp) -> Result<String, SignError> {
    let subject =
        Subject { user: OPERATOR.to_owned(), session: OPERATOR.to_owned(), roles: vec!["admin".to_owned()], shop: None };
    Ok(Tokens::new(Arc::new(keys), ISSUER, AUDIENCE).sign(&subject, now)?.token)
}

/// The system's source of randomness failed; nothing secret can be made.
#[derive(Debug, thiserror::Error)]
#[error("the system gave no random bytes: {0}")]
pub struct NoRandomness(getrandom::Error);

fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(NoRandomness)?;
    Ok(bytes)
}
