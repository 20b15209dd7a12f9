//! The journal on JetStream: the common promises on one server and on a cluster of three, and those about other writers
//! and about servers that die.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use souk::domain::Timestamp;
use souk::persistence::jetstream::{Demands, OpenError, Prepared, Replicated};
use souk::persistence::nats::{Login, NatsOptions, Prefix};
use souk::persistence::{Append, AppendError, Journal, Position, ReadError, Wake};
use tokio::sync::OnceCell;

use crate::nats::{Nats, NatsOptions as ServerOptions};
use crate::promises::{append, append_after, append_whole, append_with, cart, next, payloads, within};

pub fn options(nats: &Nats, prefix: &str) -> NatsOptions {
    NatsOptions {
        urls: nats.urls(),
        prefix: Prefix::new(prefix).expect("a prefix"),
        name: "test".into(),
        ..NatsOptions::default()
    }
}

pub fn demands(nats: &Nats) -> Demands {
    Demands {
        monitors: (0..nats.len()).map(|index| format!("http://{}", nats.monitor_address(index))).collect(),
        allow_single_replica: nats.len() < 3,
        ..Demands::default()
    }
}

pub async fn open_with(
    nats: &Nats,
    prefix: &str,
    demands: &Demands,
    agenda: Option<&Path>,
) -> Result<(Arc<Replicated>, Prepared), OpenError> {
    let options = options(nats, prefix);
    let connection = souk::persistence::nats::Nats::connect(&options).await.expect("connected");
    Replicated::connect(&connection, &options, demands, agenda.map(Path::to_owned)).await
}

pub async fn open(nats: &Nats, prefix: &str) -> Arc<Replicated> {
    within(open_with(nats, prefix, &demands(nats), None)).await.expect("the journal opens").0
}

/// Servers that all tests share, each under a prefix of its own. They end with the process.
async fn one() -> &'static Nats {
    static ONE: OnceCell<Nats> = OnceCell::const_new();
    ONE.get_or_init(Nats::one).await
}

async fn three() -> &'static Nats {
    static THREE: OnceCell<Nats> = OnceCell::const_new();
    THREE.get_or_init(Nats::three).await
}

macro_rules! keeps {
    ($servers:ident: $($promise:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let prefix = &stringify!($promise)[..32.min(stringify!($promise).len())];
            promises::$promise(super::open(super::$servers().await, prefix).await).await;
        }
    )*};
}

macro_rules! keeps_all {
    ($($servers:ident)*) => {$(
        mod $servers {
            use crate::promises;

            keeps! { $servers:
                what_is_appended_is_read_back
                a_stale_version_is_refused_and_changes_nothing
                a_conflict_hurts_nobody_else
                ten_thousand_appends_by_many_tasks_are_all_there_and_ordered
                followers_start_anywhere_and_go_on_live
                the_agenda_holds_the_newest_wake
                an_entity_is_read_from_any_version_on_with_and_without_a_hint
                any_text_is_a_key
                a_batch_may_be_as_large_as_is_said_and_no_larger
            }
        }
    )*};
}

keeps_all! { one three }

/// Two nodes that both take themselves for the owner of an entity.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_writers_one_wins_and_the_other_hears_of_it() {
    for nats in [one().await, three().await] {
        let (left, right) = (open(nats, "two_writers").await, open(nats, "two_writers").await);
        let a = cart("a");
        let (mut version, mut after) = (0, Position(0));
        for round in 0..200 {
            let attempts = [(&left, "left"), (&right, "right")]
                .map(|(journal, name)| async move { append_after(&**journal, &cart("a"), version, after, name).await });
            let [left_heard, right_heard] = futures_util::future::join_all(attempts).await.try_into().expect("two");
            let lost = Err(AppendError::Conflict { expected: version, actual: version + 1 });
            after = match (left_heard, right_heard) {
                (Ok(position), other) | (other, Ok(position)) => {
                    assert_eq!(other, lost, "round {round}");
                    position
                }
                both => panic!("round {round}: {both:?}"),
            };
            version += 1;
        }
        assert_eq!(payloads(&*left, &a).await.len(), 200);
        // A zombie: it was away, and believes what it knew.
        for (expected, after) in
            [(0, Position(0)), (1, within(left.read(&a, 1, Position(0), 1)).await.expect("readable")[0].position)]
        {
            let zombie = append_after(&*right, &a, expected, after, "zombie").await;
            assert_eq!(zombie, Err(AppendError::Conflict { expected, actual: version }));
        }
        assert_eq!(payloads(&*right, &a).await.len(), 200);
    }
}

#[tokio::test]
async fn every_node_follows_what_any_node_writes() {
    let nats = one().await;
    let (left, right) = (open(nats, "every_node").await, open(nats, "every_node").await);
    let mut seen_left = left.follow(Position(0));
    for version in 0..50 {
        let writer = if version % 2 == 0 { &left } else { &right };
        let at = append(&**writer, &cart("a"), version, &version.to_string()).await.expect("stored");
        assert!(writer.highest() >= at, "a node sees its own writes at once");
        let seen = next(&mut seen_left).await;
        assert_eq!((seen.batch.position, seen.batch.first), (at, version + 1));
    }
    let mut seen_right = right.follow(Position(0));
    for version in 0..50 {
        assert_eq!(next(&mut seen_right).await.batch.first, version + 1);
    }
}

