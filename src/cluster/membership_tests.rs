//! A cluster in one thread: membership over a model of the network, the register and the clocks, each as unkind as its seed
//! says. Every step is checked against the promises; a seed reproduces its run exactly. `SOUK_MEMBERSHIP_SEED` also prints what happens.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use ulid::Ulid;

use super::super::wire::{Entry, PutError, WireError};
use super::*;

/// Seeds of the ordinary run; `SOUK_MEMBERSHIP_SEEDS` asks for more, `SOUK_MEMBERSHIP_SEED` for one.
const SEEDS: u64 = 150;
const CHAOS_MS: u64 = 20_000;
/// By then all agree again.
const PEACE_MS: u64 = 16_000;
/// And it stays so.
const CALM_MS: u64 = 3_000;
const TICK_MS: u64 = 20;
const NAMES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];

/// How unkind it is.
#[derive(Clone)]
struct Weather {
    nodes: usize,
    lost_percent: u64,
    doubled_percent: u64,
    /// Messages that take up to `late_ms_max`; the others take a few milliseconds.
    late_percent: u64,
    late_ms_max: u64,
    /// Clocks that run fast or slow by up to so much.
    drift_percent: u64,
    stale_percent: u64,
    /// Between faults, on average.
    fault_ms: u64,
    broken: Option<Rule>,
}

impl Weather {
    fn calm(nodes: usize) -> Self {
        Weather {
            nodes,
            lost_percent: 0,
            doubled_percent: 0,
            late_percent: 0,
            late_ms_max: 10,
            drift_percent: 0,
            stale_percent: 0,
            fault_ms: u64::MAX,
            broken: None,
        }
    }

    fn of(random: &mut fastrand::Rng) -> Self {
        Weather {
            nodes: random.usize(2..=NAMES.len()),
            lost_percent: random.choice([0, 1, 10, 30]).unwrap(),
            doubled_percent: random.choice([0, 10]).unwrap(),
            late_percent: random.choice([0, 1, 10, 50]).unwrap(),
            late_ms_max: random.choice([100, 1_000, 5_000]).unwrap(),
            drift_percent: random.choice([0, 1, 10]).unwrap(),
            stale_percent: random.choice([0, 30]).unwrap(),
            fault_ms: random.choice([400, 1_500, 5_000]).unwrap(),
            broken: None,
        }
    }
}

enum What {
    Tick { node: usize, process: u64 },
    Deliver { node: usize, process: u64, beat: Beat },
    Asked { node: usize, process: u64, id: u64, operation: Operation },
    Answered { node: usize, process: u64, id: u64, done: Done },
    Resume { node: usize },
    Heal { from: usize, to: usize },
    HealRegister { node: usize },
    Start { node: usize },
}

#[derive(Clone, Default)]
struct Stored {
    sequence: u64,
    entries: BTreeMap<Name, Entry>,
}

impl Stored {
    fn serve(&mut self, operation: Operation) -> Done {
        let Operation::Put { member, expected, payload } = operation else {
            return Done::Read(Ok(self.entries.values().cloned().collect()));
        };
        let newest = self.entries.get(&member).map_or(0, |entry| entry.sequence);
        if newest != expected {
            return Done::Put(Err(PutError::Changed));
        }
        self.sequence += 1;
        let sequence = self.sequence;
        self.entries.insert(member.clone(), Entry { member, sequence, payload });
        Done::Put(Ok(sequence))
    }
}

struct Node {
    name: Name,
    machine: Option<Membership>,
    /// Counts the processes that ran here.
    process: u64,
    /// Its clock in thousandths of the world's, and what it showed at the world's beginning.
    rate: u64,
    offset_ms: u64,
    paused_until_ms: u64,
    /// What came in meanwhile.
    waiting: Vec<What>,
    has_ended: bool,
}

impl Node {
    fn clock(&self, now_ms: u64) -> u64 {
        self.offset_ms + now_ms * self.rate / 1_000
    }

    /// What it would answer from memory just now.
    fn leased(&self, now_ms: u64) -> Partitions {
        let routing = self.machine.as_ref().map(Membership::routing);
        routing.filter(|routing| self.clock(now_ms) < routing.lease_until_ms).map_or(Partitions::NONE, |routing| routing.granted)
    }

