//! The follower: takes the journal's batches in rounds, folds a round into the models, writes it down, says how far it is.
//!
//! A round is whatever came within [`LINGER`], at most [`ROUND_BATCHES_MAX`] batches: so the shop pays for one write of
//! many records, and an order that went through all its states within a round is written once. While a reader waits for
//! a position, rounds are shorter ([`LINGER_WHEN_AWAITED`]).
//!
//! The order list and that of flash sales are written in each round that changes them. The catalogue answers from memory, so it is written only
//! every [`WRITE_EVERY`]: a hot sku then costs one write a second and not five thousand. That is why each model has a
//! position of its own. A start follows the journal from the earlier one, and each model passes over what it already has.
//!
//! What can fail: the journal is unreadable for a while (it is asked again, ever less often); the journal is corrupt, a
//! record cannot be understood, or sled fails (the follower ends; the records before the bad one count). After a crash
//! it reads again what it had not written, which changes nothing twice because content and position are one sled batch.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use sled::{Batch, Tree};
use tokio::sync::watch;
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{Instant, sleep_until};

use super::catalogue::Catalogue;
use super::orders::Orders;
use super::records::Unfoldable;
use super::sales::Sales;
use super::store::{self, Model};
use super::{Seen, Waiting};
use crate::persistence::{Committed, Journal, Position, ReadError};

const ROUND_BATCHES_MAX: usize = 1_000;
/// Payload bytes kept in memory for a round: reached only by batches far larger than usual.
const ROUND_BYTES_MAX: usize = 8 * 1024 * 1024;
const LINGER: Duration = Duration::from_millis(50);
const LINGER_WHEN_AWAITED: Duration = Duration::from_millis(2);
/// How long the journal's stream is left alone at a time: short, since what comes meanwhile fills its buffer.
const NAP: Duration = Duration::from_millis(5);
/// How often the catalogue and the positions are written down while the journal grows.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// Products and skus that may wait to be written: one sled batch must stay small, since it locks out other sled work.
const UNWRITTEN_MAX: usize = 2_000;
/// How long a quiet journal is waited for at a time.
const QUIET: Duration = Duration::from_secs(30);
/// The same just after following it anew: one that is still silent by then is taken for readable again.
const QUIET_AT_FIRST: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// Whether and how the follower is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    No,
    /// After writing down all that it knows.
    Close,
    /// At once, as in a crash.
    #[cfg(test)]
    Abandon,
}

pub(super) struct Follower {
    journal: Arc<dyn Journal>,
    /// Lent to a blocking thread while it works on a round; gone if that panicked.
    folds: Option<Folds>,
    position: Position,
    /// When there is something to write down: by when.
    write_at: Option<Instant>,
    reached: watch::Sender<Position>,
    stop: watch::Receiver<Stop>,
    waiting: Arc<Waiting>,
    /// Where the journal stood at a moment: once that is reached, the models have seen all until then.
    mark: (Position, Instant),
    seen: Arc<Seen>,
    fault: Arc<Mutex<Option<String>>>,
}

/// Why the follower left off.
enum Ending {
    /// It was told to.
    Told(Stop),
    /// The journal may be readable again.
    Interrupted(String),
    /// A person must look.
    Broken(String),
}

/// What was taken from the journal at once.
#[derive(Default)]
struct Round {
    /// Those that a model may care for.
    batches: Vec<Committed>,
    bytes: usize,
    /// All that were taken, those that nobody cares for too.
    taken: usize,
    last: Option<Position>,
    /// The stream ended with this, after the batches above.
    ending: Option<Ending>,
}

impl Follower {
    pub(super) fn new(
        journal: Arc<dyn Journal>,
        folds: Folds,
        reached: watch::Sender<Position>,
        stop: watch::Receiver<Stop>,
        waiting: Arc<Waiting>,
        seen: Arc<Seen>,
        fault: Arc<Mutex<Option<String>>>,
    ) -> Self {
        let position = folds.position();
        let mark = (journal.highest(), Instant::now());
        Follower { journal, folds: Some(folds), position, write_at: None, reached, stop, waiting, mark, seen, fault }
    }

    pub(super) async fn run(mut self) {
        let mut retry = RETRY_FIRST;
        loop {
            let before = self.position;
            match self.follow().await {
                Ending::Told(Stop::Close) => {
                    if let Err(what) = self.fold(Vec::new(), self.position, true).await {
                        tracing::warn!(what, "the read models could not be written down; they will read some records again");
                    }
                    return;
                }
                Ending::Told(_) => return,
                Ending::Broken(what) => {
                    tracing::error!(what, position = self.position.0, "the read models no longer follow the journal");
                    self.set_fault(Some(what));
                    return;
                }
                Ending::Interrupted(what) => {
                    if self.position > before {
                        retry = RETRY_FIRST;
                    }
                    tracing::warn!(what, position = self.position.0, "the read models cannot read the journal; trying again");
                    self.set_fault(Some(what));
                    let until = Instant::now() + retry;
                    retry = (retry * 2).min(RETRY_LAST);
                    // A stop is noticed by `follow`, which looks before it reads.
                    tokio::select! {
                        _ = self.stop.changed() => {}
                        () = sleep_until(until) => {}
                    }
                }
            }
        }
    }

