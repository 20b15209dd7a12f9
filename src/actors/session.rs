//! One actix actor for each live browser connection.
//!
//! A session follows topics. Each topic is in one phase:
//!
//! - `Reading`: a page of the journal is being read; what the hub pushes meanwhile is only noted.
//! - `Live`: everything up to `seq` was put into the outbox, and pushes are passed on as they come.
//! - `Paused`: the outbox filled up while reading; reading goes on when it is empty. Nothing is lost.
//! - `Behind`: the outbox filled up while live; when it is empty the newest state is sent instead of what was missed,
//!   and reading goes on from there.
//!
//! A flash sale is followed by its states instead: its board hands them straight to the writer, newest wins, and none of the
//! above applies.
//!
//! The version of each event is its sequence number, so a duplicate is recognised and a gap sends the topic back to
//! `Reading`: the journal decides, the hub only hurries. The outbox and the mailbox are bounded, and nobody who pushes
//! ever waits for a browser. A browser that takes nothing for [`BLOCKED_MAX`] is let go with a reason.
//!
//! Sessions live on threads of their own. Entities must not be touched from there: whatever asks the runtime or reads the
//! journal runs on the node's own tokio runtime and comes back as a message.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, StreamHandler, WeakAddr, WrapFuture,
};
use actix_rt::{Arbiter, ArbiterHandle, System};
use dashmap::DashMap;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message as Frame, Utf8Bytes};

use super::Runtime;
use super::board::{Bell, Boards, Place, Seen, Threads, Watching};
use super::credential::{Account, Credential, Gate, NotRecognised};
use super::live::{Live, Pushed, Watch, Watcher, frames};
use super::topic::{Admitted, Topic};
use crate::persistence::{EntityKey, Position, Version};

/// Events that may wait for one slow browser.
const OUTBOX_MAX: usize = 64;
/// Batches that may wait for one session's turn.
const MAILBOX_MAX: usize = 64;
const TOPICS_MAX: usize = 32;
/// The largest message that a browser may send, in bytes.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;
const BUFFER_BYTES: usize = 4 * 1024;
/// Batches read from the journal at a time.
const PAGE: usize = 16;
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon a read is repeated that did not yet show what the hub had already pushed.
const READ_AGAIN: Duration = Duration::from_millis(100);
const PING_EVERY: Duration = Duration::from_secs(20);
const PINGS_UNANSWERED_MAX: u32 = 2;
/// How long a browser may take nothing at all while something waits for it.
pub const BLOCKED_MAX: Duration = Duration::from_secs(10);
const TOO_SLOW: &str = "too slow: nothing was taken for 10 seconds";
/// How long the browser has to answer our close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long our own close frame may wait behind what a slow browser has not taken yet.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that a browser may send at once, and how many more each second.
const SAID_BURST: u32 = 64;
const SAID_PER_SECOND: u32 = 10;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// All live sessions of this node, and the threads that they live on. Clones share them.
#[derive(Clone)]
pub struct Sessions(Arc<House>);

struct House {
    system: System,
    arbiters: Vec<ArbiterHandle>,
    /// The node's own runtime, where entities live.
    node: Handle,
    runtime: Runtime,
    live: Live,
    boards: Boards,
    gate: Arc<dyn Gate>,
    open: AtomicUsize,
    open_max: usize,
    next: AtomicU64,
    sessions: DashMap<u64, Addr<Session>>,
    draining: AtomicBool,
}

