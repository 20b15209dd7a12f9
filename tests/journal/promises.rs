//! The conformance suite: each function is one promise, run against a fresh store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use souk::domain::Timestamp;
use souk::persistence::{Append, AppendError, Batch, Committed, EntityKey, Journal, Position, ReadError, Version, Wake};
use tokio::sync::oneshot;

const DEADLINE: Duration = Duration::from_secs(60);

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("it should not take this long")
}

pub fn cart(id: impl std::fmt::Display) -> EntityKey {
    EntityKey::new("cart", &id.to_string())
}

pub async fn append(
    journal: &dyn Journal,
    entity: &EntityKey,
    expected: Version,
    payload: &str,
) -> Result<Position, AppendError> {
    append_with(journal, entity, expected, 1, payload, Wake::Never).await
}

pub async fn append_with(
    journal: &dyn Journal,
    entity: &EntityKey,
    expected: Version,
    count: u32,
    payload: &str,
    wake: Wake,
) -> Result<Position, AppendError> {
    let after = standing(journal, entity, expected).await;
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    append_whole(journal, Append { entity: entity.clone(), expected, after, count, payload, wake }).await
}

pub async fn append_whole(journal: &dyn Journal, append: Append) -> Result<Position, AppendError> {
    let (done, answer) = oneshot::channel();
    journal.append(append, Box::new(move |result| drop(done.send(result))));
    within(answer).await.expect("the journal answers every append")
}

/// An append of one record by somebody who remembers where the last one stands.
pub async fn append_after(
    journal: &dyn Journal,
    entity: &EntityKey,
    expected: Version,
    after: Position,
    payload: &str,
) -> Result<Position, AppendError> {
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    append_whole(journal, Append { entity: entity.clone(), expected, after, count: 1, payload, wake: Wake::Never }).await
}

/// Where the batch stands that ends with a version; for a version that is not there, somewhere that is not there either.
async fn standing(journal: &dyn Journal, entity: &EntityKey, version: Version) -> Position {
    if version == 0 {
        return Position(0);
    }
    let batches = within(journal.read(entity, version, Position(0), 1)).await.expect("readable");
    batches.first().filter(|batch| batch.last() == version).map_or(Position(u64::MAX / 2), |batch| batch.position)
}

pub async fn payloads(journal: &dyn Journal, entity: &EntityKey) -> Vec<String> {
    let batches = within(journal.read(entity, 1, Position(0), usize::MAX)).await.expect("readable");
    batches.iter().map(|batch| String::from_utf8(batch.payload.to_vec()).expect("text")).collect()
}

pub async fn next(stream: &mut BoxStream<'static, Result<Committed, ReadError>>) -> Committed {
    within(stream.next()).await.expect("the stream goes on").expect("readable")
}

pub async fn what_is_appended_is_read_back(journal: Arc<dyn Journal>) {
    let (a, b) = (cart("a"), cart("a2"));
    assert_eq!(within(journal.read(&a, 1, Position(0), 10)).await, Ok(vec![]));
    let first = append_with(&*journal, &a, 0, 2, "one two", Wake::Never).await.expect("stored");
    let other = append(&*journal, &b, 0, "other").await.expect("stored");
    let second = append_with(&*journal, &a, 2, 3, "three four five", Wake::Never).await.expect("stored");
    assert!(first < other && other < second);
    assert!(journal.highest() >= second);

    let one = Batch { first: 1, count: 2, position: first, payload: "one two".into() };
    let two = Batch { first: 3, count: 3, position: second, payload: "three four five".into() };
    for (from, limit, expected) in [
        (0, 10, vec![one.clone(), two.clone()]),
        (1, 10, vec![one.clone(), two.clone()]),
        (2, 10, vec![one.clone(), two.clone()]),
        (3, 10, vec![two.clone()]),
        (5, 10, vec![two.clone()]),
        (6, 10, vec![]),
        (1, 1, vec![one.clone()]),
        (1, 0, vec![]),
    ] {
        assert_eq!(within(journal.read(&a, from, Position(0), limit)).await, Ok(expected), "from {from}, limit {limit}");
    }
    assert_eq!(payloads(&*journal, &b).await, ["other"]);
}

