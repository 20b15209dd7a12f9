//! Accepting connections: how many, for how long, and how they end.
//!
//! Our own loop around `warp::service`, because warp's server has no TCP_NODELAY, no limit of connections, no timeouts
//! and no deadline for a shutdown. Each connection runs in a task of its own, and the loop looks at all of them every `LOOK`:
//!
//! | it is | and ends when |
//! |---|---|
//! | waiting for a request's head | the head takes longer than `head_timeout` |
//! | between two requests | nothing comes for `idle_timeout` |
//! | writing | the peer takes nothing of its answers for `write_timeout` |
//! | resting for `REST_MIN` | all places are taken, somebody new comes, and none rests longer |
//! | anything | the node drains: what is in flight is finished, until `drain_deadline` |

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use ulid::Ulid;
use warp::http::header::{CONNECTION, HeaderValue, TRANSFER_ENCODING};
use warp::http::{Request, Response, StatusCode, Uri, Version};
use warp::hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use warp::hyper::service::Service;
use warp::{Buf, Filter, Reply};

use super::answer::Body as AnswerBody;
use super::client_address::Peer;
use super::problem::{PROBLEM_JSON, Problem};
use super::routes::{Head, answer};
use super::{Config, Door};

const BACKLOG: u32 = 4096;
/// What the kernel may hold of an answer that its peer does not take. Left to itself it holds up to 4 MiB: thousands of
/// stale events, sent to a slow browser before anybody notices that it is slow.
const SEND_BUFFER_BYTES: u32 = 128 * 1024;
/// How long the loop rests when the system has no more sockets to give.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// How exactly a connection knows when something came or went.
const BEAT: Duration = Duration::from_millis(100);
/// How often it is looked whether somebody rests or does not do its part: after so many beats.
const LOOK: u32 = 20;
/// How long a connection that was told to end may take.
const FAREWELL: Duration = Duration::from_secs(5);
/// A connection that has rested so long gives its place to a new one when there is none left.
const REST_MIN: Duration = Duration::from_secs(5);
/// So many give their place at once, because to find them means to look at all.
const GIVING_WAY_MAX: usize = 32;
/// How long nobody is looked for when nobody was found.
const FULL_LOOK: Duration = Duration::from_millis(100);
const DRAIN_LOOK: Duration = Duration::from_millis(20);
const HEAD_BYTES_MAX: usize = 64 * 1024;
const STREAMS_MAX: u32 = 128;

/// Said to a connection that is one too many, before it is closed.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncontent-length: 133\r\n\
retry-after: 1\r\nconnection: close\r\n\r\n\
{\"type\":\"/problems/too-many-connections\",\"title\":\"This node holds all the connections it can. Try again in a moment.\",\"status\":503}  ";

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {source}")]
    Bind { address: SocketAddr, source: io::Error },
}

/// Takes the address, so that a second node on it fails at once.
pub fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        // Accepted connections inherit it.
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|source| ServeError::Bind { address, source })
}

/// Serves on the configured address until `shutdown` comes, then drains.
pub async fn serve(door: Door, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    let listener = bind(door.config.listen)?;
    serve_on(listener, door, std::future::ready(()), shutdown).await;
    Ok(())
}