/// A place among the sessions that a node can hold; given back when it is dropped.
pub struct Seat(Arc<House>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Sessions {
    /// Starts the threads. Call it inside the node's tokio runtime.
    pub fn start(runtime: Runtime, live: Live, gate: Arc<dyn Gate>, threads: usize, open_max: usize) -> io::Result<Self> {
        let (started, hear_started) = std_mpsc::sync_channel(1);
        std::thread::Builder::new().name("souk-sessions".into()).spawn(move || {
            // Arbiters must be made inside of a System, and the System must run on a thread that is not tokio's.
            let runner = System::new();
            let arbiters: Vec<Arbiter> = {
                let _inside = runner.runtime().tokio_runtime().enter();
                (0..threads.max(1)).filter_map(|_| Arbiter::try_new().ok()).collect()
            };
            let handles: Vec<ArbiterHandle> = arbiters.iter().map(Arbiter::handle).collect();
            if started.send((System::current(), handles)).is_ok()
                && let Err(error) = runner.run()
            {
                tracing::error!(%error, "the threads of the live sessions ended");
            }
        })?;
        let (system, arbiters) = hear_started.recv().map_err(|_| io::Error::other("the session threads did not start"))?;
        if arbiters.is_empty() {
            return Err(io::Error::other("no thread for live sessions could be started"));
        }
        let mut session_threads = Threads::default();
        for arbiter in &arbiters {
            arbiter.spawn(session_threads.task());
        }
        let boards = Boards::new(runtime.clone(), live.clone(), session_threads);
        Ok(Sessions(Arc::new(House {
            system,
            arbiters,
            node: Handle::current(),
            runtime,
            live,
            boards,
            gate,
            open: AtomicUsize::new(0),
            open_max,
            next: AtomicU64::new(0),
            sessions: DashMap::new(),
            draining: AtomicBool::new(false),
        })))
    }

    /// Counts the open sessions, for whoever must not keep them alive.
    pub fn counter(&self) -> impl Fn() -> usize + Send + Sync + 'static {
        let house = Arc::downgrade(&self.0);
        move || house.upgrade().map_or(0, |house| house.open.load(Ordering::Relaxed))
    }

    pub fn boards(&self) -> &Boards {
        &self.0.boards
    }

    /// How many sessions are open.
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Acquire)
    }

    /// `None` when the node has all the sessions that it can hold, or is shutting down.
    pub fn seat(&self) -> Option<Seat> {
        if self.0.draining.load(Ordering::Acquire) {
            return None;
        }
        let grow = |open| (open < self.0.open_max).then_some(open + 1);
        self.0.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow).ok().map(|_| Seat(self.0.clone()))
    }

    /// Makes a session of an upgraded connection.
    pub async fn admit(&self, seat: Seat, upgraded: Upgraded, credential: Credential) {
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let house = self.0.clone();
        let index = usize::try_from(id).unwrap_or(0) % self.0.arbiters.len().max(1);
        if let Some(arbiter) = self.0.arbiters.get(index) {
            arbiter.spawn_fn(move || {
                Session::create(move |ctx| Session::new(id, house, seat, credential, socket, ctx));
            });
        }
    }

    /// Lets no new session in and says goodbye to those that are here.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
        for session in &self.0.sessions {
            session.value().do_send(Leave);
        }
    }

    /// Ends the threads, with whatever still lives on them.
    pub fn stop(&self) {
        self.0.boards.stop();
        self.0.system.stop();
    }
}

/// What a browser says.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Said {
    Subscribe {
        topic: String,
        /// The last sequence number that it saw; without it, only what is new comes.
        #[serde(default)]
        after: Option<Version>,
        #[serde(default)]
        token: Option<String>,
    },
    Unsubscribe {
        topic: String,
    },
    Ping {},
}

/// What a browser hears besides events, which come ready-made from the hub.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Heard<'a> {
    /// `seq`: where the topic stands now.
    Subscribed {
        topic: &'a str,
        seq: Version,
        after: Version,
    },
    Unsubscribed {
        topic: &'a str,
    },
    /// Takes the place of the events that a slow browser did not get.
    State {
        topic: &'a str,
        seq: Version,
        state: &'a RawValue,
    },
    Error {
        #[serde(skip_serializing_if = "Option::is_none")]
        topic: Option<&'a str>,
        code: &'static str,
        message: &'a str,
    },
    Pong,
}

struct Session {
    id: u64,
    house: Arc<House>,
    _seat: Seat,
    /// Of the request that opened the connection.
    credential: Credential,
    outbox: mpsc::Sender<Out>,
    /// Ends the writer with a close frame.
    goodbye: Option<oneshot::Sender<CloseFrame>>,
    topics: HashMap<EntityKey, Followed>,
    /// The flash sales that are watched.
    sales: HashMap<EntityKey, Place>,
    /// Their boards'.
    bell: Arc<Bell>,
    /// Under which something is followed: when one of them is signed out, the session is over.
    accounts: Vec<Arc<Account>>,
    /// Subscriptions whose access is being looked up.
    admitting: usize,
    /// Tells an answer to an earlier subscription from one to the present.
    subscriptions: u64,
    ear: Arc<Ear>,
    blocked_since: Option<Instant>,
    wants_room: Rc<std::cell::Cell<bool>>,
    pings_unanswered: u32,
    budget: Budget,
}