    fn set_fault(&self, what: Option<String>) {
        if let Ok(mut fault) = self.fault.lock() {
            *fault = what;
        }
    }

    /// The stop that was asked for. A dropped owner cannot ask any more, and means `Close`.
    fn told(&self) -> Option<Stop> {
        match *self.stop.borrow() {
            Stop::No => self.stop.has_changed().is_err().then_some(Stop::Close),
            stop => Some(stop),
        }
    }

    async fn follow(&mut self) -> Ending {
        let mut stream = self.journal.follow(self.position);
        let mut faultless = false;
        loop {
            if let Some(stop) = self.told() {
                return Ending::Told(stop);
            }
            let mut round = self.gather(&mut stream, if faultless { QUIET } else { QUIET_AT_FIRST }).await;
            if round.ending.is_none() && !faultless {
                faultless = true;
                self.set_fault(None);
            }
            let last = round.last.unwrap_or(self.position);
            if last > self.position && self.write_at.is_none() {
                self.write_at = Some(Instant::now() + WRITE_EVERY);
            }
            let write = self.write_at.is_some_and(|at| at <= Instant::now());
            if let Err(what) = self.fold(std::mem::take(&mut round.batches), last, write).await {
                return Ending::Broken(what);
            }
            if let Some(ending) = round.ending {
                return ending;
            }
        }
    }

    /// Takes what there is, waiting a little for more when there is something, and long when there is nothing.
    async fn gather(&mut self, stream: &mut BoxStream<'static, Result<Committed, ReadError>>, quiet: Duration) -> Round {
        let mut round = Round::default();
        let begun = Instant::now();
        let mut first_at = None;
        loop {
            while !round.is_full() {
                match stream.next().now_or_never() {
                    Some(next) => round.take(next),
                    None => break,
                }
            }
            let now = Instant::now();
            let awaited = self.waiting.readers.load(Ordering::Acquire) > 0;
            let until = match round.taken {
                0 => self.write_at.unwrap_or(begun + quiet),
                _ => *first_at.get_or_insert(now) + if awaited { LINGER_WHEN_AWAITED } else { LINGER },
            };
            if round.is_full() || until <= now {
                return round;
            }
            // While it lingers and nobody waits, it naps instead of being woken for every batch of a busy shop.
            let napping = round.taken > 0 && !awaited;
            tokio::select! {
                biased;
                _ = self.stop.changed() => return round,
                next = stream.next(), if !napping => {
                    if round.taken == 0 {
                        self.rested_until(next.as_ref());
                    }
                    round.take(next);
                }
                // A reader came: there may be less time now.
                () = self.waiting.arrived.notified() => {}
                () = sleep_until(if napping { until.min(now + NAP) } else { until }) => {}
            }
        }
    }

    /// Folds a round and says that it is done. `write`: the catalogue and the positions too.
    async fn fold(&mut self, batches: Vec<Committed>, last: Position, write: bool) -> Result<(), String> {
        let mut folds = self.folds.take().ok_or_else(|| "a round was broken off before".to_owned())?;
        if batches.is_empty() && !write {
            // Nothing in it for us: not worth a thread.
            folds.pass_to(last);
            self.folds = Some(folds);
            self.publish(last);
            yield_now().await;
            return Ok(());
        }
        let folding = spawn_blocking(move || {
            let folded = folds.round(&batches, last, write);
            (folds, folded)
        });
        let (folds, folded) = folding.await.map_err(|broken| format!("folding broke: {broken}"))?;
        if folds.is_written() {
            self.write_at = None;
        }
        let position = folds.position();
        self.folds = Some(folds);
        folded.map(|()| self.publish(position)).map_err(|error| {
            if matches!(error, FoldError::Unfoldable(_)) {
                self.publish(position);
            }
            error.to_string()
        })
    }

    /// After a rest, if what comes now is the newest there is, nothing was missing until now.
    fn rested_until(&self, next: Option<&Result<Committed, ReadError>>) {
        if let Some(Ok(next)) = next
            && next.batch.position >= self.journal.highest()
        {
            self.seen.set(Instant::now().into_std());
        }
    }

    fn mark(&mut self) {
        let (at, moment) = self.mark;
        if self.position >= at {
            self.seen.set(moment.into_std());
            self.mark = (self.journal.highest(), Instant::now());
        }
    }

    fn publish(&mut self, position: Position) {
        if position > self.position {
            self.position = position;
            self.reached.send_replace(position);
            self.mark();
        }
    }
}

