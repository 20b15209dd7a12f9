//! The newest state of entities, so that activating one need not replay its whole life.
//!
//! Snapshots are disposable: everything here can be rebuilt from the journal. So nothing is flushed, whatever is torn,
//! missing or wrong is the same as no snapshot, and no failure here may ever stop anything else.
//!
//! sled wants values well below 64 KB, so a larger snapshot is cut into chunks: the head (under the entity's key) says
//! how many there are, their length and checksum; chunk `i` lies under entity key, 0x00, `i` (u32, big endian). Chunks
//! are written before their head, beside those of the snapshot before it: who dies while writing leaves that one whole.
//! The checksum decides: a reader that meets the chunks of another version finds nothing.
//!
//! In a cluster there is a second layer that all nodes see (`shared_snapshots.rs`): written after this one, and read by
//! whoever finds that there would be much to replay.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::journal::{EntityKey, Position, Version};
use super::shared_snapshots::SharedSnapshots;

const CHUNK_BYTES: usize = 48 * 1024;
/// Far more than an aggregate should hold; such an entity replays instead.
pub(super) const SNAPSHOT_MAX_BYTES: usize = 64 * 1024 * 1024;
/// The same of what is written piece by piece. A message could not bear it: other nodes see none of these past the other bound.
const DRAWN_MAX_BYTES: usize = 256 * 1024 * 1024;
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Younger entities replay as fast from the journal: for them nothing is shared.
const SHARED_FROM_VERSION: Version = 17;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The entity's version that `bytes` are the state of.
    pub version: Version,
    /// Where the batch stands that ends with this version.
    pub position: Position,
    /// Which encoding `bytes` have; whoever does not know it replays.
    pub format: u32,
    pub bytes: Bytes,
}

/// Which state a snapshot is of: all of it but its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Of {
    pub version: Version,
    pub position: Position,
    pub format: u32,
}

pub struct Snapshots {
    /// `None` when the folder cannot be used at all: then there are no snapshots.
    database: Option<sled::Db>,
    shared: Option<SharedSnapshots>,
    /// Large ones are written one at a time: what is on its way is in memory.
    drawing: Mutex<()>,
}

impl Snapshots {
    /// Keeps nothing: every entity is replayed.
    pub fn none() -> Snapshots {
        Snapshots { database: None, shared: None, drawing: Mutex::default() }
    }

    /// Opens the snapshots in `dir`. A folder that sled cannot open is emptied: its content can be rebuilt.
    pub fn open(dir: &Path) -> Snapshots {
        let database = match open_sled(dir) {
            Ok(database) => Some(database),
            // It belongs to a running process: emptying it would take that one's snapshots away.
            Err(reason) if reason.contains("could not acquire lock") => {
                tracing::warn!(dir = %dir.display(), reason, "the snapshots are in use by another process: there will be none");
                None
            }
            Err(reason) => {
                tracing::warn!(dir = %dir.display(), reason, "the snapshots cannot be opened and are started afresh");
                let opened = std::fs::remove_dir_all(dir).map_err(|e| e.to_string()).and_then(|()| open_sled(dir));
                opened.inspect_err(|reason| tracing::warn!(dir = %dir.display(), reason, "there will be no snapshots")).ok()
            }
        };
        Snapshots { database, shared: None, drawing: Mutex::default() }
    }

    /// With what all nodes see under them.
    pub fn over(self, shared: SharedSnapshots) -> Snapshots {
        Snapshots { shared: Some(shared), ..self }
    }

    /// Replaces the entity's snapshot. A failure is only logged: the entity then replays more.
    pub fn put(&self, entity: &EntityKey, snapshot: &Snapshot) {
        if let Some(shared) = &self.shared
            && snapshot.version >= SHARED_FROM_VERSION
        {
            shared.put(entity, snapshot);
        }
        self.put_here(entity, snapshot);
    }

