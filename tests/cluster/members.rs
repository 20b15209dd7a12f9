//! Members come, die, stand still, are cut off and leave.

use std::time::{Duration, Instant};

use bytes::Bytes;
use souk::cluster::{AskError, Owner};
use souk::persistence::EntityKey;

use crate::nats::Nats;
use crate::node::{Node, agree, keys, name, until};

const PATIENCE: Duration = Duration::from_secs(10);

/// How long a node may be out before all it had lives elsewhere: silence, the look at the register, and some room for a busy
/// machine.
const FAILOVER: Duration = Duration::from_secs(5);

async fn three(nats: &Nats) -> [Node; 3] {
    let urls = nats.urls();
    let nodes = [Node::start("n1", &urls).await, Node::start("n2", &urls).await, Node::start("n3", &urls).await];
    until("three members agree", || agree(&nodes.each_ref())).await;
    nodes
}

fn owned_by(node: &Node) -> Vec<EntityKey> {
    keys().filter(|key| node.cluster.owner(key) == Owner::Here).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_agree_and_ask_each_other() {
    let nats = Nats::one().await;
    let [n1, n2, n3] = three(&nats).await;
    for (asker, asked) in [(&n1, "n2"), (&n2, "n3"), (&n3, "n1"), (&n1, "n1")] {
        let answer = asker.cluster.ask(&name(asked), Bytes::from_static(b"it"), PATIENCE).await;
        assert_eq!(answer, Ok(Bytes::from(format!("{asked} heard it"))));
    }
    let begun = Instant::now();
    let nobody = n1.cluster.ask(&name("n4"), Bytes::new(), PATIENCE).await;
    assert_eq!(nobody, Err(AskError::NoSuchMember(name("n4"))));
    assert!(begun.elapsed() < Duration::from_secs(2), "that nobody listens is known at once");
    let too_large = n1.cluster.ask(&name("n2"), vec![0; 9 << 20].into(), PATIENCE).await;
    assert!(matches!(too_large, Err(AskError::TooLarge { .. })), "{too_large:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_member_had_lives_elsewhere_within_seconds() {
    let nats = Nats::three().await;
    let [n1, n2, mut n3] = three(&nats).await;
    let had = owned_by(&n3);
    n3.kill();
    let taken = until("its partitions are taken over", || {
        had.iter().all(|key| [&n1, &n2].iter().any(|node| node.cluster.lease_is_valid(key)))
    });
    let took = taken.await;
    println!("killed: all it had lives elsewhere after {took:?}");
    assert!(took < FAILOVER, "{took:?}");
    assert!(agree(&[&n1, &n2]));

    let n3 = Node::start("n3", &nats.urls()).await;
    until("it is back", || agree(&[&n1, &n2, &n3])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asked_a_member_that_died_does_not_wait_for_the_one_that_was_started_in_its_place() {
    let nats = Nats::one().await;
    let [n1, mut n2, _n3] = three(&nats).await;
    let pause = n2.pause().await;
    let cluster = n1.cluster.clone();
    let begun = Instant::now();
    let asked = tokio::spawn(async move { cluster.ask(&name("n2"), Bytes::new(), 3 * PATIENCE).await });
    n2.kill();
    let again = Node::start("n2", &nats.urls()).await;
    drop(pause);
    let answer = asked.await.unwrap();
    let took = begun.elapsed();
    assert!(matches!(answer, Err(AskError::Lost(_))), "{answer:?}");
    assert!(took < FAILOVER, "{took:?}");
    until("it is back", || again.is_active()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_member_wakes_without_a_lease_and_joins_anew() {
    let nats = Nats::one().await;
    let [n1, n2, n3] = three(&nats).await;
    let had = owned_by(&n3);
    let pause = n3.pause().await;
    until("its partitions are taken over", || agree(&[&n1, &n2])).await;
    assert!(had.iter().all(|key| !n3.cluster.lease_is_valid(key) && n3.cluster.owner(key) != Owner::Here));
    drop(pause);
    until("it is back", || agree(&[&n1, &n2, &n3])).await;
    assert_eq!(n3.cluster.counts().out_of_touch, 1);
    assert_eq!(n1.cluster.counts().out_of_touch, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_outlives_the_server_that_it_is_connected_to() {
    let mut nats = Nats::three().await;
    let urls = nats.urls();
    // Each begins with another server.
    let turned = |by: usize| -> Vec<String> { urls[by..].iter().chain(&urls[..by]).cloned().collect() };
    let nodes = [Node::start("n1", &turned(0)).await, Node::start("n2", &turned(1)).await, Node::start("n3", &turned(2)).await];
    until("three members agree", || agree(&nodes.each_ref())).await;
    for index in 0..urls.len() {
        nats.kill(index);
        until("they agree on two servers", || agree(&nodes.each_ref())).await;
        nats.restart(index);
        nats.ready().await.unwrap();
        until("they agree on three servers", || agree(&nodes.each_ref())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_have_their_leases_again_when_the_registers_leader_is_killed() {
    let mut nats = Nats::three().await;
    let nodes = three(&nats).await;
    let leader = nats.awaits_leader("souk-beats").await;
    nats.kill(leader);
    assert_ne!(nats.awaits_leader("souk-beats").await, leader);
    until("all agree on two servers", || agree(&nodes.each_ref())).await;
    assert!(nodes.iter().all(|node| node.cluster.counts().out_of_touch == 0), "heartbeats go on meanwhile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_member_leaves_no_partition_alone() {
    let nats = Nats::three().await;
    let [n1, n2, n3] = three(&nats).await;
    let had = owned_by(&n3);
    assert!(!had.is_empty());
    let cluster = n3.cluster.clone();
    let begun = Instant::now();
    let drain = tokio::spawn(async move { cluster.drain(PATIENCE).await });
    let is_taken = || had.iter().all(|key| [&n1, &n2].iter().any(|node| node.cluster.owner(key) == Owner::Here));
    until("its partitions are taken over", is_taken).await;
    let took = begun.elapsed();
    println!("drained: all it had lives elsewhere after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(drain.await.unwrap());
    assert!(owned_by(&n3).is_empty());
    n3.cluster.leave().await;
    until("it has left", || !n1.knows("n3") && !n2.knows("n3")).await;
    assert!(agree(&[&n1, &n2]), "no lease was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_process_of_a_name_ends_and_the_first_goes_on() {
    let nats = Nats::one().await;
    let urls = nats.urls();
    let (n1, n2) = (Node::start("n1", &urls).await, Node::start("n2", &urls).await);
    until("two members agree", || agree(&[&n1, &n2])).await;
    let second = Node::start("n1", &urls).await;
    let taken = tokio::time::timeout(PATIENCE, second.cluster.name_taken()).await.expect("it must notice");
    assert!(taken.to_string().contains("another process is the member n1"), "{taken}");
    drop(second);
    until("two members agree", || agree(&[&n1, &n2])).await;
    assert_eq!(n1.cluster.counts().lease_lost, 0);
}
