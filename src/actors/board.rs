//! The board of a flash sale: what everybody sees of it, and what each of those in line sees of their place.
//!
//! A hot sale writes more records than anybody could watch, so its watchers get states. Each sale that is watched on a node
//! has one board there:
//!
//! - At most every [`SHOW_EVERY`] there is a round for all boards of the node: those whose sale was written to, as the hub
//!   tells, ask it how it looks and show the answer to all, one question and one text however many watch. Boards show
//!   together, so that who watches several gets all of it in one packet. Each watcher holds the newest only, so a slow one
//!   misses what lay between and never what came last. The next round begins when the threads of the sessions are through
//!   with this one: a node that cannot keep up shows less often, and nothing piles up. A sale that takes long to answer
//!   is shown in a later round, and holds up none.
//! - Every [`LINE_EVERY`] it asks for the line as a whole, and tells from it the place of each who waits and watches here,
//!   and whose turn has come. Those whose ticket went otherwise are asked for one by one.
//! - It tells the sale who of those in line is gone, and who is back. Where that does not get through, the place is kept:
//!   the safe side. A watcher at another node is told to be back by the board there.
//!
//! A board must never wait for a watcher, and never ask for each of them.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, stream};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use ulid::Ulid;

use super::ask::{AskError, Caller, Failure};
use super::credential::Credential;
use super::live::{Live, Pushed, Watch, Watcher};
use super::permissions::Permission;
use super::retry::backoff_ms;
use super::runtime::Runtime;
use super::shown;
use super::topic::topic_name;
use crate::domain::flash_sale::{ClaimNumber, ClaimPhase, Command, Customer, Own, Places, Reply, Shown, Status, TicketNumber};
use crate::domain::order::Owner;
use crate::domain::time::SECOND_MS;
use crate::domain::{CommandId, Entity, FlashSale, Timestamp, ids};
use crate::persistence::{EntityKey, Version};

/// At most so often a watcher is shown a sale.
pub const SHOW_EVERY: Duration = Duration::from_millis(100);
/// At most so often somebody in line is told their place.
pub const LINE_EVERY: Duration = Duration::from_secs(1);
/// How long one question to a sale may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a round waits for answers.
const LOOK_IN_ROUND: Duration = Duration::from_millis(50);
/// Sales that are asked at a time.
const LOOKS_AT_ONCE: usize = 256;
/// How long the threads of the sessions are waited for.
const THROUGH_TIMEOUT: Duration = Duration::from_secs(1);
/// Boards that may wait for one thread.
const THROUGH_MAX: usize = 1_024;
/// Questions for the line in a row: what is new in it comes in parts.
const LINE_ASKS_MAX: usize = 64;
/// Customers that are asked for one by one, or told of, at a time, and in one go.
const ASKS_AT_ONCE: usize = 32;
const ASKS_MAX: usize = 4_096;
/// Whoever is back so soon was never gone.
const GONE_AFTER: Duration = Duration::from_secs(2);
/// Customers of whom the sale has still to hear that they are gone. Of more it hears nothing.
const GONE_MAX: usize = 100_000;
const PRESENCE_TRIES_MAX: u32 = 8;
/// How long a board stays after its last watcher.
const LINGER: Duration = Duration::from_secs(5);

/// All boards of this node. Clones share them.
#[derive(Clone)]
pub struct Boards(Arc<Hall>);

struct Hall {
    node: Handle,
    runtime: Runtime,
    live: Live,
    threads: Threads,
    due: Arc<Due>,
    boards: Mutex<HashMap<String, Hung>>,
    show: OnceLock<AbortHandle>,
}

struct Hung {
    board: Arc<Board>,
    keep: AbortHandle,
    _watch: Watch,
}

/// The threads on which watchers are served, each with a task that answers when its turn comes: whatever was woken there
/// before has then been done.
#[derive(Clone, Default)]
pub struct Threads(Vec<mpsc::Sender<oneshot::Sender<()>>>);

impl Threads {
    /// To be run on a thread of its own, each.
    pub fn task(&mut self) -> impl Future<Output = ()> + Send + 'static {
        let (turns, mut waiting) = mpsc::channel::<oneshot::Sender<()>>(THROUGH_MAX);
        self.0.push(turns);
        async move {
            while let Some(through) = waiting.recv().await {
                let _ = through.send(());
            }
        }
    }

    async fn are_through(&self) {
        let told = self.0.iter().filter_map(|thread| {
            let (tell, told) = oneshot::channel();
            thread.try_send(tell).is_ok().then_some(told)
        });
        let _ = timeout(THROUGH_TIMEOUT, futures_util::future::join_all(told)).await;
    }
}

