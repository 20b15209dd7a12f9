//! Seals: personal data that the journal bears and only a user's own key opens, for as long as that key exists.
//!
//! The journal is never rewritten. So what is personal is written to it sealed (XChaCha20-Poly1305), and its key lies in
//! the vault: a keystore outside of the journal with one small value for each user. Deleting an account destroys the key.
//! What was sealed then stays where it is, and says nothing to anybody.
//!
//! - A seal is bound to its user (as associated data): moved to another user's record it does not open.
//! - A key is made by the user's first seal ([`Vault::seal_first`]), and written durably before the seal is given out.
//! - A user's key is touched under one lock of this process, so that a key which is being destroyed is not at the same
//!   time read back into memory.
//! - A key is named by SHA-256 of the user's id, so no id can lead out of the vault.
//!
//! # A key that another process destroys
//!
//! Keys are held in memory, and somebody else may destroy one: another node, or `souk admin forget-guests`. Another
//! node's doing is heard at once as a rule, but a word can be lost. So a key is asked for again after [`CONFIRM_MS`],
//! while it goes on being used, and one that could not be confirmed for [`HELD_MS`] is let go: no key is used for longer
//! than that after its destruction, also by a node that is cut off. (A server of NATS that does not know yet that it was
//! deposed may confirm one for some seconds longer.)
//!
//! # What destroying a key does not reach
//!
//! Copies. A backup of the vault must not be kept for longer than a deletion may take, and separately from backups of
//! the journal. A file system that copies on write, the spare blocks of a disk, or a raft log of NATS may hold the bytes
//! for a while.
//!
//! No key and nothing that was sealed may be logged or shown.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use futures_util::StreamExt;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::keystore::{Keystore, KeystoreError, Name};
use super::{NoRandomness, random};

/// What may be sealed at once: a name, an address, a whole answer.
pub const SEALED_BYTES_MAX: usize = 256 * 1024;
/// What seals begin with; another form would begin with something else.
const FORM: &str = "s1.";
/// Set before the user's id, so that nothing else that these keys may ever encrypt is taken for a seal.
const BOUND_TO: &[u8] = b"souk seal 1\0";
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const TEXT_BYTES_MAX: usize = FORM.len() + (NONCE_BYTES + SEALED_BYTES_MAX + TAG_BYTES).div_ceil(3) * 4;
/// Keys that are held in memory.
const KEYS_MAX: usize = 10_000;
/// Keys that may be read, made or destroyed at once.
const AT_ONCE: usize = 16;
/// How long a caller waits for its turn.
const TURN_MS: u64 = 2_000;
/// How long a caller waits for the keystore. The work itself is not cut short.
const STORE_MS: u64 = 10_000;
/// Users share this many locks.
const LOCKS: usize = 64;
/// A key in memory is confirmed when it is used after so long.
pub const CONFIRM_MS: u64 = 20_000;
/// And is used no more when that has not come about.
pub const HELD_MS: u64 = 60_000;

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("the vault cannot be used: {0}")]
    Keystore(#[from] KeystoreError),
    #[error("{place} is no key")]
    NotAKey { place: String },
    #[error("this does not open with the user's key: it was changed, or sealed for another")]
    Foreign,
    #[error("there is no such key (any more)")]
    Destroyed,
    #[error("more than {SEALED_BYTES_MAX} bytes are not sealed")]
    TooLong,
    /// 503.
    #[error("the vault does not keep up")]
    Busy,
    #[error("it could not be encrypted")]
    Cipher,
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

type Key = Arc<Zeroizing<[u8; KEY_BYTES]>>;
type Digest32 = [u8; 32];

/// The keys of all users. Clones share them.
#[derive(Clone)]
pub struct Vault {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn Keystore>,
    /// Of users whose key existed a moment ago.
    keys: Cache<Digest32, Held>,
    /// Held while a user's key is touched and the cache is made to agree with it.
    locks: [Mutex<()>; LOCKS],
    turns: Arc<Semaphore>,
}

#[derive(Clone)]
struct Held {
    key: Key,
    confirmed: Instant,
    /// Whether somebody is asking for it again already.
    confirming: Arc<AtomicBool>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").finish_non_exhaustive()
    }
}

impl Vault {
    pub fn new(store: Arc<dyn Keystore>) -> Self {
        let shared = Shared {
            store,
            keys: Cache::new(KEYS_MAX),
            locks: [const { Mutex::const_new(()) }; LOCKS],
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        };
        Vault { shared: Arc::new(shared) }
    }

