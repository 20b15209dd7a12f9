//! The embedded journal: the common promises, and those about its own disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt;
use souk::persistence::{AppendError, Embedded, Journal, OpenError, Options, Position};

use crate::promises::{self, append, append_after, cart, next, payloads, within};

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
    an_entity_is_read_from_any_version_on_with_and_without_a_hint
    any_text_is_a_key
    a_batch_may_be_as_large_as_is_said_and_no_larger
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
        let late = append_after(&*journal, &cart("a"), version + 1, Position(version + 1), "never").await;
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

/// Callers should wait for one write before the next; those that do not still get no gap and no lost write.
#[tokio::test]
async fn appends_of_one_entity_that_share_a_group_build_on_each_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let journal = open(dir.path());
    let a = cart("a");
    for round in 0..20 {
        let at = round * 2;
        let [first, second, stale, third] =
            futures_util::future::join_all([at, at + 1, at + 1, at + 5].map(|expected| append(&*journal, &a, expected, "x")))
                .await
                .try_into()
                .expect("four answers");
        assert!(first.expect("stored") < second.expect("stored"));
        assert_eq!(stale, Err(AppendError::Conflict { expected: at + 1, actual: at + 2 }));
        assert_eq!(third, Err(AppendError::Conflict { expected: at + 5, actual: at + 2 }));
    }
    assert_eq!(payloads(&*journal, &a).await.len(), 40);
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

// ---------------------------------------------------------------------------------------------- damage

/// The one write-ahead file of a small journal, and how many bytes of it hold batches.
fn write_ahead_file(dir: &Path) -> (PathBuf, usize) {
    let files = std::fs::read_dir(dir.join("fjall")).expect("the database's folder").map(|entry| entry.expect("an entry").path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|ext| ext == "jnl")).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    let bytes = std::fs::read(file).expect("readable");
    (file.clone(), bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1))
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let (from, to) = {
            let entry = entry.expect("an entry");
            (entry.path(), to.join(entry.file_name()))
        };
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            std::fs::copy(from, to).expect("copied");
        }
    }
}

