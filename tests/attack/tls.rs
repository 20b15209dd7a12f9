//! TLS: both versions of HTTP over it, nothing beside it, renewed while it runs, and no place for those who stall.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::node::{Node, until};
use crate::shopper::buy_on;
use crate::wire::{Line, PATIENCE};

/// The handshake's timeout, and some patience.
const CUT: Duration = Duration::from_secs(20);
const NAME: &str = "souk.test";

struct Certificate {
    folder: TempDir,
    der: CertificateDer<'static>,
}

impl Certificate {
    fn new() -> Certificate {
        let folder = tempfile::tempdir().unwrap();
        let der = write(folder.path());
        Certificate { folder, der }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn node(&self, flags: &[&str]) -> Node {
        let (certificate, key) = (self.path("cert.pem"), self.path("key.pem"));
        let mut all = vec!["--tls-cert", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
        all.extend(flags);
        Node::start(&all).await
    }
}

/// Writes a new self-made certificate and its key.
fn write(folder: &Path) -> CertificateDer<'static> {
    let CertifiedKey::<KeyPair> { cert, signing_key } = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    fs::write(folder.join("cert.pem"), cert.pem()).unwrap();
    fs::write(folder.join("key.pem"), signing_key.serialize_pem()).unwrap();
    cert.der().clone()
}

/// Connects as a client that trusts this certificate only.
async fn connect(node: &Node, trusted: &CertificateDer<'static>, protocols: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(node.address).await?;
    let name = ServerName::try_from(NAME).unwrap();
    tokio::time::timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, stream)).await.unwrap()
}

#[tokio::test]
async fn a_shopper_buys_over_tls_by_http_1_and_http_2_is_spoken_with_those_who_can() {
    let certificate = Certificate::new();
    let node = certificate.node(&[]).await;
    let stream = connect(&node, &certificate.der, &["http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut line = Line::on(stream);
    buy_on(&mut line).await;
    // What is no HTTP at all is refused as it is without TLS.
    line.write(b"nonsense\r\n\r\n").await;
    line.hear().await.unwrap().is_problem(400, "not-http");

    let stream = connect(&node, &certificate.der, &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let request = hyper::Request::get(format!("https://{NAME}/api/products?limit=1")).body(Empty::<Bytes>::new()).unwrap();
        let answer = tokio::time::timeout(PATIENCE, client.send_request(request)).await.unwrap().unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, hyper::Version::HTTP_2));
        assert!(answer.headers().contains_key("x-request-id"));
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(serde_json::from_slice::<serde_json::Value>(&body).unwrap()["items"].is_array());
    }
}

#[tokio::test]
async fn whoever_speaks_no_tls_hears_nothing_of_the_shop() {
    let certificate = Certificate::new();
    let node = certificate.node(&[]).await;
    for garbage in
        [&b"GET /api/products HTTP/1.1\r\nhost: souk\r\n\r\n"[..], &[0xff; 4_000], b"\x16\x03\x01\xff\xff\x01", &[0; 70_000]]
    {
        let mut line = node.connect().await;
        line.write(garbage).await;
        let said = line.rest(CUT).await;
        assert!(!String::from_utf8_lossy(&said).contains("HTTP") && said.len() < 100, "{said:?}");
    }
    let stranger = write(tempfile::tempdir().unwrap().path());
    assert!(connect(&node, &stranger, &[]).await.is_err(), "the certificate is not this one");
    let mut line = Line::on(connect(&node, &certificate.der, &[]).await.unwrap());
    buy_on(&mut line).await;
    let text = line.ask("GET", "/metrics", "", "").await.text();
    let failed = text.lines().find_map(|line| line.strip_prefix("souk_http_tls_handshakes_failed_total ")).unwrap();
    assert!(failed.parse::<u64>().unwrap() >= 4, "{failed}");
}

#[tokio::test]
async fn a_handshake_that_stalls_is_cut_off_and_takes_a_place_only_that_long() {
    const PLACES: usize = 50;
    let certificate = Certificate::new();
    let node = certificate.node(&["--connections-max", "50"]).await;
    let mut stalled = Vec::new();
    for n in 0..PLACES {
        let mut line = node.connect().await;
        if n % 2 == 0 {
            line.write(b"\x16\x03\x01\x02").await;
        }
        stalled.push(line);
    }
    // They count: one more is closed at once.
    let mut one_more = node.connect().await;
    assert!(one_more.rest(Duration::from_secs(3)).await.is_empty());
    // And they give way, or are cut off.
    until("a shopper is served", || async {
        match connect(&node, &certificate.der, &["http/1.1"]).await {
            Ok(stream) => Line::on(stream).ask("GET", "/api/products", "", "").await.status == 200,
            Err(_) => false,
        }
    })
    .await;
    for line in &mut stalled {
        line.rest(CUT).await;
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let certificate = Certificate::new();
    let node = certificate.node(&[]).await;
    let mut before = Line::on(connect(&node, &certificate.der, &[]).await.unwrap());
    buy_on(&mut before).await;
    let renewed = write(certificate.folder.path());
    until("the new certificate is shown", || async { connect(&node, &renewed, &[]).await.is_ok() }).await;
    assert!(connect(&node, &certificate.der, &[]).await.is_err(), "the old one is gone");
    // Whoever is connected stays.
    buy_on(&mut before).await;
    // A file that makes no sense changes nothing.
    fs::write(certificate.path("cert.pem"), "nonsense").unwrap();
    until("the node has looked at it", || async { node.log().contains("a new certificate is not taken") }).await;
    let mut line = Line::on(connect(&node, &renewed, &[]).await.unwrap());
    buy_on(&mut line).await;
}
