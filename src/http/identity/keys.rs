//! The keys that sign access tokens: Ed25519, one PKCS#8 PEM file for each.
//!
//! In a folder (the default), a file is named for its key's id, a ULID, so that names tell which key is newer. The first
//! key is made at the first start; `rotate`, in this process or another, adds one:
//!
//! 1. A new key is shown (JWKS) and verifies at once, but signs only after [`SHOWN_FIRST_MS`]. By then every node has
//!    read the folder again, so no node meets a token of a key that it does not know.
//! 2. From then on the newest key signs. A replaced one verifies for [`RETIRED_AFTER_MS`], and its file is removed by the
//!    first rotation after that.
//!
//! Or the operator gives one file, with one key or several: the first signs, all verify, and whoever replaces the file
//! has rotated. A key taken away, in either form, verifies nothing from the next look at the folder on.
//!
//! The folder is looked at when a key is asked for, at most once in [`LOOK_MS`], and for an unknown key once in
//! [`LOOK_FOR_UNKNOWN_MS`]. That reads names and times of a few files on the caller's thread, and their content only when one
//! of them has changed. What cannot be read leaves the keys as they are, and is logged.
//!
//! Secret keys are never logged or shown; `Debug` says ids only.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use ulid::Ulid;
use zeroize::Zeroizing;

use super::{NoRandomness, private_file, random};
use crate::domain::Timestamp;
use crate::domain::time::{MINUTE_MS, SECOND_MS};

/// How long a new key is only shown. Longer than [`LOOK_MS`] and than clocks differ.
pub const SHOWN_FIRST_MS: i64 = 15 * SECOND_MS;
/// How long a key verifies after it was replaced: far longer than any token lives.
pub const RETIRED_AFTER_MS: i64 = 24 * 60 * MINUTE_MS;
/// How often the folder is looked at.
pub const LOOK_MS: i64 = 5 * SECOND_MS;
/// How often it is looked at for keys that are not known.
pub const LOOK_FOR_UNKNOWN_MS: i64 = SECOND_MS;
/// Keys that are held at once.
pub const KEYS_MAX: usize = 32;
/// A PEM file of one key has about 120 bytes.
const FILE_BYTES_MAX: usize = 16 * 1024;
const EXTENSION: &str = "pem";
const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} holds no Ed25519 key as PKCS#8 PEM (`openssl genpkey -algorithm ed25519` makes one)", path.display())]
    NotAKey { path: PathBuf },
    #[error("{} has a name that is no key's id: keys are made by `souk keys rotate`", path.display())]
    NotAName { path: PathBuf },
    #[error("there are {KEYS_MAX} keys already; a replaced one leaves a day after its replacement")]
    TooMany,
    #[error("the signing key is given as a file: replace {} to rotate it", path.display())]
    Given { path: PathBuf },
    #[error("{} holds no key", path.display())]
    NoKey { path: PathBuf },
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// One key.
pub struct Key {
    pub kid: String,
    /// When it was made; a given key does not say.
    pub made: Option<Timestamp>,
    /// When a newer one was made.
    pub replaced: Option<Timestamp>,
    /// The first segment of each token that it signs, and the only one that is taken for it.
    header: String,
    signing: SigningKey,
    verifying: VerifyingKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("made", &self.made).finish_non_exhaustive()
    }
}

impl Key {
    fn new(signing: SigningKey, kid: String, made: Option<Timestamp>) -> Self {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"EdDSA","kid":"{kid}","typ":"JWT"}}"#));
        let verifying = signing.verifying_key();
        Key { kid, made, replaced: None, header, signing, verifying }
    }

    pub(super) fn header(&self) -> &str {
        &self.header
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; Signature::BYTE_SIZE] {
        self.signing.sign(message).to_bytes()
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8; Signature::BYTE_SIZE]) -> bool {
        self.verifying.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }

    pub fn retires(&self) -> Option<Timestamp> {
        self.replaced.map(|replaced| replaced.plus_ms(RETIRED_AFTER_MS))
    }

    fn is_retired(&self, now: Timestamp) -> bool {
        self.retires().is_some_and(|retires| retires <= now)
    }

    /// The public half (RFC 8037).
    fn to_jwk(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.verifying.as_bytes());
        json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": self.kid, "x": x})
    }
}

/// The keys as they were at one look. Never empty.
#[derive(Debug)]
pub struct KeySet {
    /// The newest first.
    keys: Vec<Key>,
    /// Raised by each change, so that what was concluded from other keys is known to be so.
    generation: u64,
}