/// What the writer is to do next.
enum Out {
    Send(Frame),
    /// To pass on, from now on, whatever is shown there.
    Watch(Watching),
}

/// A topic as one session follows it.
struct Followed {
    topic: Topic,
    subscription: u64,
    /// All events up to here are in the outbox, or were made up for by a state.
    seq: Version,
    /// The newest version that the hub spoke of.
    pushed: Version,
    /// The hub spoke of something that did not get here while a page was being read.
    again: bool,
    phase: Phase,
    _watch: Watch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Reading,
    Live,
    Paused,
    Behind,
}

/// How the hub reaches a session: through its mailbox, or, when that is full, by a note that something was missed.
struct Ear {
    session: WeakAddr<Session>,
    missed: AtomicBool,
}

impl Watcher for Ear {
    fn push(&self, pushed: &Arc<Pushed>) {
        let Some(session) = self.session.upgrade() else { return };
        if session.try_send(Push(pushed.clone())).is_err() {
            self.missed.store(true, Ordering::Release);
            // If the mailbox was emptied just before the note was made, nobody would read it: hence once more.
            let _ = session.try_send(Push(pushed.clone()));
        }
    }
}

struct Push(Arc<Pushed>);
struct Leave;
/// The outbox is empty.
struct Room;
/// The socket has taken nothing for [`BLOCKED_MAX`].
struct Stuck;
/// The socket takes no more.
struct WriterEnded;

impl Message for Push {
    type Result = ();
}
impl Message for Leave {
    type Result = ();
}
impl Message for Room {
    type Result = ();
}
impl Message for Stuck {
    type Result = ();
}
impl Message for WriterEnded {
    type Result = ();
}

/// What came of reading a page.
struct Page {
    frames: Vec<(Version, Utf8Bytes)>,
    /// The newest version read, also when it could not be shown.
    upto: Version,
    more: bool,
}

impl Session {
    fn new(id: u64, house: Arc<House>, seat: Seat, credential: Credential, socket: Socket, ctx: &mut Context<Self>) -> Self {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
        let (sink, stream) = socket.split();
        Self::add_stream(stream, ctx);
        let (outbox, frames) = mpsc::channel(OUTBOX_MAX);
        let (goodbye, closing) = oneshot::channel();
        let wants_room = Rc::new(std::cell::Cell::new(false));
        let session = ctx.address().downgrade();
        let bell = Arc::<Bell>::default();
        actix_rt::spawn(write(sink, frames, bell.clone(), closing, wants_room.clone(), session.clone()));
        Session {
            id,
            house,
            _seat: seat,
            credential,
            outbox,
            goodbye: Some(goodbye),
            topics: HashMap::new(),
            sales: HashMap::new(),
            bell,
            accounts: Vec::new(),
            admitting: 0,
            subscriptions: 0,
            ear: Arc::new(Ear { session, missed: AtomicBool::new(false) }),
            blocked_since: None,
            wants_room,
            pings_unanswered: 0,
            budget: Budget { left: SAID_BURST, at: Instant::now() },
        }
    }

    fn is_closing(&self) -> bool {
        self.goodbye.is_none()
    }

    /// Says goodbye; the actor ends when the browser has answered, or after a moment.
    fn close(&mut self, code: CloseCode, reason: &'static str, ctx: &mut Context<Self>) {
        let Some(goodbye) = self.goodbye.take() else { return };
        tracing::debug!(session = self.id, code = u16::from(code), reason, "closing a live session");
        let _ = goodbye.send(CloseFrame { code, reason: reason.into() });
        self.topics.clear();
        self.sales.clear();
        ctx.run_later(CLOSE_TIMEOUT, |_, ctx| ctx.stop());
    }