    /// What it would write just now.
    fn acts(&self, now_ms: u64) -> Partitions {
        let clock_ms = self.clock(now_ms);
        self.machine.as_ref().map_or(Partitions::NONE, |machine| {
            Partition::all().filter(|partition| machine.routing().is_here(*partition, clock_ms)).collect()
        })
    }
}

struct World {
    weather: Weather,
    random: fastrand::Rng,
    now_ms: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, What>,
    numbers: u64,
    nodes: Vec<Node>,
    cut: BTreeMap<(usize, usize), u32>,
    cut_from_register: BTreeMap<usize, u32>,
    stored: Stored,
    /// Earlier contents, which servers that are behind still show.
    past: VecDeque<Stored>,
    fault_due_ms: u64,
    is_peaceful: bool,
    trace: Vec<String>,
    leases_seen: u64,
    /// Steps at which somebody could write what another could read from memory.
    written_elsewhere: u64,
}

impl World {
    fn new(seed: u64, weather: Weather) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let nodes = (0..weather.nodes).map(|index| Node {
            name: Name::parse(NAMES[index]).unwrap(),
            machine: None,
            process: 0,
            rate: 1_000 - 10 * weather.drift_percent + random.u64(..=20 * weather.drift_percent),
            offset_ms: random.u64(..10_000_000),
            paused_until_ms: 0,
            waiting: Vec::new(),
            has_ended: false,
        });
        let mut world = World {
            nodes: nodes.collect(),
            weather,
            now_ms: 1,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            numbers: 0,
            cut: BTreeMap::new(),
            cut_from_register: BTreeMap::new(),
            stored: Stored::default(),
            past: VecDeque::new(),
            fault_due_ms: 0,
            is_peaceful: false,
            trace: Vec::new(),
            leases_seen: 0,
            written_elsewhere: 0,
            random,
        };
        for node in 0..world.nodes.len() {
            let after_ms = world.random.u64(..6_000);
            world.after(after_ms, What::Start { node });
        }
        world.plan_fault();
        world
    }

    fn after(&mut self, after_ms: u64, what: What) {
        self.numbers += 1;
        self.queue.push(Reverse((self.now_ms + after_ms, self.numbers)));
        self.events.insert(self.numbers, what);
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.random.u64(..100) < percent
    }

    fn delay_ms(&mut self) -> u64 {
        let late = !self.is_peaceful && self.chance(self.weather.late_percent);
        if late { self.random.u64(1..=self.weather.late_ms_max) } else { self.random.u64(1..5) }
    }

    fn plan_fault(&mut self) {
        let span_ms = self.weather.fault_ms;
        self.fault_due_ms = if span_ms == u64::MAX { u64::MAX } else { self.now_ms + self.random.u64(span_ms / 4..span_ms * 2) };
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if std::env::var_os("SOUK_MEMBERSHIP_SEED").is_some() {
            let line = format!("{:>6} {}", self.now_ms, what());
            eprintln!("{line}");
            self.trace.push(line);
        }
    }

    /// Runs until a moment, checking the lease at each step.
    fn run(&mut self, until_ms: u64) -> Result<(), String> {
        while let Some(Reverse((at_ms, number))) = self.queue.peek().copied() {
            if at_ms > until_ms {
                break;
            }
            if !self.is_peaceful && self.fault_due_ms < at_ms {
                self.now_ms = self.now_ms.max(self.fault_due_ms);
                self.fault();
                self.plan_fault();
                continue;
            }
            self.queue.pop();
            self.now_ms = at_ms;
            let what = self.events.remove(&number).unwrap();
            if let Some(node) = self.step(what) {
                self.check_leases(node)?;
            }
        }
        self.now_ms = until_ms;
        Ok(())
    }

    /// The node that did something.
    fn step(&mut self, what: What) -> Option<usize> {
        let (node, process) = match &what {
            What::Tick { node, process } | What::Deliver { node, process, .. } | What::Answered { node, process, .. } => {
                (*node, *process)
            }
            What::Asked { .. } => {
                self.serve(what);
                return None;
            }
            What::Resume { node } => {
                let node = *node;
                let waiting = std::mem::take(&mut self.nodes[node].waiting);
                self.note(|| format!("{} goes on", NAMES[node % NAMES.len()]));
                return waiting.into_iter().filter_map(|what| self.step(what)).last();
            }
            What::Heal { from, to } => {
                release(&mut self.cut, &(*from, *to));
                return None;
            }
            What::HealRegister { node } => {
                release(&mut self.cut_from_register, node);
                return None;
            }
            What::Start { node } => {
                let node = *node;
                self.start(node);
                return Some(node);
            }
        };
        if self.nodes[node].process != process || self.nodes[node].machine.is_none() {
            return None;
        }
        if self.nodes[node].paused_until_ms > self.now_ms {
            self.nodes[node].waiting.push(what);
            return None;
        }
        let clock_ms = self.nodes[node].clock(self.now_ms);
        let machine = self.nodes[node].machine.as_mut().unwrap();
        match what {
            What::Tick { .. } => {
                machine.tick(clock_ms);
                self.after(TICK_MS, What::Tick { node, process });
            }
            What::Deliver { beat, .. } => machine.hear(beat, clock_ms),
            What::Answered { id, done, .. } => machine.done(id, done, clock_ms),
            _ => {}
        }
        self.send(node);
        Some(node)
    }

    /// Sends what a node wants to be sent, and looks at what it says has happened.
    fn send(&mut self, node: usize) {
        let now_ms = self.nodes[node].clock(self.now_ms);
        let process = self.nodes[node].process;
        let machine = self.nodes[node].machine.as_mut().unwrap();
        let (beat, operation, events) = (machine.beat(now_ms), machine.operation(now_ms), machine.take_events());
        if let Some(beat) = beat {
            for to in 0..self.nodes.len() {
                self.deliver(node, to, &beat);
                if !self.is_peaceful && self.chance(self.weather.doubled_percent) {
                    self.deliver(node, to, &beat);
                }
            }
        }
        if let Some((id, operation)) = operation {
            let after_ms = self.delay_ms();
            self.after(after_ms, What::Asked { node, process, id, operation });
        }
        for event in events {
            self.note(|| format!("node {node}: {event:?}"));
            if matches!(event, Event::NameTaken { .. }) {
                self.nodes[node].machine = None;
                self.nodes[node].has_ended = true;
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize, beat: &Beat) {
        let lost = !self.is_peaceful && self.chance(self.weather.lost_percent);
        if lost || self.cut.contains_key(&(from, to)) {
            return;
        }
        let (after_ms, process) = (self.delay_ms(), self.nodes[to].process);
        self.after(after_ms, What::Deliver { node: to, process, beat: beat.clone() });
    }

    /// The register gets an operation.
    fn serve(&mut self, what: What) {
        let What::Asked { node, process, id, operation } = what else {
            return;
        };
        if self.cut_from_register.contains_key(&node) {
            // The request or its answer is lost.
            if self.random.bool() {
                return;
            }
        }
        let asked = operation.clone();
        let is_stale = self.chance(self.weather.stale_percent) && !self.past.is_empty() && !self.is_peaceful;
        let index = self.random.usize(..self.past.len().max(1));
        let done = match operation {
            Operation::Read if is_stale => self.past[index].serve(operation),
            Operation::Read => self.stored.serve(operation),
            Operation::Put { .. } => {
                self.past.push_back(self.stored.clone());
                if self.past.len() > 20 {
                    self.past.pop_front();
                }
                self.stored.serve(operation)
            }
        };
        self.note(|| format!("register: node {node} {} {}", told(&asked), answered(&done)));
        if self.cut_from_register.contains_key(&node) {
            let lost = match done {
                Done::Put(_) => Done::Put(Err(PutError::Unknown("lost".to_owned()))),
                Done::Read(_) => Done::Read(Err(WireError("lost".to_owned()))),
            };
            self.after(1, What::Answered { node, process, id, done: lost });
            return;
        }
        let after_ms = self.delay_ms();
        self.after(after_ms, What::Answered { node, process, id, done });
    }

    fn start(&mut self, node: usize) {
        if self.nodes[node].machine.is_some() || self.nodes[node].has_ended {
            return;
        }
        let clock_ms = self.nodes[node].clock(self.now_ms);
        let place = &mut self.nodes[node];
        place.process += 1;
        place.paused_until_ms = 0;
        place.waiting.clear();
        let process = place.process;
        // The clocks on the walls differ too.
        let wall_ms = 1_700_000_000_000 + self.now_ms + u64::try_from(node).unwrap() * 700;
        let settings = Settings {
            name: place.name.clone(),
            incarnation: Incarnation::first(Ulid::from_parts(wall_ms, self.random.u128(..))),
            http: format!("http://{}", place.name).into(),
            version: "1".into(),
            seed: self.random.u64(..),
            rules: Rules { broken: self.weather.broken },
        };
        place.machine = Some(Membership::new(settings, clock_ms));
        self.note(|| format!("node {node} starts"));
        let after_ms = self.random.u64(..TICK_MS);
        self.after(after_ms, What::Tick { node, process });
    }

    fn kill(&mut self, node: usize) {
        self.note(|| format!("node {node} is killed"));
        self.nodes[node].machine = None;
    }

    fn pause(&mut self, node: usize, for_ms: u64) {
        self.note(|| format!("node {node} is paused for {for_ms} ms"));
        self.nodes[node].paused_until_ms = self.now_ms + for_ms;
        self.after(for_ms, What::Resume { node });
    }

    fn cut(&mut self, from: usize, to: usize, for_ms: u64) {
        *self.cut.entry((from, to)).or_default() += 1;
        self.after(for_ms, What::Heal { from, to });
    }

    fn cut_from_register(&mut self, node: usize, for_ms: u64) {
        *self.cut_from_register.entry(node).or_default() += 1;
        self.after(for_ms, What::HealRegister { node });
    }

    fn fault(&mut self) {
        let node = self.random.usize(..self.nodes.len());
        let other = self.random.usize(..self.nodes.len());
        let for_ms = self.random.choice([100, 1_000, 2_500, 4_000, 8_000]).unwrap() + self.random.u64(..500);
        match self.random.u32(..100) {
            0..15 => {
                self.kill(node);
                self.after(for_ms, What::Start { node });
            }
            15..35 if self.nodes[node].paused_until_ms <= self.now_ms => self.pause(node, for_ms),
            35..50 => {
                self.note(|| format!("{node} and {other} do not hear each other for {for_ms} ms"));
                self.cut(node, other, for_ms);
                self.cut(other, node, for_ms);
            }
            50..60 => {
                self.note(|| format!("{other} does not hear {node} for {for_ms} ms"));
                self.cut(node, other, for_ms);
            }
            60..70 => {
                self.note(|| format!("{node} is cut from everybody for {for_ms} ms"));
                for other in 0..self.nodes.len() {
                    self.cut(node, other, for_ms);
                    self.cut(other, node, for_ms);
                }
                if self.random.bool() {
                    self.cut_from_register(node, for_ms);
                }
            }
            70..80 => {
                self.note(|| format!("{node} is cut from the register for {for_ms} ms"));
                self.cut_from_register(node, for_ms);
            }
            80..85 => {
                self.note(|| format!("the register answers nobody for {for_ms} ms"));
                (0..self.nodes.len()).for_each(|node| self.cut_from_register(node, for_ms));
            }
            85..90 => {
                self.note(|| format!("the network falls in two for {for_ms} ms"));
                for (from, to) in (0..self.nodes.len()).flat_map(|from| (0..from).map(move |to| (from, to))) {
                    if from % 2 != to % 2 {
                        self.cut(from, to, for_ms);
                        self.cut(to, from, for_ms);
                    }
                }
            }
            90..95 => {
                self.note(|| "the register is lost".to_owned());
                let back = self.random.usize(..=self.past.len());
                self.stored = self.past.get(back).cloned().unwrap_or_default();
                self.past.clear();
            }
            95..100 if self.nodes.len() < 2 * self.weather.nodes => {
                self.note(|| format!("a second {node} is started"));
                let (name, index) = (self.nodes[node].name.clone(), self.nodes.len());
                let (rate, offset_ms) = (self.nodes[node].rate, self.random.u64(..10_000_000));
                self.nodes.push(Node {
                    name,
                    machine: None,
                    process: 0,
                    rate,
                    offset_ms,
                    paused_until_ms: 0,
                    waiting: Vec::new(),
                    has_ended: false,
                });
                self.start(index);
            }
            _ => {}
        }
    }

    fn check_leases(&mut self, node: usize) -> Result<(), String> {
        let leased = self.nodes[node].leased(self.now_ms);
        if leased.is_empty() {
            return Ok(());
        }
        self.leases_seen += 1;
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            if !leased.intersection(&self.nodes[other].acts(self.now_ms)).is_empty() {
                self.written_elsewhere += 1;
            }
            let both = leased.intersection(&self.nodes[other].leased(self.now_ms));
            if !both.is_empty() {
                let at_ms = self.now_ms;
                return Err(format!("at {at_ms} ms nodes {node} and {other} both have leases of {} partitions", both.len()));
            }
        }
        Ok(())
    }

    /// Ends all faults.
    fn make_peace(&mut self) {
        self.is_peaceful = true;
        self.note(|| "peace".to_owned());
        self.cut.clear();
        self.cut_from_register.clear();
        for node in 0..self.nodes.len() {
            if self.nodes[node].paused_until_ms > self.now_ms {
                self.nodes[node].paused_until_ms = 0;
                self.after(0, What::Resume { node });
            }
        }
        // A second process of a name is nobody's to restart.
        for node in 0..self.weather.nodes {
            let name = self.nodes[node].name.clone();
            let lives = self.nodes.iter().any(|place| place.name == name && place.machine.is_some());
            if !lives {
                self.nodes[node].has_ended = false;
                self.start(node);
            }
        }
    }

    /// Whether all agree: one process of each name, the same members, each partition with one owner that acts and has a lease.
    fn agreed(&self) -> Result<(), String> {
        let living: Vec<&Node> = self.nodes.iter().filter(|node| node.machine.is_some()).collect();
        let mut names: Vec<Name> = living.iter().map(|node| node.name.clone()).collect();
        names.sort();
        let expected: Vec<Name> = NAMES[..self.weather.nodes].iter().map(|name| Name::parse(name).unwrap()).collect();
        if names != expected {
            return Err(format!("these run: {names:?}"));
        }
        let table = Owners::among(names.clone());
        for node in &living {
            let machine = node.machine.as_ref().unwrap();
            let routing = machine.routing();
            let owned = table.owned_by(&node.name);
            if *routing.table != table {
                return Err(format!("{} counts {:?}", node.name, routing.table.names()));
            }
            if node.acts(self.now_ms) != owned {
                return Err(format!("{} acts for {} partitions of {}", node.name, routing.granted.len(), owned.len()));
            }
            let leased = node.leased(self.now_ms);
            if leased != owned {
                let holders: Vec<&Life> = machine.register.holders().collect();
                return Err(format!("{} has leases of {} of {}; holders {holders:?}", node.name, leased.len(), owned.len()));
            }
        }
        Ok(())
    }
}

