//! The journal of a cluster: a JetStream stream with one subject for each entity, which all nodes write and follow.
//!
//! Roles. A node sends a batch as one message that names the sequence of its entity's newest message; the stream's
//! leader refuses it when that is no longer so, and acknowledges it when a quorum has it. So two nodes that both take
//! themselves for the owner of an entity cannot both write, and nothing here needs to know who owns what. `append` is
//! the life of one write, `read` an entity's past, `newest` its present, `tail` the whole stream as followers see it, `agenda` who must be
//! woken. Only `remote` knows the wire: the rest runs as well over a model of it, with its own clock and dice.
//!
//! It must never answer "stored" for what another write may have taken the place of, call a `done` twice or not at all,
//! leave out a batch or show one twice, or believe that a replica is up to date.
//!
//! A batch's position is its message's sequence in the stream. Messages are never deleted, so positions have no holes.

mod agenda;
mod append;
mod envelope;
mod newest;
mod pace;
mod read;
mod remote;
mod setup;
pub mod stream;
mod tail;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use agenda::AgendaError;
pub use envelope::{Head, WriteId};
pub use remote::Remote;
pub use setup::{Demands, NO_PEERS, Prepared, SetupError};
pub use stream::JetStream;

use self::agenda::AgendaOf;
use self::envelope::{ENTITY_KEY_MAX_BYTES, Subjects, payload_bytes_max};
use self::newest::{PROOF_MS, Proofs};
use self::pace::{Backoff, Dice};
use self::read::Reader;
use self::stream::{Extent, NoAnswer};
use self::tail::Tail;
use super::journal::{Agenda, Append, AppendError, Batch, Committed, Done, EntityKey, Journal, Position, ReadError, Version};
use super::nats::{Nats, NatsError, NatsOptions, Prefix};

/// A start may fall into an election.
const OPEN_MS: u64 = 15_000;
/// Payloads of batches on their way; more than that is refused at once.
const IN_FLIGHT_MAX_BYTES: usize = 256 * 1024 * 1024;

#[derive(Debug, Clone, Default)]
pub struct Options {
    pub prefix: Prefix,
    /// Where the copy of the agenda is kept; `None` keeps it in memory.
    pub agenda_dir: Option<PathBuf>,
    /// Where all chance comes from. A run with the same one makes the same choices; two nodes must never share one.
    pub seed: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    #[error("the journal is corrupt at position 1: the stream begins at {first}")]
    Cut { first: u64 },
    #[error(transparent)]
    Agenda(#[from] AgendaError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error("the system gives no random number: {0}")]
    Chance(String),
}

async fn extent_and_end(stream: &dyn JetStream) -> Result<(Extent, u64), NoAnswer> {
    let extent = stream.extent().await?;
    Ok((extent, stream.proven_end(Duration::from_millis(PROOF_MS)).await?))
}

struct Core {
    stream: Arc<dyn JetStream>,
    subjects: Subjects,
    dice: Arc<Dice>,
    /// With `writes` the id of each write: different for every start of every node.
    start: u64,
    writes: AtomicU64,
    in_flight_bytes: AtomicUsize,
    /// The newest position that was acknowledged here.
    acknowledged: AtomicU64,
    closed: AtomicBool,
    tail: Arc<Tail>,
    agenda: Arc<AgendaOf>,
    proofs: Arc<Proofs>,
}

/// The journal on JetStream. All of it needs the tokio runtime that it was opened in.
pub struct Replicated {
    core: Arc<Core>,
    runtime: Handle,
    tasks: [AbortHandle; 3],
}

impl Replicated {
    /// Opens the journal over a stream that is there.
    pub async fn open(stream: Arc<dyn JetStream>, options: Options) -> Result<Arc<Replicated>, OpenError> {
        let mut seeded = fastrand::Rng::with_seed(options.seed);
        let start = seeded.u64(..);
        let dice = Arc::new(Dice::new(seeded.u64(..)));
        let begun = Instant::now();
        let mut backoff = Backoff::default();
        let (Extent { first, identity, .. }, last) = loop {
            match extent_and_end(&*stream).await {
                Ok(found) => break found,
                Err(error) if begun.elapsed() >= Duration::from_millis(OPEN_MS) => return Err(error.into()),
                Err(_) => backoff.wait(&dice).await,
            }
        };
        if first > 1 && last > 0 {
            return Err(OpenError::Cut { first });
        }
        let subjects = Subjects::new(&options.prefix);
        let agenda = Arc::new(AgendaOf::open(options.agenda_dir.as_deref(), &identity, Position(last))?);
        let tail = Tail::new(stream.clone(), subjects.clone(), dice.clone(), last);
        let runtime = Handle::current();
        let proofs = Proofs::new();
        let tasks = [
            runtime.spawn(tail.clone().run()).abort_handle(),
            runtime.spawn(agenda.clone().run(tail.clone())).abort_handle(),
            runtime.spawn(proofs.clone().run(stream.clone())).abort_handle(),
        ];
        let core = Arc::new(Core {
            stream,
            subjects,
            dice,
            start,
            writes: AtomicU64::new(0),
            in_flight_bytes: AtomicUsize::new(0),
            acknowledged: AtomicU64::new(last),
            closed: AtomicBool::new(false),
            tail,
            agenda,
            proofs,
        });
        Ok(Arc::new(Replicated { core, runtime, tasks }))
    }