    /// Sends an answer of ours. A browser that asks and does not read the answers has itself to blame.
    fn say(&mut self, heard: &Heard<'_>, ctx: &mut Context<Self>) {
        let Ok(text) = serde_json::to_string(heard) else { return };
        if self.outbox.try_send(Out::Send(Frame::text(text))).is_err() {
            self.close(CloseCode::Policy, "too slow: the answers were not read", ctx);
        }
    }

    fn refuse(&mut self, topic: Option<&str>, code: &'static str, message: &str, ctx: &mut Context<Self>) {
        self.say(&Heard::Error { topic, code, message }, ctx);
    }

    fn hear(&mut self, text: &str, ctx: &mut Context<Self>) {
        if !self.budget.take(Instant::now()) {
            return self.close(CloseCode::Policy, "too many messages", ctx);
        }
        match serde_json::from_str(text) {
            Ok(Said::Subscribe { topic, after, token }) => self.subscribe(topic, after, token, ctx),
            Ok(Said::Unsubscribe { topic }) => match Topic::parse(&topic) {
                Ok(parsed) if self.unfollow(parsed.key()) => self.say(&Heard::Unsubscribed { topic: &topic }, ctx),
                _ => self.refuse(Some(&topic), "not-found", "not subscribed", ctx),
            },
            Ok(Said::Ping {}) => self.say(&Heard::Pong, ctx),
            Err(error) => self.refuse(None, "invalid-message", &error.to_string(), ctx),
        }
    }

    fn subscribe(&mut self, name: String, after: Option<Version>, token: Option<String>, ctx: &mut Context<Self>) {
        let Ok(topic) = Topic::parse(&name) else {
            return self.refuse(Some(&name), "unknown-topic", "unknown topic", ctx);
        };
        if self.follows(topic.key()) {
            return self.refuse(Some(&name), "already-subscribed", "already subscribed", ctx);
        }
        if self.topics.len() + self.sales.len() + self.admitting >= TOPICS_MAX {
            return self.refuse(Some(&name), "too-many-topics", "a connection follows at most 32 topics", ctx);
        }
        self.admitting += 1;
        let (house, own) = (self.house.clone(), self.credential.clone());
        let looked = self.on_node(async move {
            let credential = match token {
                Some(token) => house.gate.recognise(Some(&token)).await,
                None => Ok(own),
            };
            let admitted = match &credential {
                Ok(credential) => topic.admit(&house.runtime, credential).await.map_err(NotRecognised::Failed),
                Err(error) => Err(error.clone()),
            };
            (topic, admitted, credential.unwrap_or_default())
        });
        ctx.spawn(looked.into_actor(self).map(move |looked, session, ctx| {
            session.admitting -= 1;
            match looked {
                Some((topic, Ok(Some(admitted)), credential)) => {
                    if let Credential::Account(account) = credential
                        && !session.accounts.contains(&account)
                    {
                        session.accounts.push(account);
                    }
                    session.follow(topic, admitted, after, ctx);
                }
                Some((topic, Ok(None), _)) => session.refuse(Some(topic.name()), "not-found", "not found", ctx),
                Some((topic, Err(NotRecognised::Refused(why)), _)) => {
                    session.refuse(Some(topic.name()), "invalid-token", why, ctx)
                }
                Some((topic, Err(NotRecognised::Failed(failure)), _)) => {
                    session.refuse(Some(topic.name()), "unavailable", &failure.to_string(), ctx);
                }
                None => session.refuse(None, "unavailable", "the node could not look this up; try again", ctx),
            }
        }));
    }

    /// Ends the session when an account under which it follows something was signed out.
    fn look_after_accounts(&mut self, ctx: &mut Context<Self>) {
        if self.accounts.is_empty() {
            return;
        }
        let (house, accounts) = (self.house.clone(), self.accounts.clone());
        let looked = self.on_node(async move {
            for account in &accounts {
                if !house.gate.still_counts(account).await {
                    return false;
                }
            }
            true
        });
        ctx.spawn(looked.into_actor(self).map(|count, session, ctx| {
            if count == Some(false) {
                session.close(CloseCode::Policy, "signed out", ctx);
            }
        }));
    }