fn told(operation: &Operation) -> String {
    match operation {
        Operation::Put { member, expected, payload } => {
            format!("puts {member} after {expected}: {}", String::from_utf8_lossy(payload))
        }
        Operation::Read => "reads".to_owned(),
    }
}

fn answered(done: &Done) -> String {
    match done {
        Done::Put(outcome) => format!("{outcome:?}"),
        Done::Read(Ok(entries)) => entries.iter().map(|entry| format!("{} {}; ", entry.member, entry.sequence)).collect(),
        Done::Read(Err(error)) => error.to_string(),
    }
}

fn release<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    match number("SOUK_MEMBERSHIP_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SOUK_MEMBERSHIP_SEEDS").unwrap_or(SEEDS),
    }
}

fn storm(seed: u64, broken: Option<Rule>) -> Result<(u64, u64), String> {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
    let weather = Weather { broken, ..Weather::of(&mut random) };
    let mut world = World::new(seed, weather);
    world.run(CHAOS_MS)?;
    world.make_peace();
    world.run(CHAOS_MS + PEACE_MS)?;
    let mut until_ms = CHAOS_MS + PEACE_MS;
    while until_ms < CHAOS_MS + PEACE_MS + CALM_MS {
        world.agreed().map_err(|why| format!("at {} ms: {why}", world.now_ms))?;
        until_ms += 100;
        world.run(until_ms)?;
    }
    Ok((world.leases_seen, world.written_elsewhere))
}