/// A journal of `before` batches whose acknowledgement is on the disk, and `unsynced` more that a power failure could
/// still take; answers where in the write-ahead file the latter begin.
async fn journal_with_an_unsynced_tail(dir: &Path, before: u64, unsynced: u64) -> usize {
    let journal = open(dir);
    for version in 0..before {
        append(&*journal, &cart("a"), version, &version.to_string()).await.expect("stored");
    }
    let mark = std::fs::read(dir.join("acknowledged")).expect("the mark");
    let (_, begins) = write_ahead_file(dir);
    for version in before..before + unsynced {
        append(&*journal, &cart("a"), version, &version.to_string()).await.expect("stored");
    }
    journal.close();
    // Without fjall's 64 MiB of zeros the copies are quick.
    let (file, ends) = write_ahead_file(dir);
    std::fs::OpenOptions::new().write(true).open(file).expect("the file").set_len(ends as u64).expect("cut");
    std::fs::write(dir.join("acknowledged"), mark).expect("the mark as the power failure left it");
    begins
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_is_repaired_and_all_before_it_is_there() {
    const BEFORE: u64 = 4;
    let dir = tempfile::tempdir().expect("a folder");
    let whole = dir.path().join("whole");
    let begins = journal_with_an_unsynced_tail(&whole, BEFORE, 2).await;
    let (_, ends) = write_ahead_file(&whole);
    let mut kept_before = BEFORE;
    for cut in begins..=ends {
        let torn = dir.path().join("torn");
        copy_folder(&whole, &torn);
        let (file, _) = write_ahead_file(&torn);
        std::fs::OpenOptions::new().write(true).open(file).expect("the file").set_len(cut as u64).expect("cut");
        let (journal, report) = Embedded::open(&torn, Options::default()).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
        let kept = report.highest.0;
        assert!((kept_before..=kept_before + 1).contains(&kept), "cut at {cut}: {kept} batches");
        assert_eq!(report.repairs.is_empty(), kept > kept_before || cut == begins, "cut at {cut}: {:?}", report.repairs);
        kept_before = kept;
        let expected: Vec<_> = (0..kept).map(|version| version.to_string()).collect();
        assert_eq!(payloads(&*journal, &cart("a")).await, expected);
        append(&*journal, &cart("a"), kept, "again").await.expect("the journal goes on");
        journal.close();
        let journal = open(&torn);
        assert_eq!(payloads(&*journal, &cart("a")).await.len() as u64, kept + 1);
        journal.close();
        std::fs::remove_dir_all(torn).expect("removed");
    }
    assert_eq!(kept_before, BEFORE + 2);
}

/// Refusing must change nothing: an operator's second look sees what the first saw.
fn refused(dir: &Path) -> (String, String) {
    let refuse = || match Embedded::open(dir, Options::default()) {
        Err(OpenError::Corrupt { place, what }) => (place, what),
        Err(other) => panic!("{other}"),
        Ok((_, report)) => panic!("it opened: {report:?}"),
    };
    let first = refuse();
    assert_eq!(refuse(), first);
    first
}

#[tokio::test]
async fn a_flipped_byte_in_the_middle_refuses_to_start_and_names_the_place() {
    let dir = tempfile::tempdir().expect("a folder");
    let whole = dir.path().join("whole");
    let last = journal_with_an_unsynced_tail(&whole, 5, 1).await;
    let (file, _) = write_ahead_file(&whole);
    let sound = std::fs::read(file).expect("readable");
    let damaged = dir.path().join("damaged");
    copy_folder(&whole, &damaged);
    let (file, ends) = write_ahead_file(&damaged);
    let mut refusals = 0;
    for at in 0..last {
        let mut bytes = sound[..ends].to_vec();
        bytes[at] ^= 0xff;
        std::fs::write(&file, &bytes).expect("damaged");
        let (place, what) = refused(&damaged);
        assert!(place.contains(".jnl, byte "), "byte {at}: {place}: {what}");
        assert_eq!(std::fs::read(&file).expect("readable"), bytes, "a refusal changes nothing");
        refusals += 1;
    }
    assert_eq!(refusals, last);
    std::fs::write(&file, &sound[..ends]).expect("restored");
    assert_eq!(open(&damaged).highest(), Position(6));
}

#[tokio::test]
async fn a_last_batch_that_was_acknowledged_is_never_taken_for_a_torn_tail() {
    let dir = tempfile::tempdir().expect("a folder");
    let journal = open(dir.path());
    for version in 0..3 {
        append(&*journal, &cart("a"), version, "x").await.expect("stored");
    }
    journal.close();
    let (file, ends) = write_ahead_file(dir.path());
    let sound = std::fs::read(&file).expect("readable");
    let mut bytes = sound[..ends].to_vec();
    bytes[ends - 30] ^= 1;
    std::fs::write(&file, &bytes).expect("damaged");
    let (_, what) = refused(dir.path());
    assert!(what.contains("3 was acknowledged"), "{what}");
    std::fs::write(&file, []).expect("emptied");
    let (_, what) = refused(dir.path());
    assert!(what.contains("3 was acknowledged"), "{what}");
    std::fs::write(&file, &sound).expect("restored");
    assert_eq!(open(dir.path()).highest(), Position(3));
}

#[tokio::test]
async fn lost_files_refuse_to_start() {
    let dir = tempfile::tempdir().expect("a folder");
    let whole = dir.path().join("whole");
    journal_with_an_unsynced_tail(&whole, 3, 0).await;
    for lost in ["fjall/version", "fjall/keyspaces/1/current", "fjall/keyspaces/0/current", "fjall/0.jnl"] {
        let damaged = dir.path().join("damaged");
        copy_folder(&whole, &damaged);
        std::fs::remove_file(damaged.join(lost)).unwrap_or_else(|e| panic!("{lost}: {e}"));
        refused(&damaged);
        std::fs::remove_dir_all(damaged).expect("removed");
    }
}

#[tokio::test]
async fn a_flipped_byte_in_a_table_is_noticed() {
    let dir = tempfile::tempdir().expect("a folder");
    // Small memtables, so that batches reach the tables.
    let options = Options { memtable_bytes: 64 * 1024, ..Options::default() };
    let (journal, _) = Embedded::open(dir.path(), options.clone()).expect("the journal opens");
    let payload = "0123456789abcdef".repeat(64);
    let tables = |dir: &Path| -> Vec<PathBuf> {
        let spaces = std::fs::read_dir(dir.join("fjall/keyspaces")).expect("folders").map(|e| e.expect("an entry").path());
        let files = spaces
            .filter(|space| !space.ends_with("0"))
            .flat_map(|space| std::fs::read_dir(space.join("tables")).into_iter().flatten().map(|e| e.expect("an entry").path()));
        files.collect()
    };
    let mut written = 0;
    within(async {
        while tables(dir.path()).is_empty() || written < 200 {
            append(&*journal, &cart(written), 0, &payload).await.expect("stored");
            written += 1;
        }
    })
    .await;
    journal.close();
    let table = tables(dir.path()).into_iter().max_by_key(|path| path.metadata().map_or(0, |m| m.len())).expect("a table");
    let sound = std::fs::read(&table).expect("readable");
    let mut noticed = 0;
    for at in (0..sound.len()).step_by(sound.len() / 24) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0xff;
        std::fs::write(&table, bytes).expect("damaged");
        // Either it does not open, or a reader of everything hears of it, or the byte holds nothing that matters.
        match Embedded::open(dir.path(), options.clone()) {
            Err(_) => noticed += 1,
            Ok((journal, _)) => {
                let mut stream = journal.follow(Position(0));
                let mut seen = 0;
                while seen < written {
                    match within(stream.next()).await.expect("an error comes before the end") {
                        Ok(committed) => assert_eq!(&committed.batch.payload[..], payload.as_bytes()),
                        Err(_) => {
                            noticed += 1;
                            assert!(within(stream.next()).await.is_none(), "what is corrupt is not skipped");
                            break;
                        }
                    }
                    seen += 1;
                }
                drop(stream);
                journal.close();
                if seen < written {
                    let all = Options { verify_batches: usize::MAX, ..options.clone() };
                    assert!(Embedded::open(dir.path(), all).is_err(), "whoever has all of it checked does not start on this");
                }
            }
        }
    }
    std::fs::write(&table, sound).expect("restored");
    assert!(noticed > 12, "only {noticed} of 24 damages were noticed");
    assert_eq!(open(dir.path()).highest(), Position(written));
}

