//! The nodes: real runtimes over the model, which live, freeze, die and come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use souk::actors::clock::Source;
use souk::actors::members::Members;
use souk::actors::{Builder, Config, Runtime};
use souk::cluster::Name;
use souk::domain::{Timestamp, every_kind, payment};
use souk::node::follow_members;
use souk::persistence::jetstream::{Options, Replicated};
use souk::persistence::{Journal, Snapshots};
use tokio::time::Instant;
use ulid::Ulid;

use crate::bank::{Bank, Counter};
use crate::network::Network;
use crate::stream::Servers;
use crate::world::{Life, World};

/// When the simulated world began, in milliseconds since 1970.
const BEGAN_MS: i64 = 1_700_000_000_000;

pub struct Node {
    pub life: Life,
    pub runtime: Runtime,
    pub journal: Arc<Replicated>,
    cluster: souk::cluster::Cluster,
}

pub struct Cluster {
    pub world: Arc<World>,
    pub bank: Arc<Bank>,
    pub nodes: Mutex<BTreeMap<&'static str, Arc<Node>>>,
    began: Instant,
    ahead: Mutex<Duration>,
    /// Names whose process is on its way: an operator starts each once.
    starting: Mutex<BTreeSet<&'static str>>,
    /// How many restarts are still to come.
    pub on_their_way: AtomicUsize,
}

pub const NAMES: [&str; 3] = ["n1", "n2", "n3"];

impl Cluster {
    pub fn new(world: Arc<World>) -> Arc<Cluster> {
        Arc::new(Cluster {
            world,
            bank: Arc::default(),
            nodes: Mutex::default(),
            began: Instant::now(),
            ahead: Mutex::default(),
            starting: Mutex::default(),
            on_their_way: AtomicUsize::new(0),
        })
    }

    /// Starts a node. Where the servers are away, it tries again.
    pub fn start(self: &Arc<Self>, name: &'static str) -> BoxFuture<'static, ()> {
        Box::pin(self.clone().started(name))
    }

    async fn started(self: Arc<Self>, name: &'static str) {
        if self.node(name).is_some() || !self.starting.lock().unwrap().insert(name) {
            return;
        }
        let life = self.world.born(name);
        self.world.tell(format!("{name} starts as life {life}"));
        let node = loop {
            match self.try_start(name, life).await {
                Ok(node) => break Arc::new(node),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        let runtime = node.runtime.clone();
        runtime.clock().advance(*self.ahead.lock().unwrap());
        node.cluster.serve(Arc::new(move |question, _| {
            let runtime = runtime.clone();
            Box::pin(async move { runtime.serve(&question).await.into() })
        }));
        tokio::spawn(follow_members(node.cluster.clone(), node.runtime.clone()));
        self.nodes.lock().unwrap().insert(name, node.clone());
        self.starting.lock().unwrap().remove(name);
        let cluster = self.clone();
        tokio::spawn(async move {
            let taken = node.cluster.name_taken().await;
            if cluster.node(name).is_some_and(|newest| newest.life == node.life) {
                cluster.world.tell(format!("{name} ends: {taken}"));
                cluster.kill(name);
                cluster.comes_back(name, Duration::from_secs(1));
            }
        });
    }

    async fn try_start(&self, name: &'static str, life: Life) -> Result<Node, String> {
        let seed = self.world.lock().rng.u64(..);
        let born = Ulid::from_parts(self.began.elapsed().as_millis() as u64, u128::from(seed));
        let servers = Arc::new(Servers { world: self.world.clone(), life });
        let journal =
            Replicated::open(servers, Options { seed, ..Options::default() }).await.map_err(|error| error.to_string())?;
        let wire = Arc::new(Network { world: self.world.clone(), life });
        let options = souk::cluster::Options { name: Name::parse(name).unwrap(), http: String::new(), born };
        let cluster = souk::cluster::Cluster::join(options, wire).await.map_err(|error| error.to_string())?;
        let config = Config {
            clock: Source::Counted { from: self.began, at: Timestamp::from_millis(BEGAN_MS) },
            snapshot_every: u64::MAX,
            ..Config::default()
        };
        let dynamic: Arc<dyn Journal> = journal.clone();
        let mut builder = Builder::new(dynamic, Arc::new(Snapshots::none()), config);
        every_kind(&mut builder);
        let members = Arc::new(Members::new(cluster.clone()));
        let builder = builder.outside::<payment::Provider>(Arc::new(Counter(self.bank.clone()))).among(members);
        let runtime = builder.start().await.map_err(|error| error.to_string())?;
        Ok(Node { life, runtime, journal, cluster })
    }

    /// The process is gone, with all that it was about to say and hear.
    pub fn kill(&self, name: &'static str) {
        if let Some(node) = self.nodes.lock().unwrap().remove(name) {
            self.world.tell(format!("{name} is killed"));
            self.world.lock().lives[node.life].is_dead = true;
            node.journal.close();
        }
    }

    /// Starts it again after a while, unless somebody else has by then.
    pub fn comes_back(self: &Arc<Self>, name: &'static str, after: Duration) {
        self.on_their_way.fetch_add(1, Ordering::SeqCst);
        let cluster = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            cluster.start(name).await;
            cluster.on_their_way.fetch_sub(1, Ordering::SeqCst);
        });
    }

    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.lock().unwrap().get(name).cloned()
    }

    /// Sets every clock ahead.
    pub fn advance(&self, by: Duration) {
        *self.ahead.lock().unwrap() += by;
        for node in self.nodes.lock().unwrap().values() {
            node.runtime.clock().advance(by);
        }
    }

    /// A node leaves in good order, and is gone when all have left it.
    pub async fn drain(&self, name: &'static str) {
        let Some(node) = self.node(name) else { return };
        self.world.tell(format!("{name} drains"));
        node.cluster.drain(Duration::from_secs(10)).await;
        let until = Instant::now() + Duration::from_secs(10);
        while node.runtime.hand_over() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        node.cluster.leave().await;
        self.kill(name);
    }
}