    fn follows(&self, key: &EntityKey) -> bool {
        self.topics.contains_key(key) || self.sales.contains_key(key)
    }

    fn unfollow(&mut self, key: &EntityKey) -> bool {
        self.topics.remove(key).is_some() | self.sales.remove(key).is_some()
    }

    fn follow(&mut self, topic: Topic, admitted: Admitted, after: Option<Version>, ctx: &mut Context<Self>) {
        if self.is_closing() {
            return;
        }
        let version = match &admitted {
            Admitted::Records(version) | Admitted::States(Seen { version, .. }) => *version,
        };
        let seq = after.unwrap_or(version);
        if seq > version {
            return self.refuse(Some(topic.name()), "invalid-after", "the topic has not come that far", ctx);
        }
        let key = topic.key().clone();
        if self.follows(&key) {
            return self.refuse(Some(topic.name()), "already-subscribed", "already subscribed", ctx);
        }
        self.say(&Heard::Subscribed { topic: topic.name(), seq: version, after: seq }, ctx);
        if let Admitted::States(seen) = admitted {
            let (watching, place) = self.house.boards.join(key.id(), seen, seq, self.bell.clone());
            return match self.outbox.try_send(Out::Watch(watching)) {
                Ok(()) => drop(self.sales.insert(key, place)),
                Err(_) => self.close(CloseCode::Policy, "too slow: the answers were not read", ctx),
            };
        }
        self.subscriptions += 1;
        // Watch first, read afterwards: what is written in between comes by one way or the other.
        let watch = self.house.live.watch(key.clone(), self.ear.clone());
        let subscription = self.subscriptions;
        let followed = Followed { topic, subscription, seq, pushed: 0, again: false, phase: Phase::Reading, _watch: watch };
        self.topics.insert(key.clone(), followed);
        self.read(&key, ctx);
    }

    /// Reads the journal on from where the topic stands.
    fn read(&mut self, key: &EntityKey, ctx: &mut Context<Self>) {
        let Some(followed) = self.topics.get_mut(key) else { return };
        followed.phase = Phase::Reading;
        followed.again = false;
        let (subscription, seq, key) = (followed.subscription, followed.seq, key.clone());
        let house = self.house.clone();
        let entity = key.clone();
        let page = self.on_node(async move {
            let reading = house.runtime.journal().read(&entity, seq + 1, Position::default(), PAGE);
            let batches = match tokio::time::timeout(READ_TIMEOUT, reading).await {
                Ok(Ok(batches)) => batches,
                Ok(Err(error)) => {
                    tracing::error!(%entity, %error, "a live session cannot read the journal");
                    return None;
                }
                Err(_) => return None,
            };
            Some(Page {
                upto: batches.last().map_or(seq, |batch| batch.last()),
                more: batches.len() >= PAGE,
                frames: batches.iter().flat_map(|batch| frames(&entity, &batch.payload)).collect(),
            })
        });
        ctx.spawn(page.into_actor(self).map(move |page, session, ctx| match page.flatten() {
            Some(page) => session.read_page(&key, subscription, page, ctx),
            None => session.close(CloseCode::Error, "the journal cannot be read; connect again", ctx),
        }));
    }

    fn read_page(&mut self, key: &EntityKey, subscription: u64, page: Page, ctx: &mut Context<Self>) {
        let Some(followed) = self.topics.get_mut(key).filter(|followed| followed.subscription == subscription) else { return };
        let before = followed.seq;
        if !followed.send(&self.outbox, &page.frames) {
            followed.phase = Phase::Paused;
            return self.blocked(ctx);
        }
        followed.seq = followed.seq.max(page.upto);
        if page.more || followed.again || (followed.pushed > followed.seq && followed.seq > before) {
            self.read(key, ctx);
        } else if followed.pushed > followed.seq {
            let key = key.clone();
            ctx.run_later(READ_AGAIN, move |session, ctx| {
                if session.topics.get(&key).is_some_and(|followed| followed.subscription == subscription) {
                    session.read(&key, ctx);
                }
            });
        } else {
            followed.phase = Phase::Live;
        }
    }

