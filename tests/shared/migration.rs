use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use souk::domain::{CommandId, Timestamp};
use souk::http::identity::keys::Keys;
use souk::http::identity::keystore::{Folder, Keystore, Name, SharedKeystore};
use souk::http::identity::seals::Vault;
use souk::http::identity::secret::Secret;
use souk::persistence::migration::{MigrationError, Report, Step, migrate};
use souk::persistence::record::{Cause, PayloadWriter};
use souk::persistence::{Append, AppendError, Embedded, EntityKey, Journal, Options, Position, Version, Wake};
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::DEADLINE;
use crate::faulty::{Fault, Faulty};
use crate::nats::Nats;

fn open(folder: &TempDir) -> Arc<Embedded> {
    Embedded::open(&folder.path().join("journal"), Options::default()).unwrap().0
}

fn payload(entity: &EntityKey, first: Version, count: u32, wake: Wake, text: &str) -> Vec<u8> {
    let mut payload = PayloadWriter::default();
    for version in first..first + u64::from(count) {
        let command = CommandId(format!("c{version}"));
        let cause = Cause { command: &command, correlation: "r", asker: "t", time: Timestamp::from_millis(0) };
        let event = serde_json::json!({ "type": "cart.item.added", "data": { "text": text } });
        payload.event(entity, version, cause, &event).unwrap();
    }
    payload.finish(wake).unwrap()
}

/// Writes as an owner does: one batch after another for each entity.
#[derive(Default)]
struct Writer(HashMap<EntityKey, (Version, Position)>);

impl Writer {
    fn send(
        &mut self,
        journal: &dyn Journal,
        id: &str,
        count: u32,
        wake: Wake,
        text: &str,
    ) -> (EntityKey, Version, oneshot::Receiver<Result<Position, AppendError>>) {
        let entity = EntityKey::new("cart", id);
        let (version, after) = self.0.get(&entity).copied().unwrap_or_default();
        let payload = payload(&entity, version + 1, count, wake, text).into();
        let (done, landed) = oneshot::channel();
        let append = Append { entity: entity.clone(), expected: version, after, count, payload, wake };
        journal.append(append, Box::new(move |result| drop(done.send(result))));
        (entity, version + u64::from(count), landed)
    }

    async fn write(&mut self, journal: &dyn Journal, id: &str, count: u32, wake: Wake, text: &str) {
        let (entity, version, landed) = self.send(journal, id, count, wake, text);
        self.0.insert(entity, (version, landed.await.unwrap().unwrap()));
    }
}

/// A shop's journal: rounds in which each entity writes a batch, one that writes more than all others, and wakes of
/// every kind.
async fn fill(journal: &Embedded, entities: usize, rounds: usize) -> u64 {
    let mut writer = Writer::default();
    let mut batches = 0;
    for round in 0..rounds {
        let mut sent = Vec::new();
        for n in 0..entities {
            let wake = match (n + round) % 5 {
                0 => Wake::Now,
                1 => Wake::At(Timestamp::from_millis(1_800_000_000_000 + n as i64)),
                _ => Wake::Never,
            };
            let count = 1 + ((n * 7 + round) % 3) as u32;
            sent.push(writer.send(journal, &format!("id {n}."), count, wake, &"x".repeat(n % 300)));
        }
        for (entity, version, landed) in sent {
            writer.0.insert(entity, (version, landed.await.unwrap().unwrap()));
            batches += 1;
        }
        for _ in 0..3 {
            writer.write(journal, "hot", 2, Wake::Never, "busy").await;
            batches += 1;
        }
    }
    batches
}

/// What each entity's batches say, in their order, without where they stand.
async fn content(journal: &dyn Journal) -> HashMap<EntityKey, Vec<(Version, u32, Vec<u8>)>> {
    let mut content: HashMap<_, Vec<_>> = HashMap::new();
    let mut batches = journal.follow(Position(0));
    let mut reached = Position(0);
    while reached < journal.highest() {
        let committed = tokio::time::timeout(DEADLINE, batches.next()).await.unwrap().unwrap().unwrap();
        reached = committed.batch.position;
        let batch = committed.batch;
        content.entry(committed.entity).or_default().push((batch.first, batch.count, batch.payload.to_vec()));
    }
    content
}

async fn assert_same(from: &dyn Journal, to: &dyn Journal) {
    let (should, is) = (content(from).await, content(to).await);
    assert_eq!(should.len(), is.len());
    for (entity, batches) in should {
        assert!(is.get(&entity) == Some(&batches), "{entity}");
    }
    assert_eq!(from.agenda(None, 1_000_000).await.unwrap(), to.agenda(None, 1_000_000).await.unwrap());
}

