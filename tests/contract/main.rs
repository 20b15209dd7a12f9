//! The contract is what the running program does: the document as it is served, and schemathesis against every path of it,
//! asked by each kind of caller.
//!
//! schemathesis comes from PyPI, in the versions of `requirements.txt`, into a virtual environment under `target/`: that
//! needs python3 with pip, and the network once. What a case looks like that went wrong is in the test's output, with a
//! curl command.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/node.rs"]
#[allow(dead_code)]
mod node;
#[path = "../support/python.rs"]
mod python_tools;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use souk::actors::clock::Clock;
use souk::http::identity::keys::Keys;
use souk::http::identity::operators_token;
use souk::http::openapi;
use souk::integrations::http_client::{Client, Limits};
use warp::http::header::AUTHORIZATION;
use warp::http::{HeaderValue, StatusCode};

use node::Node;
use tools::{python, schemathesis};

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json")
}

fn pretty(document: &Value) -> String {
    format!("{document:#}\n")
}

/// Asks for all paths as `caller`, and holds every answer against the document.
async fn the_contract_holds_for(caller: &'static str) {
    let data = tempfile::tempdir().unwrap();
    let (node, origin) = Node::start_with(data.path(), &["--demo", "--trusted-proxy", "127.0.0.1"]).await;
    let now = Clock::default().now();
    let operator = operators_token(Keys::open_existing(&data.path().join("keys"), now).unwrap(), now).unwrap();
    let (url, token) = (origin.to_string(), operator.clone());
    let kept = tokio::task::spawn_blocking(move || schemathesis(&url, caller, &token)).await.unwrap();
    if let Err(report) = kept {
        panic!("{report}");
    }
    // What an entity died of may have been answered politely: nothing may have died.
    let mut client = Client::new(origin, Limits::default());
    let operator = HeaderValue::from_str(&format!("Bearer {operator}")).unwrap();
    let cluster = client.get("/api/cluster", &[(AUTHORIZATION, operator)]).await.unwrap();
    let cluster: Value = serde_json::from_slice(&cluster.body).unwrap();
    assert_eq!(cluster["set_aside"], Value::Array(Vec::new()));
    assert!(!node.whole_log().contains("panicked"), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_for_nobody() {
    the_contract_holds_for("nobody").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_for_a_guest() {
    the_contract_holds_for("guest").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_for_a_customer() {
    the_contract_holds_for("customer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_for_a_vendor() {
    the_contract_holds_for("vendor").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_for_an_admin() {
    the_contract_holds_for("admin").await;
}

#[tokio::test]
async fn the_document_that_is_served_is_the_committed_one() {
    let made = pretty(&openapi::document());
    if std::env::var_os("SOUK_WRITE_CONTRACT").is_some() {
        fs::write(committed(), &made).unwrap();
    }
    let on_file = fs::read_to_string(committed()).unwrap_or_default();
    let differs = made.lines().zip(on_file.lines()).position(|(made, on_file)| made != on_file);
    assert!(
        made == on_file,
        "docs/openapi.json is not what the code says, from line {}. If clients can live with the change, renew it:\n\
         SOUK_WRITE_CONTRACT=1 cargo test --test contract the_document",
        differs.unwrap_or(0) + 1
    );

    let data = tempfile::tempdir().unwrap();
    let (_node, origin) = Node::start(data.path()).await;
    let mut client = Client::new(origin, Limits::default());
    let answer = client.get("/api/openapi.json", &[]).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(serde_json::from_slice::<Value>(&answer.body).unwrap(), openapi::document());
}

#[test]
fn every_example_is_what_its_schema_says() {
    let checked = python(&["examples.py", committed().to_str().unwrap()], &[]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
