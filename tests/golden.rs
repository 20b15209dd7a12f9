//! Old records stay readable for ever: each type of event has a record on file, as some version of Souk stored it.
//!
//! `tests/golden/<type>.json` holds the first form that a type had, `<type>.2.json` the next, and so on. A file that is
//! there is never changed. When an event gains a field, the list below changes with it and
//! `SOUK_WRITE_GOLDEN=1 cargo test --test golden` adds what is missing; the older files say whether the code still reads
//! what older versions wrote.

// Clippy's allowance for tests does not reach the functions beside them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Once, mpsc};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use souk::domain::email::EmailHash;
use souk::domain::order::Owner;
use souk::domain::request::{Answer, Seed};
use souk::domain::user::{Sealed, SealedEmail};
use souk::domain::{
    Cart, CommandId, Currency, Email, Entity, EveryKind, FlashSale, Inventory, Money, Order, Payment, Product, Request, Shop,
    Timestamp, User, cart, email, every_kind, flash_sale, inventory, order, payment, product, request, shop, user,
};
use souk::persistence::record::{Cause, Payload, PayloadWriter, raw_records};
use souk::persistence::{Append, Embedded, EntityKey, Journal, Options, Position, Wake};
use souk::read_models::ReadModels;

const CART: &str = "cart_01M7XTJCNK7E0TZAKXQ10YG0SG";
const GUEST_CART: &str = "cart_01M7XTGS4C0P2XJ5B7N8R3QWVY";
const ORDER: &str = "ord_01M7XTJD39HAVHP9G020ZF53AX";
const PAYMENT: &str = "pay_01M7XTJD39HAVHP9G020ZF53AX";
const PRODUCT: &str = "prod_01M7XTJ72XFBZWPK91BJAAFXTS";
const REQUEST: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
const FLASH_SALE: &str = "fs_01M7XTJ72XFBZWPK91BJAAFXTS";
const SHOP: &str = "shop_01M7XTJ72XFBZWPK91BJAAFXTS";
const USER: &str = "usr_01M7XTJ72XFBZWPK91BJAAFXTS";
const SESSION: &str = "ses_01M7XTHE7A1DG5ZFV3YB8HNKSC";
const API_KEY: &str = "key_01M7XTHH9XPR2M6CWQ4TJ0EVDB";
const EMAIL: &str = "5d2f3c1b9e7a84060f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978";
const SECRET_SHA256: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
const SKU: &str = "LANTERN-S";
const CORRELATION: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// One event as it is written today, in the record that it would be written in.
struct Sample {
    kind: &'static str,
    id: &'static str,
    event_type: &'static str,
    /// As stored: the whole envelope.
    record: Value,
}

/// Lists each variant of an event once, with its type and an example. A variant that is not listed does not compile.
macro_rules! samples {
    ($kind:ty, $id:expr, [$($pattern:pat => $event_type:literal, $sample:expr;)*]) => {{
        fn type_of(event: &<$kind as Entity>::Event) -> &'static str {
            match event { $($pattern => $event_type),* }
        }
        let events: Vec<(&'static str, <$kind as Entity>::Event)> = vec![$(($event_type, $sample)),*];
        (1..).zip(events).map(|(version, (event_type, event))| {
            assert_eq!(type_of(&event), event_type, "the example is of another variant");
            sample::<$kind>($id, version, event_type, &event)
        }).collect::<Vec<Sample>>()
    }};
}

fn sample<E: Entity>(id: &'static str, version: u64, event_type: &'static str, event: &E::Event) -> Sample {
    let command = CommandId::from("01M7XTJD39HAVHP9G020ZF53AX");
    let time = at("2026-11-21T01:12:12.653Z").plus_ms(version as i64);
    let cause = Cause { command: &command, correlation: CORRELATION, asker: "guest", time };
    Sample { kind: E::KIND, id, event_type, record: stored(&EntityKey::new(E::KIND, id), version, cause, event) }
}

