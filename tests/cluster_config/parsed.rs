//! Files that other programs read: each is parsed, and what they say of Souk is true.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::Deserialize;
use souk::integrations::http_client::{Client, Limits};

use crate::haproxy::Balancer;
use crate::node::{self, Node};
use crate::{nats, python, shipped};

/// What Prometheus adds.
const PROMETHEUS_METRICS: [&str; 1] = ["up"];
const PROMETHEUS_LABELS: [&str; 2] = ["instance", "job"];

#[derive(Deserialize)]
struct Found {
    /// Each with the labels that are asked of it.
    metrics: Vec<(String, BTreeSet<String>)>,
    environment: Vec<String>,
    nats_images: Vec<String>,
    nats_environment: BTreeSet<String>,
}

fn here() -> PathBuf {
    shipped().join("../tests/cluster_config")
}

fn environment() -> PathBuf {
    python::environment("cluster-config", &here().join("requirements.txt"))
}

fn check(root: &Path) -> Output {
    let mut check = Command::new(environment().join("python"));
    check.arg(here().join("check.py")).arg(root).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap()
}

fn found() -> Found {
    let checked = check(&shipped());
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    // A validator prints lines of its own.
    let printed = String::from_utf8(checked.stdout).unwrap();
    serde_json::from_str(printed.lines().last().unwrap()).unwrap()
}

/// Holds an exposition against the parser of Prometheus' own client library, which is strict.
fn assert_is_openmetrics(exposition: &[u8]) {
    const PARSE: &str = "import sys; from prometheus_client.openmetrics.parser import text_fd_to_metric_families as parse; \
                         sys.exit(len(list(parse(sys.stdin))) < 20)";
    let mut parser = Command::new(environment().join("python"));
    let mut parser = parser.args(["-c", PARSE]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    parser.stdin.take().unwrap().write_all(exposition).unwrap();
    let parsed = parser.wait_with_output().unwrap();
    assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
}

/// The samples that an exposition has or will have, each with its labels, as far as any of it was counted yet.
fn samples(exposition: &str) -> BTreeMap<String, Option<BTreeSet<String>>> {
    let mut samples = BTreeMap::new();
    for line in exposition.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            let endings: &[&str] = match kind {
                "counter" if name.ends_with("_total") => &[""],
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_count", "_sum"],
                "info" => &["_info"],
                _ => &[""],
            };
            samples.extend(endings.iter().map(|ending| (format!("{name}{ending}"), None)));
        } else if !line.starts_with('#') && !line.is_empty() {
            let name = line.split(['{', ' ']).next().unwrap();
            let labels = line.split("=\"").map(|before| before.rsplit(['{', ',']).next().unwrap().to_owned());
            let labels = if line.contains('{') { labels.collect() } else { BTreeSet::new() };
            samples.insert(name.to_owned(), Some(labels));
        }
    }
    samples
}

#[test]
fn what_is_spoiled_is_named() {
    let spoil = [
        ("prometheus/alerts.yml", "sum(haproxy_backend", "sum((haproxy_backend", "SoukUnreachable"),
        ("prometheus/alerts.yml", "humanizeDuration", "humaniseDuration", "a template that is not understood"),
        ("prometheus/prometheus.yml", "alerts.yml", "alarms.yml", "alarms.yml, which is not there"),
        ("grafana/souk.json", "souk_commands_waiting{", "souk_commands_waiting{{", "panel Commands waiting"),
        ("compose/compose.yaml", "stop_grace_period: 75s", "stop_grace: 75s", "stop_grace"),
        ("compose/compose.yaml", ",http://nats-3:8222", "", "souk-1: it connects to"),
        ("compose/compose.yaml", "nats:2.15-alpine", "nats:latest", "nats:latest is not pinned"),
        ("compose/Dockerfile", "USER 10001:10001", "USER 10001:10001\nRUN sudo true", "DL3004"),
        ("kubernetes/souk.yaml", "terminationGracePeriodSeconds", "terminationGraceSeconds", "terminationGraceSeconds"),
        ("kubernetes/souk.yaml", "key: souk-password", "key: password", "the secret has no password"),
        ("kubernetes/kustomization.yaml", "  - network.yaml\n", "", "leaves out {'network.yaml'}"),
        ("kubernetes/config.yaml", "SOUK_LOG_FORMAT: json", "SOUK_LOG_FORMAT: json\n  SOUK_LOG_FORMAT: pretty", "is there twice"),
        ("kubernetes/config.yaml", "http://nats-1.nats:8222,", "", "the ConfigMap souk: it connects to"),
        ("local/common.sh", "local name=$1", "local name=$1 unused=$(cat $1)", "SC2086"),
        ("local/down", "esac", "", "down"),
    ];
    for (file, good, bad, named) in spoil {
        let copy = tempfile::tempdir().unwrap();
        let copied = Command::new("cp").arg("-r").arg(shipped()).arg(shipped().join("../.gitignore")).arg(copy.path()).status();
        assert!(copied.unwrap().success());
        let root = copy.path().join("cluster-config");
        let text = fs::read_to_string(root.join(file)).unwrap();
        assert!(text.contains(good), "{file} has no {good}");
        fs::write(root.join(file), text.replacen(good, bad, 1)).unwrap();
        let checked = check(&root);
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(!checked.status.success() && said.contains(named), "{file} with {bad}: {said}");
    }
}