    /// Lets go at once of what others destroy, as far as it is heard; until the vault is dropped.
    pub fn listen(&self) {
        let (mut changes, shared) = (self.shared.store.changes(), Arc::downgrade(&self.shared));
        tokio::spawn(async move {
            while let Some(name) = changes.next().await {
                let Some(shared) = shared.upgrade() else { break };
                if let Name::VaultKey(digest) = name {
                    // Behind whoever is reading it right now.
                    let _locked = shared.lock(&digest).lock().await;
                    shared.keys.remove(&digest);
                }
            }
        });
    }

    /// Seals something of a user's under the key that there is. Asks nobody when the key is in memory.
    pub async fn seal(&self, user: &str, plain: &[u8]) -> Result<String, SealError> {
        let digest = digest_of(user);
        let key = match self.held(&digest) {
            Some(key) => key,
            None => self.in_turn(digest, Shared::read).await?.ok_or(SealError::Destroyed)?,
        };
        seal(&key, user, plain)
    }

    /// The same, and makes the key if there is none: for a user's first seal. Later ones must not, or what is still under
    /// way when an account is deleted would leave a new key behind.
    pub async fn seal_first(&self, user: &str, plain: &[u8]) -> Result<String, SealError> {
        let digest = digest_of(user);
        let key = match self.held(&digest) {
            Some(key) => key,
            None => self.in_turn(digest, Shared::read_or_make).await?,
        };
        seal(&key, user, plain)
    }

    /// Opens a seal; `None` when the user's key was destroyed. Asks nobody when the key is in memory.
    pub async fn open_seal(&self, user: &str, text: &str) -> Result<Option<Zeroizing<Vec<u8>>>, SealError> {
        if let Some(opened) = self.open_seal_now(user, text) {
            return opened.map(Some);
        }
        match self.in_turn(digest_of(user), Shared::read).await? {
            Some(key) => open(&key, user, text).map(Some),
            None => Ok(None),
        }
    }

    /// Opens a seal if the user's key is in memory; `None` when it is not, and only [`Vault::open_seal`] can tell.
    pub fn open_seal_now(&self, user: &str, text: &str) -> Option<Result<Zeroizing<Vec<u8>>, SealError>> {
        self.held(&digest_of(user)).map(|key| open(&key, user, text))
    }

    /// Whether there is a key, as the keystore knows it.
    pub async fn has_key(&self, user: &str) -> Result<bool, SealError> {
        Ok(self.in_turn(digest_of(user), Shared::read).await?.is_some())
    }

    /// Destroys a user's key for good, and says whether there was one. Once this returns, nothing sealed for the user opens
    /// here any more, and [`HELD_MS`] later nowhere.
    pub async fn destroy(&self, user: &str) -> Result<bool, SealError> {
        self.in_turn(digest_of(user), Shared::destroy).await
    }

    /// The key, if it is in memory and not too old to be believed.
    fn held(&self, digest: &Digest32) -> Option<Key> {
        let held = self.shared.keys.get(digest)?;
        let age = held.confirmed.elapsed();
        if age >= Duration::from_millis(HELD_MS) {
            return None;
        }
        if age >= Duration::from_millis(CONFIRM_MS) && !held.confirming.swap(true, Ordering::Relaxed) {
            let (vault, digest, confirming) = (self.clone(), *digest, Arc::clone(&held.confirming));
            tokio::spawn(async move {
                if let Err(error) = vault.in_turn(digest, Shared::read).await {
                    tracing::debug!(%error, "a key of the vault could not be confirmed");
                }
                confirming.store(false, Ordering::Relaxed);
            });
        }
        Some(held.key)
    }

    /// Does work on a user's key, under the user's lock and to its end, whether or not the caller waits for it.
    async fn in_turn<T, F>(
        &self,
        digest: Digest32,
        work: impl FnOnce(Arc<Shared>, Digest32) -> F + Send + 'static,
    ) -> Result<T, SealError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, SealError>> + Send,
    {
        let turns = Arc::clone(&self.shared.turns);
        let Ok(Ok(turn)) = tokio::time::timeout(Duration::from_millis(TURN_MS), turns.acquire_owned()).await else {
            return Err(SealError::Busy);
        };
        let shared = Arc::clone(&self.shared);
        let done = tokio::spawn(async move {
            // Held for as long as the keystore is at work, also when nobody waits for it any more.
            let _turn = turn;
            let _locked = shared.lock(&digest).lock().await;
            work(Arc::clone(&shared), digest).await
        });
        match tokio::time::timeout(Duration::from_millis(STORE_MS), done).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) | Err(_) => Err(SealError::Busy),
        }
    }
}