impl KeySet {
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The key that signs. `None` only if there were no keys at all, which `Keys` refuses to hold.
    pub fn signing(&self, now: Timestamp) -> Option<&Key> {
        let shown_long_enough = |key: &&Key| key.made.is_none_or(|made| made.plus_ms(SHOWN_FIRST_MS) <= now);
        self.keys.iter().find(shown_long_enough).or(self.keys.last())
    }

    /// The key whose tokens begin with this segment, unless it has retired.
    pub(super) fn by_header(&self, header: &str, now: Timestamp) -> Option<&Key> {
        self.keys.iter().find(|key| key.header == header).filter(|key| !key.is_retired(now))
    }

    /// All that verify, the newest first.
    pub fn verifying(&self, now: Timestamp) -> impl Iterator<Item = &Key> {
        self.keys.iter().filter(move |key| !key.is_retired(now))
    }

    /// The public halves of all keys that verify: a JWK set (RFC 7517).
    pub fn to_jwks(&self, now: Timestamp) -> Value {
        json!({"keys": self.verifying(now).map(Key::to_jwk).collect::<Vec<Value>>()})
    }
}

/// Where the keys lie.
#[derive(Debug, Clone)]
enum Source {
    Folder(PathBuf),
    File(PathBuf),
}

/// What was seen of the files without reading them.
type Seen = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// The keys of this node, read again when their files change.
#[derive(Debug)]
pub struct Keys {
    source: Source,
    current: RwLock<Arc<KeySet>>,
    /// Held while the files are looked at, by one thread at a time.
    seen: Mutex<Seen>,
    looked_ms: AtomicI64,
}

impl Keys {
    /// The keys of a folder, whose first is made if there is none. Blocks on the disk.
    pub fn open(folder: &Path, now: Timestamp) -> Result<Self, KeysError> {
        let failed = |source| KeysError::File { path: folder.to_owned(), source };
        private_file::create_folder(folder).map_err(failed)?;
        let source = Source::Folder(folder.to_owned());
        if seen(&source)?.is_empty() {
            make(folder, now)?;
        }
        Keys::read(source, now)
    }

    /// The keys of a folder as they are; none is made.
    pub fn open_existing(folder: &Path, now: Timestamp) -> Result<Self, KeysError> {
        Keys::read(Source::Folder(folder.to_owned()), now)
    }

    /// The keys in one file that the operator gives.
    pub fn given(file: &Path, now: Timestamp) -> Result<Self, KeysError> {
        Keys::read(Source::File(file.to_owned()), now)
    }

    fn read(source: Source, now: Timestamp) -> Result<Self, KeysError> {
        let seen = seen(&source)?;
        let keys = read(&source, &seen)?;
        for (path, ..) in seen.iter().filter(|(path, ..)| private_file::is_exposed(path)) {
            tracing::warn!("{} can be read by others on this machine: set its mode to 0600", path.display());
        }
        let current = RwLock::new(Arc::new(KeySet { keys, generation: 0 }));
        Ok(Keys { source, current, seen: Mutex::new(seen), looked_ms: AtomicI64::new(now.as_millis()) })
    }

    /// The keys, at most [`LOOK_MS`] old.
    pub fn current(&self, now: Timestamp) -> Arc<KeySet> {
        self.look(now, LOOK_MS);
        self.held()
    }

    /// The keys for whoever has met one that is not among [`Keys::current`]: at most [`LOOK_FOR_UNKNOWN_MS`] old.
    pub fn newest(&self, now: Timestamp) -> Arc<KeySet> {
        self.look(now, LOOK_FOR_UNKNOWN_MS);
        self.held()
    }

    /// Makes a new key, which signs after [`SHOWN_FIRST_MS`], and removes those that have retired. Blocks on the disk.
    pub fn rotate(&self, now: Timestamp) -> Result<String, KeysError> {
        let folder = match &self.source {
            Source::Folder(folder) => folder,
            Source::File(path) => return Err(KeysError::Given { path: path.clone() }),
        };
        self.look_now()?;
        let keys = self.held();
        for key in keys.keys.iter().filter(|key| key.is_retired(now)) {
            let path = path_of(folder, &key.kid);
            private_file::destroy(&path).map_err(|source| KeysError::File { path, source })?;
        }
        if keys.verifying(now).count() >= KEYS_MAX {
            return Err(KeysError::TooMany);
        }
        // Not older than the newest, whatever the clock says: else it would be taken for one already replaced.
        let newest = keys.keys.first().and_then(|key| key.made);
        let kid = make(folder, newest.map_or(now, |newest| newest.plus_ms(1).max(now)))?;
        self.look_now()?;
        Ok(kid)
    }

