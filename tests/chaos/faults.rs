//! What goes wrong, and when: a schedule as data, made from a seed, and whoever can carry it out.

use std::fmt;
use std::time::{Duration, Instant};

use crate::asking::Addresses;
use crate::history::{Line, Recorder};
use crate::proxy::Way;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// kill -9 of a node, and a new start a while later.
    KillNode { node: usize, down_ms: u64 },
    /// kill -9 of the server that leads the journal's stream, and a new start.
    KillLeader { down_ms: u64 },
    /// Both at once.
    KillBoth { node: usize, down_ms: u64 },
    /// That server stands still and comes back believing that it leads.
    StopLeader { for_ms: u64 },
    /// That server is cut from the others, and goes on serving whoever is connected to it.
    CutLeader { for_ms: u64, is_broken: bool },
    /// kill -9 of it and another, so that too few are left.
    KillQuorum { down_ms: u64 },
    /// A node that stands still and comes back believing nothing has happened.
    StopFor { node: usize, for_ms: u64 },
    /// A node that hears and reaches its clients and not NATS.
    CutFromNats { node: usize, for_ms: u64, cut: Cut },
    /// A node's wall clock jumps to so much ahead of the time, and goes on from there.
    ClockJump { node: usize, ahead_s: i64 },
    /// Everything is killed at once, and starts again.
    RestartAll { down_ms: u64 },
    /// A node is told to drain, and another one comes in its place.
    RollNode { node: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    BothWays,
    /// What the node says is lost; it goes on hearing.
    NodeToNats,
    NatsToNode,
    Reset,
}

impl Cut {
    /// What a proxy between the node and NATS does then.
    pub fn way(self) -> Way {
        match self {
            Cut::BothWays => Way::BlackHole,
            Cut::NodeToNats => Way::NothingIn,
            Cut::NatsToNode => Way::NothingOut,
            Cut::Reset => Way::Reset,
        }
    }
}

/// The sorts of faults, for saying which ones a shop can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    KillNode,
    KillLeader,
    KillBoth,
    StopLeader,
    CutLeader,
    KillQuorum,
    Stop,
    Cut,
    ClockJump,
    RestartAll,
    RollNode,
}

/// A fault, and how long after the one before it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    pub rest_ms: u64,
    pub fault: Fault,
}

/// What faults a run has.
#[derive(Debug, Clone)]
pub struct Menu {
    pub nodes: usize,
    pub sorts: Vec<Sort>,
    /// The longest rest between two.
    pub rest_ms: u64,
    pub down_ms: u64,
    pub stop_ms: u64,
    pub cut_ms: u64,
    /// Tokens and their like bear a clock that is 30 s off, and must not bear more.
    pub jump_s: i64,
}

impl Menu {
    /// For a node that takes `sorts`, with the times of the real thing.
    pub fn of(nodes: usize, sorts: &[Sort]) -> Menu {
        Menu { nodes, sorts: sorts.to_vec(), rest_ms: 3_000, down_ms: 1_500, stop_ms: 5_000, cut_ms: 6_000, jump_s: 25 }
    }
}

/// Faults from a seed, one after the other. The same seed and menu give the same.
pub fn schedule(seed: u64, menu: &Menu, count: usize) -> Vec<Planned> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count)
        .map(|_| {
            let rest_ms = random.u64(menu.rest_ms / 4..=menu.rest_ms);
            let node = random.usize(..menu.nodes.max(1));
            let down_ms = random.u64(0..=menu.down_ms);
            let fault = match menu.sorts[random.usize(..menu.sorts.len())] {
                Sort::KillNode => Fault::KillNode { node, down_ms },
                Sort::KillLeader => Fault::KillLeader { down_ms },
                Sort::KillBoth => Fault::KillBoth { node, down_ms },
                Sort::StopLeader => Fault::StopLeader { for_ms: random.u64(menu.stop_ms / 2..=menu.stop_ms) },
                Sort::CutLeader => {
                    let for_ms = random.u64(menu.cut_ms / 2..=menu.cut_ms);
                    Fault::CutLeader { for_ms, is_broken: random.bool() }
                }
                Sort::KillQuorum => Fault::KillQuorum { down_ms },
                Sort::Stop => Fault::StopFor { node, for_ms: random.u64(menu.stop_ms / 2..=menu.stop_ms) },
                Sort::Cut => {
                    let cut = [Cut::BothWays, Cut::NodeToNats, Cut::NatsToNode, Cut::Reset][random.usize(..4)];
                    Fault::CutFromNats { node, for_ms: random.u64(menu.cut_ms / 2..=menu.cut_ms), cut }
                }
                Sort::ClockJump => Fault::ClockJump { node, ahead_s: random.i64(-menu.jump_s..=menu.jump_s) },
                Sort::RestartAll => Fault::RestartAll { down_ms },
                Sort::RollNode => Fault::RollNode { node },
            };
            Planned { rest_ms, fault }
        })
        .collect()
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {} ms: {:?}", self.rest_ms, self.fault)
    }
}

/// A shop of real processes, to which faults can happen.
pub trait Shop {
    /// Where its nodes are, as they come and go.
    fn addresses(&self) -> Addresses;

    /// A token with every permission.
    fn operator(&self) -> String;

    /// Lets the fault happen, and returns when it is over: what was killed is started again by then, and need not be ready.
    async fn strike(&mut self, fault: Fault);

    /// Returns when every node takes requests.
    async fn is_well(&mut self);

    /// The end of what its processes logged.
    fn log(&self) -> String;
}

/// Carries the schedule out, and writes down what happened when.
pub async fn strike_all(shop: &mut impl Shop, schedule: &[Planned], recorder: &Recorder) {
    for planned in schedule {
        tokio::time::sleep(Duration::from_millis(planned.rest_ms)).await;
        let (began, from_us) = (Instant::now(), recorder.now_us());
        shop.strike(planned.fault).await;
        recorder.note(Line::Fault { what: format!("{:?}", planned.fault), from_us, to_us: recorder.now_us() });
        let (at_ms, over_ms) = (from_us / 1_000, began.elapsed().as_millis());
        println!("  at {at_ms} ms, {planned}: over after {over_ms} ms, {} answers so far", recorder.answers());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_again_and_all_that_are_on_the_menu() {
        let sorts = [
            Sort::KillNode,
            Sort::KillLeader,
            Sort::KillBoth,
            Sort::StopLeader,
            Sort::CutLeader,
            Sort::KillQuorum,
            Sort::Stop,
            Sort::Cut,
            Sort::ClockJump,
            Sort::RestartAll,
            Sort::RollNode,
        ];
        let menu = Menu::of(3, &sorts);
        let faults = schedule(7, &menu, 200);
        assert_eq!(faults, schedule(7, &menu, 200));
        assert_ne!(faults, schedule(8, &menu, 200));
        let kinds: std::collections::HashSet<_> = faults.iter().map(|planned| std::mem::discriminant(&planned.fault)).collect();
        assert_eq!(kinds.len(), sorts.len());
        for node in 0..3 {
            assert!(
                faults.iter().any(|planned| matches!(planned.fault, Fault::StopFor { node: stopped, .. } if stopped == node))
            );
        }
        let only_kills = schedule(7, &Menu::of(1, &[Sort::KillNode]), 50);
        assert!(only_kills.iter().all(|planned| matches!(planned.fault, Fault::KillNode { node: 0, .. })));
    }
}
