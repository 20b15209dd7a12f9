//! What load balancers hear of a node that joins, is cut off, comes back and leaves.

use std::path::Path;

use souk::integrations::http_client::{Client, Limits, Origin};

use crate::nats::Nats;
use crate::node::{Node, souk, until};

const READY: &str = "/health/ready";

/// A node that knows only one of the servers, so that it is cut off with it.
fn spawn(nats: &Nats, server: usize, name: &str, data: &Path) -> Node {
    let mut command = souk();
    command.env("SOUK_NATS", nats.url(server)).env("SOUK_NODE_NAME", name).env("SOUK_LEAVE_SECONDS", "3");
    let monitors: Vec<String> = (0..nats.len()).map(|server| format!("http://{}", nats.monitor_address(server))).collect();
    command.env("SOUK_NATS_MONITOR", monitors.join(","));
    Node::spawn_by(command, data, &[])
}

/// Where a node listens that need not be ready.
async fn listens(node: &Node) -> Origin {
    let address = || {
        let log = node.whole_log();
        let said = log.lines().find(|line| line.contains("listening"))?;
        let (_, port) = said.rsplit_once("127.0.0.1:")?;
        Origin::parse(&format!("http://127.0.0.1:{}", port.trim_end())).ok()
    };
    until("it listens", || async { address().is_some() }).await;
    address().unwrap()
}

async fn told(node: &Origin, path: &str) -> (u16, String) {
    match Client::new(node.clone(), Limits::default()).get(path, &[]).await {
        Ok(answer) => (answer.status.as_u16(), String::from_utf8_lossy(&answer.body).into_owned()),
        Err(error) => (0, error.to_string()),
    }
}

async fn is_ready(node: &Origin) -> bool {
    told(node, READY).await.0 == 200
}

/// Waits until a node says that it is not ready, and why.
async fn is_unready(node: &Origin, why: &str) {
    until(why, || async {
        let (status, said) = told(node, READY).await;
        status == 503 && said.contains(why)
    })
    .await;
    assert_eq!(told(node, "/health/live").await.0, 200, "{why}: and yet it lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_not_ready_while_it_joins_is_cut_off_or_leaves_and_lives_all_the_while() {
    let nats = Nats::three().await;
    let folder = tempfile::tempdir().unwrap();
    let mut n1 = spawn(&nats, 0, "n1", &folder.path().join("n1"));
    let first = n1.is_ready().await;

    let connections = nats.monitor(0, "/connz").await.unwrap();
    let names: Vec<_> = connections["connections"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"souk n1") && names.contains(&"souk n1 members"), "{names:?}");

    // The register goes on without this one.
    let led_by = nats.awaits_leader("souk-beats").await;
    let server = (1..nats.len()).find(|server| *server != led_by).unwrap();
    let n2 = spawn(&nats, server, "n2", &folder.path().join("n2"));
    let second = listens(&n2).await;
    is_unready(&second, "joining its cluster").await;
    until("it has joined", || is_ready(&second)).await;

    nats.pause(server);
    is_unready(&second, "out of touch with its cluster").await;
    let (_, metrics) = told(&second, "/metrics").await;
    assert!(metrics.contains("souk_cluster_partitions_owned 0\n"), "{metrics}");
    until("the other has it all", || async { told(&first, "/metrics").await.1.contains("souk_cluster_partitions_owned 256\n") })
        .await;
    assert!(is_ready(&first).await);
    nats.resume(server);
    until("it is back", || is_ready(&second)).await;

    n2.tell_to_drain();
    is_unready(&second, "shutting down").await;
    assert!(n2.ends().await.success());
    assert!(is_ready(&first).await);
}