#[test]
fn whatever_happens_no_partition_has_two_leases_and_all_agree_when_it_is_over() {
    let (mut leases, mut written_elsewhere) = (0, 0);
    for seed in seeds() {
        let seen = storm(seed, None).unwrap_or_else(|why| panic!("seed {seed} (SOUK_MEMBERSHIP_SEED={seed}): {why}"));
        leases += seen.0;
        written_elsewhere += seen.1;
    }
    eprintln!("{leases} steps with a lease, {written_elsewhere} of them while another could write");
    assert!(leases > 1_000, "leases are had: {leases}");
}

/// The seed of the first storm in which a broken rule brings about two leases at once.
fn broken_by(rule: Rule, seeds: u64) -> Option<u64> {
    (0..seeds).find(|seed| storm(*seed, Some(rule)).is_err_and(|why| why.contains("both have leases")))
}

#[test]
fn a_storm_notices_a_broken_rule_of_the_lease() {
    for rule in [
        Rule::LeaseEndsBeforeOut,
        Rule::ClearInRegister,
        Rule::OutOnlyWhatStands,
        Rule::GrantOnlyTheUnclaimed,
        Rule::GrantOnlyTheAcknowledged,
    ] {
        assert!(broken_by(rule, SEEDS).is_some(), "{rule:?} was broken and nobody noticed");
    }
}