// ---------------------------------------------------------------------------------------------- crashes

const CRASH_DIR: &str = "SOUK_TEST_CRASH_DIR";

/// Not a test by itself: the process that `what_was_acknowledged_survives_a_kill` kills.
#[tokio::test]
async fn appends_until_it_is_killed() {
    let Ok(dir) = std::env::var(CRASH_DIR) else { return };
    // Small memtables, so that some kills hit a flush, a rotation or a compaction.
    let options = Options { memtable_bytes: 256 * 1024, ..Options::default() };
    let (journal, _) = Embedded::open(Path::new(&dir), options).expect("the journal opens");
    let writers = (0..8).map(|writer| {
        let journal = journal.clone();
        async move {
            let entity = cart(writer);
            let mut version = payloads(&*journal, &entity).await.len() as u64;
            loop {
                let payload = format!("{version}").repeat(100);
                append(&*journal, &entity, version, &payload).await.expect("stored");
                version += 1;
                println!("acknowledged {writer} {version}");
            }
        }
    });
    futures_util::future::join_all(writers).await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    use std::io::BufRead;
    let dir = tempfile::tempdir().expect("a folder");
    let mut acknowledged = [0u64; 8];
    for round in 0..12 {
        let mut child = std::process::Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "embedded::appends_until_it_is_killed", "--nocapture"])
            .env(CRASH_DIR, dir.path())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the child starts");
        let mut lines = std::io::BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut left = fastrand::u32(1..3_000);
        let mut note = |line: String| {
            let mut words = line.split_whitespace().skip_while(|word| *word != "acknowledged").skip(1);
            if let (Some(writer), Some(version)) = (words.next(), words.next())
                && let (Ok(writer), Ok(version)) = (writer.parse::<usize>(), version.parse::<u64>())
            {
                acknowledged[writer] = acknowledged[writer].max(version);
                left = left.saturating_sub(1);
            }
            left > 0
        };
        while lines.next().is_some_and(|line| note(line.expect("text"))) {}
        child.kill().expect("killed");
        child.wait().expect("gone");
        // What it still had said before it died counts as well.
        for line in lines.map_while(Result::ok) {
            note(line);
        }
        let journal = open(dir.path());
        for (writer, version) in acknowledged.iter().enumerate() {
            let payloads = payloads(&*journal, &cart(writer)).await;
            assert!(payloads.len() as u64 >= *version, "round {round}: cart {writer} has {} of {version}", payloads.len());
            for (version, payload) in payloads.iter().enumerate() {
                assert_eq!(*payload, format!("{version}").repeat(100));
            }
        }
        let mut stream = journal.follow(Position(0));
        for position in 1..=journal.highest().0 {
            assert_eq!(next(&mut stream).await.batch.position, Position(position));
        }
        journal.close();
    }
    assert!(acknowledged.iter().sum::<u64>() > 0);
}

