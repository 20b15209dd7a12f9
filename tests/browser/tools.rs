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
        run(Command::new("npm").args(["install", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&folder));
        File::create(folder.join("ready")).unwrap();
    }
    fs::copy(own.join("scenarios.mjs"), folder.join("scenarios.mjs")).unwrap();
    folder
}

fn chromium() -> PathBuf {
    let is_there = |program: &PathBuf| Command::new(program).arg("--version").output().is_ok_and(|ran| ran.status.success());
    let find = || ["/usr/bin/chromium", "/usr/bin/chromium-browser"].map(PathBuf::from).into_iter().find(is_there);
    find().unwrap_or_else(|| {
        assert!(rustix::process::geteuid().is_root(), "Chromium is missing: install the package `chromium`");
        eprintln!("installing Chromium: apt-get install chromium");
        run(Command::new("apt-get").arg("update"));
        run(Command::new("apt-get").args(["install", "--yes", "--no-install-recommends", "chromium", "fonts-dejavu-core"]));
        find().unwrap()
    })
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}. Are Node and npm installed?"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