    /// Checks the servers, makes the stream when it is missing, and opens the journal on it. `nats_options` are those of the
    /// connection.
    pub async fn connect(
        nats: &Nats,
        nats_options: &NatsOptions,
        demands: &Demands,
        agenda_dir: Option<PathBuf>,
    ) -> Result<(Arc<Replicated>, Prepared), OpenError> {
        let prepared = setup::prepare(nats, nats_options, demands).await?;
        let remote = Remote::new(nats.clone()).await?;
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(|error| OpenError::Chance(error.to_string()))?;
        let seed = u64::from_le_bytes(seed);
        let options = Options { prefix: nats.prefix().clone(), agenda_dir, seed };
        Ok((Replicated::open(Arc::new(remote), options).await?, prepared))
    }

    /// Ends followers and refuses appends; those under way are heard out.
    pub fn close(&self) {
        self.core.closed.store(true, Ordering::Relaxed);
        self.core.tail.close();
    }
}

impl Drop for Replicated {
    fn drop(&mut self) {
        self.close();
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Core {
    fn reader(&self) -> Reader<'_> {
        Reader { stream: &*self.stream, subjects: &self.subjects, dice: &self.dice }
    }

    /// Why an append is refused before it is sent, if it is.
    fn refusal(&self, append: &Append) -> Option<String> {
        let Append { entity, payload, expected, count, .. } = append;
        let refuse = |what: &str| Some(format!("{entity}: {what}"));
        if self.closed.load(Ordering::Relaxed) {
            return refuse("the journal is closed");
        }
        if entity.as_str().len() > ENTITY_KEY_MAX_BYTES || entity.as_str().contains('\0') {
            return refuse("an entity key must be 1 to 1024 bytes without NUL");
        }
        if *count == 0 || expected.checked_add(u64::from(*count)).is_none() {
            return refuse("a batch must hold at least one record");
        }
        let max = payload_bytes_max(self.stream.message_bytes_max());
        if payload.len() > max {
            let bytes = payload.len();
            return Some(format!("{entity}: a batch of {bytes} bytes; the NATS server takes {max} (its max_payload)"));
        }
        None
    }

    fn next_write(&self) -> WriteId {
        WriteId(u128::from(self.start) << 64 | u128::from(self.writes.fetch_add(1, Ordering::Relaxed)))
    }
}

/// Calls its `done` once, come what may: a runtime that ends drops its tasks.
struct Answer {
    core: Arc<Core>,
    bytes: usize,
    done: Option<Done>,
}

impl Answer {
    fn give(mut self, result: Result<Position, AppendError>) {
        self.say(result);
    }

    fn say(&mut self, result: Result<Position, AppendError>) {
        let Some(done) = self.done.take() else { return };
        self.core.in_flight_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Ok(position) = result {
            self.core.acknowledged.fetch_max(position.0, Ordering::Release);
        }
        done(result);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.say(Err(AppendError::Unknown("the node is stopping".into())));
    }
}

impl Journal for Replicated {
    fn append(&self, append: Append, done: Done) {
        let core = self.core.clone();
        if let Some(refusal) = core.refusal(&append) {
            return done(Err(AppendError::NotWritten(refusal)));
        }
        let bytes = append.payload.len();
        let before = core.in_flight_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > IN_FLIGHT_MAX_BYTES {
            core.in_flight_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return done(Err(AppendError::NotWritten("too much waits to be written".into())));
        }
        let message = core.subjects.message(&append, core.next_write());
        let answer = Answer { core: core.clone(), bytes, done: Some(done) };
        self.runtime.spawn(async move {
            let result = append::write(&*core.stream, &core.dice, &message).await;
            answer.give(result);
        });
    }

    fn read<'a>(
        &'a self,
        entity: &'a EntityKey,
        from: Version,
        near: Position,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Batch>, ReadError>> {
        Box::pin(async move { self.core.reader().read(entity, from, near, limit).await })
    }

    fn newest<'a>(&'a self, entity: &'a EntityKey) -> BoxFuture<'a, Result<Position, ReadError>> {
        let Core { stream, subjects, dice, tail, proofs, .. } = &*self.core;
        Box::pin(newest::newest(&**stream, subjects, dice, tail, proofs, entity))
    }

    fn follow(&self, after: Position) -> BoxStream<'static, Result<Committed, ReadError>> {
        self.core.tail.follow(after).map(|entry| entry.map(|entry| entry.committed)).boxed()
    }

    fn end(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move {
            let end = self.core.proofs.end().await.map_err(|error| ReadError::Unreadable(error.to_string()))?;
            Ok(Position(end))
        })
    }

    fn highest(&self) -> Position {
        let acknowledged = self.core.acknowledged.load(Ordering::Acquire);
        Position(acknowledged.max(self.core.tail.reached()))
    }

    fn agenda<'a>(&'a self, after: Option<&'a EntityKey>, limit: usize) -> BoxFuture<'a, Result<Agenda, ReadError>> {
        Box::pin(async move {
            let Core { agenda, proofs, .. } = &*self.core;
            let end = match after {
                None => proofs.end().await.map_err(|error| ReadError::Unreadable(error.to_string()))?,
                // The first page has waited.
                Some(_) => 0,
            };
            agenda.page(after, limit, Position(end)).await
        })
    }

    fn batch_bytes_max(&self) -> usize {
        payload_bytes_max(self.core.stream.message_bytes_max())
    }
}