/// What was found of a sale by somebody who wants to watch it.
pub struct Seen {
    pub version: Version,
    customer: Option<(Customer, Status, Own)>,
}

/// Looks at a sale for somebody; `None` when there is none, or none that they may see.
pub async fn admit(runtime: &Runtime, sale: &str, credential: &Credential) -> Result<Option<Seen>, Failure> {
    let customer = customer(credential);
    let Some((version, mut shown)) = look(runtime, sale, customer).await? else { return Ok(None) };
    let customer = customer.zip(shown.own.take()).map(|(customer, own)| (customer, shown.status, own));
    Ok(may_see(credential, &shown).then_some(Seen { version, customer }))
}

/// The sale as everybody sees it, in JSON with its version; `None` when there is none.
pub async fn state(runtime: &Runtime, sale: &str) -> Result<Option<(Version, String)>, Failure> {
    let looked = look(runtime, sale, None).await?;
    Ok(looked.map(|(version, shown)| (version, json(sale, &shown))))
}

async fn look(runtime: &Runtime, sale: &str, customer: Option<Customer>) -> Result<Option<(Version, Shown)>, Failure> {
    match ask(runtime, sale, Command::Look { customer }).await {
        Ok((version, Reply::Shown(shown))) => Ok(Some((version, *shown))),
        Ok(_) | Err(AskError::Rejected(_)) => Ok(None),
        Err(AskError::Failed(failure)) => Err(failure),
    }
}

type Asked = Result<(Version, Reply), AskError<<FlashSale as Entity>::Rejection>>;

async fn ask(runtime: &Runtime, sale: &str, command: Command) -> Asked {
    let id: Arc<str> = format!("live/{}", Ulid::new()).into();
    let caller = Caller { timeout: ASK_TIMEOUT, ..Caller::new(CommandId(id.to_string()), "live", id) };
    let answered = runtime.ask_for_many::<FlashSale>(sale, command, caller).await?;
    Ok((answered.version, answered.reply))
}

fn customer(credential: &Credential) -> Option<Customer> {
    let owner = match credential {
        Credential::Nobody => return None,
        Credential::Bearer { token_sha256 } => Owner::Guest { token_sha256: token_sha256.clone() },
        Credential::Account(account) => Owner::Account { user: account.user.to_string() },
    };
    Customer::of(&owner)
}

/// What is not approved yet is its shop's, and an admin's.
fn may_see(credential: &Credential, sale: &Shown) -> bool {
    let reaches = credential.reaches(Permission::SaleWrite);
    let is_its_shop = credential.shop().is_some_and(|shop| sale.terms.shop.as_deref() == Some(shop));
    !matches!(sale.status, Status::Absent | Status::Draft | Status::Arming) || reaches.all || (reaches.shop && is_its_shop)
}

fn is_over(status: Status) -> bool {
    matches!(status, Status::Ended | Status::Cancelled)
}

fn json(sale: &str, shown: &Shown) -> String {
    serde_json::to_string(&shown::flash_sale(sale, shown)).unwrap_or_else(|_| "null".into())
}

/// What a watcher is told, as a WebSocket text and as the data of a server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    State { seq: Version, text: Utf8Bytes },
    Ticket { text: Utf8Bytes },
}

impl Told {
    pub fn text(self) -> Utf8Bytes {
        match self {
            Told::State { text, .. } | Told::Ticket { text } => text,
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Frame<'a> {
    State {
        topic: &'a str,
        seq: Version,
        state: &'a RawValue,
    },
    Ticket {
        topic: &'a str,
        #[serde(flatten)]
        standing: Standing,
    },
}

impl Frame<'_> {
    fn text(&self) -> Option<Utf8Bytes> {
        serde_json::to_string(self).ok().map(Utf8Bytes::from)
    }
}

/// How somebody stands who is or was in line.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum Standing {
    /// 1 is the next.
    Waiting { place: u32, estimated_wait_seconds: Option<i64> },
    /// It is their turn: the claim is to be taken up until then.
    Admitted { claim_id: String, quantity: u32, admitted_until: Timestamp },
    /// They have taken it up.
    Claimed { claim_id: String },
    /// They have not taken it up in time.
    Lapsed,
    /// Given up, or gone for too long.
    Left,
    /// The sale is.
    Over,
}

