//! The installation's own secret: what makes an id of an e-mail that nobody outside can guess back.
//!
//! It is made at the first start and never changes: with another secret no account would be found by its e-mail. Each
//! use has a key of its own, so that what one use shows tells nothing about another.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::keystore::{Keystore, KeystoreError, Name, Value};
use super::{NoRandomness, random};
use crate::actors::credential::hex;

const SECRET_BYTES: usize = 32;
/// What the keys are for. A word that was ever used keeps its meaning.
const FOR_EMAILS: &[u8] = b"souk e-mail ids 1";
const FOR_CURSORS: &[u8] = b"souk cursors 1";
const FOR_REQUESTS: &[u8] = b"souk requests 1";

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
    #[error(
        "{place} does not hold 64 hex digits; put back the copy of it: with another secret no account is found by its e-mail"
    )]
    Damaged { place: String },
    #[error("{place} is gone, but there are accounts: put back the copy of it, or no account is found by its e-mail")]
    Lost { place: String },
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// Keys derived from the secret, which itself is not kept.
#[derive(Clone)]
pub struct Secret {
    emails: Zeroizing<[u8; SECRET_BYTES]>,
    cursors: Zeroizing<[u8; SECRET_BYTES]>,
    requests: Zeroizing<[u8; SECRET_BYTES]>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// Reads the secret, or makes it if it may not have been lost: of all who do so at once, one makes it for all.
    pub async fn open(store: &dyn Keystore, must_exist: bool) -> Result<Self, SecretError> {
        let place = || store.place(&Name::Secret);
        let mut text = store.get(&Name::Secret).await?;
        if text.is_none() {
            if must_exist {
                return Err(SecretError::Lost { place: place() });
            }
            let made = Value::new(format!("{}\n", hex(Zeroizing::new(random::<SECRET_BYTES>()?).as_slice())).into_bytes());
            text = match store.create(&Name::Secret, &made).await? {
                true => Some(made),
                false => store.get(&Name::Secret).await?,
            };
        }
        let secret = text.as_ref().and_then(|text| unhex(text.trim_ascii()));
        let secret = secret.ok_or_else(|| SecretError::Damaged { place: place() })?;
        Ok(Secret::new(&secret))
    }

    /// For tests, and for whoever keeps the secret elsewhere.
    pub fn new(secret: &[u8; SECRET_BYTES]) -> Self {
        let key = |purpose| Zeroizing::new(hmac(secret, purpose));
        Secret { emails: key(FOR_EMAILS), cursors: key(FOR_CURSORS), requests: key(FOR_REQUESTS) }
    }

    /// The id of the entity that holds an e-mail: 64 hex digits. Takes the e-mail in its one normal form.
    pub fn email_id(&self, normalised_email: &str) -> String {
        hex(&hmac(&self.emails, normalised_email.as_bytes()))
    }

    /// 64 hex digits of what a request says or makes, which cannot be had from its record alone: neither by guessing what
    /// it said nor by making again what it gave out. Parts are told apart.
    pub fn derive(&self, parts: &[&[u8]]) -> String {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hex(&hmac(&self.requests, &hash.finalize()))
    }

    /// The key of cursors.
    pub fn cursor_key(&self) -> &[u8; SECRET_BYTES] {
        &self.cursors
    }
}

fn hmac(key: &[u8; SECRET_BYTES], message: &[u8]) -> [u8; SECRET_BYTES] {
    // HMAC pads a short key with zeros to the hash's block, which is 64 bytes.
    let mut block = Zeroizing::new([0; 64]);
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac = Hmac::<Sha256>::new((&*block).into());
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn unhex(text: &[u8]) -> Option<Zeroizing<[u8; SECRET_BYTES]>> {
    let (pairs, []) = text.as_chunks::<2>() else { return None };
    if pairs.len() != SECRET_BYTES {
        return None;
    }
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16)?).ok();
    let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::keystore::Folder;
    use super::super::private_file;
    use super::*;

    #[tokio::test]
    async fn the_secret_is_made_once_and_read_from_then_on() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = Secret::open(&Folder::new(folder.path()), false).await.unwrap();
        let again = Secret::open(&Folder::new(folder.path()), true).await.unwrap();
        assert_eq!(first.email_id("a@souk.test"), again.email_id("a@souk.test"));
        assert_eq!(first.cursor_key(), again.cursor_key());
        assert!(!private_file::is_exposed(&folder.path().join("secret")));

        let other = Secret::open(&Folder::new(other.path()), false).await.unwrap();
        assert_ne!(first.email_id("a@souk.test"), other.email_id("a@souk.test"));
    }

    #[tokio::test]
    async fn a_damaged_or_lost_secret_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for text in ["", "abc", &"0".repeat(63), &"g".repeat(64), &"0".repeat(66), &"0".repeat(1_000)] {
            std::fs::write(&path, text).unwrap();
            assert!(Secret::open(&Folder::new(folder.path()), false).await.is_err(), "{text}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Secret::open(&Folder::new(folder.path()), true).await, Err(SecretError::Lost { .. })));
        assert!(!path.exists());
    }

    #[test]
    fn an_id_is_the_e_mails_hmac_under_a_key_for_e_mails_only() {
        let secret = Secret::new(&[7; 32]);
        // By Python's hmac: first the key for "souk e-mail ids 1", then the id.
        assert_eq!(secret.email_id("shopper@souk.test"), "bcb42cde5984ccc1ffec650364e4b9828f08412ba5d0aa3dafa1e57f26f753cd");
        assert_ne!(secret.emails, secret.cursors);
        assert_ne!(secret.email_id("a"), secret.email_id("b"));
    }

    #[test]
    fn what_is_derived_depends_on_each_part_and_on_the_secret() {
        let (secret, other) = (Secret::new(&[7; 32]), Secret::new(&[8; 32]));
        let all = [
            secret.derive(&[b"ab", b"c"]),
            secret.derive(&[b"a", b"bc"]),
            secret.derive(&[b"abc"]),
            secret.derive(&[b"abc", b""]),
            other.derive(&[b"abc"]),
        ];
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
        assert_eq!(secret.derive(&[b"ab", b"c"]), all[0]);
    }

    #[test]
    fn the_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", Secret::new(&[7; 32])), "Secret(…)");
    }
}