    fn held(&self) -> Arc<KeySet> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn look(&self, now: Timestamp, every_ms: i64) {
        let looked_ms = self.looked_ms.load(Ordering::Relaxed);
        // A clock set back counts as time gone by.
        if (0..every_ms).contains(&(now.as_millis() - looked_ms)) {
            return;
        }
        // One thread looks, and the others go on with what there is.
        let order = Ordering::Relaxed;
        if self.looked_ms.compare_exchange(looked_ms, now.as_millis(), order, order).is_err() {
            return;
        }
        if let Err(error) = self.look_now() {
            tracing::error!(%error, "the signing keys cannot be read again; those known so far stay in use");
        }
    }

    fn look_now(&self) -> Result<(), KeysError> {
        let mut seen_before = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen(&self.source)?;
        if *seen_before == seen {
            return Ok(());
        }
        let keys = read(&self.source, &seen)?;
        let generation = self.held().generation + 1;
        tracing::info!(keys = keys.len(), "the signing keys have changed");
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(KeySet { keys, generation });
        *seen_before = seen;
        Ok(())
    }
}

fn path_of(folder: &Path, kid: &str) -> PathBuf {
    folder.join(format!("{kid}.{EXTENSION}"))
}

/// Writes a new key into a folder, and returns its id.
fn make(folder: &Path, now: Timestamp) -> Result<String, KeysError> {
    let made_ms = u64::try_from(now.as_millis()).unwrap_or_default();
    let kid = Ulid::from_parts(made_ms, u128::from_be_bytes(random()?)).to_string();
    let path = path_of(folder, &kid);
    // Without the public half: the form of RFC 5958's first version, which every tool reads.
    let pair = KeypairBytes { secret_key: *Zeroizing::new(random()?), public_key: None };
    let pem = pair.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeysError::NotAKey { path: path.clone() })?;
    match private_file::create(&path, pem.as_bytes()) {
        Ok(_) => Ok(kid),
        Err(source) => Err(KeysError::File { path, source }),
    }
}

fn seen(source: &Source) -> Result<Seen, KeysError> {
    let (mut seen, failed) = (Vec::new(), |path: &Path, source| KeysError::File { path: path.to_owned(), source });
    let mut note = |path: PathBuf, metadata: fs::Metadata| seen.push((path, metadata.len(), metadata.modified().ok()));
    match source {
        Source::File(path) => note(path.clone(), fs::metadata(path).map_err(|error| failed(path, error))?),
        Source::Folder(folder) => {
            for entry in fs::read_dir(folder).map_err(|error| failed(folder, error))? {
                let path = entry.map_err(|error| failed(folder, error))?.path();
                let is_key = path.extension().is_some_and(|extension| extension == EXTENSION);
                let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                if !is_key || is_hidden {
                    continue;
                }
                match fs::metadata(&path) {
                    Ok(metadata) => note(path, metadata),
                    // Removed by a rotation since the folder was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(&path, error)),
                }
            }
        }
    }
    // What is too many is not even read; the newest are last by name.
    seen.sort();
    match seen.len() {
        0..=KEYS_MAX => Ok(seen),
        _ => Err(KeysError::TooMany),
    }
}

/// The keys of these files, the newest first.
fn read(source: &Source, seen: &Seen) -> Result<Vec<Key>, KeysError> {
    let mut keys = Vec::new();
    for (path, ..) in seen {
        let text = private_file::read(path, FILE_BYTES_MAX).map_err(|source| KeysError::File { path: path.clone(), source })?;
        let not_a_key = || KeysError::NotAKey { path: path.clone() };
        let text = text.as_ref().and_then(|text| std::str::from_utf8(text).ok()).ok_or_else(not_a_key)?;
        match source {
            Source::File(_) => {
                for pem in text.split_inclusive(PEM_END).filter_map(|part| part.find(PEM_BEGIN).and_then(|at| part.get(at..))) {
                    let signing = SigningKey::from_pkcs8_pem(pem).map_err(|_| not_a_key())?;
                    let kid = thumbprint(&signing.verifying_key());
                    if keys.len() == KEYS_MAX {
                        return Err(KeysError::TooMany);
                    }
                    keys.push(Key::new(signing, kid, None));
                }
            }
            Source::Folder(_) => {
                let signing = SigningKey::from_pkcs8_pem(text.trim()).map_err(|_| not_a_key())?;
                let kid = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
                let made = Ulid::from_string(kid).ok().filter(|ulid| ulid.to_string() == kid);
                let made = made.ok_or_else(|| KeysError::NotAName { path: path.clone() })?;
                let made = Timestamp::from_millis(i64::try_from(made.timestamp_ms()).unwrap_or(i64::MAX));
                keys.push(Key::new(signing, kid.to_owned(), Some(made)));
            }
        }
    }
    if matches!(source, Source::Folder(_)) {
        // Names are sorted, and a ULID's order is that of time.
        keys.reverse();
        let mut replaced = None;
        for key in &mut keys {
            key.replaced = replaced;
            replaced = key.made;
        }
    }
    if keys.is_empty() {
        let (Source::Folder(path) | Source::File(path)) = source.clone();
        return Err(KeysError::NoKey { path });
    }
    Ok(keys)
}

