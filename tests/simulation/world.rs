//! The world around the nodes, made up: its time is the runtime's paused clock, its chance one seeded generator.
//!
//! It is as unkind as the real one. Messages are late, lost, doubled and out of order; the servers elect leaders and are
//! away meanwhile; a node is cut off, or frozen, or dead; and what one of them sent still arrives afterwards.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastrand::Rng;
use souk::persistence::jetstream::stream::Stored;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// One life of a node's process.
pub type Life = usize;

/// How unkind the world is, in thousandths.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Of a message, in each direction.
    pub lost: u32,
    pub doubled: u32,
    /// Of a message that takes up to `late_ms`.
    pub late: u32,
    pub late_ms: u64,
    /// Of a refusal of what would have been right (code 10164).
    pub refused: u32,
}

impl Weather {
    pub const FAIR: Weather = Weather { lost: 0, doubled: 0, late: 0, late_ms: 0, refused: 0 };
}

pub struct World(Mutex<State>);

pub struct State {
    pub rng: Rng,
    pub weather: Weather,
    pub log: Vec<Logged>,
    pub newest: BTreeMap<Arc<str>, u64>,
    /// Nobody leads the stream until then.
    pub election_until: Instant,
    /// What a deposed leader still tells: the log up to here, until then.
    pub deposed: (usize, Instant),
    pub register: BTreeMap<String, (u64, bytes::Bytes)>,
    pub register_sequence: u64,
    pub lives: Vec<Standing>,
    /// What happened, for the reader of a failure.
    pub story: Vec<String>,
    began: Instant,
}

pub struct Logged {
    pub stored: Stored,
    /// From when on each of the three replicas shows it.
    pub shown: [Instant; 3],
}

/// How the world sees one life of a node.
pub struct Standing {
    pub name: String,
    pub is_dead: bool,
    pub frozen_until: Instant,
    /// From the servers, and thereby from everybody.
    pub cut_until: Instant,
    pub tails: Vec<mpsc::UnboundedSender<Stored>>,
    pub ears: Vec<mpsc::UnboundedSender<bytes::Bytes>>,
    pub desk: Option<mpsc::UnboundedSender<souk::cluster::wire::Incoming>>,
    pub connections: watch::Sender<u64>,
}

impl World {
    pub fn new(seed: u64, weather: Weather) -> Arc<World> {
        let now = Instant::now();
        Arc::new(World(Mutex::new(State {
            rng: Rng::with_seed(seed),
            weather,
            log: Vec::new(),
            newest: BTreeMap::new(),
            election_until: now,
            deposed: (0, now),
            register: BTreeMap::new(),
            register_sequence: 0,
            lives: Vec::new(),
            story: Vec::new(),
            began: now,
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn born(&self, name: &str) -> Life {
        let mut world = self.lock();
        let now = Instant::now();
        world.lives.push(Standing {
            name: name.to_owned(),
            is_dead: false,
            frozen_until: now,
            cut_until: now,
            tails: Vec::new(),
            ears: Vec::new(),
            desk: None,
            connections: watch::Sender::new(1),
        });
        world.lives.len() - 1
    }

    pub fn tell(&self, what: impl Into<String>) {
        self.lock().tell(what);
    }

    /// What a dead process does never comes about; what a frozen one does comes about later.
    pub async fn awake(&self, life: Life) {
        loop {
            let until = {
                let world = self.lock();
                let standing = &world.lives[life];
                match standing.is_dead {
                    true => None,
                    false => Some(standing.frozen_until),
                }
            };
            match until {
                None => std::future::pending().await,
                Some(until) if until <= Instant::now() => return,
                Some(until) => tokio::time::sleep_until(until).await,
            }
        }
    }
}

impl State {
    pub fn tell(&mut self, what: impl Into<String>) {
        let at = self.began.elapsed().as_millis();
        self.story.push(format!("{at:>7} ms  {}", what.into()));
    }

    pub fn chance(&mut self, thousandths: u32) -> bool {
        self.rng.u32(0..1_000) < thousandths
    }

    /// How long a message is on its way.
    pub fn delay(&mut self) -> Duration {
        let Weather { late, late_ms, .. } = self.weather;
        match self.chance(late) {
            true => Duration::from_millis(self.rng.u64(1..=late_ms)),
            false => Duration::from_micros(self.rng.u64(50..2_000)),
        }
    }

    pub fn loses(&mut self) -> bool {
        let lost = self.weather.lost;
        self.chance(lost)
    }

    pub fn is_cut(&self, life: Life) -> bool {
        self.lives[life].is_dead || self.lives[life].cut_until > Instant::now()
    }

    pub fn has_leader(&self) -> bool {
        self.election_until <= Instant::now()
    }
}
