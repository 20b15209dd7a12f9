//! One run: clients who buy, a time in which anything goes wrong, a time in which nothing does, and the books.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use souk::actors::{AskError, Caller, Failure};
use souk::domain::cart::{self, Offer};
use souk::domain::flash_sale::{self, Customer, Terms};
use souk::domain::order::{self, Address, Claimed, Contact, Draft, Line, Owner, Status};
use souk::domain::payment::Method;
use souk::domain::{Cart, CommandId, Currency, Entity, FlashSale, Inventory, Money, Order, inventory};
use souk::persistence::jetstream::stream::Stored;
use tokio::time::Instant;

use crate::books::Books;
use crate::cluster::{Cluster, NAMES};
use crate::world::{Weather, World};

const SKUS: [(&str, u32); 3] = [("PLENTY", 1_000), ("SCARCE", 4), (ON_SALE, 5)];
/// Some of its units are in a flash sale.
const ON_SALE: &str = "RARE";
const SALE: &str = "fs_01M7XTJ72XFBZWPK91BJAAFXTS";
const ALLOTMENT: u32 = 3;
const PRICE: Money = Money::new(1_250, Currency::EUR);
/// How often a client asks whether its turn in line has come.
const TURNS: usize = 8;
const CLIENTS: usize = 4;
const PURCHASES: usize = 3;
const STORM: Duration = Duration::from_secs(30);
/// How long everything has to settle once nothing goes wrong any more.
const SETTLES: Duration = Duration::from_secs(300);
/// Past every hold, and past the time in which an order must be paid.
const DEADLINES: [Duration; 2] = [Duration::from_secs(31 * 60), Duration::from_secs(16 * 60)];

/// Runs a seed and returns its story; panics with the seed and the story when a promise is broken.
pub fn run(seed: u64) -> Vec<String> {
    fastrand::seed(seed);
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()))
        .build()
        .unwrap();
    let world: Arc<Mutex<Option<Arc<World>>>> = Arc::default();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        tokio.block_on(async {
            let weather = Weather { lost: 30, doubled: 30, late: 30, late_ms: 4_000, refused: 10 };
            let made = World::new(seed, weather);
            *world.lock().unwrap() = Some(made.clone());
            whole(made).await;
        });
    }));
    let world = world.lock().unwrap().take();
    let story = world.as_ref().map(|world| std::mem::take(&mut world.lock().story)).unwrap_or_default();
    if let Err(panic) = outcome {
        eprintln!("seed {seed} broke a promise; its story:\n{}", story.join("\n"));
        if let (Ok(name), Some(world)) = (std::env::var("SOUK_SHOW"), world) {
            show(&world, &name);
        }
        std::panic::resume_unwind(panic);
    }
    story
}

/// What the journal has of whatever is called so.
fn show(world: &World, name: &str) {
    for Stored { sequence, subject, payload, .. } in world.lock().log.iter().map(|logged| &logged.stored) {
        let payload = String::from_utf8_lossy(payload);
        if payload.contains(name) {
            eprintln!("{sequence} {subject} {payload}");
        }
    }
}

async fn whole(world: Arc<World>) {
    let cluster = Cluster::new(world.clone());
    for name in NAMES {
        cluster.start(name).await;
    }
    for (sku, units) in SKUS {
        let register = inventory::Command::Register { product: "prod_1".into(), on_hand: units };
        until_answered::<Inventory>(&cluster, sku, &format!("register {sku}"), register).await.unwrap();
    }
    open_sale(&cluster).await;
    let left = Arc::new(AtomicUsize::new(CLIENTS));
    let heard: Arc<Mutex<BTreeMap<String, Status>>> = Arc::default();
    for client in 0..CLIENTS {
        let (cluster, left, heard) = (cluster.clone(), left.clone(), heard.clone());
        tokio::spawn(async move {
            for number in 0..PURCHASES {
                let on_sale = cluster.world.lock().chance(400);
                match on_sale {
                    true => buy_on_sale(&cluster, client, number, &heard).await,
                    false => purchase(&cluster, client, number, &heard).await,
                }
            }
            left.fetch_sub(1, Ordering::SeqCst);
        });
    }
    storm(&cluster).await;
    calm(&cluster).await;
    settles(|| async {
        let waiting = left.load(Ordering::SeqCst);
        (waiting > 0).then(|| format!("{waiting} clients wait for answers"))
    })
    .await;
    settles(|| async { books(&cluster).await.unrest() }).await;
    world.tell("all is settled; now every deadline passes");
    for span in DEADLINES {
        cluster.advance(span);
        settles(|| async { books(&cluster).await.unrest() }).await;
    }
    settles(|| async {
        let books = books(&cluster).await;
        let tied = books.items.iter().find(|(_, item)| item.held > 0 || item.reserved > 0 || item.allotted > 0);
        books.unrest().or_else(|| tied.map(|(sku, item)| format!("{sku} has units held or reserved at {}: {item:?}", books.now)))
    })
    .await;
    let books = books(&cluster).await;
    books.assert_balanced(&SKUS);
    for (order, status) in &*heard.lock().unwrap() {
        assert_eq!(books.orders.get(order).map(|order| order.status), Some(*status), "{order} is what its buyer heard");
    }
    world.tell(format!("{} orders, {} records", books.orders.len(), books.ledger.records.len()));
}

