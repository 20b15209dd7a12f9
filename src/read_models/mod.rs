//! What is looked up: lists and searches that no single entity could answer, built from the journal and from it alone.
//!
//! One follower reads every batch of the journal in order and folds it into three models, the catalogue (`catalogue.rs`),
//! the order list (`orders.rs`) and the list of flash sales (`sales.rs`). Each model's position in the journal is stored in the same sled batch as its
//! content, so that each record counts exactly once, however often the process dies. Deleting the folder is safe: the
//! next start rebuilds it.
//!
//! Nothing here may decide anything, write to the journal, or be asked for a truth that a decision rests on: a read
//! model is late by design. And nothing here may skip a record that it ought to understand: it stops instead, goes on
//! answering with what it had, and says so in [`ReadModels::health`].

mod catalogue;
mod cursor;
#[cfg(test)]
mod double;
mod follower;
mod orders;
mod records;
mod sales;
mod store;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use crate::persistence::{Journal, Position};
use catalogue::{Catalogue, Index};
use follower::{Folds, Follower, Stop};
use orders::Orders;
use sales::Sales;

pub use catalogue::{ProductQuery, ProductSort, ProductSummary, VariantSummary};
pub use orders::{OrderQuery, OrderSummary, Whose};
pub use sales::{Drafts, FlashSaleSummary, SaleQuery};

/// Items on a page when the query's limit is 0, and the most that any page has.
pub const PAGE_ITEMS_DEFAULT: usize = 20;
pub const PAGE_ITEMS_MAX: usize = 100;

/// Queries that run at once, each on a blocking thread: more would only take turns on the same cores.
const QUERIES_AT_ONCE: usize = 8;
/// How long a query waits for its turn before it is refused.
const QUERY_TURN: Duration = Duration::from_secs(2);
/// How long `close` waits for the round under way and the last write.
const CLOSE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadModelError {
    #[error("this cursor was not given out by this list")]
    BadCursor,
    #[error("the read model is unavailable: {0}")]
    Unavailable(String),
}

/// A stretch of a list. No `next_cursor` means that there is no more; a page may be short and still have one.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "{T}Page")]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next_cursor: Option<String>,
}

/// The read models of one node, and the follower that feeds them.
pub struct ReadModels {
    index: Arc<RwLock<Index>>,
    tree: sled::Tree,
    reached: watch::Receiver<Position>,
    waiting: Arc<Waiting>,
    journal: Arc<dyn Journal>,
    seen: Arc<Seen>,
    fault: Arc<Mutex<Option<String>>>,
    stop: watch::Sender<Stop>,
    /// Taken by whoever closes.
    task: Mutex<Option<JoinHandle<()>>>,
    turns: Semaphore,
}

/// Readers who wait for a position: the follower gathers less at a time while there are any.
#[derive(Default)]
struct Waiting {
    readers: AtomicUsize,
    arrived: Notify,
}

/// The newest moment of which it is known that the models show all that was in the journal then.
struct Seen {
    start: Instant,
    /// Since the start.
    until_ms: AtomicU64,
}

impl Seen {
    fn since(start: Instant) -> Self {
        Seen { start, until_ms: AtomicU64::new(0) }
    }

    fn set(&self, until: Instant) {
        let until_ms = u64::try_from(until.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX);
        self.until_ms.fetch_max(until_ms, Ordering::Relaxed);
    }

    fn get(&self) -> Instant {
        self.start + Duration::from_millis(self.until_ms.load(Ordering::Relaxed))
    }
}

impl ReadModels {
    /// Opens the models kept in `dir`, a folder of their own, and follows the journal from where they had come to. Must
    /// be called within a tokio runtime. It blocks for as long as it takes to load the catalogue: seconds for a million
    /// products, milliseconds for a shop.
    pub fn open(dir: impl AsRef<Path>, journal: Arc<dyn Journal>) -> Result<Arc<ReadModels>, ReadModelError> {
        let tree = store::open(dir.as_ref(), journal.highest())?;
        let catalogue = Catalogue::load(&tree)?;
        let orders = Orders::load(&tree)?;
        let index = catalogue.index();
        let sales = Sales::load(&tree)?;
        let folds = Folds::new(tree.clone(), catalogue, orders, sales);

        let (reached_sender, reached) = watch::channel(folds.position());
        let (stop, stop_receiver) = watch::channel(Stop::No);
        let waiting = Arc::new(Waiting::default());
        let fault = Arc::new(Mutex::new(None));
        let seen = Arc::new(Seen::since(Instant::now()));
        let follower = Follower::new(
            Arc::clone(&journal),
            folds,
            reached_sender,
            stop_receiver,
            Arc::clone(&waiting),
            Arc::clone(&seen),
            Arc::clone(&fault),
        );
        let task = Mutex::new(Some(tokio::spawn(follower.run())));
        let turns = Semaphore::new(QUERIES_AT_ONCE);
        Ok(Arc::new(ReadModels { index, tree, reached, waiting, journal, seen, fault, stop, task, turns }))
    }

