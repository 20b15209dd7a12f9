//! A node without its door, on the real journal, and the books that must balance whatever happened on it.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use souk::actors::{AskError, Builder, Caller, Config, Runtime};
use souk::domain::cart::{self, Offer};
use souk::domain::order::{self, Address, Contact, Draft, Line, Owner};
use souk::domain::payment::{self, Method};
use souk::domain::{Cart, CommandId, Currency, Entity, Inventory, Money, Order, every_kind, inventory, user};
use souk::integrations::Integration;
use souk::integrations::payment_providers::PaymentProviders;
use souk::integrations::sandbox;
use souk::persistence::{Embedded, Journal, Options, Snapshots};
use tempfile::TempDir;

use crate::accounts::Keys;
use crate::bank::{Bank, Counter};
use crate::books::Books;
use crate::faulty::Faulty;
use crate::ledger::Ledger;

pub const DEADLINE: Duration = Duration::from_secs(60);
pub const MINUTES: u64 = 60;
/// Past the end of every hold.
pub const PAST_HOLDS: Duration = Duration::from_secs(15 * MINUTES + 1);
/// Past the time in which an order must be paid.
pub const PAST_UNPAID: Duration = Duration::from_secs(30 * MINUTES + 1);
pub const PRICE: i64 = 1_250;
pub const PRODUCT: &str = "prod_1";

/// Awaits a condition, with a deadline. A condition that is dear to look at is looked at less often.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let awaited = async {
        loop {
            let looked = Instant::now();
            if condition().await {
                return;
            }
            tokio::time::sleep(looked.elapsed().max(Duration::from_millis(5))).await;
        }
    };
    tokio::time::timeout(DEADLINE, awaited).await.unwrap_or_else(|_| panic!("never came about: {what}"));
}

/// Runs all at once, and gives their answers in the order of the askers.
pub async fn all_at_once<F>(askers: impl IntoIterator<Item = F>) -> Vec<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let tasks: Vec<_> = askers.into_iter().map(tokio::spawn).collect();
    let mut answers = Vec::with_capacity(tasks.len());
    for task in tasks {
        let answer = tokio::time::timeout(DEADLINE, task).await.expect("it should not take this long");
        answers.push(answer.expect("no asker panics"));
    }
    answers
}

pub fn eur(amount: i64) -> Money {
    Money::new(amount, Currency::EUR)
}

pub fn offer() -> Offer {
    Offer { product: PRODUCT.into(), shop: None, title: "A thing".into(), price: eur(PRICE) }
}

pub fn guest() -> Owner {
    Owner::Guest { token_sha256: "0".repeat(64) }
}

pub fn address() -> Address {
    Address {
        name: "Ada".into(),
        line1: "1 Way".into(),
        line2: None,
        city: "Fez".into(),
        postal_code: "30000".into(),
        country: "MA".into(),
    }
}

pub fn method(token: &str) -> Method {
    Method { provider: "sandbox".into(), token: token.into() }
}

/// The checkout of a cart that holds any of these skus.
pub fn checkout(order: &str, token: &str, skus: &[&str]) -> cart::Command {
    cart::Command::Checkout {
        order: order.into(),
        payment: method(token),
        contact: Contact::Plain { email: Some("ada@souk.test".into()), shipping_address: address() },
        expected_total: None,
        prices: skus.iter().map(|sku| ((*sku).to_owned(), eur(PRICE))).collect(),
        claimed: None,
    }
}

/// An order without a cart.
pub fn draft(lines: &[(&str, u32)], token: &str) -> Draft {
    let line = |(sku, quantity): &(&str, u32)| Line {
        sku: (*sku).to_owned(),
        product: PRODUCT.into(),
        shop: None,
        title: "A thing".into(),
        quantity: *quantity,
        unit_price: eur(PRICE),
        total: eur(PRICE * i64::from(*quantity)),
        claim: None,
    };
    let units: u32 = lines.iter().map(|(_, quantity)| quantity).sum();
    Draft {
        owner: guest(),
        cart: None,
        lines: lines.iter().map(line).collect(),
        total: eur(PRICE * i64::from(units)),
        contact: Contact::Plain { email: Some("ada@souk.test".into()), shipping_address: address() },
        payment: method(token),
    }
}

pub struct Shop {
    pub runtime: Runtime,
    pub faulty: Arc<Faulty>,
    pub bank: Arc<Bank>,
    pub keys: Arc<Keys>,
    pub embedded: Arc<Embedded>,
    snapshots: Arc<Snapshots>,
    config: Config,
    _folder: TempDir,
}

pub type Answer<E> = Result<<E as Entity>::Reply, AskError<<E as Entity>::Rejection>>;

impl Shop {
    pub async fn open() -> Arc<Shop> {
        Arc::new(Shop::open_with(Config::default()).await)
    }

