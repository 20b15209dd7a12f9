//! Three nodes over three nats-servers, behind the balancer that ships, each a process of its own.
//!
//! Each node reaches each server through a proxy that no other node has, so one can be cut off alone. Clients mostly come
//! by the balancer, and now and then at a node's own door, where nothing hides what it says. A node that ends by itself
//! is started again, as a supervisor would; how often, and with which last words, is told.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use souk::integrations::http_client::{Client, Limits, Origin};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::asking::Addresses;
use crate::faults::{Fault, Shop, Sort};
use crate::haproxy::Balancer;
use crate::nats::{Nats, free_ports};
use crate::node::{DEADLINE, Node, souk};
use crate::proxy::{Proxy, Way};
use crate::wall_clock::WallClock;

pub const NODES: usize = 3;
/// What can happen to it; with `servers_can_be_cut`, [`Sort::CutLeader`] as well.
pub const SORTS: [Sort; 10] = [
    Sort::KillNode,
    Sort::KillLeader,
    Sort::KillBoth,
    Sort::StopLeader,
    Sort::KillQuorum,
    Sort::Stop,
    Sort::Cut,
    Sort::ClockJump,
    Sort::RestartAll,
    Sort::RollNode,
];
const JOURNAL: &str = "souk-journal";
/// They forget quickly, so that much is read back from the journal.
const FLAGS: [&str; 6] = ["--snapshot-every", "10", "--idle-seconds", "1", "--trusted-proxy", "127.0.0.1"];
/// Of the addresses that clients know, so many are the balancer's; the others are the nodes' own.
const BALANCER_SHARES: usize = 3;
/// Starts of a node that ends by itself before it is ready; a supervisor would go on.
const STARTS_MAX: usize = 20;
const LOOK: Duration = Duration::from_millis(20);
const PORTS: [u16; NODES] = [0, 1, 2];

/// How the clients come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Doors {
    BalancerAndNodes,
    BalancerOnly,
}

/// What differs between the shops of the trials.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub doors: Doors,
    /// Whether the nodes' wall clocks can jump.
    pub clocks: bool,
    /// Whether servers can be cut from each other, which costs them a second start.
    pub servers_can_be_cut: bool,
    /// How long a node that drains goes on answering.
    pub leave_seconds: u64,
}

pub struct ThreeNodes {
    options: Options,
    nodes: Vec<Option<Node>>,
    /// For each node, its way to each server.
    ways: Vec<Vec<Proxy>>,
    /// For each server, its way to each other one; empty when those cannot be cut.
    routes: Vec<Vec<Proxy>>,
    clocks: Vec<WallClock>,
    first_port: u16,
    balancer: Balancer,
    addresses: watch::Sender<Vec<String>>,
    operator: String,
    nats: Nats,
    folder: TempDir,
}

impl ThreeNodes {
    pub async fn start(options: Options) -> ThreeNodes {
        let begun = Instant::now();
        let mut nats = Nats::three().await;
        let routes = if options.servers_can_be_cut { route_by_proxies(&mut nats).await } else { Vec::new() };
        let mut ways = Vec::new();
        for _ in 0..NODES {
            let servers = (0..nats.len()).map(|server| Proxy::to(nats.address(server).parse().unwrap()));
            ways.push(join_all(servers).await);
        }
        let folder = tempfile::tempdir().unwrap();
        let clocks = (0..NODES).filter(|_| options.clocks);
        let clocks = clocks.map(|node| WallClock::new(folder.path().join(format!("clock-{node}")))).collect();
        let first_port = free_ports(&PORTS);
        let balancer = Balancer::before(PORTS.map(|place| format!("127.0.0.1:{}", first_port + place))).await;
        let mut shop = ThreeNodes {
            options,
            nodes: (0..NODES).map(|_| None).collect(),
            ways,
            routes,
            clocks,
            first_port,
            balancer,
            addresses: watch::Sender::default(),
            operator: String::new(),
            nats,
            folder,
        };
        (0..NODES).for_each(|node| shop.start_node(node));
        shop.is_well().await;
        shop.operator = shop.operators_token().await;
        let mut addresses = vec![format!("http://127.0.0.1:{}", shop.balancer.port()); BALANCER_SHARES];
        if options.doors == Doors::BalancerAndNodes {
            addresses.extend((0..NODES).map(|node| shop.origin(node).to_string()));
        }
        shop.addresses.send_replace(addresses);
        println!("  three servers, three nodes and the balancer are up after {} ms", begun.elapsed().as_millis());
        shop
    }

