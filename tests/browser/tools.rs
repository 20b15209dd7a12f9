//! What the pages are tested with, installed by whoever needs it first.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

pub struct Tools {
    /// The scenarios, beside the packages that they import.
    pub folder: PathBuf,
    pub chromium: PathBuf,
}

pub fn installed() -> &'static Tools {
    static TOOLS: OnceLock<Tools> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let target = Path::new(env!("CARGO_BIN_EXE_souk")).ancestors().nth(2).unwrap();
        // Another run may be installing it right now.
        let lock = File::create(target.join("browser.lock")).unwrap();
        lock.lock().unwrap();
        program(&["node"], &["nodejs"]);
        Tools { folder: packages(target), chromium: chromium() }
    })
}

/// The packages from npm, once for each content of the file that names them.
fn packages(target: &Path) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    let named = fs::read(own.join("package.json")).unwrap();
    let digest: String = Sha256::digest(&named).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let folder = target.join(format!("browser-{digest}"));
    if !folder.join("ready").exists() {
        eprintln!("installing what tests/browser/package.json names into {}", folder.display());
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("package.json"), named).unwrap();
        program(&["npm"], &["npm"]);
        run(Command::new("npm").args(["install", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&folder));
        File::create(folder.join("ready")).unwrap();
    }
    fs::copy(own.join("scenarios.mjs"), folder.join("scenarios.mjs")).unwrap();
    folder
}

fn chromium() -> PathBuf {
    program(&["/usr/bin/chromium", "/usr/bin/chromium-browser"], &["chromium", "fonts-dejavu-core"])
}

/// The first of these that runs; where there is none, one of Debian's packages has it.
fn program(names: &[&str], packages: &[&str]) -> PathBuf {
    let is_there = |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|ran| ran.status.success());
    let find = || names.iter().find(is_there).map(PathBuf::from);
    find().unwrap_or_else(|| {
        assert!(rustix::process::geteuid().is_root(), "{names:?} is missing: install the packages {packages:?}");
        eprintln!("installing {packages:?} with apt-get");
        run(Command::new("apt-get").arg("update"));
        run(Command::new("apt-get").args(["install", "--yes", "--no-install-recommends"]).args(packages));
        find().unwrap()
    })
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
