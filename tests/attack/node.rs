//! A node in a process of its own, with a demo shop in it.

use std::fs::{self, File};
use std::future::Future;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use souk::actors::clock::Clock;
use souk::http::identity::keys::Keys;
use souk::http::identity::operators_token;
use tempfile::TempDir;

use crate::wire::Line;

pub const DEADLINE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// Awaits a condition, with a deadline.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let awaited = async {
        while !condition().await {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(DEADLINE, awaited).await.unwrap_or_else(|_| panic!("never came about: {what}"));
}

pub struct Node {
    child: Child,
    folder: TempDir,
    pub address: SocketAddr,
    /// A token with every permission.
    pub admin: String,
}

impl Node {
    pub async fn start(flags: &[&str]) -> Node {
        let mut node = Node::spawn(flags);
        node.address = node.listens().await;
        let now = Clock::default().now();
        node.admin = operators_token(Keys::open_existing(&node.folder.path().join("data/keys"), now).unwrap(), now).unwrap();
        node
    }

    fn spawn(flags: &[&str]) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let log = File::options().create(true).append(true).open(folder.path().join("log")).unwrap();
        // As few files as a shell gives a program: it has to ask for more by itself.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -Sn 1024 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_souk")]);
        command
            .args(["serve", "--demo", "--no-limits", "--listen", "127.0.0.1:0", "--data"])
            .arg(folder.path().join("data"))
            .args(flags);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SOUK_") || name == "RUST_LOG") {
            command.env_remove(name);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Node { child, folder, address: SocketAddr::from(([127, 0, 0, 1], 0)), admin: String::new() }
    }

    /// The address file is written just before the door opens.
    async fn listens(&mut self) -> SocketAddr {
        let path = self.folder.path().join("data/address");
        let awaited = async {
            loop {
                if let Some(ended) = self.child.try_wait().unwrap() {
                    panic!("the node ended while it started, {ended}:\n{}", self.log());
                }
                let url = fs::read_to_string(&path).unwrap_or_default();
                if let Some((_, address)) = url.strip_suffix('\n').and_then(|url| url.split_once("://")) {
                    return address.parse().unwrap();
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(DEADLINE, awaited).await.expect("the node starts in time")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub async fn connect(&self) -> Line {
        Line::open(self.address).await
    }

    /// What the node has in memory.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// A metric without labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.connect().await.ask("GET", "/metrics", "", "").await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// It answers, on a new connection.
    pub async fn is_well(&self) {
        assert_eq!(self.connect().await.ask("GET", "/health/ready", "", "").await.status, 200);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the node's last words\n{}", self.log());
        }
    }
}

/// Lets this process open that many files, or as many as the system allows; returns how many that are.
pub fn open_files(wanted: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let allowed = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if current.is_some_and(|current| current < allowed) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum }).unwrap();
    }
    allowed
}
