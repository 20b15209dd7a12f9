//! The journal of a single node: one fjall database in the node's data folder, written by one thread.
//!
//! Roles. Callers put batches in a queue. The writer thread drains all that waits, checks each batch against its
//! entity's version, writes what passes as one atomic fjall batch, flushes it with one `fdatasync`, and only then
//! publishes it to followers and calls the `done`s. Then it makes `room` for the writes to come. The queue needs no bound of
//! its own: an entity has at most one write in flight, so the callers' admission bounds it.
//!
//! It must never answer "stored" before the flush, never store half of a batch, and never start on a journal from which
//! acknowledged records are missing.
//!
//! What is promised about damage, and where the promise ends:
//!
//! - A torn tail (the one group that was being written when the power failed) is cut off on opening, kept in
//!   `torn-tail`, logged and reported. No batch before it is touched, none of it is half there.
//! - Damage to what fjall has not yet moved into its tables refuses to open and names file and byte: `write_ahead` reads
//!   all of it first, because fjall would cut it off silently. A refusal for this reason changes nothing on the disk.
//! - A journal that ends before `acknowledged` refuses to open, also when whole files are gone. The mark survives a
//!   killed process exactly; a power failure may leave an older one. So one case remains open: damage to the very last
//!   group, and to nothing else, together with a power failure less than about 30 s after it, looks like a torn tail.
//! - On opening, the index is checked for holes from the write-ahead files on, and the newest batches are read back.
//!   Damage to older tables is noticed when they are read: the reader gets `Corrupt` with the place, a follower ends
//!   with it, an append to that entity is refused. It is never skipped.
//! - Not noticed: a flipped bit in fjall's own number of a batch in the write-ahead files, where fjall has no checksum,
//!   as long as the order stays right. The records themselves and their positions are checked all the same.
//!
//! Only one process can read it. fjall has no read-only mode: opening replays *and truncates* the write-ahead files, so
//! neither the folder of a running node nor hard links to its files may be opened by another process, and a plain copy
//! may miss tables that a compaction removed meanwhile. Ask the running node (over HTTP), or `open` the folder of a
//! stopped one.
//!
//! Layout, in the folder `dir`:
//!
//! - `lock`: held while the journal is open, so that no second process opens it.
//! - `acknowledged`: the newest position whose `done` may have been called, see below.
//! - `fjall/`: the database, with three key spaces:
//!   - `entities`: entity key, 0x00, first version (u64, big endian) → CRC32, position, count, wake, payload. Several
//!     batches of one entity lie side by side, so an activation is one seek. The CRC covers the key too. A large payload
//!     is packed by LZ4, and the highest bit of the count says so: a hot entity's records are alike, and what is written,
//!     flushed and moved into tables is then a fraction of them.
//!   - `positions`: last position of a group (u64, big endian) → CRC32 and the keys in `entities` of all batches of the
//!     group, in order. A group is all that shared one flush: one index entry for each flush, not for each batch.
//!   - `agenda`: entity key → wake, for entities whose newest batch asked to be woken.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Slice};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::{Semaphore, watch};

use super::journal::{
    Agenda, Append, AppendError, Batch, Committed, Done, EntityKey, Journal, PAYLOAD_MAX_BYTES, Position, ReadError, Version,
    Wake,
};
use super::room::{self, Room};
use super::write_ahead;
use crate::domain::Timestamp;

/// fjall stores a key's length in 16 bits; ours stay far from that.
const ENTITY_KEY_MAX_BYTES: usize = 1_024;
/// CRC32, position, count, wake.
const FRAME_HEAD_BYTES: usize = 4 + 8 + 4 + 8;
/// In a stored count: the payload is its size (u32, little endian) and an LZ4 block.
const PACKED: u32 = 1 << 31;
/// Smaller payloads are stored as they are: a single record has little in it that repeats.
const PACKED_FROM_BYTES: usize = 2 * 1024;
/// A follower that reads from the disk takes this much at a time.
const CHUNK_BATCHES: usize = 512;
const CHUNK_BYTES: usize = 1024 * 1024;
/// Blocking reads at once; more would only queue at the disk.
const CONCURRENT_READS: usize = 16;
const SPACE_CHECK_EVERY: Duration = Duration::from_secs(1);
const SPACE_CHECK_BYTES: usize = 8 * 1024 * 1024;
/// While the disk is full, how soon it is looked at again.
const SPACE_RECHECK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
pub struct Options {
    /// Appends are refused while less than this is free, so that fjall can still flush what it holds in memory.
    pub disk_reserve_bytes: u64,
    /// What followers can be served from memory.
    pub ring_batches: usize,
    pub ring_bytes: usize,
    /// What shares one flush at most; a bound on how long the first of a group waits for the last.
    pub group_batches: usize,
    pub group_bytes: usize,
    /// Entities whose version is remembered, in each of two generations.
    pub known_entities: usize,
    /// How many of the newest batches are read back on opening.
    pub verify_batches: usize,
    pub memtable_bytes: u64,
    pub block_cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            disk_reserve_bytes: 64 * 1024 * 1024,
            ring_batches: 16_384,
            ring_bytes: 16 * 1024 * 1024,
            group_batches: 1_024,
            group_bytes: 4 * 1024 * 1024,
            known_entities: 65_536,
            verify_batches: 1_024,
            memtable_bytes: 64 * 1024 * 1024,
            block_cache_bytes: 32 * 1024 * 1024,
        }
    }
}

/// What opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    pub highest: Position,
    /// What was put right, in words for the log and the operator.
    pub repairs: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the journal in {} is in use by another process", dir.display())]
    InUse { dir: PathBuf },
    /// Records are missing or damaged.
    #[error("the journal is corrupt at {place}: {what}")]
    Corrupt { place: String, what: String },
    #[error("{doing}: {source}")]
    Io { doing: String, source: io::Error },
}

fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
    let doing = doing.into();
    move |source| OpenError::Io { doing, source }
}

fn corrupt(place: impl Into<String>, what: impl Into<String>) -> ReadError {
    ReadError::Corrupt { place: place.into(), what: what.into() }
}

