//! Several nodes over one journal: the runtimes are real, who has what is said by the test, and questions between them go
//! by hand. Each may believe what it likes about who has an entity: what is written must stay right all the same.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use souk::actors::placement::{Lease, MemberSeen, NoAnswer, Owner, Placement, Standing};
use souk::actors::{AskError, Caller, Config, Failure, Runtime};
use souk::domain::CommandId;
use souk::persistence::{Embedded, EntityKey, Journal, Options, Position, Snapshots};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::faulty::{Fault, Faulty};
use crate::promises::{until, within};
use crate::tally::{Command, Refused, State, Tally, builder};

/// What one node believes, and its ways to the others.
struct Belief {
    name: &'static str,
    /// Of entities that are not listed, `a` is the owner.
    owners: Mutex<HashMap<String, &'static str>>,
    has_lease: AtomicBool,
    is_out_of_touch: AtomicBool,
    tenure: AtomicU64,
    asked: AtomicUsize,
    /// To be lost after they have been answered.
    lose_answers: AtomicUsize,
    /// To be lost without a word.
    lose_questions: AtomicUsize,
    others: Mutex<HashMap<&'static str, Weak<Member>>>,
}

impl Belief {
    fn owner_of(&self, id: &str) -> &'static str {
        self.owners.lock().unwrap().get(id).copied().unwrap_or("a")
    }
}

impl Placement for Belief {
    fn owner(&self, entity: &EntityKey) -> Owner {
        match self.owner_of(entity.id()) {
            "" => Owner::Unknown,
            name if name == self.name => Owner::Here,
            name => Owner::Member(name.into()),
        }
    }

    fn lease(&self, _: &EntityKey) -> Lease {
        let (now, span) = (Instant::now(), Duration::from_secs(1));
        let until = if self.has_lease.load(Ordering::SeqCst) { now + span } else { now - span };
        Lease { until, tenure: self.tenure.load(Ordering::SeqCst) }
    }

    fn standing(&self) -> Standing {
        if self.is_out_of_touch.load(Ordering::SeqCst) { Standing::OutOfTouch } else { Standing::InPlace }
    }

    fn members(&self) -> Vec<MemberSeen> {
        let seen = |name: &'static str| MemberSeen {
            name: name.into(),
            is_self: name == self.name,
            state: "active",
            http: String::new(),
            version: String::new(),
            partitions: (0..128).collect(),
        };
        vec![seen("a"), seen("b"), seen("dead")]
    }

    fn ask<'a>(&'a self, member: &'a str, question: Bytes, wait: Duration) -> BoxFuture<'a, Result<Bytes, NoAnswer>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let other = self.others.lock().unwrap().get(member).and_then(Weak::upgrade).ok_or(NoAnswer::NotThere)?;
            let lost = |why: &str| NoAnswer::Lost(why.to_owned());
            if self.lose_questions.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                tokio::time::sleep(wait).await;
                return Err(lost("silence"));
            }
            let answer = tokio::time::timeout(wait, other.runtime.serve(&question)).await.map_err(|_| lost("too late"))?;
            match self.lose_answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
                Ok(_) => Err(lost("as told")),
                Err(_) => Ok(answer.into()),
            }
        })
    }
}

struct Member {
    runtime: Runtime,
    belief: Arc<Belief>,
    /// Its own way to the journal of all.
    journal: Arc<Faulty>,
}

impl Member {
    async fn ask_as(&self, id: &str, command_id: &str, command: Command) -> Result<i64, AskError<Refused>> {
        let caller = Caller::new(CommandId::from(command_id), "tester", "test");
        within(self.runtime.ask::<Tally>(id, command, caller)).await.map(|answered| answered.reply)
    }

    async fn ask(&self, id: &str, command: Command) -> Result<i64, AskError<Refused>> {
        self.ask_as(id, &format!("c{}", fastrand::u64(..)), command).await
    }

    async fn state(&self, id: &str) -> Result<State, Failure> {
        within(self.runtime.view::<Tally, _>(id, |state, _| state.clone())).await
    }

    fn residents(&self) -> usize {
        self.runtime.census().residents["tally"]
    }

    fn has_lease(&self, has_lease: bool) {
        self.belief.has_lease.store(has_lease, Ordering::SeqCst);
    }
}

