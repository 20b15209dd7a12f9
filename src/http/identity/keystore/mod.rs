//! Where an installation keeps what is secret: its own secret, the keys that sign, and the vault's keys.
//!
//! A node of its own has a folder, the nodes of a cluster share a bucket. Both give the same few promises:
//!
//! - What is created is there whole and durably, or not at all. Of any number who create one name at the same moment, on
//!   any number of nodes, one is first, and the others read what it wrote.
//! - Nothing is ever written over.
//! - What is destroyed is read no more once `destroy` has returned. In a bucket its name is spent for good; in a folder,
//!   whose one node knows what it does, it may be taken again.
//!
//! No value may be logged, put into an error or shown by `Debug`.

pub mod folder;
pub mod shared;
pub mod wrapping;

use std::io;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use zeroize::Zeroizing;

use super::NoRandomness;
use crate::persistence::bucket::BucketError;

pub use folder::Folder;
pub use shared::SharedKeystore;

/// Nothing that is kept is longer.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;

pub type Value = Zeroizing<Vec<u8>>;

/// What may be kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// The installation's own.
    Secret,
    /// Which signing key was the first: whoever writes this makes that key.
    FirstSigningKey,
    /// A key that signs access tokens, by its id, which is a ULID.
    SigningKey(String),
    /// A key of the vault, by the digest of whose it is.
    VaultKey([u8; 32]),
}

#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    #[error("{place}: {source}")]
    File { place: String, source: io::Error },
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// 503: whether it was done is unknown.
    #[error("the shared keys cannot be reached: {0}")]
    Unreachable(String),
    #[error("the shared keys refuse it: {0}")]
    Refused(String),
    #[error("{place} is sealed, and not by the given --identity-key")]
    Sealed { place: String },
    #[error("{place} is not sealed, though an --identity-key is given")]
    NotSealed { place: String },
    #[error("{place} is not what was written")]
    Damaged { place: String },
    #[error("{} holds no 64 hex digits (`openssl rand -hex 32` makes them)", path.display())]
    NotAWrappingKey { path: std::path::PathBuf },
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// See the module. Every wait ends by itself.
pub trait Keystore: Send + Sync + 'static {
    /// `None` when there is none, or it was destroyed.
    fn get<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<Option<Value>, KeystoreError>>;

    /// `false` when the name is taken, or spent. After an error it may have been created all the same.
    fn create<'a>(&'a self, name: &'a Name, value: &'a [u8]) -> BoxFuture<'a, Result<bool, KeystoreError>>;

    /// The ids of all signing keys, the oldest first.
    fn signing_keys(&self) -> BoxFuture<'_, Result<Vec<String>, KeystoreError>>;

    /// Whether there ever was a vault here.
    fn has_vault(&self) -> BoxFuture<'_, Result<bool, KeystoreError>>;

    /// Whether there was one. After an error, ask again: it may be half done.
    fn destroy<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<bool, KeystoreError>>;

    /// What is changed, as far as it is heard at once: some may be missed. Ends where nothing is ever heard.
    fn changes(&self) -> BoxStream<'static, Name>;

    /// Where a value lies, for a person.
    fn place(&self, name: &Name) -> String;
}