#[tokio::test]
async fn shops_on_one_account_do_not_see_each_other() {
    let nats = one().await;
    let (left, right) = (open(nats, "shop").await, open(nats, "shop-2").await);
    append(&*left, &cart("a"), 0, "left").await.expect("stored");
    append(&*right, &cart("a"), 0, "right").await.expect("stored");
    assert_eq!(payloads(&*left, &cart("a")).await, ["left"]);
    assert_eq!(payloads(&*right, &cart("a")).await, ["right"]);
    assert_eq!((left.highest(), right.highest()), (Position(1), Position(1)));
}

#[tokio::test]
async fn the_agenda_is_complete_when_a_node_starts_whoever_wrote_meanwhile() {
    let nats = one().await;
    let dir = tempfile::tempdir().expect("a folder");
    let noon = Wake::At(Timestamp::from_millis(1_795_219_200_000));
    let copy = dir.path().join("agenda");
    let other = open(nats, "agenda").await;
    for round in 0..3 {
        let (journal, _) = open_with(nats, "agenda", &demands(nats), Some(&copy)).await.expect("it opens");
        for id in 0..20 {
            let wake = if round == 2 && id % 2 == 0 { Wake::Never } else { noon };
            append_with(&*other, &cart(format!("{id:02}")), round * 2, 1, "x", wake).await.expect("stored");
        }
        drop(journal);
        append_with(&*other, &cart("away"), round, 1, "x", Wake::Now).await.expect("stored");
        for id in 0..20 {
            let wake = if id % 2 == 0 && round == 2 { Wake::Never } else { Wake::Now };
            append_with(&*other, &cart(format!("{id:02}")), round * 2 + 1, 1, "x", wake).await.expect("stored");
        }
        let (journal, _) = open_with(nats, "agenda", &demands(nats), Some(&copy)).await.expect("it opens");
        let (fresh, _) = open_with(nats, "agenda", &demands(nats), None).await.expect("it opens");
        let agenda = within(journal.agenda(None, 100)).await.expect("complete");
        assert_eq!(Ok(&agenda), within(fresh.agenda(None, 100)).await.as_ref());
        let awake = if round == 2 { 10 } else { 20 };
        assert_eq!(agenda.len(), awake + 1, "round {round}");
        assert!(agenda.iter().all(|(_, wake)| *wake == Wake::Now));
    }
}

#[tokio::test]
async fn what_is_not_as_it_was_written_is_named_and_never_skipped() {
    let nats = one().await;
    let journal = open(nats, "damaged").await;
    let first = append(&*journal, &cart("a"), 0, "x").await.expect("stored");
    let client = nats.client().await;
    client.request("damaged.j.cart.a", "not ours".into()).await.expect("stored");
    let after = append(&*journal, &cart("b"), 0, "x").await.expect("stored");
    let is_named =
        |heard: &ReadError| matches!(heard, ReadError::Corrupt { place, .. } if place.contains("position 2 (damaged.j.cart.a)"));
    let read = within(journal.read(&cart("a"), 1, Position(0), 9)).await;
    assert!(read.as_ref().is_err_and(is_named), "{read:?}");
    // A write on top of it cannot know what it is.
    let heard = append_after(&*journal, &cart("a"), 1, first, "x").await;
    assert!(matches!(heard, Err(AppendError::Unknown(_))), "{heard:?}");
    assert_eq!(payloads(&*journal, &cart("b")).await, ["x"]);
    for from in [Position(0), first] {
        let mut stream = journal.follow(from);
        if from < first {
            assert_eq!(next(&mut stream).await.batch.position, first);
        }
        let heard = within(futures_util::StreamExt::next(&mut stream)).await.expect("an error");
        assert!(heard.as_ref().is_err_and(is_named), "{heard:?}");
        assert!(within(futures_util::StreamExt::next(&mut stream)).await.is_none(), "and then the end");
    }
    assert!(journal.highest() >= after);
}

#[tokio::test]
async fn a_batch_too_large_for_the_server_is_refused_with_the_reason() {
    let nats = Nats::start(ServerOptions { max_payload: "64KB".into(), ..ServerOptions::default() }).await;
    let journal = open(&nats, "souk").await;
    let max = journal.batch_bytes_max();
    assert!((32 * 1024..64 * 1024).contains(&max), "{max}");
    let append = |bytes: usize| {
        let payload = Bytes::from(vec![b'x'; bytes]);
        append_whole(
            &*journal,
            Append { entity: cart("a"), expected: 0, after: Position(0), count: 1, payload, wake: Wake::Never },
        )
    };
    match append(max + 1).await {
        Err(AppendError::NotWritten(why)) => assert!(why.contains("max_payload"), "{why}"),
        other => panic!("{other:?}"),
    }
    append(max).await.expect("stored");
}

