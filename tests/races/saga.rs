//! One helper for the whole purchase: it is lived through with a fault at its first write, then at its second, and so
//! on to its last, and must end settled or undone in full every time.
//!
//! A fault is: a write that fails; a write that is stored though its writer hears otherwise; the process gone before a
//! write is stored; the process gone after it was stored and before anybody heard. Writes that were under way then may
//! still land when the next process has begun, as those of a former owner do in a cluster. The client is one as it should be:
//! it sends what was not answered again under the same command id, and sends what was answered once more as well.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use souk::actors::{AskError, Config};
use souk::domain::order::{Reason, Status};
use souk::domain::{Cart, Entity, FlashSale, Inventory, Order, cart, flash_sale, inventory, order, payment};
use souk::persistence::Journal;
use tokio::sync::Notify;

use crate::faulty;
use crate::sales;
use crate::shop::{DEADLINE, PRODUCT, Shop, checkout, guest, offer};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    NotWritten,
    StoredButUnknown,
    GoneBefore,
    GoneAfter,
}

const FAULTS: [Fault; 4] = [Fault::NotWritten, Fault::StoredButUnknown, Fault::GoneBefore, Fault::GoneAfter];

/// Which fault befalls the n-th write, counted from 1 through all lives of the process.
type Plan = Arc<Mutex<dyn FnMut(usize) -> Option<Fault> + Send>>;

/// How the purchase goes when nothing fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Story {
    Paid,
    Declined,
    /// One of the two things is taken off sale before the checkout.
    Short,
    CancelledAfterPaid,
    /// Claimed in a flash sale, and paid there.
    ClaimPaid,
    /// Claimed and declined: the unit is the next one's, who gives it up.
    ClaimDeclined,
}

const STOCK_A: u32 = 5;
const STOCK_B: u32 = 3;

struct Saga {
    shop: Shop,
    plan: Plan,
    writes: Arc<AtomicUsize>,
    gone: Arc<Notify>,
    lives: usize,
    /// The stock that every run so far began with.
    stock: Vec<(String, u32)>,
}

impl Saga {
    async fn open() -> Saga {
        // Snapshots often, so that they take part.
        let shop = Shop::open_with(Config { snapshot_every: 4, ..Config::default() }).await;
        let plan: Plan = Arc::new(Mutex::new(|_| None));
        Saga { shop, plan, writes: Arc::default(), gone: Arc::default(), lives: 1, stock: Vec::new() }
    }

    /// Has the plan followed from the next write on.
    fn follow(&mut self, plan: impl FnMut(usize) -> Option<Fault> + Send + 'static) {
        self.plan = Arc::new(Mutex::new(plan));
        self.writes = Arc::default();
        self.arm();
    }

    fn arm(&self) {
        let (plan, writes, gone) = (self.plan.clone(), self.writes.clone(), self.gone.clone());
        let embedded = self.shop.embedded.clone();
        let mut is_gone = false;
        self.shop.faulty.rule(move |append| {
            if is_gone {
                return faulty::Fault::Stall;
            }
            let write = writes.fetch_add(1, Ordering::SeqCst) + 1;
            let fault = (plan.lock().unwrap())(write);
            is_gone = matches!(fault, Some(Fault::GoneBefore | Fault::GoneAfter));
            match fault {
                None => faulty::Fault::None,
                Some(Fault::NotWritten) => faulty::Fault::NotWritten,
                Some(Fault::StoredButUnknown) => faulty::Fault::StoredButUnknown,
                // What stalls in a journal that is gone is never heard of again.
                Some(Fault::GoneBefore) => {
                    gone.notify_one();
                    faulty::Fault::Stall
                }
                Some(Fault::GoneAfter) => {
                    let gone = gone.clone();
                    embedded.append(append.clone(), Box::new(move |_| gone.notify_one()));
                    faulty::Fault::Stall
                }
            }
        });
    }

    async fn start_anew(&mut self) {
        self.shop.crash().await;
        self.lives += 1;
        self.arm();
    }

