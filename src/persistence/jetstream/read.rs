//! Reading one entity: never by a consumer, and never believing a replica that it knows the end.
//!
//! The leader says where the entity's newest batch stands, which is the whole answer for an entity of one batch. What
//! comes before it is read in pages from any replica; one that is behind is asked again, and in the end the leader is
//! asked for one batch after the other.
//!
//! A leader that was deposed without knowing it may still give an older end for some seconds. What is read then is a
//! true earlier state: nothing can be written on top of it. Whoever must not show such a state asks `newest` too.

use std::time::Duration;

use tokio::time::Instant;

use super::envelope::{Subjects, place};
use super::pace::{Backoff, Dice, ask_anew};
use super::stream::{JetStream, NoAnswer, Stored, Which};
use crate::persistence::journal::{Batch, EntityKey, Position, ReadError, Version};

/// Messages asked for at once.
const PAGE_MESSAGES: usize = 256;
/// From the first question to giving up.
const READ_MS: u64 = 9_000;
/// A replica that knows less than the leader is asked so often before the leader is.
const STALE_PAGES_MAX: u32 = 3;

pub struct Reader<'a> {
    pub stream: &'a dyn JetStream,
    pub subjects: &'a Subjects,
    pub dice: &'a Dice,
}

impl Reader<'_> {
    pub async fn read(&self, entity: &EntityKey, from: Version, near: Position, limit: usize) -> Result<Vec<Batch>, ReadError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let begun = Instant::now();
        let from = from.max(1);
        let subject = self.subjects.of(entity);
        let Some(newest) = self.last(&subject, begun).await? else { return Ok(Vec::new()) };
        let newest = self.batch(&newest)?;
        if newest.last() < from {
            return Ok(Vec::new());
        }
        if newest.first <= from {
            return Ok(vec![newest]);
        }
        let life = Life { reader: self, subject: &subject, newest: newest.position.0, begun };
        if near.0 > 0
            && near <= newest.position
            && let Some(batches) = life.pages(from, near.0, limit).await?
        {
            return Ok(batches);
        }
        // Whoever does not know where, or was wrong about it.
        let start = if from == 1 { 1 } else { life.find(from).await? };
        let batches = life.pages(from, start, limit).await?;
        batches.ok_or_else(|| ReadError::Corrupt { place: format!("{entity} version {from}"), what: "it is missing".into() })
    }

    async fn last(&self, subject: &str, begun: Instant) -> Result<Option<Stored>, ReadError> {
        self.until_answered(begun, |within| self.stream.ask_leader(subject, Which::Last, within)).await
    }

    fn batch(&self, stored: &Stored) -> Result<Batch, ReadError> {
        self.subjects.batch(stored).map(|(committed, _)| committed.batch)
    }

    async fn until_answered<T, F>(&self, begun: Instant, ask: impl Fn(Duration) -> F) -> Result<T, ReadError>
    where
        F: Future<Output = Result<T, NoAnswer>>,
    {
        let mut backoff = Backoff::default();
        loop {
            match ask_anew(backoff.patience(), &ask).await {
                Ok(answer) => return Ok(answer),
                Err(error) if begun.elapsed() >= Duration::from_millis(READ_MS) => {
                    return Err(ReadError::Unreadable(error.to_string()));
                }
                Err(_) => backoff.wait(self.dice).await,
            }
        }
    }
}

/// What one entity wrote so far, as the leader knew its end.
struct Life<'a> {
    reader: &'a Reader<'a>,
    subject: &'a str,
    newest: u64,
    begun: Instant,
}

impl Life<'_> {
    /// Messages of the entity at `from` and after it, at least one while its newest is not passed.
    async fn page(&self, from: u64, limit: usize) -> Result<Vec<Stored>, ReadError> {
        let reader = self.reader;
        let mut backoff = Backoff::default();
        for _ in 0..STALE_PAGES_MAX {
            let ask = |_| reader.stream.ask_any(Some(self.subject), from, limit);
            let page = reader.until_answered(self.begun, ask).await?;
            if !page.is_empty() {
                return Ok(page);
            }
            backoff.wait(reader.dice).await;
        }
        let ask = |within| reader.stream.ask_leader(self.subject, Which::From(from), within);
        let one = reader.until_answered(self.begun, ask).await?;
        let missing = || ReadError::Unreadable(format!("nobody knows position {} of {} any more", self.newest, self.subject));
        Ok(vec![one.ok_or_else(missing)?])
    }

    /// The batches that hold `from` and later; `None` when `start` lies behind `from`.
    async fn pages(&self, from: Version, start: u64, limit: usize) -> Result<Option<Vec<Batch>>, ReadError> {
        let mut batches = Vec::new();
        let mut before: Option<Version> = (start <= 1).then_some(0);
        let mut at = start;
        let mut ask = PAGE_MESSAGES.min(limit);
        while batches.len() < limit && at <= self.newest {
            let page = self.page(at, ask).await?;
            for stored in page {
                let batch = self.reader.batch(&stored)?;
                match before {
                    None if batch.first > from => return Ok(None),
                    Some(last) if batch.first != last + 1 => {
                        let what = format!("version {} follows version {last}", batch.first);
                        return Err(ReadError::Corrupt { place: place(&stored), what });
                    }
                    _ => {}
                }
                before = Some(batch.last());
                at = stored.sequence + 1;
                if batch.last() >= from && batches.len() < limit {
                    batches.push(batch);
                }
            }
            // A page without any of them: there may be many before the first.
            ask = if batches.is_empty() { PAGE_MESSAGES } else { PAGE_MESSAGES.min(limit - batches.len()) };
        }
        Ok(Some(batches))
    }

    /// A sequence near before the batch that holds `from`, by halving the stream.
    async fn find(&self, from: Version) -> Result<u64, ReadError> {
        let (mut low, mut high) = (1, self.newest);
        while high - low > PAGE_MESSAGES as u64 {
            let middle = low + (high - low) / 2;
            let page = self.page(middle, 1).await?;
            let Some(stored) = page.first() else { break };
            let batch = self.reader.batch(stored)?;
            if batch.first <= from {
                low = stored.sequence;
                if batch.last() >= from {
                    break;
                }
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}
