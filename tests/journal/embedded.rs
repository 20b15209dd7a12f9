//! The embedded journal: the common promises, and those about its own disk.

use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use souk::persistence::{AppendError, Embedded, EntityKey, Journal, OpenError, Options, Position};

use crate::promises::{self, append, cart, next, payloads, within};

fn open(dir: &Path) -> Arc<Embedded> {
    Embedded::open(dir, Options::default()).expect("the journal opens").0
}

macro_rules! keeps {
    ($($promise:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let dir = tempfile::tempdir().expect("a folder");
            promises::$promise(open(dir.path())).await;
        }
    )*};
}

keeps! {
    what_is_appended_is_read_back
    a_stale_version_is_refused_and_changes_nothing
    a_conflict_hurts_nobody_else
    ten_thousand_appends_by_many_tasks_are_all_there_and_ordered
    followers_start_anywhere_and_go_on_live
    the_agenda_holds_the_newest_wake
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let dir = tempfile::tempdir().expect("a folder");
    for version in 0..5 {
        let (journal, report) = Embedded::open(dir.path(), Options::default()).expect("the journal opens");
        assert_eq!((report.highest, report.repairs), (Position(version), vec![]));
        let early = append(&*journal, &cart("a"), version + 1, "never").await;
        assert_eq!(early, Err(AppendError::Conflict { expected: version + 1, actual: version }));
        append(&*journal, &cart("a"), version, &version.to_string()).await.expect("stored");
        journal.close();
        let late = append(&*journal, &cart("a"), version + 1, "never").await;
        assert!(matches!(late, Err(AppendError::NotWritten(_))), "{late:?}");
    }
    let journal = open(dir.path());
    assert_eq!(payloads(&*journal, &cart("a")).await, ["0", "1", "2", "3", "4"]);
    let mut stream = journal.follow(Position(0));
    for position in 1..=5 {
        assert_eq!(next(&mut stream).await.batch.position, Position(position));
    }
    journal.close();
    assert!(within(stream.next()).await.is_none(), "a follower ends with the journal");
}

#[tokio::test]
async fn a_follower_far_behind_reads_from_the_disk_and_joins_the_ring_without_a_seam() {
    let dir = tempfile::tempdir().expect("a folder");
    let options = Options { ring_batches: 8, ring_bytes: 64, group_batches: 3, ..Options::default() };
    let (journal, _) = Embedded::open(dir.path(), options).expect("the journal opens");
    let writer = journal.clone();
    let mut slow = journal.follow(Position(0));
    let writes = tokio::spawn(async move {
        for round in 0..40u64 {
            let group = (0..10).map(|id| {
                let writer = writer.clone();
                async move { append(&*writer, &cart(id), round, "0123456789").await.expect("stored") }
            });
            futures_util::future::join_all(group).await;
        }
    });
    for position in 1..=400 {
        assert_eq!(next(&mut slow).await.batch.position, Position(position));
    }
    within(writes).await.expect("the writer ended well");
    let mut late = journal.follow(Position(5));
    for position in 6..=400 {
        assert_eq!(next(&mut late).await.batch.position, Position(position));
    }
}

#[tokio::test]
async fn a_second_process_is_told_that_the_folder_is_in_use() {
    let dir = tempfile::tempdir().expect("a folder");
    let journal = open(dir.path());
    match Embedded::open(dir.path(), Options::default()) {
        Err(error @ OpenError::InUse { .. }) => {
            assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
        }
        other => panic!("{:?}", other.map(|(_, report)| report)),
    }
    journal.close();
    open(dir.path());
}

#[tokio::test]
async fn keys_that_cannot_be_stored_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let journal = open(dir.path());
    for id in ["with\0nul".to_owned(), "x".repeat(2_000)] {
        let refused = append(&*journal, &cart(id), 0, "never").await;
        assert!(matches!(refused, Err(AppendError::NotWritten(_))), "{refused:?}");
    }
    let strange = EntityKey::new("cart", "ünï/cödé \u{1}\u{7f} 🛒");
    append(&*journal, &strange, 0, "stored").await.expect("any other text is a key");
    assert_eq!(payloads(&*journal, &strange).await, ["stored"]);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_recovers() {
    let dir = tempfile::tempdir().expect("a folder");
    let journal = open(dir.path());
    append(&*journal, &cart("a"), 0, "before").await.expect("stored");
    journal.close();
    let options = Options { disk_reserve_bytes: u64::MAX, ..Options::default() };
    let (journal, _) = Embedded::open(dir.path(), options).expect("a full disk does not keep it from opening");
    match append(&*journal, &cart("a"), 1, "never").await {
        Err(AppendError::NotWritten(reason)) => assert!(reason.contains("disk is full"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(payloads(&*journal, &cart("a")).await, ["before"]);
    journal.set_disk_reserve(0);
    within(async {
        while append(&*journal, &cart("a"), 1, "after").await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(payloads(&*journal, &cart("a")).await, ["before", "after"]);
}