    pub async fn open_with(config: Config) -> Shop {
        let folder = tempfile::tempdir().unwrap();
        let (embedded, _) = Embedded::open(&folder.path().join("journal"), Options::default()).unwrap();
        let snapshots = Arc::new(Snapshots::open(&folder.path().join("snapshots")));
        let bank = Arc::new(Bank::default());
        let keys = Arc::new(Keys::default());
        let (runtime, faulty) = start(&embedded, &snapshots, bank.clone(), &keys, config).await;
        Shop { runtime, faulty, bank, keys, embedded, snapshots, config, _folder: folder }
    }

    /// A shop whose bank is behind a breaker, as in a node.
    pub async fn behind_a_breaker() -> (Arc<Shop>, Arc<PaymentProviders>) {
        let mut shop = Shop::open_with(Config::default()).await;
        let providers = Arc::new(PaymentProviders::default().with(sandbox::NAME, Counter(shop.bank.clone())));
        (shop.runtime, shop.faulty) = start(&shop.embedded, &shop.snapshots, providers.clone(), &shop.keys, shop.config).await;
        (Arc::new(shop), providers)
    }

    /// The process is gone, and a new one starts over what it left: the journal, and whatever snapshots there are.
    pub async fn crash(&mut self) {
        let (runtime, faulty) = start(&self.embedded, &self.snapshots, self.bank.clone(), &self.keys, self.config).await;
        self.runtime = runtime;
        self.faulty = faulty;
    }

    pub async fn stock(&self, sku: &str, units: u32) {
        let register = inventory::Command::Register { product: PRODUCT.into(), on_hand: units };
        self.ask::<Inventory>(sku, &format!("register {sku}"), register).await.unwrap();
    }

    pub async fn ask<E: Entity>(&self, id: &str, command_id: &str, command: E::Command) -> Answer<E> {
        let mut caller = Caller::new(CommandId::from(command_id), "guest", "race");
        caller.timeout = DEADLINE;
        self.runtime.ask::<E>(id, command, caller).await.map(|answered| answered.reply)
    }

    /// A cart with one line, or the refusal of that line.
    pub async fn fill_cart(&self, id: &str, sku: &str, quantity: u32) -> Answer<Cart> {
        self.ask::<Cart>(id, &format!("create {id}"), cart::Command::Create { owner: guest() }).await.unwrap();
        self.add(id, &format!("add {sku} to {id}"), sku, quantity).await
    }

    pub async fn add(&self, cart: &str, command_id: &str, sku: &str, quantity: u32) -> Answer<Cart> {
        self.ask::<Cart>(cart, command_id, cart::Command::Add { sku: sku.into(), quantity, offer: offer() }).await
    }

    /// Checks a cart out and returns how the order ended.
    pub async fn check_out(&self, cart: &str, order: &str, token: &str, skus: &[&str]) -> order::Outcome {
        match self.ask::<Cart>(cart, &format!("checkout {order}"), checkout(order, token, skus)).await {
            Ok(cart::Reply::Concluded(outcome)) => outcome,
            other => panic!("{cart} was checked out and heard {other:?}"),
        }
    }

    pub async fn place(&self, order: &str, draft: Draft) -> order::Outcome {
        match self.ask::<Order>(order, &format!("place {order}"), order::Command::Place { draft }).await {
            Ok(order::Reply::Concluded(outcome)) => outcome,
            other => panic!("{order} was placed and heard {other:?}"),
        }
    }

    pub async fn state<E: Entity>(&self, id: &str) -> E::State
    where
        E::State: Clone,
    {
        self.runtime.view::<E, _>(id, |state, _| state.clone()).await.unwrap()
    }

    pub async fn ledger(&self) -> Ledger {
        Ledger::read(&*self.embedded).await
    }

    pub async fn books(&self) -> Books {
        Books::read(&self.runtime, &*self.embedded, &self.bank).await
    }

    /// Awaits that nobody owes anything to anybody.
    pub async fn comes_to_rest(&self) {
        until("the shop is at rest", || async { self.books().await.unrest().is_none() }).await;
    }

    /// Sets the clock ahead until every hold and every unpaid order has run out.
    pub async fn passes_all_deadlines(&self) {
        self.runtime.clock().advance(PAST_UNPAID);
        self.comes_to_rest().await;
        // Carts that came back from a failed order have asked for their units once more.
        self.runtime.clock().advance(PAST_HOLDS);
        until("no unit is held or reserved", || async {
            let books = self.books().await;
            books.unrest().is_none() && books.items.values().all(|item| item.held == 0 && item.reserved == 0)
        })
        .await;
    }
}

async fn start(
    embedded: &Arc<Embedded>,
    snapshots: &Arc<Snapshots>,
    bank: Arc<impl Integration<payment::Provider>>,
    keys: &Arc<Keys>,
    config: Config,
) -> (Runtime, Arc<Faulty>) {
    let faulty = Faulty::over(embedded.clone());
    let journal: Arc<dyn Journal> = faulty.clone();
    let mut builder = Builder::new(journal, snapshots.clone(), config);
    every_kind(&mut builder);
    let builder = builder.outside::<payment::Provider>(bank).outside::<user::Vault>(keys.clone());
    let runtime = builder.start().await.unwrap();
    (runtime, faulty)
}
