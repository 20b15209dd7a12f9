//! What one decision and its fold cost, without a runtime around them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use souk::domain::order::{Address, Contact, Draft, Line, Owner};
use souk::domain::payment::Method;
use souk::domain::{CommandId, Context, Currency, Entity, Inventory, Money, Order, Timestamp, inventory, order};

fn context(command: &CommandId) -> Context<'_> {
    Context { now: Timestamp::from_millis(1_800_000_000_000), id: "an-id", command, asker: "bench" }
}

/// Decides and folds, as the runtime does for each command.
fn turn<E: Entity>(state: &mut E::State, command: E::Command, command_id: &CommandId) {
    let decision = E::decide(state, command, &context(command_id)).unwrap_or_else(|rejection| panic!("{rejection}"));
    for event in &decision.events {
        E::evolve(state, event);
    }
    black_box(decision.reply);
}

fn stocked(holds: u32) -> inventory::State {
    let id = CommandId::from("c");
    let mut item = inventory::State::default();
    turn::<Inventory>(&mut item, inventory::Command::Register { product: "prod_1".into(), on_hand: u32::MAX }, &id);
    for cart in 0..holds {
        let hold = inventory::Command::Hold { cart: format!("cart_{cart:08}"), quantity: 1, revision: 1, absorb: None };
        turn::<Inventory>(&mut item, hold, &id);
    }
    item
}

fn inventory(criterion: &mut Criterion) {
    let id = CommandId::from("c");
    for holds in [0, 10_000] {
        let mut item = stocked(holds);
        let mut n = 0_u64;
        criterion.bench_function(&format!("inventory: hold, reserve, commit beside {holds} holds"), |bench| {
            bench.iter(|| {
                n += 1;
                let (cart, order) = (format!("cart_new_{n}"), format!("ord_{n}"));
                let hold = inventory::Command::Hold { cart: cart.clone(), quantity: 1, revision: 1, absorb: None };
                turn::<Inventory>(&mut item, hold, &id);
                let reserve = inventory::Command::Reserve { order: order.clone(), cart: Some(cart), quantity: 1 };
                turn::<Inventory>(&mut item, reserve, &id);
                turn::<Inventory>(&mut item, inventory::Command::Commit { order }, &id);
            });
        });
    }
    let item = stocked(0);
    let full = inventory::Command::Reserve { order: "ord_1".into(), cart: None, quantity: u32::MAX };
    criterion.bench_function("inventory: refuse what is not there", |bench| {
        bench.iter(|| black_box(Inventory::decide(&item, full.clone(), &context(&id)).is_err()));
    });
}

fn purchase(criterion: &mut Criterion) {
    let price = Money::new(1_999, Currency::EUR);
    let text = |text: &str| text.to_owned();
    let draft = Draft {
        owner: Owner::Guest { token_sha256: "00".repeat(32) },
        cart: None,
        lines: vec![Line {
            sku: text("SKU-1"),
            product: text("prod_1"),
            shop: None,
            title: text("A thing"),
            quantity: 1,
            unit_price: price,
            total: price,
            claim: None,
        }],
        total: price,
        contact: Contact::Plain {
            email: Some(text("shopper@souk.test")),
            shipping_address: Address {
                name: text("A Shopper"),
                line1: text("1 Market Street"),
                line2: None,
                city: text("Marrakesh"),
                postal_code: text("40000"),
                country: text("MA"),
            },
        },
        payment: Method { provider: text("sandbox"), token: text("tok_ok") },
    };
    let id = CommandId::from("c");
    criterion.bench_function("order: from placed to paid", |bench| {
        bench.iter(|| {
            let mut state = order::State::default();
            let sku = text("SKU-1");
            turn::<Order>(&mut state, order::Command::Place { draft: draft.clone() }, &id);
            turn::<Order>(&mut state, order::Command::HeardReserved { sku: sku.clone() }, &id);
            turn::<Order>(&mut state, order::Command::HeardAuthorized, &id);
            turn::<Order>(&mut state, order::Command::HeardCommitted { sku }, &id);
            turn::<Order>(&mut state, order::Command::HeardCaptured, &id);
            assert_eq!(state.status, order::Status::Paid);
        });
    });
}

criterion_group!(benches, inventory, purchase);
criterion_main!(benches);
