//! TLS: the node's certificate, and its renewal while the node runs.
//!
//! The two files are looked at now and then, and a new pair is taken as soon as it fits together. Whoever renews them may
//! write one after the other: until both fit, the old pair stays in use. Nothing here may ever fall back to plain HTTP.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// What is offered to a client, the better one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} is larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} holds no certificate in PEM form", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{} holds no private key in PEM form", path.display())]
    NoKey { path: PathBuf },
    #[error("the certificate in {} and the key in {} cannot be used: {source}", certificate.display(), key.display())]
    Unfit { certificate: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("TLS cannot be set up: {0}")]
    SetUp(#[from] rustls::Error),
}

/// Accepts TLS connections with the newest pair of certificate and key.
pub struct Tls {
    acceptor: TlsAcceptor,
    pair: Arc<Pair>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.pair.files.certificate).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the two files, which must fit together.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        let content = files.read()?;
        let newest = RwLock::new(Arc::new(files.understand(&content, &provider)?));
        let pair = Arc::new(Pair { files, newest });
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(pair.clone());
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(config)), pair })
    }

    pub fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }

    /// Takes a new pair whenever there is one. Never ends; to be dropped with the door.
    pub async fn keep_fresh(self: Arc<Self>) {
        let provider = ring::default_provider();
        let mut seen = self.pair.files.read().map(|content| content.fingerprint()).ok();
        loop {
            tokio::time::sleep(LOOK).await;
            let tls = Arc::clone(&self);
            let Ok(read) = tokio::task::spawn_blocking(move || tls.pair.files.read()).await else { continue };
            let content = match read {
                Ok(content) => content,
                // Between the removal of the old file and the arrival of the new one, or for good: said once.
                Err(error) => {
                    if seen.take().is_some() {
                        tracing::warn!(%error, "the certificate cannot be read again; the one in use stays");
                    }
                    continue;
                }
            };
            let fingerprint = content.fingerprint();
            if seen.replace(fingerprint) == Some(fingerprint) {
                continue;
            }
            match self.pair.files.understand(&content, &provider) {
                Ok(pair) => {
                    *self.pair.newest.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(pair);
                    tracing::info!(certificate = %self.pair.files.certificate.display(), "the certificate was read again");
                }
                Err(error) => tracing::warn!(%error, "a new certificate is not taken; the one in use stays"),
            }
        }
    }
}

/// The certificate in use.
#[derive(Debug)]
struct Pair {
    files: Files,
    newest: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Pair {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.newest.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Content {
    fn fingerprint(&self) -> [u8; 32] {
        Sha256::new().chain_update(Sha256::digest(&self.certificate)).chain_update(&self.key).finalize().into()
    }
}

impl Files {
    fn read(&self) -> Result<Content, TlsError> {
        Ok(Content { certificate: read(&self.certificate)?, key: read(&self.key)? })
    }

    fn understand(&self, content: &Content, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content.certificate).collect();
        let chain = match chain {
            Ok(chain) if !chain.is_empty() => chain,
            _ => return Err(TlsError::NoCertificate { path: self.certificate.clone() }),
        };
        let key = PrivateKeyDer::from_pem_slice(&content.key).map_err(|_| TlsError::NoKey { path: self.key.clone() })?;
        CertifiedKey::from_der(chain, key, provider).map_err(|source| TlsError::Unfit {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { path: path.to_owned(), source };
    let mut content = Vec::new();
    File::open(path).map_err(unreadable)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(unreadable)?;
    match content.len() as u64 {
        0..=FILE_BYTES_MAX => Ok(content),
        _ => Err(TlsError::TooLarge { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder with a certificate, its key, and the key of another.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["souk.test".to_owned()]).unwrap();
        fs::write(folder.path().join("cert"), made.cert.pem()).unwrap();
        fs::write(folder.path().join("key"), made.signing_key.serialize_pem()).unwrap();
        let other = rcgen::generate_simple_self_signed(["souk.test".to_owned()]).unwrap();
        fs::write(folder.path().join("other-key"), other.signing_key.serialize_pem()).unwrap();
        fs::write(folder.path().join("empty"), "").unwrap();
        fs::write(folder.path().join("large"), vec![b'x'; FILE_BYTES_MAX as usize + 1]).unwrap();
        folder
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let folder = folder();
        let path = |name: &str| folder.path().join(name);
        assert!(Tls::open(&path("cert"), &path("key")).is_ok());
        for (certificate, key, part) in [
            ("absent", "key", "absent cannot be read"),
            ("cert", "absent", "absent cannot be read"),
            ("empty", "key", "empty holds no certificate"),
            ("key", "key", "key holds no certificate"),
            ("cert", "cert", "cert holds no private key"),
            ("cert", "other-key", "cannot be used"),
            ("large", "key", "larger than 1048576 bytes"),
        ] {
            let error = Tls::open(&path(certificate), &path(key)).unwrap_err().to_string();
            assert!(error.contains(part), "{certificate} {key}: {error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_pair_is_taken_when_both_halves_have_come() {
        let folder = folder();
        let path = |name: &str| folder.path().join(name);
        let tls = Arc::new(Tls::open(&path("cert"), &path("key")).unwrap());
        let in_use = || tls.pair.newest.read().unwrap().cert.clone();
        let first = in_use();
        let keeper = tokio::spawn(Arc::clone(&tls).keep_fresh());
        let renewed = rcgen::generate_simple_self_signed(["souk.test".to_owned()]).unwrap();
        fs::write(path("cert"), renewed.cert.pem()).unwrap();
        tokio::time::sleep(LOOK * 3).await;
        assert!(in_use() == first, "half a pair is no pair");
        fs::remove_file(path("key")).unwrap();
        tokio::time::sleep(LOOK * 3).await;
        assert!(in_use() == first);
        fs::write(path("key"), renewed.signing_key.serialize_pem()).unwrap();
        let expected = vec![renewed.cert.der().clone()];
        tokio::time::timeout(LOOK * 100, async {
            while in_use() != expected {
                tokio::time::sleep(LOOK).await;
            }
        })
        .await
        .unwrap();
        keeper.abort();
    }
}