struct House {
    a: Arc<Member>,
    b: Arc<Member>,
    journal: Arc<Embedded>,
    folder: TempDir,
}

impl Member {
    async fn start(name: &'static str, journal: &Arc<Embedded>, folder: &TempDir) -> Member {
        Member::over(name, Faulty::over(journal.clone()), folder).await
    }

    async fn over(name: &'static str, journal: Arc<Faulty>, folder: &TempDir) -> Member {
        let belief = Arc::new(Belief {
            name,
            owners: Mutex::default(),
            has_lease: AtomicBool::new(true),
            is_out_of_touch: AtomicBool::new(false),
            tenure: AtomicU64::new(1),
            asked: AtomicUsize::new(0),
            lose_answers: AtomicUsize::new(0),
            lose_questions: AtomicUsize::new(0),
            others: Mutex::default(),
        });
        let snapshots = Arc::new(Snapshots::open(&folder.path().join(name)));
        let builder = builder(journal.clone(), snapshots, Config::default()).among(belief.clone());
        Member { runtime: builder.start().await.unwrap(), belief, journal }
    }
}

impl House {
    async fn new() -> House {
        let folder = tempfile::tempdir().unwrap();
        let (journal, _) = Embedded::open(&folder.path().join("journal"), Options::default()).unwrap();
        let [a, b] = ["a", "b"].map(|name| Member::start(name, &journal, &folder));
        let (a, b) = (Arc::new(a.await), Arc::new(b.await));
        for (one, name, other) in [(&a, "b", &b), (&b, "a", &a)] {
            one.belief.others.lock().unwrap().insert(name, Arc::downgrade(other));
        }
        House { a, b, journal, folder }
    }