    /// The same with bytes that `write` writes, piece by piece, so that they are never in memory as a whole unless other nodes
    /// are to see them. Says how many there are. Blocks for as long as that takes.
    pub fn draw(
        &self,
        entity: &EntityKey,
        of: Of,
        write: impl FnOnce(&mut dyn Write) -> Result<(), serde_json::Error>,
    ) -> Option<usize> {
        let _one = self.drawing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = self.shared.as_ref().filter(|_| of.version >= SHARED_FROM_VERSION) {
            let mut bytes = Vec::new();
            let written = write(&mut bytes);
            written.inspect_err(|error| tracing::warn!(%entity, %error, "the snapshot cannot be written")).ok()?;
            let Of { version, position, format } = of;
            let snapshot = Snapshot { version, position, format, bytes: bytes.into() };
            shared.put(entity, &snapshot);
            let database = self.database.as_ref()?;
            return self.write_here(database, entity, of, |out| out.write_all(&snapshot.bytes));
        }
        let database = self.database.as_ref()?;
        self.write_here(database, entity, of, |out| write(out).map_err(io::Error::from))
    }

    fn put_here(&self, entity: &EntityKey, snapshot: &Snapshot) {
        let Some(database) = &self.database else { return };
        let Snapshot { version, position, format, ref bytes } = *snapshot;
        if bytes.len() > SNAPSHOT_MAX_BYTES {
            tracing::warn!(%entity, version, bytes = bytes.len(), "this snapshot cannot be stored");
            return;
        }
        self.write_here(database, entity, Of { version, position, format }, |out| out.write_all(bytes));
    }

    fn write_here(
        &self,
        database: &sled::Db,
        entity: &EntityKey,
        of: Of,
        write: impl FnOnce(&mut Pieces<'_>) -> io::Result<()>,
    ) -> Option<usize> {
        let written = unpanicked(|| {
            if entity.as_str().contains('\0') {
                return Err("its key has a NUL".to_owned());
            }
            let mut pieces = Pieces::begin(database, entity, of).map_err(|e| e.to_string())?;
            write(&mut pieces).and_then(|()| pieces.end()).map_err(|e| e.to_string())
        });
        let warn = |reason: &String| tracing::warn!(%entity, version = of.version, reason, "the snapshot was not stored");
        written.inspect_err(warn).ok()
    }

    /// A snapshot that another node wrote, if there is one of a newer version than this; it is then here as well. Waits for
    /// NATS, if only for a moment.
    pub async fn newer(&self, entity: &EntityKey, than: Version) -> Option<Snapshot> {
        let found = self.shared.as_ref()?.newer(entity, than).await?;
        self.put_here(entity, &found);
        Some(found)
    }

    /// Waits until nothing waits to be shared any more, and says whether it came to that.
    pub async fn flush(&self, deadline: Duration) -> bool {
        match &self.shared {
            Some(shared) => shared.flush(deadline).await,
            None => true,
        }
    }

    /// This node's own.
    pub fn get(&self, entity: &EntityKey) -> Option<Snapshot> {
        let database = self.database.as_ref()?;
        let found = unpanicked(|| read(database, entity));
        found.unwrap_or_else(|reason| {
            tracing::debug!(%entity, reason, "the snapshot is not usable");
            None
        })
    }

    pub fn remove(&self, entity: &EntityKey) {
        let Some(database) = &self.database else { return };
        let remove = || {
            let value = database.remove(entity.as_str())?;
            let mut chunks = value.and_then(|value| chunks_of(entity, &value)).into_iter().flatten();
            chunks.try_for_each(|key| database.remove(key).map(drop))
        };
        if let Err(reason) = unpanicked(|| remove().map_err(|e: sled::Error| e.to_string())) {
            tracing::warn!(%entity, reason, "the snapshot was not removed");
        }
    }
}

fn open_sled(dir: &Path) -> Result<sled::Db, String> {
    let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).mode(sled::Mode::HighThroughput);
    unpanicked(|| config.open().map_err(|e| e.to_string()))
}

