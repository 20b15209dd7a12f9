//! nats-server with its configuration: its own check of it, and with TLS.

use std::fs;
use std::process::{Child, Command, Output, Stdio};

use async_nats::ConnectOptions;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::node::until;
use crate::{free_ports, nats, shipped};

/// All that the configuration without TLS wants to know.
pub fn environment() -> Vec<(&'static str, &'static str)> {
    vec![
        ("NATS_NAME", "nats-1"),
        ("NATS_LISTEN", "127.0.0.1:4222"),
        ("NATS_MONITOR_LISTEN", "127.0.0.1:8222"),
        ("NATS_ROUTE_LISTEN", "127.0.0.1:6222"),
        ("NATS_ROUTES", "[nats://route:c@127.0.0.1:6222, nats://route:c@127.0.0.1:6223]"),
        ("NATS_STORE", "/tmp/nowhere"),
        ("NATS_STORE_MAX", "1GB"),
        ("NATS_PASSWORD", "a"),
        ("NATS_OPERATOR_PASSWORD", "b"),
        ("NATS_ROUTE_PASSWORD", "c"),
    ]
}

fn check(file: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(nats::program());
    command.arg("-t").arg("-c").arg(shipped().join("nats").join(file));
    command.env_clear().envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn nats_server_takes_its_configuration_and_misses_each_variable_that_is_not_set() {
    let whole = environment();
    let checked = check("server.conf", &whole);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    for (missing, _) in &whole {
        let rest: Vec<_> = whole.iter().copied().filter(|(name, _)| name != missing).collect();
        let checked = check("server.conf", &rest);
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(!checked.status.success() && said.contains(missing), "{missing}: {said}");
    }
}

/// An authority, and certificates that it has signed.
struct Certificates {
    folder: TempDir,
}

impl Certificates {
    fn new() -> Certificates {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write("ca.pem", authority.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(authority, key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
            write(&format!("{name}.pem"), certificate.pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Certificates { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![("NATS_CERT", self.path("server.pem")), ("NATS_KEY", self.path("server.key")), ("NATS_CA", self.path("ca.pem"))]
    }
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_only_who_shows_a_certificate_of_the_authority_may_try_a_password() {
    let certificates = Certificates::new();
    let whole: Vec<_> = certificates.environment().into_iter().map(|(name, value)| (name, format!("\"{value}\""))).collect();
    let with_tls: Vec<(&str, &str)> =
        environment().into_iter().chain(whole.iter().map(|(name, value)| (*name, value.as_str()))).collect();
    let checked = check("server-tls.conf", &with_tls);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    assert!(!check("server-tls.conf", &with_tls[..with_tls.len() - 1]).status.success(), "it does without the authority");

    let port = free_ports(&[0, 1, 2]);
    let [listen, monitor, route] = [0, 1, 2].map(|distance| format!("127.0.0.1:{}", port + distance));
    let routes = format!("[nats://route:c@{route}]");
    let store = format!("\"{}\"", certificates.path("store"));
    let own = [
        ("NATS_LISTEN", &listen),
        ("NATS_MONITOR_LISTEN", &monitor),
        ("NATS_ROUTE_LISTEN", &route),
        ("NATS_ROUTES", &routes),
        ("NATS_STORE", &store),
    ];
    let mut command = Command::new(nats::program());
    command.arg("-c").arg(shipped().join("nats/server-tls.conf")).env_clear().envs(with_tls.iter().copied());
    command.envs(own).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Server(command.spawn().unwrap());

    let client = |with_certificate: bool| {
        let options = ConnectOptions::with_user_and_password("souk".to_owned(), "a".to_owned()).require_tls(true);
        let options = options.add_root_certificates(certificates.path("ca.pem").into());
        let options = match with_certificate {
            true => {
                options.add_client_certificate(certificates.path("client.pem").into(), certificates.path("client.key").into())
            }
            false => options,
        };
        options.connect(format!("localhost:{port}"))
    };
    until("the server listens", || async { client(true).await.is_ok() }).await;
    assert!(client(false).await.is_err(), "no certificate, and yet it came in");
    let plain = ConnectOptions::with_user_and_password("souk".to_owned(), "a".to_owned()).connect(format!("localhost:{port}"));
    assert!(plain.await.is_err(), "no TLS, and yet it came in");
}