// ---------------------------------------------------------------------------------------------- what is refused at the start

async fn refusal(nats: &Nats, prefix: &str, demands: &Demands) -> String {
    match within(open_with(nats, prefix, demands, None)).await {
        Err(error) => error.to_string(),
        Ok((_, prepared)) => panic!("it opened: {prepared:?}"),
    }
}

#[tokio::test]
async fn what_the_journal_cannot_rely_on_is_refused_unless_a_flag_allows_it() {
    let lazy = Nats::start(ServerOptions { sync_always: false, ..ServerOptions::default() }).await;
    let strict = demands(&lazy);
    assert!(refusal(&lazy, "souk", &strict).await.contains("sync_interval: always"));
    let mut unknown = Demands { monitors: Vec::new(), ..strict.clone() };
    let said = refusal(one().await, "unknown", &unknown).await;
    assert!(said.contains("cannot be learnt"), "{said}");
    unknown.monitors = vec!["http://127.0.0.1:1".into()];
    let said = refusal(one().await, "unknown", &unknown).await;
    assert!(said.contains("http://127.0.0.1:1"), "{said}");
    let said = refusal(&lazy, "souk", &Demands { allow_single_replica: false, ..strict.clone() }).await;
    assert!(said.contains("1 copies"), "{said}");

    let allowed = Demands { allow_lazy_sync: true, ..strict };
    let (_, prepared) = within(open_with(&lazy, "souk", &allowed, None)).await.expect("it opens");
    assert_eq!((prepared.replicas, prepared.servers.as_slice(), prepared.risks.len()), (1, &["n0".to_owned()][..], 2));
    let (_, prepared) = within(open_with(three().await, "demands", &demands(three().await), None)).await.expect("it opens");
    assert_eq!((prepared.replicas, prepared.servers.len(), prepared.risks.len()), (3, 3, 0));
}

#[tokio::test]
async fn a_journal_that_is_there_opens_while_one_of_its_servers_is_out() {
    let mut nats = Nats::three().await;
    let (journal, made) = within(open_with(&nats, "souk", &demands(&nats), None)).await.unwrap();
    append(&*journal, &cart("a"), 0, "one").await.unwrap();
    let leader = nats.awaits_leader("souk-journal").await;
    for out in [(leader + 1) % 3, leader] {
        nats.kill(out);
        let begun = std::time::Instant::now();
        let (opened, found) = within(open_with(&nats, "souk", &demands(&nats), None)).await.unwrap();
        println!("opened {:?} after a server was killed", begun.elapsed());
        assert_eq!((found.replicas, found.servers), (made.replicas, made.servers.clone()));
        assert_eq!(payloads(&*opened, &cart("a")).await, ["one"]);
        nats.restart(out);
        nats.ready().await.unwrap();
    }
}

#[tokio::test]
async fn a_stream_that_is_there_and_wrong_is_refused_and_left_alone() {
    let nats = one().await;
    let client = nats.client().await;
    let create = r#"{"name":"wrong-journal","subjects":["wrong.j.>"],"storage":"file","num_replicas":1,"max_msgs":1000}"#;
    let made = client.request("$JS.API.STREAM.CREATE.wrong-journal", create.into()).await.expect("made");
    assert!(!String::from_utf8_lossy(&made.payload).contains("error"), "{made:?}");
    let said = refusal(nats, "wrong", &demands(nats)).await;
    assert!(said.contains("wrong-journal has ") && said.contains("must be"), "{said}");
    let again = refusal(nats, "wrong", &demands(nats)).await;
    assert_eq!(said, again);
}

#[tokio::test]
async fn a_login_and_the_system_account_are_used() {
    let accounts = r#"
        accounts {
            SHOP: { jetstream: enabled, users: [{ user: souk, password: geheim }] }
            SYS: { users: [{ user: root, password: secret }] }
        }
        system_account: SYS
    "#;
    let nats = Nats::start(ServerOptions { extra: accounts.into(), ..ServerOptions::default() }).await;
    let login = |user: &str, password: &str| Login::Password { user: user.into(), password: password.into() };
    let mut options = options(&nats, "souk");
    let refused = souk::persistence::nats::Nats::connect(&options).await.err().expect("nobody is let in").to_string();
    assert!(refused.contains("authorization"), "{refused}");
    options.login = login("souk", "geheim");
    let connection = souk::persistence::nats::Nats::connect(&options).await.expect("connected");
    let system = Some(login("root", "secret"));
    let demands = Demands { allow_single_replica: true, system, ..Demands::default() };
    let (journal, prepared) = within(Replicated::connect(&connection, &options, &demands, None)).await.expect("it opens");
    assert_eq!(prepared.risks.len(), 1, "{prepared:?}");
    append(&*journal, &cart("a"), 0, "x").await.expect("stored");
}