/// sled 0.34 panics on some kinds of damage; here that is an error like any other.
fn unpanicked<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err("sled panicked".into()))
}

pub(super) struct Head {
    pub version: Version,
    pub position: Position,
    pub format: u32,
    pub len: u32,
    pub crc: u32,
}

impl Head {
    /// Version, position, format, length, checksum.
    pub const BYTES: usize = 8 + 8 + 4 + 4 + 4;

    pub fn of(entity: &EntityKey, snapshot: &Snapshot) -> Head {
        let Snapshot { version, position, format, ref bytes } = *snapshot;
        Head { version, position, format, len: bytes.len() as u32, crc: checksum(entity, snapshot) }
    }

    fn chunks(&self) -> u32 {
        let len = self.len as usize;
        if len <= CHUNK_BYTES { 0 } else { len.div_ceil(CHUNK_BYTES) as u32 }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut head = Vec::with_capacity(Head::BYTES);
        head.extend_from_slice(&self.version.to_le_bytes());
        head.extend_from_slice(&self.position.0.to_le_bytes());
        head.extend_from_slice(&self.format.to_le_bytes());
        head.extend_from_slice(&self.len.to_le_bytes());
        head.extend_from_slice(&self.crc.to_le_bytes());
        head
    }

    pub fn decode(bytes: &[u8]) -> Option<Head> {
        let (version, rest) = bytes.split_first_chunk()?;
        let (position, rest) = rest.split_first_chunk()?;
        let (format, rest) = rest.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let crc = rest.first_chunk()?;
        Some(Head {
            version: u64::from_le_bytes(*version),
            position: Position(u64::from_le_bytes(*position)),
            format: u32::from_le_bytes(*format),
            len: u32::from_le_bytes(*len),
            crc: u32::from_le_bytes(*crc),
        })
    }
}

pub(super) fn checksum(entity: &EntityKey, snapshot: &Snapshot) -> u32 {
    let Snapshot { version, position, format, ref bytes } = *snapshot;
    let mut hasher = hasher(entity, Of { version, position, format });
    hasher.update(bytes);
    hasher.finalize()
}

/// Of all but the bytes.
fn hasher(entity: &EntityKey, of: Of) -> crc32fast::Hasher {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(entity.as_str().as_bytes());
    hasher.update(&of.version.to_le_bytes());
    hasher.update(&of.position.0.to_le_bytes());
    hasher.update(&of.format.to_le_bytes());
    hasher
}

/// Where the chunks of one snapshot lie: two sets, of which one is free while the other is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Side(bool);

impl Side {
    /// Said after the head, when there are chunks.
    fn of(value: &[u8]) -> Side {
        Side(value.get(Head::BYTES).is_some_and(|side| *side != 0))
    }
}

fn chunk_key(entity: &EntityKey, Side(other): Side, index: u32) -> Vec<u8> {
    let mut key = Vec::from(entity.as_str());
    key.push(0);
    key.extend_from_slice(&(index | (u32::from(other) << 31)).to_be_bytes());
    key
}

/// The keys of the chunks that belong to this value of a head; `None` when it is none.
fn chunks_of<'a>(entity: &'a EntityKey, value: &[u8]) -> Option<impl Iterator<Item = Vec<u8>> + use<'a>> {
    let side = Side::of(value);
    Some((0..Head::decode(value)?.chunks()).map(move |index| chunk_key(entity, side, index)))
}

/// A snapshot on its way to the disk.
struct Pieces<'a> {
    database: &'a sled::Db,
    entity: &'a EntityKey,
    of: Of,
    /// What is replaced.
    before: Option<sled::IVec>,
    side: Side,
    chunks: u32,
    /// Of the chunk to come.
    bytes: Vec<u8>,
    len: usize,
    hasher: crc32fast::Hasher,
}