/// Rung when there may be something new for somebody, who may watch several boards.
#[derive(Default)]
pub struct Bell {
    rung: Notify,
    round: AtomicU64,
}

impl Bell {
    /// Rung since this was last asked, also when nobody listened.
    pub async fn rung(&self) {
        self.rung.notified().await;
    }

    fn ring(&self) {
        self.rung.notify_one();
    }

    /// Once for all boards of a round.
    fn ring_in(&self, round: u64) {
        if self.round.swap(round, Ordering::AcqRel) != round {
            self.ring();
        }
    }
}

/// One watcher's view of a board. Its bell says when to look.
pub struct Watching {
    board: Arc<Board>,
    own: watch::Receiver<Option<Utf8Bytes>>,
    bell: Arc<Bell>,
    seq: Version,
}

impl Watching {
    /// The place is given up: nothing comes any more.
    pub fn is_over(&self) -> bool {
        self.own.has_changed().is_err()
    }

    /// The next to be told. `None` when the place is given up.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            match self.take() {
                None if self.is_over() => return None,
                None => self.bell.rung().await,
                told => return told,
            }
        }
    }

    /// The newest that was not told yet, one's own place before the picture.
    pub fn take(&mut self) -> Option<Told> {
        let is_own_new = self.own.has_changed().ok()?;
        if is_own_new && let Some(text) = self.own.borrow_and_update().clone() {
            return Some(Told::Ticket { text });
        }
        let picture = self.board.picture.read().unwrap_or_else(PoisonError::into_inner);
        let Picture { seq, text, .. } = picture.as_ref().filter(|picture| picture.seq > self.seq)?;
        self.seq = *seq;
        Some(Told::State { seq: *seq, text: text.clone() })
    }
}

/// Held for as long as somebody watches. Dropped, it tells the sale that they are gone, if they are in its line.
#[must_use]
pub struct Place {
    board: Arc<Board>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.board.line().leave(self.id);
    }
}

impl Boards {
    /// Call it inside the node's tokio runtime.
    pub fn new(runtime: Runtime, live: Live, threads: Threads) -> Self {
        let hall = Arc::new(Hall {
            node: Handle::current(),
            runtime,
            live,
            threads,
            due: Arc::default(),
            boards: Mutex::default(),
            show: OnceLock::new(),
        });
        let _ = hall.show.set(tokio::spawn(show(hall.clone())).abort_handle());
        Boards(hall)
    }

    /// Shows a sale from what is newer than `after` on, to somebody who has just been admitted.
    pub fn join(&self, sale: &str, seen: Seen, after: Version, bell: Arc<Bell>) -> (Watching, Place) {
        let mut boards = self.0.boards();
        let board = match boards.get(sale) {
            Some(hung) => hung.board.clone(),
            None => {
                let board = Board::new(sale);
                let written = Arc::new(Written { due: self.0.due.clone(), board: board.clone() });
                // Watch first, look afterwards: nothing can fall in between.
                let watch = self.0.live.watch(EntityKey::new(FlashSale::KIND, sale), written);
                self.0.due.add(&board);
                let keep = self.0.node.spawn(keep(self.0.clone(), board.clone())).abort_handle();
                boards.insert(sale.to_owned(), Hung { board: board.clone(), keep, _watch: watch });
                board
            }
        };
        // While the board cannot be taken down.
        let (id, own) = board.line().join(seen.customer, bell.clone());
        drop(boards);
        (Watching { board: board.clone(), own, bell, seq: after }, Place { board, id })
    }

    /// How many sales are watched here.
    pub fn len(&self) -> usize {
        self.0.boards().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends all boards.
    pub fn stop(&self) {
        self.0.show.get().into_iter().for_each(AbortHandle::abort);
        self.0.boards().drain().for_each(|(_, hung)| hung.keep.abort());
    }
}

impl Hall {
    fn boards(&self) -> MutexGuard<'_, HashMap<String, Hung>> {
        self.boards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a board down that nobody watches; false when somebody does again.
    fn take_down(&self, board: &Board) -> bool {
        let mut boards = self.boards();
        if !board.line().is_done() {
            return false;
        }
        boards.remove(&board.sale);
        true
    }

