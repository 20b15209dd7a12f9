//! The newest state of entities, so that activating one need not replay its whole life.
//!
//! Snapshots are disposable: everything here can be rebuilt from the journal. So nothing is flushed, whatever is torn,
//! missing or wrong is the same as no snapshot, and no failure here may ever stop anything else.
//!
//! sled wants values well below 64 KB, so a larger snapshot is cut into chunks: the head (under the entity's key) says
//! how many there are, their length and checksum; chunk `i` lies under entity key, 0x00, `i` (u32, big endian). Chunks
//! are written before their head, and the checksum decides: a reader that meets the chunks of another version finds
//! nothing.
//!
//! In a cluster there is a second layer that all nodes see (`shared_snapshots.rs`): written after this one, and read by
//! whoever finds that there would be much to replay.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::journal::{EntityKey, Position, Version};
use super::shared_snapshots::SharedSnapshots;

const CHUNK_BYTES: usize = 48 * 1024;
/// Far more than an aggregate should hold; such an entity replays instead.
pub(super) const SNAPSHOT_MAX_BYTES: usize = 64 * 1024 * 1024;
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

pub struct Snapshots {
    /// `None` when the folder cannot be used at all: then there are no snapshots.
    database: Option<sled::Db>,
    shared: Option<SharedSnapshots>,
}

impl Snapshots {
    /// Keeps nothing: every entity is replayed.
    pub fn none() -> Snapshots {
        Snapshots { database: None, shared: None }
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
        Snapshots { database, shared: None }
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

    fn put_here(&self, entity: &EntityKey, snapshot: &Snapshot) {
        let Some(database) = &self.database else { return };
        let Snapshot { version, bytes, .. } = snapshot;
        if bytes.len() > SNAPSHOT_MAX_BYTES || entity.as_str().contains('\0') {
            tracing::warn!(%entity, version, bytes = bytes.len(), "this snapshot cannot be stored");
            return;
        }
        if let Err(reason) = unpanicked(|| write(database, entity, snapshot).map_err(|e| e.to_string())) {
            tracing::warn!(%entity, version, reason, "the snapshot was not stored");
        }
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
            let head = database.remove(entity.as_str())?;
            let chunks = head.and_then(|head| Head::decode(&head)).map_or(0, |head| head.chunks());
            (0..chunks).try_for_each(|index| database.remove(chunk_key(entity, index)).map(drop))
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
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(entity.as_str().as_bytes());
    hasher.update(&snapshot.version.to_le_bytes());
    hasher.update(&snapshot.position.0.to_le_bytes());
    hasher.update(&snapshot.format.to_le_bytes());
    hasher.update(&snapshot.bytes);
    hasher.finalize()
}

fn chunk_key(entity: &EntityKey, index: u32) -> Vec<u8> {
    let mut key = Vec::from(entity.as_str());
    key.push(0);
    key.extend_from_slice(&index.to_be_bytes());
    key
}

fn write(database: &sled::Db, entity: &EntityKey, snapshot: &Snapshot) -> sled::Result<()> {
    let (head, bytes) = (Head::of(entity, snapshot), &snapshot.bytes);
    let mut value = head.encode();
    if head.chunks() == 0 {
        value.extend_from_slice(bytes);
    } else {
        for (index, chunk) in (0..).zip(bytes.chunks(CHUNK_BYTES)) {
            database.insert(chunk_key(entity, index), chunk)?;
        }
    }
    let before = database.insert(entity.as_str(), value)?.and_then(|before| Head::decode(&before));
    // A snapshot that shrank leaves no chunks behind.
    let chunks_before = before.map_or(0, |before| before.chunks());
    (head.chunks()..chunks_before).try_for_each(|index| database.remove(chunk_key(entity, index)).map(drop))
}

fn read(database: &sled::Db, entity: &EntityKey) -> Result<Option<Snapshot>, String> {
    let Some(value) = database.get(entity.as_str()).map_err(|e| e.to_string())? else { return Ok(None) };
    let head = Head::decode(&value).ok_or("its head is cut")?;
    let mut bytes = Vec::new();
    if head.chunks() == 0 {
        bytes.extend_from_slice(&value[Head::BYTES..]);
    } else {
        for index in 0..head.chunks() {
            let chunk = database.get(chunk_key(entity, index)).map_err(|e| e.to_string())?;
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
        let harms: [&dyn Fn(); 5] = [
            &|| drop(database.remove(chunk_key(&key("a"), 1)).unwrap()),
            &|| drop(database.insert(chunk_key(&key("a"), 0), pattern(CHUNK_BYTES, 2)).unwrap()),
            &|| drop(database.insert(chunk_key(&key("a"), 2), &b"short"[..]).unwrap()),
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
}
