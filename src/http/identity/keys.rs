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
//! In a cluster they lie in the keystore that its nodes share, under the same ids. Who makes the first key is agreed upon
//! there: a name that only one can take says which key it is, and of all who make that key one is first. The keystore is
//! listed by a task, when it tells of a change and once in [`LOOK_MS`], so that nobody waits for it; cut off from it, a
//! node goes on with the keys it has.
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
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use ulid::Ulid;
use zeroize::Zeroizing;

use super::keystore::{Keystore, KeystoreError, Name, Value as Kept};
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
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
    #[error("{place} holds no Ed25519 key as PKCS#8 PEM (`openssl genpkey -algorithm ed25519` makes one)")]
    NotAKey { place: String },
    #[error("{place} has a name that is no key's id: keys are made by `souk keys rotate`")]
    NotAName { place: String },
    #[error("there are {KEYS_MAX} keys already; a replaced one leaves a day after its replacement")]
    TooMany,
    #[error("the signing key is given as a file: replace {} to rotate it", path.display())]
    Given { path: PathBuf },
    #[error("{place} holds no key")]
    NoKey { place: String },
    #[error("there is no key {kid}")]
    NoSuchKey { kid: String },
    #[error("{kid} is the only key: make another first")]
    OnlyKey { kid: String },
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

    fn retired(&self, now: Timestamp) -> impl Iterator<Item = &Key> {
        self.keys.iter().filter(move |key| key.is_retired(now))
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
#[derive(Clone)]
enum Source {
    Folder(PathBuf),
    File(PathBuf),
    Store(Arc<dyn Keystore>),
}

/// What was seen of the keys without reading them.
type Seen = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// The keys of this node, read again when they change.
pub struct Keys {
    source: Source,
    current: RwLock<Arc<KeySet>>,
    /// Held while the files are looked at, by one thread at a time.
    seen: Mutex<Seen>,
    looked_ms: AtomicI64,
    /// Has whoever follows the keystore look at once.
    wanted: Notify,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("current", &self.held()).finish_non_exhaustive()
    }
}

impl Keys {
    /// The keys of a folder, whose first is made if there is none. Blocks on the disk.
    pub fn open(folder: &Path, now: Timestamp) -> Result<Self, KeysError> {
        let failed = |source| KeysError::File { path: folder.to_owned(), source };
        private_file::create_folder(folder).map_err(failed)?;
        if seen_in_folder(folder)?.is_empty() {
            create(folder, &Made::new(now)?)?;
        }
        Keys::of_files(Source::Folder(folder.to_owned()), now)
    }

    /// The keys of a folder as they are; none is made.
    pub fn open_existing(folder: &Path, now: Timestamp) -> Result<Self, KeysError> {
        Keys::of_files(Source::Folder(folder.to_owned()), now)
    }

    /// The keys in one file that the operator gives.
    pub fn given(file: &Path, now: Timestamp) -> Result<Self, KeysError> {
        Keys::of_files(Source::File(file.to_owned()), now)
    }

    fn of_files(source: Source, now: Timestamp) -> Result<Self, KeysError> {
        let seen = seen(&source)?;
        let keys = read(&source, &seen)?;
        for (path, ..) in seen.iter().filter(|(path, ..)| private_file::is_exposed(path)) {
            tracing::warn!("{} can be read by others on this machine: set its mode to 0600", path.display());
        }
        Ok(Keys::new(source, keys, seen, now))
    }

    fn new(source: Source, keys: Vec<Key>, seen: Seen, now: Timestamp) -> Self {
        Keys {
            source,
            current: RwLock::new(Arc::new(KeySet { keys, generation: 0 })),
            seen: Mutex::new(seen),
            looked_ms: AtomicI64::new(now.as_millis()),
            wanted: Notify::new(),
        }
    }

    /// The keys that nodes share, whose first is made if there is none.
    pub async fn shared(store: Arc<dyn Keystore>, now: Timestamp) -> Result<Self, KeysError> {
        if store.signing_keys().await?.is_empty() {
            make_first(&*store, now).await?;
        }
        Keys::shared_existing(store, now).await
    }