async fn run(from: &Embedded, to: &dyn Journal) -> Result<Report, MigrationError> {
    migrate(from, to, |_| {}).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_says_and_wakes_the_same_and_a_second_run_changes_nothing() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (open(&source), open(&target));
    let batches = fill(&from, 200, 8).await;
    let report = run(&from, &*to).await.unwrap();
    assert_eq!((report.entities, report.batches, report.written), (201, batches, batches));
    assert_same(&*from, &*to).await;
    let highest = to.highest();
    assert_eq!(run(&from, &*to).await.unwrap(), Report { written: 0, ..report });
    assert_eq!(to.highest(), highest);
    // What comes to be after it is copied by another run.
    let mut writer = Writer::default();
    writer.write(&*from, "later", 1, Wake::Now, "").await;
    assert_eq!(run(&from, &*to).await.unwrap().written, 1);
    assert_same(&*from, &*to).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_shop_is_moved_too() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let report = run(&open(&source), &*open(&target)).await.unwrap();
    assert_eq!(report, Report { entities: 0, batches: 0, records: 0, written: 0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_again_and_again_it_goes_on_and_writes_nothing_twice() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (open(&source), open(&target));
    let batches = fill(&from, 300, 10).await;
    let mut interrupted = 0;
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    loop {
        // Ended at a batch, not at a time: so it is ended however fast the machine is.
        let left = AtomicU64::new(random.u64(1..=batches / 4));
        let (end, ended) = oneshot::channel::<()>();
        let end = std::sync::Mutex::new(Some(end));
        let running = migrate(&*from, &*to, |step| {
            if matches!(step, Step::Copying(..)) && left.fetch_sub(1, Ordering::Relaxed) == 1 {
                drop(end.lock().unwrap().take());
            }
        });
        tokio::select! {
            done = running => {
                assert!(done.unwrap().written > 0);
                break;
            }
            _ = ended => interrupted += 1,
        }
    }
    assert!(interrupted >= 3, "{interrupted}");
    assert_same(&*from, &*to).await;
    assert_eq!(run(&from, &*to).await.unwrap().batches, batches);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_refuses_and_forgets_gets_each_batch_once() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (open(&source), open(&target));
    let batches = fill(&from, 100, 5).await;
    let faulty = Faulty::over(to.clone());
    let mut random = fastrand::Rng::with_seed(7);
    faulty.rule(move |_| match random.u32(..100) {
        0..3 => Fault::NotWritten,
        3..10 => Fault::StoredButUnknown,
        _ => Fault::None,
    });
    let report = run(&from, &*faulty).await.unwrap();
    assert_eq!(report.batches, batches);
    assert!(faulty.appends.load(Ordering::SeqCst) > batches, "nothing was tried twice");
    assert_same(&*from, &*to).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_takes_nothing_ends_it_with_a_reason_and_it_goes_on_afterwards() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (open(&source), open(&target));
    fill(&from, 20, 2).await;
    let faulty = Faulty::over(to.clone());
    faulty.rule(|append| if append.entity.id() == "id 7." { Fault::NotWritten } else { Fault::None });
    let error = tokio::time::timeout(4 * DEADLINE, run(&from, &*faulty)).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("cart/id 7."), "{error}");
    faulty.heal();
    run(&from, &*faulty).await.unwrap();
    assert_same(&*from, &*to).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_holds_anything_else_is_refused_by_name_and_left_alone() {
    let source = tempfile::tempdir().unwrap();
    let from = open(&source);
    fill(&from, 20, 3).await;
    let cases: [(&str, u32, &str); 3] = [("stranger", 1, "cart/stranger"), ("id 3.", 1, "cart/id 3."), ("hot", 9, "cart/hot")];
    for (id, count, named) in cases {
        let target = tempfile::tempdir().unwrap();
        let to = open(&target);
        Writer::default().write(&*to, id, count, Wake::Never, "other").await;
        let highest = to.highest();
        let error = run(&from, &*to).await.unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
        assert_eq!(to.highest(), highest, "nothing was added");
    }
    // One that went on by itself after it was moved.
    let target = tempfile::tempdir().unwrap();
    let to = open(&target);
    run(&from, &*to).await.unwrap();
    let mut writer = Writer::default();
    let newest = content(&*to).await[&EntityKey::new("cart", "hot")].iter().map(|(_, count, _)| u64::from(*count)).sum();
    let after = to.newest(&EntityKey::new("cart", "hot")).await.unwrap();
    writer.0.insert(EntityKey::new("cart", "hot"), (newest, after));
    writer.write(&*to, "hot", 1, Wake::Never, "sold there").await;
    let error = run(&from, &*to).await.unwrap_err();
    assert!(matches!(error, MigrationError::Differs { .. }) && error.to_string().contains("cart/hot"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_many_entities_is_copied_fast() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (open(&source), open(&target));
    let batches = fill(&from, 5_000, 6).await;
    let begun = Instant::now();
    run(&from, &*to).await.unwrap();
    let took = begun.elapsed();
    let again = Instant::now();
    run(&from, &*to).await.unwrap();
    eprintln!("{batches} batches: copied and compared in {took:?}, compared once more in {:?}", again.elapsed());
}

// The command, against real servers ---------------------------------------------------------------------------------

fn souk_migrate(data: &Path, nats: &Nats) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_souk"));
    let servers = nats.urls().join(",");
    command.arg("migrate").arg("--data").arg(data).args(["--nats", &servers, "--replicas", "3"]);
    for index in 0..nats.len() {
        command.args(["--nats-monitor", &format!("http://{}", nats.monitor_address(index))]);
    }
    command
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_moves_a_shop_through_kills_with_its_keys_and_says_when_there_is_nothing_to_do() {
    let nats = Nats::three().await;
    let folder = tempfile::tempdir().unwrap();
    let batches = {
        let journal = open(&folder);
        let batches = fill(&journal, 1_000, 6).await;
        journal.close();
        batches
    };
    let local: Arc<dyn Keystore> = Arc::new(Folder::new(folder.path()));
    let secret = Secret::open(&*local, false).await.unwrap();
    let now = Timestamp::from_millis(1_800_000_000_000);
    let signing = Keys::open(&folder.path().join("keys"), now).unwrap();
    let vault = Vault::new(local.clone());
    let mut seals = Vec::new();
    for n in 0..200 {
        seals.push(vault.seal_first(&format!("usr_{n}"), b"personal").await.unwrap());
    }

    let mut kills = 0;
    for pause_ms in std::iter::successors(Some(100), |pause_ms| Some(pause_ms * 4 / 3)) {
        let mut running = souk_migrate(folder.path(), &nats).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // The kill may come at any moment; the loop ends because it comes ever later.
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        if let Some(status) = running.try_wait().unwrap() {
            assert!(status.success(), "{}", said(&running.wait_with_output().unwrap()));
            break;
        }
        running.kill().unwrap();
        running.wait().unwrap();
        kills += 1;
    }
    eprintln!("{kills} kills");
    assert!(kills > 0, "it was done before it could be killed");

    // Between two runs the shop forgets somebody, and learns of somebody else.
    assert!(vault.destroy("usr_7").await.unwrap());
    seals.push(vault.seal_first("usr_200", b"personal").await.unwrap());
    let again = souk_migrate(folder.path(), &nats).output().unwrap();
    assert!(again.status.success() && said(&again).contains("0 batches and 2 keys"), "{}", said(&again));
    let once_more = souk_migrate(folder.path(), &nats).output().unwrap();
    assert!(once_more.status.success() && said(&once_more).contains("nothing was changed"), "{}", said(&once_more));

    let shared: Arc<dyn Keystore> = Arc::new(SharedKeystore::open(&nats.client().await, "souk", 3, None).await.unwrap());
    let moved = Secret::open(&*shared, true).await.unwrap();
    assert_eq!(moved.email_id("ada@example.com"), secret.email_id("ada@example.com"));
    let keys = Keys::shared_existing(shared.clone(), now).await.unwrap();
    assert_eq!(keys.current(now).to_jwks(now), signing.current(now).to_jwks(now));
    let there = Vault::new(shared.clone());
    for (n, seal) in seals.iter().enumerate() {
        let opened = there.open_seal(&format!("usr_{n}"), seal).await.unwrap();
        assert_eq!(opened.is_some(), n != 7, "usr_{n}");
    }
    let stream = async_nats::jetstream::new(nats.client().await).get_stream("souk-journal").await.unwrap();
    assert_eq!(stream.cached_info().state.messages, batches, "each batch is one message, once");

    // A shop that is not this one.
    let other = tempfile::tempdir().unwrap();
    fill(&open(&other), 3, 1).await;
    let refused = souk_migrate(other.path(), &nats).output().unwrap();
    assert!(!refused.status.success() && said(&refused).contains("secret in the bucket"), "{}", said(&refused));
    assert!(shared.get(&Name::FirstSigningKey).await.unwrap().is_none());
}
