//! Small files that only this user of the machine may read: written whole and durably, or not at all.
//!
//! A file appears under its name with all of its content, or not; a name that is taken is never written over. What a
//! crash leaves half done has a name that begins with a dot, which no reader looks at.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use super::random;
use crate::actors::credential::hex;

const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// Writes a new file. `false` when there is one already, which stays as it is.
pub(super) fn create(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let (folder, name) = parts(path)?;
    let unfinished = folder.join(format!(".{name}.{}", hex(&random::<8>().map_err(io::Error::other)?)));
    let written = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&unfinished).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        // Unlike a rename, a link never takes a name from another file.
        fs::hard_link(&unfinished, path)
    });
    let removed = match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.exists() => return Ok(false),
        written => written?,
    }
    removed?;
    sync_folder(folder)?;
    Ok(true)
}

/// Reads a file of at most `bytes_max`; `None` when there is none.
pub(super) fn read(path: &Path, bytes_max: usize) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Of full size from the start: a growing buffer would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max + 1));
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {bytes_max} bytes")));
    }
    Ok(Some(bytes))
}

/// Overwrites a file with zeros and removes it; a file that is not there is as good as destroyed.
///
/// The zeros reach the file's own blocks only where the file system and the disk write in place. Backups, copy-on-write
/// file systems and the spare blocks of flash memory may keep what was there.
pub(super) fn destroy(path: &Path) -> io::Result<()> {
    let (folder, _) = parts(path)?;
    match OpenOptions::new().write(true).open(path) {
        Ok(mut file) => {
            let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
            file.write_all(&vec![0; length])?;
            file.sync_all()?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // An earlier attempt may have died before the folder was flushed.
            return if folder.exists() { sync_folder(folder) } else { Ok(()) };
        }
        Err(error) => return Err(error),
    }
    fs::remove_file(path)?;
    sync_folder(folder)
}

/// Makes a folder and those above it that are missing, durably, for this user's eyes only.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    if let Some(above) = above {
        create_folder(above)?;
    }
    match DirBuilder::new().mode(FOLDER_MODE).create(path) {
        // Another was first; its name is flushed here as well, because what is written below rests on it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    sync_folder(above.unwrap_or(Path::new(".")))
}

/// Whether others than this user may read the file.
pub(super) fn is_exposed(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn parts(path: &Path) -> io::Result<(&Path, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let folder = path.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    folder.zip(name).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "this path names no file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_once_whole_and_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert!(create(&path, b"first").unwrap());
        assert!(!create(&path, b"second").unwrap());
        assert_eq!(read(&path, 5).unwrap().unwrap().as_slice(), b"first");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, FILE_MODE);
        assert!(!is_exposed(&path));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half done is left");
    }

    #[test]
    fn of_many_who_create_a_file_at_once_one_is_first_and_the_others_know() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let writers: Vec<_> = (0..8_u8)
            .map(|n| {
                let path = path.clone();
                std::thread::spawn(move || create(&path, &[n; 32]).unwrap().then_some(n))
            })
            .collect();
        let first: Vec<u8> = writers.into_iter().filter_map(|writer| writer.join().unwrap()).collect();
        assert_eq!(first.len(), 1);
        assert_eq!(read(&path, 32).unwrap().unwrap().as_slice(), [first[0]; 32]);
    }

    #[test]
    fn a_file_that_is_too_long_is_an_error_and_a_missing_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert!(read(&path, 4).unwrap().is_none());
        create(&path, b"12345").unwrap();
        assert_eq!(read(&path, 4).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_is_destroyed_is_overwritten_under_every_name_it_had() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("key"), folder.path().join(".key.left-by-a-crash"));
        create(&path, b"secret").unwrap();
        fs::hard_link(&path, &other).unwrap();
        destroy(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read(&other).unwrap(), [0; 6]);
        destroy(&path).unwrap();
        destroy(&folder.path().join("no/such/folder/key")).unwrap();
    }

    #[test]
    fn folders_are_made_for_their_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        create_folder(&deep).unwrap();
        create_folder(&deep).unwrap();
        for path in ["a", "a/b", "a/b/c"] {
            assert_eq!(fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o777, FOLDER_MODE);
        }
    }
}