fn from_engine(place: &str, error: fjall::Error) -> ReadError {
    use fjall::LsmError;
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)) => {
            ReadError::Unreadable(format!("{place}: {error}"))
        }
        fjall::Error::Poisoned => ReadError::Unreadable(format!("{place}: the storage engine stopped after a failure")),
        other => corrupt(place, format!("{other:?}")),
    }
}

// ---------------------------------------------------------------------------------------------- encoding

const WAKE_NOW: i64 = i64::MIN;
const WAKE_NEVER: i64 = i64::MAX;

fn wake_to_i64(wake: Wake) -> i64 {
    match wake {
        Wake::Now => WAKE_NOW,
        Wake::At(moment) => moment.as_millis(),
        Wake::Never => WAKE_NEVER,
    }
}

fn wake_from_i64(wake: i64) -> Wake {
    match wake {
        WAKE_NOW => Wake::Now,
        WAKE_NEVER => Wake::Never,
        millis => Wake::At(Timestamp::from_millis(millis)),
    }
}

fn record_key(entity: &EntityKey, first: Version) -> Vec<u8> {
    let text = entity.as_str().as_bytes();
    let mut key = Vec::with_capacity(text.len() + 9);
    key.extend_from_slice(text);
    key.push(0);
    key.extend_from_slice(&first.to_be_bytes());
    key
}

/// For messages: `cart/c1@7`.
fn place_of(key: &[u8]) -> String {
    match split_record_key(key) {
        Some((entity, first)) => format!("{entity}@{first}"),
        None => format!("the key {:?}", String::from_utf8_lossy(key)),
    }
}

fn split_record_key(key: &[u8]) -> Option<(EntityKey, Version)> {
    let (rest, first) = key.split_last_chunk::<8>()?;
    let text = std::str::from_utf8(rest.strip_suffix(&[0])?).ok()?;
    Some((EntityKey::parse(text)?, u64::from_be_bytes(*first)))
}

/// What a value in `entities` holds besides its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    position: Position,
    count: u32,
    wake: i64,
    is_packed: bool,
}

/// The payload as it is to be stored, if that is worth it.
fn pack(payload: &[u8]) -> Option<Vec<u8>> {
    let packed = (payload.len() >= PACKED_FROM_BYTES).then(|| lz4_flex::block::compress_prepend_size(payload));
    packed.filter(|packed| packed.len() < payload.len())
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    let (size, block) = packed.split_first_chunk::<4>().ok_or("the packed payload is cut")?;
    let size = u32::from_le_bytes(*size) as usize;
    if size > PAYLOAD_MAX_BYTES {
        return Err(format!("a packed payload of {size} bytes"));
    }
    match lz4_flex::block::decompress(block, size) {
        Ok(payload) if payload.len() == size => Ok(payload),
        Ok(payload) => Err(format!("{} bytes were packed, not {size}", payload.len())),
        Err(error) => Err(error.to_string()),
    }
}

fn encode_frame(key: &[u8], head: Head, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_HEAD_BYTES + payload.len());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&head.position.0.to_le_bytes());
    let count = if head.is_packed { head.count | PACKED } else { head.count };
    frame.extend_from_slice(&count.to_le_bytes());
    frame.extend_from_slice(&head.wake.to_le_bytes());
    frame.extend_from_slice(payload);
    let crc = checksum(key, &frame[4..]);
    frame[..4].copy_from_slice(&crc.to_le_bytes());
    frame
}

fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(rest);
    hasher.finalize()
}

/// The head of a frame whose checksum is right.
fn decode_frame(key: &[u8], frame: &[u8]) -> Result<Head, ReadError> {
    let head: &[u8; FRAME_HEAD_BYTES] =
        frame.first_chunk().ok_or_else(|| corrupt(place_of(key), format!("only {} bytes are left", frame.len())))?;
    let [c0, c1, c2, c3, p0, p1, p2, p3, p4, p5, p6, p7, n0, n1, n2, n3, w0, w1, w2, w3, w4, w5, w6, w7] = *head;
    if checksum(key, &frame[4..]) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(corrupt(place_of(key), "the checksum does not match"));
    }
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    Ok(Head {
        position: Position(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
        count: count & !PACKED,
        is_packed: count & PACKED != 0,
        wake: i64::from_le_bytes([w0, w1, w2, w3, w4, w5, w6, w7]),
    })
}

fn decode_batch(key: &[u8], frame: &[u8]) -> Result<(EntityKey, Batch, Wake), ReadError> {
    let (entity, first) = split_record_key(key).ok_or_else(|| corrupt(place_of(key), "not a record's key"))?;
    let head = decode_frame(key, frame)?;
    if head.count == 0 {
        return Err(corrupt(place_of(key), "a batch without records"));
    }
    if first.checked_add(u64::from(head.count)).is_none() {
        return Err(corrupt(place_of(key), "a batch of impossible versions"));
    }
    let stored = &frame[FRAME_HEAD_BYTES..];
    let payload = match head.is_packed {
        true => unpack(stored).map_err(|what| corrupt(place_of(key), what))?.into(),
        false => Bytes::copy_from_slice(stored),
    };
    Ok((entity, Batch { first, count: head.count, position: head.position, payload }, wake_from_i64(head.wake)))
}

/// For the look at fjall's write-ahead files: `None` when the item is not one of `entities`. The other key spaces have
/// keys of 8 bytes (`positions`) or values of 8 bytes (`agenda`).
pub(super) fn frame_position(key: &[u8], value: &[u8]) -> Option<Result<Position, ReadError>> {
    let is_record = key.len() > 8 && value.len() >= FRAME_HEAD_BYTES;
    is_record.then(|| decode_frame(key, value).map(|head| head.position))
}

/// The index entry of a group: which keys were written at positions `last - n + 1 ..= last`.
struct Group {
    first: u64,
    last: u64,
    keys: Vec<Vec<u8>>,
}

fn encode_group(last: u64, keys: &[Vec<u8>]) -> Vec<u8> {
    let mut value = vec![0; 4];
    for key in keys {
        // Fits: entity keys are at most ENTITY_KEY_MAX_BYTES long.
        value.extend_from_slice(&(key.len() as u16).to_le_bytes());
        value.extend_from_slice(key);
    }
    let crc = checksum(&last.to_be_bytes(), &value[4..]);
    value[..4].copy_from_slice(&crc.to_le_bytes());
    value
}