pub async fn a_stale_version_is_refused_and_changes_nothing(journal: Arc<dyn Journal>) {
    let (a, b) = (cart("a"), cart("b"));
    append(&*journal, &a, 0, "first").await.expect("stored");
    for expected in [0, 2, 7] {
        // The same refusal however often it is tried.
        for _ in 0..2 {
            let refused = append(&*journal, &a, expected, "never").await;
            assert_eq!(refused, Err(AppendError::Conflict { expected, actual: 1 }));
        }
    }
    assert_eq!(append(&*journal, &b, 1, "never").await, Err(AppendError::Conflict { expected: 1, actual: 0 }));
    assert_eq!(payloads(&*journal, &a).await, ["first"]);
    assert_eq!(payloads(&*journal, &b).await, Vec::<String>::new());
    append(&*journal, &a, 1, "second").await.expect("a conflict does not stand in the way of the next write");
    append(&*journal, &b, 0, "first").await.expect("stored");
}

/// A conflict inside a group leaves the rest of the group alone.
pub async fn a_conflict_hurts_nobody_else(journal: Arc<dyn Journal>) {
    for id in 0..50 {
        append(&*journal, &cart(id), 0, "first").await.expect("stored");
    }
    let writes = (0..50u64).map(|id| {
        let journal = journal.clone();
        async move { (id, append(&*journal, &cart(id), id % 2, "second").await) }
    });
    for (id, result) in futures_util::future::join_all(writes).await {
        assert_eq!(result.is_ok(), id % 2 == 1, "cart {id}: {result:?}");
    }
}

pub async fn ten_thousand_appends_by_many_tasks_are_all_there_and_ordered(journal: Arc<dyn Journal>) {
    const WRITERS: u64 = 100;
    const EACH: u64 = 100;
    let mut stream = journal.follow(Position(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let journal = journal.clone();
            tokio::spawn(async move {
                let mut last = Position(0);
                for version in 0..EACH {
                    let payload = version.to_string();
                    let at = append_after(&*journal, &cart(writer), version, last, &payload).await.expect("stored");
                    assert!(at > last);
                    assert!(journal.highest() >= at, "what is acknowledged is visible");
                    last = at;
                }
            })
        })
        .collect();
    // Followed while it is written: each batch once, in the order of positions, each entity's versions without a gap.
    let mut versions = HashMap::new();
    let mut last = Position(0);
    for _ in 0..WRITERS * EACH {
        let Committed { entity, batch } = next(&mut stream).await;
        assert!(batch.position > last);
        last = batch.position;
        let version = versions.entry(entity).or_insert(0);
        assert_eq!(batch.first, *version + 1);
        *version = batch.last();
    }
    assert!(versions.len() as u64 == WRITERS && versions.values().all(|version| *version == EACH));
    for writer in writers {
        within(writer).await.expect("the writer ended well");
    }
    assert_eq!(journal.highest(), last);
    let expected: Vec<_> = (0..EACH).map(|version| version.to_string()).collect();
    for writer in 0..WRITERS {
        assert_eq!(payloads(&*journal, &cart(writer)).await, expected);
    }
}

pub async fn followers_start_anywhere_and_go_on_live(journal: Arc<dyn Journal>) {
    let mut positions = Vec::new();
    for version in 0..20 {
        positions.push(append(&*journal, &cart("a"), version, &version.to_string()).await.expect("stored"));
    }
    for start in [0, 1, 10, 19, 20] {
        let after = if start == 0 { Position(0) } else { positions[start - 1] };
        let mut stream = journal.follow(after);
        for (version, position) in positions.iter().enumerate().skip(start) {
            let committed = next(&mut stream).await;
            assert_eq!((committed.batch.position, committed.batch.first), (*position, version as u64 + 1));
        }
        let live = cart(format!("live{start}"));
        let at = append(&*journal, &live, 0, "live").await.expect("stored");
        loop {
            let committed = next(&mut stream).await;
            if committed.batch.position == at {
                assert_eq!(committed.entity, live);
                break;
            }
            assert!(committed.batch.position < at, "the live batch was missed");
        }
    }
}

