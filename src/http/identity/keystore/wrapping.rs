//! Seals over what a bucket keeps, by a key that is not in it.
//!
//! Without one, whoever may read the NATS account's streams, or a NATS server's disk, has every key of the shop. With
//! one he has nothing, and what was destroyed stays unreadable although a disk still bears it. It does not help against
//! who holds both, nor against who may write: he can destroy, though not forge. Lost, it takes every account with it.

use std::fmt;
use std::path::Path;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::folder::unhex;
use super::{KeystoreError, Value};
use crate::http::identity::{private_file, random};

const NONCE_BYTES: usize = 24;
/// 64 hex digits and a line end.
const FILE_BYTES_MAX: usize = 66;
const PLAIN: u8 = b'0';
const SEALED: u8 = b'1';
/// Set before a value's name, so that nothing else that this key may ever encrypt is taken for one.
const BOUND_TO: &[u8] = b"souk kept 1\0";

#[derive(Clone)]
pub struct WrappingKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WrappingKey(…)")
    }
}

impl WrappingKey {
    /// Blocks on the disk.
    pub fn read(path: &Path) -> Result<Self, KeystoreError> {
        let failed = |source| KeystoreError::File { place: path.display().to_string(), source };
        let not_a_key = || KeystoreError::NotAWrappingKey { path: path.to_owned() };
        let text = private_file::read(path, FILE_BYTES_MAX).map_err(failed)?.ok_or_else(not_a_key)?;
        if private_file::is_exposed(path) {
            tracing::warn!("{} can be read by others on this machine: set its mode to 0600", path.display());
        }
        let digits = std::str::from_utf8(text.trim_ascii()).map_err(|_| not_a_key())?;
        unhex(digits).map(|key| WrappingKey(Zeroizing::new(key))).ok_or_else(not_a_key)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }
}

fn bound_to(key: &str) -> Vec<u8> {
    [BOUND_TO, key.as_bytes()].concat()
}

/// A value as the bucket bears it under this key.
pub(super) fn wrap(by: Option<&WrappingKey>, key: &str, value: &[u8]) -> Result<Vec<u8>, KeystoreError> {
    let Some(by) = by else { return Ok([&[PLAIN], value].concat()) };
    let nonce: [u8; NONCE_BYTES] = random()?;
    let bound_to = bound_to(key);
    let sealed = by.cipher().encrypt(&XNonce::from(nonce), Payload { msg: value, aad: &bound_to });
    let sealed = sealed.map_err(|_| KeystoreError::Damaged { place: key.to_owned() })?;
    Ok([&[SEALED], nonce.as_slice(), &sealed].concat())
}

pub(super) fn unwrap(by: Option<&WrappingKey>, key: &str, value: &[u8]) -> Result<Value, KeystoreError> {
    let place = || key.to_owned();
    match (value.split_first(), by) {
        (Some((&PLAIN, plain)), None) => Ok(Value::new(plain.to_vec())),
        (Some((&PLAIN, _)), Some(_)) => Err(KeystoreError::NotSealed { place: place() }),
        (Some((&SEALED, _)), None) => Err(KeystoreError::Sealed { place: place() }),
        (Some((&SEALED, sealed)), Some(by)) => {
            let (nonce, sealed) =
                sealed.split_first_chunk::<NONCE_BYTES>().ok_or_else(|| KeystoreError::Damaged { place: place() })?;
            let bound_to = bound_to(key);
            let plain = by.cipher().decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &bound_to });
            plain.map(Value::new).map_err(|_| KeystoreError::Sealed { place: place() })
        }
        _ => Err(KeystoreError::Damaged { place: place() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_comes_back_under_its_own_name_and_key_only() {
        let (ours, other) = (WrappingKey(Zeroizing::new([7; 32])), WrappingKey(Zeroizing::new([8; 32])));
        let sealed = wrap(Some(&ours), "vault.a", b"key").unwrap();
        assert!(!sealed.windows(3).any(|part| part == b"key"));
        assert_eq!(unwrap(Some(&ours), "vault.a", &sealed).unwrap().as_slice(), b"key");
        assert!(matches!(unwrap(Some(&ours), "vault.b", &sealed), Err(KeystoreError::Sealed { .. })));
        assert!(matches!(unwrap(Some(&other), "vault.a", &sealed), Err(KeystoreError::Sealed { .. })));
        assert!(matches!(unwrap(None, "vault.a", &sealed), Err(KeystoreError::Sealed { .. })));

        let plain = wrap(None, "vault.a", b"key").unwrap();
        assert_eq!(unwrap(None, "vault.a", &plain).unwrap().as_slice(), b"key");
        assert!(matches!(unwrap(Some(&ours), "vault.a", &plain), Err(KeystoreError::NotSealed { .. })));
        for damaged in [&b""[..], b"2", b"1short"] {
            assert!(unwrap(Some(&ours), "vault.a", damaged).is_err());
        }
    }

    #[test]
    fn a_wrapping_key_is_a_file_of_64_hex_digits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, format!("{}\n", "ab".repeat(32))).unwrap();
        assert_eq!(*WrappingKey::read(&path).unwrap().0, [0xab; 32]);
        for wrong in ["", "ab", &"g".repeat(64), &"a".repeat(63), &"a".repeat(1_000)] {
            std::fs::write(&path, wrong).unwrap();
            assert!(WrappingKey::read(&path).is_err(), "{wrong}");
        }
        assert!(WrappingKey::read(&folder.path().join("none")).is_err());
    }
}
