//! What an operator says to a cluster's keys, by the command line.

use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use souk::actors::clock::Clock;
use souk::http::identity::keys::Keys;
use souk::http::identity::keystore::{Keystore, SharedKeystore};
use souk::http::identity::seals::Vault;
use souk::http::identity::tokens::Tokens;

use crate::nats::Nats;
use crate::until;

fn souk(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_souk")).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_rotates_and_removes_keys_and_gets_a_token_that_nodes_take() {
    let nats = Nats::one().await;
    let url = nats.url(0);
    let none = souk(&["keys", "show", "--nats", &url]);
    assert!(!none.status.success() && String::from_utf8_lossy(&none.stderr).contains("no node has started there"), "{none:?}");

    let store = Arc::new(SharedKeystore::open(&nats.client().await, "souk", 1, None).await.unwrap());
    let now = || Clock::default().now();
    let keys = Arc::new(Keys::shared(store, now()).await.unwrap());
    Keys::follow(&keys);
    let first = keys.current(now()).signing(now()).unwrap().kid.clone();
    let known = |kid: &str| keys.current(now()).verifying(now()).any(|key| key.kid == kid);

    let rotated = said(&souk(&["keys", "rotate", "--nats", &url]));
    let second = rotated.split([' ', '.']).find(|word| word.len() == 26).unwrap().to_owned();
    let shown = said(&souk(&["keys", "show", "--nats", &url]));
    assert!(shown.starts_with(&second) && shown.contains(&format!("{first}  made")), "{shown}");
    until("the node knows the new key", async || known(&second)).await;

    let token = said(&souk(&["admin", "token", "--nats", &url]));
    let tokens = Tokens::new(keys.clone(), "souk", "souk");
    assert!(tokens.verify(token.trim(), now()).is_ok());

    said(&souk(&["keys", "remove", &first, "--nats", &url]));
    until("the node has let it go", async || !known(&first)).await;
    assert!(tokens.verify(token.trim(), now()).is_err());
    let last = souk(&["keys", "remove", &second, "--nats", &url]);
    assert!(!last.status.success(), "the last key stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_of_days_past_are_forgotten_by_all_nodes() {
    let nats = Nats::one().await;
    let store: Arc<dyn Keystore> = Arc::new(SharedKeystore::open(&nats.client().await, "souk", 1, None).await.unwrap());
    let vault = Vault::new(store);
    vault.listen();
    let old = vault.seal_first("guests-2026-01-01", b"old").await.unwrap();
    let new = vault.seal_first("guests-2026-01-02", b"new").await.unwrap();
    let said = said(&souk(&["admin", "forget-guests", "--before", "2026-01-02", "--nats", &nats.url(0)]));
    assert!(said.starts_with("1 days"), "{said}");
    until("the node lets go", async || vault.open_seal_now("guests-2026-01-01", &old).is_none()).await;
    assert_eq!(vault.open_seal("guests-2026-01-01", &old).await.unwrap(), None);
    assert!(vault.open_seal("guests-2026-01-02", &new).await.unwrap().is_some());
}

/// A node of its own, ended with the test.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_is_made_through_a_node_of_the_cluster_by_its_address() {
    let nats = Nats::one().await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut serve = Command::new(env!("CARGO_BIN_EXE_souk"));
    serve.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(&data).stdout(Stdio::null()).stderr(Stdio::null());
    let _serving = Serving(serve.spawn().unwrap());
    let address = data.join("address");
    let node = || std::fs::read_to_string(&address).unwrap_or_default();
    until("it serves", async || node().ends_with('\n')).await;
    let node = node();
    // The node knows the cluster's keys by being given the same.
    let key = std::fs::read_dir(data.join("keys")).unwrap().next().unwrap().unwrap().path();
    let kid = key.file_stem().unwrap().to_str().unwrap().to_owned();
    let store = SharedKeystore::open(&nats.client().await, "souk", 1, None).await.unwrap();
    let name = souk::http::identity::keystore::Name::SigningKey(kid);
    assert!(store.create(&name, &std::fs::read(key).unwrap()).await.unwrap());

    let url = nats.url(0);
    let create = ["admin", "create", "--email", "ada@example.com", "--nats", &url, "--url", node.trim()];
    assert!(said(&souk(&create)).contains("can log in with the password"));
    assert!(said(&souk(&create)).contains("is an admin now"));
}
