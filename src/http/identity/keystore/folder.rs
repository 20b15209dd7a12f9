//! The keystore of a node of its own: files that only this user of the machine may read, in the data folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};

use super::{Keystore, KeystoreError, Name, VALUE_BYTES_MAX, Value};
use crate::actors::credential::hex;
use crate::http::identity::private_file;

const VAULT: &str = "vault";
const SIGNING_KEYS: &str = "keys";
const PEM: &str = "pem";

pub struct Folder(PathBuf);

impl Folder {
    /// Opens the keystore of a data folder. Nothing is made before something is created.
    pub fn new(path: &Path) -> Self {
        Folder(path.to_owned())
    }

    pub(crate) fn path(&self, name: &Name) -> PathBuf {
        match name {
            Name::Secret => self.0.join("secret"),
            Name::FirstSigningKey => self.0.join(SIGNING_KEYS).join("first"),
            Name::SigningKey(kid) => self.0.join(SIGNING_KEYS).join(format!("{kid}.{PEM}")),
            Name::VaultKey(digest) => {
                // In two levels of folders, so that none grows to millions of names.
                let digest = hex(digest);
                let (first, rest) = digest.split_at(2);
                let (second, rest) = rest.split_at(2);
                self.0.join(VAULT).join(first).join(second).join(rest)
            }
        }
    }

    /// Every key of the vault, sorted. Blocks on the disk.
    pub fn vault_keys(&self) -> Result<Vec<Name>, KeystoreError> {
        let mut found = Vec::new();
        for first in sorted(&self.0.join(VAULT))? {
            for second in sorted(&first)? {
                for file in sorted(&second)? {
                    let digest: String =
                        [&first, &second, &file].into_iter().filter_map(|path| path.file_name()?.to_str()).collect();
                    // What a crash left half done has a name that is none.
                    if let Some(digest) = unhex(&digest) {
                        found.push(Name::VaultKey(digest));
                    }
                }
            }
        }
        Ok(found)
    }
}

fn failed(path: &Path, source: io::Error) -> KeystoreError {
    KeystoreError::File { place: path.display().to_string(), source }
}

/// What lies in a folder; nothing when there is none.
fn sorted(folder: &Path) -> Result<Vec<PathBuf>, KeystoreError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(folder, error)),
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(|error| failed(folder, error))?;
    paths.sort();
    Ok(paths)
}

pub(super) fn unhex(text: &str) -> Option<[u8; 32]> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16)?).ok();
    let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    bytes?.try_into().ok()
}

/// Does it on a thread that may block, to its end, whether or not anybody waits.
fn blocking<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> BoxFuture<'static, Result<T, KeystoreError>> {
    let place = path.display().to_string();
    let done = tokio::task::spawn_blocking(move || work(&path));
    async move {
        let done = done.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        done.map_err(|source| KeystoreError::File { place, source })
    }
    .boxed()
}

impl Keystore for Folder {
    fn get<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<Option<Value>, KeystoreError>> {
        let holds_zeros = matches!(name, Name::VaultKey(_));
        blocking(self.path(name), move |path| {
            if private_file::is_exposed(path) {
                tracing::warn!("{} can be read by others on this machine: set its mode to 0600", path.display());
            }
            let found = private_file::read(path, VALUE_BYTES_MAX)?;
            if holds_zeros && found.as_ref().is_some_and(|bytes| !bytes.is_empty() && bytes.iter().all(|byte| *byte == 0)) {
                // Destroying it was cut short between overwriting and removing. Nothing may be sealed with zeros.
                private_file::destroy(path)?;
                return Ok(None);
            }
            Ok(found)
        })
    }

    fn create<'a>(&'a self, name: &'a Name, value: &'a [u8]) -> BoxFuture<'a, Result<bool, KeystoreError>> {
        let value = Value::new(value.to_vec());
        blocking(self.path(name), move |path| {
            if let Some(folder) = path.parent() {
                private_file::create_folder(folder)?;
            }
            private_file::create(path, &value)
        })
    }

    fn signing_keys(&self) -> BoxFuture<'_, Result<Vec<String>, KeystoreError>> {
        blocking(self.0.join(SIGNING_KEYS), |folder| {
            let paths = sorted(folder).map_err(io::Error::other)?;
            let pem = paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == PEM));
            let names = pem.filter_map(|path| path.file_stem()?.to_str());
            Ok(names.filter(|name| !name.starts_with('.')).map(str::to_owned).collect())
        })
    }

    fn has_vault(&self) -> BoxFuture<'_, Result<bool, KeystoreError>> {
        blocking(self.0.join(VAULT), |folder| folder.try_exists())
    }

    fn destroy<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<bool, KeystoreError>> {
        blocking(self.path(name), |path| {
            let existed = path.exists();
            private_file::destroy(path)?;
            Ok(existed)
        })
    }

    fn changes(&self) -> BoxStream<'static, Name> {
        stream::empty().boxed()
    }

    fn place(&self, name: &Name) -> String {
        self.path(name).display().to_string()
    }
}
