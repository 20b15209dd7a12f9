//! Who is a member, who owns what, and whether this node may answer reads from memory.
//!
//! Members send a heartbeat to all every `BEAT_MS`, and at once when something has changed. It says who they are, and for
//! each member they hear: its incarnation, the `seq` of its newest heartbeat (an *acknowledgement*), and whether they
//! count it among the owners. Nobody decides for others; three rules make the views meet.
//!
//! **Who counts.** A member joins by listening for `SILENCE_MS` from its own first echo and by registering (see `register`);
//! then it says `active`. Active members that were heard within `SILENCE_MS` count. Their names
//! give the table of owners.
//! - A node that does not hear its own echo, or that finds that it was paused, is out of touch: it owns nothing and joins anew,
//!   in a new incarnation.
//! - A late heartbeat does not bring a silent member back: only one that acknowledges what was sent since it fell silent.
//! - A process under the name of another: the old one is out at once when the new one is active, and `SUCCESSION_MS` after
//!   the new one's first heartbeat unless it shows by an acknowledgement of the new one that it lives. Whoever is joining
//!   meanwhile ends with an error; of two that are active (one was away while the other was started) the older ends.
//!
//! **Who acts.** Each heartbeat thereby tells which partitions its sender *claims*: those that its own table gives it. A
//! claim becomes a *grant* when every *holder* (whoever else may have a grant, see `register`) has acknowledged a heartbeat
//! that claims the partition, in one that claims it no more. So an owner lets go first, by a heartbeat, and the next one
//! takes over upon hearing it; what a dead member had is granted when it is cleared in the register. A grant lasts until the
//! claim is given up, the register shows that others did without us, or the node joins anew.
//!
//! **The lease.** A grant counts while the newest acknowledged write of the register was sent less than `LEASE_MS` ago. Then
//! the node may answer reads of the partition from memory. While the register cannot be reached, a grant still counts for
//! writing (not for reading from memory) as long as each holder, and there must be one, acknowledges a heartbeat that was
//! sent less than `LEASE_MS` ago without claiming the partition.
//!
//! Why no two nodes X and Y have grants of one partition that count at once. *Each was a holder to the other when it was
//! granted:* then X had a heartbeat of Y, sent when Y did not claim, that acknowledges X's claim; Y had one of X, sent when X did
//! not claim, that acknowledges Y's. As both claim ever since their acknowledged heartbeats, each of the two was sent before
//! the claim that the other acknowledges: a circle in time. This needs no clock and holds for any delay, loss, doubling and
//! disorder. *Y was no holder to X:* of the two, the one that registered later has read the other's entry after that, and can
//! only have lost it as a holder by seeing it leave, overwritten or lost, or by writing `out` over it after it stood still
//! for `STANDING_MS`. So the other's newest acknowledged write was sent longer than `LEASE_MS` ago and none will follow: its
//! grants count no more, or it has registered anew and is the later one.
//!
//! What remains: a node that can write the journal and is acknowledged by others, while none of these can reach the register
//! nor be heard by those who can, may go on *writing* what somebody else was granted, until the register answers it. The
//! journal still refuses what is decided against an old version, and no two nodes ever read from memory at once.
//!
//! The clocks enter only as lengths: a node's monotonic clock must not run slow by a fifth against another's, nor stand still
//! while the node goes on. A machine that is frozen together with its clock may believe in a lease for up to `LEASE_MS` after
//! it thaws.
//!
//! Pure: it is told the time in milliseconds of a monotonic clock, what was heard and what came of its operations; it
//! answers with heartbeats and operations of the register. Same inputs, same outputs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::beat::{Beat, Heard, Incarnation, MEMBERS_MAX, State};
use super::placement::{Owners, PARTITIONS, Partition, Partitions};
use super::register::{Done, Found, Life, Operation, Register};
use super::wire::Name;

