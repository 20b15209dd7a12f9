//! One journal copied into another, batch for batch: how a shop moves from one machine to a cluster.
//!
//! First both are compared: what is there must be the beginning of what is to come, entity by entity. Then what is
//! missing is written, in the order of each entity and many entities at once; and then both are compared again, from
//! their first batch on. So it may be ended at any moment and begun again: it finds what it did, adds nothing twice, and
//! done once more changes nothing.
//!
//! It must never write to a journal that holds anything else, and never call a copy whole that it has not read back.
//!
//! Positions are the target's own: entities' batches keep their order among themselves, not with those of others.
//! Memory holds one line for each entity.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use xxhash_rust::xxh3::Xxh3;

use super::journal::{Append, AppendError, Batch, Committed, EntityKey, Journal, Position, ReadError, Version, Wake};
use super::record::wake_of;

/// Entities that are written to at once, one batch each.
const IN_FLIGHT_MAX: usize = 1_024;
/// Batches that were read and are not written yet: enough to find many entities behind a busy one.
const WINDOW_MAX: usize = 16_384;
const WINDOW_MAX_BYTES: usize = 64 * 1024 * 1024;
/// How long a journal may take for the next batch.
const READ_MS: u64 = 30_000;
/// How long a write may be unheard of. The journal gives up before.
const WRITE_MS: u64 = 30_000;
/// How often one batch is tried.
const TRIES: u32 = 8;
const PAUSE_MS: u64 = 100;
const PAUSE_MAX_MS: u64 = 5_000;
/// How long the target's agenda may take to know what was written.
const AGENDA_MS: u64 = 30_000;
const AGENDA_LOOK_MS: u64 = 50;
const AGENDA_PAGE: usize = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    #[error("the journal to be copied: {0}")]
    Source(ReadError),
    #[error("the journal to be written: {0}")]
    Target(ReadError),
    #[error("the journal gives no more batches, though its end was not reached")]
    Stalled,
    #[error("there is something else already: {entity} is not in the journal to be copied. Use an empty one, or another prefix")]
    Foreign { entity: EntityKey },
    #[error(
        "{entity} differs at version {version} from the journal to be copied. Nothing is written over: use an empty one, or \
         another prefix"
    )]
    Differs { entity: EntityKey, version: Version },
    #[error("{entity} version {version} could not be written: {what}")]
    NotWritten { entity: EntityKey, version: Version, what: String },
    #[error("{entity} version {version}: its payload cannot be read: {what}")]
    Payload { entity: EntityKey, version: Version, what: String },
    #[error("not everything was copied: {batches} batches are missing, the first of {entity}")]
    Missing { batches: u64, entity: EntityKey },
    #[error("{entity} would not be woken as it was to be")]
    Agenda { entity: EntityKey },
}

/// How far a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Batches of the target that were read.
    ReadingTarget(u64),
    /// Batches of the source that were compared.
    Comparing(u64),
    /// Batches that are in the target, and how many there will be.
    Copying(u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    pub entities: u64,
    pub batches: u64,
    pub records: u64,
    /// Batches that this run wrote.
    pub written: u64,
}

/// Copies what is missing, and proves that nothing is.
pub async fn migrate(
    from: &dyn Journal,
    to: &dyn Journal,
    mut progress: impl FnMut(Step) + Send,
) -> Result<Report, MigrationError> {
    let before = Comparison::make(from, to, Position(0), &mut progress).await?;
    let written = before.missing;
    let after = match before.first_missing {
        None => before,
        Some(_) => {
            let reached = copy(from, to, before, &mut progress).await?;
            Comparison::make(from, to, reached, &mut progress).await?
        }
    };
    if let Some((_, entity)) = after.first_missing {
        return Err(MigrationError::Missing { batches: after.missing, entity });
    }
    compare_agendas(from, to).await?;
    Ok(Report { entities: after.lives.len() as u64, batches: after.batches, records: after.records, written })
}

// Comparing ---------------------------------------------------------------------------------------------------------

/// What is known of one entity's batches up to a version.
#[derive(Default)]
struct Life {
    /// What the target has.
    version: Version,
    digest: u64,
    /// Where its newest batch stands in the target.
    after: Position,
    /// How far the source was read, and the same of it.
    read: Version,
    read_digest: u64,
}

struct Comparison {
    lives: HashMap<EntityKey, Life>,
    /// Of the source.
    batches: u64,
    records: u64,
    /// Batches that the target lacks, and the first of them in the source.
    missing: u64,
    first_missing: Option<(Position, EntityKey)>,
}

/// Over all that a batch says, and all before it.
fn digest(before: u64, batch: &Batch) -> u64 {
    let mut hash = Xxh3::with_seed(before);
    hash.update(&batch.first.to_le_bytes());
    hash.update(&batch.count.to_le_bytes());
    hash.update(&batch.payload);
    hash.digest()
}