async fn books(cluster: &Cluster) -> Books {
    let until = Instant::now() + SETTLES;
    loop {
        assert!(Instant::now() < until, "no node lives");
        let Some(node) = NAMES.into_iter().find_map(|name| cluster.node(name)) else {
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        };
        // The node may end meanwhile, and then nothing comes of it.
        let read = Books::read(&node.runtime, &*node.journal, &cluster.bank);
        if let Ok(books) = tokio::time::timeout(Duration::from_secs(30), read).await {
            return books;
        }
    }
}

/// Waits until there is no unrest any more.
async fn settles<F: Future<Output = Option<String>>>(mut unrest: impl FnMut() -> F) {
    let until = Instant::now() + SETTLES;
    while let Some(unrest) = unrest().await {
        assert!(Instant::now() < until, "it never settled: {unrest}");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Anything goes wrong, one thing or several at a time.
async fn storm(cluster: &Arc<Cluster>) {
    let until = Instant::now() + STORM;
    while Instant::now() < until {
        let (pause, what, who, span) = {
            let mut world = cluster.world.lock();
            let (pause, what) = (world.rng.u64(100..4_000), world.rng.u32(0..100));
            (
                Duration::from_millis(pause),
                what,
                NAMES[world.rng.usize(0..NAMES.len())],
                Duration::from_millis(world.rng.u64(200..6_000)),
            )
        };
        tokio::time::sleep(pause).await;
        match what {
            0..20 => {
                cluster.kill(who);
                cluster.comes_back(who, span);
            }
            20..40 => strike(cluster, who, "freezes", |standing, now| standing.frozen_until = now + span),
            40..60 => strike(cluster, who, "is cut off", |standing, now| standing.cut_until = now + span),
            60..80 => {
                let mut world = cluster.world.lock();
                let now = Instant::now();
                world.election_until = now + span;
                world.deposed = (world.log.len(), now + span + Duration::from_secs(1));
                world.tell(format!("the stream is without a leader for {} ms", span.as_millis()));
            }
            _ => {
                cluster.on_their_way.fetch_add(1, Ordering::SeqCst);
                let cluster = cluster.clone();
                tokio::spawn(async move {
                    cluster.drain(who).await;
                    cluster.comes_back(who, span);
                    cluster.on_their_way.fetch_sub(1, Ordering::SeqCst);
                });
            }
        }
    }
}

fn strike(cluster: &Cluster, who: &'static str, what: &str, how: impl FnOnce(&mut crate::world::Standing, Instant)) {
    if let Some(node) = cluster.node(who) {
        let mut world = cluster.world.lock();
        how(&mut world.lives[node.life], Instant::now());
        world.tell(format!("{who} {what}"));
    }
}

/// Everything is well again.
async fn calm(cluster: &Arc<Cluster>) {
    cluster.world.tell("calm");
    cluster.world.lock().weather = Weather::FAIR;
    while cluster.on_their_way.load(Ordering::SeqCst) > 0 {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for standing in &mut cluster.world.lock().lives {
        standing.connections.send_modify(|count| *count += 1);
    }
}

/// Asks any node, and again with the same command until there is an answer.
async fn until_answered<E: Entity>(
    cluster: &Cluster,
    id: &str,
    command_id: &str,
    command: E::Command,
) -> Result<E::Reply, E::Rejection> {
    loop {
        let (name, pause) = {
            let mut world = cluster.world.lock();
            (NAMES[world.rng.usize(0..NAMES.len())], Duration::from_millis(world.rng.u64(10..500)))
        };
        if let Some(node) = cluster.node(name) {
            let caller = Caller::new(CommandId::from(command_id), "guest", "simulation");
            // A caller whose node dies hears nothing, and gives up at some time.
            let patience = caller.timeout + Duration::from_secs(1);
            match tokio::time::timeout(patience, node.runtime.ask::<E>(id, command.clone(), caller)).await {
                Ok(Ok(answered)) => return Ok(answered.reply),
                Ok(Err(AskError::Rejected(rejection))) => return Err(rejection),
                Ok(Err(AskError::Failed(Failure::SetAside))) => panic!("{id} is set aside"),
                Ok(Err(AskError::Failed(failure))) => cluster.world.tell(format!("{name} about {id}: {failure}")),
                Err(_) => cluster.world.tell(format!("{name} about {id}: silence")),
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn purchase(cluster: &Cluster, client: usize, number: usize, heard: &Mutex<BTreeMap<String, Status>>) {
    let (sku, quantity, token) = {
        let mut world = cluster.world.lock();
        let sku = SKUS[world.rng.usize(0..SKUS.len())].0;
        let token = if world.chance(200) { "tok_declined" } else { "tok_ok" };
        (sku, world.rng.u32(1..3), token)
    };
    let (id, order) = (format!("cart_{client}_{number}"), order_id(client, number));
    let owner = Owner::Guest { token_sha256: "0".repeat(64) };
    until_answered::<Cart>(cluster, &id, &format!("create {id}"), cart::Command::Create { owner }).await.unwrap();
    let offer = Offer { product: "prod_1".into(), shop: None, title: "A thing".into(), price: PRICE };
    let add = cart::Command::Add { sku: sku.into(), quantity, offer };
    if until_answered::<Cart>(cluster, &id, &format!("add to {id}"), add).await.is_err() {
        return;
    }
    let checkout = cart::Command::Checkout {
        order: order.clone(),
        payment: method(token),
        contact: contact(),
        expected_total: None,
        prices: [(sku.to_owned(), PRICE)].into(),
        claimed: None,
    };
    let concluded = until_answered::<Cart>(cluster, &id, &format!("checkout {order}"), checkout).await;
    if let Ok(cart::Reply::Concluded(outcome)) = concluded {
        cluster.world.tell(format!("{order}: {outcome:?}"));
        heard.lock().unwrap().insert(order, outcome.status);
    }
}

fn order_id(client: usize, number: usize) -> String {
    format!("ord_01M7XTJ72XFBZWPK91B{client:03}{number:04}")
}

fn method(token: &str) -> Method {
    Method { provider: "sandbox".into(), token: token.into() }
}

fn contact() -> Contact {
    let shipping_address = Address {
        name: "Ada".into(),
        line1: "1 Way".into(),
        line2: None,
        city: "Fez".into(),
        postal_code: "30000".into(),
        country: "MA".into(),
    };
    Contact::Plain { email: Some("ada@souk.test".into()), shipping_address }
}

async fn open_sale(cluster: &Cluster) {
    let now = cluster.node(NAMES[0]).unwrap().runtime.now();
    let terms = Terms {
        sku: ON_SALE.into(),
        product: "prod_1".into(),
        shop: None,
        title: "A thing".into(),
        price: PRICE,
        quantity: ALLOTMENT,
        per_customer_limit: 2,
        per_address_limit: None,
        starts_at: now.plus_ms(5_000),
        ends_at: now.plus_ms(600_000),
        claim_ms: 10_000,
        admission_ms: 5_000,
        grace_ms: 5_000,
        guests: true,
    };
    let create = flash_sale::Command::Create { terms: Box::new(terms) };
    until_answered::<FlashSale>(cluster, SALE, "create the sale", create).await.unwrap();
    until_answered::<FlashSale>(cluster, SALE, "approve the sale", flash_sale::Command::Approve).await.unwrap();
}

/// Claims a unit, or waits in line for some turns; then pays, or lets it run out.
async fn buy_on_sale(cluster: &Cluster, client: usize, number: usize, heard: &Mutex<BTreeMap<String, Status>>) {
    let owner = Owner::Account { user: format!("usr_01M7XTJ72XFBZWPK91B{client:07}") };
    let customer = Customer::of(&owner).unwrap();
    let mut claimed = None;
    for turn in 0..TURNS {
        let command = flash_sale::Command::Claim { customer, quantity: 1, address: 0 };
        match until_answered::<FlashSale>(cluster, SALE, &format!("claim {client}/{number}/{turn}"), command).await {
            Ok(flash_sale::Reply::Claimed { claim, .. }) => {
                claimed = Some(claim);
                break;
            }
            Ok(flash_sale::Reply::Queued { .. }) | Err(flash_sale::Rejection::NotStarted { .. }) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(other) => panic!("a claim is told {other:?}"),
            Err(_) => break,
        }
    }
    let thinks_better = cluster.world.lock().chance(150);
    let (Some(claim), false) = (claimed, thinks_better) else {
        let leave = flash_sale::Command::Leave { customer };
        until_answered::<FlashSale>(cluster, SALE, &format!("leave {client}/{number}"), leave).await.unwrap();
        return;
    };
    let token = if cluster.world.lock().chance(200) { "tok_declined" } else { "tok_ok" };
    let line = Line {
        sku: ON_SALE.into(),
        product: "prod_1".into(),
        shop: None,
        title: "A thing".into(),
        quantity: 1,
        unit_price: PRICE,
        total: PRICE,
        claim: Some(Claimed { sale: SALE.into(), claim, customer }),
    };
    let draft = Draft { owner, cart: None, lines: vec![line], total: PRICE, contact: contact(), payment: method(token) };
    let order = order_id(client, number);
    let placed = until_answered::<Order>(cluster, &order, &format!("place {order}"), order::Command::Place { draft }).await;
    if let Ok(order::Reply::Concluded(outcome)) = placed {
        cluster.world.tell(format!("{order} of {claim}: {outcome:?}"));
        heard.lock().unwrap().insert(order, outcome.status);
    }
}