    /// Fetches the newest state in place of what a slow browser missed.
    fn catch_up(&mut self, key: &EntityKey, ctx: &mut Context<Self>) {
        let Some(followed) = self.topics.get_mut(key) else { return };
        followed.phase = Phase::Reading;
        let (subscription, topic, key) = (followed.subscription, followed.topic.clone(), key.clone());
        let house = self.house.clone();
        let state = self.on_node(async move { topic.state(&house.runtime).await });
        ctx.spawn(state.into_actor(self).map(move |state, session, ctx| match state {
            Some(Ok((version, state))) => session.send_state(&key, subscription, version, state, ctx),
            _ => session.close(CloseCode::Again, "the newest state is unavailable; connect again", ctx),
        }));
    }

    fn send_state(&mut self, key: &EntityKey, subscription: u64, version: Version, state: String, ctx: &mut Context<Self>) {
        let Some(followed) = self.topics.get_mut(key).filter(|followed| followed.subscription == subscription) else { return };
        if version > followed.seq {
            let Ok(state) = RawValue::from_string(state) else { return };
            let heard = Heard::State { topic: followed.topic.name(), seq: version, state: &state };
            let Ok(text) = serde_json::to_string(&heard) else { return };
            if self.outbox.try_send(Out::Send(Frame::text(text))).is_err() {
                followed.phase = Phase::Behind;
                return self.blocked(ctx);
            }
            followed.seq = version;
        }
        self.read(key, ctx);
    }

    /// Something waits for room in the outbox.
    fn blocked(&mut self, ctx: &mut Context<Self>) {
        self.wants_room.set(true);
        if self.outbox.capacity() == OUTBOX_MAX {
            ctx.notify(Room);
        }
        if self.blocked_since.is_none() {
            let since = Instant::now();
            self.blocked_since = Some(since);
            ctx.run_later(BLOCKED_MAX, move |session, ctx| {
                if session.blocked_since == Some(since) {
                    session.close(CloseCode::Policy, TOO_SLOW, ctx);
                }
            });
        }
    }

    /// Runs on the node's own runtime; `None` when that is gone.
    fn on_node<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = Option<T>> + 'static {
        let task = self.house.node.spawn(work);
        async move { task.await.ok() }
    }
}

impl Followed {
    /// Puts into the outbox what is newer than `seq`; false when it is full.
    fn send(&mut self, outbox: &mpsc::Sender<Out>, frames: &[(Version, Utf8Bytes)]) -> bool {
        for (version, text) in frames {
            if *version <= self.seq {
                continue;
            }
            if outbox.try_send(Out::Send(Frame::Text(text.clone()))).is_err() {
                return false;
            }
            self.seq = *version;
        }
        true
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.house.sessions.insert(self.id, ctx.address());
        if self.house.draining.load(Ordering::Acquire) {
            ctx.notify(Leave);
        }
        ctx.run_interval(PING_EVERY, |session, ctx| {
            if session.pings_unanswered >= PINGS_UNANSWERED_MAX {
                return session.close(CloseCode::Away, "no answer to pings", ctx);
            }
            session.pings_unanswered += 1;
            // A full outbox needs no ping: its own time limit runs.
            let _ = session.outbox.try_send(Out::Send(Frame::Ping(bytes::Bytes::new())));
            session.look_after_accounts(ctx);
        });
    }

    fn stopped(&mut self, _: &mut Context<Self>) {
        self.house.sessions.remove(&self.id);
    }
}

impl StreamHandler<Result<Frame, SocketError>> for Session {
    fn handle(&mut self, frame: Result<Frame, SocketError>, ctx: &mut Context<Self>) {
        self.pings_unanswered = 0;
        if self.is_closing() {
            return;
        }
        match frame {
            Ok(Frame::Text(text)) => self.hear(&text, ctx),
            Ok(Frame::Binary(_)) => self.close(CloseCode::Unsupported, "only text is understood", ctx),
            // Pings are answered and close frames returned by the socket itself.
            Ok(Frame::Ping(_) | Frame::Pong(_) | Frame::Close(_) | Frame::Frame(_)) => {}
            Err(SocketError::Capacity(_)) => self.close(CloseCode::Size, "a message has at most 16 KiB", ctx),
            Err(SocketError::Utf8(_)) => self.close(CloseCode::Invalid, "text must be UTF-8", ctx),
            Err(SocketError::Protocol(_)) => self.close(CloseCode::Protocol, "this is not the WebSocket protocol", ctx),
            Err(_) => ctx.stop(),
        }
    }
}

