//! A sale that is on, in a runtime of its own.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use souk::actors::gate::Bounds;
use souk::actors::{Builder, Caller, Config, Runtime};
use souk::domain::flash_sale::{Command, Customer, Reply, Shown, Terms};
use souk::domain::order::Owner;
use souk::domain::time::{MINUTE_MS, SECOND_MS};
use souk::domain::{CommandId, Currency, EveryKind, FlashSale, Inventory, Money, inventory};
use souk::persistence::{Embedded, Options, Snapshots};
use ulid::Ulid;

pub const SALE: &str = "fs_01M7XTJD39HAVHP9G020ZF53AX";
const SKU: &str = "LANTERN-S";
/// To find the sale on.
const START_WITHIN: Duration = Duration::from_secs(10);

pub struct Started {
    pub runtime: Runtime,
    pub journal: Arc<Embedded>,
}

pub async fn start(dir: &Path, snapshot_every: u64) -> Started {
    let (journal, _) = Embedded::open(&dir.join("journal"), Options::default()).unwrap();
    let snapshots = Arc::new(Snapshots::open(&dir.join("snapshots")));
    let bounds = Bounds { per_entity: 8_192, per_node: 65_536 };
    let mut builder = Builder::new(journal.clone(), snapshots, Config { bounds, snapshot_every, ..Config::default() });
    builder.kind::<Inventory>();
    builder.kind::<FlashSale>();
    Started { runtime: builder.start().await.unwrap(), journal }
}

/// A sale of so many units, one to a customer, that starts at once.
pub async fn open(runtime: &Runtime, quantity: u32) {
    let register = inventory::Command::Register { product: "prod".to_owned(), on_hand: quantity };
    runtime.ask::<Inventory>(SKU, register, said("register")).await.unwrap();
    let terms = Terms {
        sku: SKU.to_owned(),
        product: "prod".to_owned(),
        shop: None,
        title: "Lantern".to_owned(),
        price: Money::new(900, Currency::EUR),
        quantity,
        per_customer_limit: 1,
        per_address_limit: None,
        starts_at: runtime.now(),
        ends_at: runtime.now().plus_ms(600 * MINUTE_MS),
        claim_ms: 60 * MINUTE_MS,
        admission_ms: 60 * MINUTE_MS,
        grace_ms: 60 * SECOND_MS,
        guests: true,
    };
    for (id, command) in [("create", Command::Create { terms: Box::new(terms) }), ("approve", Command::Approve)] {
        runtime.ask::<FlashSale>(SALE, command, said(id)).await.unwrap();
    }
    let is_on = async {
        loop {
            if look(runtime).await.status == souk::domain::flash_sale::Status::Active {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(START_WITHIN, is_on).await.unwrap();
}

/// The sale as it is.
pub async fn look(runtime: &Runtime) -> Box<Shown> {
    // Each look has a caller of its own: an answer that was kept would be an old one.
    let looked = runtime.ask::<FlashSale>(SALE, Command::Look { customer: None }, said(&Ulid::new().to_string())).await.unwrap();
    let Reply::Shown(shown) = looked.reply else { panic!("{:?}", looked.reply) };
    shown
}

/// The customer of this number, spread as the hashes of their tokens are.
pub fn customer(number: u64) -> Customer {
    let spread = |n: u64| (n ^ (n >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let (high, low) = (spread(number + 1), spread(spread(number + 1)));
    Customer::of(&Owner::Guest { token_sha256: format!("{high:016x}{low:016x}{:032x}", 0) }).unwrap()
}

/// Each command has an id of its own, as long as those of the door.
pub fn caller(number: u64) -> Caller {
    static ASKER: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("guest"));
    static CORRELATION: LazyLock<Arc<str>> =
        LazyLock::new(|| Arc::from("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    Caller::new(CommandId(format!("req_{number:026}")), ASKER.clone(), CORRELATION.clone())
}

fn said(id: &str) -> Caller {
    Caller::new(id.into(), "admin", "bench")
}

/// An order takes the claim up and pays for it.
pub async fn pay(runtime: &Runtime, buyer: u64) {
    let looked = runtime.ask::<FlashSale>(SALE, Command::Look { customer: Some(customer(buyer)) }, said("look")).await.unwrap();
    let Reply::Shown(shown) = looked.reply else { panic!("{:?}", looked.reply) };
    let claim = shown.own.unwrap().claims[0].claim;
    let order = format!("ord_01M7XTJD39HAVHP9G0{buyer:08}");
    let reserve =
        Command::Reserve { claim, order: order.clone(), customer: customer(buyer), quantity: 1, unit_price: shown.terms.price };
    for (step, command) in [("reserve", reserve), ("commit", Command::Commit { claim, order })] {
        runtime.ask::<FlashSale>(SALE, command, said(&format!("{step}/{claim}"))).await.unwrap();
    }
}

/// How long this process and the kernel for it have used a processor, to a hundredth of a second.
pub fn processor(pid: u32) -> (Duration, Duration) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After the program's name, which may have anything in it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |field: usize| Duration::from_millis(fields[field].parse::<u64>().unwrap() * 10);
    (ticks(11), ticks(12))
}

pub fn resident_bytes() -> u64 {
    status("VmRSS:")
}

pub fn peak_bytes() -> u64 {
    status("VmHWM:")
}

fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
