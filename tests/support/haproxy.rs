//! HAProxy in a process of its own, with the configuration that ships.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use souk::integrations::http_client::{Client, Limits, Origin};
use tempfile::TempDir;

use crate::nats::free_ports;
use crate::node::{DEADLINE, until};

const METRICS_PORT_AFTER: u16 = 1;
const LOOK: Duration = Duration::from_millis(10);

pub fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster-config")
}

/// HAProxy's program, from Debian's packages where it is missing and this may install it.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let target = Path::new(env!("CARGO_BIN_EXE_souk")).ancestors().nth(2).unwrap();
        // Another run may be installing it right now.
        let lock = File::create(target.join("haproxy.lock")).unwrap();
        lock.lock().unwrap();
        // Debian's is where not every user's PATH leads.
        let is_there = |program: &PathBuf| Command::new(program).arg("-v").output().is_ok_and(|ran| ran.status.success());
        let find = || ["haproxy", "/usr/sbin/haproxy"].map(PathBuf::from).into_iter().find(is_there);
        find().unwrap_or_else(|| {
            assert!(rustix::process::geteuid().is_root(), "HAProxy is missing: install the package `haproxy`, 2.6 or newer");
            eprintln!("installing HAProxy: apt-get install haproxy");
            for arguments in [&["update"][..], &["install", "--yes", "--no-install-recommends", "haproxy"]] {
                let installed = Command::new("apt-get").args(arguments).output().expect("apt-get, or HAProxy, is needed");
                assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
            }
            find().unwrap()
        })
    })
}

pub struct Balancer {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Balancer {
    /// Starts it before three nodes, and waits until it answers.
    pub async fn before(nodes: [String; 3]) -> Balancer {
        let begun = Instant::now();
        let folder = tempfile::tempdir().unwrap();
        let port = free_ports(&[0, METRICS_PORT_AFTER]);
        let log = File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(program());
        command.arg("-db").arg("-f").arg(shipped().join("haproxy/haproxy.cfg"));
        command.env("SOUK_BIND", format!("127.0.0.1:{port}"));
        command.env("SOUK_BALANCER_METRICS_BIND", format!("127.0.0.1:{}", port + METRICS_PORT_AFTER));
        command.envs(["SOUK_N1", "SOUK_N2", "SOUK_N3"].into_iter().zip(&nodes));
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut balancer = Balancer { child, port, folder };
        while balancer.operators_client().get("/metrics", &[]).await.is_err() {
            assert!(balancer.child.try_wait().unwrap().is_none() && begun.elapsed() < DEADLINE, "{}", balancer.log());
            tokio::time::sleep(LOOK).await;
        }
        balancer
    }

    fn client_of(port: u16) -> Client {
        Client::new(Origin::parse(&format!("http://127.0.0.1:{port}")).unwrap(), Limits::default())
    }

    pub fn client(&self) -> Client {
        Balancer::client_of(self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn operators_client(&self) -> Client {
        Balancer::client_of(self.port + METRICS_PORT_AFTER)
    }

    /// As many nodes as it sends requests to.
    pub async fn awaits_nodes(&self, count: usize) {
        let line = format!("haproxy_backend_active_servers{{proxy=\"nodes\"}} {count}");
        until(&line, || async {
            let metrics = self.operators_client().get("/metrics", &[]).await.unwrap();
            String::from_utf8_lossy(&metrics.body).lines().any(|found| found == line)
        })
        .await;
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