fn decode_group(key: &[u8], value: &[u8]) -> Result<Group, ReadError> {
    let last =
        key.try_into().map(u64::from_be_bytes).map_err(|_| corrupt("the index of positions", "a key is not 8 bytes long"))?;
    let place = || format!("position {last}");
    let (crc, mut rest) = value.split_first_chunk::<4>().ok_or_else(|| corrupt(place(), "the index entry is cut"))?;
    if checksum(key, rest) != u32::from_le_bytes(*crc) {
        return Err(corrupt(place(), "the checksum of the index entry does not match"));
    }
    let mut keys = Vec::new();
    while let Some((len, tail)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*len));
        let (key, tail) = tail.split_at_checked(len).ok_or_else(|| corrupt(place(), "the index entry is cut"))?;
        keys.push(key.to_vec());
        rest = tail;
    }
    let end = last.checked_add(1);
    let first = end.and_then(|end| end.checked_sub(keys.len() as u64)).filter(|first| *first > 0 && !keys.is_empty());
    let first = first.ok_or_else(|| corrupt(place(), "the index entry names an impossible number of batches"))?;
    Ok(Group { first, last, keys })
}

// ---------------------------------------------------------------------------------------------- the database

#[derive(Clone)]
struct Store {
    database: Database,
    entities: Keyspace,
    positions: Keyspace,
    agenda: Keyspace,
}

/// An entity's newest batch: its last version, its wake, and where it stands.
struct Newest {
    version: Version,
    wake: i64,
    position: Position,
}

impl Store {
    fn open(dir: &Path, options: &Options) -> fjall::Result<Store> {
        let database = Database::builder(dir)
            .manual_journal_persist(true)
            // Our inspection of the write-ahead files reads them as they are; fjall still compresses its tables.
            .journal_compression(CompressionType::None)
            .cache_size(options.block_cache_bytes)
            .worker_threads(2)
            .open()?;
        let space = || KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes).manual_journal_persist(true);
        Ok(Store {
            entities: database.keyspace("entities", space)?,
            positions: database.keyspace("positions", space)?,
            agenda: database.keyspace("agenda", space)?,
            database,
        })
    }

    /// `None` when the entity was never written.
    fn newest(&self, entity: &EntityKey) -> Result<Option<Newest>, ReadError> {
        let range = record_key(entity, 0)..=record_key(entity, Version::MAX);
        let Some(guard) = self.entities.range(range).next_back() else { return Ok(None) };
        let (key, frame) = guard.into_inner().map_err(|e| from_engine(entity.as_str(), e))?;
        let head = decode_frame(&key, &frame)?;
        let (_, first) = split_record_key(&key).ok_or_else(|| corrupt(place_of(&key), "not a record's key"))?;
        Ok(Some(Newest { version: first + u64::from(head.count) - 1, wake: head.wake, position: head.position }))
    }

    /// Most entities that are asked for the first time are new, and to look one key up is far cheaper than to seek.
    fn has_first(&self, entity: &EntityKey) -> Result<bool, ReadError> {
        self.entities.contains_key(record_key(entity, 1)).map_err(|e| from_engine(entity.as_str(), e))
    }

    fn read(&self, entity: &EntityKey, from: Version, limit: usize) -> Result<Vec<Batch>, ReadError> {
        let engine = |e| from_engine(entity.as_str(), e);
        let end = record_key(entity, Version::MAX);
        // The batch that holds `from` may begin before it.
        let mut start = record_key(entity, 0);
        let mut next_version = 1;
        if from <= 1 {
            if !self.has_first(entity)? {
                return Ok(Vec::new());
            }
        } else {
            let before = self.entities.range(start.clone()..=record_key(entity, from)).next_back();
            let Some(before) = before else {
                return match self.newest(entity)? {
                    None => Ok(Vec::new()),
                    Some(_) => Err(corrupt(format!("{entity}@1"), "the first batch is missing")),
                };
            };
            start = before.key().map_err(engine)?.to_vec();
            next_version = split_record_key(&start).map_or(0, |(_, first)| first);
        }
        let mut batches = Vec::new();
        for guard in self.entities.range(start..=end) {
            if batches.len() >= limit {
                break;
            }
            let (key, frame) = guard.into_inner().map_err(engine)?;
            let (_, batch, _) = decode_batch(&key, &frame)?;
            if batch.first != next_version {
                return Err(corrupt(
                    format!("{entity}@{next_version}"),
                    format!("the next batch begins only at version {}", batch.first),
                ));
            }
            next_version = batch.last() + 1;
            if batch.last() >= from {
                batches.push(batch);
            }
        }
        Ok(batches)
    }

    /// Batches after `after` up to `upto`, at most a chunk.
    fn after(&self, after: Position, upto: Position) -> Result<VecDeque<Committed>, ReadError> {
        let mut chunk = VecDeque::new();
        let mut bytes = 0;
        let mut expected = after.0 + 1;
        let range = (Bound::Included(expected.to_be_bytes()), Bound::<[u8; 8]>::Unbounded);
        for guard in self.positions.range(range) {
            let (key, value) = guard.into_inner().map_err(|e| from_engine("the index of positions", e))?;
            let group = decode_group(&key, &value)?;
            if group.first > expected {
                return Err(corrupt(format!("position {expected}"), "it is missing from the index of positions"));
            }
            for (position, key) in (group.first..).zip(&group.keys) {
                if position < expected {
                    continue;
                }
                if position > upto.0 || chunk.len() >= CHUNK_BATCHES || bytes >= CHUNK_BYTES {
                    return Ok(chunk);
                }
                let committed = self.at(Position(position), key)?;
                bytes += committed.batch.payload.len();
                chunk.push_back(committed);
            }
            expected = group.last + 1;
        }
        if expected <= upto.0 {
            return Err(corrupt(format!("position {expected}"), "it is missing from the index of positions"));
        }
        Ok(chunk)
    }

    fn at(&self, position: Position, key: &[u8]) -> Result<Committed, ReadError> {
        let frame = self.entities.get(key).map_err(|e| from_engine(&place_of(key), e))?;
        let frame =
            frame.ok_or_else(|| corrupt(place_of(key), format!("position {} points to it, but it is missing", position.0)))?;
        let (entity, batch, _) = decode_batch(key, &frame)?;
        if batch.position != position {
            return Err(corrupt(place_of(key), format!("it says position {}, its index {}", batch.position.0, position.0)));
        }
        Ok(Committed { entity, batch })
    }

    fn agenda(&self, after: Option<&EntityKey>, limit: usize) -> Result<Agenda, ReadError> {
        let start = match after {
            Some(entity) => Bound::Excluded(entity.as_str().as_bytes()),
            None => Bound::Unbounded,
        };
        let mut entries = Vec::new();
        for guard in self.agenda.range::<&[u8], _>((start, Bound::Unbounded)).take(limit) {
            let (key, value) = guard.into_inner().map_err(|e| from_engine("the agenda", e))?;
            let entity = std::str::from_utf8(&key).ok().and_then(EntityKey::parse);
            let wake = (&*value).try_into().map(i64::from_le_bytes);
            match (entity, wake) {
                (Some(entity), Ok(wake)) => entries.push((entity, wake_from_i64(wake))),
                _ => {
                    return Err(corrupt(
                        format!("the agenda's {:?}", String::from_utf8_lossy(&key)),
                        "not an entry of the agenda",
                    ));
                }
            }
        }
        Ok(entries)
    }

    fn highest(&self) -> Result<Position, ReadError> {
        match self.positions.last_key_value() {
            None => Ok(Position(0)),
            Some(guard) => {
                let (key, value) = guard.into_inner().map_err(|e| from_engine("the index of positions", e))?;
                Ok(Position(decode_group(&key, &value)?.last))
            }
        }
    }

    /// Reads batches back through the index, and so proves that there is no hole among them and that the agenda agrees
    /// with them.
    fn verify(&self, after: Position, upto: Position) -> Result<(), ReadError> {
        let mut at = after;
        while at < upto {
            for Committed { entity, batch } in self.after(at, upto)? {
                at = batch.position;
                let Newest { version, wake, .. } =
                    self.newest(&entity)?.ok_or_else(|| corrupt(entity.as_str(), "its newest batch is missing"))?;
                if version < batch.last() {
                    return Err(corrupt(format!("{entity}@{}", batch.last()), "its newest batch is older than this"));
                }
                let planned = self.agenda.get(entity.as_str()).map_err(|e| from_engine("the agenda", e))?;
                let planned = planned.map_or(Ok(WAKE_NEVER), |value| (&*value).try_into().map(i64::from_le_bytes));
                if planned.ok() != Some(wake) {
                    return Err(corrupt(format!("the agenda's {entity}"), "it disagrees with the entity's newest batch"));
                }
            }
        }
        Ok(())
    }

    /// Proves that the index goes from `after` to `highest` without a hole, without reading the batches.
    fn check_index(&self, after: Position, highest: Position) -> Result<(), ReadError> {
        let mut expected = after.0.max(1);
        let missing = |position| corrupt(format!("position {position}"), "it is missing from the index of positions");
        for guard in self.positions.range(expected.to_be_bytes()..) {
            let (key, value) = guard.into_inner().map_err(|e| from_engine("the index of positions", e))?;
            let group = decode_group(&key, &value)?;
            if group.first > expected {
                return Err(missing(expected));
            }
            expected = group.last + 1;
        }
        if expected <= highest.0 { Err(missing(expected)) } else { Ok(()) }
    }
}