pub const BEAT_MS: u64 = 250;
/// Heartbeats that tell of a change are no closer than this.
const BEAT_SPACING_MS: u64 = 20;
/// Unheard for this long, a member is out.
pub const SILENCE_MS: u64 = 2_000;
/// From the sending of a heartbeat, or of a write of the register, to the end of what it can bring.
pub const LEASE_MS: u64 = 1_200;
/// A member that shares its name with a newer one shows within this time that it lives.
const SUCCESSION_MS: u64 = 2 * BEAT_MS;
/// A node that did nothing for this long was paused, and the others may have given it up.
const PAUSE_MS: u64 = SILENCE_MS - 2 * BEAT_MS;
/// What was heard of a silent member is remembered for this long, so that late heartbeats are known as such.
const FORGET_MS: u64 = 60_000;
/// Lives of members that are remembered.
const VOICES_MAX: usize = 4 * MEMBERS_MAX;
/// Tables of owners that are kept.
const TABLES_MAX: usize = 32;

/// A rule of the protocol that a test may break, to see that it is needed and that breaking it is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    LeaseEndsBeforeOut,
    ClearInRegister,
    OutOnlyWhatStands,
    GrantOnlyTheUnclaimed,
    GrantOnlyTheAcknowledged,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    #[cfg(test)]
    pub broken: Option<Rule>,
}

impl Rules {
    #[cfg(not(test))]
    pub fn keep(self, _: Rule) -> bool {
        true
    }

    #[cfg(test)]
    pub fn keep(self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    pub fn lease_ms(self) -> u64 {
        if self.keep(Rule::LeaseEndsBeforeOut) { LEASE_MS } else { 2 * SILENCE_MS }
    }
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub name: Name,
    pub incarnation: Incarnation,
    pub http: Arc<str>,
    pub version: Arc<str>,
    /// Of the jitter.
    pub seed: u64,
    pub rules: Rules,
}

/// What was heard of a member in one of its lives.
#[derive(Debug)]
struct Voice {
    beat: Beat,
    first_ms: u64,
    heard_ms: u64,
    /// The newest heartbeat of ours, in this life of ours, that it has acknowledged.
    acknowledged: Option<u64>,
    /// The partitions that it claims.
    claims: Partitions,
    /// Our newest heartbeat when it fell silent. It is back when it has acknowledged a later one.
    lost_at: Option<u64>,
}

impl Voice {
    fn is_living(&self, now_ms: u64) -> bool {
        self.beat.state != State::Left && self.lost_at.is_none() && now_ms < self.heard_ms + SILENCE_MS
    }

    fn hears(&self, life: &Life) -> bool {
        self.beat.hears.iter().any(|heard| heard.member == life.0 && heard.incarnation == life.1)
    }
}

/// What the rest of the node looks up: changed in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    pub table: Arc<Owners>,
    /// Partitions that the table gives this node.
    pub claimed: Partitions,
    /// Those of them that nobody else can have.
    pub granted: Partitions,
    /// Another number for each grant of a partition.
    pub grants: Arc<[u64; PARTITIONS]>,
    /// Until then what is granted may be read from memory, and written.
    pub lease_until_ms: u64,
    /// Until then these may be written.
    pub acknowledged_until_ms: u64,
    pub acknowledged: Partitions,
    /// Who else claims what this node claims and was not granted.
    pub rivals: BTreeMap<Partition, Name>,
}

impl Routing {
    /// Nothing is granted.
    pub fn nothing(table: Arc<Owners>) -> Self {
        Routing {
            table,
            claimed: Partitions::NONE,
            granted: Partitions::NONE,
            grants: Arc::new([0; PARTITIONS]),
            lease_until_ms: 0,
            acknowledged_until_ms: 0,
            acknowledged: Partitions::NONE,
            rivals: BTreeMap::new(),
        }
    }

    pub fn is_leased(&self, partition: Partition, now_ms: u64) -> bool {
        self.granted.contains(partition) && now_ms < self.lease_until_ms
    }

