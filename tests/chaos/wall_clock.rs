//! A real process whose wall clock is wrong: libfaketime, loaded into it, and a file that says by how much.
//!
//! It stands where the program meets the system (`clock_gettime`), so the program is the one that ships, without a flag that
//! somebody could set in a real shop, and the crates it is made of see the same wrong time. The monotonic clock is left alone,
//! as a real jump leaves it. Debian's package is fetched by apt and unpacked under `target/`, once; nothing is
//! installed. Where there is no apt, the system's own libfaketime is needed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const FETCH: &str = "apt-get download libfaketime || { apt-get update && apt-get download libfaketime; } \
    && dpkg-deb -x libfaketime_*.deb .";

/// The library: the system's, or else one that is unpacked by whoever needs it first.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| found_in(Path::new("/usr/lib")).unwrap_or_else(unpacked))
}

fn found_in(lib: &Path) -> Option<PathBuf> {
    let beside = fs::read_dir(lib).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    beside.map(|folder| folder.join("faketime/libfaketime.so.1")).filter(|path| path.exists()).min()
}

fn unpacked() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_souk")).ancestors().nth(2).unwrap();
    // Another run may be fetching it right now.
    let lock = File::create(target.join("faketime.lock")).unwrap();
    lock.lock().unwrap();
    let folder = target.join("faketime");
    let ready = folder.join("ready");
    if !ready.exists() {
        eprintln!("fetching Debian's libfaketime into {}", folder.display());
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        run(Command::new("sh").current_dir(&folder).args(["-c", FETCH]));
        File::create(ready).unwrap();
    }
    found_in(&folder.join("usr/lib")).expect("the package has a library")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "no libfaketime: {command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// How wrong one process's clock is.
pub struct WallClock {
    file: PathBuf,
    ahead_s: i64,
}

impl WallClock {
    /// Right, at first. `file` says so to the process.
    pub fn new(file: PathBuf) -> WallClock {
        let clock = WallClock { file, ahead_s: 0 };
        clock.write();
        clock
    }

    /// Has the process read its time here.
    pub fn worn_by(&self, command: &mut Command) {
        command.env("LD_PRELOAD", library());
        command.env("FAKETIME_TIMESTAMP_FILE", &self.file).env("FAKETIME_NO_CACHE", "1");
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }

    /// From now on it is so much ahead of the time, or behind it.
    pub fn set(&mut self, ahead_s: i64) {
        self.ahead_s = ahead_s;
        self.write();
    }

    /// Whole at any moment: the process may read it now.
    fn write(&self) {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{:+}", self.ahead_s)).unwrap();
        fs::rename(new, &self.file).unwrap();
    }
}

#[test]
fn a_process_sees_the_wall_clock_jump_and_the_monotonic_one_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut clock = WallClock::new(folder.path().join("clock"));
    let mut read = |ahead_s| {
        clock.set(ahead_s);
        let mut command = Command::new("python3");
        clock.worn_by(&mut command);
        let output = command.args(["-c", "import time; print(int(time.time()), int(time.monotonic()))"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let numbers: Vec<i64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
        (numbers[0], numbers[1])
    };
    let (wall, monotonic) = read(0);
    for ahead_s in [3_600, -3_600] {
        let (later, on) = read(ahead_s);
        assert!((0..60).contains(&(later - wall - ahead_s)), "{ahead_s}: {wall}, {later}");
        assert!((0..60).contains(&(on - monotonic)), "{ahead_s}: {monotonic}, {on}");
    }
}
