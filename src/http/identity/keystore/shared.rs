//! The keystore that the nodes of a cluster share: a bucket of NATS.
//!
//! A key's first value is written on condition that it has none, so one of any number of writers is first. What is
//! destroyed goes in two steps, each of which may be repeated: the message is erased, and then a mark is written in its
//! place on the same condition, which spends the name. Should somebody create the key anew in between, the mark is
//! refused, and destroying begins again.
//!
//! All reads are the stream leader's word: what a slow replica says of a key that was just destroyed is not believed. A
//! server that was deposed as leader and does not know it yet still answers for some seconds, as of the time before: so
//! nothing may be concluded from what it says that would be wrong for longer than that.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};

use super::folder::unhex;
use super::wrapping::{WrappingKey, unwrap, wrap};
use super::{Keystore, KeystoreError, Name, VALUE_BYTES_MAX, Value};
use crate::actors::credential::hex;
use crate::persistence::bucket::{Bucket, BucketError, BucketOptions};

const SECRET: &str = "secret";
const FIRST: &str = "first-signing-key";
const SIGNING_KEYS: &str = "keys";
const VAULT: &str = "vault";
/// The mark of what was destroyed, as NATS's own tools know it.
const OPERATION: &str = "KV-Operation";
const PURGED: &str = "PURGE";
/// Whoever is in the way of a destruction (somebody who makes the key anew, a leader that is none any more) may be so for
/// that many tries.
const DESTROY_TRIES: u32 = 7;
/// The first pause between two of them; each is twice the one before.
const DESTROY_PAUSE_MS: u64 = 50;
const LISTEN_PAUSE_MS: u64 = 1_000;

pub struct SharedKeystore {
    bucket: Arc<Bucket>,
    options: BucketOptions,
    wrapping: Option<WrappingKey>,
}

impl SharedKeystore {
    /// Opens the keystore of the shop with this prefix, making its bucket if there is none.
    pub async fn open(
        client: &Client,
        prefix: &str,
        replicas: usize,
        wrapping: Option<WrappingKey>,
    ) -> Result<Self, KeystoreError> {
        let options = options(prefix, replicas);
        let bucket = Arc::new(Bucket::open(client, &options).await?);
        Ok(SharedKeystore { bucket, options, wrapping })
    }

    /// The same for an operator, who finds what the nodes made.
    pub async fn open_existing(client: &Client, prefix: &str, wrapping: Option<WrappingKey>) -> Result<Self, KeystoreError> {
        let options = options(prefix, 1);
        let bucket = Arc::new(Bucket::open_existing(client, &options).await?);
        Ok(SharedKeystore { bucket, options, wrapping })
    }
}

fn options(prefix: &str, replicas: usize) -> BucketOptions {
    BucketOptions {
        name: format!("{prefix}-identity"),
        description: "Souk: signing keys, secret and vault. Whoever reads this may do anything.".to_owned(),
        replicas,
        glances: false,
        notices: Some(format!("{prefix}.i")),
    }
}

fn key_of(name: &Name) -> String {
    match name {
        Name::Secret => SECRET.to_owned(),
        Name::FirstSigningKey => FIRST.to_owned(),
        Name::SigningKey(kid) => format!("{SIGNING_KEYS}.{kid}"),
        Name::VaultKey(digest) => format!("{VAULT}.{}", hex(digest)),
    }
}

fn name_of(key: &str) -> Option<Name> {
    match key.split_once('.') {
        None if key == SECRET => Some(Name::Secret),
        None if key == FIRST => Some(Name::FirstSigningKey),
        Some((SIGNING_KEYS, kid)) => Some(Name::SigningKey(kid.to_owned())),
        Some((VAULT, digest)) => unhex(digest).map(Name::VaultKey),
        _ => None,
    }
}

/// Whether it says that something was destroyed: here, or by a tool of NATS.
fn is_mark(headers: &HeaderMap) -> bool {
    headers.get(OPERATION).is_some()
}

fn failed(error: BucketError) -> KeystoreError {
    match error.is_transient() {
        true => KeystoreError::Unreachable(error.to_string()),
        false => KeystoreError::Bucket(error),
    }
}

impl SharedKeystore {
    async fn destroy_key(&self, key: &str) -> Result<bool, KeystoreError> {
        let mut existed = false;
        for tried in 0..DESTROY_TRIES {
            if tried > 0 {
                let pause = DESTROY_PAUSE_MS << tried;
                tokio::time::sleep(Duration::from_millis(pause / 2 + fastrand::u64(..=pause / 2))).await;
            }
            match self.bucket.newest(key).await.map_err(failed)? {
                Some(found) if is_mark(&found.headers) => return Ok(existed),
                Some(found) => {
                    existed = true;
                    self.bucket.erase(found.sequence).await.map_err(failed)?;
                }
                None => {}
            }
            let mut mark = HeaderMap::new();
            mark.insert(OPERATION, PURGED);
            if self.bucket.create(key, mark, Bytes::new()).await.map_err(failed)? {
                return Ok(existed);
            }
        }
        Err(KeystoreError::Unreachable(format!("{key} is there again and again while it is destroyed")))
    }

