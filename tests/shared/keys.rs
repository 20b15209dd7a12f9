//! Two nodes are two keystores over connections of their own.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use souk::domain::Timestamp;
use souk::http::identity::keys::{Keys, KeysError, SHOWN_FIRST_MS};
use souk::http::identity::keystore::wrapping::WrappingKey;
use souk::http::identity::keystore::{Keystore, KeystoreError, Name, SharedKeystore};
use souk::http::identity::seals::{CONFIRM_MS, SealError, Vault};
use souk::http::identity::secret::Secret;
use souk::http::identity::{Identity, IdentityError};

use crate::nats::{Nats, NatsOptions};
use crate::until;

const PREFIX: &str = "souk";

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000 + ms)
}

async fn node(nats: &Nats) -> Arc<SharedKeystore> {
    let replicas = nats.len().min(3);
    Arc::new(SharedKeystore::open(&nats.client().await, PREFIX, replicas, None).await.unwrap())
}

fn kids(keys: &Keys, now: Timestamp) -> Vec<String> {
    keys.current(now).verifying(now).map(|key| key.kid.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_that_start_at_once_agree_on_one_secret_and_one_first_signing_key() {
    let nats = Nats::three().await;
    let mut starting = Vec::new();
    for _ in 0..8 {
        let client = nats.client().await;
        starting.push(tokio::spawn(async move {
            // The bucket too is made by whoever is first.
            let store: Arc<dyn Keystore> = Arc::new(SharedKeystore::open(&client, PREFIX, 3, None).await.unwrap());
            let secret = Secret::open(&*store, false).await.unwrap();
            let keys = Keys::shared(store, at(0)).await.unwrap();
            let signed = keys.current(at(0)).to_jwks(at(0));
            (secret.email_id("ada@example.com"), signed.to_string(), kids(&keys, at(0)))
        }));
    }
    let mut agreed = None;
    for node in starting {
        let node = node.await.unwrap();
        assert_eq!(node.2.len(), 1);
        assert_eq!(agreed.get_or_insert_with(|| node.clone()), &node);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_reaches_the_other_nodes_within_seconds_and_so_does_a_removal() {
    let nats = Nats::one().await;
    let first = Arc::new(Keys::shared(node(&nats).await, at(0)).await.unwrap());
    Keys::follow(&first);
    // As `souk keys rotate` does from a machine of its own.
    let operator = Keys::shared_existing(node(&nats).await, at(0)).await.unwrap();
    let old = kids(&operator, at(0)).remove(0);
    let new = operator.rotate_anywhere(at(10)).await.unwrap();
    until("the new key is known", async || kids(&first, at(10)) == [new.clone(), old.clone()]).await;
    let signing = |ms| first.current(at(ms)).signing(at(ms)).unwrap().kid.clone();
    assert_eq!(signing(10), old);
    assert_eq!(signing(10 + SHOWN_FIRST_MS), new);

    operator.remove(&old).await.unwrap();
    until("the old key is gone", async || kids(&first, at(10)) == [new.clone()]).await;
    assert!(matches!(operator.remove(&new).await, Err(KeysError::OnlyKey { .. })));
    assert!(matches!(operator.remove("01ARZ3NDEKTSV4RRFFQ69G5FAV").await, Err(KeysError::NoSuchKey { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_retired_leave_and_there_are_always_some() {
    let nats = Nats::one().await;
    let store = node(&nats).await;
    let keys = Keys::shared(store.clone(), at(0)).await.unwrap();
    let day = 25 * 60 * 60 * 1_000;
    for n in 1..4 {
        keys.rotate_anywhere(at(n * day)).await.unwrap();
    }
    assert_eq!(store.signing_keys().await.unwrap().len(), 2, "the newest and the one it replaced");
    for kid in store.signing_keys().await.unwrap() {
        store.destroy(&Name::SigningKey(kid)).await.unwrap();
    }
    let again = Keys::shared(store, at(5 * day)).await.unwrap();
    assert_eq!(kids(&again, at(5 * day)).len(), 1, "the first key's name is spent, so another is made");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_seals_another_opens_and_what_one_destroys_none_opens() {
    let nats = Nats::three().await;
    let (one, two) = (Vault::new(node(&nats).await), Vault::new(node(&nats).await));
    two.listen();
    let text = one.seal_first("usr_1", b"ada@example.com").await.unwrap();
    let other = one.seal_first("usr_2", b"grace@example.com").await.unwrap();
    assert_eq!(two.open_seal("usr_1", &text).await.unwrap().unwrap().as_slice(), b"ada@example.com");
    assert!(two.open_seal_now("usr_1", &text).is_some());
    let own = two.seal_first("usr_4", b"joan@example.com").await.unwrap();

    assert!(one.destroy("usr_1").await.unwrap());
    assert!(!one.destroy("usr_1").await.unwrap(), "once is enough");
    assert_eq!(one.open_seal("usr_1", &text).await.unwrap(), None);
    let destroyed = Instant::now();
    until("the other node lets go", async || two.open_seal_now("usr_1", &text).is_none()).await;
    // It was told, and did not have to ask.
    assert!(destroyed.elapsed() < Duration::from_millis(CONFIRM_MS / 2), "{:?}", destroyed.elapsed());
    assert!(two.open_seal_now("usr_4", &own).is_some(), "what it heard before of its own new key is no reason to let it go");
    assert_eq!(two.open_seal("usr_1", &text).await.unwrap(), None);
    for vault in [&one, &two] {
        assert!(matches!(vault.seal("usr_1", b"late").await, Err(SealError::Destroyed)));
        assert!(matches!(vault.seal_first("usr_1", b"later").await, Err(SealError::Destroyed)));
    }
    assert_eq!(two.open_seal("usr_2", &other).await.unwrap().unwrap().as_slice(), b"grace@example.com");
    // Also what never was: a sign-up that is refused may be under way elsewhere.
    assert!(!two.destroy("usr_3").await.unwrap());
    assert!(matches!(one.seal_first("usr_3", b"late").await, Err(SealError::Destroyed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_first_seals_and_a_destruction_at_once_nothing_opens_afterwards() {
    let nats = Nats::three().await;
    let nodes = [Vault::new(node(&nats).await), Vault::new(node(&nats).await), Vault::new(node(&nats).await)];
    for round in 0..30 {
        let user = format!("usr_{round}");
        let working = nodes.iter().enumerate().map(|(index, vault)| {
            let (vault, user) = (vault.clone(), user.clone());
            tokio::spawn(async move {
                if index == 0 {
                    vault.destroy(&user).await.unwrap();
                    return None;
                }
                match vault.seal_first(&user, b"mine").await {
                    Ok(text) => Some(text),
                    Err(SealError::Destroyed) => None,
                    Err(error) => panic!("{error}"),
                }
            })
        });
        let working: Vec<_> = working.collect();
        let fresh = Vault::new(node(&nats).await);
        for sealed in working {
            if let Some(text) = sealed.await.unwrap() {
                assert_eq!(fresh.open_seal(&user, &text).await.unwrap(), None, "round {round}");
            }
        }
        assert!(matches!(fresh.seal_first(&user, b"late").await, Err(SealError::Destroyed)), "round {round}");
    }
}

/// Every file below a folder that holds these bytes.
fn files_with(folder: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_with(&path, bytes)),
            // One that is removed at this moment holds nothing.
            false if std::fs::read(&path).is_ok_and(|file| file.windows(bytes.len()).any(|part| part == bytes)) => {
                found.push(path.display().to_string());
            }
            false => {}
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_key_is_written_over_on_the_servers_disk() {
    let nats = Nats::one().await;
    let store = node(&nats).await;
    let (name, other) = (Name::VaultKey([1; 32]), Name::VaultKey([2; 32]));
    let (key, kept) = ([0xa5_u8; 32], [0x5a_u8; 32]);
    assert!(store.create(&name, &key).await.unwrap());
    assert!(store.create(&other, &kept).await.unwrap());
    assert!(!files_with(&nats.folder(0), &key).is_empty(), "else this proves nothing");
    assert!(store.destroy(&name).await.unwrap());
    until("the disk no longer has it", async || files_with(&nats.folder(0), &key).is_empty()).await;
    assert_eq!(store.get(&name).await.unwrap(), None);
    assert_eq!(store.get(&other).await.unwrap().unwrap().as_slice(), kept);
    assert!(!store.create(&name, &key).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_secret_is_refused_where_accounts_are() {
    let nats = Nats::one().await;
    let store = node(&nats).await;
    let open = async |has_accounts| Identity::open_shared(store.clone(), None, has_accounts, at(0)).await.map(drop);
    assert!(matches!(open(true).await, Err(IdentityError::Secret(_))));
    assert!(store.signing_keys().await.unwrap().is_empty(), "nothing was made on the way");
    Vault::new(store.clone()).seal_first("usr_1", b"x").await.unwrap();
    assert!(matches!(open(false).await, Err(IdentityError::Secret(_))), "the vault has somebody's key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_servers_uses_what_it_holds_and_says_so_of_the_rest() {
    let mut nats = Nats::one().await;
    let store = node(&nats).await;
    let vault = Vault::new(store.clone());
    let keys = Arc::new(Keys::shared(store.clone(), at(0)).await.unwrap());
    Keys::follow(&keys);
    let known = kids(&keys, at(0));
    let text = vault.seal_first("usr_1", b"mine").await.unwrap();
    let cold = vault.seal_first("usr_2", b"mine").await.unwrap();
    let elsewhere = Vault::new(store.clone());
    nats.kill(0);
    assert_eq!(vault.open_seal("usr_1", &text).await.unwrap().unwrap().as_slice(), b"mine");
    vault.seal("usr_1", b"more").await.unwrap();
    let unreachable = |error| matches!(error, SealError::Busy | SealError::Keystore(KeystoreError::Unreachable(_)));
    assert!(unreachable(elsewhere.open_seal("usr_2", &cold).await.unwrap_err()), "never taken for destroyed");
    assert!(unreachable(vault.seal_first("usr_3", b"new").await.unwrap_err()));
    assert!(unreachable(vault.destroy("usr_1").await.unwrap_err()));
    assert_eq!(kids(&keys, at(60_000)), known);

    nats.restart(0);
    nats.ready().await.unwrap();
    until("the vault answers again", async || elsewhere.open_seal("usr_2", &cold).await.is_ok()).await;
    vault.seal_first("usr_3", b"new").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_loses_no_key_and_brings_none_back() {
    let mut nats = Nats::three().await;
    let vault = Vault::new(node(&nats).await);
    let kept = vault.seal_first("usr_1", b"mine").await.unwrap();
    let gone = vault.seal_first("usr_2", b"mine").await.unwrap();
    vault.destroy("usr_2").await.unwrap();
    let leader = nats.awaits_leader("KV_souk-identity").await;
    nats.kill(leader);
    let fresh = Vault::new(node(&nats).await);
    until("another leads", async || fresh.open_seal("usr_1", &kept).await.is_ok_and(|plain| plain.is_some())).await;
    assert_eq!(fresh.open_seal("usr_2", &gone).await.unwrap(), None);
    until("it can be written again", async || fresh.seal_first("usr_4", b"x").await.is_ok()).await;
    assert!(matches!(fresh.seal_first("usr_2", b"x").await, Err(SealError::Destroyed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_with_other_settings_is_refused_by_name_and_shops_do_not_mix() {
    let nats = Nats::one().await;
    let client = nats.client().await;
    let context = async_nats::jetstream::new(client.clone());
    let config = async_nats::jetstream::kv::Config { bucket: "other-identity".into(), history: 5, ..Default::default() };
    context.create_key_value(config).await.unwrap();
    let refused = SharedKeystore::open(&client, "other", 1, None).await.err().unwrap().to_string();
    assert!(refused.contains("max_msgs_per_subject 5") && refused.contains("other-identity"), "{refused}");
    let too_many = SharedKeystore::open(&client, "third", 3, None).await.err().unwrap().to_string();
    assert!(too_many.contains("third-identity"), "{too_many}");

    let (ours, theirs) = (node(&nats).await, SharedKeystore::open(&client, "shop2", 1, None).await.unwrap());
    ours.create(&Name::Secret, b"ours").await.unwrap();
    assert_eq!(theirs.get(&Name::Secret).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_an_identity_key_the_servers_hold_nothing_that_can_be_read() {
    let nats = Nats::start(NatsOptions::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, "c3".repeat(32)).unwrap();
    let client = nats.client().await;
    let wrapping = WrappingKey::read(&path).unwrap();
    let sealed = SharedKeystore::open(&client, PREFIX, 1, Some(wrapping)).await.unwrap();
    let key = [0xa5_u8; 32];
    sealed.create(&Name::VaultKey([1; 32]), &key).await.unwrap();
    assert_eq!(sealed.get(&Name::VaultKey([1; 32])).await.unwrap().unwrap().as_slice(), key);
    assert_eq!(files_with(&nats.folder(0), &key), Vec::<String>::new());

    let open = node(&nats).await;
    assert!(matches!(open.get(&Name::VaultKey([1; 32])).await, Err(KeystoreError::Sealed { .. })));
    open.create(&Name::Secret, b"planted").await.unwrap();
    assert!(matches!(sealed.get(&Name::Secret).await, Err(KeystoreError::NotSealed { .. })));
}

/// Given to whoever wonders how long a round takes: printed, not checked.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_made_and_read_within_the_patience_of_a_caller() {
    let nats = Nats::three().await;
    let vault = Vault::new(node(&nats).await);
    let begun = Instant::now();
    for n in 0..100 {
        vault.seal_first(&format!("usr_{n}"), b"x").await.unwrap();
    }
    let each = begun.elapsed() / 100;
    eprintln!("a first seal on three servers takes {each:?}");
    assert!(each < Duration::from_secs(1));
}