    /// Asks until there is an answer, in as many lives of the process as it takes.
    async fn insist<E>(&mut self, id: &str, command_id: &str, command: E::Command) -> Result<E::Reply, E::Rejection>
    where
        E: Entity,
        E::Command: Clone,
    {
        let gone = self.gone.clone();
        let began = Instant::now();
        loop {
            let answer = tokio::select! {
                answer = self.shop.ask::<E>(id, command_id, command.clone()) => Some(answer),
                () = gone.notified() => None,
            };
            match answer {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(AskError::Rejected(rejection))) => return Err(rejection),
                Some(Err(AskError::Failed(failure))) => {
                    assert!(began.elapsed() < DEADLINE, "{command_id} of {id} is never answered: {failure}");
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                None => self.start_anew().await,
            }
        }
    }

    /// Asks, and asks again when it is answered: the same answer must come.
    async fn ask_twice<E>(&mut self, id: &str, command_id: &str, command: E::Command) -> Result<E::Reply, E::Rejection>
    where
        E: Entity<Reply: PartialEq + std::fmt::Debug, Rejection: PartialEq>,
        E::Command: Clone,
    {
        let first = self.insist::<E>(id, command_id, command.clone()).await;
        let second = self.insist::<E>(id, command_id, command).await;
        assert_eq!(first, second, "{command_id} of {id} is answered as before");
        first
    }

    async fn rest(&mut self) {
        let gone = self.gone.clone();
        loop {
            tokio::select! {
                () = self.shop.comes_to_rest() => return,
                () = gone.notified() => {}
            }
            self.start_anew().await;
        }
    }

    /// Lives through a sale of one unit that two want.
    async fn claim(&mut self, story: Story, name: &str, plan: impl FnMut(usize) -> Option<Fault> + Send + 'static) {
        let a = format!("a_{name}");
        let [sale, order] = ["fs", "ord"].map(|kind| sales::id(kind, name.parse().unwrap()));
        self.shop.faulty.heal();
        self.shop.stock(&a, STOCK_A).await;
        self.stock.push((a.clone(), STOCK_A));
        self.follow(plan);

        let terms = sales::terms(&a, 1, self.shop.runtime.now());
        let create = flash_sale::Command::Create { terms: Box::new(terms) };
        assert_eq!(self.ask_twice::<FlashSale>(&sale, "create", create).await, Ok(flash_sale::Reply::Created));
        let approved = self.ask_twice::<FlashSale>(&sale, "approve", flash_sale::Command::Approve).await;
        assert_eq!(approved, Ok(flash_sale::Reply::Scheduled));
        let claimed = self.ask_twice::<FlashSale>(&sale, "first", sales::claim(1)).await;
        assert!(matches!(claimed, Ok(flash_sale::Reply::Claimed { claim: 0, quantity: 1, .. })), "{claimed:?}");
        let queued = self.ask_twice::<FlashSale>(&sale, "second", sales::claim(2)).await;
        assert_eq!(queued, Ok(flash_sale::Reply::Queued { ticket: 0, ahead: 0, wait_ms: None }));
        let token = if story == Story::ClaimPaid { "tok_ok" } else { "tok_declined" };
        let place = order::Command::Place { draft: sales::draft(&a, &sale, 0, 1, token) };
        let concluded = self.ask_twice::<Order>(&order, "place", place).await;
        let Ok(order::Reply::Concluded(outcome)) = concluded else { panic!("{concluded:?}") };
        let (status, sold) = match story {
            Story::ClaimPaid => (Status::Paid, 1),
            _ => (Status::PaymentFailed, 0),
        };
        assert_eq!(outcome.status, status);
        if story == Story::ClaimDeclined {
            let taken_up = self.ask_twice::<FlashSale>(&sale, "their turn", sales::claim(2)).await;
            assert!(matches!(taken_up, Ok(flash_sale::Reply::Claimed { claim: 1, quantity: 1, .. })), "{taken_up:?}");
            let give_up = flash_sale::Command::GiveUp { customer: sales::customer(2), claim: 1 };
            assert_eq!(self.ask_twice::<FlashSale>(&sale, "give up", give_up).await, Ok(flash_sale::Reply::GivenUp));
        }
        let cancel = flash_sale::Command::Cancel { reason: "over".into() };
        assert_eq!(self.ask_twice::<FlashSale>(&sale, "cancel", cancel).await, Ok(flash_sale::Reply::Cancelled));
        self.rest().await;
        let books = self.shop.books().await;
        let stock: Vec<(&str, u32)> = self.stock.iter().map(|(sku, units)| (sku.as_str(), *units)).collect();
        books.assert_balanced(&stock);
        assert_eq!((books.items[&a].on_hand, books.items[&a].allotted, books.sales[&sale].book.sold), (STOCK_A - sold, 0, sold));
    }

