//! Room in fjall's newest write-ahead file, made before it is needed.
//!
//! fjall gives each file a length but no blocks. At each flush the file system then has to write down, in a journal of its
//! own, which blocks it took for what was written. Where zeros were written before, only the data is left to flush: on ext4
//! that takes two thirds of the time. The price is that each byte of these files is written twice.
//!
//! fjall writes a file from its beginning to its end, so the first hole is behind all that it ever wrote. After a restart
//! fjall appends to a file that it has cut at its last batch; there is no hole in that, and no room is made until it begins
//! the next.
//!
//! It must never change what a file says: zeros are only written where zeros are read, never past the file's end, and only
//! by the journal's writer, between two of its writes, when nobody else writes to the file.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};

use super::write_ahead;

/// How much is made at once. What is ready is between one step and two.
const STEP_BYTES: usize = 256 * 1024;
/// What an item takes besides its key and its value, with a share of what its batch takes, rounded up.
pub(super) const ITEM_BYTES: usize = 40;

pub(super) struct Room {
    /// fjall's folder.
    database: PathBuf,
    /// The file in which room was made last.
    newest: Option<PathBuf>,
    used: usize,
    step: Vec<u8>,
}

impl Room {
    pub fn new(database: PathBuf) -> Self {
        // As if all were used, so that the first write makes some.
        Room { database, newest: None, used: STEP_BYTES, step: vec![0; STEP_BYTES] }
    }

    /// So many bytes were written. To be called between two writes: makes room for those to come, when it is time.
    pub fn used(&mut self, bytes: usize) {
        self.used += bytes;
        if self.used < STEP_BYTES {
            return;
        }
        // Whoever writes more than that at once is bound by the writing.
        let steps = (self.used / STEP_BYTES).min(2);
        self.used %= STEP_BYTES;
        // Without room all goes on as before, only slower; what is wrong with the disk is said by the next write.
        if let Err(error) = self.make(steps) {
            tracing::debug!(%error, "no room is made ahead of the journal");
        }
    }

    fn make(&mut self, steps: usize) -> io::Result<()> {
        let Some(newest) = write_ahead::files(&self.database)?.pop() else { return Ok(()) };
        let steps = if self.newest.as_ref() == Some(&newest) { steps } else { 2 };
        fill(&newest, steps, &mut self.step)?;
        self.newest = Some(newest);
        Ok(())
    }
}

/// Fills the first `steps` steps of the file's first hole, or as much of them as the file is long.
fn fill(path: &Path, steps: usize, step: &mut [u8]) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let (hole, end) = (seek(&file, SeekFrom::Hole(0))?, file.metadata()?.len());
    let len = step.len();
    for from in (hole..end).step_by(len).take(steps) {
        let step = &mut step[..usize::try_from(end - from).unwrap_or(len).min(len)];
        file.read_exact_at(step, from)?;
        if !write_ahead::without_zeros(step).is_empty() {
            return Err(io::Error::other(format!("{}: data at {from}, where there should be a hole", path.display())));
        }
        file.write_all_at(step, from)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    const STEP: u64 = STEP_BYTES as u64;

    /// A file of `len` bytes of which the first `data` were written.
    fn file(path: &Path, data: u64, len: u64) -> File {
        let file = File::create_new(path).unwrap();
        file.set_len(len).unwrap();
        file.write_all_at(&vec![b'x'; data as usize], 0).unwrap();
        file
    }

    fn hole(path: &Path) -> u64 {
        seek(File::open(path).unwrap(), SeekFrom::Hole(0)).unwrap()
    }

    /// Where the hole is behind so many bytes: blocks are written whole, and some file systems tell of none.
    fn first_hole(data: u64, len: u64) -> u64 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample");
        file(&path, data, len);
        hole(&path)
    }

    #[test]
    fn room_is_made_behind_the_data_and_changes_nothing_that_is_read() {
        // (bytes written, length of the file, steps, bytes that have room in the end)
        for (data, len, steps, ready) in [
            (0, 8 * STEP, 2, 2 * STEP),
            (100, 8 * STEP, 1, first_hole(100, 8 * STEP) + STEP),
            (5 * STEP, 8 * STEP, 2, 7 * STEP),
            (7 * STEP, 8 * STEP, 2, 8 * STEP),
            (7 * STEP, 8 * STEP - 100, 2, 8 * STEP - 100),
            (8 * STEP, 8 * STEP, 2, 8 * STEP),
            (100, 100, 2, 100),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("0.jnl");
            file(&path, data, len);
            let (before, has_holes) = (fs::read(&path).unwrap(), hole(&path) < len);
            fill(&path, steps, &mut vec![0; STEP_BYTES]).unwrap();
            assert!(fs::read(&path).unwrap() == before, "{data} of {len}: what is read has changed");
            if has_holes {
                assert_eq!(hole(&path), ready, "{data} of {len}");
            }
        }
    }

    /// As on a file system that is wrong about its holes.
    #[test]
    fn what_is_not_zero_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.jnl");
        let file = file(&path, 0, 8 * STEP);
        if hole(&path) > 0 {
            return;
        }
        file.write_all_at(b"acknowledged", 2 * STEP - 100).unwrap();
        let before = fs::read(&path).unwrap();
        // The second step would go over it.
        let refused = fill(&path, 4, &mut vec![0; STEP_BYTES]).unwrap_err();
        assert!(refused.to_string().contains("where there should be a hole"), "{refused}");
        assert!(fs::read(&path).unwrap() == before);
    }

    #[test]
    fn room_follows_what_is_used_and_moves_on_with_the_newest_file() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("9.jnl"), dir.path().join("10.jnl"));
        file(&old, 0, 8 * STEP);
        let mut room = Room::new(dir.path().to_owned());
        let holes = hole(&old) == 0;
        let mut expect = |used: usize, path: &Path, ready: u64| {
            room.used(used);
            assert!(!holes || hole(path) == ready, "{} has room until {}", path.display(), hole(path));
        };
        expect(10, &old, 2 * STEP);
        expect(STEP_BYTES - 11, &old, 2 * STEP);
        expect(1, &old, 3 * STEP);
        expect(2 * STEP_BYTES, &old, 5 * STEP);
        expect(4 * STEP_BYTES, &old, 7 * STEP);
        file(&new, 0, 8 * STEP);
        expect(STEP_BYTES, &new, 2 * STEP);
        expect(STEP_BYTES, &new, 3 * STEP);
        assert!(!holes || hole(&old) == 7 * STEP);
        // fjall removes what it has moved into its tables.
        fs::remove_file(&new).unwrap();
        fs::remove_file(&old).unwrap();
        room.used(STEP_BYTES);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