impl Round {
    fn take(&mut self, next: Option<Result<Committed, ReadError>>) {
        match next {
            Some(Ok(committed)) => {
                self.taken += 1;
                self.last = Some(committed.batch.position);
                if Folds::cares(&committed) {
                    self.bytes += committed.batch.payload.len();
                    self.batches.push(committed);
                }
            }
            Some(Err(error @ ReadError::Corrupt { .. })) => self.ending = Some(Ending::Broken(error.to_string())),
            Some(Err(error @ ReadError::Unreadable(_))) => self.ending = Some(Ending::Interrupted(error.to_string())),
            None => self.ending = Some(Ending::Interrupted("the journal stopped sending".to_owned())),
        }
    }

    fn is_full(&self) -> bool {
        self.taken >= ROUND_BATCHES_MAX || self.bytes >= ROUND_BYTES_MAX || self.ending.is_some()
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum FoldError {
    #[error(transparent)]
    Unfoldable(#[from] Unfoldable),
    #[error("the read models cannot be stored: {0}")]
    NotWritten(#[from] sled::Error),
    #[error("the read models cannot be serialized: {0}")]
    NotSerialized(#[from] serde_json::Error),
}

/// All models, and how far each is written down.
pub(super) struct Folds {
    tree: Tree,
    catalogue: Catalogue,
    orders: Orders,
    sales: Sales,
    position: Position,
    catalogue_written: Position,
    orders_written: Position,
    sales_written: Position,
}

impl Folds {
    pub(super) fn new(tree: Tree, catalogue: Catalogue, orders: Orders, sales: Sales) -> Self {
        let (catalogue_written, orders_written, sales_written) = (catalogue.loaded_at(), orders.loaded_at(), sales.loaded_at());
        let position = catalogue_written.min(orders_written).min(sales_written);
        Folds { tree, catalogue, orders, sales, position, catalogue_written, orders_written, sales_written }
    }

    /// What all models contain.
    pub(super) fn position(&self) -> Position {
        self.position
    }

    fn is_written(&self) -> bool {
        self.catalogue_written.min(self.orders_written).min(self.sales_written) >= self.position
    }

    /// Most batches of a busy shop are none of our business, and are not even parsed.
    fn cares(committed: &Committed) -> bool {
        let entity = &committed.entity;
        Orders::cares(entity) || Catalogue::cares(entity) || (Sales::is_sale(entity) && Sales::cares(committed))
    }

    fn pass_to(&mut self, last: Position) {
        self.position = self.position.max(last);
    }

    /// Folds batches in order and writes what is to be written as one sled batch. Of a round with a record that cannot
    /// be folded, what stands before that record counts.
    fn round(&mut self, batches: &[Committed], last: Position, write: bool) -> Result<(), FoldError> {
        let mut failed = None;
        let mut until = last;
        for committed in batches {
            if let Err(error) = self.one(committed) {
                match error {
                    FoldError::Unfoldable(_) => until = Position(committed.batch.position.0.saturating_sub(1)),
                    FoldError::NotWritten(_) | FoldError::NotSerialized(_) => return Err(error),
                }
                failed = Some(error);
                break;
            }
        }
        let until = until.max(self.position);
        self.catalogue.show();

        let mut batch = Batch::default();
        let orders_changed = self.orders.write(&mut batch)?;
        let sales_changed = self.sales.write(&mut batch)?;
        let write = write || failed.is_some() || self.catalogue.unwritten() > UNWRITTEN_MAX;
        if write {
            self.catalogue.write(&self.tree, &mut batch)?;
            if until > self.catalogue_written {
                store::put_position(&mut batch, Model::Catalogue, until);
            }
        }
        if (write || orders_changed) && until > self.orders_written {
            store::put_position(&mut batch, Model::Orders, until);
        }
        if (write || sales_changed) && until > self.sales_written {
            store::put_position(&mut batch, Model::Sales, until);
        }
        if write || orders_changed || sales_changed {
            self.tree.apply_batch(batch)?;
        }
        if write || orders_changed {
            self.orders_written = self.orders_written.max(until);
        }
        if write || sales_changed {
            self.sales_written = self.sales_written.max(until);
        }
        if write {
            self.catalogue_written = self.catalogue_written.max(until);
        }
        self.position = until;
        failed.map_or(Ok(()), Err)
    }

    /// A model that was written down further than the other passes over what it already has.
    fn one(&mut self, committed: &Committed) -> Result<(), FoldError> {
        if Orders::cares(&committed.entity) {
            if committed.batch.position > self.orders_written {
                self.orders.fold(&self.tree, committed)?;
            }
        } else if Sales::is_sale(&committed.entity) {
            if committed.batch.position > self.sales_written {
                self.sales.fold(&self.tree, committed)?;
            }
        } else if committed.batch.position > self.catalogue_written {
            self.catalogue.fold(committed)?;
        }
        Ok(())
    }
}