fn stored<E: Serialize>(entity: &EntityKey, version: u64, cause: Cause<'_>, event: &E) -> Value {
    let mut writer = PayloadWriter::default();
    writer.event(entity, version, cause, event).unwrap();
    let payload = writer.finish(Wake::Never).unwrap();
    serde_json::from_str(raw_records(&payload).unwrap()[0].get()).unwrap()
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

fn euros(cents: i64) -> Money {
    Money::new(cents, Currency::EUR)
}

fn command() -> CommandId {
    CommandId::from("01M7XTJD2P5CD0SMKP8DBH6J78")
}

fn held_until() -> Timestamp {
    at("2026-11-21T01:27:12.636Z")
}

fn owner() -> Owner {
    Owner::Guest { token_sha256: "f48ce631f1d0c42f66b3904f3f25f045a88d235e6a64c0d8e1fcd7048ff337ea".into() }
}

fn content() -> product::Content {
    product::Content {
        shop: "shop_default".into(),
        handle: "copper-lantern".into(),
        title: "Copper Lantern".into(),
        description: "A hand-beaten lantern that throws a lattice of light on the wall.".into(),
        vendor: "Souk".into(),
        product_type: "Lighting".into(),
        category: vec!["Home".into(), "Lighting".into()],
        tags: vec!["copper".into(), "handmade".into()],
        options: vec!["Size".into()],
        variants: vec![product::Variant { sku: SKU.into(), price: euros(4_900), options: vec!["Small".into()] }],
        published: true,
    }
}

fn stock() -> BTreeMap<String, u32> {
    BTreeMap::from([(SKU.into(), 400)])
}

fn method() -> payment::Method {
    payment::Method { provider: "sandbox".into(), token: "tok_ok".into() }
}

fn contact() -> order::Contact {
    let sealed = order::SealedContact { key: "guests-2026-11-21".into(), sealed: "c2VhbGVk".into() };
    order::Contact::Sealed { contact: sealed }
}

fn draft() -> order::Draft {
    order::Draft {
        owner: owner(),
        cart: Some(CART.into()),
        lines: vec![order::Line {
            sku: SKU.into(),
            product: PRODUCT.into(),
            shop: Some(SHOP.into()),
            title: "Copper Lantern (Small)".into(),
            quantity: 2,
            unit_price: euros(4_900),
            total: euros(9_800),
            claim: None,
        }],
        total: euros(9_800),
        contact: contact(),
        payment: method(),
    }
}

fn declined() -> order::Reason {
    order::Reason::PaymentDeclined { message: "the card was declined".into() }
}

fn offer() -> cart::Offer {
    cart::Offer { product: PRODUCT.into(), shop: Some(SHOP.into()), title: "Copper Lantern (Small)".into(), price: euros(4_900) }
}

fn handed_over() -> Vec<cart::HandedOver> {
    vec![cart::HandedOver { sku: SKU.into(), quantity: 2, offer: offer() }]
}

#[rustfmt::skip]
fn product_samples() -> Vec<Sample> {
    use product::Event::*;
    samples!(Product, PRODUCT, [
        Drafted { .. } => "product.drafted", Drafted { id: PRODUCT.into(), command: command(), content: content(), stock: stock() };
        SkuClaimed { .. } => "product.sku.claimed", SkuClaimed { sku: SKU.into() };
        SkuRefused { .. } => "product.sku.refused", SkuRefused { sku: SKU.into() };
        SkuGivenUp { .. } => "product.sku.given_up", SkuGivenUp { sku: SKU.into() };
        Created { .. } => "product.created", Created { content: content() };
        UpdateDrafted { .. } => "product.update_drafted", UpdateDrafted { command: command(), content: content(), stock: stock() };
        Updated { .. } => "product.updated", Updated { content: content() };
        UpdateRefused { .. } => "product.update_refused", UpdateRefused { skus: vec![SKU.into()] };
        Deleted { .. } => "product.deleted", Deleted { reason: "these skus belong to other products: LANTERN-S".into() };
    ])
}

#[rustfmt::skip]
fn inventory_samples() -> Vec<Sample> {
    use inventory::Event::*;
    let cart = || CART.to_owned();
    let order = || ORDER.to_owned();
    samples!(Inventory, SKU, [
        Created { .. } => "inventory.created", Created { product: PRODUCT.into(), on_hand: 400 };
        Updated { .. } => "inventory.updated", Updated { product: Some(PRODUCT.into()), low_stock_threshold: 10 };
        LowStock { .. } => "inventory.low_stock", LowStock { available: 9, low_stock_threshold: 10 };
        HoldPlaced { .. } => "inventory.hold.placed",
            HoldPlaced { cart: cart(), quantity: 2, revision: 1, expires_at: held_until(), available: 398 };
        HoldReleased { .. } => "inventory.hold.released", HoldReleased { cart: cart(), available: 400 };
        HoldExpired { .. } => "inventory.hold.expired", HoldExpired { cart: cart(), available: 400 };
        Reserved { .. } => "inventory.reserved", Reserved { order: order(), cart: Some(cart()), quantity: 2, available: 398 };
        Released { .. } => "inventory.released", Released { order: order(), available: 400 };
        Closed { .. } => "inventory.closed", Closed { order: order(), until: at("2026-11-21T02:12:12.653Z") };
        Allotted { .. } => "inventory.allotted",
            Allotted { sale: FLASH_SALE.into(), allotment: allotment(), on_hand: 388, available: 300 };
        Decreased { .. } => "stock.decreased",
            Decreased { quantity: 2, reason: "sold".into(), order: Some(order()), on_hand: 398, available: 398 };
        Increased { .. } => "stock.increased",
            Increased { quantity: 2, reason: "restocked".into(), order: Some(order()), until: Some(at("2026-11-22T01:12:12.653Z")), on_hand: 400, available: 400 };
    ])
}

#[rustfmt::skip]
fn cart_samples() -> Vec<Sample> {
    use cart::Event::*;
    let sku = || SKU.to_owned();
    let asked = cart::Asked { revision: 1, quantity: 2, covers: 1, absorb: Some(GUEST_CART.into()) };
    let change = cart::Change { command: Some(command()), change: cart::QuantityChange::Add(2), absorb: None };
    let outcome = order::Outcome { order: ORDER.into(), status: order::Status::PaymentFailed, reason: Some(declined()) };
    let repriced = vec![cart::PriceChange { sku: sku(), was: euros(4_900), now: Some(euros(5_200)) }];
    samples!(Cart, CART, [
        Created { .. } => "cart.created", Created { id: CART.into(), owner: owner() };
        ItemRequested { .. } => "cart.item.requested", ItemRequested { sku: sku(), offer: offer(), change };
        HoldAsked { .. } => "cart.hold.asked", HoldAsked { sku: sku(), asked };
        ItemAdded { .. } => "cart.item.added", ItemAdded { sku: sku(), quantity: 2, held_until: held_until(), answered: 1 };
        Updated { .. } => "cart.updated", Updated { sku: sku(), quantity: 3, held_until: held_until(), answered: 1 };
        ItemRefused { .. } => "cart.item.refused",
            ItemRefused { sku: sku(), available: 1, refused: vec![1], reduced: vec![(0, 1)] };
        ItemRemoved { .. } => "cart.item.removed", ItemRemoved { sku: sku() };
        HoldReleased { .. } => "cart.hold.released", HoldReleased { sku: sku() };
        Repriced { .. } => "cart.repriced", Repriced { changes: repriced };
        MergeRequested { .. } => "cart.merge_requested", MergeRequested { from: GUEST_CART.into(), command: command() };
        Merged { .. } => "cart.merged", Merged { from: GUEST_CART.into(), lines: handed_over() };
        MergeRefused { .. } => "cart.merge_refused", MergeRefused { from: GUEST_CART.into() };
        HandedOver { .. } => "cart.handed_over", HandedOver { into: CART.into(), lines: handed_over() };
        CheckedOut { .. } => "cart.checked_out",
            CheckedOut { order: ORDER.into(), command: command(), draft: Box::new(draft()) };
        Completed { .. } => "cart.completed", Completed { order: ORDER.into() };
        Reopened { .. } => "cart.reopened", Reopened { outcome };
        Deleted => "cart.deleted", Deleted;
    ])
}

#[rustfmt::skip]
fn order_samples() -> Vec<Sample> {
    use order::Event::*;
    let sku = || SKU.to_owned();
    let short = vec![order::Short { sku: sku(), requested: 2, available: 1 }];
    let shipment = order::Shipment {
        carrier: "La Poste".into(),
        tracking_number: Some("6A12345678901".into()),
        shipped_at: at("2026-11-21T09:30:00.000Z"),
    };
    samples!(Order, ORDER, [
        Created { .. } => "order.created",
            Created { id: ORDER.into(), command: command(), draft: draft(), placed_at: at("2026-11-21T01:12:12.653Z") };
        PlacedAgain { .. } => "order.placed_again", PlacedAgain { command: command() };
        LineReserved { .. } => "order.line.reserved", LineReserved { sku: sku() };
        LineRefused { .. } => "order.line.refused", LineRefused { sku: sku(), available: 1 };
        LineReleased { .. } => "order.line.released", LineReleased { sku: sku() };
        LineCommitted { .. } => "order.line.committed", LineCommitted { sku: sku() };
        LineRestocked { .. } => "order.line.restocked", LineRestocked { sku: sku() };
        Updated { .. } => "order.updated", Updated { status: order::Status::Reserved };
        PaymentAuthorized => "order.payment.authorized", PaymentAuthorized;
        PaymentCaptured => "order.payment.captured", PaymentCaptured;
        PaymentCaptureFailed { .. } => "order.payment.capture_failed",
            PaymentCaptureFailed { reason: "the authorization has lapsed".into() };
        PaymentVoided => "order.payment.voided", PaymentVoided;
        PaymentRefunded => "order.payment.refunded", PaymentRefunded;
        Paid { .. } => "order.paid", Paid { total: euros(9_800) };
        PaymentFailed { .. } => "order.payment_failed", PaymentFailed { reason: declined() };
        Cancelled { .. } => "order.cancelled", Cancelled { reason: order::Reason::OutOfStock { short } };
        Shipped { .. } => "order.shipped", Shipped { shipment };
        Delivered { .. } => "order.delivered", Delivered { delivered_at: at("2026-11-23T10:00:00.000Z") };
        Refunded { .. } => "order.refunded", Refunded { total: euros(9_800) };
        Claimed { .. } => "order.claimed", Claimed { user: USER.into(), contact: contact() };
    ])
}

#[rustfmt::skip]
fn payment_samples() -> Vec<Sample> {
    use payment::Event::*;
    let reference = |step: &str| format!("sandbox:payment/{PAYMENT}:{step}");
    samples!(Payment, PAYMENT, [
        Created { .. } => "payment.created",
            Created { id: PAYMENT.into(), command: command(), order: ORDER.into(), amount: euros(9_800), method: method() };
        AskedAgain { .. } => "payment.asked_again", AskedAgain { command: command() };
        Authorized { .. } => "payment.authorized", Authorized { reference: reference("authorize") };
        CaptureRequested { .. } => "payment.capture_requested", CaptureRequested { command: command() };
        Captured { .. } => "payment.success", Captured { reference: reference("capture"), amount: euros(9_800) };
        Failed { .. } => "payment.failed",
            Failed { step: payment::Step::Authorize, reason: "the card was declined".into() };
        VoidRequested { .. } => "payment.void_requested", VoidRequested { command: command() };
        Voided => "payment.voided", Voided;
        RefundRequested { .. } => "payment.refund_requested", RefundRequested { command: command() };
        Refunded { .. } => "payment.refunded", Refunded { reference: reference("refund"), amount: euros(9_800) };
    ])
}

#[rustfmt::skip]
fn request_samples() -> Vec<Sample> {
    use request::Event::*;
    let seed = Seed {
        id: "01M7XTJD39HAVHP9G020ZF53AX".into(),
        secret: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".into(),
    };
    let headers = BTreeMap::from([("location".to_owned(), format!("/api/orders/{ORDER}"))]);
    let (body, sealed_by) = ("s1.c2VhbGVk".to_owned(), Some("guests-2026-11-21".to_owned()));
    let answer = Answer { status: 201, headers, body, sealed_by };
    samples!(Request, REQUEST, [
        Begun { .. } => "request.begun",
            Begun { fingerprint: "fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9".into(), seed };
        Answered { .. } => "request.answered", Answered { answer };
    ])
}

fn sealed() -> Sealed {
    Sealed("v1.3QJmLr0bC9eWn1xHcTgYk2uVfA5oSdPz8iKqRjBw7lE".into())
}

fn sealed_email() -> SealedEmail {
    SealedEmail { hash: EmailHash(EMAIL.into()), sealed: sealed() }
}

#[rustfmt::skip]
fn user_samples() -> Vec<Sample> {
    use user::Event::*;
    let session = || SESSION.to_owned();
    let key = || API_KEY.to_owned();
    let secret_sha256 = || SECRET_SHA256.to_owned();
    let time = || at("2026-11-21T01:10:01.042Z");
    let scopes = BTreeSet::from(["inventory:write".to_owned(), "products:write".to_owned()]);
    samples!(User, USER, [
        RegistrationRequested { .. } => "user.registration.requested",
            RegistrationRequested { id: USER.into(), command: command(), email: sealed_email(), profile: sealed(), password_hash: sealed() };
        RegistrationRefused => "user.registration.refused", RegistrationRefused;
        Created { .. } => "user.created", Created { created_at: time() };
        Updated { .. } => "user.updated", Updated { email: sealed_email(), claim: 2, profile: sealed() };
        EmailChangeRequested { .. } => "user.email.change_requested",
            EmailChangeRequested { command: command(), email: sealed_email(), claim: 2 };
        EmailChangeRefused { .. } => "user.email.change_refused", EmailChangeRefused { claim: 2 };
        EmailReleased { .. } => "user.email.released", EmailReleased { claim: 1 };
        PasswordChanged { .. } => "user.password.changed", PasswordChanged { password_hash: sealed(), kept: Some(session()) };
        RoleGranted { .. } => "user.role.granted", RoleGranted { role: user::Role::Admin };
        RoleRevoked { .. } => "user.role.revoked", RoleRevoked { role: user::Role::Admin };
        CartUsed { .. } => "user.cart.used", CartUsed { cart: CART.into() };
        ShopAttached { .. } => "user.shop.attached", ShopAttached { shop: SHOP.into() };
        ShopClosed => "user.shop.closed", ShopClosed;
        SessionOpened { .. } => "user.session.opened",
            SessionOpened { session: session(), secret_sha256: secret_sha256(), device: sealed(), opened_at: time() };
        SessionRefreshed { .. } => "user.session.refreshed",
            SessionRefreshed { session: session(), secret_sha256: secret_sha256(), used_at: time() };
        SessionEnded { .. } => "user.session.ended", SessionEnded { session: session(), because: user::Ending::Reused };
        SessionsEnded { .. } => "user.sessions.ended", SessionsEnded { kept: Some(session()) };
        ApiKeyCreated { .. } => "user.api_key.created",
            ApiKeyCreated { key: key(), secret_sha256: secret_sha256(), scopes, label: sealed(), created_at: time() };
        ApiKeyRevoked { .. } => "user.api_key.revoked", ApiKeyRevoked { key: key() };
        Deleted => "user.deleted", Deleted;
        SealDestroyed => "user.seal.destroyed", SealDestroyed;
    ])
}

#[rustfmt::skip]
fn email_samples() -> Vec<Sample> {
    use email::Event::*;
    let user = || USER.to_owned();
    let until = || at("2026-11-21T02:12:12.653Z");
    samples!(Email, EMAIL, [
        Claimed { .. } => "email.claimed", Claimed { user: user(), claim: 1 };
        Released { .. } => "email.released", Released { user: user(), claim: 1, until: until() };
        Closed { .. } => "email.closed", Closed { user: user(), claim: 1, until: until() };
    ])
}

#[rustfmt::skip]
fn shop_samples() -> Vec<Sample> {
    use shop::Event::*;
    let owner = || USER.to_owned();
    let content = || shop::Content { name: "Lanterns of Fez".into(), description: "Copper and brass, beaten by hand.".into() };
    samples!(Shop, SHOP, [
        OpeningRequested { .. } => "shop.opening.requested",
            OpeningRequested { id: SHOP.into(), command: command(), owner: owner(), content: content() };
        OpeningRefused { .. } => "shop.opening.refused",
            OpeningRefused { other: Some("shop_01M7XTGZ8C3W5K9RJYD2VNQPTX".into()) };
        Created { .. } => "shop.created", Created { owner: owner(), content: content() };
        Updated { .. } => "shop.updated", Updated { content: content() };
        Closed => "shop.closed", Closed;
    ])
}

fn allotment() -> inventory::Allotment {
    inventory::Allotment { revision: 3, quantity: 100, sold: 12 }
}

#[rustfmt::skip]
fn flash_sale_samples() -> Vec<Sample> {
    use flash_sale::Event::*;
    let customer = || flash_sale::Customer::of(&Owner::Account { user: USER.into() }).unwrap();
    let until = || at("2026-11-21T12:05:00.000Z");
    let terms = || Box::new(flash_sale::Terms {
        sku: SKU.into(),
        product: PRODUCT.into(),
        shop: Some(SHOP.into()),
        title: "Copper Lantern (Small)".into(),
        price: euros(2_900),
        quantity: 100,
        per_customer_limit: 2,
        per_address_limit: Some(10),
        starts_at: at("2026-11-21T12:00:00.000Z"),
        ends_at: at("2026-11-21T13:00:00.000Z"),
        claim_ms: 300_000,
        admission_ms: 60_000,
        grace_ms: 120_000,
        guests: true,
    });
    samples!(FlashSale, FLASH_SALE, [
        Created { .. } => "flash_sale.created", Created { id: FLASH_SALE.into(), terms: terms() };
        Updated { .. } => "flash_sale.updated", Updated { terms: terms() };
        Tuned { .. } => "flash_sale.tuned",
            Tuned { tuning: flash_sale::Tuning { admissions_per_s: Some(500), challenge_bits: 16 } };
        Approved { .. } => "flash_sale.approved", Approved { command: command() };
        Refused { .. } => "flash_sale.refused",
            Refused { why: inventory::Rejection::Short { requested: 100, available: 40 } };
        Scheduled => "flash_sale.scheduled", Scheduled;
        Allotted { .. } => "flash_sale.allotted", Allotted { allotment: allotment() };
        ReminderRequested { .. } => "flash_sale.reminder.requested", ReminderRequested { customer: customer() };
        StartingSoon { .. } => "flash_sale.starting_soon", StartingSoon { starts_at: at("2026-11-21T12:00:00.000Z") };
        Started => "flash_sale.started", Started;
        Paused => "flash_sale.paused", Paused;
        Resumed => "flash_sale.resumed", Resumed;
        Claimed { .. } => "flash_sale.claimed",
            Claimed { claim: 17, customer: customer(), quantity: 1, until: until(), command: 14_695_981_039_346_656_037, address: 7, admits_from_us: Some(1_795_219_200_000_000) };
        Queued { .. } => "flash_sale.queued",
            Queued { ticket: 4, customer: customer(), quantity: 1, command: 14_695_981_039_346_656_037, address: 7 };
        Admitted { .. } => "flash_sale.admitted",
            Admitted { admissions: vec![flash_sale::Admission { ticket: 4, claim: 18, quantity: 1 }], at: at("2026-11-21T12:04:00.000Z"), until: until(), admits_from_us: Some(1_795_219_200_000_000) };
        TicketAway { .. } => "flash_sale.ticket.away", TicketAway { ticket: 4, until: until() };
        TicketBack { .. } => "flash_sale.ticket.back", TicketBack { ticket: 4 };
        TicketsLeft { .. } => "flash_sale.ticket.left", TicketsLeft { tickets: vec![4] };
        ClaimsExpired { .. } => "flash_sale.claim_expired", ClaimsExpired { claims: vec![17] };
        ClaimReleased { .. } => "flash_sale.claim_released", ClaimReleased { claim: 17 };
        CheckoutStarted { .. } => "flash_sale.checkout_started", CheckoutStarted { claim: 17, order: ORDER.into() };
        Sold { .. } => "flash_sale.sold", Sold { claim: 17 };
        Returned { .. } => "flash_sale.returned", Returned { claim: 17 };
        SoldOut => "flash_sale.sold_out", SoldOut;
        AvailableAgain { .. } => "flash_sale.available_again", AvailableAgain { available: 1 };
        Ended => "flash_sale.ended", Ended;
        Cancelled { .. } => "flash_sale.cancelled", Cancelled { reason: "the lanterns are damaged".into() };
    ])
}

fn samples() -> Vec<Sample> {
    let trade = [product_samples(), inventory_samples(), cart_samples(), order_samples(), payment_samples(), request_samples()];
    let kinds = trade.into_iter().chain([user_samples(), email_samples(), shop_samples(), flash_sale_samples()]);
    kinds.flatten().collect()
}

// The files ---------------------------------------------------------------------------------------------------------

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// By file name without `.json`; what is missing is added before, when that was asked for.
fn files() -> BTreeMap<String, Value> {
    static ADDED: Once = Once::new();
    ADDED.call_once(|| {
        if std::env::var_os("SOUK_WRITE_GOLDEN").is_some() {
            add_missing();
        }
    });
    read_files()
}

fn read_files() -> BTreeMap<String, Value> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let name = name.strip_suffix(".json").unwrap_or_else(|| panic!("{name} is not a golden file"));
        let record = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        files.insert(name.to_owned(), record);
    }
    files
}