fn digest_of(user: &str) -> Digest32 {
    Sha256::digest(user.as_bytes()).into()
}

impl Shared {
    fn lock(&self, digest: &Digest32) -> &Mutex<()> {
        &self.locks[usize::from(digest[0]) % LOCKS]
    }

    async fn read(self: Arc<Self>, digest: Digest32) -> Result<Option<Key>, SealError> {
        let name = Name::VaultKey(digest);
        let asked = Instant::now();
        let Some(bytes) = self.store.get(&name).await? else {
            self.keys.remove(&digest);
            return Ok(None);
        };
        let key: Result<[u8; KEY_BYTES], _> = bytes.as_slice().try_into();
        let key = key.map_err(|_| SealError::NotAKey { place: self.store.place(&name) })?;
        Ok(Some(self.hold(digest, Arc::new(Zeroizing::new(key)), asked)))
    }

    async fn read_or_make(self: Arc<Self>, digest: Digest32) -> Result<Key, SealError> {
        if let Some(key) = Arc::clone(&self).read(digest).await? {
            return Ok(key);
        }
        let made: Key = Arc::new(Zeroizing::new(random()?));
        let asked = Instant::now();
        if self.store.create(&Name::VaultKey(digest), made.as_slice()).await? {
            return Ok(self.hold(digest, made, asked));
        }
        // Another was first, or has destroyed it for good.
        self.read(digest).await?.ok_or(SealError::Destroyed)
    }

    fn hold(&self, digest: Digest32, key: Key, confirmed: Instant) -> Key {
        self.keys.insert(digest, Held { key: Arc::clone(&key), confirmed, confirming: Arc::default() });
        key
    }

    async fn destroy(self: Arc<Self>, digest: Digest32) -> Result<bool, SealError> {
        // Out of memory first: if the keystore fails, the caller hears it and tries again.
        self.keys.remove(&digest);
        Ok(self.store.destroy(&Name::VaultKey(digest)).await?)
    }
}

fn bound_to(user: &str) -> Vec<u8> {
    [BOUND_TO, user.as_bytes()].concat()
}

fn seal(key: &Key, user: &str, plain: &[u8]) -> Result<String, SealError> {
    if plain.len() > SEALED_BYTES_MAX {
        return Err(SealError::TooLong);
    }
    // Of 192 bits: random ones do not meet.
    let nonce: [u8; NONCE_BYTES] = random()?;
    let bound_to = bound_to(user);
    let cipher = XChaCha20Poly1305::new((&***key).into());
    let sealed = cipher.encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: &bound_to }).map_err(|_| SealError::Cipher)?;
    let mut text = FORM.to_owned();
    URL_SAFE_NO_PAD.encode_string([nonce.as_slice(), &sealed].concat(), &mut text);
    Ok(text)
}