/// fjall creates a database anew where it finds no `version`, and deletes key spaces that it takes for half created.
/// Both are right only while the very first opening has not ended.
fn check_folders(database: &Path, complete: bool, repaired: &mut impl FnMut(String)) -> Result<(), OpenError> {
    let failed = || io_error(format!("reading {}", database.display()));
    fs::create_dir_all(database).map_err(failed())?;
    let spaces = database.join("keyspaces");
    let has_version = database.join("version").try_exists().map_err(failed())?;
    if complete {
        let missing = |path: PathBuf| OpenError::Corrupt { place: path.display().to_string(), what: "it is missing".into() };
        if !has_version {
            return Err(missing(database.join("version")));
        }
        let mut found = 0;
        for entry in fs::read_dir(&spaces).map_err(failed())? {
            let current = entry.map_err(failed())?.path().join("current");
            if !current.try_exists().map_err(failed())? {
                return Err(missing(current));
            }
            found += 1;
        }
        // Ours are three; fjall keeps their names in one of its own.
        if found < 4 {
            return Err(missing(spaces.join("*")));
        }
    } else if !has_version && fs::read_dir(database).map_err(failed())?.next().is_some() {
        let aside = database.with_extension("unfinished");
        fs::rename(database, &aside).map_err(io_error(format!("moving {} aside", database.display())))?;
        fs::create_dir_all(database).map_err(failed())?;
        repaired(format!("the creation of {} had not ended; it was moved to {}", database.display(), aside.display()));
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------- the acknowledged mark

/// The newest acknowledged position, on disk. It is written after each flush and not flushed itself: a killed process
/// loses nothing of it (the page cache survives), a power failure may leave an older one, and it is never ahead of what
/// is durable. Opening refuses a journal that ends before its mark.
struct Mark {
    file: File,
    failed: bool,
}

const MARK_NAME: &str = "acknowledged";

impl Mark {
    fn encode(position: Position) -> [u8; 12] {
        let position = position.0.to_le_bytes();
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&position);
        bytes[8..].copy_from_slice(&checksum(MARK_NAME.as_bytes(), &position).to_le_bytes());
        bytes
    }

    /// `None` when there is no mark or it is damaged.
    fn read(dir: &Path) -> io::Result<Option<Position>> {
        let bytes = match fs::read(dir.join(MARK_NAME)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let position = bytes.first_chunk().map(|b| Position(u64::from_le_bytes(*b)));
        Ok(position.filter(|position| Mark::encode(*position) == *bytes))
    }

    fn open(dir: &Path, position: Position) -> io::Result<Mark> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(MARK_NAME))?;
        let mut mark = Mark { file, failed: false };
        mark.write(position);
        mark.file.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(mark)
    }

    fn write(&mut self, position: Position) {
        if let Err(error) = self.file.write_all_at(&Mark::encode(position), 0)
            && !std::mem::replace(&mut self.failed, true)
        {
            // The batch itself is durable; only a later check of the journal's end is weaker.
            tracing::warn!(%error, "the journal's acknowledged mark cannot be written");
        }
    }
}