/// A calm world in which all have agreed.
fn settled(seed: u64, nodes: usize) -> World {
    let mut world = World::new(seed, Weather::calm(nodes));
    world.run(12_000).unwrap();
    world.agreed().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    world
}

/// The longest time that any partition had nobody to act for it, from now on until `for_ms` later.
fn longest_gap_ms(world: &mut World, for_ms: u64) -> u64 {
    let (mut acted_ms, mut longest_ms) = ([world.now_ms; PARTITIONS], 0);
    for at_ms in world.now_ms..world.now_ms + for_ms {
        world.run(at_ms).unwrap();
        for (index, acted_ms) in acted_ms.iter_mut().enumerate() {
            let partition = Partition(u8::try_from(index).unwrap());
            let is_here = |node: &Node| {
                let clock_ms = node.clock(at_ms);
                node.machine.as_ref().is_some_and(|machine| machine.routing().is_here(partition, clock_ms))
            };
            if world.nodes.iter().any(is_here) {
                *acted_ms = at_ms;
            }
            longest_ms = longest_ms.max(at_ms - *acted_ms);
        }
    }
    longest_ms
}

#[test]
fn a_planned_drain_leaves_no_partition_alone_for_longer_than_two_heartbeats() {
    for seed in 0..20 {
        let mut world = settled(seed, 2 + usize::try_from(seed % 4).unwrap());
        let until_ms = world.now_ms + world.random.u64(..BEAT_MS);
        world.run(until_ms).unwrap();
        let clock_ms = world.nodes[0].clock(world.now_ms);
        world.nodes[0].machine.as_mut().unwrap().drain(clock_ms);
        let gap_ms = longest_gap_ms(&mut world, 1_000);
        assert!(gap_ms <= 2 * BEAT_MS, "seed {seed}: {gap_ms} ms");
        let clock_ms = world.nodes[0].clock(world.now_ms);
        assert!(world.nodes[0].machine.as_ref().unwrap().is_drained(clock_ms), "seed {seed}");
        world.nodes[0].machine.as_mut().unwrap().leave(clock_ms);
        world.run(world.now_ms + 100).unwrap();
        assert!(world.nodes[1].machine.as_ref().unwrap().members().len() < world.nodes.len(), "seed {seed}");
    }
}