    async fn keys_under(&self, pattern: &str) -> Result<Vec<String>, KeystoreError> {
        let (mut found, mut sequence) = (Vec::new(), 1);
        let prefix = format!("$KV.{}.", self.bucket.name());
        while let Some(message) = self.bucket.next(pattern, sequence).await.map_err(failed)? {
            sequence = message.sequence + 1;
            if !is_mark(&message.headers) {
                found.extend(message.subject.strip_prefix(&prefix).map(str::to_owned));
            }
        }
        Ok(found)
    }
}

impl SharedKeystore {
    /// Every key of the vault that was not destroyed.
    pub async fn vault_keys(&self) -> Result<Vec<Name>, KeystoreError> {
        let keys = self.keys_under(&format!("{VAULT}.*")).await?;
        Ok(keys.iter().filter_map(|key| name_of(key)).collect())
    }
}

impl Keystore for SharedKeystore {
    fn get<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<Option<Value>, KeystoreError>> {
        async move {
            let key = key_of(name);
            match self.bucket.newest(&key).await.map_err(failed)? {
                Some(found) if !is_mark(&found.headers) => unwrap(self.wrapping.as_ref(), &key, &found.payload).map(Some),
                _ => Ok(None),
            }
        }
        .boxed()
    }

    fn create<'a>(&'a self, name: &'a Name, value: &'a [u8]) -> BoxFuture<'a, Result<bool, KeystoreError>> {
        async move {
            let key = key_of(name);
            if value.len() > VALUE_BYTES_MAX {
                return Err(KeystoreError::Refused(format!("{key} would be longer than {VALUE_BYTES_MAX} bytes")));
            }
            let value = wrap(self.wrapping.as_ref(), &key, value)?;
            self.bucket.create(&key, HeaderMap::new(), value.into()).await.map_err(failed)
        }
        .boxed()
    }

    fn signing_keys(&self) -> BoxFuture<'_, Result<Vec<String>, KeystoreError>> {
        async move {
            let keys = self.keys_under(&format!("{SIGNING_KEYS}.*")).await?;
            let mut kids: Vec<String> = keys.iter().filter_map(|key| Some(key.split_once('.')?.1.to_owned())).collect();
            kids.sort();
            Ok(kids)
        }
        .boxed()
    }

    fn has_vault(&self) -> BoxFuture<'_, Result<bool, KeystoreError>> {
        async move { Ok(self.bucket.next(&format!("{VAULT}.*"), 1).await.map_err(failed)?.is_some()) }.boxed()
    }

    fn destroy<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<bool, KeystoreError>> {
        async move { self.destroy_key(&key_of(name)).await }.boxed()
    }

    fn changes(&self) -> BoxStream<'static, Name> {
        let (bucket, options) = (Arc::clone(&self.bucket), self.options.clone());
        let prefix = format!("{}.", options.notices.clone().unwrap_or_default());
        let subscriptions = stream::unfold((bucket, options), |(bucket, options)| async move {
            loop {
                match bucket.notices(&options).await {
                    Ok(Some(heard)) => return Some((heard, (bucket, options))),
                    Ok(None) => return None,
                    Err(error) => tracing::debug!(%error, "changes of the shared keys are not heard yet"),
                }
                tokio::time::sleep(Duration::from_millis(LISTEN_PAUSE_MS)).await;
            }
        });
        let heard = subscriptions.flatten();
        heard
            .filter_map(move |message| {
                let name = message.subject.strip_prefix(prefix.as_str()).and_then(name_of);
                // A new key of the vault concerns nobody who did not ask for it.
                let is_destroyed = message.headers.as_ref().is_some_and(is_mark);
                std::future::ready(name.filter(|name| is_destroyed || !matches!(name, Name::VaultKey(_))))
            })
            .boxed()
    }

    fn place(&self, name: &Name) -> String {
        format!("{} in the bucket {}", key_of(name), self.bucket.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_back_from_its_key() {
        for name in [Name::Secret, Name::FirstSigningKey, Name::SigningKey("01ARZ".into()), Name::VaultKey([0xa7; 32])] {
            assert_eq!(name_of(&key_of(&name)), Some(name));
        }
        for other in ["", "else", "vault.short", "keys"] {
            assert_eq!(name_of(other), None, "{other}");
        }
    }
}
