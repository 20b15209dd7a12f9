//! The local cluster's scripts, run for real.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use async_nats::jetstream::stream::{Config, StorageType};
use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use serde_json::Value;
use souk::integrations::http_client::{self, Limits, Origin};
use tempfile::TempDir;

use crate::node::until;
use crate::{free_ports, nats, shipped};

/// From the shop's own: the nodes, and what the balancer shows to its operator.
const PORTS: [u16; 5] = [0, 1, 2, 3, 4];
const NATS_PORTS: [u16; 9] = [0, 1, 2, 10, 11, 12, 20, 21, 22];
const ANSWER: Duration = Duration::from_secs(20);

struct Cluster {
    dir: TempDir,
    port: u16,
    nats_port: u16,
}

/// Stands for a node: it says where it listens and who it is, and takes a moment to end.
const NODE: &str = r#"#!/usr/bin/env python3
import http.server, os, signal, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(" ".join([*sys.argv[1:], os.environ["SOUK_NATS_PASSWORD"]]).encode())

def end(*_):
    time.sleep(0.3)
    print("drained", flush=True)
    os._exit(0)

signal.signal(signal.SIGTERM, end)
host, port = sys.argv[sys.argv.index("--listen") + 1].split(":")
http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
"#;

impl Cluster {
    fn new() -> Cluster {
        let (port, nats_port) = (free_ports(&PORTS), free_ports(&NATS_PORTS));
        let cluster = Cluster { dir: tempfile::tempdir().unwrap(), port, nats_port };
        // It would be fetched; the tests have it already.
        fs::create_dir_all(cluster.folder().join("bin")).unwrap();
        let name = format!("nats-server-{}", nats::NATS_SERVER_VERSION);
        symlink(nats::program(), cluster.folder().join("bin").join(name)).unwrap();
        cluster
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("the cluster")
    }

    fn script(&self, name: &str, flags: &[&str]) -> Output {
        let mut script = Command::new(shipped().join("local").join(name));
        script.arg("--folder").arg(self.folder()).args(flags).current_dir(self.dir.path()).output().unwrap()
    }

    fn up(&self) -> Output {
        self.script("up", &["--nats-only", "--nats-port", &self.nats_port.to_string()])
    }

    /// All of it, with a program that stands for Souk.
    fn whole_up(&self) -> Output {
        crate::haproxy::program();
        let souk = self.dir.path().join("souk");
        fs::write(&souk, NODE).unwrap();
        fs::set_permissions(&souk, fs::Permissions::from_mode(0o755)).unwrap();
        let (port, nats_port) = (self.port.to_string(), self.nats_port.to_string());
        self.script("up", &["--port", &port, "--nats-port", &nats_port, "--souk", souk.to_str().unwrap()])
    }

    fn pid(&self, name: &str) -> String {
        fs::read_to_string(self.folder().join(format!("{name}.pid"))).unwrap().trim().to_owned()
    }

    fn pids(&self) -> [String; 3] {
        ["nats-1", "nats-2", "nats-3"].map(|name| self.pid(name))
    }

    fn ready(&self) -> usize {
        let status = self.script("status", &[]);
        text(&status).lines().filter(|line| line.contains(" ready ")).count()
    }

    fn setting(&self, name: &str) -> String {
        let settings = fs::read_to_string(self.folder().join("settings")).unwrap();
        let line = settings.lines().find_map(|line| line.strip_prefix(&format!("{name}="))).unwrap();
        line.to_owned()
    }

    async fn client(&self, user: &str, password: &str) -> Result<Client, async_nats::ConnectError> {
        let options = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
        options.connect(format!("127.0.0.1:{}", self.nats_port)).await
    }

    async fn monitor(&self, page: &str) -> Value {
        let origin =
            souk::integrations::http_client::Origin::parse(&format!("http://127.0.0.1:{}", self.nats_port + 20)).unwrap();
        let mut client = souk::integrations::http_client::Client::new(origin, Default::default());
        serde_json::from_slice(&client.get(page, &[]).await.unwrap().body).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.script("down", &[]);
    }
}

/// A process that has nothing to do with the cluster.
struct Bystander(Child);