fn open(key: &Key, user: &str, text: &str) -> Result<Zeroizing<Vec<u8>>, SealError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(SealError::Foreign);
    }
    let bytes = text.strip_prefix(FORM).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).ok_or(SealError::Foreign)?;
    let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::Foreign)?;
    let bound_to = bound_to(user);
    let cipher = XChaCha20Poly1305::new((&***key).into());
    let plain = cipher.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &bound_to });
    plain.map(Zeroizing::new).map_err(|_| SealError::Foreign)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use futures_util::future::BoxFuture;
    use futures_util::stream::BoxStream;

    use super::super::keystore::{Folder, Value};
    use super::super::private_file;
    use super::*;
    use crate::actors::credential::hex;

    fn vault() -> (TempDir, Vault) {
        let folder = tempfile::tempdir().unwrap();
        let vault = reopened(&folder);
        (folder, vault)
    }

    fn reopened(folder: &TempDir) -> Vault {
        Vault::new(Arc::new(Folder::new(folder.path())))
    }

    fn file_of(folder: &TempDir, user: &str) -> PathBuf {
        Folder::new(folder.path()).path(&Name::VaultKey(digest_of(user)))
    }

    async fn opened(vault: &Vault, user: &str, text: &str) -> Option<Vec<u8>> {
        vault.open_seal(user, text).await.unwrap().map(|plain| plain.to_vec())
    }

    #[tokio::test]
    async fn what_is_sealed_opens_for_its_user_also_after_a_restart() {
        let (folder, vault) = vault();
        let text = vault.seal_first("usr_1", b"shopper@souk.test").await.unwrap();
        assert!(!text.contains("shopper"));
        assert_eq!(opened(&vault, "usr_1", &text).await.unwrap(), b"shopper@souk.test");
        let again = reopened(&folder);
        assert!(again.open_seal_now("usr_1", &text).is_none(), "the key is not in memory yet");
        assert_eq!(opened(&again, "usr_1", &text).await.unwrap(), b"shopper@souk.test");
        assert_eq!(again.open_seal_now("usr_1", &text).unwrap().unwrap().as_slice(), b"shopper@souk.test");
        assert_ne!(text, again.seal_first("usr_1", b"shopper@souk.test").await.unwrap(), "equal things do not look equal");
        assert_eq!(opened(&vault, "usr_1", &again.seal_first("usr_1", b"").await.unwrap()).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn a_key_lies_in_a_file_of_its_own_that_others_cannot_read() {
        let (folder, vault) = vault();
        for user in ["usr_1", "usr_2", "../../escaped", "", "/etc/passwd", "a\0b"] {
            vault.seal_first(user, b"x").await.unwrap();
            let file = file_of(&folder, user);
            assert_eq!(fs::read(&file).unwrap().len(), KEY_BYTES);
            assert!(!private_file::is_exposed(&file) && !private_file::is_exposed(file.parent().unwrap()));
        }
        assert_ne!(fs::read(file_of(&folder, "usr_1")).unwrap(), fs::read(file_of(&folder, "usr_2")).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing lies outside of the vault");
    }

    #[tokio::test]
    async fn a_seal_opens_for_nobody_else_not_even_with_the_same_key() {
        let (folder, vault) = vault();
        let text = vault.seal_first("usr_1", b"mine").await.unwrap();
        vault.seal_first("usr_2", b"theirs").await.unwrap();
        assert!(matches!(vault.open_seal("usr_2", &text).await, Err(SealError::Foreign)));
        fs::copy(file_of(&folder, "usr_1"), file_of(&folder, "usr_2")).unwrap();
        assert!(matches!(reopened(&folder).open_seal("usr_2", &text).await, Err(SealError::Foreign)));
    }

    #[tokio::test]
    async fn a_destroyed_key_opens_nothing_any_more_and_leaves_no_file() {
        let (folder, vault) = vault();
        let text = vault.seal_first("usr_1", b"mine").await.unwrap();
        let other = vault.seal_first("usr_2", b"theirs").await.unwrap();
        // What a crash may have left of writing the key.
        let file = file_of(&folder, "usr_1");
        let left = file.with_file_name(".left");
        fs::hard_link(&file, &left).unwrap();
        vault.destroy("usr_1").await.unwrap();
        assert!(vault.open_seal_now("usr_1", &text).is_none());
        assert_eq!(opened(&vault, "usr_1", &text).await, None);
        assert_eq!(opened(&reopened(&folder), "usr_1", &text).await, None);
        assert!(!file.exists());
        assert_eq!(fs::read(left).unwrap(), [0; KEY_BYTES]);
        vault.destroy("usr_1").await.unwrap();
        vault.destroy("usr_never_seen").await.unwrap();
        assert_eq!(opened(&vault, "usr_2", &other).await.unwrap(), b"theirs");

        assert!(matches!(vault.seal("usr_1", b"late").await, Err(SealError::Destroyed)));
        // A first seal again makes another key, which does not bring back what is gone.
        vault.seal_first("usr_1", b"new").await.unwrap();
        assert!(matches!(vault.open_seal("usr_1", &text).await, Err(SealError::Foreign)));
    }

    #[tokio::test]
    async fn a_destruction_that_was_cut_short_is_finished_and_zeros_are_never_a_key() {
        let (folder, vault) = vault();
        let text = vault.seal_first("usr_1", b"mine").await.unwrap();
        let file = file_of(&folder, "usr_1");
        fs::write(&file, [0; KEY_BYTES]).unwrap();
        let again = reopened(&folder);
        assert_eq!(opened(&again, "usr_1", &text).await, None);
        assert!(!file.exists());
        fs::write(&file, [0; KEY_BYTES]).unwrap();
        again.seal_first("usr_1", b"new").await.unwrap();
        assert_ne!(fs::read(&file).unwrap(), [0; KEY_BYTES]);
    }

    #[tokio::test]
    async fn a_damaged_key_is_an_error_and_never_taken_for_a_destroyed_one_or_replaced() {
        let (folder, vault) = vault();
        let text = vault.seal_first("usr_1", b"mine").await.unwrap();
        for damaged in [&[1_u8; 31][..], &[], &[1; 33]] {
            fs::write(file_of(&folder, "usr_1"), damaged).unwrap();
            let again = reopened(&folder);
            assert!(again.open_seal("usr_1", &text).await.is_err());
            assert!(again.seal_first("usr_1", b"new").await.is_err());
            assert_eq!(fs::read(file_of(&folder, "usr_1")).unwrap(), damaged);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_first_seals_at_once_are_all_under_one_key() {
        let (folder, vault) = vault();
        // Two vaults on one folder, as two processes would be.
        let other = reopened(&folder);
        let sealing = (0..32).map(|n| {
            let vault = if n % 2 == 0 { vault.clone() } else { other.clone() };
            tokio::spawn(async move { vault.seal_first("usr_1", b"mine").await.unwrap() })
        });
        let sealing: Vec<_> = sealing.collect();
        let again = reopened(&folder);
        for text in sealing {
            assert_eq!(opened(&again, "usr_1", &text.await.unwrap()).await.unwrap(), b"mine");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_key_is_not_read_back_into_memory_while_it_is_destroyed() {
        let (folder, vault) = vault();
        for round in 0..50 {
            let user = format!("usr_{round}");
            let text = vault.seal_first(&user, b"mine").await.unwrap();
            let cold = reopened(&folder);
            let opening: Vec<_> = (0..4)
                .map(|_| {
                    let (vault, user, text) = (cold.clone(), user.clone(), text.clone());
                    tokio::spawn(async move { vault.open_seal(&user, &text).await.map(|_| ()) })
                })
                .collect();
            cold.destroy(&user).await.unwrap();
            assert_eq!(opened(&cold, &user, &text).await, None);
            for opening in opening {
                opening.await.unwrap().unwrap();
            }
            assert!(cold.open_seal_now(&user, &text).is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_for_a_vault_that_does_not_keep_up() {
        let (_folder, vault) = vault();
        let _all = vault.shared.turns.acquire_many(AT_ONCE as u32).await.unwrap();
        assert!(matches!(vault.seal_first("usr_1", b"x").await, Err(SealError::Busy)));
    }

    /// A keystore in memory, which can be lost, and whose values others destroy without a word.
    #[derive(Default)]
    struct Elsewhere {
        value: std::sync::Mutex<Option<Vec<u8>>>,
        is_lost: AtomicBool,
        asked: std::sync::atomic::AtomicUsize,
    }

    impl Elsewhere {
        fn reached<T: Send + 'static>(&self, answer: T) -> BoxFuture<'static, Result<T, KeystoreError>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let is_lost = self.is_lost.load(Ordering::Relaxed);
            Box::pin(async move { if is_lost { Err(KeystoreError::Unreachable("lost".into())) } else { Ok(answer) } })
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    impl Keystore for Elsewhere {
        fn get<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<Option<Value>, KeystoreError>> {
            self.reached(self.value.lock().unwrap().clone().map(Value::new))
        }

        fn create<'a>(&'a self, _: &'a Name, value: &'a [u8]) -> BoxFuture<'a, Result<bool, KeystoreError>> {
            *self.value.lock().unwrap() = Some(value.to_vec());
            self.reached(true)
        }

        fn destroy<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<bool, KeystoreError>> {
            self.reached(self.value.lock().unwrap().take().is_some())
        }

        fn signing_keys(&self) -> BoxFuture<'_, Result<Vec<String>, KeystoreError>> {
            self.reached(Vec::new())
        }

        fn has_vault(&self) -> BoxFuture<'_, Result<bool, KeystoreError>> {
            self.reached(true)
        }

        fn changes(&self) -> BoxStream<'static, Name> {
            futures_util::stream::empty().boxed()
        }

        fn place(&self, _: &Name) -> String {
            "elsewhere".into()
        }
    }

    async fn pass(ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
        // What that set going comes to its end.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_used_is_confirmed_now_and_then_and_let_go_when_somebody_destroyed_it() {
        let store = Arc::new(Elsewhere::default());
        let vault = Vault::new(store.clone());
        let text = vault.seal_first("usr_1", b"mine").await.unwrap();
        let asked = store.asked();
        pass(CONFIRM_MS - 1).await;
        assert!(vault.open_seal_now("usr_1", &text).is_some());
        pass(0).await;
        assert_eq!(store.asked(), asked, "nobody is asked so soon");
        pass(1).await;
        assert!(vault.open_seal_now("usr_1", &text).is_some() && vault.open_seal_now("usr_1", &text).is_some());
        pass(0).await;
        assert_eq!(store.asked(), asked + 1, "once for all who use it");
        *store.value.lock().unwrap() = None;
        pass(CONFIRM_MS).await;
        assert!(vault.open_seal_now("usr_1", &text).is_some(), "it is used while it is confirmed");
        pass(0).await;
        assert!(vault.open_seal_now("usr_1", &text).is_none());
        assert_eq!(opened(&vault, "usr_1", &text).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_cannot_be_confirmed_is_used_for_a_while_and_then_no_more() {
        let store = Arc::new(Elsewhere::default());
        let vault = Vault::new(store.clone());
        let text = vault.seal_first("usr_1", b"mine").await.unwrap();
        store.is_lost.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            pass(CONFIRM_MS - 1).await;
            assert_eq!(opened(&vault, "usr_1", &text).await.unwrap(), b"mine");
        }
        pass(HELD_MS - 3 * (CONFIRM_MS - 1)).await;
        let lost = vault.open_seal("usr_1", &text).await;
        assert!(matches!(lost, Err(SealError::Keystore(KeystoreError::Unreachable(_)))), "and never taken for destroyed");
        store.is_lost.store(false, Ordering::Relaxed);
        assert_eq!(opened(&vault, "usr_1", &text).await.unwrap(), b"mine");
    }

    #[tokio::test]
    async fn what_is_too_long_is_not_sealed_and_the_longest_that_is_opens() {
        let (_folder, vault) = vault();
        let longest = vec![b'x'; SEALED_BYTES_MAX];
        let text = vault.seal_first("usr_1", &longest).await.unwrap();
        assert_eq!(opened(&vault, "usr_1", &text).await.unwrap(), longest);
        assert!(matches!(vault.seal_first("usr_1", &[b'x'; SEALED_BYTES_MAX + 1]).await, Err(SealError::TooLong)));
    }

    #[test]
    fn the_cipher_is_xchacha20_poly1305_as_its_draft_has_it() {
        // draft-irtf-cfrg-xchacha-03, appendix A.3.1: the tag of its message.
        let key: Vec<u8> = (0x80..=0x9f).collect();
        let nonce: Vec<u8> = (0x40..=0x57).collect();
        let message = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
            sunscreen would be it.";
        let aad = [0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7];
        let cipher = XChaCha20Poly1305::new_from_slice(&key).unwrap();
        let nonce = XNonce::try_from(nonce.as_slice()).unwrap();
        let sealed = cipher.encrypt(&nonce, Payload { msg: message, aad: &aad }).unwrap();
        assert_eq!(hex(&sealed[message.len()..]), "c0875924c1c7987947deafd8780acf49");
    }

    proptest! {
        #[test]
        fn no_text_makes_opening_panic_and_no_changed_seal_opens(text in any::<String>(), place in any::<prop::sample::Index>()) {
            let key: Key = Arc::new(Zeroizing::new([7; KEY_BYTES]));
            prop_assert!(open(&key, "usr_1", &text).is_err());
            let prefixed = format!("{FORM}{text}");
            prop_assert!(open(&key, "usr_1", &prefixed).is_err());

            let sealed = seal(&key, "usr_1", text.as_bytes()).unwrap();
            let opened = open(&key, "usr_1", &sealed).unwrap();
            prop_assert_eq!(opened.as_slice(), text.as_bytes());
            let mut changed = sealed.into_bytes();
            let at = place.index(changed.len());
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            prop_assert!(open(&key, "usr_1", std::str::from_utf8(&changed).unwrap()).is_err());
        }
    }
}