/// Serves on a listener that exists already, and until `ready` says of itself that it is not.
pub async fn serve_on(listener: TcpListener, door: Door, ready: impl Future<Output = ()>, shutdown: impl Future<Output = ()>) {
    let door = Arc::new(door);
    let config = Arc::clone(&door.config);
    let service = TowerToHyperService::new(warp::service(filter(Arc::clone(&door))));
    let builder = Arc::new(builder());
    let mut connections = Connections::new(config.connections_max);
    let mut clock = tokio::time::interval(BEAT);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut ready, mut is_open) = (pin!(ready), false);
    let mut shutdown = pin!(shutdown);
    let tls_keeper = config.tls.clone().map(|tls| tokio::spawn(tls.keep_fresh()));
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "listening");
    }

    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            () = &mut ready, if !is_open => {
                is_open = true;
                door.opened();
            }
            _ = clock.tick() => connections.beat(&config),
            // Ended connections are cleared away as they end, so that the set counts those that are open.
            () = connections.one_ended() => {
                door.metrics.http_connections.set(count(connections.open()));
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if !connections.has_room() => {
                    door.metrics.http_connections_refused.inc();
                    // Over TLS nothing can be said before a handshake, which is what there is no room for.
                    if config.tls.is_none() {
                        turn_away(stream);
                    }
                }
                Ok((stream, address)) => {
                    let _ = stream.set_nodelay(true);
                    let pulse = Arc::new(Pulse::new(Arc::clone(&connections.beats)));
                    let converse = Converse {
                        peer: Peer { address: address.ip(), secure: config.tls.is_some() },
                        builder: Arc::clone(&builder),
                        service: service.clone(),
                        config: Arc::clone(&config),
                        pulse: Arc::clone(&pulse),
                        failed_handshakes: door.metrics.http_tls_handshakes_failed.clone(),
                    };
                    connections.add(pulse, converse.welcome(stream));
                    door.metrics.http_connections.set(count(connections.open()));
                }
                // Of the peer's making: nothing is wrong here.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections for a moment");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            },
        }
    }

    drop(listener);
    door.draining();
    door.sessions.drain();
    connections.leave(config.drain_deadline);
    tracing::info!(connections = connections.open(), sessions = door.sessions.open(), "draining");
    let deadline = Instant::now() + config.drain_deadline;
    let finished = async {
        while connections.open() > 0 {
            tokio::select! {
                () = connections.one_ended() => {}
                _ = clock.tick() => connections.beat(&config),
            }
        }
        while door.sessions.open() > 0 {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    };
    if tokio::time::timeout_at(deadline, finished).await.is_err() {
        tracing::warn!(connections = connections.open(), sessions = door.sessions.open(), "closed before they were finished");
        connections.tasks.shutdown().await;
    }
    if let Some(keeper) = tls_keeper {
        keeper.abort();
    }
    door.metrics.http_connections.set(0);
    door.sessions.stop();
}

/// The connections that are open, and who of them gives way to others.
struct Connections {
    max: usize,
    beats: Arc<Beats>,
    /// Beats since they were looked at.
    unseen: u32,
    tasks: JoinSet<()>,
    pulses: HashMap<tokio::task::Id, Arc<Pulse>>,
    /// Those that were asked to give way and are not gone yet: they do not count, so that as many more may be open.
    giving_way: usize,
    /// Nobody is looked for before this.
    full_until: Instant,
}

impl Connections {
    fn new(max: usize) -> Self {
        Connections {
            max,
            beats: Arc::new(Beats::new()),
            unseen: 0,
            tasks: JoinSet::new(),
            pulses: HashMap::new(),
            giving_way: 0,
            full_until: Instant::now(),
        }
    }

    fn open(&self) -> usize {
        self.tasks.len()
    }

    fn add(&mut self, pulse: Arc<Pulse>, connection: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(connection).id();
        self.pulses.insert(task, pulse);
    }

    /// Reads the clock, and looks at all of them when it is time.
    fn beat(&mut self, config: &Config) {
        let now = self.beats.beat();
        self.unseen += 1;
        if self.unseen >= LOOK {
            self.unseen = 0;
            self.pulses.values().for_each(|pulse| pulse.look(now, config));
        }
    }

    /// All are to end what is under way, and may take so long.
    fn leave(&self, within: Duration) {
        let by = self.beats.beat() + within.as_millis() as u64;
        self.pulses.values().for_each(|pulse| pulse.leave(by));
    }

    /// Waits for one to end; for ever while none is open.
    async fn one_ended(&mut self) {
        let id = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => error.id(),
            None => return std::future::pending().await,
        };
        if self.pulses.remove(&id).is_some_and(|pulse| pulse.gives_way.load(Ordering::Relaxed)) {
            self.giving_way -= 1;
        }
    }

    /// Whether one more may be opened. When all places are taken, those that have rested longest are asked to go: whoever
    /// only holds places must not keep out those who come to buy.
    fn has_room(&mut self) -> bool {
        if self.open() - self.giving_way < self.max {
            return true;
        }
        // Those asked before have still to go, or nobody was found a moment ago.
        if self.giving_way >= GIVING_WAY_MAX || Instant::now() < self.full_until {
            return false;
        }
        let now = self.beats.beat();
        let mut resting: Vec<(u64, &Arc<Pulse>)> =
            self.pulses.values().filter_map(|pulse| Some((pulse.rests_since()?, pulse))).collect();
        resting.retain(|(since, _)| u128::from(now.saturating_sub(*since)) >= REST_MIN.as_millis());
        if resting.is_empty() {
            self.full_until = Instant::now() + FULL_LOOK;
            return false;
        }
        let places = (GIVING_WAY_MAX - self.giving_way).min(self.max / GIVING_WAY_MAX).max(1);
        if resting.len() > places {
            resting.select_nth_unstable_by_key(places, |(since, _)| *since);
            resting.truncate(places);
        }
        for (_, pulse) in &resting {
            pulse.gives_way.store(true, Ordering::Relaxed);
            pulse.leave(now + FAREWELL.as_millis() as u64);
        }
        self.giving_way += resting.len();
        true
    }
}