    /// Lives through the story under this name and checks how it ended.
    async fn live_through(&mut self, story: Story, name: &str, plan: impl FnMut(usize) -> Option<Fault> + Send + 'static) {
        if matches!(story, Story::ClaimPaid | Story::ClaimDeclined) {
            return self.claim(story, name, plan).await;
        }
        let [a, b, cart, order] = ["a", "b", "cart", "ord"].map(|what| format!("{what}_{name}"));
        self.shop.faulty.heal();
        self.shop.stock(&a, STOCK_A).await;
        self.shop.stock(&b, STOCK_B).await;
        self.stock.extend([(a.clone(), STOCK_A), (b.clone(), STOCK_B)]);
        self.follow(plan);

        let create = cart::Command::Create { owner: guest() };
        assert_eq!(self.ask_twice::<Cart>(&cart, "create", create).await, Ok(cart::Reply::Created));
        for (sku, quantity) in [(&a, 2), (&b, 1)] {
            let add = cart::Command::Add { sku: sku.clone(), quantity, offer: offer() };
            let added = self.ask_twice::<Cart>(&cart, &format!("add {sku}"), add).await;
            assert_eq!(added, Ok(cart::Reply::Quantity(quantity)));
        }
        if story == Story::Short {
            let deregister = inventory::Command::Deregister { product: PRODUCT.into() };
            self.ask_twice::<Inventory>(&b, "deregister", deregister).await.unwrap();
        }
        let token = if story == Story::Declined { "tok_declined" } else { "tok_ok" };
        let concluded = self.ask_twice::<Cart>(&cart, "checkout", checkout(&order, token, &[&a, &b])).await;
        let Ok(cart::Reply::Concluded(outcome)) = concluded else { panic!("{concluded:?}") };
        match story {
            Story::Paid | Story::CancelledAfterPaid => assert_eq!((outcome.status, outcome.reason), (Status::Paid, None)),
            Story::Declined => assert_eq!(outcome.status, Status::PaymentFailed),
            Story::Short => {
                assert_eq!(outcome.status, Status::Cancelled);
                let Some(Reason::OutOfStock { short }) = outcome.reason else { panic!("{outcome:?}") };
                assert_eq!(short.iter().map(|short| &short.sku).collect::<Vec<_>>(), [&b]);
            }
            Story::ClaimPaid | Story::ClaimDeclined => unreachable!("told elsewhere"),
        }
        if story == Story::CancelledAfterPaid {
            let cancel = order::Command::Cancel { reason: "changed my mind".into() };
            assert_eq!(self.ask_twice::<Order>(&order, "cancel", cancel).await, Ok(order::Reply::Cancelled));
        }
        self.rest().await;
        self.check(story, &a, &b, &cart, &order).await;
    }

