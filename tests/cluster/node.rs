//! A member of a cluster with a runtime of its own, so that it can be paused and killed like a process.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use souk::cluster::member::Options;
use souk::cluster::{Cluster, Name, NatsWire, NatsWireOptions, Owner, PARTITIONS, State};
use souk::persistence::EntityKey;
use tokio::runtime::{Builder, Runtime};

pub const DEADLINE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);

pub fn name(name: &str) -> Name {
    Name::parse(name).unwrap()
}

/// Enough keys to have one in every partition, most likely.
pub fn keys() -> impl Iterator<Item = EntityKey> {
    (0..8 * PARTITIONS).map(|number| EntityKey::new("inventory", &format!("sku-{number}")))
}

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(LOOK).await;
    }
    begun.elapsed()
}

pub struct Node {
    pub cluster: Cluster,
    runtime: Option<Runtime>,
}

impl Node {
    /// Joins; it need not be active yet.
    pub async fn start(node: &str, urls: &[String]) -> Node {
        // One thread: whoever blocks it has paused the node.
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let options = Options { name: name(node), http: format!("http://{node}"), born: ulid::Ulid::new() };
        let addresses: Vec<async_nats::ServerAddr> = urls.iter().map(|url| url.parse().unwrap()).collect();
        let joined = runtime.spawn(async move {
            let connect = async_nats::ConnectOptions::new().retry_on_initial_connect().ping_interval(Duration::from_secs(1));
            let client = connect.reconnect_delay_callback(|_| Duration::from_millis(50)).connect(addresses).await.unwrap();
            let wire = NatsWireOptions { prefix: "souk".to_owned(), replicas: None };
            let wire = NatsWire::open(client, &wire).await.unwrap();
            let cluster = Cluster::join(options, Arc::new(wire)).await.unwrap();
            let me = cluster.name().clone();
            cluster.serve(Arc::new(move |payload, _| {
                let me = me.clone();
                async move { [me.as_str().as_bytes(), b" heard ", &payload[..]].concat().into() }.boxed()
            }));
            cluster
        });
        Node { cluster: joined.await.unwrap(), runtime: Some(runtime) }
    }

    /// As kill -9 does: it says nothing more, and its sockets are closed.
    pub fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// As SIGSTOP does: it does nothing until the pause is dropped.
    pub async fn pause(&self) -> Pause {
        let (resume, resumed) = mpsc::channel::<()>();
        let (stopping, stopped) = tokio::sync::oneshot::channel();
        drop(self.runtime.as_ref().unwrap().spawn(async move {
            stopping.send(()).unwrap();
            let _ = resumed.recv();
        }));
        stopped.await.unwrap();
        Pause(resume)
    }

    pub fn is_active(&self) -> bool {
        self.cluster.view().borrow().state == State::Active
    }

    pub fn knows(&self, member: &str) -> bool {
        self.cluster.view().borrow().members.iter().any(|known| known.name == name(member))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A node stands still while this is held.
pub struct Pause(#[expect(dead_code, reason = "held")] mpsc::Sender<()>);

/// Whether all agree: the same members, each key here on one node only, and from memory.
pub fn agree(nodes: &[&Node]) -> bool {
    let names: Vec<Name> = nodes.iter().map(|node| node.cluster.name().clone()).collect();
    let same = nodes.iter().all(|node| node.is_active() && node.cluster.view().borrow().owners.names() == sorted(&names));
    same && keys().all(|key| {
        let owners: Vec<Owner> = nodes.iter().map(|node| node.cluster.owner(&key)).collect();
        let Some(owner) = owners.iter().position(|owner| *owner == Owner::Here) else {
            return false;
        };
        nodes[owner].cluster.lease_is_valid(&key)
            && owners.iter().enumerate().all(|(index, seen)| index == owner || *seen == Owner::Member(names[owner].clone()))
    })
}

fn sorted(names: &[Name]) -> Vec<Name> {
    let mut names = names.to_vec();
    names.sort();
    names
}
