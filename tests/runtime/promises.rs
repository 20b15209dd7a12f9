use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use souk::actors::gate::Bounds;
use souk::actors::{AskError, Caller, Config, Failure, Runtime};
use souk::domain::{CommandId, SagaEnding};
use souk::persistence::{Embedded, EntityKey, Journal, Options, Snapshots};
use tempfile::TempDir;

use crate::faulty::{Fault, Faulty};
use crate::tally::{Command, RICH, State, Tally, builder};

const DEADLINE: Duration = Duration::from_secs(20);

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("it should not take this long")
}

/// Awaits a condition, with a deadline.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let awaited = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, awaited).await.unwrap_or_else(|_| panic!("never came about: {what}"));
}

pub struct Node {
    pub runtime: Runtime,
    pub faulty: Arc<Faulty>,
    embedded: Arc<Embedded>,
    snapshots: Arc<Snapshots>,
}

impl Node {
    pub async fn start(dir: &Path, config: Config) -> Node {
        let (embedded, _) = Embedded::open(&dir.join("journal"), Options::default()).unwrap();
        let faulty = Faulty::over(embedded.clone());
        let snapshots = Arc::new(Snapshots::open(&dir.join("snapshots")));
        let journal: Arc<dyn Journal> = faulty.clone();
        let runtime = builder(journal, snapshots.clone(), config).start().await.unwrap();
        Node { runtime, faulty, embedded, snapshots }
    }

    /// Ends without a word to anybody, as a crash does for the entities.
    pub fn crash(self) {
        drop(self.runtime);
        self.embedded.close();
    }

    pub async fn ask_as(&self, id: &str, command_id: &str, command: Command) -> Result<i64, AskError<crate::tally::Refused>> {
        let caller = Caller::new(CommandId::from(command_id), "tester", "test");
        within(self.runtime.ask::<Tally>(id, command, caller)).await.map(|answered| answered.reply)
    }

    pub async fn ask(&self, id: &str, command: Command) -> Result<i64, AskError<crate::tally::Refused>> {
        self.ask_as(id, &format!("c{}", fastrand::u64(..)), command).await
    }

    async fn state(&self, id: &str) -> State {
        within(self.runtime.view::<Tally, _>(id, |state, _| state.clone())).await.unwrap()
    }

    pub fn residents(&self) -> usize {
        self.runtime.census().residents["tally"]
    }
}

pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_crash() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    for n in 1..=10 {
        assert_eq!(node.ask("a", Command::Add(n)).await, Ok((1..=n).sum()));
    }
    node.crash();
    let node = Node::start(dir.path(), Config::default()).await;
    assert_eq!(node.state("a").await.total, 55);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_command_gets_its_first_answer_and_has_no_second_effect_also_after_a_crash_and_from_a_snapshot() {
    let dir = folder();
    let node = Node::start(dir.path(), Config { snapshot_every: 3, ..Config::default() }).await;
    assert_eq!(node.ask_as("a", "first", Command::Add(5)).await, Ok(5));
    for _ in 0..5 {
        node.ask("a", Command::Add(1)).await.unwrap();
    }
    assert_eq!(node.ask_as("a", "first", Command::Add(5)).await, Ok(5));
    node.crash();
    let node = Node::start(dir.path(), Config::default()).await;
    assert_eq!(node.ask_as("a", "first", Command::Add(5)).await, Ok(5));
    assert_eq!(node.state("a").await.total, 10);
}