impl Bystander {
    fn new() -> Bystander {
        Bystander(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// As if the system had given it the id of a server that is gone.
    fn takes_the_id_of(&self, cluster: &Path, name: &str) {
        fs::write(cluster.join(format!("{name}.pid")), self.0.id().to_string()).unwrap();
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn get(port: u16, path: &str) -> Bytes {
    let mut client = http_client::Client::new(Origin::parse(&format!("http://127.0.0.1:{port}")).unwrap(), Limits::default());
    client.get(path, &[]).await.unwrap().body
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn kill(pid: &str) {
    assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_up_stays_what_was_killed_comes_back_and_down_ends_all_of_it_and_nothing_else() {
    let cluster = Cluster::new();
    let mut bystander = Bystander::new();
    let up = cluster.up();
    assert!(up.status.success(), "{}", text(&up));
    assert_eq!(cluster.ready(), 3, "{}", text(&cluster.script("status", &[])));
    let [first, second, third] = cluster.pids();

    kill(&second);
    until("status sees it", || async { cluster.ready() == 2 }).await;
    bystander.takes_the_id_of(&cluster.folder(), "nats-2");
    assert_eq!(cluster.ready(), 2);
    let up = cluster.up();
    assert!(up.status.success(), "{}", text(&up));
    let again = cluster.pids();
    assert_eq!((&again[0], &again[2]), (&first, &third), "those that ran go on");
    assert!(again[1] != second && again[1] != bystander.0.id().to_string());
    assert_eq!(cluster.ready(), 3);

    kill(&third);
    until("status sees it", || async { cluster.ready() == 2 }).await;
    bystander.takes_the_id_of(&cluster.folder(), "nats-3");
    for _ in 0..2 {
        let down = cluster.script("down", &[]);
        assert!(down.status.success(), "{}", text(&down));
        assert_eq!(cluster.ready(), 0);
    }
    assert!(bystander.lives());
    assert!(NATS_PORTS.iter().all(|distance| std::net::TcpListener::bind(("127.0.0.1", cluster.nats_port + distance)).is_ok()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_comes_up_says_where_the_shop_is_and_lets_the_nodes_end_by_themselves() {
    let cluster = Cluster::new();
    let up = cluster.whole_up();
    assert!(up.status.success(), "{}", text(&up));
    for told in [&format!("http://127.0.0.1:{}/, and", cluster.port), souk::demo::PASSWORD, "kill -9", "down --folder"] {
        assert!(text(&up).contains(told), "{told}: {}", text(&up));
    }
    for account in souk::demo::ACCOUNTS {
        assert!(text(&up).contains(account), "{account}: {}", text(&up));
    }
    assert_eq!(cluster.ready(), 7, "{}", text(&cluster.script("status", &[])));
    let asked = String::from_utf8(get(cluster.port, "/").await.to_vec()).unwrap();
    let p = cluster.nats_port;
    let nats = format!("--nats nats://127.0.0.1:{p},nats://127.0.0.1:{},nats://127.0.0.1:{} --nats-user souk", p + 1, p + 2);
    assert!(asked.contains(&nats) && asked.ends_with(&cluster.setting("nats_password")), "{asked}");
    let flags = String::from_utf8(get(cluster.port + 1, "/").await.to_vec()).unwrap();
    assert!(flags.contains("--node-name n1 ") && flags.contains(" --demo"), "the first fills the shop: {flags}");
    let flags = String::from_utf8(get(cluster.port + 2, "/").await.to_vec()).unwrap();
    assert!(flags.contains("--node-name n2 ") && !flags.contains(" --demo"), "{flags}");

    let (killed, balancer) = (cluster.pid("n2"), cluster.pid("haproxy"));
    kill(&killed);
    until("status sees it", || async { cluster.ready() == 6 }).await;
    let up = cluster.whole_up();
    assert!(up.status.success(), "{}", text(&up));
    assert!(cluster.pid("n2") != killed && cluster.pid("haproxy") == balancer && cluster.ready() == 7);

    let down = cluster.script("down", &[]);
    assert!(down.status.success() && !text(&down).contains("killed"), "{}", text(&down));
    assert_eq!(cluster.ready(), 0);
    for node in ["n1", "n2", "n3"] {
        let log = fs::read_to_string(cluster.folder().join(format!("{node}.log"))).unwrap();
        assert!(log.contains("drained"), "{node}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named_and_nothing_is_started() {
    let cluster = Cluster::new();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", cluster.nats_port)).unwrap();
    let up = cluster.up();
    assert!(!up.status.success() && text(&up).contains(&format!("port {} is taken", cluster.nats_port)), "{}", text(&up));
    assert_eq!(cluster.ready(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_flush_each_write_let_souk_do_all_and_whoever_looks_only_look() {
    let cluster = Cluster::new();
    let up = cluster.up();
    assert!(up.status.success(), "{}", text(&up));
    let (password, operators) = (cluster.setting("nats_password"), cluster.setting("nats_operator_password"));
    let page = cluster.monitor("/varz").await;
    assert_eq!(page["jetstream"]["config"]["sync_always"], Value::Bool(true), "{page}");

    let souk = cluster.client("souk", &password).await.unwrap();
    assert_eq!(souk.server_info().max_payload, 8 << 20);
    let jetstream = async_nats::jetstream::new(souk.clone());
    let config = Config {
        name: "souk-journal".to_owned(),
        subjects: vec!["souk.j.>".to_owned()],
        num_replicas: 3,
        storage: StorageType::File,
        ..Config::default()
    };
    let mut stream = jetstream.create_stream(config).await.unwrap();
    let written = jetstream.publish("souk.j.order.ord_1", "a record".into()).await.unwrap();
    assert_eq!(tokio::time::timeout(ANSWER, written).await.unwrap().unwrap().sequence, 1);

    let inspector = cluster.client("inspector", &operators).await.unwrap();
    let read = inspector.request("$JS.API.STREAM.MSG.GET.souk-journal", r#"{"seq":1}"#.into());
    let read = tokio::time::timeout(ANSWER, read).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&read.payload).contains("souk.j.order.ord_1"));
    for (subject, payload) in
        [("souk.j.order.ord_1", "forged"), ("$JS.API.STREAM.PURGE.souk-journal", ""), ("$JS.API.STREAM.DELETE.souk-journal", "")]
    {
        inspector.publish(subject, payload.into()).await.unwrap();
    }
    // Answered after all that came before it.
    inspector.flush().await.unwrap();
    let after = inspector.request("$JS.API.STREAM.INFO.souk-journal", "".into());
    tokio::time::timeout(ANSWER, after).await.unwrap().unwrap();
    let state = &stream.info().await.unwrap().state;
    assert_eq!((state.messages, state.last_sequence), (1, 1));

    let operator = cluster.client("operator", &operators).await.unwrap();
    let servers = operator.request("$SYS.REQ.SERVER.PING", "".into());
    assert!(!tokio::time::timeout(ANSWER, servers).await.unwrap().unwrap().payload.is_empty());
    for (user, password) in [("souk", "wrong"), ("operator", &*password), ("", "")] {
        assert!(cluster.client(user, password).await.is_err(), "{user} comes in with a wrong password");
    }
}