    /// How the sale looks; `None` when that is of no use to anybody any more.
    async fn look_at(&self, board: &Board) -> Option<(Version, Shown)> {
        let mut failed = 0;
        loop {
            match look(&self.runtime, &board.sale, None).await {
                Ok(looked) => return looked,
                Err(failure) => {
                    failed += 1;
                    tracing::debug!(sale = %board.sale, %failure, "a watched flash sale does not say how it looks");
                    sleep(Duration::from_millis(backoff_ms(failed).min(SECOND_MS).unsigned_abs())).await;
                }
            }
            if !self.boards().contains_key(&board.sale) {
                return None;
            }
        }
    }
}

struct Board {
    sale: String,
    topic: String,
    picture: RwLock<Option<Picture>>,
    /// Something was written, and the sale was not asked since.
    is_due: AtomicBool,
    is_asked: AtomicBool,
    line: Mutex<Line>,
}

/// How the sale looked at a version.
struct Picture {
    seq: Version,
    /// In JSON.
    state: String,
    /// The same as watchers are told it.
    text: Utf8Bytes,
}

/// The boards that are due, in the order in which they became so.
#[derive(Default)]
struct Due {
    boards: Mutex<VecDeque<Arc<Board>>>,
    any: Notify,
}

impl Due {
    fn boards(&self) -> MutexGuard<'_, VecDeque<Arc<Board>>> {
        self.boards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, board: &Arc<Board>) {
        if !board.is_due.swap(true, Ordering::AcqRel) {
            self.boards().push_back(board.clone());
            self.any.notify_one();
        }
    }

    /// Those to be asked now. A sale that has not answered yet stays due.
    fn take(&self, most: usize) -> Vec<Arc<Board>> {
        let mut boards = self.boards();
        let (asked, mut free): (VecDeque<_>, VecDeque<_>) =
            boards.drain(..).partition(|board| board.is_asked.load(Ordering::Acquire));
        let left = free.split_off(most.min(free.len()));
        boards.extend(left.into_iter().chain(asked));
        for board in &free {
            board.is_asked.store(true, Ordering::Release);
            board.is_due.store(false, Ordering::Release);
        }
        free.into()
    }
}

struct Written {
    due: Arc<Due>,
    board: Arc<Board>,
}

impl Watcher for Written {
    fn push(&self, _: &Arc<Pushed>) {
        self.due.add(&self.board);
    }
}

/// Shows whatever changed, round after round.
async fn show(hall: Arc<Hall>) {
    let mut looks = FuturesUnordered::new();
    for round in 1_u64.. {
        if looks.is_empty() && hall.due.boards().is_empty() {
            hall.due.any.notified().await;
        }
        let begun = Instant::now();
        let boards = hall.due.take(LOOKS_AT_ONCE - looks.len());
        let mut awaited = boards.len();
        looks.extend(boards.into_iter().map(|board| {
            let hall = hall.clone();
            async move { (round, hall.look_at(&board).await, board) }
        }));
        let mut looked = Vec::new();
        while awaited > 0
            && let Ok(Some(look)) = timeout_at(begun + LOOK_IN_ROUND, looks.next()).await
        {
            awaited -= usize::from(look.0 == round);
            looked.push(look);
        }
        // Those of earlier rounds.
        while let Some(Some(look)) = looks.next().now_or_never() {
            looked.push(look);
        }
        // All pictures hang before the first bell is rung.
        let mut changed = Vec::new();
        for (_, seen, board) in looked {
            board.is_asked.store(false, Ordering::Release);
            if seen.is_some_and(|(seq, shown)| board.show(seq, &shown)) {
                changed.push(board);
            }
        }
        changed.iter().for_each(|board| board.line().ring_in(round));
        hall.threads.are_through().await;
        sleep_until(begun + SHOW_EVERY).await;
    }
}