#[tokio::test]
async fn a_crowd_that_is_answered_and_asks_again_at_once_shares_one_write() {
    const CROWD: u64 = 8;
    const TIMES: u64 = 50;
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    let callers = (0..CROWD).map(|_| async {
        for _ in 0..TIMES {
            node.ask("a", Command::Add(1)).await.unwrap();
        }
    });
    futures_util::future::join_all(callers).await;
    // Were the next write begun as soon as one lands, who came first would be alone in every other one.
    let writes = node.runtime.counters().writes.get();
    assert!((TIMES..TIMES * 3 / 2).contains(&writes), "{writes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_is_heard_at_once_and_leaves_no_record() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    assert!(matches!(node.ask("a", Command::Refuse).await, Err(AskError::Rejected(_))));
    assert_eq!(node.faulty.appends.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_later_reaches_all_who_wait_and_those_who_ask_again_after_a_crash() {
    let dir = folder();
    let node = Arc::new(Node::start(dir.path(), Config::default()).await);
    node.ask("a", Command::Add(7)).await.unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let node = node.clone();
            tokio::spawn(async move { node.ask_as("a", "later", Command::WaitForSettle).await })
        })
        .collect();
    until("three wait", || async { node.runtime.census().waiting == 3 }).await;
    assert_eq!(node.state("a").await.waiting.len(), 1, "one effect");
    node.ask("a", Command::Settle).await.unwrap();
    for waiter in waiting {
        assert_eq!(waiter.await.unwrap(), Ok(7));
    }
    Arc::into_inner(node).unwrap().crash();
    let node = Node::start(dir.path(), Config::default()).await;
    assert_eq!(node.ask_as("a", "later", Command::WaitForSettle).await, Ok(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_one_entity_only_and_it_comes_back_from_the_journal() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    node.ask("a", Command::Add(1)).await.unwrap();
    node.ask("b", Command::Add(2)).await.unwrap();
    assert_eq!(node.ask("a", Command::PanicInDecide).await, Err(AskError::Failed(Failure::Died)));
    assert_eq!(node.ask("b", Command::Add(2)).await, Ok(4), "its neighbour lives on");
    until("it is back", || async { node.ask("a", Command::Add(1)).await == Ok(2) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_that_keeps_dying_is_set_aside_and_can_be_released() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    node.ask("a", Command::Add(1)).await.unwrap();
    until("it is set aside", || async {
        matches!(node.ask("a", Command::PanicInDecide).await, Err(AskError::Failed(Failure::SetAside)))
    })
    .await;
    let aside = node.runtime.census().set_aside;
    assert_eq!((aside[0].kind.as_str(), aside[0].id.as_str()), ("tally", "a"));
    assert!(aside[0].reason.contains("as commanded"), "{}", aside[0].reason);
    assert!(!node.runtime.release("tally", "b").await);
    assert!(node.runtime.release("tally", "a").await);
    assert_eq!(node.ask("a", Command::Add(1)).await, Ok(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_no_state_survives_sets_its_entity_aside_and_nothing_else() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    assert!(node.ask("a", Command::PanicInEvolve).await.is_err());
    // It panicked before the write was sent, so nothing of it is in the journal.
    until("it is back", || async { node.ask("a", Command::Add(1)).await.is_ok() }).await;
    assert_eq!(node.state("a").await.total, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_bound_a_caller_hears_overloaded_at_once() {
    let dir = folder();
    let config = Config { bounds: Bounds { per_entity: 10, per_node: 15 }, ..Config::default() };
    let node = Arc::new(Node::start(dir.path(), config).await);
    node.faulty.rule(|_| Fault::Stall);
    let ask = |id: &'static str| {
        let node = node.clone();
        tokio::spawn(async move { node.ask(id, Command::Add(1)).await })
    };
    let admitted: Vec<_> = (0..10).map(|_| ask("a")).collect();
    until("ten wait", || async { node.runtime.census().waiting == 10 }).await;
    assert!(matches!(ask("a").await.unwrap(), Err(AskError::Failed(Failure::Overloaded(_)))));
    let others: Vec<_> = (0..5).map(|_| ask("b")).collect();
    until("fifteen wait", || async { node.runtime.census().waiting == 15 }).await;
    assert!(matches!(ask("c").await.unwrap(), Err(AskError::Failed(Failure::Overloaded(_)))));
    node.faulty.heal();
    for caller in admitted.into_iter().chain(others) {
        assert!(caller.await.unwrap().is_ok());
    }
    assert_eq!(node.state("a").await.total, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_decided_while_a_write_is_in_flight_goes_out_as_the_next_write() {
    let dir = folder();
    let node = Arc::new(Node::start(dir.path(), Config::default()).await);
    node.faulty.rule(|_| Fault::Stall);
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let node = node.clone();
            tokio::spawn(async move { node.ask("a", Command::Add(1)).await })
        })
        .collect();
    until("a hundred wait", || async { node.runtime.census().waiting == 100 && node.faulty.stalled() == 1 }).await;
    // Nobody hears, and nobody sees, what is not durable.
    let look = node.runtime.view::<Tally, _>("a", |state, _| state.total);
    assert!(tokio::time::timeout(Duration::from_millis(50), look).await.is_err());
    assert!(callers.iter().all(|caller| !caller.is_finished()));
    node.faulty.heal();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    assert_eq!(node.faulty.appends.load(Ordering::SeqCst), 2);
    assert_eq!(node.state("a").await.total, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_sees_the_first_state_that_shows_it_and_only_when_it_is_durable() {
    let dir = folder();
    let node = Arc::new(Node::start(dir.path(), Config::default()).await);
    let watching = {
        let node = node.clone();
        let full = |state: &State, _| (state.total >= 2).then_some(state.total);
        tokio::spawn(async move { node.runtime.watch::<Tally, _>("a", DEADLINE, full).await })
    };
    node.ask("a", Command::Add(1)).await.unwrap();
    node.faulty.rule(|_| Fault::Stall);
    let second = {
        let node = node.clone();
        tokio::spawn(async move { node.ask("a", Command::Add(1)).await })
    };
    until("the second is under way", || async { node.faulty.stalled() == 1 }).await;
    assert!(!watching.is_finished(), "it is decided, and not durable");
    node.faulty.heal();
    assert_eq!(second.await.unwrap(), Ok(2));
    let (total, position) = watching.await.unwrap().unwrap();
    assert_eq!((total, position), (2, node.embedded.highest()));

    let never = node.runtime.watch::<Tally, _>("a", Duration::from_millis(20), |_, _| None::<()>);
    assert_eq!(within(never).await, Err(Failure::TimedOut));
    assert_eq!(within(node.runtime.watch::<Tally, _>("a", DEADLINE, |_, version| Some(version))).await.unwrap().0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_watched_in_vain_keeps_neither_a_place_nor_the_entity() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    node.ask("a", Command::Add(1)).await.unwrap();
    let in_vain = node.runtime.watch::<Tally, _>("a", Duration::from_millis(20), |_, _| None::<()>);
    assert_eq!(within(in_vain).await, Err(Failure::TimedOut));
    // Somebody who does not stay for the end.
    let given_up = node.runtime.watch::<Tally, _>("a", DEADLINE, |_, _| None::<()>);
    assert!(tokio::time::timeout(Duration::from_millis(20), given_up).await.is_err());
    assert_eq!(node.runtime.census().waiting, 0);
    assert!(node.runtime.drain(DEADLINE).await, "the entity stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_write_fails_all_in_and_behind_it_hear_so_and_the_entity_starts_anew_from_the_journal() {
    let dir = folder();
    let node = Arc::new(Node::start(dir.path(), Config::default()).await);
    node.ask("a", Command::Add(1)).await.unwrap();
    for (fault, stored) in [(Fault::NotWritten, 0), (Fault::StoredButUnknown, 10)] {
        let before = node.state("a").await.total;
        node.faulty.rule(move |_| fault);
        let failed = node.ask_as("a", &format!("{fault:?}"), Command::Add(10)).await;
        assert!(matches!(failed, Err(AskError::Failed(Failure::NotWritten(_) | Failure::Unknown(_)))), "{failed:?}");
        node.faulty.heal();
        assert_eq!(node.state("a").await.total, before + stored, "{fault:?}");
        // The same command again comes to the same end, whichever it was.
        assert_eq!(node.ask_as("a", &format!("{fault:?}"), Command::Add(10)).await, Ok(before + 10));
        assert_eq!(node.state("a").await.total, before + 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_waited_past_its_deadline_is_not_decided() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    let mut caller = Caller::new(CommandId::from("late"), "tester", "test");
    caller.timeout = Duration::ZERO;
    let late = within(node.runtime.ask::<Tally>("a", Command::Add(1), caller)).await;
    assert!(matches!(late, Err(AskError::Failed(Failure::TimedOut))));
    assert_eq!(node.ask("a", Command::Add(1)).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn if_match_decides_only_at_the_version_that_the_caller_knows() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    node.ask("a", Command::Add(1)).await.unwrap();
    for (version, expected) in [(7, Err(AskError::Failed(Failure::VersionDiffers { actual: 1 }))), (1, Ok(3))] {
        let mut caller = Caller::new(CommandId(format!("at {version}")), "tester", "test");
        caller.if_version = Some(version);
        let answer = within(node.runtime.ask::<Tally>("a", Command::Add(2), caller)).await.map(|answered| answered.reply);
        assert_eq!(answer, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_entity_leaves_and_comes_back_as_it_was_with_and_without_its_snapshot() {
    let dir = folder();
    let quick = Config { idle_ms: 40, ..Config::default() };
    let node = Node::start(dir.path(), quick).await;
    for _ in 0..20 {
        node.ask("a", Command::Add(1)).await.unwrap();
    }
    until("it left", || async { node.residents() == 0 }).await;
    assert_eq!(node.state("a").await.total, 20, "from the snapshot");
    node.crash();
    std::fs::remove_dir_all(dir.path().join("snapshots")).unwrap();
    let node = Node::start(dir.path(), quick).await;
    assert_eq!(node.state("a").await.total, 20, "from the journal alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_written_every_so_many_records_and_more_rarely_for_a_heavy_entity() {
    let dir = folder();
    let node = Node::start(dir.path(), Config { snapshot_every: 10, ..Config::default() }).await;
    for _ in 0..10 {
        node.ask("a", Command::Add(1)).await.unwrap();
    }
    assert_eq!(node.runtime.counters().snapshots.get(), 1);
    for _ in 0..990 {
        node.ask("a", Command::Add(1)).await.unwrap();
    }
    // Each remembers the answers of all commands so far, so each weighs more than the one before.
    let snapshots = node.runtime.counters().snapshots.get();
    assert!((2..=20).contains(&snapshots), "{snapshots}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_written_beside_its_entity_is_of_what_is_durable_and_keeps_nobody_in_memory() {
    let dir = folder();
    let config = Config { snapshot_every: 10, idle_ms: 40, ..Config::default() };
    let node = Node::start(dir.path(), config).await;
    node.ask("a", Command::Add(RICH)).await.unwrap();
    for _ in 0..8 {
        node.ask("a", Command::Add(1)).await.unwrap();
    }
    node.faulty.rule(|_| Fault::NotWritten);
    assert!(node.ask("a", Command::Add(1)).await.is_err(), "the picture that was taken with this write is not kept");
    node.faulty.heal();
    for _ in 0..31 {
        node.ask("a", Command::Add(1)).await.unwrap();
    }
    until("it left", || async { node.residents() == 0 }).await;
    assert_eq!(node.state("a").await.total, RICH + 39);
    let stored = node.snapshots.get(&EntityKey::new("tally", "a")).unwrap();
    assert!(stored.version > 23, "what came after it is replayed as fast: {}", stored.version);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_what_never_was_leaves_nothing_behind() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    for n in 0..100 {
        assert_eq!(node.state(&format!("nobody-{n}")).await, State::default());
    }
    until("none stayed", || async { node.residents() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_fires_for_an_entity_that_left_and_after_a_crash() {
    let dir = folder();
    let quick = Config { idle_ms: 40, ..Config::default() };
    let node = Node::start(dir.path(), quick).await;
    let soon = node.runtime.now().plus_ms(60_000);
    node.ask("a", Command::SetAlarm(soon)).await.unwrap();
    node.ask("b", Command::SetAlarm(soon)).await.unwrap();
    until("both left", || async { node.residents() == 0 }).await;
    node.runtime.clock().advance(Duration::from_secs(61));
    until("it rang", || async { node.state("a").await.rung == 1 }).await;
    node.crash();

    let node = Node::start(dir.path(), Config::default()).await;
    node.ask("c", Command::SetAlarm(node.runtime.now().plus_ms(60_000))).await.unwrap();
    node.crash();
    let node = Node::start(dir.path(), Config::default()).await;
    node.runtime.clock().advance(Duration::from_secs(61));
    // Without a call to it: the census alone shows that it was woken.
    until("it was woken", || async { node.residents() >= 1 }).await;
    until("it rang", || async { node.state("c").await.rung == 1 }).await;
    assert_eq!(node.state("a").await.rung, 1, "and nothing rings twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_arrives_once_through_faults_of_every_kind() {
    let dir = folder();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let node = Node::start(dir.path(), Config::default()).await;
    node.ask("a", Command::Add(1_000)).await.unwrap();
    node.faulty.rule(move |_| match random.u8(0..10) {
        0 | 1 => Fault::NotWritten,
        2 => Fault::StoredButUnknown,
        _ => Fault::None,
    });
    for number in 1..=50 {
        let give = Command::Give { to: format!("r{}", number % 3), number, amount: 2 };
        until("the gift is promised", || async { node.ask_as("a", &format!("give {number}"), give.clone()).await.is_ok() }).await;
    }
    node.faulty.heal();
    // The last faults may still be on their way to whoever looks.
    let owes_nothing = || node.runtime.view::<Tally, _>("a", |state, _| state.giving.is_empty());
    until("nothing is owed", || async { owes_nothing().await == Ok(true) }).await;
    let mut received = 0;
    for r in 0..3 {
        received += node.state(&format!("r{r}")).await.total;
    }
    assert_eq!((node.state("a").await.total, received), (900, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_and_what_is_due_wait_ever_longer_while_the_store_takes_nothing() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    for (entity, command) in
        [("a", Command::Give { to: "b".into(), number: 1, amount: 5 }), ("c", Command::SetAlarm(node.runtime.now().plus_ms(-1)))]
    {
        let mut tries = 0;
        node.faulty.rule(move |append| {
            tries += u32::from(append.entity.id() == entity);
            // The debt itself, or the alarm, is stored; what follows from it is not.
            if append.entity.id() == entity && tries > 1 { Fault::NotWritten } else { Fault::None }
        });
        let failed = || node.runtime.counters().failed_writes.get();
        let (before, began) = (failed(), Instant::now());
        node.ask(entity, command).await.unwrap();
        until("five writes failed", || async { failed() >= before + 5 }).await;
        // The least waits after the first four: 25, 50, 100 and 200 ms.
        assert!(began.elapsed() >= Duration::from_millis(375), "{entity}: {:?}", began.elapsed());
    }
    node.faulty.heal();
    until("it is given", || async { node.state("a").await.giving.is_empty() }).await;
    until("it rang", || async { node.state("c").await.rung == 1 }).await;
    assert_eq!(node.state("b").await.total, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debt_that_waits_to_be_tried_again_does_not_wait_for_an_hour_that_the_clock_was_set_back() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    node.runtime.clock().advance(HOUR);
    node.faulty.rule(|append| if append.entity.id() == "b" { Fault::NotWritten } else { Fault::None });
    node.ask("a", Command::Give { to: "b".into(), number: 1, amount: 5 }).await.unwrap();
    until("it was tried", || async { node.runtime.counters().failed_writes.get() >= 2 }).await;
    node.runtime.clock().set_back(HOUR);
    node.faulty.heal();
    until("it arrived", || async { node.state("b").await.total == 5 }).await;
    until("and is no longer owed", || async { node.state("a").await.giving.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_came_while_the_journal_could_not_be_read_is_asked_for_again_soon() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    node.faulty.rule(|append| if append.entity.id() == "b" { Fault::Stall } else { Fault::None });
    node.ask("a", Command::Give { to: "b".into(), number: 1, amount: 5 }).await.unwrap();
    until("b is about to take it", || async { node.faulty.stalled() == 1 }).await;
    // Now a forgets what it knows, and cannot read it again.
    node.faulty.unreadable.store(true, Ordering::SeqCst);
    node.faulty.rule(|_| Fault::NotWritten);
    assert!(node.ask("a", Command::Add(1)).await.is_err());
    let before = node.embedded.highest();
    node.faulty.heal();
    until("b has taken it", || async { node.embedded.highest() > before }).await;
    let unread = || node.faulty.unread.load(Ordering::SeqCst);
    let after_answer = unread() + 3;
    until("a has heard so in vain", || async { unread() >= after_answer }).await;
    let began = Instant::now();
    node.faulty.unreadable.store(false, Ordering::SeqCst);
    until("and is no longer owed", || async { node.state("a").await.giving.is_empty() }).await;
    // An attempt that was not answered is taken for dead after eleven seconds.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(node.state("b").await.total, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debt_from_before_a_crash_is_delivered_without_anybody_asking() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    node.faulty.rule(|append| if append.entity.id() == "b" { Fault::NotWritten } else { Fault::None });
    node.ask("a", Command::Give { to: "b".into(), number: 1, amount: 5 }).await.unwrap();
    node.crash();
    let node = Node::start(dir.path(), Config::default()).await;
    until("it arrived", || async { node.state("b").await.total == 5 }).await;
    until("and is no longer owed", || async { node.state("a").await.giving.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debt_that_a_former_owner_wrote_after_the_start_is_taken_up_by_whoever_comes_to_the_entity() {
    let dir = folder();
    let Node { runtime: former, faulty, embedded, .. } = Node::start(dir.path(), Config::default()).await;
    faulty.rule(|_| Fault::Stall);
    let give = {
        let former = former.clone();
        let caller = Caller::new(CommandId::from("give"), "tester", "test");
        let give = Command::Give { to: "b".into(), number: 1, amount: 5 };
        tokio::spawn(async move { former.ask::<Tally>("a", give, caller).await })
    };
    until("its write is under way", || async { faulty.stalled() == 1 }).await;
    give.abort();
    drop(former);
    let faulty_now = Faulty::over(embedded.clone());
    let snapshots = Arc::new(Snapshots::open(&dir.path().join("snapshots-now")));
    let journal: Arc<dyn Journal> = faulty_now.clone();
    let runtime = builder(journal, snapshots.clone(), Config::default()).start().await.unwrap();
    let now = Node { runtime, faulty: faulty_now, embedded: embedded.clone(), snapshots };
    // The new owner's agenda knows nothing of the write that lands now.
    let before = embedded.highest();
    faulty.heal();
    until("it landed", || async { embedded.highest() > before }).await;
    assert_eq!(now.state("a").await.giving.len(), 1);
    until("it arrived", || async { now.state("b").await.total == 5 }).await;
    until("and is no longer owed", || async { now.state("a").await.giving.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_both_believe_they_own_an_entity_cannot_both_write() {
    let dir = folder();
    let (embedded, _) = Embedded::open(&dir.path().join("journal"), Options::default()).unwrap();
    let journal: Arc<dyn Journal> = embedded.clone();
    let mut nodes = Vec::new();
    for n in 0..2 {
        let snapshots = Arc::new(Snapshots::open(&dir.path().join(format!("snapshots-{n}"))));
        nodes.push(builder(journal.clone(), snapshots, Config::default()).start().await.unwrap());
    }
    let mut accepted = 0;
    for n in 0..200 {
        let caller = Caller::new(CommandId(format!("c{n}")), "tester", "test");
        if within(nodes[n % 2].ask::<Tally>("a", Command::Add(1), caller)).await.is_ok() {
            accepted += 1;
        }
    }
    assert!(accepted >= 100, "each node wins again and again: {accepted}");
    for node in &nodes {
        let caller = Caller::new(CommandId(format!("sync {}", fastrand::u64(..))), "tester", "test");
        let _ = within(node.ask::<Tally>("a", Command::Add(0), caller)).await;
    }
    drop(nodes);
    let snapshots = Arc::new(Snapshots::open(&dir.path().join("snapshots-new")));
    let fresh = builder(journal, snapshots, Config::default()).start().await.unwrap();
    let total = within(fresh.view::<Tally, _>("a", |state, _| state.total)).await.unwrap();
    assert_eq!(total, accepted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_has_finished_what_was_in_flight_and_takes_no_more() {
    let dir = folder();
    let node = Arc::new(Node::start(dir.path(), Config::default()).await);
    node.faulty.rule(|_| Fault::Stall);
    let caller = {
        let node = node.clone();
        tokio::spawn(async move { node.ask("a", Command::Add(1)).await })
    };
    until("it waits", || async { node.faulty.stalled() == 1 }).await;
    let draining = {
        let node = node.clone();
        tokio::spawn(async move { node.runtime.drain(DEADLINE).await })
    };
    until("no new work is taken", || async {
        matches!(node.ask("b", Command::Refuse).await, Err(AskError::Failed(Failure::Draining)))
    })
    .await;
    node.faulty.heal();
    assert_eq!(caller.await.unwrap(), Ok(1));
    assert!(draining.await.unwrap(), "everybody left");
    assert_eq!(node.residents(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_counts_once_it_has_ended_durably_and_a_conflict_is_a_failed_write_of_its_own_kind() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    let sagas = || node.runtime.sagas().map(|(kind, ending, counted)| (kind, ending, counted.count)).collect::<Vec<_>>();
    let waiter = async {
        // It is answered by the failure of the first settlement's write.
        let _ = node.ask_as("a", "waiter", Command::WaitForSettle).await;
    };
    let settlement = async {
        until("somebody waits", || async { !node.state("a").await.waiting.is_empty() }).await;
        node.faulty.rule(|_| Fault::Conflict);
        node.ask("a", Command::Settle).await.unwrap_err();
        assert_eq!(sagas(), [], "nothing that failed has ended");
        node.faulty.heal();
        node.ask("a", Command::Settle).await.unwrap();
    };
    tokio::join!(waiter, settlement);
    assert_eq!(sagas(), [("tally", SagaEnding::Completed, 1)]);

    node.ask("a", Command::Settle).await.unwrap();
    assert_eq!(sagas(), [("tally", SagaEnding::Completed, 1)], "what has ended does not end again");

    let counters = node.runtime.counters();
    assert_eq!((counters.conflicts.get(), counters.failed_writes.get()), (1, 1));
    assert_eq!(counters.appends.counted().count, counters.writes.get() - 1, "each that was stored, and no other");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deepest_mailbox_shows_while_its_commands_wait() {
    let dir = folder();
    let node = Node::start(dir.path(), Config::default()).await;
    node.faulty.rule(|append| if append.entity.id() == "slow" { Fault::Stall } else { Fault::None });
    let deepest = || node.runtime.deepest().map(|(_, depth)| depth).max();
    let add = async |id, amount| node.ask(id, Command::Add(amount)).await.unwrap();
    let added = async { tokio::join!(add("slow", 1), add("slow", 2), add("quick", 3)) };
    let look = async {
        until("two wait for one entity", || async { deepest() == Some(2) }).await;
        node.faulty.heal();
    };
    tokio::join!(added, look);
    until("nobody waits", || async { deepest() == Some(0) }).await;
}