    /// Whether this node is the partition's owner, and acts as such.
    pub fn is_here(&self, partition: Partition, now_ms: u64) -> bool {
        self.is_leased(partition, now_ms) || (self.acknowledged.contains(partition) && now_ms < self.acknowledged_until_ms)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: Name,
    pub incarnation: Incarnation,
    pub state: State,
    pub http: Arc<str>,
    pub version: Arc<str>,
    pub unheard_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Joined(Name),
    /// It said good-bye.
    Left(Name),
    /// It was silent for too long.
    Lost(Name),
    Restarted(Name),
    StateIs(Name, State),
    /// The partitions that are granted to this node.
    Granted {
        gained: Partitions,
        lost: Partitions,
    },
    LeaseGained,
    LeaseLost,
    OutOfTouch,
    /// Another process has our name and is to end.
    Doubled {
        http: Arc<str>,
    },
    /// Another process has our name: this one is to end.
    NameTaken {
        http: Arc<str>,
    },
}

pub struct Membership {
    settings: Settings,
    incarnation: Incarnation,
    state: State,
    seq: u64,
    /// When heartbeats were sent: those that can still bring a lease.
    sent: VecDeque<(u64, u64)>,
    beat_due_ms: u64,
    beat_sent_ms: u64,
    ticked_ms: u64,
    /// Since when our own echo is heard in this life.
    echo_since_ms: Option<u64>,
    echo_ms: u64,
    /// The newest heartbeat when draining was first told.
    draining_since: u64,
    voices: BTreeMap<Life, Voice>,
    register: Register,
    tables: VecDeque<Arc<Owners>>,
    routing: Routing,
    /// Since which heartbeat we claim a partition.
    claimed_since: [u64; PARTITIONS],
    grants: u64,
    was_registered: bool,
    had_lease: bool,
    members: Vec<Member>,
    view_number: u64,
    events: Vec<Event>,
    missed: u64,
    is_over: bool,
}

impl Membership {
    pub fn new(settings: Settings, now_ms: u64) -> Self {
        let table = Arc::new(Owners::among([]));
        let routing = Routing::nothing(table.clone());
        let incarnation = settings.incarnation;
        let mut membership = Membership {
            incarnation,
            state: State::Joining,
            seq: 0,
            sent: VecDeque::new(),
            beat_due_ms: now_ms,
            beat_sent_ms: 0,
            ticked_ms: now_ms,
            echo_since_ms: None,
            echo_ms: now_ms,
            draining_since: 0,
            voices: BTreeMap::new(),
            register: Register::new(settings.name.clone(), incarnation, settings.rules, settings.seed),
            tables: VecDeque::from([table]),
            routing,
            claimed_since: [0; PARTITIONS],
            grants: 0,
            was_registered: false,
            had_lease: false,
            members: Vec::new(),
            view_number: 0,
            events: Vec::new(),
            missed: 0,
            is_over: false,
            settings,
        };
        membership.refresh(now_ms);
        membership
    }

    pub fn name(&self) -> &Name {
        &self.settings.name
    }

    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn routing(&self) -> &Routing {
        &self.routing
    }

    /// By name, ourselves among them; `unheard_ms` as of the last call that changed anything.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Grows when members, states, or what this node acts for have changed.
    pub fn view_number(&self) -> u64 {
        self.view_number
    }

    /// Heartbeats of others that were sent and not heard.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Time has passed. To be called at least every `BEAT_SPACING_MS`, after all that was heard is handed in.
    pub fn tick(&mut self, now_ms: u64) {
        let was_paused = now_ms >= self.ticked_ms + PAUSE_MS;
        let is_deaf = self.echo_since_ms.is_some() && now_ms >= self.echo_ms + SILENCE_MS;
        self.ticked_ms = now_ms;
        if (was_paused || is_deaf) && matches!(self.state, State::Joining | State::Active) {
            self.rejoin(now_ms);
        }
        self.refresh(now_ms);
    }

    fn rejoin(&mut self, now_ms: u64) {
        if self.state == State::Active {
            self.events.push(Event::OutOfTouch);
        }
        self.incarnation = self.incarnation.next();
        self.state = State::Joining;
        self.echo_since_ms = None;
        self.beat_due_ms = now_ms;
        self.register.rejoin(self.incarnation);
        for voice in self.voices.values_mut() {
            voice.acknowledged = None;
        }
    }

    /// A heartbeat was heard, of ourselves or of another.
    pub fn hear(&mut self, beat: Beat, now_ms: u64) {
        if beat.hears.len() > MEMBERS_MAX {
            return;
        }
        self.note_the_silent(now_ms);
        if beat.incarnation.process == self.settings.incarnation.process {
            if beat.incarnation == self.incarnation {
                self.echo_since_ms.get_or_insert(now_ms);
                self.echo_ms = now_ms;
            }
        } else {
            self.hear_another(beat, now_ms);
        }
        self.refresh(now_ms);
    }