    /// The keys that nodes share, as they are; none is made.
    pub async fn shared_existing(store: Arc<dyn Keystore>, now: Timestamp) -> Result<Self, KeysError> {
        let kids = store.signing_keys().await?;
        let keys = fetch(&*store, kids).await?;
        Ok(Keys::new(Source::Store(store), keys, Seen::new(), now))
    }

    /// Looks for changes of keys that nodes share, until these keys are dropped. Keys in files are looked at by whoever
    /// asks for them.
    pub fn follow(keys: &Arc<Keys>) {
        let Source::Store(store) = &keys.source else { return };
        let (changes, keys) = (store.changes(), Arc::downgrade(keys));
        tokio::spawn(async move {
            let mut changes =
                changes.filter(|name| std::future::ready(matches!(name, Name::SigningKey(_)))).chain(stream::pending());
            loop {
                let Some(keys) = keys.upgrade() else { break };
                tokio::select! {
                    _ = changes.next() => {}
                    () = keys.wanted.notified() => {}
                    () = tokio::time::sleep(Duration::from_millis(LOOK_MS as u64)) => {}
                }
                if let Err(error) = keys.refresh().await {
                    tracing::warn!(%error, "the shared signing keys cannot be read again; those known so far stay in use");
                }
            }
        });
    }

    /// The keys, at most [`LOOK_MS`] old.
    pub fn current(&self, now: Timestamp) -> Arc<KeySet> {
        self.look(now, LOOK_MS);
        self.held()
    }

    /// The keys for whoever has met one that is not among [`Keys::current`]: at most [`LOOK_FOR_UNKNOWN_MS`] old. Those
    /// that nodes share are then looked for, and are there a moment later.
    pub fn newest(&self, now: Timestamp) -> Arc<KeySet> {
        self.look(now, LOOK_FOR_UNKNOWN_MS);
        self.held()
    }

    /// Makes a new key, which signs after [`SHOWN_FIRST_MS`], and removes those that have retired. Blocks on the disk.
    pub fn rotate(&self, now: Timestamp) -> Result<String, KeysError> {
        let folder = match &self.source {
            Source::Folder(folder) => folder,
            Source::File(path) => return Err(KeysError::Given { path: path.clone() }),
            Source::Store(_) => return Err(KeystoreError::Refused("these keys are shared".to_owned()).into()),
        };
        self.look_now()?;
        let keys = self.held();
        for key in keys.retired(now) {
            let path = path_of(folder, &key.kid);
            private_file::destroy(&path).map_err(|source| KeysError::File { path, source })?;
        }
        let made = Made::next(&keys, now)?;
        create(folder, &made)?;
        self.look_now()?;
        Ok(made.kid)
    }

    /// The same with keys that nodes share, or are in a folder.
    pub async fn rotate_anywhere(&self, now: Timestamp) -> Result<String, KeysError> {
        let Source::Store(store) = &self.source else { return self.rotate(now) };
        self.refresh().await?;
        let keys = self.held();
        for key in keys.retired(now) {
            store.destroy(&Name::SigningKey(key.kid.clone())).await?;
        }
        let made = Made::next(&keys, now)?;
        store.create(&Name::SigningKey(made.kid.clone()), &made.pem).await?;
        self.refresh().await?;
        Ok(made.kid)
    }

    /// Takes a key away, so that what it signed is refused within seconds: it may have been stolen.
    pub async fn remove(&self, kid: &str) -> Result<(), KeysError> {
        let keys = self.held();
        if !keys.keys.iter().any(|key| key.kid == kid) {
            return Err(KeysError::NoSuchKey { kid: kid.to_owned() });
        }
        if keys.keys.len() == 1 {
            return Err(KeysError::OnlyKey { kid: kid.to_owned() });
        }
        match &self.source {
            Source::File(path) => Err(KeysError::Given { path: path.clone() }),
            Source::Folder(folder) => {
                let path = path_of(folder, kid);
                private_file::destroy(&path).map_err(|source| KeysError::File { path, source })?;
                self.look_now()
            }
            Source::Store(store) => {
                store.destroy(&Name::SigningKey(kid.to_owned())).await?;
                self.refresh().await
            }
        }
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
        if matches!(self.source, Source::Store(_)) {
            self.wanted.notify_one();
        } else if let Err(error) = self.look_now() {
            tracing::error!(%error, "the signing keys cannot be read again; those known so far stay in use");
        }
    }