fn add_missing() {
    let files = read_files();
    for sample in samples() {
        let count = forms(&files, sample.event_type).count();
        if forms(&files, sample.event_type).any(|record| record["data"] == sample.record["data"]) {
            continue;
        }
        let name = match count {
            0 => format!("{}.json", sample.event_type),
            _ => format!("{}.{}.json", sample.event_type, count + 1),
        };
        let text = serde_json::to_string_pretty(&sample.record).unwrap() + "\n";
        // Fails when the file exists: what is there stays as it is.
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(folder().join(&name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

/// `order.paid` of `order.paid.2`.
fn type_of_file(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((event_type, number)) if number.parse::<u32>().is_ok() => event_type,
        _ => name,
    }
}

fn forms<'a>(files: &'a BTreeMap<String, Value>, event_type: &'a str) -> impl Iterator<Item = &'a Value> {
    files.iter().filter(move |(name, _)| type_of_file(name) == event_type).map(|(_, record)| record)
}

// Reading -----------------------------------------------------------------------------------------------------------

/// Reads a stored record as an event of this kind and writes it again. What was stored must all be there; what a later
/// version has added may be there too.
fn reads<E>(kind: &str, record: &Value) -> Result<(), String>
where
    E: Serialize + DeserializeOwned,
{
    let payload = serde_json::to_vec(&json!({ "wake_at": null, "answers": [], "events": [record] })).unwrap();
    let payload = Payload::parse(&payload).map_err(|error| error.to_string())?;
    let read = &payload.events[0];
    let event: E = read.event().map_err(|error| error.to_string())?;
    let id = record["subject"].as_str().ok_or("no subject")?;
    let command = CommandId::from(&*read.causation);
    let cause = Cause {
        command: &command,
        correlation: &read.correlation,
        asker: &read.asker,
        time: Timestamp::parse(&read.time).unwrap(),
    };
    survives("", record, &stored(&EntityKey::new(kind, id), read.version, cause, &event))
}

/// Whether all of `before` is in `after`.
fn survives(place: &str, before: &Value, after: &Value) -> Result<(), String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before.iter().try_for_each(|(name, value)| {
            let place = format!("{place}/{name}");
            survives(&place, value, after.get(name).ok_or_else(|| format!("{place} is lost"))?)
        }),
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            let mut items = before.iter().zip(after).enumerate();
            items.try_for_each(|(index, (before, after))| survives(&format!("{place}/{index}"), before, after))
        }
        (before, after) if before == after => Ok(()),
        (before, after) => Err(format!("{place} was {before} and is read as {after}")),
    }
}