    fn hear_another(&mut self, beat: Beat, now_ms: u64) {
        let life = (beat.member.clone(), beat.incarnation);
        let known = self.voices.get(&life);
        if known.is_some_and(|voice| beat.seq <= voice.beat.seq || voice.beat.state == State::Left) {
            return;
        }
        match known {
            Some(voice) => self.missed += beat.seq - voice.beat.seq - 1,
            None => self.make_room(),
        }
        match beat.state {
            State::Joining => {}
            State::Active | State::Draining => self.register.heard(&life, now_ms),
            State::Left => self.register.left(&life),
        }
        let ours = (self.settings.name.clone(), self.incarnation);
        let acknowledged = beat.hears.iter().find(|heard| (&heard.member, heard.incarnation) == (&ours.0, ours.1));
        let acknowledged = acknowledged.map(|heard| heard.seq);
        let claims = self.claims(&beat);
        let (first_ms, lost_at) = known_since(self.voices.get(&life), now_ms);
        // Who hears nothing of us since it fell silent may be speaking from the past.
        let lost_at = lost_at.filter(|lost_at| acknowledged.is_none_or(|seq| seq <= *lost_at));
        let is_news = self.voices.get(&life).is_none_or(|known| known.claims != claims || known.beat.state != beat.state);
        if is_news {
            self.beat_soon(now_ms);
        }
        let voice = Voice { beat, first_ms, heard_ms: now_ms, acknowledged, claims, lost_at };
        if life.0 == self.settings.name {
            self.settle_the_name(&voice, now_ms);
        }
        self.voices.insert(life, voice);
    }

    fn make_room(&mut self) {
        if self.voices.len() >= VOICES_MAX
            && let Some(oldest) = self.voices.iter().min_by_key(|(_, voice)| voice.heard_ms).map(|(life, _)| life.clone())
        {
            self.voices.remove(&oldest);
        }
    }

    /// Another process has our name. One of the two must end, if both live.
    fn settle_the_name(&mut self, other: &Voice, now_ms: u64) {
        // That it lived when we had started is not enough: it may have ended since.
        let sent_ms = other.acknowledged.and_then(|seq| self.sent_ms(seq));
        let lives = sent_ms.is_some_and(|sent_ms| now_ms < sent_ms + LEASE_MS);
        if !lives || other.beat.state == State::Left || self.state == State::Left {
            return;
        }
        let is_settled = |state: State| state != State::Joining;
        let we_end = match (is_settled(self.state), is_settled(other.beat.state)) {
            (true, false) => false,
            (false, true) => true,
            (false, false) => self.incarnation > other.beat.incarnation,
            (true, true) => self.incarnation < other.beat.incarnation,
        };
        let http = other.beat.http.clone();
        if we_end {
            self.give_the_name_up(http);
        } else {
            self.events.push(Event::Doubled { http });
        }
    }

    fn give_the_name_up(&mut self, http: Arc<str>) {
        self.state = State::Left;
        self.is_over = true;
        self.events.push(Event::NameTaken { http });
    }

    /// What came of an operation of the register.
    pub fn done(&mut self, id: u64, done: Done, now_ms: u64) {
        if self.register.done(id, done, now_ms) == Found::Taken {
            let http = self.voices.iter().find(|(life, _)| life.0 == self.settings.name);
            let http = http.map_or_else(|| Arc::from(""), |(_, voice)| voice.beat.http.clone());
            self.give_the_name_up(http);
        }
        self.refresh(now_ms);
    }

    /// Gives all partitions up, for good.
    pub fn drain(&mut self, now_ms: u64) {
        if matches!(self.state, State::Joining | State::Active) {
            self.state = State::Draining;
            self.draining_since = self.seq + 1;
            self.refresh(now_ms);
            self.beat_soon(now_ms);
        }
    }

    /// Whether every member that is heard knows that we are draining.
    pub fn is_drained(&self, now_ms: u64) -> bool {
        let knows = |voice: &Voice| voice.acknowledged.is_some_and(|seq| seq >= self.draining_since);
        let others = self.voices.iter().filter(|(life, voice)| life.0 != self.settings.name && voice.is_living(now_ms));
        matches!(self.state, State::Draining | State::Left) && others.map(|(_, voice)| voice).all(knows)
    }