impl Handler<Push> for Session {
    type Result = ();

    fn handle(&mut self, Push(pushed): Push, ctx: &mut Context<Self>) {
        if self.ear.missed.swap(false, Ordering::AcqRel) {
            self.topics.values_mut().for_each(|followed| followed.again = true);
            let live = self.topics.iter().filter(|(_, followed)| followed.phase == Phase::Live);
            for key in live.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
                self.read(&key, ctx);
            }
        }
        let Some(followed) = self.topics.get_mut(&pushed.entity) else { return };
        followed.pushed = followed.pushed.max(pushed.last);
        if followed.phase != Phase::Live || pushed.last <= followed.seq {
            return;
        }
        if pushed.first > followed.seq + 1 {
            return self.read(&pushed.entity, ctx);
        }
        if followed.send(&self.outbox, pushed.frames()) {
            followed.seq = pushed.last;
        } else {
            followed.phase = Phase::Behind;
            self.blocked(ctx);
        }
    }
}

impl Handler<Room> for Session {
    type Result = ();

    fn handle(&mut self, _: Room, ctx: &mut Context<Self>) {
        self.blocked_since = None;
        let waiting: Vec<(EntityKey, Phase)> = self.topics.iter().map(|(key, followed)| (key.clone(), followed.phase)).collect();
        for (key, phase) in waiting {
            match phase {
                Phase::Paused => self.read(&key, ctx),
                Phase::Behind => self.catch_up(&key, ctx),
                Phase::Reading | Phase::Live => {}
            }
        }
    }
}

impl Handler<Leave> for Session {
    type Result = ();

    fn handle(&mut self, _: Leave, ctx: &mut Context<Self>) {
        self.close(CloseCode::Away, "this node is shutting down; connect again", ctx);
    }
}

impl Handler<Stuck> for Session {
    type Result = ();

    fn handle(&mut self, _: Stuck, ctx: &mut Context<Self>) {
        self.close(CloseCode::Policy, TOO_SLOW, ctx);
    }
}

impl Handler<WriterEnded> for Session {
    type Result = ();