// ---------------------------------------------------------------------------------------------- shared between threads

struct Request {
    append: Append,
    done: Done,
}

struct Queue {
    waiting: VecDeque<Request>,
    /// Why nothing is accepted any more.
    refused: Option<String>,
    writer_sleeps: bool,
}

/// The newest batches, for followers that keep up.
struct Ring {
    batches: VecDeque<Committed>,
    bytes: usize,
}

#[derive(Clone, Copy, Default)]
struct Progress {
    highest: Position,
    closed: bool,
}

/// What must stay together until the last read has ended.
struct Opened {
    store: Store,
    // Declared after the store: the folder is free for others only when the database is closed.
    _lock: FolderLock,
}

/// Holds `lock` in the journal's folder.
struct FolderLock(File);

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing alone would not do: a child process that is being started may share the open file for a moment.
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "the journal's folder cannot be unlocked");
        }
    }
}

struct Core {
    dir: PathBuf,
    queue: Mutex<Queue>,
    arrived: Condvar,
    ring: Mutex<Ring>,
    /// `None` once closed. Reads hold it shared, so closing waits for the reads that have begun.
    opened: RwLock<Option<Opened>>,
    progress: watch::Sender<Progress>,
    poison: watch::Sender<Option<String>>,
    reads: Arc<Semaphore>,
    disk_reserve_bytes: AtomicU64,
}

/// A lock whose holder panicked is still good here: every critical section leaves whole values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// Runs `f` on the caller's thread: most activations find everything in memory within microseconds, where a change of
    /// threads costs more than the read itself.
    fn here<T>(&self, f: impl FnOnce(&Store) -> Result<T, ReadError>) -> Result<T, ReadError> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        opened.as_ref().ok_or_else(closed).and_then(|opened| f(&opened.store))
    }

    /// Runs `f` on tokio's blocking threads; `None` when the journal is closed.
    async fn blocking<T: Send + 'static>(
        self: Arc<Core>,
        f: impl FnOnce(&Store) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<Option<T>, ReadError> {
        let permit = self.reads.clone().acquire_owned().await;
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
            opened.as_ref().map(|opened| f(&opened.store)).transpose()
        });
        task.await.unwrap_or_else(|error| Err(ReadError::Unreadable(format!("reading failed: {error}"))))
    }

    /// From memory, when nothing between `after` and the ring's oldest batch has been dropped from it.
    fn recent(&self, after: Position) -> Option<VecDeque<Committed>> {
        let ring = lock(&self.ring);
        let oldest = ring.batches.front()?.batch.position;
        let skip = usize::try_from((after.0 + 1).checked_sub(oldest.0)?).ok()?;
        Some(ring.batches.iter().skip(skip).take(CHUNK_BATCHES).cloned().collect())
    }
}

fn closed() -> ReadError {
    ReadError::Unreadable("the journal is closed".into())
}

/// The embedded journal. Reading and following need a tokio runtime; appending does not.
pub struct Embedded {
    core: Arc<Core>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Embedded {
    /// Opens the journal in `dir`, creating it when there is none. Blocks: call it before the runtime is busy.
    pub fn open(dir: &Path, options: Options) -> Result<(Arc<Embedded>, OpenReport), OpenError> {
        fs::create_dir_all(dir).map_err(io_error(format!("creating {}", dir.display())))?;
        let lock_path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io_error(format!("opening {}", lock_path.display())))?;
        let lock = match lock.try_lock() {
            Ok(()) => FolderLock(lock),
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { dir: dir.to_path_buf() }),
            Err(TryLockError::Error(e)) => return Err(io_error(format!("locking {}", lock_path.display()))(e)),
        };

        let database = dir.join("fjall");
        let mut repairs = Vec::new();
        let mut repaired = |repair: String| {
            tracing::warn!(repair, "the journal was repaired");
            repairs.push(repair);
        };
        let mark_path = dir.join(MARK_NAME);
        let mark_exists = mark_path.try_exists().map_err(io_error(format!("reading {}", mark_path.display())))?;
        let marked = Mark::read(dir).map_err(io_error(format!("reading {}", mark_path.display())))?;
        if mark_exists && marked.is_none() {
            repaired(format!("{} was damaged and is written anew", mark_path.display()));
        }
        check_folders(&database, mark_exists, &mut repaired)?;
        let survey = write_ahead::inspect(&database, marked, &dir.join("torn-tail"), &mut repaired)?;
        // fjall meets damage in places with an assertion; that must refuse to start, not end the process without a word.
        let store = match catch_unwind(AssertUnwindSafe(|| Store::open(&database, &options))) {
            Ok(Ok(store)) => store,
            Ok(Err(fjall::Error::Locked)) => return Err(OpenError::InUse { dir: dir.to_path_buf() }),
            Ok(Err(fjall::Error::Io(e))) => return Err(io_error(format!("opening {}", database.display()))(e)),
            Ok(Err(error)) => {
                return Err(OpenError::Corrupt { place: database.display().to_string(), what: error.to_string() });
            }
            Err(_) => {
                return Err(OpenError::Corrupt {
                    place: database.display().to_string(),
                    what: "the storage engine panicked while opening it".into(),
                });
            }
        };
        let refuse = |error| match error {
            ReadError::Corrupt { place, what } => OpenError::Corrupt { place, what },
            ReadError::Unreadable(what) => io_error(format!("reading {}", database.display()))(io::Error::other(what)),
        };
        let highest = store.highest().map_err(refuse)?;
        if let Some(marked) = marked
            && highest < marked
        {
            return Err(OpenError::Corrupt {
                place: format!("position {}", highest.0 + 1),
                what: format!("the journal ends here, but position {} was acknowledged", marked.0),
            });
        }
        if survey.highest.is_some_and(|written| highest < written) {
            return Err(OpenError::Corrupt {
                place: format!("position {}", highest.0 + 1),
                what: "the storage engine dropped it while opening".into(),
            });
        }
        if !mark_exists && highest > Position(0) {
            repaired(format!("{} was missing and is written anew", mark_path.display()));
        }
        // What fjall replayed must join what it had in its tables without a hole.
        if let Some(first) = survey.first {
            store.check_index(Position(first.0.saturating_sub(1)), highest).map_err(refuse)?;
            store.verify(Position(first.0 - 1), first).map_err(refuse)?;
        }
        store.verify(Position(highest.0.saturating_sub(options.verify_batches as u64)), highest).map_err(refuse)?;
        let mark = Mark::open(dir, highest).map_err(io_error(format!("writing {}", dir.join(MARK_NAME).display())))?;