#[test]
fn a_killed_members_partitions_have_an_owner_again_soon_after_its_silence_is_noticed() {
    for seed in 0..20 {
        let mut world = settled(seed, 2 + usize::try_from(seed % 4).unwrap());
        world.kill(0);
        let gap_ms = longest_gap_ms(&mut world, 2 * SILENCE_MS);
        assert!((SILENCE_MS - BEAT_MS..SILENCE_MS + 2 * BEAT_MS).contains(&gap_ms), "seed {seed}: {gap_ms} ms");
    }
}

#[test]
fn a_member_that_joins_takes_its_share_without_a_gap() {
    for seed in 0..20 {
        let mut world = settled(seed, 2 + usize::try_from(seed % 4).unwrap());
        world.kill(0);
        world.run(world.now_ms + 5_000).unwrap();
        world.start(0);
        let gap_ms = longest_gap_ms(&mut world, 5_000);
        assert!(gap_ms <= 2 * BEAT_MS, "seed {seed}: {gap_ms} ms");
        world.agreed().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

fn settings(name: &str, time_ms: u64) -> Settings {
    Settings {
        name: Name::parse(name).unwrap(),
        incarnation: Incarnation::first(Ulid::from_parts(time_ms, 0)),
        http: "http://here".into(),
        version: "1".into(),
        seed: 0,
        rules: Rules::default(),
    }
}

/// Two members that hear each other, but for what `lost` says of the sender and the time.
fn two(until_ms: u64, lost: impl Fn(usize, u64) -> bool) -> ([Membership; 2], Vec<Beat>) {
    let mut nodes = [Membership::new(settings("n1", 1), 0), Membership::new(settings("n2", 2), 0)];
    let (mut lost_beats, mut stored) = (Vec::new(), Stored::default());
    for now_ms in (0..until_ms).step_by(10) {
        for sender in 0..2 {
            nodes[sender].tick(now_ms);
            if let Some((id, operation)) = nodes[sender].operation(now_ms) {
                let done = stored.serve(operation);
                nodes[sender].done(id, done, now_ms);
            }
            let Some(beat) = nodes[sender].beat(now_ms) else { continue };
            nodes[sender].hear(beat.clone(), now_ms);
            if lost(sender, now_ms) {
                lost_beats.push(beat);
            } else {
                nodes[1 - sender].hear(beat, now_ms);
            }
        }
    }
    (nodes, lost_beats)
}

fn counts(node: &Membership) -> Vec<&str> {
    node.routing().table.names().iter().map(Name::as_str).collect()
}

#[test]
fn a_late_heartbeat_does_not_bring_a_silent_member_back_but_its_answer_does() {
    // The second dies before the first has noticed its silence.
    let ([mut n1, mut n2], late) = two(6_600, |sender, now_ms| sender == 1 && now_ms >= 5_000);
    for now_ms in (6_600..9_000).step_by(10) {
        n1.tick(now_ms);
        if let Some(beat) = n1.beat(now_ms) {
            n1.hear(beat, now_ms);
        }
    }
    assert_eq!(counts(&n1), ["n1"]);
    for beat in late {
        n1.hear(beat, 9_000);
        assert_eq!(counts(&n1), ["n1"], "it spoke before it was taken for dead, as far as anybody knows");
    }
    let beat = n1.beat(9_250).unwrap();
    n2.hear(beat, 9_250);
    let answer = n2.beat(9_500).unwrap();
    n1.hear(answer, 9_500);
    assert_eq!(counts(&n1), ["n1", "n2"]);
}

#[test]
fn heartbeats_that_come_twice_or_in_disorder_change_nothing() {
    let ([mut n1, _], late) = two(9_000, |sender, now_ms| sender == 1 && (5_000..6_000).contains(&now_ms));
    let (before, missed) = (n1.view_number(), n1.missed());
    assert_eq!(counts(&n1), ["n1", "n2"]);
    assert!(missed > 0);
    for beat in late {
        n1.hear(beat, 8_999);
    }
    assert_eq!((n1.view_number(), n1.missed()), (before, missed));
}

#[test]
fn a_node_that_was_paused_joins_anew_and_is_owner_of_nothing() {
    let ([mut n1, _], _) = two(5_000, |_, _| false);
    let before = n1.incarnation();
    assert_eq!(n1.state(), State::Active);
    n1.tick(5_000 + PAUSE_MS);
    assert_eq!(n1.state(), State::Joining);
    assert!(n1.incarnation() > before);
    assert!(n1.routing().claimed.is_empty());
}

#[test]
fn a_node_that_does_not_hear_itself_never_becomes_active() {
    let mut n1 = Membership::new(settings("n1", 1), 0);
    for now_ms in (0..60_000).step_by(20) {
        n1.tick(now_ms);
        assert!(n1.beat(now_ms).is_none_or(|beat| beat.state == State::Joining));
    }
    assert!(counts(&n1).is_empty());
}