fn count(connections: usize) -> i64 {
    i64::try_from(connections).unwrap_or(i64::MAX)
}

/// Everything that warp hears goes to the one table.
fn filter(door: Arc<Door>) -> impl Filter<Extract = (impl warp::Reply,), Error = warp::Rejection> + Clone {
    warp::ext::get().and(warp::body::stream()).then(move |heads: Handed, body| {
        let door = Arc::clone(&door);
        async move {
            match heads.take() {
                Some(head) => answer(door, head, body).await,
                // Each request comes with its own, which is taken once.
                None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        }
    })
}

/// A request's head on its way past warp, whose own filters would copy all of it.
#[derive(Clone)]
struct Handed(Arc<Mutex<Option<Box<Head>>>>);

impl Handed {
    fn new(head: Head) -> Self {
        Handed(Arc::new(Mutex::new(Some(Box::new(head)))))
    }

    fn take(&self) -> Option<Box<Head>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // A request has a hundred headers at most, which is what hyper says by itself: said once more it takes hyper longer.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_BYTES_MAX);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX).max_header_list_size(HEAD_BYTES_MAX as u32);
    builder
}

/// Says 503 if the socket takes it at once, and closes.
fn turn_away(stream: TcpStream) {
    use std::io::Write;
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(FULL);
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
}

/// What a connection needs besides its socket.
struct Converse<S> {
    peer: Peer,
    builder: Arc<auto::Builder<TokioExecutor>>,
    service: S,
    config: Arc<Config>,
    pulse: Arc<Pulse>,
    failed_handshakes: Counter,
}

impl<S, B> Converse<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// One connection, from its first byte to its last. A handshake that fails or lasts ends it.
    async fn welcome(self, stream: TcpStream) {
        let config = Arc::clone(&self.config);
        let Some(tls) = &config.tls else { return self.converse(stream).await };
        let handshake = tokio::time::timeout(config.handshake_timeout, tls.acceptor().accept(stream));
        let shaken = tokio::select! {
            // Nothing was asked yet that could be finished.
            () = self.pulse.told.notified() => return,
            shaken = handshake => shaken,
        };
        match shaken {
            Ok(Ok(stream)) => {
                self.pulse.expect_head();
                self.converse(stream).await;
            }
            Ok(Err(error)) => {
                self.failed_handshakes.inc();
                tracing::debug!(%error, "a TLS handshake failed");
            }
            Err(_) => {
                self.failed_handshakes.inc();
                tracing::debug!("a TLS handshake took too long");
            }
        }
    }

    async fn converse<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(self, stream: T) {
        let Converse { peer, builder, service, pulse, .. } = self;
        let io = TokioIo::new(Felt { stream, pulse: Arc::clone(&pulse), refusal: None });
        let service = Counted { service, peer, pulse: Arc::clone(&pulse) };
        let mut connection = pin!(builder.serve_connection_with_upgrades(io, service));
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended badly");
                    }
                    return;
                }
                () = pulse.told.notified() => {
                    if pulse.is_over() {
                        return;
                    }
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// The time as all connections have it, in milliseconds since the door opened and from 1 on. Read once for many: each request
/// asks for it several times.
struct Beats {
    began: Instant,
    now: AtomicU64,
}

impl Beats {
    fn new() -> Self {
        Beats { began: Instant::now(), now: AtomicU64::new(1) }
    }

    /// Reads the clock.
    fn beat(&self) -> u64 {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        self.now.store(now, Ordering::Relaxed);
        now
    }

    /// As it was at the last beat.
    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
}

/// What a connection's clock knows. All moments are [`Beats`], 0 for none.
struct Pulse {
    beats: Arc<Beats>,
    in_flight: AtomicUsize,
    /// When the last request ended.
    resting_since: AtomicU64,
    /// When the first byte after that came.
    head_since: AtomicU64,
    /// Since when the peer has taken nothing.
    stuck_since: AtomicU64,
    /// Answers of which the peer has something still to take. A socket that takes all does not say that it does: in HTTP/2
    /// the peer says for each stream how much it may be sent, and may say nothing.
    untaken: AtomicUsize,
    /// When it last took something of an answer.
    taken_at: AtomicU64,
    /// HTTP/2 has frames that belong to no request: there, bytes do not announce a head.
    multiplexed: AtomicBool,
    /// Its place is needed for somebody else.
    gives_way: AtomicBool,
    /// When it must be gone.
    leave_by: AtomicU64,
    /// That it is to go, or is over.
    told: Notify,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// Nothing is asked any more: end politely.
    Idle,
    /// The peer does not do its part: end.
    Stuck,
}

impl Pulse {
    fn new(beats: Arc<Beats>) -> Self {
        let now = beats.now();
        Pulse {
            beats,
            in_flight: AtomicUsize::new(0),
            resting_since: AtomicU64::new(now),
            // A connection that was just opened owes its first head.
            head_since: AtomicU64::new(now),
            stuck_since: AtomicU64::new(0),
            untaken: AtomicUsize::new(0),
            taken_at: AtomicU64::new(0),
            multiplexed: AtomicBool::new(false),
            gives_way: AtomicBool::new(false),
            leave_by: AtomicU64::new(0),
            told: Notify::new(),
        }
    }

    fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0
    }

    /// Since when nothing is asked; `None` while something is, or when it is about to go.
    fn rests_since(&self) -> Option<u64> {
        let resting = !self.is_busy() && !self.gives_way.load(Ordering::Relaxed);
        resting.then(|| self.resting_since.load(Ordering::Relaxed))
    }

    /// From now on the peer owes its first head.
    fn expect_head(&self) {
        self.head_since.store(self.beats.now(), Ordering::Relaxed);
    }

    /// It is to end what is under way, and to be gone by then; if it was told so already, nothing changes.
    fn leave(&self, by: u64) {
        if self.leave_by.compare_exchange(0, by, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.told.notify_one();
        }
    }

    /// Whether it had its time to leave.
    fn is_over(&self) -> bool {
        (1..self.beats.now()).contains(&self.leave_by.load(Ordering::Relaxed))
    }

    fn look(&self, now: u64, config: &Config) {
        match self.verdict(now, config) {
            Verdict::Stuck => {
                self.leave_by.store(1, Ordering::Relaxed);
                self.told.notify_one();
            }
            _ if self.is_over() => self.told.notify_one(),
            Verdict::Idle => self.leave(now + FAREWELL.as_millis() as u64),
            Verdict::Fine => {}
        }
    }

    fn verdict(&self, now: u64, config: &Config) -> Verdict {
        let longer_than = |limit: Duration, since: &AtomicU64| {
            let since = since.load(Ordering::Relaxed);
            since > 0 && u128::from(now.saturating_sub(since)) > limit.as_millis()
        };
        if longer_than(config.write_timeout, &self.stuck_since) {
            return Verdict::Stuck;
        }
        if self.untaken.load(Ordering::Relaxed) > 0 && longer_than(config.write_timeout, &self.taken_at) {
            return Verdict::Stuck;
        }
        if self.is_busy() {
            return Verdict::Fine;
        }
        if longer_than(config.head_timeout, &self.head_since) {
            return Verdict::Stuck;
        }
        if longer_than(config.idle_timeout, &self.resting_since) { Verdict::Idle } else { Verdict::Fine }
    }

    fn heard(&self) {
        if !self.is_busy() && !self.multiplexed.load(Ordering::Relaxed) {
            let _ = self.head_since.compare_exchange(0, self.beats.now(), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn begin(self: &Arc<Self>, version: Version) -> InFlight {
        if version == Version::HTTP_2 {
            self.multiplexed.store(true, Ordering::Relaxed);
        }
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        InFlight { pulse: Arc::clone(self), is_untaken: false }
    }
}

/// A request on its way, until its answer's last byte.
struct InFlight {
    pulse: Arc<Pulse>,
    /// The peer has something of the answer still to take.
    is_untaken: bool,
}

impl InFlight {
    /// There is more for the peer to take, or not.
    fn offers(&mut self, more: bool) {
        if more != self.is_untaken {
            self.is_untaken = more;
            self.pulse.taken_at.store(self.pulse.beats.now(), Ordering::Relaxed);
            match more {
                true => self.pulse.untaken.fetch_add(1, Ordering::Relaxed),
                false => self.pulse.untaken.fetch_sub(1, Ordering::Relaxed),
            };
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.offers(false);
        self.pulse.resting_since.store(self.pulse.beats.now(), Ordering::Relaxed);
        self.pulse.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The service, with each request counted, and told where it comes from.
struct Counted<S> {
    service: S,
    peer: Peer,
    pulse: Arc<Pulse>,
}

impl<S, B> Service<Request<Incoming>> for Counted<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: Body,
{
    type Response = Response<CountedBody<B>>;
    type Error = S::Error;
    type Future = CountedFuture<S::Future>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let in_flight = self.pulse.begin(request.version());
        // The target of a tunnel has no path, and what comes after us cannot do without one. It leads nowhere.
        if request.uri().path_and_query().is_none() {
            *request.uri_mut() = Uri::from_static("/");
        }
        // Besides its chunks it may have told a length, which hyper does not show. Somebody before us may have gone by that
        // and see a second request where we see none, or the other way round: so there is no second one (RFC 9112, 6.1).
        let is_last = request.headers().contains_key(TRANSFER_ENCODING);
        let head = Head {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            headers: std::mem::take(request.headers_mut()),
            upgrade: request.extensions_mut().remove(),
            peer: self.peer,
        };
        request.extensions_mut().insert(Handed::new(head));
        CountedFuture { future: Box::pin(self.service.call(request)), in_flight: Some(in_flight), is_last }
    }
}

struct CountedFuture<F> {
    future: Pin<Box<F>>,
    in_flight: Option<InFlight>,
    /// The connection ends with this answer.
    is_last: bool,
}

impl<F, B, E> Future for CountedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<CountedBody<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.future.as_mut().poll(cx).map(|answered| {
            let mut in_flight = self.in_flight.take();
            answered.map(|mut response| {
                if self.is_last {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                if let Some(in_flight) = &mut in_flight {
                    in_flight.offers(!response.body().is_end_stream());
                }
                response.map(|body| CountedBody { body, in_flight })
            })
        })
    }
}

/// An answer's body; while it is being sent, its request is in flight.
struct CountedBody<B> {
    body: B,
    in_flight: Option<InFlight>,
}

impl<B: Body + Unpin> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let CountedBody { body, in_flight } = &mut *self;
        let polled = Pin::new(body).poll_frame(cx);
        if let Some(in_flight) = in_flight {
            // Asked for more, so what there was is taken. The last piece is taken when this is dropped.
            in_flight.offers(false);
            in_flight.offers(matches!(polled, Poll::Ready(Some(_))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The socket, with the clock told of what passes.
///
/// A head that hyper cannot read never gets to the service: hyper refuses it by itself, with a status and nothing else.
/// That refusal is recognised here on its way out, and leaves as a problem like every other.
struct Felt<T> {
    stream: T,
    pulse: Arc<Pulse>,
    /// What is still to be sent in place of a bare refusal.
    refusal: Option<Bytes>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Felt<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.pulse.heard();
        }
        polled
    }
}

impl<T> Felt<T> {
    fn wrote<R>(&self, polled: Poll<R>) -> Poll<R> {
        let since = &self.pulse.stuck_since;
        match polled.is_pending() {
            true => {
                let _ = since.compare_exchange(0, self.pulse.beats.now(), Ordering::Relaxed, Ordering::Relaxed);
            }
            false => since.store(0, Ordering::Relaxed),
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> Felt<T> {
    /// Sends a problem in place of these bytes if they are a bare refusal; `None` if they are not.
    fn refuse(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Option<Poll<io::Result<usize>>> {
        if self.refusal.is_none() {
            self.refusal = Some(refusal(bare_refusal(bytes)?));
        }
        let rest = self.refusal.as_mut()?;
        while !rest.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Some(Poll::Ready(Err(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(sent)) => rest.advance(sent),
                other => return Some(other),
            }
        }
        self.refusal = None;
        Some(Poll::Ready(Ok(bytes.len())))
    }
}

/// The status of a refusal that is not ours: ours bear the request's id.
fn bare_refusal(bytes: &[u8]) -> Option<StatusCode> {
    let named = |name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
    if !bytes.starts_with(b"HTTP/1.1 4") || !bytes.ends_with(b"\r\n\r\n") || named(b"x-request-id") {
        return None;
    }
    StatusCode::from_bytes(bytes.get(9..12)?).ok()
}

fn refusal(status: StatusCode) -> Bytes {
    let id = Ulid::new().to_string();
    let body = match Problem::unreadable(status).into_answer(&id).body {
        AnswerBody::Bytes(body) => body,
        AnswerBody::Response(_) => Vec::new(),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {PROBLEM_JSON}\r\nx-content-type-options: nosniff\r\nx-request-id: {id}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat().into()
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Felt<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = match self.refuse(cx, bytes) {
            Some(polled) => polled,
            None => Pin::new(&mut self.stream).poll_write(cx, bytes),
        };
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        let only = if let (Some(only), None) = (filled.next(), filled.next()) { Some(only) } else { None };
        let polled = match only.and_then(|only| self.refuse(cx, only)) {
            Some(polled) => polled,
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, slices),
        };
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn the_refusal_of_a_connection_is_a_whole_answer() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }

    #[test]
    fn only_a_refusal_that_is_not_ours_is_taken_for_one() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(bare_refusal(bare), Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
        let ours: &[u8] = b"HTTP/1.1 404 Not Found\r\nx-request-id: a\r\ncontent-length: 9\r\n\r\n";
        for other in [ours, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 400 Bad", b""] {
            assert_eq!(bare_refusal(other), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_its_peer_does_not_do_its_part() {
        let config = Config::default();
        let pulse = Arc::new(Pulse::new(Arc::new(Beats::new())));
        let pass = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        pass(9).await;
        assert_eq!(pulse.verdict(pulse.beats.beat(), &config), Verdict::Fine);
        pass(2).await;
        assert_eq!(pulse.verdict(pulse.beats.beat(), &config), Verdict::Stuck, "no head at all");

        let request = pulse.begin(Version::HTTP_11);
        pass(600).await;
        assert_eq!(pulse.verdict(pulse.beats.beat(), &config), Verdict::Fine, "a long answer is no fault");
        drop(request);
        pass(70).await;
        assert_eq!(pulse.verdict(pulse.beats.beat(), &config), Verdict::Fine);
        pass(10).await;
        assert_eq!(pulse.verdict(pulse.beats.beat(), &config), Verdict::Idle);
        pulse.heard();
        pass(11).await;
        assert_eq!(pulse.verdict(pulse.beats.beat(), &config), Verdict::Stuck, "a head that does not end");
    }

    /// Asks by HTTP/2 for an answer of 100 bytes, with room for so many, and returns when the connection is closed and what
    /// was said.
    async fn closed_after(window_bytes: u32) -> (Duration, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(1024 * 1024);
        let pulse = Arc::new(Pulse::new(Arc::new(Beats::new())));
        let answer = |_: Request<Incoming>| async {
            Ok::<_, std::convert::Infallible>(Response::new(http_body_util::Full::new(Bytes::from(vec![b'x'; 100]))))
        };
        let converse = Converse {
            peer: Peer { address: [127, 0, 0, 1].into(), secure: false },
            builder: Arc::new(builder()),
            service: warp::hyper::service::service_fn(answer),
            config: Arc::new(Config::default()),
            pulse: Arc::clone(&pulse),
            failed_handshakes: Counter::default(),
        };
        tokio::spawn(converse.converse(server));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(BEAT * LOOK).await;
                pulse.look(pulse.beats.beat(), &Config::default());
            }
        });
        let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // SETTINGS with the room of each stream; HEADERS of one whole request.
        said.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4]);
        said.extend(window_bytes.to_be_bytes());
        said.extend([0, 0, 10, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x01, 5]);
        said.extend(b"a.bcd");
        let began = Instant::now();
        client.write_all(&said).await.unwrap();
        let mut heard = Vec::new();
        let _ = client.read_to_end(&mut heard).await;
        (began.elapsed(), heard)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_not_kept_for_ever() {
        let config = Config::default();
        let all = |heard: &[u8]| heard.windows(100).any(|window| window == [b'x'; 100]);
        let (took, heard) = closed_after(1_000).await;
        assert!(all(&heard) && took > config.idle_timeout, "{took:?}");
        // What is taken in part lies with the codec, and the connection counts as idle.
        for (window_bytes, limit) in [(0, config.write_timeout), (10, config.idle_timeout + FAREWELL)] {
            let (took, heard) = closed_after(window_bytes).await;
            assert!(!all(&heard));
            assert!(took < limit + BEAT * LOOK * 3, "{window_bytes}: {took:?}");
        }
    }

    #[test]
    fn no_answer_breaks_the_look_for_a_bare_refusal() {
        let good = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".to_vec();
        crate::hostile::feed("headers", vec![good], |bytes| {
            let _ = bare_refusal(bytes);
        });
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_named() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