    /// Says good-bye. All that was owned is given up, if not drained before.
    pub fn leave(&mut self, now_ms: u64) {
        if self.state != State::Left {
            self.state = State::Left;
            self.register.leave();
            self.refresh(now_ms);
            self.beat_due_ms = now_ms;
        }
    }

    fn beat_soon(&mut self, now_ms: u64) {
        self.beat_due_ms = self.beat_due_ms.min((self.beat_sent_ms + BEAT_SPACING_MS).max(now_ms));
    }

    /// The heartbeat to be sent now, if one is. The routing must be in force before it leaves.
    pub fn beat(&mut self, now_ms: u64) -> Option<Beat> {
        if now_ms < self.beat_due_ms || self.is_over {
            return None;
        }
        self.beat_due_ms = now_ms + BEAT_MS;
        self.beat_sent_ms = now_ms;
        self.seq += 1;
        self.sent.push_back((self.seq, now_ms));
        while self.sent.front().is_some_and(|(_, sent_ms)| sent_ms + self.settings.rules.lease_ms() <= now_ms) {
            self.sent.pop_front();
        }
        let counted: BTreeSet<&Name> = self.routing.table.names().iter().collect();
        let mut heard: Vec<(&Life, &Voice)> =
            self.voices.iter().filter(|(_, voice)| now_ms < voice.heard_ms + SILENCE_MS).collect();
        heard.sort_by_key(|(_, voice)| Reverse(voice.heard_ms));
        heard.truncate(MEMBERS_MAX);
        let hears = heard.into_iter().map(|(life, voice)| Heard {
            member: life.0.clone(),
            incarnation: life.1,
            seq: voice.beat.seq,
            counts: counted.contains(&life.0) && life.0 != self.settings.name,
        });
        Some(Beat {
            member: self.settings.name.clone(),
            incarnation: self.incarnation,
            seq: self.seq,
            state: self.state,
            http: self.settings.http.clone(),
            version: self.settings.version.clone(),
            hears: hears.collect(),
        })
    }

    /// The operation of the register to be done now, if there is one. Its outcome is to be told to `done`.
    pub fn operation(&mut self, now_ms: u64) -> Option<(u64, Operation)> {
        if self.is_over {
            return None;
        }
        let wants = match self.state {
            State::Active => true,
            State::Joining => self.may_register(now_ms),
            State::Draining | State::Left => false,
        };
        let voices = &self.voices;
        self.register.next(now_ms, wants, |life| unheard_ms(voices.get(life), now_ms))
    }

    /// A joining node registers early, so that it need not wait later; but it must not push a living namesake aside.
    fn may_register(&self, now_ms: u64) -> bool {
        let has_listened = self.echo_since_ms.is_some_and(|since_ms| now_ms >= since_ms + SUCCESSION_MS);
        let ours = (self.settings.name.clone(), self.incarnation);
        let mut namesakes = self.voices.iter().filter(|(life, voice)| life.0 == ours.0 && voice.is_living(now_ms));
        has_listened && !namesakes.any(|(_, voice)| voice.hears(&ours))
    }

    /// Draws the conclusions from all that is known.
    fn refresh(&mut self, now_ms: u64) {
        self.note_the_silent(now_ms);
        self.become_active(now_ms);
        self.divide(now_ms);
        self.grant(now_ms);
        self.renew(now_ms);
        self.look_around(now_ms);
    }

    fn note_the_silent(&mut self, now_ms: u64) {
        let seq = self.seq;
        for voice in self.voices.values_mut().filter(|voice| now_ms >= voice.heard_ms + SILENCE_MS) {
            voice.lost_at.get_or_insert(seq);
        }
        self.voices.retain(|_, voice| now_ms < voice.heard_ms + FORGET_MS);
        let voices = &self.voices;
        self.register.let_go(now_ms, |life| unheard_ms(voices.get(life), now_ms));
    }

    fn become_active(&mut self, now_ms: u64) {
        let Some(since_ms) = self.echo_since_ms.filter(|_| self.state == State::Joining) else {
            return;
        };
        // Who says `active` must be ready to take over what others then let go.
        if now_ms >= since_ms + SILENCE_MS && self.register.is_complete(now_ms) {
            self.state = State::Active;
            self.beat_soon(now_ms);
        }
    }