    /// Both come to know that `id` belongs to `owner`.
    async fn give(&self, id: &str, owner: &'static str) {
        for member in [&self.a, &self.b] {
            member.belief.owners.lock().unwrap().insert(id.to_owned(), owner);
            member.belief.tenure.fetch_add(1, Ordering::SeqCst);
        }
        for member in [&self.a, &self.b] {
            member.runtime.placement_changed().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_asked_brings_the_question_to_the_node_that_has_the_entity() {
    let house = House::new().await;
    assert_eq!(house.b.ask("t", Command::Add(5)).await, Ok(5));
    assert_eq!(house.b.ask("t", Command::Refuse).await, Err(AskError::Rejected(Refused)));
    assert_eq!(house.b.state("t").await.unwrap().total, 5);
    assert_eq!(house.a.state("t").await.unwrap().total, 5);
    assert_eq!((house.a.residents(), house.b.residents()), (1, 0));
    assert_eq!(house.a.belief.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_moves_with_all_that_it_knows_and_its_commands_have_one_effect_wherever_they_are_sent() {
    let house = House::new().await;
    assert_eq!(house.a.ask_as("t", "first", Command::Add(5)).await, Ok(5));
    for owner in ["b", "a", "b"] {
        house.give("t", owner).await;
        let (old, new) = if owner == "b" { (&house.a, &house.b) } else { (&house.b, &house.a) };
        until("it left", || async { old.residents() == 0 }).await;
        assert_eq!(old.ask_as("t", "first", Command::Add(5)).await, Ok(5));
        assert_eq!(new.state("t").await.unwrap().total, 5);
        assert_eq!((old.residents(), new.residents()), (0, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_both_believe_to_have_an_entity_lose_no_write_and_double_none() {
    let house = Arc::new(House::new().await);
    house.b.belief.owners.lock().unwrap().insert("t".into(), "b");
    // Nobody has a lease: what is rejected must be looked at anew.
    house.a.has_lease(false);
    house.b.has_lease(false);
    let tasks = (0..200).map(|n| {
        let house = house.clone();
        tokio::spawn(async move {
            let member = if n % 2 == 0 { &house.a } else { &house.b };
            member.ask_as("t", &format!("c{n}"), Command::Add(1)).await
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
    assert_eq!(house.a.state("t").await.unwrap().total, 200);
    assert_eq!(house.b.state("t").await.unwrap().total, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lease_nothing_old_is_shown_or_answered() {
    let house = House::new().await;
    house.a.ask("t", Command::Add(1)).await.unwrap();
    // The other takes over, and this one was not told: it sleeps.
    house.b.belief.owners.lock().unwrap().insert("t".into(), "b");
    house.b.ask("t", Command::Add(1)).await.unwrap();
    house.a.has_lease(false);
    assert_eq!(house.a.state("t").await.unwrap().total, 2);
    assert_eq!(house.a.ask("t", Command::Add(1)).await, Ok(3));
    house.b.has_lease(false);
    let version = house.b.runtime.view::<Tally, _>("t", |_, version| version).await.unwrap();
    assert_eq!(version, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_owners_last_write_is_answered_and_known_by_the_next_owner() {
    let house = Arc::new(House::new().await);
    house.a.ask("t", Command::Add(5)).await.unwrap();
    house.a.journal.rule(|_| Fault::Stall);
    let last = tokio::spawn({
        let house = house.clone();
        async move { house.a.ask_as("t", "last", Command::Add(1)).await }
    });
    until("the write is on its way", || async { house.a.journal.stalled() == 1 }).await;
    house.give("t", "b").await;
    assert_eq!(house.b.state("t").await.unwrap().total, 5);
    house.a.journal.heal();
    until("it is known", || async { house.b.state("t").await.unwrap().total == 6 }).await;
    assert_eq!(last.await.unwrap(), Ok(6));
    assert_eq!(house.b.ask("t", Command::Add(1)).await, Ok(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_though_nobody_says_yet_who_must_be_woken_and_is_told_later() {
    let house = House::new().await;
    let journal = Faulty::over(house.journal.clone());
    journal.is_mute.store(true, Ordering::SeqCst);
    let late = Member::over("late", journal, &house.folder).await;
    assert!(late.runtime.placement_changed().await.is_err());
    late.journal.is_mute.store(false, Ordering::SeqCst);
    assert!(late.runtime.placement_changed().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_answered_without_a_write_does_not_rest_on_what_the_journal_may_have_moved_on_from() {
    let house = House::new().await;
    let take = || Command::Take { from: "giver".into(), number: 1, amount: 3 };
    house.a.ask("t", take()).await.unwrap();
    house.give("t", "b").await;
    house.b.journal.is_mute.store(true, Ordering::SeqCst);
    let mut caller = Caller::new(CommandId::from("again"), "tester", "test");
    caller.timeout = Duration::from_millis(200);
    let outcome = within(house.b.runtime.ask::<Tally>("t", take(), caller)).await;
    assert!(matches!(outcome, Err(AskError::Failed(_))), "nobody says that this is the newest state: {outcome:?}");
    house.b.journal.is_mute.store(false, Ordering::SeqCst);
    assert_eq!(house.b.ask("t", take()).await, Ok(3));
    house.b.journal.is_mute.store(true, Ordering::SeqCst);
    assert_eq!(house.b.ask("t", take()).await, Ok(3), "it was proven once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_to_be_written_on_a_state_that_is_read_again_is_decided_anew() {
    let house = Arc::new(House::new().await);
    house.a.ask("t", Command::Add(1)).await.unwrap();
    house.a.journal.rule(|_| Fault::Stall);
    let add = |amount| {
        let house = house.clone();
        tokio::spawn(async move { house.a.ask("t", Command::Add(amount)).await })
    };
    let first = add(10);
    until("the write is on its way", || async { house.a.journal.stalled() == 1 }).await;
    let behind = add(100);
    until("another waits behind it", || async { house.a.runtime.deepest().any(|(_, depth)| depth == 2) }).await;
    // Under a new tenure the journal is asked, and does not answer.
    house.a.journal.is_mute.store(true, Ordering::SeqCst);
    house.a.belief.tenure.fetch_add(1, Ordering::SeqCst);
    let last = add(1_000);
    until("a third waits", || async { house.a.runtime.deepest().any(|(_, depth)| depth == 3) }).await;
    house.a.journal.is_mute.store(false, Ordering::SeqCst);
    house.a.journal.heal();
    for added in [first, behind, last] {
        within(added).await.unwrap().unwrap();
    }
    assert_eq!(house.a.ask("t", Command::Add(10_000)).await, Ok(11_111));
    house.give("t", "b").await;
    assert_eq!(house.b.state("t").await.unwrap().total, 11_111);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_new_tenure_what_was_in_memory_before_is_compared_with_the_journal_first() {
    let house = House::new().await;
    house.a.ask("t", Command::Add(1)).await.unwrap();
    house.b.belief.owners.lock().unwrap().insert("t".into(), "b");
    house.b.ask("t", Command::Add(1)).await.unwrap();
    house.a.belief.tenure.fetch_add(1, Ordering::SeqCst);
    assert_eq!(house.a.state("t").await.unwrap().total, 2);
    assert_eq!(house.a.ask("t", Command::Refuse).await, Err(AskError::Rejected(Refused)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_at_the_door_counts_within_the_lease_and_the_tenure_in_which_it_was_put_up() {
    let take = |number| Command::Take { from: "giver".into(), number, amount: 1 };
    for under_a_new_tenure in [false, true] {
        let house = House::new().await;
        house.a.ask("t", Command::Close).await.unwrap();
        until("strangers are told at the door", || async {
            assert_eq!(house.a.ask("t", take(1)).await, Err(AskError::Rejected(Refused)));
            house.a.runtime.counters().turned_away.get() > 0
        })
        .await;
        assert_eq!(house.b.ask("t", take(1)).await, Err(AskError::Rejected(Refused)), "from there too");
        // The other takes over and opens it, and this one was not told.
        house.b.belief.owners.lock().unwrap().insert("t".into(), "b");
        house.b.ask("t", Command::Open).await.unwrap();
        match under_a_new_tenure {
            true => drop(house.a.belief.tenure.fetch_add(1, Ordering::SeqCst)),
            false => house.a.has_lease(false),
        }
        assert_eq!(house.a.ask("t", take(1)).await, Ok(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_is_asked_for_again_and_the_command_has_one_effect() {
    let house = House::new().await;
    house.b.belief.lose_answers.store(3, Ordering::SeqCst);
    assert_eq!(house.b.ask("t", Command::Add(5)).await, Ok(5));
    assert_eq!(house.b.belief.asked.load(Ordering::SeqCst), 4);
    assert_eq!(house.a.state("t").await.unwrap().total, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_lost_without_a_word_is_asked_again_within_seconds() {
    let house = House::new().await;
    let begun = Instant::now();
    house.b.belief.lose_questions.store(1, Ordering::SeqCst);
    assert_eq!(house.b.ask("t", Command::Add(5)).await, Ok(5));
    house.b.belief.lose_questions.store(1, Ordering::SeqCst);
    assert_eq!(house.b.state("t").await.unwrap().total, 5);
    // Each may wait for ten.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nobody_knows_who_has_it_a_caller_waits_and_hears_an_honest_word_in_the_end() {
    let house = House::new().await;
    house.a.belief.owners.lock().unwrap().insert("t".into(), "");
    let mut caller = Caller::new(CommandId::from("c"), "tester", "test");
    caller.timeout = Duration::from_millis(100);
    let outcome = within(house.a.runtime.ask::<Tally>("t", Command::Add(1), caller)).await;
    assert!(matches!(outcome, Err(AskError::Failed(Failure::OutOfReach(_) | Failure::TimedOut))), "{outcome:?}");
    let house = Arc::new(house);
    let waiting = tokio::spawn({
        let house = house.clone();
        async move { house.a.ask("t", Command::Add(1)).await }
    });
    house.give("t", "b").await;
    assert_eq!(waiting.await.unwrap(), Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_out_of_touch_says_so_at_once() {
    let house = House::new().await;
    house.a.belief.owners.lock().unwrap().insert("t".into(), "");
    house.a.belief.is_out_of_touch.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let outcome = house.a.ask("t", Command::Add(1)).await;
    assert!(matches!(outcome, Err(AskError::Failed(Failure::OutOfReach(_)))), "{outcome:?}");
    let seen = house.a.state("t").await;
    assert!(matches!(seen, Err(Failure::OutOfReach(_))), "{seen:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "callers wait for ten");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_later_answer_hears_it_though_the_entity_moves_meanwhile() {
    let house = Arc::new(House::new().await);
    house.a.ask("t", Command::Add(7)).await.unwrap();
    let waiting: Vec<_> = [&house.a, &house.b]
        .map(|member| {
            let member = member.clone();
            tokio::spawn(async move { member.ask_as("t", "later", Command::WaitForSettle).await })
        })
        .into();
    until("it waits", || async { !house.a.state("t").await.unwrap().waiting.is_empty() }).await;
    house.give("t", "b").await;
    assert_eq!(house.a.ask("t", Command::Settle).await, Ok(7));
    for heard in waiting {
        assert_eq!(heard.await.unwrap(), Ok(7));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sees_what_it_waits_for_though_the_entity_is_elsewhere_or_moves() {
    let house = Arc::new(House::new().await);
    house.a.ask("t", Command::Add(1)).await.unwrap();
    for (watcher, moves) in [("a", false), ("b", false), ("a", true), ("b", true)] {
        house.give("t", "a").await;
        let start = house.a.state("t").await.unwrap().total;
        let watching = tokio::spawn({
            let member = if watcher == "a" { house.a.clone() } else { house.b.clone() };
            async move {
                let seen = move |state: &State, _| (state.total > start).then_some(state.total);
                member.runtime.watch::<Tally, _>("t", Duration::from_secs(10), seen).await
            }
        });
        if moves {
            house.give("t", "b").await;
        }
        house.a.ask("t", Command::Add(1)).await.unwrap();
        let (seen, position) = within(watching).await.unwrap().unwrap();
        assert_eq!((seen, position), (start + 1, house.journal.highest()), "{watcher} {moves}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_nodes_entities_owe_and_wait_for_is_taken_up_by_their_new_owner_unasked() {
    let house = House::new().await;
    house.give("clock", "c").await;
    let dead = Member::start("c", &house.journal, &house.folder).await;
    dead.belief.owners.lock().unwrap().insert("clock".into(), "c");
    let soon = dead.runtime.now().plus_ms(200);
    dead.ask("clock", Command::SetAlarm(soon)).await.unwrap();
    drop(dead);
    house.give("clock", "b").await;
    until("the alarm rang", || async {
        let read = house.journal.read(&EntityKey::new("tally", "clock"), 1, Position(0), 10).await.unwrap();
        read.iter().any(|batch| String::from_utf8_lossy(&batch.payload).contains("tally.rung"))
    })
    .await;
    assert_eq!(house.a.residents(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_and_releases_the_same_from_every_node() {
    let house = House::new().await;
    house.give("broken", "b").await;
    house.a.ask("t", Command::Add(1)).await.unwrap();
    until("it is set aside", || async {
        house.a.ask("broken", Command::PanicInDecide).await.unwrap_err();
        !house.b.runtime.census().set_aside.is_empty()
    })
    .await;
    let seen = |member: Arc<Member>| async move {
        let members = within(member.runtime.members()).await.unwrap();
        let seen = members.into_iter().map(|(member, census)| {
            let of_census = census.map(|census| (census.residents, census.set_aside));
            (member.name.to_string(), of_census)
        });
        seen.collect::<Vec<_>>()
    };
    let by_a = seen(house.a.clone()).await;
    assert_eq!(by_a, seen(house.b.clone()).await);
    let counts: Vec<_> =
        by_a.iter().map(|(_, census)| census.as_ref().map(|(of_kind, aside)| (of_kind["tally"], aside.len()))).collect();
    assert_eq!(counts, [Some((1, 0)), Some((0, 1)), None], "the third does not answer");
    assert!(!house.a.runtime.release("tally", "t").await);
    assert!(house.a.runtime.release("tally", "broken").await);
    assert!(!house.a.runtime.release("tally", "broken").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_between_entities_of_different_nodes_arrive_and_pay_the_debt_once() {
    let house = House::new().await;
    house.give("giver", "a").await;
    house.give("taker", "b").await;
    house.a.belief.lose_answers.store(2, Ordering::SeqCst);
    for number in 0..20 {
        house.b.ask("giver", Command::Give { to: "taker".into(), number, amount: 3 }).await.unwrap();
    }
    until("all is given", || async { house.a.state("giver").await.unwrap().giving.is_empty() }).await;
    assert_eq!(house.b.state("taker").await.unwrap().total, 60);
    assert_eq!(house.a.state("giver").await.unwrap().total, -60);
}
