//! Seals: personal data that the journal bears and only a user's own key opens, for as long as that key exists.
//!
//! The journal is never rewritten. So what is personal is written to it sealed (XChaCha20-Poly1305), and its key lies in
//! the vault: a folder outside of the journal with one small file for each user. Deleting an account destroys the key.
//! What was sealed then stays where it is, and says nothing to anybody.
//!
//! - A seal is bound to its user (as associated data): moved to another user's record it does not open.
//! - A key is made by the user's first seal ([`Vault::seal_first`]), and written durably before the seal is given out.
//! - A user's files are touched under one lock of this process, so that a key which is being destroyed is not at the same
//!   time read back into memory.
//! - A file is named by SHA-256 of the user's id, so no id can lead out of the vault.
//!
//! # What destroying a key does not reach
//!
//! Copies. A backup of the vault must not be kept for longer than a deletion may take, and separately from backups of
//! the journal. A file system that copies on write, or the spare blocks of a disk, may hold the overwritten bytes for a
//! while. Another node that has the key in memory keeps it until it restarts or forgets it.
//!
//! No key and nothing that was sealed may be logged or shown.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::{NoRandomness, private_file, random};
use crate::actors::credential::hex;

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
/// Threads that may be reading or writing files of the vault.
const FILES_AT_ONCE: usize = 16;
/// How long a caller waits for its turn.
const TURN_MS: u64 = 2_000;
/// How long a caller waits for the disk. The work itself is not cut short.
const DISK_MS: u64 = 10_000;
/// Users share this many locks.
const LOCKS: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("the vault cannot be used: {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is no key", path.display())]
    NotAKey { path: PathBuf },
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

/// The keys of all users. Clones share them.
#[derive(Clone)]
pub struct Vault {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    /// Of users whose key exists.
    keys: Cache<String, Key>,
    /// Held while a user's file is touched and the cache is made to agree with it.
    locks: [Mutex<()>; LOCKS],
    files: Arc<Semaphore>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("folder", &self.shared.folder).finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens the vault, making its folder if need be. Blocks on the disk.
    pub fn open(folder: &Path) -> Result<Self, SealError> {
        private_file::create_folder(folder).map_err(|source| SealError::File { path: folder.to_owned(), source })?;
        let shared = Shared {
            folder: folder.to_owned(),
            keys: Cache::new(KEYS_MAX),
            locks: [const { Mutex::new(()) }; LOCKS],
            files: Arc::new(Semaphore::new(FILES_AT_ONCE)),
        };
        Ok(Vault { shared: Arc::new(shared) })
    }

    /// Seals something of a user's under the key that there is. Touches no file when the key is in memory.
    pub async fn seal(&self, user: &str, plain: &[u8]) -> Result<String, SealError> {
        let key = match self.shared.keys.get(user) {
            Some(key) => key,
            None => self.on_files(user, Shared::read).await?.ok_or(SealError::Destroyed)?,
        };
        seal(&key, user, plain)
    }

    /// The same, and makes the key if there is none: for a user's first seal. Later ones must not, or what is still under
    /// way when an account is deleted would leave a new key behind.
    pub async fn seal_first(&self, user: &str, plain: &[u8]) -> Result<String, SealError> {
        let key = match self.shared.keys.get(user) {
            Some(key) => key,
            None => self.on_files(user, Shared::read_or_make).await?,
        };
        seal(&key, user, plain)
    }

    /// Opens a seal; `None` when the user's key was destroyed. Touches no file when the key is in memory.
    pub async fn open_seal(&self, user: &str, text: &str) -> Result<Option<Zeroizing<Vec<u8>>>, SealError> {
        if let Some(opened) = self.open_seal_now(user, text) {
            return opened.map(Some);
        }
        match self.on_files(user, Shared::read).await? {
            Some(key) => open(&key, user, text).map(Some),
            None => Ok(None),
        }
    }

    /// Opens a seal if the user's key is in memory; `None` when it is not, and only [`Vault::open_seal`] can tell.
    pub fn open_seal_now(&self, user: &str, text: &str) -> Option<Result<Zeroizing<Vec<u8>>, SealError>> {
        self.shared.keys.get(user).map(|key| open(&key, user, text))
    }