    /// Waits until the models contain everything up to `position`; false when they do not within `wait`, or when the
    /// follower has stopped and never will.
    pub async fn reached(&self, position: Position, wait: Duration) -> bool {
        let mut reached = self.reached.clone();
        if *reached.borrow() >= position {
            return true;
        }
        let _waiter = Waiter::among(&self.waiting);
        matches!(timeout(wait, reached.wait_for(|reached| *reached >= position)).await, Ok(Ok(_)))
    }

    /// How far the models have come.
    pub fn position(&self) -> Position {
        *self.reached.borrow()
    }

    /// How old the newest state of the journal is that the models show in full; nothing while they show it all. After a
    /// start it is counted from the start on.
    pub fn behind(&self) -> Duration {
        let now = Instant::now();
        if self.position() >= self.journal.highest() {
            self.seen.set(now);
            return Duration::ZERO;
        }
        now.saturating_duration_since(self.seen.get())
    }

    /// What keeps the models from following the journal, if anything does: for `/health/ready`.
    pub fn health(&self) -> Result<(), String> {
        if let Some(fault) = self.fault.lock().map_err(|_| "the follower panicked".to_owned())?.clone() {
            return Err(fault);
        }
        match self.task.lock().map_err(|_| "the follower panicked".to_owned())?.as_ref() {
            Some(task) if !task.is_finished() => Ok(()),
            Some(_) => Err("the follower of the journal has ended".to_owned()),
            None => Err("the read models are closed".to_owned()),
        }
    }

    /// The products for sale that match.
    pub async fn products(&self, query: ProductQuery) -> Result<Page<ProductSummary>, ReadModelError> {
        let index = Arc::clone(&self.index);
        self.answer(move || {
            let index = index.read().map_err(|_| ReadModelError::Unavailable("the catalogue is damaged".to_owned()))?;
            index.page(&query)
        })
        .await
    }

    /// The orders that match, newest first. A status that no order can have matches none.
    pub async fn orders(&self, query: OrderQuery) -> Result<Page<OrderSummary>, ReadModelError> {
        let tree = self.tree.clone();
        self.answer(move || orders::page(&tree, &query)).await
    }

    /// The flash sales that match, the soonest start first. A status that no sale can have matches none.
    pub async fn flash_sales(&self, query: SaleQuery) -> Result<Page<FlashSaleSummary>, ReadModelError> {
        let tree = self.tree.clone();
        self.answer(move || sales::page(&tree, &query)).await
    }

    /// Ends the follower after a last write. What was loaded still answers queries.
    pub async fn close(&self) {
        self.end(Stop::Close).await;
    }

    /// Ends the follower as a crash would: what was not yet written is not written.
    #[cfg(test)]
    pub(crate) async fn abandon(&self) {
        self.end(Stop::Abandon).await;
    }

    async fn end(&self, how: Stop) {
        self.stop.send_replace(how);
        let task = self.task.lock().ok().and_then(|mut task| task.take());
        if let Some(task) = task
            && timeout(CLOSE, task).await.is_err()
        {
            tracing::warn!("the read models' follower did not end in time; it will read some records again");
        }
    }

    /// Runs a query on a blocking thread: sled reads files, and a search is a few milliseconds of computing.
    async fn answer<T: Send + 'static>(
        &self,
        query: impl FnOnce() -> Result<Page<T>, ReadModelError> + Send + 'static,
    ) -> Result<Page<T>, ReadModelError> {
        let _turn = match timeout(QUERY_TURN, self.turns.acquire()).await {
            Ok(Ok(turn)) => turn,
            _ => return Err(ReadModelError::Unavailable("too many queries at once".to_owned())),
        };
        spawn_blocking(query)
            .await
            .unwrap_or_else(|broken| Err(ReadModelError::Unavailable(format!("the query broke: {broken}"))))
    }
}

/// Counts a reader who waits for as long as it lives.
struct Waiter<'a>(&'a Waiting);

impl<'a> Waiter<'a> {
    fn among(waiting: &'a Waiting) -> Self {
        waiting.readers.fetch_add(1, Ordering::AcqRel);
        waiting.arrived.notify_one();
        Waiter(waiting)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The page length for a limit that somebody asked for.
fn page_items(limit: usize) -> usize {
    if limit == 0 { PAGE_ITEMS_DEFAULT } else { limit.min(PAGE_ITEMS_MAX) }
}

impl From<sled::Error> for ReadModelError {
    fn from(error: sled::Error) -> Self {
        ReadModelError::Unavailable(error.to_string())
    }
}