pub async fn the_agenda_holds_the_newest_wake(journal: Arc<dyn Journal>) {
    let noon = Wake::At(Timestamp::from_millis(1_795_219_200_000));
    let (a, b, c, d) = (cart("a"), cart("b"), cart("c"), cart("d"));
    for (entity, expected, wake) in [
        (&a, 0, Wake::Now),
        (&b, 0, noon),
        (&c, 0, Wake::Never),
        (&d, 0, Wake::Now),
        (&a, 1, noon),
        (&d, 1, Wake::Never),
        (&c, 1, Wake::Now),
        (&b, 1, noon),
    ] {
        append_with(&*journal, entity, expected, 1, "x", wake).await.expect("stored");
    }
    let all = vec![(a.clone(), noon), (b.clone(), noon), (c.clone(), Wake::Now)];
    assert_eq!(within(journal.agenda(None, 10)).await, Ok(all.clone()));
    assert_eq!(within(journal.agenda(None, 2)).await, Ok(all[..2].to_vec()));
    assert_eq!(within(journal.agenda(Some(&a), 10)).await, Ok(all[1..].to_vec()));
    assert_eq!(within(journal.agenda(Some(&c), 10)).await, Ok(vec![]));
    let refused = append_with(&*journal, &c, 0, 1, "stale", Wake::Never).await;
    assert!(refused.is_err());
    assert_eq!(within(journal.agenda(None, 10)).await, Ok(all));
}

/// A browser that comes back says only its version; an actor that comes to life says also where that was.
pub async fn an_entity_is_read_from_any_version_on_with_and_without_a_hint(journal: Arc<dyn Journal>) {
    const BATCHES: u64 = 40;
    let a = cart("a");
    let mut batches = Vec::new();
    let (mut expected, mut after) = (0, Position(0));
    for index in 0..BATCHES {
        // Others in between, so that positions and versions differ.
        for other in 0..index % 30 {
            append(&*journal, &cart(format!("{index}-{other}")), 0, "other").await.expect("stored");
        }
        let count = 1 + (index % 3) as u32;
        let payload = Bytes::from(format!("batch {index}"));
        let append = Append { entity: a.clone(), expected, after, count, payload: payload.clone(), wake: Wake::Never };
        after = append_whole(&*journal, append).await.expect("stored");
        batches.push(Batch { first: expected + 1, count, position: after, payload });
        expected += u64::from(count);
        assert_eq!(within(journal.newest(&a)).await, Ok(after));
    }
    assert_eq!(within(journal.newest(&cart("nobody"))).await, Ok(Position(0)));
    for from in 1..=expected + 1 {
        let wanted: Vec<Batch> = batches.iter().filter(|batch| batch.last() >= from).cloned().collect();
        let exact = wanted.first().map_or(after, |batch| batch.position);
        let before = batches.iter().rev().find(|batch| batch.last() < from).map_or(Position(1), |batch| batch.position);
        // The last two are mistakes of a caller, who hears the truth all the same.
        for near in [Position(0), Position(1), before, exact, after, Position(after.0 + 1_000)] {
            for limit in [1, 7, usize::MAX] {
                let wanted: Vec<Batch> = wanted.iter().take(limit).cloned().collect();
                let read = within(journal.read(&a, from, near, limit)).await;
                assert_eq!(read, Ok(wanted), "from {from}, near {near:?}, limit {limit}");
            }
        }
    }
}

pub async fn any_text_is_a_key(journal: Arc<dyn Journal>) {
    let ids = ["", "=", "a.b", "a b", "*", ">", "ünï/cödé \u{1}\u{7f} 🛒", "\r\n", &"x".repeat(1_000), &"ü".repeat(500)];
    for (version, round) in ["first", "second"].iter().enumerate() {
        for id in ids {
            append(&*journal, &cart(id), version as u64, &format!("{round} {id}")).await.expect("stored");
        }
    }
    let mut stream = journal.follow(Position(0));
    for id in ids.iter().chain(&ids) {
        assert_eq!(next(&mut stream).await.entity, cart(id));
    }
    for id in ids {
        assert_eq!(payloads(&*journal, &cart(id)).await, [format!("first {id}"), format!("second {id}")]);
    }
}

pub async fn a_batch_may_be_as_large_as_is_said_and_no_larger(journal: Arc<dyn Journal>) {
    let max = journal.batch_bytes_max();
    let a = cart("a");
    let large = |bytes: usize| "x".repeat(bytes);
    for expected in 0..3 {
        append(&*journal, &a, expected, &large(max)).await.expect("stored");
    }
    match append(&*journal, &a, 3, &large(max + 1)).await {
        Err(AppendError::NotWritten(why)) => assert!(why.contains("cart/a"), "{why}"),
        other => panic!("{other:?}"),
    }
    append(&*journal, &a, 3, "small").await.expect("stored");
    let sizes: Vec<usize> = payloads(&*journal, &a).await.iter().map(String::len).collect();
    assert_eq!(sizes, [max, max, max, 5]);
    let mut stream = journal.follow(Position(0));
    for size in sizes {
        assert_eq!(next(&mut stream).await.batch.payload.len(), size);
    }
}
