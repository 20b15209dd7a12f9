//! schemathesis, installed by whoever needs it first.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::python_tools::environment;

/// Cases for each operation and phase.
const EXAMPLES: &str = "25";
/// A run that takes longer hangs.
const RUN: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(50);

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract")
}

fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| environment("contract", &here().join("requirements.txt")))
}

/// Runs a script of this folder in the environment.
pub fn python(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(programs().join("python"));
    command.current_dir(here()).args(arguments).envs(environment.iter().copied());
    command.env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap()
}

/// Runs schemathesis to its end; its report when it found something. `operator`: a token with every permission.
pub fn schemathesis(url: &str, caller: &str, operator: &str) -> Result<(), String> {
    let programs = programs();
    let report = tempfile::tempdir().unwrap();
    let log = report.path().join("report");
    let mut command = Command::new(programs.join("schemathesis"));
    // It writes down what it did where it stands.
    command.current_dir(report.path()).arg("--config-file").arg(here().join("schemathesis.toml"));
    command.args(["run", "--no-color", "--max-examples", EXAMPLES]);
    command.arg(format!("{url}/api/openapi.json")).env("SCHEMATHESIS_HOOKS", here().join("callers.py"));
    command.env("SOUK_CONTRACT_URL", url).env("SOUK_CONTRACT_CALLER", caller).env("SOUK_CONTRACT_OPERATOR", operator);
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUTF8", "1").env("XDG_CACHE_HOME", report.path());
    let file = File::create(&log).unwrap();
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let mut child = command.spawn().unwrap();
    let status = ended(&mut child);
    let report = fs::read_to_string(&log).unwrap();
    // That it did ask: a run without cases ends well too.
    let asked = report.contains(" generated");
    match status {
        Some(status) if status.success() && asked => Ok(()),
        Some(status) => Err(format!("{caller}: {status}\n{report}")),
        None => Err(format!("{caller}: it did not end within {RUN:?}\n{report}")),
    }
}

fn ended(child: &mut Child) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + RUN;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(LOOK);
    }
}