    /// Destroys a user's key for good, and says whether there was one. Once this returns, nothing sealed for the user opens
    /// any more.
    pub async fn destroy(&self, user: &str) -> Result<bool, SealError> {
        self.on_files(user, Shared::destroy).await
    }

    /// Does work on a user's file, under the user's lock and on a thread that may block.
    async fn on_files<T: Send + 'static>(
        &self,
        user: &str,
        work: impl FnOnce(&Shared, &str, &Path) -> Result<T, SealError> + Send + 'static,
    ) -> Result<T, SealError> {
        let files = Arc::clone(&self.shared.files);
        let Ok(Ok(turn)) = tokio::time::timeout(Duration::from_millis(TURN_MS), files.acquire_owned()).await else {
            return Err(SealError::Busy);
        };
        let (shared, user) = (Arc::clone(&self.shared), user.to_owned());
        let done = tokio::task::spawn_blocking(move || {
            // Held for as long as the disk is at work, also when nobody waits for it any more.
            let _turn = turn;
            let digest = Sha256::digest(user.as_bytes());
            let lock = shared.locks.get(usize::from(digest.first().copied().unwrap_or(0)) % LOCKS);
            let _locked = lock.map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner));
            let path = path_of(&shared.folder, &hex(&digest));
            work(&shared, &user, &path)
        });
        match tokio::time::timeout(Duration::from_millis(DISK_MS), done).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) | Err(_) => Err(SealError::Busy),
        }
    }
}

/// In two levels of folders, so that none grows to millions of names.
fn path_of(folder: &Path, digest: &str) -> PathBuf {
    let (first, rest) = digest.split_at(2);
    let (second, rest) = rest.split_at(2);
    folder.join(first).join(second).join(rest)
}

impl Shared {
    fn read(&self, user: &str, path: &Path) -> Result<Option<Key>, SealError> {
        let failed = |source| SealError::File { path: path.to_owned(), source };
        let Some(bytes) = private_file::read(path, KEY_BYTES).map_err(failed)? else { return Ok(None) };
        let key: [u8; KEY_BYTES] = bytes.as_slice().try_into().map_err(|_| SealError::NotAKey { path: path.to_owned() })?;
        if key == [0; KEY_BYTES] {
            // Destroying it was cut short between overwriting and removing. Nothing may be sealed with zeros.
            private_file::destroy(path).map_err(failed)?;
            return Ok(None);
        }
        let key = Arc::new(Zeroizing::new(key));
        self.keys.insert(user.to_owned(), Arc::clone(&key));
        Ok(Some(key))
    }

    fn read_or_make(&self, user: &str, path: &Path) -> Result<Key, SealError> {
        let failed = |source| SealError::File { path: path.to_owned(), source };
        if let Some(key) = self.read(user, path)? {
            return Ok(key);
        }
        if let Some(folder) = path.parent() {
            private_file::create_folder(folder).map_err(failed)?;
        }
        private_file::create(path, Zeroizing::new(random::<KEY_BYTES>()?).as_slice()).map_err(failed)?;
        // Read back, because another process may have been first.
        self.read(user, path)?.ok_or_else(|| SealError::NotAKey { path: path.to_owned() })
    }

    fn destroy(&self, user: &str, path: &Path) -> Result<bool, SealError> {
        // Out of memory first: if the disk fails, the caller hears it and tries again.
        self.keys.remove(user);
        let existed = path.exists();
        private_file::destroy(path).map_err(|source| SealError::File { path: path.to_owned(), source })?;
        Ok(existed)
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

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    fn vault() -> (TempDir, Vault) {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(&folder.path().join("vault")).unwrap();
        (folder, vault)
    }

    fn reopened(folder: &TempDir) -> Vault {
        Vault::open(&folder.path().join("vault")).unwrap()
    }

    fn file_of(folder: &TempDir, user: &str) -> PathBuf {
        path_of(&folder.path().join("vault"), &hex(&Sha256::digest(user)))
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
        let _all = vault.shared.files.acquire_many(FILES_AT_ONCE as u32).await.unwrap();
        assert!(matches!(vault.seal_first("usr_1", b"x").await, Err(SealError::Busy)));
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
