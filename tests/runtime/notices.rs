//! What an entity puts up at its door: true whenever somebody reads it, through failures, moments that come, and restarts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use souk::actors::{AskError, Config};

use crate::faulty::Fault;
use crate::promises::{Node, folder, until};
use crate::tally::{Command, Refused};

const REFUSED: Result<i64, AskError<Refused>> = Err(AskError::Rejected(Refused));

fn take(number: u64) -> Command {
    Command::Take { from: "giver".to_owned(), number, amount: 1 }
}

fn turned_away(node: &Node) -> u64 {
    node.runtime.counters().turned_away.get()
}

/// Until strangers are told at the door, and no sooner by the entity's leave.
async fn until_turned_away(node: &Node) {
    let before = turned_away(node);
    until("strangers are told at the door", || async {
        assert_eq!(node.ask("a", take(u64::MAX)).await, REFUSED);
        turned_away(node) > before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_told_at_the_door_and_whoever_has_something_or_was_answered_is_not() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    assert_eq!(node.ask_as("a", "first", take(1)).await, Ok(1));
    assert_eq!(node.ask_as("a", "add", Command::Add(5)).await, Ok(6));
    node.ask("a", Command::Close).await.unwrap();
    until_turned_away(&node).await;
    let before = turned_away(&node);
    let writes = node.runtime.counters().writes.get();
    assert_eq!(node.ask("a", take(2)).await, REFUSED);
    assert_eq!((turned_away(&node), node.runtime.counters().writes.get()), (before + 1, writes));
    assert_eq!(node.ask_as("a", "first", take(1)).await, Ok(1), "its first answer");
    assert_eq!(node.ask("a", take(1)).await, Ok(6), "it has taken already");
    assert_eq!(node.ask_as("a", "add", take(3)).await, Ok(6), "a command that was answered, whatever it says now");
    assert_eq!(turned_away(&node), before + 1);
    let version = node.runtime.view::<crate::tally::Tally, _>("a", |_, version| version).await.unwrap();
    let mut caller = souk::actors::Caller::new("match".into(), "tester", "test");
    caller.if_version = Some(version + 1);
    let outcome = node.runtime.ask::<crate::tally::Tally>("a", take(4), caller).await;
    assert!(matches!(outcome, Err(AskError::Failed(_))), "who knows another version hears that: {outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_turned_away_after_anybody_heard_that_it_is_open_again() {
    let dir = folder();
    let node = Arc::new(Node::start(dir.path(), Config::default()).await);
    let numbers = Arc::new(AtomicU64::new(0));
    for _ in 0..30 {
        node.ask("a", Command::Close).await.unwrap();
        until_turned_away(&node).await;
        let is_open = Arc::new(AtomicBool::new(false));
        let strangers: Vec<_> = (0..8)
            .map(|_| {
                let (node, is_open, numbers) = (node.clone(), is_open.clone(), numbers.clone());
                tokio::spawn(async move {
                    loop {
                        let was_open = is_open.load(Ordering::SeqCst);
                        let taken = node.ask("a", take(numbers.fetch_add(1, Ordering::SeqCst))).await;
                        assert!(taken.is_ok() || !was_open, "turned away from what is open");
                        if was_open {
                            return;
                        }
                    }
                })
            })
            .collect();
        node.ask("a", Command::Open).await.unwrap();
        is_open.store(true, Ordering::SeqCst);
        for stranger in strangers {
            stranger.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_is_being_opened_nobody_is_turned_away_and_if_that_fails_they_are_again() {
    let dir = folder();
    let node = Arc::new(Node::start(dir.path(), Config::default()).await);
    node.ask("a", Command::Close).await.unwrap();
    until_turned_away(&node).await;
    node.faulty.rule(|_| Fault::Stall);
    let opening = tokio::spawn({
        let node = node.clone();
        async move { node.ask_as("a", "open", Command::Open).await }
    });
    until("the write is on its way", || async { node.faulty.stalled() == 1 }).await;
    let before = turned_away(&node);
    let taking = tokio::spawn({
        let node = node.clone();
        async move { node.ask("a", take(1)).await }
    });
    until("it waits for the entity", || async { node.runtime.deepest().any(|(_, depth)| depth == 2) }).await;
    node.faulty.heal();
    assert_eq!((opening.await.unwrap(), taking.await.unwrap(), turned_away(&node)), (Ok(0), Ok(1), before));
    node.ask("a", Command::Close).await.unwrap();
    until_turned_away(&node).await;
    node.faulty.rule(|_| Fault::NotWritten);
    assert!(matches!(node.ask("a", Command::Open).await, Err(AskError::Failed(_))));
    node.faulty.heal();
    until_turned_away(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_there_again_after_the_entity_left_and_after_a_crash() {
    let dir = folder();
    let quick = Config { idle_ms: 40, ..Config::default() };
    let node = Node::start(dir.path(), quick).await;
    assert_eq!(node.ask("a", take(1)).await, Ok(1));
    node.ask("a", Command::Close).await.unwrap();
    until_turned_away(&node).await;
    until("it left", || async { node.residents() == 0 }).await;
    until_turned_away(&node).await;
    assert_eq!(node.ask("a", take(1)).await, Ok(1));
    node.crash();
    let node = Node::start(dir.path(), quick).await;
    until_turned_away(&node).await;
    assert_eq!(node.ask("a", take(1)).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_counts_no_longer_once_the_moment_has_come_that_changes_the_state() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    node.ask("a", Command::Close).await.unwrap();
    let hour_ms = 60 * souk::domain::time::MINUTE_MS;
    node.ask("a", Command::SetAlarm(node.runtime.now().plus_ms(hour_ms))).await.unwrap();
    until_turned_away(&node).await;
    node.runtime.clock().advance(std::time::Duration::from_millis(hour_ms.unsigned_abs()));
    assert_eq!(node.ask("a", take(1)).await, Ok(1));
}