/// Every batch up to what is the end now, and to this position at least.
async fn each(
    journal: &dyn Journal,
    at_least: Position,
    failed: fn(ReadError) -> MigrationError,
    mut look: impl FnMut(Committed) -> Result<(), MigrationError>,
) -> Result<(), MigrationError> {
    let end = journal.highest().max(at_least);
    let mut batches = journal.follow(Position(0));
    let mut reached = Position(0);
    while reached < end {
        match timeout(Duration::from_millis(READ_MS), batches.next()).await {
            Ok(Some(Ok(committed))) => {
                reached = committed.batch.position;
                look(committed)?;
            }
            Ok(Some(Err(error))) => return Err(failed(error)),
            Ok(None) | Err(_) => return Err(MigrationError::Stalled),
        }
    }
    Ok(())
}

impl Comparison {
    async fn make(
        from: &dyn Journal,
        to: &dyn Journal,
        written: Position,
        progress: &mut (impl FnMut(Step) + Send),
    ) -> Result<Comparison, MigrationError> {
        let mut lives: HashMap<EntityKey, Life> = HashMap::new();
        let mut read = 0;
        let target = |Committed { entity, batch }| {
            let life = lives.entry(entity).or_default();
            life.digest = digest(life.digest, &batch);
            life.version = batch.last();
            life.after = batch.position;
            read += 1;
            progress(Step::ReadingTarget(read));
            Ok(())
        };
        each(to, written, MigrationError::Target, target).await?;
        let mut found = Comparison { lives, batches: 0, records: 0, missing: 0, first_missing: None };
        let source = |committed: Committed| {
            found.compare(committed)?;
            progress(Step::Comparing(found.batches));
            Ok(())
        };
        each(from, Position(0), MigrationError::Source, source).await?;
        match found.lives.iter().find(|(_, life)| life.read < life.version) {
            None => Ok(found),
            Some((entity, life)) if life.read == 0 => Err(MigrationError::Foreign { entity: entity.clone() }),
            Some((entity, life)) => Err(MigrationError::Differs { entity: entity.clone(), version: life.read + 1 }),
        }
    }

    fn compare(&mut self, Committed { entity, batch }: Committed) -> Result<(), MigrationError> {
        let life = self.lives.entry(entity.clone()).or_default();
        life.read_digest = digest(life.read_digest, &batch);
        life.read = batch.last();
        self.batches += 1;
        self.records += u64::from(batch.count);
        if batch.first > life.version {
            self.missing += 1;
            self.first_missing.get_or_insert((batch.position, entity));
        } else if batch.last() > life.version || (batch.last() == life.version && life.digest != life.read_digest) {
            return Err(MigrationError::Differs { entity, version: batch.first });
        }
        Ok(())
    }
}

// Copying -----------------------------------------------------------------------------------------------------------

/// The batches of one entity that wait for their turn.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Batch>,
    is_flying: bool,
}

/// Returns where the last batch stands that was written.
async fn copy(
    from: &dyn Journal,
    to: &dyn Journal,
    Comparison { mut lives, batches, missing, first_missing, .. }: Comparison,
    progress: &mut (impl FnMut(Step) + Send),
) -> Result<Position, MigrationError> {
    let end = from.highest();
    let mut reached = Position(first_missing.map_or(end.0, |(position, _)| position.0 - 1));
    let mut source = from.follow(reached);
    let mut lanes: HashMap<EntityKey, Lane> = HashMap::new();
    let mut ready: VecDeque<EntityKey> = VecDeque::new();
    let mut flying = FuturesUnordered::new();
    let (mut window, mut window_bytes, mut copied) = (0, 0, batches - missing);
    let mut written = Position(0);
    loop {
        while flying.len() < IN_FLIGHT_MAX
            && let Some(entity) = ready.pop_front()
        {
            let (Some(lane), Some(life)) = (lanes.get_mut(&entity), lives.get(&entity)) else { continue };
            let Some(batch) = lane.waiting.pop_front() else { continue };
            lane.is_flying = true;
            let after = life.after;
            flying.push(async move {
                let stored = store(to, &entity, &batch, after).await;
                (entity, batch, stored)
            });
        }
        let has_room = window < WINDOW_MAX && window_bytes < WINDOW_MAX_BYTES;
        tokio::select! {
            landed = flying.next(), if !flying.is_empty() => {
                let Some((entity, batch, stored)) = landed else { continue };
                window -= 1;
                window_bytes -= batch.payload.len();
                copied += 1;
                progress(Step::Copying(copied, batches));
                let position = stored?;
                written = written.max(position);
                if let Some(life) = lives.get_mut(&entity) {
                    life.after = position;
                    life.version = batch.last();
                }
                if let Some(lane) = lanes.get_mut(&entity) {
                    lane.is_flying = false;
                    match lane.waiting.is_empty() {
                        true => drop(lanes.remove(&entity)),
                        false => ready.push_back(entity),
                    }
                }
            }
            read = timeout(Duration::from_millis(READ_MS), source.next()), if has_room && reached < end => {
                let Committed { entity, batch } = match read {
                    Ok(Some(read)) => read.map_err(MigrationError::Source)?,
                    Ok(None) | Err(_) => return Err(MigrationError::Stalled),
                };
                reached = batch.position;
                if lives.get(&entity).is_some_and(|life| batch.last() <= life.version) {
                    continue;
                }
                window += 1;
                window_bytes += batch.payload.len();
                let lane = lanes.entry(entity.clone()).or_default();
                if lane.waiting.is_empty() && !lane.is_flying {
                    ready.push_back(entity);
                }
                lane.waiting.push_back(batch);
            }
            else => return Ok(written),
        }
    }
}