    fn data(&self, node: usize) -> PathBuf {
        self.folder.path().join(name(node))
    }

    /// A node's own door, the same at each start.
    pub fn origin(&self, node: usize) -> Origin {
        Origin::parse(&format!("http://127.0.0.1:{}", self.first_port + PORTS[node])).unwrap()
    }

    fn start_node(&mut self, node: usize) {
        let mut command = souk();
        if let Some(clock) = self.clocks.get(node) {
            clock.worn_by(&mut command);
        }
        let urls: Vec<String> = self.ways[node].iter().map(|way| format!("nats://{}", way.address)).collect();
        let monitors: Vec<String> =
            (0..self.nats.len()).map(|server| format!("http://{}", self.nats.monitor_address(server))).collect();
        let (urls, monitors, name) = (urls.join(","), monitors.join(","), name(node));
        let leave_seconds = self.options.leave_seconds.to_string();
        let mut flags = vec!["--nats", &urls, "--nats-monitor", &monitors, "--node-name", &name];
        flags.extend(["--leave-seconds", &leave_seconds]);
        flags.extend(FLAGS);
        let listen = format!("127.0.0.1:{}", self.first_port + PORTS[node]);
        self.nodes[node] = Some(Node::spawn_at(command, &listen, &self.data(node), &flags));
    }

    async fn operators_token(&self) -> String {
        let mut command = souk();
        command.args(["admin", "token", "--nats", &self.nats.urls().join(",")]);
        let ran = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap().trim().to_owned()
    }

    pub fn kill_node(&mut self, node: usize) {
        self.nodes[node].take().unwrap().kill();
    }

    /// Starts those that were killed.
    pub fn start_missing(&mut self) {
        let missing: Vec<usize> = (0..NODES).filter(|node| self.nodes[*node].is_none()).collect();
        missing.into_iter().for_each(|node| self.start_node(node));
    }

    /// Leaves nothing in its folder but its log, as on a new machine.
    fn forget(&self, node: usize) {
        for entry in fs::read_dir(self.data(node)).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => fs::remove_dir_all(path).unwrap(),
                false if path.ends_with("node.log") => {}
                false => fs::remove_file(path).unwrap(),
            }
        }
    }

    fn cut(&self, node: usize, way: Way) {
        self.ways[node].iter().for_each(|proxy| proxy.set(way));
    }

    /// Between this server and the others.
    fn cut_server(&self, server: usize, way: Way) {
        for other in (0..self.nats.len()).filter(|other| *other != server) {
            self.routes[server][other].set(way);
            self.routes[other][server].set(way);
        }
    }

    /// Starts what ended by itself, and returns how many that were.
    fn supervise(&mut self) -> usize {
        let mut count = 0;
        for node in 0..NODES {
            let Some(ended) = self.nodes[node].as_mut().unwrap().has_ended() else { continue };
            let log = self.nodes[node].as_ref().unwrap().whole_log();
            println!("  {} ended by itself, {ended}: {}", name(node), log.lines().last().unwrap_or("without a word"));
            self.start_node(node);
            count += 1;
        }
        count
    }

    async fn is_ready(&self, node: usize) -> bool {
        let asked = Client::new(self.origin(node), Limits::default()).get("/health/ready", &[]).await;
        asked.is_ok_and(|answer| answer.status == 200)
    }
}

/// Puts proxies between the servers, which are started again for it; those for a server's way to itself stay unused.
async fn route_by_proxies(nats: &mut Nats) -> Vec<Vec<Proxy>> {
    let mut routes = Vec::new();
    for from in 0..nats.len() {
        let proxies = join_all((0..nats.len()).map(|to| Proxy::to(nats.route_address(to).parse().unwrap()))).await;
        let others = proxies.iter().enumerate().filter(|(to, _)| *to != from);
        let addresses: Vec<String> = others.map(|(_, proxy)| proxy.address.to_string()).collect();
        nats.set_routes(from, &addresses);
        routes.push(proxies);
    }
    (0..nats.len()).for_each(|server| nats.kill(server));
    (0..nats.len()).for_each(|server| nats.restart(server));
    nats.ready().await.unwrap();
    routes
}

/// A node's name.
pub fn name(node: usize) -> String {
    format!("n{}", node + 1)
}

impl Shop for ThreeNodes {
    fn addresses(&self) -> Addresses {
        self.addresses.subscribe()
    }

    fn operator(&self) -> String {
        self.operator.clone()
    }