    fn handle(&mut self, _: WriterEnded, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

/// Why the writer can write no more.
enum WriteError {
    Socket(SocketError),
    Stuck,
}

/// Empties the outbox into the socket until told to close, and passes on what the boards show.
async fn write(
    mut sink: SplitSink<Socket, Frame>,
    mut outbox: mpsc::Receiver<Out>,
    bell: Arc<Bell>,
    mut closing: oneshot::Receiver<CloseFrame>,
    wants_room: Rc<std::cell::Cell<bool>>,
    session: WeakAddr<Session>,
) {
    let mut boards: Vec<Watching> = Vec::new();
    let goodbye = loop {
        let empty_once = async {
            let mut next = tokio::select! {
                biased;
                out = outbox.recv() => match out {
                    Some(out) => Some(out),
                    None => return Ok(false),
                },
                () = bell.rung() => None,
            };
            while let Some(out) = next {
                match out {
                    Out::Send(frame) => in_time(sink.feed(frame)).await?,
                    Out::Watch(watching) => boards.push(watching),
                }
                next = outbox.try_recv().ok();
            }
            for board in &mut boards {
                // A place and a picture: what comes meanwhile rings again.
                for told in [board.take(), board.take()].into_iter().flatten() {
                    in_time(sink.feed(Frame::Text(told.text()))).await?;
                }
            }
            boards.retain(|board| !board.is_over());
            in_time(sink.flush()).await?;
            Ok::<bool, WriteError>(true)
        };
        tokio::select! {
            biased;
            goodbye = &mut closing => break goodbye.ok(),
            wrote = empty_once => match wrote {
                Ok(true) => {}
                Err(WriteError::Stuck) => {
                    if let Some(session) = session.upgrade() {
                        session.do_send(Stuck);
                    }
                    break (&mut closing).await.ok();
                }
                Ok(false) => break None,
                Err(WriteError::Socket(error)) => {
                    tracing::trace!(%error, "a live connection cannot be written");
                    break None;
                }
            },
        }
        if wants_room.take()
            && let Some(session) = session.upgrade()
        {
            session.do_send(Room);
        }
    };
    match goodbye {
        Some(frame) => {
            let _ = tokio::time::timeout(GOODBYE_TIMEOUT, sink.send(Frame::Close(Some(frame)))).await;
        }
        // The actor must not outlive its writer.
        None => {
            if let Some(session) = session.upgrade() {
                session.do_send(WriterEnded);
            }
        }
    }
}

async fn in_time(writing: impl Future<Output = Result<(), SocketError>>) -> Result<(), WriteError> {
    match tokio::time::timeout(BLOCKED_MAX, writing).await {
        Ok(written) => written.map_err(WriteError::Socket),
        Err(_) => Err(WriteError::Stuck),
    }
}

/// How much a browser may say.
struct Budget {
    left: u32,
    at: Instant,
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let earned = now.duration_since(self.at).as_millis() * u128::from(SAID_PER_SECOND) / 1000;
        if earned > 0 {
            self.left = SAID_BURST.min(self.left.saturating_add(u32::try_from(earned).unwrap_or(SAID_BURST)));
            self.at = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_browser_says_is_read_strictly() {
        let subscribe = |after| Said::Subscribe { topic: "cart:x".into(), after, token: None };
        assert_eq!(
            serde_json::from_str::<Said>(r#"{"type":"subscribe","topic":"cart:x","after":12}"#).unwrap(),
            subscribe(Some(12))
        );
        assert_eq!(serde_json::from_str::<Said>(r#"{"topic":"cart:x","type":"subscribe"}"#).unwrap(), subscribe(None));
        assert_eq!(serde_json::from_str::<Said>(r#"{"type":"ping"}"#).unwrap(), Said::Ping {});
        for text in [
            "",
            "[]",
            r#"{"type":"shout"}"#,
            r#"{"type":"subscribe"}"#,
            r#"{"type":"ping","x":1}"#,
            r#"{"type":"subscribe","topic":"a","after":-1}"#,
        ] {
            assert!(serde_json::from_str::<Said>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_that_a_browser_says_breaks_its_reader() {
        let good = br#"{"type":"subscribe","topic":"cart:x","after":12,"token":"t"}"#.to_vec();
        crate::hostile::feed("websocket", vec![good], |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            match serde_json::from_str::<Said>(text) {
                Ok(Said::Subscribe { topic, .. } | Said::Unsubscribe { topic }) => drop(Topic::parse(&topic)),
                Ok(Said::Ping {}) => {}
                // It is sent back, so it must not grow with what was said.
                Err(error) => assert!(error.to_string().len() <= text.len() + 200),
            }
        });
    }

    #[test]
    fn a_browser_may_say_much_at_once_but_not_for_long() {
        let start = Instant::now();
        let mut budget = Budget { left: SAID_BURST, at: start };
        assert!((0..SAID_BURST).all(|_| budget.take(start)));
        assert!(!budget.take(start));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| budget.take(later)).count(), SAID_PER_SECOND as usize);
    }

    #[test]
    fn answers_have_the_form_of_the_contract() {
        let state = RawValue::from_string("{\"id\":1}".into()).unwrap();
        for (heard, text) in [
            (
                Heard::Subscribed { topic: "cart:x", seq: 3, after: 1 },
                r#"{"type":"subscribed","topic":"cart:x","seq":3,"after":1}"#,
            ),
            (Heard::State { topic: "t", seq: 3, state: &state }, r#"{"type":"state","topic":"t","seq":3,"state":{"id":1}}"#),
            (Heard::Error { topic: None, code: "c", message: "m" }, r#"{"type":"error","code":"c","message":"m"}"#),
            (Heard::Pong, r#"{"type":"pong"}"#),
        ] {
            assert_eq!(serde_json::to_string(&heard).unwrap(), text);
        }
    }
}