/// A key's id made of the key itself (RFC 7638), for keys that come without one.
fn thumbprint(key: &VerifyingKey) -> String {
    let x = URL_SAFE_NO_PAD.encode(key.as_bytes());
    URL_SAFE_NO_PAD.encode(Sha256::digest(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_800_000_000_000;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(START + ms)
    }

    fn kids<'a>(keys: impl Iterator<Item = &'a Key>) -> Vec<&'a str> {
        keys.map(|key| key.kid.as_str()).collect()
    }

    #[test]
    fn the_first_key_is_made_once_and_signs_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("keys");
        let keys = Keys::open(&folder, at(0)).unwrap();
        let first = keys.current(at(0)).signing(at(0)).unwrap().kid.clone();
        assert!(!private_file::is_exposed(&path_of(&folder, &first)));
        let again = Keys::open(&folder, at(1_000)).unwrap();
        assert_eq!(again.current(at(1_000)).signing(at(1_000)).unwrap().kid, first);
    }

    #[test]
    fn a_folder_without_keys_is_an_error_for_whoever_may_not_make_one() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Keys::open_existing(folder.path(), at(0)), Err(KeysError::NoKey { .. })));
        assert!(matches!(Keys::open_existing(&folder.path().join("none"), at(0)), Err(KeysError::File { .. })));
    }

    #[test]
    fn a_new_key_is_shown_first_then_signs_and_the_old_one_verifies_for_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path(), at(0)).unwrap();
        let first = keys.current(at(0)).signing(at(0)).unwrap().kid.clone();
        let second = keys.rotate(at(60_000)).unwrap();
        let set = keys.current(at(60_000));
        assert_eq!(kids(set.verifying(at(60_000))), [&second, &first]);

        for (ms, signs, verify) in [
            (60_000, &first, 2),
            (60_000 + SHOWN_FIRST_MS - 1, &first, 2),
            (60_000 + SHOWN_FIRST_MS, &second, 2),
            (60_000 + RETIRED_AFTER_MS - 1, &second, 2),
            (60_000 + RETIRED_AFTER_MS, &second, 1),
        ] {
            assert_eq!(&set.signing(at(ms)).unwrap().kid, signs, "{ms}");
            assert_eq!(set.verifying(at(ms)).count(), verify, "{ms}");
            assert_eq!(set.to_jwks(at(ms))["keys"].as_array().unwrap().len(), verify, "{ms}");
        }
        let header = set.keys[1].header().to_owned();
        assert!(set.by_header(&header, at(60_000)).is_some());
        assert!(set.by_header(&header, at(60_000 + RETIRED_AFTER_MS)).is_none());

        let third = keys.rotate(at(60_000 + RETIRED_AFTER_MS)).unwrap();
        assert!(!path_of(folder.path(), &first).exists(), "a rotation removes what has retired");
        assert_eq!(kids(keys.current(at(0)).verifying(at(0))), [&third, &second]);
    }

    #[test]
    fn a_rotation_by_another_process_is_seen_within_seconds_and_at_once_for_an_unknown_key() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path(), at(0)).unwrap();
        let second = Keys::open(folder.path(), at(0)).unwrap().rotate(at(10)).unwrap();
        let knows = |set: Arc<KeySet>| kids(set.verifying(at(10))).contains(&second.as_str());
        assert!(!knows(keys.current(at(LOOK_MS - 1))));
        assert!(!knows(keys.newest(at(LOOK_FOR_UNKNOWN_MS - 1))));
        assert!(knows(keys.newest(at(LOOK_FOR_UNKNOWN_MS))));

        let third = Keys::open(folder.path(), at(0)).unwrap().rotate(at(20)).unwrap();
        let knows = |set: Arc<KeySet>| kids(set.verifying(at(20))).contains(&third.as_str());
        assert!(!knows(keys.current(at(LOOK_FOR_UNKNOWN_MS + LOOK_MS - 1))));
        assert!(knows(keys.current(at(LOOK_FOR_UNKNOWN_MS + LOOK_MS))));
    }

    #[test]
    fn a_key_that_was_taken_away_no_longer_verifies_and_the_generation_tells() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path(), at(0)).unwrap();
        let before = keys.current(at(0));
        let first = before.signing(at(0)).unwrap();
        keys.rotate(at(10)).unwrap();
        fs::remove_file(path_of(folder.path(), &first.kid)).unwrap();
        let after = keys.current(at(LOOK_MS));
        assert!(after.by_header(first.header(), at(LOOK_MS)).is_none());
        assert!(after.generation() > before.generation());
    }

    #[test]
    fn what_cannot_be_read_leaves_the_known_keys_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path(), at(0)).unwrap();
        let known = keys.current(at(0)).signing(at(0)).unwrap().kid.clone();
        for (name, text) in [("rubbish", "not a key"), ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "not a key either"), ("notes", "")] {
            let path = path_of(folder.path(), name);
            fs::write(&path, text).unwrap();
            assert!(keys.rotate(at(0)).is_err(), "{name}");
            assert_eq!(keys.current(at(LOOK_MS)).signing(at(LOOK_MS)).unwrap().kid, known, "{name}");
            assert!(Keys::open(folder.path(), at(0)).is_err(), "a start does not hide it: {name}");
            fs::remove_file(path).unwrap();
        }
        fs::write(folder.path().join("README"), "not a key's file").unwrap();
        fs::write(folder.path().join(".half.pem"), "left by a crash").unwrap();
        keys.rotate(at(0)).unwrap();
    }

    #[test]
    fn rotating_twice_in_a_moment_or_with_a_clock_set_back_still_makes_newer_keys() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path(), at(10_000)).unwrap();
        let rotated: Vec<String> = [10_000, 10_000, 0].map(|ms| keys.rotate(at(ms)).unwrap()).into();
        let newest_first: Vec<&str> = rotated.iter().rev().map(String::as_str).collect();
        let set = keys.current(at(10_000));
        assert_eq!(kids(set.verifying(at(10_000)))[..3], newest_first);
    }

    #[test]
    fn there_are_never_more_keys_than_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path(), at(0)).unwrap();
        for _ in 1..KEYS_MAX {
            keys.rotate(at(0)).unwrap();
        }
        assert!(matches!(keys.rotate(at(0)), Err(KeysError::TooMany)));
        keys.rotate(at(2 * RETIRED_AFTER_MS)).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    /// RFC 8037, appendix A: its private key in PKCS#8, as OpenSSL writes it; its public key and thumbprint.
    const KNOWN_PEM: &str = "\
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";
    const KNOWN_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    const KNOWN_THUMBPRINT: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";

    #[test]
    fn a_given_key_is_named_by_its_thumbprint_and_shown_as_a_jwk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("given.pem");
        fs::write(&path, KNOWN_PEM).unwrap();
        let keys = Keys::given(&path, at(0)).unwrap();
        let expected = json!({"keys": [{
            "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": KNOWN_THUMBPRINT, "x": KNOWN_X,
        }]});
        assert_eq!(keys.current(at(0)).to_jwks(at(0)), expected);
        assert!(matches!(keys.rotate(at(0)), Err(KeysError::Given { .. })));
    }

    #[test]
    fn of_several_given_keys_the_first_signs_all_verify_and_a_new_file_is_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let other = Keys::open(&folder.path().join("keys"), at(0)).unwrap();
        let other = path_of(&folder.path().join("keys"), &other.current(at(0)).keys[0].kid);
        let other = fs::read_to_string(other).unwrap();
        let path = folder.path().join("given.pem");
        fs::write(&path, KNOWN_PEM).unwrap();
        let keys = Keys::given(&path, at(0)).unwrap();
        fs::write(&path, format!("# the new one\n{other}\n# the old one\n{KNOWN_PEM}")).unwrap();
        let set = keys.current(at(LOOK_MS));
        assert_eq!(set.verifying(at(0)).count(), 2);
        assert_ne!(set.signing(at(0)).unwrap().kid, KNOWN_THUMBPRINT);
        assert_eq!(set.keys[1].kid, KNOWN_THUMBPRINT);

        for wrong in ["", "rubbish", "-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n"] {
            fs::write(&path, wrong).unwrap();
            assert!(Keys::given(&path, at(0)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_do_not_show_their_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("given.pem");
        fs::write(&path, KNOWN_PEM).unwrap();
        let shown = format!("{:?}", Keys::given(&path, at(0)).unwrap());
        assert!(shown.contains(KNOWN_THUMBPRINT) && !shown.contains("157, 97, 177") && !shown.contains("SigningKey"), "{shown}");
    }
}