    async fn strike(&mut self, fault: Fault) {
        let down = |ms| tokio::time::sleep(Duration::from_millis(ms));
        self.supervise();
        match fault {
            Fault::KillNode { node, down_ms } => {
                self.kill_node(node);
                down(down_ms).await;
                self.start_node(node);
            }
            Fault::KillLeader { down_ms } => {
                let leader = self.nats.awaits_leader(JOURNAL).await;
                self.nats.kill(leader);
                down(down_ms).await;
                self.nats.restart(leader);
            }
            Fault::KillBoth { node, down_ms } => {
                let leader = self.nats.awaits_leader(JOURNAL).await;
                self.nats.kill(leader);
                self.kill_node(node);
                down(down_ms).await;
                self.nats.restart(leader);
                self.start_node(node);
            }
            Fault::StopLeader { for_ms } => {
                let leader = self.nats.awaits_leader(JOURNAL).await;
                self.nats.pause(leader);
                down(for_ms).await;
                self.nats.resume(leader);
            }
            Fault::CutLeader { for_ms, is_broken } => {
                let leader = self.nats.awaits_leader(JOURNAL).await;
                self.cut_server(leader, if is_broken { Way::Reset } else { Way::BlackHole });
                down(for_ms).await;
                self.cut_server(leader, Way::Through);
            }
            Fault::KillQuorum { down_ms } => {
                let leader = self.nats.awaits_leader(JOURNAL).await;
                let both = [leader, (leader + 1) % self.nats.len()];
                both.into_iter().for_each(|server| self.nats.kill(server));
                down(down_ms).await;
                both.into_iter().for_each(|server| self.nats.restart(server));
            }
            Fault::StopFor { node, for_ms } => {
                self.nodes[node].as_ref().unwrap().signal("STOP");
                down(for_ms).await;
                self.nodes[node].as_ref().unwrap().signal("CONT");
            }
            Fault::CutFromNats { node, for_ms, cut } => {
                self.cut(node, cut.way());
                down(for_ms).await;
                self.cut(node, Way::Through);
            }
            Fault::ClockJump { node, ahead_s } => self.clocks[node].set(ahead_s),
            Fault::RestartAll { down_ms } => {
                (0..self.nats.len()).for_each(|server| self.nats.kill(server));
                (0..NODES).for_each(|node| self.kill_node(node));
                down(down_ms).await;
                (0..self.nats.len()).for_each(|server| self.nats.restart(server));
                (0..NODES).for_each(|node| self.start_node(node));
                // Whatever struck before that would only make it longer.
                self.is_well().await;
            }
            Fault::RollNode { node } => {
                // Whoever rolls begins with a cluster that is well, and goes on when it is well again.
                self.is_well().await;
                let drained = self.nodes[node].take().unwrap();
                drained.tell_to_drain();
                assert_eq!(drained.ends().await.code(), Some(0), "a drained node ends well");
                self.forget(node);
                self.start_node(node);
                self.is_well().await;
            }
        }
    }

    async fn is_well(&mut self) {
        let begun = Instant::now();
        let mut starts = 0;
        loop {
            starts += self.supervise();
            assert!(starts < STARTS_MAX && begun.elapsed() < DEADLINE, "the cluster does not become well:\n{}", self.log());
            if join_all((0..NODES).map(|node| self.is_ready(node))).await.iter().all(|is_ready| *is_ready) {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.balancer.awaits_nodes(NODES).await;
        for node in 0..NODES {
            let log = self.nodes[node].as_ref().unwrap().whole_log();
            assert!(!log.contains("panicked at"), "{} panicked:\n{log}", name(node));
        }
    }

    fn log(&self) -> String {
        let logs = self.nodes.iter().enumerate().filter_map(|(node, running)| Some((node, running.as_ref()?.log())));
        logs.map(|(node, log)| format!("{}:\n{log}\n", name(node))).collect()
    }
}

impl Drop for ThreeNodes {
    /// A trial that fails leaves the logs of all its processes.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-logs-{}", std::process::id()));
        let _ = fs::create_dir_all(&kept);
        for node in 0..NODES {
            let _ = fs::copy(self.data(node).join("node.log"), kept.join(format!("{}.log", name(node))));
        }
        for server in 0..self.nats.len() {
            let _ = fs::write(kept.join(format!("server-{server}.log")), self.nats.log(server));
        }
        let _ = fs::write(kept.join("balancer.log"), self.balancer.log());
        println!("  the logs of its processes are in {}", kept.display());
    }
}
