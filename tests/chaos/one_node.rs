//! The smallest shop: one node with its embedded journal.

use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;

use crate::asking::Addresses;
use crate::faults::{Fault, Shop, Sort};
use crate::node::{Node, operator, souk};
use crate::wall_clock::WallClock;

/// It forgets quickly, so that much is read back from the journal.
const FLAGS: [&str; 4] = ["--snapshot-every", "10", "--idle-seconds", "1"];
/// What can happen to one node that nothing stands beside.
pub const SORTS: [Sort; 4] = [Sort::KillNode, Sort::Stop, Sort::RestartAll, Sort::RollNode];

pub struct OneNode {
    folder: TempDir,
    node: Option<Node>,
    addresses: watch::Sender<Vec<String>>,
    clock: Option<WallClock>,
}

impl OneNode {
    /// `clock`: whether its wall clock can jump.
    pub async fn start(clock: bool) -> OneNode {
        let folder = tempfile::tempdir().unwrap();
        let clock = clock.then(|| WallClock::new(folder.path().join("clock")));
        let mut shop = OneNode { folder, node: None, addresses: watch::Sender::default(), clock };
        shop.start_node();
        shop.is_well().await;
        shop
    }

    fn start_node(&mut self) {
        let mut command = souk();
        self.clock.iter().for_each(|clock| clock.worn_by(&mut command));
        self.node = Some(Node::spawn_by(command, self.folder.path(), &FLAGS));
    }

    fn node(&mut self) -> &mut Node {
        self.node.as_mut().unwrap()
    }

    async fn start_again(&mut self, down_ms: u64) {
        tokio::time::sleep(Duration::from_millis(down_ms)).await;
        self.start_node();
        self.is_well().await;
    }
}

impl Shop for OneNode {
    fn addresses(&self) -> Addresses {
        self.addresses.subscribe()
    }

    fn operator(&self) -> String {
        operator(self.folder.path())
    }

    async fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::KillNode { down_ms, .. } | Fault::RestartAll { down_ms } => {
                self.node.take().unwrap().kill();
                self.start_again(down_ms).await;
            }
            Fault::StopFor { for_ms, .. } => {
                self.node().signal("STOP");
                tokio::time::sleep(Duration::from_millis(for_ms)).await;
                self.node().signal("CONT");
            }
            Fault::RollNode { .. } => {
                let node = self.node.take().unwrap();
                node.tell_to_drain();
                assert_eq!(node.ends().await.code(), Some(0));
                self.start_again(0).await;
            }
            Fault::ClockJump { ahead_s, .. } => self.clock.as_mut().expect("its clock can jump").set(ahead_s),
            Fault::KillLeader { .. }
            | Fault::KillBoth { .. }
            | Fault::StopLeader { .. }
            | Fault::CutLeader { .. }
            | Fault::KillQuorum { .. }
            | Fault::CutFromNats { .. } => panic!("{fault:?} without NATS"),
        }
    }

    async fn is_well(&mut self) {
        let origin = self.node().is_ready().await;
        // Until now its clients have knocked at the door where it was.
        self.addresses.send_replace(vec![origin.to_string()]);
    }

    fn log(&self) -> String {
        self.node.as_ref().map(Node::log).unwrap_or_default()
    }
}