/// Reads a record as the kind says that its `id` begins with.
struct ReadAs<'a> {
    record: &'a Value,
    read: Option<Result<(), String>>,
}

impl EveryKind for ReadAs<'_> {
    fn kind<E: Entity>(&mut self) {
        if self.record["id"].as_str().is_some_and(|id| id.split('/').next() == Some(E::KIND)) {
            self.read = Some(reads::<E::Event>(E::KIND, self.record));
        }
    }
}

fn read(record: &Value) -> Result<(), String> {
    let mut reading = ReadAs { record, read: None };
    every_kind(&mut reading);
    reading.read.unwrap_or_else(|| Err("it is of no kind that there is".to_owned()))
}

// The promises ------------------------------------------------------------------------------------------------------

#[test]
fn every_form_that_an_event_ever_had_is_on_file() {
    let files = files();
    for sample in samples() {
        assert!(
            forms(&files, sample.event_type).any(|record| record["data"] == sample.record["data"]),
            "{} is not on file as it is written now: run SOUK_WRITE_GOLDEN=1 cargo test --test golden",
            sample.event_type
        );
    }
}

#[test]
fn every_record_on_file_can_be_read_and_loses_nothing() {
    for (name, record) in files() {
        assert_eq!(record["type"], type_of_file(&name), "{name}.json holds another type");
        if let Err(reason) = read(&record) {
            panic!("{name}.json can no longer be read as it was stored: {reason}");
        }
    }
}