impl<'a> Pieces<'a> {
    fn begin(database: &'a sled::Db, entity: &'a EntityKey, of: Of) -> sled::Result<Self> {
        let before = database.get(entity.as_str())?;
        let Side(taken) = before.as_deref().map_or(Side(true), Side::of);
        let (side, hasher) = (Side(!taken), hasher(entity, of));
        Ok(Pieces { database, entity, of, before, side, chunks: 0, bytes: Vec::new(), len: 0, hasher })
    }

    fn put_chunk(&mut self) -> io::Result<()> {
        self.database.insert(chunk_key(self.entity, self.side, self.chunks), self.bytes.as_slice())?;
        self.bytes.clear();
        self.chunks += 1;
        Ok(())
    }

    /// From here on it is the entity's snapshot. Says how large it is.
    fn end(mut self) -> io::Result<usize> {
        let Of { version, position, format } = self.of;
        let head = Head { version, position, format, len: self.len as u32, crc: self.hasher.clone().finalize() };
        let mut value = head.encode();
        if self.chunks == 0 && self.len <= CHUNK_BYTES {
            value.extend_from_slice(&self.bytes);
        } else {
            if !self.bytes.is_empty() {
                self.put_chunk()?;
            }
            value.push(u8::from(self.side.0));
        }
        self.database.insert(self.entity.as_str(), value)?;
        for key in self.before.iter().filter_map(|before| chunks_of(self.entity, before)).flatten() {
            self.database.remove(key)?;
        }
        Ok(self.len)
    }
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.len + bytes.len() > DRAWN_MAX_BYTES {
            return Err(io::Error::other(format!("it is larger than {DRAWN_MAX_BYTES} bytes")));
        }
        // A chunk is put when something comes after it: what fits into one stays with its head.
        if self.bytes.len() == CHUNK_BYTES && !bytes.is_empty() {
            self.put_chunk()?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.bytes.len());
        let (bytes, _) = bytes.split_at(taken);
        self.bytes.extend_from_slice(bytes);
        self.hasher.update(bytes);
        self.len += taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read(database: &sled::Db, entity: &EntityKey) -> Result<Option<Snapshot>, String> {
    let Some(value) = database.get(entity.as_str()).map_err(|e| e.to_string())? else { return Ok(None) };
    let head = Head::decode(&value).ok_or("its head is cut")?;
    let mut bytes = Vec::with_capacity((head.len as usize).min(DRAWN_MAX_BYTES));
    if head.chunks() == 0 {
        bytes.extend_from_slice(&value[Head::BYTES..]);
    } else {
        for (index, key) in chunks_of(entity, &value).into_iter().flatten().enumerate() {
            let chunk = database.get(key).map_err(|e| e.to_string())?;
            bytes.extend_from_slice(&chunk.ok_or_else(|| format!("chunk {index} is missing"))?);
        }
    }
    let snapshot = Snapshot { version: head.version, position: head.position, format: head.format, bytes: bytes.into() };
    if snapshot.bytes.len() != head.len as usize || checksum(entity, &snapshot) != head.crc {
        return Err("its checksum does not match".into());
    }
    Ok(Some(snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> EntityKey {
        EntityKey::new("cart", id)
    }

    fn snapshot(version: Version, format: u32, bytes: Vec<u8>) -> Snapshot {
        Snapshot { version, position: Position(version + 1_000), format, bytes: bytes.into() }
    }

    fn pattern(len: usize, seed: usize) -> Vec<u8> {
        (0..len).map(|i| ((i * 31 + seed) % 251) as u8).collect()
    }

    #[test]
    fn snapshots_of_every_size_come_back_also_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let sizes = [0, 1, 1_000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES, 1_000_000];
        let check = |snapshots: &Snapshots| {
            for size in sizes {
                let found = snapshots.get(&key(&size.to_string())).unwrap();
                assert!(found == snapshot(size as u64 + 1, 3, pattern(size, size)), "{size}");
            }
            assert_eq!(snapshots.get(&key("unknown")), None);
        };
        let snapshots = Snapshots::open(dir.path());
        for size in sizes {
            snapshots.put(&key(&size.to_string()), &snapshot(size as u64 + 1, 3, pattern(size, size)));
        }
        check(&snapshots);
        drop(snapshots);
        check(&Snapshots::open(dir.path()));
    }

    #[test]
    fn a_newer_snapshot_replaces_an_older_whole_whichever_is_larger() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path());
        for (version, size) in [(1, 200_000), (2, 60_000), (3, 10), (4, 100_000)] {
            snapshots.put(&key("a"), &snapshot(version, 1, pattern(size, version as usize)));
            let found = snapshots.get(&key("a")).unwrap();
            assert_eq!((found.version, found.bytes.len()), (version, size));
            let values = 1 + if size > CHUNK_BYTES { size.div_ceil(CHUNK_BYTES) } else { 0 };
            assert_eq!(snapshots.database.as_ref().unwrap().len(), values, "no chunks are left behind");
        }
        snapshots.remove(&key("a"));
        assert_eq!(snapshots.get(&key("a")), None);
        assert!(snapshots.database.as_ref().unwrap().is_empty());
    }