    /// The one life of a name that is taken for the member.
    fn chosen(&self, now_ms: u64) -> BTreeMap<&Name, &Voice> {
        let mut chosen: BTreeMap<&Name, &Voice> = BTreeMap::new();
        // In order of their incarnations.
        for (life, voice) in self.voices.iter().filter(|(_, voice)| voice.is_living(now_ms)) {
            chosen
                .entry(&life.0)
                .and_modify(|older| {
                    let older_lives = older.hears(life) || now_ms < voice.first_ms + SUCCESSION_MS;
                    if voice.beat.state != State::Joining || older.beat.state == State::Joining || !older_lives {
                        *older = voice;
                    }
                })
                .or_insert(voice);
        }
        chosen.remove(&self.settings.name);
        chosen
    }

    /// The table of owners among those who count.
    fn divide(&mut self, now_ms: u64) {
        let itself = (self.state == State::Active).then(|| self.settings.name.clone());
        let active = self.chosen(now_ms).into_iter().filter(|(_, voice)| voice.beat.state == State::Active);
        let mut counted: Vec<Name> = active.map(|(name, _)| name.clone()).chain(itself).collect();
        counted.sort();
        if self.routing.table.names() == counted {
            return;
        }
        let table = self.table(counted);
        let claimed = table.owned_by(&self.settings.name);
        for partition in claimed.without(&self.routing.claimed).iter() {
            self.claimed_since[partition.index()] = self.seq + 1;
        }
        self.routing.claimed = claimed;
        self.routing.table = table;
        self.view_number += 1;
        self.beat_soon(now_ms);
    }

    fn table(&mut self, names: Vec<Name>) -> Arc<Owners> {
        if let Some(table) = self.tables.iter().find(|table| table.names() == names) {
            return table.clone();
        }
        let table = Arc::new(Owners::among(names));
        self.tables.push_back(table.clone());
        if self.tables.len() > TABLES_MAX {
            self.tables.pop_front();
        }
        table
    }

    /// The partitions that the sender of a heartbeat claims.
    fn claims(&mut self, beat: &Beat) -> Partitions {
        if beat.state != State::Active {
            return Partitions::NONE;
        }
        let table = self.table(beat.counted());
        table.owned_by(&beat.member)
    }

    /// What all holders together say: up to where they have acknowledged us, and what they claim. `None` when one of them
    /// has not acknowledged us at all.
    fn holders(&self) -> Option<(u64, Partitions)> {
        let (mut acknowledged, mut claimed) = (self.seq, Partitions::NONE);
        for life in self.register.holders() {
            let voice = self.voices.get(life)?;
            acknowledged = acknowledged.min(voice.acknowledged?);
            claimed = claimed.union(&voice.claims);
        }
        Some((acknowledged, claimed))
    }

    fn grant(&mut self, now_ms: u64) {
        if !std::mem::replace(&mut self.was_registered, self.register.is_registered()) && self.was_registered {
            // What was acknowledged earlier was to one that others may have done without since.
            self.claimed_since = [self.seq + 1; PARTITIONS];
            self.beat_soon(now_ms);
        }
        let before = self.routing.granted;
        let kept = if self.register.is_registered() { before.intersection(&self.routing.claimed) } else { Partitions::NONE };
        let mut granted = kept;
        let wanted = self.routing.claimed.without(&kept);
        if !wanted.is_empty()
            && self.register.is_complete(now_ms)
            && let Some((acknowledged, claimed)) = self.holders()
        {
            let heed_claims = self.settings.rules.keep(Rule::GrantOnlyTheUnclaimed);
            let heed_acknowledgements = self.settings.rules.keep(Rule::GrantOnlyTheAcknowledged);
            for partition in wanted.iter() {
                let is_known = self.claimed_since[partition.index()] <= acknowledged || !heed_acknowledgements;
                if is_known && !(claimed.contains(partition) && heed_claims) {
                    granted.insert(partition);
                }
            }
        }
        if granted == before {
            return;
        }
        let (gained, lost) = (granted.without(&before), before.without(&granted));
        self.grants += 1;
        let mut grants = *self.routing.grants;
        gained.iter().for_each(|partition| grants[partition.index()] = self.grants);
        self.routing.grants = Arc::new(grants);
        self.routing.granted = granted;
        self.events.push(Event::Granted { gained, lost });
        self.view_number += 1;
    }

