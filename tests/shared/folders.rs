//! Whose a data folder is: a node's that is alone, with all of its shop in it, or a member's, whose shop is in NATS.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use souk::integrations::http_client::{Client, Limits};

use crate::nats::Nats;
use crate::node::{Node, run, souk};

fn flags(nats: &Nats) -> Vec<String> {
    let monitor = format!("http://{}", nats.monitor_address(0));
    ["--nats", &nats.url(0), "--nats-monitor", &monitor, "--allow-single-replica"].map(str::to_owned).to_vec()
}

fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

async fn serve(data: &Path, flags: &[&str]) -> Output {
    let mut command = souk();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data).args(flags);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_a_members_folder_is_refused_with_where_to_ask_it() {
    let nats = Nats::one().await;
    let folder = tempfile::tempdir().unwrap();
    let flags = flags(&nats);
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--leave-seconds", "0"]).collect();
    let (node, origin) = Node::start_with(folder.path(), &flags).await;

    let commands: [&[&str]; 8] = [
        &["serve", "--listen", "127.0.0.1:0"],
        &["admin", "create", "--email", "ada@example.com"],
        &["admin", "token"],
        &["admin", "forget-guests", "--before", "2026-01-01"],
        &["keys", "show"],
        &["keys", "rotate"],
        &["inspect", "product", "prod_1"],
        &["import", "goods.csv"],
    ];
    let refuses_all = async || {
        for arguments in commands {
            let why = refused(&run(arguments, folder.path()).await);
            assert!(why.contains("n1, a member of a cluster") && why.contains("--nats"), "{arguments:?}: {why}");
        }
    };
    refuses_all().await;

    let url = origin.to_string();
    let to = ["--nats", flags[1]];
    let create = [&["admin", "create", "--email", "ada@example.com", "--url", &url][..], &to].concat();
    assert!(said(&run(&create, Path::new("/nowhere")).await).contains("can log in"));
    // The node that runs on a folder says itself where it is.
    let again = [&["admin", "create", "--email", "ada@example.com"][..], &to].concat();
    assert!(said(&run(&again, folder.path()).await).contains("is an admin now"));
    let inspect = [&["inspect", "shop", "default", "--url", &url][..], &to].concat();
    let unknown = refused(&run(&inspect, Path::new("/nowhere")).await);
    assert!(unknown.contains("404"), "{unknown}");

    node.tell_to_drain();
    assert!(node.ends().await.success());
    refuses_all().await;
    let migrated = [&["migrate"][..], &to].concat();
    assert!(refused(&run(&migrated, folder.path()).await).contains("a member of a cluster"));
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    for made in ["journal", "keys", "secret", "vault"] {
        assert!(!left.iter().any(|name| name == made), "{made}");
    }

    let other = [&flags[..], &["--nats-prefix", "other"]].concat();
    let why = refused(&serve(folder.path(), &other).await);
    assert!(why.contains("another shop") && why.contains("prefix souk"), "{why}");
    // Whatever it is called, and whatever was left of the mark.
    fs::write(folder.path().join("cluster"), b"").unwrap();
    assert!(refused(&serve(folder.path(), &[]).await).contains("a member of a cluster"));
    let renamed = [&flags[..], &["--node-name", "n2"]].concat();
    let (_node, _) = Node::start_with(folder.path(), &renamed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_with_a_journal_of_its_own_joins_no_cluster_and_the_way_there_is_named() {
    let nats = Nats::one().await;
    let folder = tempfile::tempdir().unwrap();
    let (node, _) = Node::start(folder.path()).await;
    node.kill();
    let flags = flags(&nats);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let why = refused(&serve(folder.path(), &flags).await);
    assert!(why.contains("souk migrate --data"), "{why}");
    // It is what it was.
    let (_node, _) = Node::start(folder.path()).await;
}

/// The ids of all products, as a node on this folder lists them.
async fn products(nats: &Nats, folder: &Path, more: &[&str], carts: usize) -> BTreeSet<String> {
    let flags = flags(nats);
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--leave-seconds", "0"]).chain(more.iter().copied()).collect();
    let (node, origin) = Node::start_with(folder, &flags).await;
    let mut client = Client::new(origin, Limits::default());
    for _ in 0..carts {
        assert_eq!(client.post("/api/carts", &[], "{}".into()).await.unwrap().status, 201);
    }
    let found = client.get("/api/products?limit=100", &[]).await.unwrap();
    let found: Value = serde_json::from_slice(&found.body).unwrap();
    node.tell_to_drain();
    assert!(node.ends().await.success());
    found["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_folder_knows_of_another_journal_is_forgotten() {
    let (folder, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, second) = (Nats::one().await, Nats::one().await);
    let of_first = products(&first, folder.path(), &["--demo"], 0).await;
    let of_second = products(&second, others.path(), &["--demo"], 20).await;
    assert!(!of_first.is_empty() && of_first.is_disjoint(&of_second));
    // The position alone tells nothing then.
    assert!(end(&first).await <= end(&second).await);
    assert_eq!(products(&second, folder.path(), &[], 0).await, of_second);
    assert_eq!(products(&first, folder.path(), &[], 0).await, of_first);
}

/// Where the journal ends.
async fn end(nats: &Nats) -> u64 {
    let stream = async_nats::jetstream::new(nats.client().await).get_stream("souk-journal").await.unwrap();
    stream.cached_info().state.last_sequence
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_a_node_that_found_no_cluster_is_nobodys() {
    let folder = tempfile::tempdir().unwrap();
    let why = refused(&serve(folder.path(), &["--nats", "nats://127.0.0.1:1"]).await);
    assert!(why.contains("nats://127.0.0.1:1"), "{why}");
    let (_node, _) = Node::start(folder.path()).await;
}