        let core = Arc::new(Core {
            dir: dir.to_path_buf(),
            queue: Mutex::new(Queue { waiting: VecDeque::new(), refused: None, writer_sleeps: false }),
            arrived: Condvar::new(),
            ring: Mutex::new(Ring { batches: VecDeque::new(), bytes: 0 }),
            opened: RwLock::new(Some(Opened { store: store.clone(), _lock: lock })),
            progress: watch::Sender::new(Progress { highest, closed: false }),
            poison: watch::Sender::new(None),
            reads: Arc::new(Semaphore::new(CONCURRENT_READS)),
            disk_reserve_bytes: AtomicU64::new(options.disk_reserve_bytes),
        });
        let writer = Writer {
            known: Known::new(options.known_entities),
            room: Room::new(database),
            core: core.clone(),
            store,
            options,
            mark,
            highest,
            pending: VecDeque::new(),
            space: Space { checked: None, written: 0, full: None },
        };
        let thread = thread::Builder::new()
            .name("souk-journal".into())
            .spawn(move || writer.run())
            .map_err(io_error("starting the journal's writer"))?;
        let report = OpenReport { highest, repairs };
        Ok((Arc::new(Embedded { core, writer: Mutex::new(Some(thread)) }), report))
    }

    /// Ends with the reason when the disk has failed: nothing can be written any more and the process must exit.
    /// Ends with `None` when the journal is closed first.
    pub fn poisoned(&self) -> impl Future<Output = Option<String>> + Send + 'static {
        // Not by the progress: whoever waits for that is woken by every flush.
        let (mut poison, core) = (self.core.poison.subscribe(), Arc::downgrade(&self.core));
        async move {
            loop {
                let reason = poison.borrow_and_update().clone();
                let closed = core.upgrade().is_none_or(|core| core.progress.borrow().closed);
                if reason.is_some() || closed || poison.changed().await.is_err() {
                    return reason;
                }
            }
        }
    }

    pub fn set_disk_reserve(&self, bytes: u64) {
        self.core.disk_reserve_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Accepts no more, finishes what is queued, ends the followers and frees the folder. Blocks for as long as the
    /// queue takes to be written.
    pub fn close(&self) {
        lock(&self.core.queue).refused.get_or_insert_with(|| "the journal is closed".into());
        self.core.arrived.notify_one();
        let writer = lock(&self.writer).take();
        if let Some(writer) = writer {
            // A `done` that drops the last handle runs on the writer itself, which cannot wait for its own end.
            if writer.thread().id() != thread::current().id() && writer.join().is_err() {
                tracing::error!("the journal's writer panicked");
            }
        }
        self.core.progress.send_modify(|progress| progress.closed = true);
        // For those who wait for either.
        self.core.poison.send_modify(|_| {});
        let opened = self.core.opened.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(opened);
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

impl Journal for Embedded {
    fn append(&self, append: Append, done: Done) {
        let refused = {
            let mut queue = lock(&self.core.queue);
            match &queue.refused {
                Some(reason) => reason.clone(),
                None => {
                    queue.waiting.push_back(Request { append, done });
                    if std::mem::take(&mut queue.writer_sleeps) {
                        self.core.arrived.notify_one();
                    }
                    return;
                }
            }
        };
        done(Err(AppendError::NotWritten(refused)));
    }

    fn read<'a>(
        &'a self,
        entity: &'a EntityKey,
        from: Version,
        _near: Position,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Batch>, ReadError>> {
        Box::pin(std::future::ready(self.core.here(|store| store.read(entity, from, limit))))
    }

    fn newest<'a>(&'a self, entity: &'a EntityKey) -> BoxFuture<'a, Result<Position, ReadError>> {
        let newest = self.core.here(|store| store.newest(entity));
        Box::pin(std::future::ready(newest.map(|newest| newest.map_or(Position(0), |newest| newest.position))))
    }

    fn follow(&self, after: Position) -> BoxStream<'static, Result<Committed, ReadError>> {
        let follower = Follower {
            progress: self.core.progress.subscribe(),
            core: self.core.clone(),
            after,
            chunk: VecDeque::new(),
            ended: false,
        };
        stream::unfold(follower, Follower::next).boxed()
    }

    fn end(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(std::future::ready(Ok(self.highest())))
    }

    fn highest(&self) -> Position {
        self.core.progress.borrow().highest
    }

    fn agenda<'a>(&'a self, after: Option<&'a EntityKey>, limit: usize) -> BoxFuture<'a, Result<Agenda, ReadError>> {
        let (core, after) = (self.core.clone(), after.cloned());
        Box::pin(async move { core.blocking(move |store| store.agenda(after.as_ref(), limit)).await?.ok_or_else(closed) })
    }
}

// ---------------------------------------------------------------------------------------------- following

struct Follower {
    core: Arc<Core>,
    progress: watch::Receiver<Progress>,
    /// The position last taken into `chunk`.
    after: Position,
    chunk: VecDeque<Committed>,
    ended: bool,
}

impl Follower {
    async fn next(mut self) -> Option<(Result<Committed, ReadError>, Follower)> {
        loop {
            if let Some(committed) = self.chunk.pop_front() {
                return Some((Ok(committed), self));
            }
            if self.ended {
                return None;
            }
            let Progress { highest, closed } = *self.progress.borrow_and_update();
            if highest <= self.after {
                if closed || self.progress.changed().await.is_err() {
                    return None;
                }
                continue;
            }
            let after = self.after;
            self.chunk = match self.core.recent(after) {
                Some(chunk) => chunk,
                None => match self.core.clone().blocking(move |store| store.after(after, highest)).await {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => return None,
                    Err(error) => {
                        // What cannot be read is not skipped: the follower sees the error and then the end.
                        self.ended = true;
                        return Some((Err(error), self));
                    }
                },
            };
            match self.chunk.back() {
                Some(last) => self.after = last.batch.position,
                None => return None,
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------- the writer

/// The newest version and wake of entities written lately. Two generations: when the young one is full it becomes the
/// old one, so that memory is bounded and what is in use stays.
struct Known {
    young: HashMap<EntityKey, (Version, i64)>,
    old: HashMap<EntityKey, (Version, i64)>,
    bound: usize,
}

impl Known {
    fn new(bound: usize) -> Self {
        Known { young: HashMap::new(), old: HashMap::new(), bound }
    }

    fn get(&self, entity: &EntityKey) -> Option<(Version, i64)> {
        self.young.get(entity).or_else(|| self.old.get(entity)).copied()
    }

    fn put(&mut self, entity: &EntityKey, version: Version, wake: i64) {
        if self.young.len() >= self.bound {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(entity.clone(), (version, wake));
    }
}

/// What is known of the free disk space.
struct Space {
    checked: Option<Instant>,
    written: usize,
    full: Option<String>,
}

struct Writer {
    core: Arc<Core>,
    store: Store,
    options: Options,
    mark: Mark,
    highest: Position,
    known: Known,
    room: Room,
    pending: VecDeque<Request>,
    space: Space,
}

struct Accepted {
    committed: Committed,
    done: Done,
}

/// A `done` that panics must not take the journal with it.
fn answer(done: Done, result: Result<Position, AppendError>) {
    if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
        tracing::error!("the receiver of a journal write's answer panicked");
    }
}

impl Writer {
    fn run(mut self) {
        while self.wait() {
            let mut bytes = 0;
            let size = |request: &Request| {
                bytes += request.append.payload.len();
                bytes
            };
            let sizes = self.pending.iter().take(self.options.group_batches).map(size);
            let count = sizes.take_while(|bytes| *bytes <= self.options.group_bytes).count().max(1);
            let group: Vec<Request> = self.pending.drain(..count).collect();
            self.write(group);
        }
        self.mark.write(self.highest);
        if let Err(error) = self.mark.file.sync_all() {
            tracing::warn!(%error, "the journal's acknowledged mark cannot be flushed");
        }
    }

    /// Waits for work; `false` when there will be none.
    fn wait(&mut self) -> bool {
        let mut queue = lock(&self.core.queue);
        loop {
            self.pending.append(&mut queue.waiting);
            if !self.pending.is_empty() {
                return true;
            }
            if queue.refused.is_some() {
                return false;
            }
            queue.writer_sleeps = true;
            queue = self.core.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn write(&mut self, group: Vec<Request>) {
        let poisoned = self.core.poison.borrow().clone();
        if let Some(reason) = poisoned.or_else(|| self.disk_full()) {
            for request in group {
                answer(request.done, Err(AppendError::NotWritten(reason.clone())));
            }
            return;
        }
        let mut batch = self.store.database.batch().durability(Some(PersistMode::SyncData));
        let mut keys = Vec::with_capacity(group.len());
        let mut accepted = Vec::with_capacity(group.len());
        let mut bytes = 0;
        for Request { append, done } in group {
            match self.check(&append) {
                Err(error) => answer(done, Err(error)),
                Ok(wake_before) => {
                    let position = Position(self.highest.0 + 1 + accepted.len() as u64);
                    let first = append.expected + 1;
                    let key = record_key(&append.entity, first);
                    let wake = wake_to_i64(append.wake);
                    let packed = pack(&append.payload);
                    let head = Head { position, count: append.count, wake, is_packed: packed.is_some() };
                    let frame = encode_frame(&key, head, packed.as_deref().unwrap_or(&append.payload));
                    // An item in each key space, at most.
                    bytes += frame.len() + 3 * (key.len() + room::ITEM_BYTES);
                    batch.insert(&self.store.entities, Slice::from(&key), frame);
                    if wake != wake_before {
                        let entity = append.entity.as_str();
                        match append.wake {
                            Wake::Never => batch.remove(&self.store.agenda, entity),
                            _ => batch.insert(&self.store.agenda, entity, wake.to_le_bytes()),
                        }
                    }
                    self.known.put(&append.entity, append.expected + u64::from(append.count), wake);
                    keys.push(key);
                    let stored = Batch { first, count: append.count, position, payload: append.payload };
                    accepted.push(Accepted { committed: Committed { entity: append.entity, batch: stored }, done });
                }
            }
        }
        if accepted.is_empty() {
            return;
        }
        self.space.written += bytes;
        let last = Position(self.highest.0 + accepted.len() as u64);
        batch.insert(&self.store.positions, last.0.to_be_bytes(), encode_group(last.0, &keys));
        match catch_unwind(AssertUnwindSafe(|| batch.commit())) {
            Ok(Ok(())) => {
                self.publish(last, accepted);
                self.room.used(bytes);
            }
            // fjall answers this before it writes anything.
            Ok(Err(fjall::Error::Poisoned)) => {
                self.fail("the storage engine's background work failed".into(), accepted, AppendError::NotWritten);
            }
            Ok(Err(error)) => self.fail(format!("the disk failed: {error}"), accepted, AppendError::Unknown),
            Err(_) => self.fail("the storage engine panicked".into(), accepted, AppendError::Unknown),
        }
    }

    fn publish(&mut self, last: Position, accepted: Vec<Accepted>) {
        self.highest = last;
        self.mark.write(last);
        {
            let mut ring = lock(&self.core.ring);
            for Accepted { committed, .. } in &accepted {
                ring.bytes += committed.batch.payload.len();
                ring.batches.push_back(committed.clone());
            }
            while ring.batches.len() > self.options.ring_batches || ring.bytes > self.options.ring_bytes {
                match ring.batches.pop_front() {
                    Some(oldest) => ring.bytes -= oldest.batch.payload.len(),
                    None => break,
                }
            }
        }
        self.core.progress.send_modify(|progress| progress.highest = last);
        for Accepted { committed, done } in accepted {
            answer(done, Ok(committed.batch.position));
        }
    }

    fn fail(&mut self, reason: String, accepted: Vec<Accepted>, error: fn(String) -> AppendError) {
        tracing::error!(reason, "the journal cannot be written any more");
        lock(&self.core.queue).refused = Some(reason.clone());
        self.core.poison.send_replace(Some(reason.clone()));
        for Accepted { done, .. } in accepted {
            answer(done, Err(error(reason.clone())));
        }
    }

    /// The wake of the entity's newest batch, when `append` may be stored on top of it.
    fn check(&self, append: &Append) -> Result<i64, AppendError> {
        let refuse = |what: &str| Err(AppendError::NotWritten(format!("{}: {what}", append.entity)));
        let entity = append.entity.as_str();
        if entity.is_empty() || entity.len() > ENTITY_KEY_MAX_BYTES || entity.contains('\0') {
            return refuse("an entity key must be 1 to 1024 bytes without NUL");
        }
        if append.payload.len() > PAYLOAD_MAX_BYTES {
            return refuse("a batch must be at most 16 MiB");
        }
        if append.count == 0 || append.count >= PACKED || append.expected.checked_add(u64::from(append.count)).is_none() {
            return refuse("a batch must hold at least one record, and not too many");
        }
        let newest = match self.known.get(&append.entity) {
            Some(known) => Some(known),
            None => self.newest(append).map_err(|e| AppendError::NotWritten(e.to_string()))?,
        };
        let (actual, wake) = newest.unwrap_or((0, WAKE_NEVER));
        if actual != append.expected {
            return Err(AppendError::Conflict { expected: append.expected, actual });
        }
        Ok(wake)
    }

    fn newest(&self, append: &Append) -> Result<Option<(Version, i64)>, ReadError> {
        if append.expected == 0 && !self.store.has_first(&append.entity)? {
            return Ok(None);
        }
        Ok(self.store.newest(&append.entity)?.map(|newest| (newest.version, newest.wake)))
    }

    /// Why nothing may be written, when too little is free.
    fn disk_full(&mut self) -> Option<String> {
        let every = if self.space.full.is_some() { SPACE_RECHECK_EVERY } else { SPACE_CHECK_EVERY };
        let due = self.space.checked.is_none_or(|at| at.elapsed() >= every) || self.space.written >= SPACE_CHECK_BYTES;
        if due {
            self.space.checked = Some(Instant::now());
            self.space.written = 0;
            let reserve = self.core.disk_reserve_bytes.load(Ordering::Relaxed);
            let full = match rustix::fs::statvfs(&self.core.dir) {
                Ok(disk) => {
                    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
                    (free < reserve).then(|| format!("disk is full: {free} bytes are free, {reserve} are kept in reserve"))
                }
                Err(error) => Some(format!("disk is full or gone: its free space cannot be read: {error}")),
            };
            match (&self.space.full, &full) {
                (None, Some(reason)) => tracing::error!(reason, "the journal refuses writes"),
                (Some(_), None) => tracing::info!("the journal takes writes again: there is space on the disk"),
                _ => {}
            }
            self.space.full = full;
        }
        self.space.full.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;

    #[test]
    fn a_payload_is_packed_where_that_is_worth_it_and_comes_back_as_it_was() {
        let noise: Vec<u8> = {
            let mut random = fastrand::Rng::with_seed(7);
            std::iter::repeat_with(|| random.u8(..)).take(PACKED_FROM_BYTES * 2).collect()
        };
        let alike = b"{\"type\":\"flash_sale.claimed\"}".repeat(1_000);
        let key = record_key(&EntityKey::new("cart", "x"), 3);
        // (payload, whether it is packed)
        for (payload, is_packed) in [
            (&b""[..], false),
            (&alike[..PACKED_FROM_BYTES - 1], false),
            (&alike[..PACKED_FROM_BYTES], true),
            (&alike, true),
            (&noise, false),
        ] {
            let packed = pack(payload);
            assert_eq!(packed.is_some(), is_packed, "{} bytes", payload.len());
            let head = Head { position: Position(7), count: 2, wake: -1, is_packed };
            let frame = encode_frame(&key, head, packed.as_deref().unwrap_or(payload));
            assert_eq!(decode_frame(&key, &frame).unwrap(), head);
            let (_, batch, _) = decode_batch(&key, &frame).unwrap();
            assert_eq!((batch.count, &batch.payload[..]), (2, payload));
            assert!(!is_packed || frame.len() < payload.len());
        }
    }

    #[test]
    fn a_packed_payload_that_is_cut_or_says_too_much_is_damage() {
        let whole = pack(&b"souk".repeat(PACKED_FROM_BYTES)).unwrap();
        for size in [0_u32, 1, 4 * PACKED_FROM_BYTES as u32 + 1, u32::MAX] {
            let mut wrong = whole.clone();
            wrong[..4].copy_from_slice(&size.to_le_bytes());
            assert!(unpack(&wrong).is_err(), "{size}");
        }
        for cut in 0..whole.len() {
            assert!(unpack(&whole[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn no_stored_bytes_break_their_reader_even_when_their_checksum_is_right() {
        let key = record_key(&EntityKey::new("cart", "x"), 3);
        let head = Head { position: Position(7), count: 2, wake: -1, is_packed: false };
        let frame = encode_frame(&key, head, b"{\"events\":[]}");
        let packed = pack(&b"{\"events\":[]}".repeat(PACKED_FROM_BYTES)).unwrap();
        let packed = encode_frame(&key, Head { is_packed: true, ..head }, &packed);
        let group = encode_group(7, &[key.clone(), key.clone()]);
        // In the corpus, a byte says how long the key is that comes first.
        let input = |key: &[u8], value: &[u8]| [&[key.len() as u8], key, value].concat();
        let good = vec![
            input(&key, &frame),
            input(&key, &packed),
            input(&7_u64.to_be_bytes(), &group),
            input(&u64::MAX.to_be_bytes(), &group),
        ];
        hostile::feed("frames", good, |bytes| {
            let Some((len, rest)) = bytes.split_first() else { return };
            let (key, value) = rest.split_at(rest.len().min(usize::from(*len)));
            let mut sound = value.to_vec();
            if let Some((crc, rest)) = sound.split_first_chunk_mut::<4>() {
                *crc = checksum(key, rest).to_le_bytes();
            }
            for value in [value, &sound] {
                let _ = (split_record_key(key), frame_position(key, value), place_of(key));
                let _ = decode_frame(key, value).map(|head| wake_from_i64(head.wake));
                if let Ok((_, batch, _)) = decode_batch(key, value) {
                    let _ = batch.last();
                }
                if let Ok(group) = decode_group(key, value) {
                    assert!(group.first > 0 && group.first <= group.last);
                }
            }
        });
    }
}