    /// Until when what is granted counts.
    fn renew(&mut self, now_ms: u64) {
        self.routing.lease_until_ms = self.register.lease_until_ms().unwrap_or(0);
        let by_holders = self.holders().filter(|_| self.register.holders().next().is_some());
        let by_holders = by_holders.and_then(|(seq, claimed)| Some((self.sent_ms(seq)?, claimed)));
        (self.routing.acknowledged_until_ms, self.routing.acknowledged) = match by_holders {
            Some((sent_ms, claimed)) => (sent_ms + self.settings.rules.lease_ms(), self.routing.granted.without(&claimed)),
            None => (0, Partitions::NONE),
        };
        self.routing.rivals.clear();
        let unsettled = self.routing.claimed.without(&self.routing.granted);
        for rival in self.voices.values().filter(|voice| !unsettled.is_empty() && voice.is_living(now_ms)) {
            let both = rival.claims.intersection(&unsettled);
            self.routing.rivals.extend(both.iter().map(|partition| (partition, rival.beat.member.clone())));
        }
        let has_lease = !self.routing.granted.is_empty() && now_ms < self.routing.lease_until_ms;
        match (std::mem::replace(&mut self.had_lease, has_lease), has_lease) {
            (false, true) => self.events.push(Event::LeaseGained),
            (true, false) => self.events.push(Event::LeaseLost),
            _ => {}
        }
    }

    fn sent_ms(&self, seq: u64) -> Option<u64> {
        let (first, _) = self.sent.front()?;
        let index = usize::try_from(seq.checked_sub(*first)?).ok()?;
        self.sent.get(index).map(|(_, sent_ms)| *sent_ms)
    }

    /// Compares the members with those of before.
    fn look_around(&mut self, now_ms: u64) {
        let ours = Member {
            name: self.settings.name.clone(),
            incarnation: self.incarnation,
            state: self.state,
            http: self.settings.http.clone(),
            version: self.settings.version.clone(),
            unheard_ms: now_ms.saturating_sub(self.echo_ms),
        };
        let others = self.chosen(now_ms).into_values().map(|voice| Member {
            name: voice.beat.member.clone(),
            incarnation: voice.beat.incarnation,
            state: voice.beat.state,
            http: voice.beat.http.clone(),
            version: voice.beat.version.clone(),
            unheard_ms: now_ms.saturating_sub(voice.heard_ms),
        });
        let mut members: Vec<Member> = others.chain([ours]).collect();
        members.sort_by(|left, right| left.name.cmp(&right.name));
        let before = std::mem::replace(&mut self.members, members);
        let changed = self.events_since(&before);
        if !changed.is_empty() {
            self.view_number += 1;
            self.events.extend(changed);
        }
    }

    fn events_since(&self, before: &[Member]) -> Vec<Event> {
        let mut events = Vec::new();
        for member in &self.members {
            let name = member.name.clone();
            match before.iter().find(|known| known.name == name) {
                None => events.push(Event::Joined(name)),
                Some(known) if known.incarnation != member.incarnation => events.push(Event::Restarted(name)),
                Some(known) if known.state != member.state => events.push(Event::StateIs(name, member.state)),
                Some(_) => {}
            }
        }
        for member in before.iter().filter(|known| self.members.iter().all(|member| member.name != known.name)) {
            let life = (member.name.clone(), member.incarnation);
            let said_so = self.voices.get(&life).is_some_and(|voice| voice.beat.state == State::Left);
            events.push(if said_so { Event::Left(life.0) } else { Event::Lost(life.0) });
        }
        events
    }
}

fn unheard_ms(voice: Option<&Voice>, now_ms: u64) -> u64 {
    voice.map_or(u64::MAX, |voice| now_ms.saturating_sub(voice.heard_ms))
}

fn known_since(voice: Option<&Voice>, now_ms: u64) -> (u64, Option<u64>) {
    voice.map_or((now_ms, None), |voice| (voice.first_ms, voice.lost_at))
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