#[test]
fn an_exposition_is_read_with_its_names_and_labels() {
    let text = "# TYPE a counter\na_total{x=\"1\",route=\"/b/{id},c\"} 3\n# TYPE d histogram\n# TYPE e info\n# EOF\n";
    let samples = samples(text);
    let labels = samples["a_total"].as_ref().unwrap();
    assert!(labels.contains("x") && labels.contains("route") && !labels.contains("id"), "{labels:?}");
    assert_eq!(samples.keys().collect::<Vec<_>>(), ["a_total", "d_bucket", "d_count", "d_sum", "e_info"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_file_is_what_its_program_reads_and_each_metric_that_it_names_is_exported() {
    let found = tokio::task::spawn_blocking(found).await.unwrap();
    let nats = nats::Nats::one().await;
    let (url, monitor) = (nats.url(0), format!("http://{}", nats.monitor_address(0)));
    let data = tempfile::tempdir().unwrap();
    let flags = ["--demo", "--nats", &url, "--nats-monitor", &monitor, "--allow-single-replica"];
    let (_node, origin) = Node::start_with(data.path(), &flags).await;
    // A purchase or two, so that what is counted by kinds and outcomes has some.
    let url = origin.to_string();
    let mut rehearse = node::souk();
    rehearse.args(["rehearse", "checkout", "--buyers", "1", "--seconds", "1", "--url", &url]);
    let rehearsed = tokio::task::spawn_blocking(move || rehearse.output().unwrap()).await.unwrap();
    assert!(rehearsed.status.success(), "{}", String::from_utf8_lossy(&rehearsed.stderr));
    let mut client = Client::new(origin, Limits::default());
    let of_souk = client.get("/metrics", &[]).await.unwrap();
    let balancer = Balancer::before(["127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1"].map(str::to_owned)).await;
    let of_balancer = balancer.operators_client().get("/metrics", &[]).await.unwrap();

    assert_is_openmetrics(&of_souk.body);
    let mut exported = samples(std::str::from_utf8(&of_souk.body).unwrap());
    assert!(exported.len() > 20, "{exported:?}");
    exported.extend(samples(std::str::from_utf8(&of_balancer.body).unwrap()));
    exported.extend(PROMETHEUS_METRICS.map(|name| (name.to_owned(), None)));
    for (name, labels) in &found.metrics {
        let there = exported.get(name).unwrap_or_else(|| panic!("{name} is not exported"));
        let unknown = |label: &&String| !PROMETHEUS_LABELS.contains(&label.as_str());
        if let Some(there) = there {
            let missing: Vec<&String> = labels.difference(there).filter(unknown).collect();
            assert!(missing.is_empty(), "{name} has no {missing:?}, but {there:?}");
        }
    }
    for counted in ["souk_saga_duration_seconds_bucket", "souk_journal_append_latency_seconds_bucket"] {
        assert!(exported[counted].is_some(), "a purchase leaves some of {counted}");
    }
    let of_souk = std::str::from_utf8(&of_souk.body).unwrap();
    for line in ["souk_cluster_members 1", "souk_cluster_partitions_owned 256", "souk_cluster_asks_total{outcome=\"lost\"} 0"] {
        assert!(of_souk.lines().any(|said| said == line), "{line}: {of_souk}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_alone_exports_nothing_of_a_cluster() {
    let data = tempfile::tempdir().unwrap();
    let (_node, origin) = Node::start(data.path()).await;
    let exposition = Client::new(origin, Limits::default()).get("/metrics", &[]).await.unwrap().body;
    let exposition = std::str::from_utf8(&exposition).unwrap();
    assert!(exposition.contains("souk_journal_position") && !exposition.contains("souk_cluster_"), "{exposition}");
}

#[test]
fn each_flag_that_is_set_is_one_of_the_program() {
    let found = found();
    let help = node::souk().args(["serve", "--help"]).output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    let up = fs::read_to_string(shipped().join("local/up")).unwrap();
    let (_, start_node) = up.split_once("start_node() {").unwrap();
    let (start_node, _) = start_node.split_once("\n}").unwrap();
    let readme = fs::read_to_string(shipped().join("README.md")).unwrap();
    let (_, by_hand) = readme.split_once("- **Souk:**").unwrap();
    let (by_hand, _) = by_hand.split_once("\n- **").unwrap();
    let told = format!("{start_node} {by_hand}");
    let words = told.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
    let set: BTreeSet<&str> = words
        .filter(|word| word.starts_with("--") || word.starts_with("SOUK_"))
        .chain(found.environment.iter().map(String::as_str))
        .collect();
    assert!(set.len() > 10, "{set:?}");
    for name in set {
        let known = match name.starts_with("--") {
            true => help.lines().any(|line| line.split_whitespace().any(|word| word == name)),
            false => help.contains(&format!("[env: {name}=")) || help.contains(&format!("[env: {name}]")),
        };
        assert!(known, "souk serve has no {name}");
    }
}

#[test]
fn one_version_of_nats_server_is_started_tested_and_shipped() {
    let found = found();
    let (minor, _) = nats::NATS_SERVER_VERSION.rsplit_once('.').unwrap();
    assert_eq!(found.nats_images, [format!("nats:{minor}-alpine")]);
    let up = fs::read_to_string(shipped().join("local/up")).unwrap();
    assert!(up.contains(&format!("nats_version={}\n", nats::NATS_SERVER_VERSION)));
    let given: BTreeSet<String> = crate::servers::environment().into_iter().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(found.nats_environment, given, "what compose.yaml gives is what the configuration wants");
}