#[test]
fn no_file_is_of_an_event_that_does_not_exist() {
    let types: BTreeSet<&str> = samples().iter().map(|sample| sample.event_type).collect();
    for name in files().keys() {
        assert!(types.contains(type_of_file(name)), "{name}.json is of no event");
    }
}

#[test]
fn every_kind_has_its_events_listed_here() {
    struct Kinds(BTreeSet<&'static str>);
    impl EveryKind for Kinds {
        fn kind<E: Entity>(&mut self) {
            self.0.insert(E::KIND);
        }
    }
    let mut kinds = Kinds(BTreeSet::new());
    every_kind(&mut kinds);
    assert_eq!(samples().iter().map(|sample| sample.kind).collect::<BTreeSet<_>>(), kinds.0);
}

#[test]
fn a_record_on_file_is_a_cloud_event() {
    let samples = samples();
    for (name, record) in files() {
        let Some(sample) = samples.iter().find(|sample| sample.event_type == type_of_file(&name)) else { continue };
        assert_eq!((&record["specversion"], &record["source"]), (&json!("1.0"), &json!("/souk")), "{name}");
        assert_eq!(record["subject"], sample.id, "{name}");
        assert_eq!(record["id"], format!("{}/{}/{}", sample.kind, sample.id, record["entityversion"]), "{name}");
    }
}

/// What the reading above is worth: each field of each record, under another name than the code has, is noticed. So are
/// a type that has no event any more, and a value that the code would understand differently.
#[test]
fn a_field_that_the_code_no_longer_has_is_noticed() {
    let mut fields = 0;
    for (name, record) in files() {
        for field in record["data"].as_object().into_iter().flatten().map(|(field, _)| field) {
            let mut renamed = record.clone();
            let data = renamed["data"].as_object_mut().unwrap();
            let value = data.remove(field).unwrap();
            data.insert(format!("former_{field}"), value);
            assert!(read(&renamed).is_err(), "{name}.json: {field} could be renamed unnoticed");
            fields += 1;
        }
        let mut gone = record.clone();
        gone["type"] = json!("thing.unheard_of");
        assert!(read(&gone).is_err(), "{name}.json: its type could go unnoticed");
    }
    assert!(fields > 100, "only {fields} fields were tried");
    let (before, after) = (json!({ "until": null, "units": 1 }), json!({ "until": null, "units": 1, "added_later": true }));
    assert_eq!(survives("", &before, &after), Ok(()));
    assert_eq!(survives("", &after, &before), Err("/added_later is lost".to_owned()));
    assert!(survives("", &json!({ "units": 1 }), &json!({ "units": 2 })).is_err());
}

/// A follower stops at a type of its kinds that it does not know, rather than skip it: each must be known to it.
#[tokio::test]
async fn the_read_models_know_every_record_on_file() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Embedded::open(&dir.path().join("journal"), Options::default()).unwrap();
    let files = files();
    let mut versions: BTreeMap<&str, u64> = BTreeMap::new();
    for sample in samples() {
        for record in forms(&files, sample.event_type) {
            let payload = serde_json::to_vec(&json!({ "wake_at": null, "answers": [], "events": [record] })).unwrap();
            let version = versions.entry(sample.kind).or_default();
            let entity = EntityKey::new(sample.kind, sample.id);
            let append =
                Append { entity, expected: *version, after: Position(0), count: 1, payload: payload.into(), wake: Wake::Never };
            let (tell, told) = mpsc::channel();
            journal.append(append, Box::new(move |result| tell.send(result).unwrap()));
            told.recv().unwrap().unwrap();
            *version += 1;
        }
    }
    let read_models = ReadModels::open(dir.path().join("read-models"), journal.clone()).unwrap();
    let reached = read_models.reached(journal.highest(), Duration::from_secs(30)).await;
    assert_eq!(read_models.health(), Ok(()));
    assert!(reached, "the read models did not come to the end of the journal");
    read_models.close().await;
    journal.close();
}
