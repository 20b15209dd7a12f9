//! A node in a process of its own, which ends when the test says so, and how it says.

use std::fs::{self, File};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use souk::actors::clock::Clock;
use souk::http::identity::keys::Keys;
use souk::http::identity::operators_token;
use souk::integrations::http_client::{Client, Limits, Origin};

pub const DEADLINE: Duration = Duration::from_secs(40);

/// Awaits a condition, with a deadline.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let awaited = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, awaited).await.unwrap_or_else(|_| panic!("never came about: {what}"));
}

/// The program, with nothing of this test's own environment.
pub fn souk() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_souk"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SOUK_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command
}

/// A token with every permission, from a data folder's own keys.
#[allow(dead_code, reason = "not every test that shares this file is an operator")]
pub fn operator(data: &Path) -> String {
    let now = Clock::default().now();
    operators_token(Keys::open_existing(&data.join("keys"), now).unwrap(), now).unwrap()
}

pub struct Node {
    child: Child,
    data: PathBuf,
}

impl Node {
    /// Starts the program and does not wait for it.
    pub fn spawn(data: &Path) -> Node {
        Node::spawn_with(data, &["--snapshot-every", "10", "--idle-seconds", "1"])
    }

    fn spawn_with(data: &Path, flags: &[&str]) -> Node {
        Node::spawn_by(souk(), data, flags)
    }

    /// Starts the program by a command that may have an environment of its own.
    pub fn spawn_by(command: Command, data: &Path, flags: &[&str]) -> Node {
        Node::spawn_at(command, "127.0.0.1:0", data, flags)
    }

    /// Starts the program where others expect it.
    pub fn spawn_at(mut command: Command, listen: &str, data: &Path, flags: &[&str]) -> Node {
        // What a killed node left there says nothing about the next one.
        let _ = fs::remove_file(data.join("address"));
        fs::create_dir_all(data).unwrap();
        let log = File::options().create(true).append(true).open(data.join("node.log")).unwrap();
        command.args(["serve", "--listen", listen, "--no-limits", "--data"]).arg(data).args(flags);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Node { child, data: data.to_owned() }
    }

    /// Starts the program and waits until it takes requests.
    pub async fn start(data: &Path) -> (Node, Origin) {
        let mut node = Node::spawn(data);
        let origin = node.is_ready().await;
        (node, origin)
    }

    /// Starts the program with these flags instead of those that make it forget quickly, and waits until it takes requests.
    #[allow(dead_code, reason = "not every test that shares this file asks for flags")]
    pub async fn start_with(data: &Path, flags: &[&str]) -> (Node, Origin) {
        let mut node = Node::spawn_with(data, flags);
        let origin = node.is_ready().await;
        (node, origin)
    }

    /// Waits until it takes requests.
    pub async fn is_ready(&mut self) -> Origin {
        let awaited = async {
            loop {
                if let Some(ended) = self.child.try_wait().unwrap() {
                    panic!("the node ended while it started, {ended}:\n{}", self.log());
                }
                let address = fs::read_to_string(self.data.join("address")).unwrap_or_default();
                if let Some(url) = address.strip_suffix('\n') {
                    let origin = Origin::parse(url).unwrap();
                    let answer = Client::new(origin.clone(), Limits::default()).get("/health/ready", &[]).await;
                    if answer.is_ok_and(|answer| answer.status == 200) {
                        return origin;
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(DEADLINE, awaited).await {
            Ok(origin) => origin,
            Err(_) => panic!("the node does not become ready:\n{}", self.log()),
        }
    }

    /// How it ended, if it has.
    #[allow(dead_code, reason = "not every test that shares this file asks")]
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub fn whole_log(&self) -> String {
        fs::read_to_string(self.data.join("node.log")).unwrap_or_default()
    }

    /// What the node said, last lines only.
    pub fn log(&self) -> String {
        let log = self.whole_log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    #[allow(dead_code, reason = "not every test that shares this file asks")]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn tell_to_drain(&self) {
        self.signal("TERM");
    }

    /// Sends it a signal, by its name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub async fn ends(mut self) -> ExitStatus {
        let awaited = async {
            loop {
                if let Some(ended) = self.child.try_wait().unwrap() {
                    return ended;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, awaited).await.expect("the node ends in time")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command of the program to its end.
pub async fn run(arguments: &[&str], data: &Path) -> Output {
    let mut command = souk();
    command.args(arguments).arg("--data").arg(data);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}
