//! The servers that the other tests stand on.

use crate::nats::Nats;
use crate::promises::within;

#[tokio::test]
async fn three_servers_are_one_cluster_and_survive_the_loss_of_a_leader() {
    let mut nats = within(Nats::three()).await;
    let client = nats.client().await;
    let jetstream = async_nats::jetstream::new(client);
    let config = async_nats::jetstream::stream::Config {
        name: "things".into(),
        subjects: vec!["things.>".into()],
        num_replicas: 3,
        ..Default::default()
    };
    jetstream.create_stream(config).await.expect("made");
    let leader = within(nats.awaits_leader("things")).await;
    nats.pause(leader);
    nats.resume(leader);
    nats.kill(leader);
    let next = within(nats.awaits_leader("things")).await;
    assert_ne!(next, leader);
    nats.restart(leader);
    within(nats.ready()).await.expect("it comes back");
    nats.terminate(leader).await;
    assert!(!nats.is_up(leader));
}