/// Writes one batch, and does not leave it unknown whether it is there.
async fn store(to: &dyn Journal, entity: &EntityKey, batch: &Batch, after: Position) -> Result<Position, MigrationError> {
    let version = batch.first;
    let failed = |what: String| MigrationError::NotWritten { entity: entity.clone(), version, what };
    let wake = wake_of(&batch.payload).map_err(|error| MigrationError::Payload {
        entity: entity.clone(),
        version,
        what: error.to_string(),
    })?;
    let mut tries = 1;
    loop {
        let append = Append {
            entity: entity.clone(),
            expected: version - 1,
            after,
            count: batch.count,
            payload: batch.payload.clone(),
            wake,
        };
        let (done, landed) = oneshot::channel();
        to.append(append, Box::new(move |result| drop(done.send(result))));
        let landed = timeout(Duration::from_millis(WRITE_MS), landed).await;
        let error = match landed.unwrap_or(Ok(Err(AppendError::Unknown("nothing was heard of it".into())))) {
            Ok(Ok(position)) => return Ok(position),
            Ok(Err(error)) => error,
            Err(_) => AppendError::Unknown("the journal forgot it".into()),
        };
        if !matches!(error, AppendError::NotWritten(_)) {
            // What is there now says what became of it; or of an earlier try.
            match to.read(entity, version, after, 1).await.map(|found| found.into_iter().next()) {
                Ok(Some(found)) if (found.first, found.count) == (version, batch.count) && found.payload == batch.payload => {
                    return Ok(found.position);
                }
                Ok(Some(_)) => return Err(MigrationError::Differs { entity: entity.clone(), version }),
                Ok(None) => {}
                Err(error) if tries >= TRIES => return Err(MigrationError::Target(error)),
                Err(_) => {}
            }
        }
        if tries >= TRIES {
            return Err(failed(error.to_string()));
        }
        tracing::debug!(%entity, version, %error, tries, "written again");
        let pause = (PAUSE_MS << tries).min(PAUSE_MAX_MS);
        sleep(Duration::from_millis(pause / 2 + fastrand::u64(..=pause / 2))).await;
        tries += 1;
    }
}

// Agendas -----------------------------------------------------------------------------------------------------------

/// The target's may follow its journal at a distance.
async fn compare_agendas(from: &dyn Journal, to: &dyn Journal) -> Result<(), MigrationError> {
    let begun = Instant::now();
    loop {
        match compare_agendas_now(from, to).await? {
            None => return Ok(()),
            Some(entity) if begun.elapsed() > Duration::from_millis(AGENDA_MS) => return Err(MigrationError::Agenda { entity }),
            Some(_) => sleep(Duration::from_millis(AGENDA_LOOK_MS)).await,
        }
    }
}

/// The first that differs.
async fn compare_agendas_now(from: &dyn Journal, to: &dyn Journal) -> Result<Option<EntityKey>, MigrationError> {
    let mut after: Option<EntityKey> = None;
    loop {
        let should = from.agenda(after.as_ref(), AGENDA_PAGE).await.map_err(MigrationError::Source)?;
        let is = to.agenda(after.as_ref(), AGENDA_PAGE).await.map_err(MigrationError::Target)?;
        let differs = should.iter().zip(&is).find(|(should, is)| should != is).map(|(should, _)| &should.0);
        let longer = || should.get(is.len()).or(is.get(should.len())).map(|(entity, _): &(EntityKey, Wake)| entity);
        if let Some(entity) = differs.or_else(longer) {
            return Ok(Some(entity.clone()));
        }
        match should.last() {
            Some((last, _)) if should.len() == AGENDA_PAGE => after = Some(last.clone()),
            _ => return Ok(None),
        }
    }
}