const POISON_DIR: &str = "SOUK_TEST_POISON_DIR";

/// Not a test by itself: the process whose disk fails in `a_failing_disk_poisons_the_journal`.
#[tokio::test]
async fn appends_until_its_disk_fails() {
    let Ok(dir) = std::env::var(POISON_DIR) else { return };
    let journal = open(Path::new(&dir));
    let mut version = journal.highest().0;
    let payload = "x".repeat(1_000);
    let error = loop {
        match append(&*journal, &cart("a"), version, &payload).await {
            Ok(_) => version += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AppendError::Unknown(_)), "{error}");
    assert!(within(journal.poisoned()).await.is_some());
    let later = append(&*journal, &cart("b"), 0, "never").await;
    assert!(matches!(later, Err(AppendError::NotWritten(_))), "{later:?}");
    assert_eq!(payloads(&*journal, &cart("a")).await.len() as u64, version, "reads go on");
    assert_eq!(journal.highest(), Position(version));
    println!("acknowledged {version} before the disk failed");
}

#[tokio::test]
async fn a_failing_disk_poisons_the_journal() {
    let dir = tempfile::tempdir().expect("a folder");
    journal_with_an_unsynced_tail(dir.path(), 3, 0).await;
    // No file may grow past 100 or 200 KB (shells differ): writing then fails as on a broken disk.
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" --exact embedded::appends_until_its_disk_fails --nocapture"])
        .arg(std::env::current_exe().expect("this binary"))
        .env(POISON_DIR, dir.path())
        .output()
        .expect("the child runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let acknowledged = said.split("acknowledged ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    let acknowledged = acknowledged.unwrap_or_else(|| panic!("{said}"));
    assert!(acknowledged > 50);
    let (journal, report) = Embedded::open(dir.path(), Options::default()).expect("it opens when the disk is well again");
    // The batch whose fate was unknown is there or is not.
    assert!((acknowledged..=acknowledged + 1).contains(&report.highest.0), "{report:?}");
    append(&*journal, &cart("a"), report.highest.0, "after").await.expect("stored");
}