    fn look_now(&self) -> Result<(), KeysError> {
        let mut seen_before = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen(&self.source)?;
        if *seen_before == seen {
            return Ok(());
        }
        self.hold(read(&self.source, &seen)?);
        *seen_before = seen;
        Ok(())
    }

    /// Lists the keys that nodes share, and reads them if they are others now: what a key's name stands for never changes.
    async fn refresh(&self) -> Result<(), KeysError> {
        let Source::Store(store) = &self.source else { return Ok(()) };
        let kids = store.signing_keys().await?;
        if self.held().keys.iter().rev().map(|key| &key.kid).eq(&kids) {
            return Ok(());
        }
        self.hold(fetch(&**store, kids).await?);
        Ok(())
    }

    fn hold(&self, keys: Vec<Key>) {
        tracing::info!(keys = keys.len(), "the signing keys have changed");
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let generation = current.generation + 1;
        *current = Arc::new(KeySet { keys, generation });
    }
}

/// A key that was made and is not kept yet.
struct Made {
    kid: String,
    pem: Kept,
}

impl Made {
    fn new(now: Timestamp) -> Result<Self, KeysError> {
        Made::with_id(new_kid(now)?)
    }

    /// A key that follows these.
    fn next(keys: &KeySet, now: Timestamp) -> Result<Self, KeysError> {
        if keys.verifying(now).count() >= KEYS_MAX {
            return Err(KeysError::TooMany);
        }
        // Not older than the newest, whatever the clock says: else it would be taken for one already replaced.
        let newest = keys.keys.first().and_then(|key| key.made);
        Made::new(newest.map_or(now, |newest| newest.plus_ms(1).max(now)))
    }

    fn with_id(kid: String) -> Result<Self, KeysError> {
        // Without the public half: the form of RFC 5958's first version, which every tool reads.
        let pair = KeypairBytes { secret_key: *Zeroizing::new(random()?), public_key: None };
        let pem = pair.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeysError::NotAKey { place: kid.clone() })?;
        Ok(Made { kid, pem: Kept::new(pem.as_bytes().to_vec()) })
    }
}

fn new_kid(now: Timestamp) -> Result<String, KeysError> {
    let made_ms = u64::try_from(now.as_millis()).unwrap_or_default();
    Ok(Ulid::from_parts(made_ms, u128::from_be_bytes(random()?)).to_string())
}

/// Makes the first of the keys that nodes share. Whoever does it at the same moment makes the same.
async fn make_first(store: &dyn Keystore, now: Timestamp) -> Result<(), KeysError> {
    let (name, mine) = (Name::FirstSigningKey, new_kid(now)?);
    let agreed = match store.create(&name, mine.as_bytes()).await? {
        true => Some(mine),
        false => store.get(&name).await?.and_then(|kid| String::from_utf8(kid.to_vec()).ok()),
    };
    let first = Made::with_id(agreed.ok_or_else(|| KeysError::NotAName { place: store.place(&name) })?)?;
    store.create(&Name::SigningKey(first.kid.clone()), &first.pem).await?;
    if store.signing_keys().await?.is_empty() {
        // The first key of all was destroyed long ago, and so were all after it.
        let anew = Made::new(now)?;
        store.create(&Name::SigningKey(anew.kid.clone()), &anew.pem).await?;
    }
    Ok(())
}

/// The keys of these ids, which are sorted, the newest first.
async fn fetch(store: &dyn Keystore, kids: Vec<String>) -> Result<Vec<Key>, KeysError> {
    if kids.len() > KEYS_MAX {
        return Err(KeysError::TooMany);
    }
    let mut keys = Vec::new();
    for kid in kids {
        let name = Name::SigningKey(kid.clone());
        // Destroyed since the list was made.
        let Some(pem) = store.get(&name).await? else { continue };
        keys.push(named(&pem, &kid, || store.place(&name))?);
    }
    in_order(&mut keys);
    match keys.is_empty() {
        true => Err(KeysError::NoKey { place: "the cluster's keystore".to_owned() }),
        false => Ok(keys),
    }
}