/// Follows the line, tells of who is gone, and takes the board down some time after its last watcher.
async fn keep(hall: Arc<Hall>, board: Arc<Board>) {
    let mut ticks = interval(LINE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut done_since = None;
    loop {
        ticks.tick().await;
        board.follow_line(&hall.runtime).await;
        board.tell_presence(&hall.runtime).await;
        if !board.line().is_done() {
            done_since = None;
        } else if done_since.get_or_insert_with(Instant::now).elapsed() >= LINGER && hall.take_down(&board) {
            return;
        }
    }
}

impl Board {
    fn new(sale: &str) -> Arc<Self> {
        let topic = topic_name(&EntityKey::new(FlashSale::KIND, sale)).unwrap_or_default();
        Arc::new(Board {
            sale: sale.to_owned(),
            picture: RwLock::default(),
            is_due: AtomicBool::new(false),
            is_asked: AtomicBool::new(false),
            line: Mutex::new(Line { sale: sale.to_owned(), topic: topic.clone(), ..Line::default() }),
            topic,
        })
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is anything new to be seen.
    fn show(&self, seq: Version, shown: &Shown) -> bool {
        let state = json(&self.sale, shown);
        let mut picture = self.picture.write().unwrap_or_else(PoisonError::into_inner);
        if picture.as_ref().is_none_or(|picture| picture.state != state)
            && let Ok(raw) = RawValue::from_string(state.clone())
            && let Some(text) = (Frame::State { topic: &self.topic, seq, state: &raw }).text()
        {
            *picture = Some(Picture { seq, state, text });
            return true;
        }
        false
    }

    async fn follow_line(&self, runtime: &Runtime) {
        for _ in 0..LINE_ASKS_MAX {
            let Some((tickets_from, claims_from)) = self.line().to_ask_from() else { break };
            match ask(runtime, &self.sale, Command::Places { tickets_from, claims_from }).await {
                Ok((_, Reply::Places(places))) => {
                    self.line().note(&places);
                    if places.is_all {
                        break;
                    }
                }
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(sale = %self.sale, %error, "a flash sale does not say how its line stands");
                    return;
                }
            }
        }
        let to_look_for = self.line().take_unknown();
        let looked =
            stream::iter(to_look_for).map(|customer| async move { (customer, look(runtime, &self.sale, Some(customer)).await) });
        let mut looked = pin!(looked.buffer_unordered(ASKS_AT_ONCE));
        while let Some((customer, looked)) = looked.next().await {
            let own = looked.ok().flatten().and_then(|(_, shown)| Some((shown.status, shown.own?)));
            self.line().note_own(customer, own);
        }
    }

    async fn tell_presence(&self, runtime: &Runtime) {
        let to_tell = self.line().take_due();
        let told = stream::iter(to_tell).map(|(customer, presence)| async move {
            let command = if presence.is_here { Command::Back { customer } } else { Command::Away { customer } };
            let asked = ask(runtime, &self.sale, command).await;
            (customer, presence, matches!(asked, Err(AskError::Failed(_))))
        });
        let mut told = pin!(told.buffer_unordered(ASKS_AT_ONCE));
        while let Some((customer, presence, failed)) = told.next().await {
            if failed {
                self.line().tell_again(customer, presence);
            }
        }
    }
}

/// Who watches, and how those stand who are in line.
#[derive(Default)]
struct Line {
    sale: String,
    topic: String,
    next: u64,
    watchers: HashMap<u64, OneWatcher>,
    holders: HashMap<Customer, Holder>,
    by_ticket: BTreeMap<TicketNumber, Customer>,
    /// The tickets and claims that the sale is asked for next; `None` while no customer is here.
    from: Option<(TicketNumber, ClaimNumber)>,
    /// The sale is over for good, and may leave memory: it is not asked for its line any more.
    is_over: bool,
    /// Of whom it is not known how they stand.
    unknown: HashSet<Customer>,
    /// What the sale has still to hear.
    presences: HashMap<Customer, Presence>,
}

struct OneWatcher {
    customer: Option<Customer>,
    tell: watch::Sender<Option<Utf8Bytes>>,
    bell: Arc<Bell>,
}

/// A customer who watches here, in line or not.
#[derive(Default)]
struct Holder {
    watchers: Vec<u64>,
    ticket: Option<TicketNumber>,
    /// What was told last.
    standing: Option<Standing>,
}

#[derive(Debug, Clone, Copy)]
struct Presence {
    is_here: bool,
    at: Instant,
    tries: u32,
}

impl Presence {
    fn new(is_here: bool, after: Duration) -> Self {
        Presence { is_here, at: Instant::now() + after, tries: 0 }
    }
}

impl Line {
    fn join(&mut self, customer: Option<(Customer, Status, Own)>, bell: Arc<Bell>) -> (u64, watch::Receiver<Option<Utf8Bytes>>) {
        let id = self.next;
        self.next += 1;
        let (tell, own) = watch::channel(None);
        self.watchers.insert(id, OneWatcher { customer: customer.as_ref().map(|(customer, ..)| *customer), tell, bell });
        if let Some((customer, status, own)) = customer {
            self.from.get_or_insert((own.tickets_from, own.claims_from));
            if is_over(status) {
                self.close();
            }
            let holder = self.holders.entry(customer).or_default();
            holder.watchers.push(id);
            // Whoever came to watch a moment ago may have been told already.
            let told = holder.standing.clone();
            // That they are gone need not be told any more.
            self.presences.remove(&customer);
            self.note_own(customer, Some((status, own)));
            if let Some(standing) = told
                && self.holders.get(&customer).is_some_and(|holder| holder.standing.as_ref() == Some(&standing))
            {
                self.send(&[id], standing);
            }
        }
        (id, own)
    }

    fn leave(&mut self, id: u64) {
        let Some(OneWatcher { customer, tell, bell }) = self.watchers.remove(&id) else { return };
        drop(tell);
        bell.ring();
        let Some(customer) = customer else { return };
        let Some(holder) = self.holders.get_mut(&customer) else { return };
        holder.watchers.retain(|watcher| *watcher != id);
        if !holder.watchers.is_empty() {
            return;
        }
        let ticket = self.holders.remove(&customer).and_then(|holder| holder.ticket);
        let was_unknown = self.unknown.remove(&customer);
        self.presences.remove(&customer);
        if let Some(ticket) = ticket {
            self.by_ticket.remove(&ticket);
        }
        // Whoever is not in line is not missed: the sale takes no note then.
        if (ticket.is_some() || was_unknown) && self.presences.len() < GONE_MAX {
            self.presences.insert(customer, Presence::new(false, GONE_AFTER));
        }
        if self.holders.is_empty() {
            self.from = None;
        }
    }

    /// Nobody watches, and the sale knows who is gone.
    fn is_done(&self) -> bool {
        self.watchers.is_empty() && self.presences.is_empty()
    }

    fn note(&mut self, places: &Places) {
        if self.from.is_none() {
            return;
        }
        self.from = Some((places.tickets_from, places.claims_from));
        for (ticket, customer) in &places.newcomers {
            self.set_ticket(*customer, Some(*ticket));
        }
        for offer in &places.offers {
            if self.holders.contains_key(&offer.customer) {
                self.set_ticket(offer.customer, None);
                let (claim_id, quantity, admitted_until) = (ids::claim(&self.sale, offer.claim), offer.quantity, offer.until);
                self.tell(offer.customer, Standing::Admitted { claim_id, quantity, admitted_until });
            }
        }
        if places.is_closed {
            self.close();
        }
        if !places.is_all {
            return;
        }
        let ahead = places.ahead();
        // A ticket drawn since is none that this line could know.
        let known: Vec<_> = self.by_ticket.range(..places.tickets_from).map(|(ticket, customer)| (*ticket, *customer)).collect();
        for (ticket, customer) in known {
            match ahead(ticket) {
                Some(ahead) => {
                    self.wait(customer, ahead, places.wait_ms(ahead));
                    if places.is_away(ticket) {
                        self.presences.entry(customer).or_insert_with(|| Presence::new(true, Duration::ZERO));
                    }
                }
                None => {
                    self.set_ticket(customer, None);
                    self.unknown.insert(customer);
                }
            }
        }
    }

    fn close(&mut self) {
        self.is_over = true;
        for customer in std::mem::take(&mut self.by_ticket).into_values() {
            if let Some(holder) = self.holders.get_mut(&customer) {
                holder.ticket = None;
            }
            self.tell(customer, Standing::Over);
        }
    }

    /// The sale said how this customer stands. `None`: it did not say anything.
    fn note_own(&mut self, customer: Customer, seen: Option<(Status, Own)>) {
        if !self.holders.contains_key(&customer) {
            return;
        }
        let Some((status, own)) = seen else {
            self.unknown.insert(customer);
            return;
        };
        // What came after this was seen has been told to others already: it is looked at once more.
        if self.from.is_some_and(|(tickets, claims)| own.tickets_from < tickets || own.claims_from < claims) {
            self.unknown.insert(customer);
        }
        self.set_ticket(customer, own.ticket.as_ref().map(|ticket| ticket.ticket));
        if let Some(ticket) = own.ticket {
            self.wait(customer, ticket.ahead, ticket.wait_ms);
            if ticket.away_until.is_some() {
                self.presences.insert(customer, Presence::new(true, Duration::ZERO));
            }
            return;
        }
        let waited = self.holders.get(&customer).is_some_and(|holder| matches!(holder.standing, Some(Standing::Waiting { .. })));
        let claim_id = |claim| ids::claim(&self.sale, claim);
        let offer = own.claims.iter().find(|claim| claim.phase == ClaimPhase::Offered);
        let standing = match offer.or(own.claims.first()).map(|claim| (claim.phase, claim)) {
            Some((ClaimPhase::Offered, claim)) => {
                Standing::Admitted { claim_id: claim_id(claim.claim), quantity: claim.quantity, admitted_until: claim.until }
            }
            // Whoever did not wait is told nothing of what became of them.
            _ if !waited => return,
            _ if is_over(status) => Standing::Over,
            Some((ClaimPhase::Held | ClaimPhase::Paying | ClaimPhase::Sold, claim)) => {
                Standing::Claimed { claim_id: claim_id(claim.claim) }
            }
            Some((ClaimPhase::Expired, _)) => Standing::Lapsed,
            Some((ClaimPhase::Released | ClaimPhase::Returned, _)) | None => Standing::Left,
        };
        self.tell(customer, standing);
    }

    fn set_ticket(&mut self, customer: Customer, ticket: Option<TicketNumber>) {
        let Some(holder) = self.holders.get_mut(&customer) else { return };
        if let Some(before) = std::mem::replace(&mut holder.ticket, ticket) {
            self.by_ticket.remove(&before);
        }
        self.by_ticket.extend(ticket.map(|ticket| (ticket, customer)));
    }

    fn wait(&mut self, customer: Customer, ahead: u32, wait_ms: Option<i64>) {
        let place = ahead.saturating_add(1);
        let standing = self.holders.get(&customer).and_then(|holder| holder.standing.as_ref());
        // The estimate alone is no news.
        if !matches!(standing, Some(Standing::Waiting { place: told, .. }) if *told == place) {
            let estimated_wait_seconds = wait_ms.map(|ms| ms.saturating_add(SECOND_MS - 1) / SECOND_MS);
            self.tell(customer, Standing::Waiting { place, estimated_wait_seconds });
        }
    }

    fn tell(&mut self, customer: Customer, standing: Standing) {
        let Some(holder) = self.holders.get_mut(&customer) else { return };
        if holder.standing.as_ref() == Some(&standing) {
            return;
        }
        holder.standing = Some(standing.clone());
        let watchers = holder.watchers.clone();
        self.send(&watchers, standing);
    }

    fn send(&self, watchers: &[u64], standing: Standing) {
        let Some(text) = (Frame::Ticket { topic: &self.topic, standing }).text() else { return };
        for watcher in watchers.iter().filter_map(|id| self.watchers.get(id)) {
            watcher.tell.send_replace(Some(text.clone()));
            watcher.bell.ring();
        }
    }

    fn ring_in(&self, round: u64) {
        self.watchers.values().for_each(|watcher| watcher.bell.ring_in(round));
    }

    fn to_ask_from(&self) -> Option<(TicketNumber, ClaimNumber)> {
        self.from.filter(|_| !self.is_over)
    }

    fn take_unknown(&mut self) -> Vec<Customer> {
        let some: Vec<_> = self.unknown.iter().copied().take(ASKS_MAX).collect();
        for customer in &some {
            self.unknown.remove(customer);
        }
        some
    }

    fn take_due(&mut self) -> Vec<(Customer, Presence)> {
        let now = Instant::now();
        let due = self.presences.iter().filter(|(_, presence)| presence.at <= now).take(ASKS_MAX);
        let due: Vec<_> = due.map(|(customer, presence)| (*customer, *presence)).collect();
        for (customer, _) in &due {
            self.presences.remove(customer);
        }
        due
    }

    /// It did not get through. What is known by now counts more.
    fn tell_again(&mut self, customer: Customer, presence: Presence) {
        let tries = presence.tries + 1;
        if tries < PRESENCE_TRIES_MAX && presence.is_here == self.holders.contains_key(&customer) {
            let at = Instant::now() + Duration::from_millis(backoff_ms(tries).unsigned_abs());
            self.presences.entry(customer).or_insert(Presence { is_here: presence.is_here, at, tries });
        }
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