    async fn check(&self, story: Story, a: &str, b: &str, cart: &str, order: &str) {
        let books = self.shop.books().await;
        let stock: Vec<(&str, u32)> = self.stock.iter().map(|(sku, units)| (sku.as_str(), *units)).collect();
        books.assert_balanced(&stock);
        let held = |sku: &str| books.items[sku].holds.get(cart).map(|hold| hold.quantity);
        let in_cart = |sku: &str| books.carts[cart].lines.get(sku).map(|line| line.quantity);
        let on_hand = (books.items[a].on_hand, books.items[b].on_hand);
        let payment = books.payments.get(&order::payment_id(order)).map(|payment| payment.phase);
        let is_open = books.carts[cart].phase == cart::Phase::Open;
        let expected = match story {
            Story::Paid => (Status::Paid, Some(payment::Phase::Captured), (STOCK_A - 2, STOCK_B - 1)),
            Story::Declined => (Status::PaymentFailed, Some(payment::Phase::Declined), (STOCK_A, STOCK_B)),
            Story::Short => (Status::Cancelled, None, (STOCK_A, STOCK_B)),
            Story::CancelledAfterPaid => (Status::Refunded, Some(payment::Phase::Refunded), (STOCK_A, STOCK_B)),
            Story::ClaimPaid | Story::ClaimDeclined => unreachable!("told elsewhere"),
        };
        assert_eq!((books.orders[order].status, payment, on_hand), expected);
        match story {
            Story::Paid | Story::CancelledAfterPaid => {
                assert_eq!((is_open, held(a), held(b)), (false, None, None));
            }
            Story::Declined => {
                assert_eq!((is_open, in_cart(a), in_cart(b)), (true, Some(2), Some(1)));
                assert_eq!((held(a), held(b)), (Some(2), Some(1)), "the cart holds its units anew");
            }
            Story::Short => {
                assert_eq!((is_open, in_cart(a), in_cart(b)), (true, Some(2), None));
                assert_eq!((held(a), held(b)), (Some(2), None));
            }
            Story::ClaimPaid | Story::ClaimDeclined => {}
        }
    }
}

/// The least number of writes that a purchase can be thought to have; fewer, and the faults miss something.
const WRITES_MIN: usize = 15;

/// The helper: every fault at every write. Each kind of fault has a shop of its own, and each run things of its own.
async fn survives_every_fault_at_every_write(story: Story) {
    let lanes = FAULTS.map(|fault| {
        tokio::spawn(async move {
            let mut saga = Saga::open().await;
            for at in 1.. {
                println!("{story:?}: {fault:?} at write {at}");
                saga.live_through(story, &format!("{at}"), move |write| (write == at).then_some(fault)).await;
                if saga.writes.load(Ordering::SeqCst) < at {
                    assert!(at > WRITES_MIN, "the saga has only {} writes", at - 1);
                    return (fault, at - 1, saga.lives);
                }
            }
            unreachable!("every saga has a last write")
        })
    });
    for lane in lanes {
        let (fault, writes, lives) = lane.await.unwrap();
        println!("{story:?}: survived {fault:?} at each of {writes} writes, in {lives} lives");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paid_purchase_survives_every_fault_at_every_write() {
    survives_every_fault_at_every_write(Story::Paid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declined_purchase_is_undone_in_full_whatever_fault_comes_at_whatever_write() {
    survives_every_fault_at_every_write(Story::Declined).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purchase_that_is_short_is_undone_in_full_whatever_fault_comes_at_whatever_write() {
    survives_every_fault_at_every_write(Story::Short).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_purchase_is_refunded_and_restocked_whatever_fault_comes_at_whatever_write() {
    survives_every_fault_at_every_write(Story::CancelledAfterPaid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_paid_survives_every_fault_at_every_write() {
    survives_every_fault_at_every_write(Story::ClaimPaid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_declined_is_the_next_one_s_whatever_fault_comes_at_whatever_write() {
    survives_every_fault_at_every_write(Story::ClaimDeclined).await;
}

const STORIES: [Story; 6] =
    [Story::Paid, Story::Declined, Story::Short, Story::CancelledAfterPaid, Story::ClaimPaid, Story::ClaimDeclined];

#[tokio::test(flavor = "multi_thread")]
async fn every_step_that_is_run_twice_has_one_effect() {
    for story in STORIES {
        let mut saga = Saga::open().await;
        // No writer ever hears that it was heard: everything is asked for again.
        saga.live_through(story, "1", |_| Some(Fault::StoredButUnknown)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_mixture_of_faults_only_delays_a_purchase() {
    let seed = std::env::var("SOUK_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SOUK_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..6 {
        for story in STORIES {
            let mut saga = Saga::open().await;
            let mut dice = random.fork();
            let plan = move |_| (dice.u8(..) < 50).then(|| FAULTS[dice.usize(..FAULTS.len())]);
            saga.live_through(story, "1", plan).await;
            println!("round {round}, {story:?}: {} lives", saga.lives);
        }
    }
}