fn path_of(folder: &Path, kid: &str) -> PathBuf {
    folder.join(format!("{kid}.{EXTENSION}"))
}

/// Writes a new key into a folder.
fn create(folder: &Path, made: &Made) -> Result<(), KeysError> {
    let path = path_of(folder, &made.kid);
    match private_file::create(&path, &made.pem) {
        Ok(_) => Ok(()),
        Err(source) => Err(KeysError::File { path, source }),
    }
}

fn seen(source: &Source) -> Result<Seen, KeysError> {
    match source {
        Source::Folder(folder) => seen_in_folder(folder),
        Source::File(path) => {
            let metadata = fs::metadata(path).map_err(|source| KeysError::File { path: path.clone(), source })?;
            Ok(vec![(path.clone(), metadata.len(), metadata.modified().ok())])
        }
        Source::Store(_) => Ok(Seen::new()),
    }
}

fn seen_in_folder(folder: &Path) -> Result<Seen, KeysError> {
    let (mut seen, failed) = (Seen::new(), |path: &Path, source| KeysError::File { path: path.to_owned(), source });
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, error))? {
        let path = entry.map_err(|error| failed(folder, error))?.path();
        let is_key = path.extension().is_some_and(|extension| extension == EXTENSION);
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_key || is_hidden {
            continue;
        }
        match fs::metadata(&path) {
            Ok(metadata) => seen.push((path, metadata.len(), metadata.modified().ok())),
            // Removed by a rotation since the folder was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&path, error)),
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
        let place = || path.display().to_string();
        let text = text.ok_or_else(|| KeysError::NotAKey { place: place() })?;
        match source {
            Source::File(_) => {
                let text = str::from_utf8(&text).map_err(|_| KeysError::NotAKey { place: place() })?;
                for pem in text.split_inclusive(PEM_END).filter_map(|part| part.find(PEM_BEGIN).and_then(|at| part.get(at..))) {
                    let signing = SigningKey::from_pkcs8_pem(pem).map_err(|_| KeysError::NotAKey { place: place() })?;
                    let kid = thumbprint(&signing.verifying_key());
                    if keys.len() == KEYS_MAX {
                        return Err(KeysError::TooMany);
                    }
                    keys.push(Key::new(signing, kid, None));
                }
            }
            Source::Folder(_) | Source::Store(_) => {
                let kid = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
                keys.push(named(&text, kid, place)?);
            }
        }
    }
    if matches!(source, Source::Folder(_)) {
        in_order(&mut keys);
    }
    match source {
        Source::Folder(path) | Source::File(path) if keys.is_empty() => {
            Err(KeysError::NoKey { place: path.display().to_string() })
        }
        _ => Ok(keys),
    }
}

/// A key that is named by its id.
fn named(pem: &[u8], kid: &str, place: impl Fn() -> String) -> Result<Key, KeysError> {
    let pem = str::from_utf8(pem).ok().and_then(|pem| SigningKey::from_pkcs8_pem(pem.trim()).ok());
    let signing = pem.ok_or_else(|| KeysError::NotAKey { place: place() })?;
    let made = Ulid::from_string(kid).ok().filter(|ulid| ulid.to_string() == kid);
    let made = made.ok_or_else(|| KeysError::NotAName { place: place() })?;
    let made = Timestamp::from_millis(i64::try_from(made.timestamp_ms()).unwrap_or(i64::MAX));
    Ok(Key::new(signing, kid.to_owned(), Some(made)))
}

/// From sorted by name to the newest first, each told when it was replaced: a ULID's order is that of time.
fn in_order(keys: &mut [Key]) {
    keys.reverse();
    let mut replaced = None;
    for key in keys {
        key.replaced = replaced;
        replaced = key.made;
    }
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