    #[test]
    fn whatever_is_torn_missing_or_wrong_is_no_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path());
        let database = snapshots.database.as_ref().unwrap();
        let whole = || snapshots.put(&key("a"), &snapshot(7, 1, pattern(100_000, 1)));
        let chunk = |index| {
            let head = database.get(key("a").as_str()).unwrap().unwrap();
            chunks_of(&key("a"), &head).unwrap().nth(index).unwrap()
        };
        let harms: [&dyn Fn(); 5] = [
            &|| drop(database.remove(chunk(1)).unwrap()),
            &|| drop(database.insert(chunk(0), pattern(CHUNK_BYTES, 2)).unwrap()),
            &|| drop(database.insert(chunk(2), &b"short"[..]).unwrap()),
            &|| drop(database.insert(key("a").as_str(), &b"cut"[..]).unwrap()),
            &|| {
                let mut head = database.get(key("a").as_str()).unwrap().unwrap().to_vec();
                head[0] ^= 1;
                database.insert(key("a").as_str(), head).unwrap();
            },
        ];
        for (index, harm) in harms.iter().enumerate() {
            whole();
            assert!(snapshots.get(&key("a")).is_some());
            harm();
            assert_eq!(snapshots.get(&key("a")), None, "harm {index}");
        }
    }

    #[test]
    fn a_folder_that_sled_cannot_open_is_started_afresh() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("snapshots");
        let snapshots = Snapshots::open(&dir);
        snapshots.put(&key("a"), &snapshot(1, 1, b"state".to_vec()));
        drop(snapshots);
        std::fs::write(dir.join("conf"), b"not a configuration").unwrap();
        let snapshots = Snapshots::open(&dir);
        snapshots.put(&key("b"), &snapshot(1, 1, b"state".to_vec()));
        assert!(snapshots.get(&key("b")).is_some());
    }

    #[test]
    fn one_that_is_cut_off_while_it_is_written_leaves_the_one_before_it_whole() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path());
        let of = |version| Of { version, position: Position(version + 1_000), format: 1 };
        let draw = |version, size: usize, pieces: usize| {
            snapshots.draw(&key("a"), of(version), |out| {
                for piece in pattern(size, version as usize).chunks(1_000).take(pieces) {
                    out.write_all(piece).map_err(serde_json::Error::io)?;
                }
                if pieces < size / 1_000 { Err(serde_json::Error::io(io::Error::other("cut"))) } else { Ok(()) }
            })
        };
        for (version, size) in [(1, 300_000), (3, 200_000), (5, 10_000), (7, 400_000)] {
            assert_eq!(draw(version, size, size), Some(size));
            assert_eq!(draw(version + 1, 500_000, 250), None);
            let found = snapshots.get(&key("a")).unwrap();
            assert!(found == snapshot(version, 1, pattern(size, version as usize)), "{version}");
        }
    }
}
