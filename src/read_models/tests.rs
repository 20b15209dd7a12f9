//! The read models as a whole: journal in, pages out, across restarts.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use proptest::prelude::*;

use super::double::VecJournal;
use super::*;
use crate::domain::order::{self, Reason, Status};
use crate::domain::product::{Content, Variant};
use crate::domain::{CommandId, Currency, Money, Timestamp, cart, flash_sale, inventory, payment, product};

const WAIT: Duration = Duration::from_secs(20);

fn eur(amount: i64) -> Money {
    Money::new(amount, Currency::EUR)
}

fn content(title: &str, prices: &[(&str, i64)]) -> Content {
    Content {
        shop: "shop_1".into(),
        handle: "a-handle".into(),
        title: title.into(),
        description: "never searched: zebra".into(),
        vendor: "Acme".into(),
        product_type: "Thing".into(),
        category: vec!["Kitchen".into()],
        tags: vec!["new".into()],
        options: vec!["Size".into()],
        variants: prices
            .iter()
            .map(|(sku, price)| Variant { sku: (*sku).into(), price: eur(*price), options: vec!["M".into()] })
            .collect(),
        published: true,
    }
}

fn created(content: Content) -> product::Event {
    product::Event::Created { content }
}

fn stock(on_hand: u32) -> inventory::Event {
    inventory::Event::Created { product: "prod".into(), on_hand }
}

fn reserved(available: u32) -> inventory::Event {
    inventory::Event::Reserved { order: "ord".into(), cart: None, quantity: 1, available }
}

fn placed(user: Option<&str>, quantities: &[u32]) -> order::Event {
    let lines = quantities.iter().map(|quantity| order::Line {
        sku: "sku".into(),
        product: "prod".into(),
        shop: Some("s".into()),
        title: "A thing".into(),
        quantity: *quantity,
        unit_price: eur(100),
        total: eur(100 * i64::from(*quantity)),
        claim: None,
    });
    order::Event::Created {
        id: "ord".into(),
        command: CommandId::from("place"),
        draft: order::Draft {
            owner: match user {
                Some(user) => order::Owner::Account { user: user.into() },
                None => order::Owner::Guest { token_sha256: "00".into() },
            },
            cart: None,
            lines: lines.collect(),
            total: eur(100),
            contact: order::Contact::Plain {
                email: user.is_none().then(|| "guest@example.org".into()),
                shipping_address: order::Address {
                    name: "N".into(),
                    line1: "L".into(),
                    line2: None,
                    city: "C".into(),
                    postal_code: "1".into(),
                    country: "DE".into(),
                },
            },
            payment: payment::Method { provider: "sandbox".into(), token: "tok_ok".into() },
        },
        placed_at: Timestamp::from_millis(1_000),
    }
}

fn paid() -> order::Event {
    order::Event::Paid { total: eur(100) }
}

fn open(dir: &Path, journal: &Arc<VecJournal>) -> Arc<ReadModels> {
    ReadModels::open(dir, Arc::clone(journal) as Arc<dyn Journal>).unwrap()
}

/// Opened models that contain all of the journal.
async fn caught_up(dir: &Path, journal: &Arc<VecJournal>) -> Arc<ReadModels> {
    let models = open(dir, journal);
    assert!(models.reached(journal.highest(), WAIT).await, "{:?}", models.health());
    models
}

async fn every_product(models: &ReadModels, query: ProductQuery) -> Vec<ProductSummary> {
    let (mut all, mut cursor) = (Vec::new(), query.cursor.clone());
    loop {
        let page = models.products(ProductQuery { cursor, ..query.clone() }).await.unwrap();
        all.extend(page.items);
        match page.next_cursor {
            Some(next) => cursor = Some(next),
            None => return all,
        }
    }
}

async fn every_order(models: &ReadModels, query: OrderQuery) -> Vec<OrderSummary> {
    let (mut all, mut cursor) = (Vec::new(), query.cursor.clone());
    loop {
        let page = models.orders(OrderQuery { cursor, ..query.clone() }).await.unwrap();
        all.extend(page.items);
        match page.next_cursor {
            Some(next) => cursor = Some(next),
            None => return all,
        }
    }
}

fn product_ids(products: &[ProductSummary]) -> Vec<&str> {
    products.iter().map(|product| product.id.as_str()).collect()
}

fn order_ids(orders: &[OrderSummary]) -> Vec<&str> {
    orders.iter().map(|order| order.id.as_str()).collect()
}

/// A small shop: a grinder, a mug, a tent and one thing that is hidden.
fn shop() -> Arc<VecJournal> {
    let journal = VecJournal::new();
    let with = |title, prices: &[(&str, i64)], change: &dyn Fn(&mut Content)| {
        let mut content = content(title, prices);
        change(&mut content);
        created(content)
    };
    journal.put("inventory", "GRD-1", &[stock(3)]);
    journal.put(
        "product",
        "prod_grinder",
        &[with("Coffee Grinder", &[("GRD-1", 9_900), ("GRD-2", 12_900)], &|content| {
            content.category = vec!["Kitchen".into(), "Coffee Machines".into()];
            content.tags = vec!["Espresso".into(), "sale".into()];
        })],
    );
    journal.put(
        "product",
        "prod_mug",
        &[with("Barista's Mug", &[("MUG-01", 1_200)], &|content| {
            content.vendor = "Grinder & Söhne".into();
            content.tags = vec!["coffee".into()];
        })],
    );
    journal.put("inventory", "TNT-1", &[stock(1), reserved(0)]);
    journal.put(
        "product",
        "prod_tent",
        &[with("ÄTNA Zelt", &[("TNT-1", 30_000)], &|content| {
            content.shop = "shop_2".into();
            content.category = vec!["Outdoor".into(), "Tents".into()];
            content.product_type = "Tent".into();
        })],
    );
    journal.put("product", "prod_hidden", &[with("Coffee Secret", &[("HID-1", 100)], &|content| content.published = false)]);
    journal.put("product", "prod_empty", &[with("Coffee Nothing", &[], &|_| {})]);
    Arc::new(journal)
}

#[tokio::test]
async fn each_filter_and_each_sort_finds_what_it_should_in_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let journal = shop();
    let models = caught_up(dir.path(), &journal).await;
    let query = ProductQuery::default;
    let q = |q: &str| ProductQuery { q: Some(q.into()), ..query() };
    let category = |category: &str| ProductQuery { category: Some(category.into()), ..query() };
    let tag = |tag: &str| ProductQuery { tag: Some(tag.into()), ..query() };
    let sort = |sort| ProductQuery { sort, ..query() };
    let price = |min_price, max_price| ProductQuery { min_price, max_price, ..query() };
    let in_stock = |in_stock| ProductQuery { in_stock: Some(in_stock), ..query() };
    let (tent, mug, grinder) = ("prod_tent", "prod_mug", "prod_grinder");
    let table = [
        (query(), vec![tent, mug, grinder]),
        (q("  "), vec![tent, mug, grinder]),
        // The title counts more than being new.
        (q("coffee"), vec![grinder, mug]),
        (q("GRIND"), vec![grinder, mug]),
        (q("grinder coffee"), vec![grinder, mug]),
        (q("coffee tent"), vec![]),
        (q("secret"), vec![]),
        (q("zebra"), vec![]),
        (q("äTNA"), vec![tent]),
        (q("söhne"), vec![mug]),
        (q("baristas"), vec![mug]),
        (q("barista’s"), vec![mug]),
        (q("GRD-2"), vec![grinder]),
        (q("mug-0"), vec![mug]),
        (q("kitchen"), vec![mug, grinder]),
        (q("thing acme"), vec![grinder]),
        (category("kitchen"), vec![mug, grinder]),
        (category("KITCHEN>coffee machines"), vec![grinder]),
        (category("Kitchen > Coffee"), vec![]),
        (category("Coffee Machines"), vec![]),
        (tag("ESPRESSO"), vec![grinder]),
        (tag("espress"), vec![]),
        (ProductQuery { shop: Some("shop_2".into()), ..query() }, vec![tent]),
        (price(Some(1_200), Some(9_900)), vec![mug, grinder]),
        // Between the two variants' prices there is no variant.
        (price(Some(10_000), Some(12_000)), vec![]),
        (price(Some(12_900), None), vec![tent, grinder]),
        (price(None, Some(1_199)), vec![]),
        (in_stock(true), vec![grinder]),
        (in_stock(false), vec![tent, mug]),
        (sort(ProductSort::Newest), vec![tent, mug, grinder]),
        (sort(ProductSort::PriceUp), vec![mug, grinder, tent]),
        (sort(ProductSort::PriceDown), vec![tent, grinder, mug]),
        (sort(ProductSort::Title), vec![mug, grinder, tent]),
        (ProductQuery { sort: ProductSort::PriceUp, ..q("coffee") }, vec![mug, grinder]),
        (ProductQuery { sort: ProductSort::PriceDown, ..q("coffee") }, vec![grinder, mug]),
        (ProductQuery { sort: ProductSort::Title, ..category("kitchen") }, vec![mug, grinder]),
        (ProductQuery { in_stock: Some(true), tag: Some("sale".into()), ..q("coffee") }, vec![grinder]),
        (ProductQuery { shop: Some("shop_1".into()), ..tag("new") }, vec![]),
    ];
    for (query, expected) in table {
        for limit in [1, 2, 0] {
            let found = every_product(&models, ProductQuery { limit, ..query.clone() }).await;
            assert_eq!(product_ids(&found), expected, "{query:?} by {limit}");
        }
    }
    models.close().await;
}

#[tokio::test]
async fn a_product_is_shown_with_its_prices_its_stock_and_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let models = caught_up(dir.path(), &shop()).await;
    let page = models.products(ProductQuery { q: Some("grinder coffee".into()), limit: 1, ..Default::default() }).await.unwrap();
    assert_eq!(
        serde_json::to_value(&page.items).unwrap(),
        serde_json::json!([{
            "id": "prod_grinder", "shop_id": "shop_1", "handle": "a-handle", "title": "Coffee Grinder", "vendor": "Acme",
            "type": "Thing", "category": ["Kitchen", "Coffee Machines"], "tags": ["Espresso", "sale"],
            "price_from": {"amount": 9900, "currency": "EUR"}, "price_to": {"amount": 12900, "currency": "EUR"},
            "in_stock": true, "version": 1,
            "variants": [
                {"sku": "GRD-1", "price": {"amount": 9900, "currency": "EUR"}, "options": ["M"], "available": 3},
                {"sku": "GRD-2", "price": {"amount": 12900, "currency": "EUR"}, "options": ["M"], "available": 0}
            ]
        }])
    );
}

#[tokio::test]
async fn changes_of_products_and_stock_show_and_a_hidden_product_keeps_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let journal = shop();
    let models = caught_up(dir.path(), &journal).await;
    let see = async || {
        assert!(models.reached(journal.highest(), WAIT).await);
        every_product(&models, ProductQuery::default()).await
    };
    let hidden = |published| Content { published, ..content("Mug", &[("MUG-01", 5)]) };

    journal.put("product", "prod_mug", &[product::Event::Updated { content: hidden(false) }]);
    assert_eq!(product_ids(&see().await), ["prod_tent", "prod_grinder"]);
    journal.put("product", "prod_mug", &[product::Event::Updated { content: hidden(true) }]);
    journal.put("inventory", "MUG-01", &[stock(7), inventory::Event::Updated { product: None, low_stock_threshold: 1 }]);
    let seen = see().await;
    assert_eq!(product_ids(&seen), ["prod_tent", "prod_mug", "prod_grinder"]);
    let mug = &seen[1];
    assert_eq!((mug.version, mug.price_to, mug.variants[0].available, mug.in_stock), (3, eur(5), 7, true));
    let barista = models.products(ProductQuery { q: Some("barista".into()), ..Default::default() }).await.unwrap();
    assert_eq!(barista.items, [], "words of the old title are gone");

    journal.put("product", "prod_mug", &[product::Event::Deleted { reason: "over".into() }]);
    assert_eq!(product_ids(&see().await), ["prod_tent", "prod_grinder"]);
    models.close().await;
    drop(models);
    let models = caught_up(dir.path(), &journal).await;
    assert_eq!(product_ids(&every_product(&models, ProductQuery::default()).await), ["prod_tent", "prod_grinder"]);
}

#[tokio::test]
async fn a_cursor_holds_its_place_while_products_come_and_go_and_serves_no_other_list() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Arc::new(VecJournal::new());
    for number in 0..30 {
        let content = content(&format!("Thing {number:02}"), &[(&format!("SKU-{number}"), 100 + number)]);
        journal.put("product", &format!("prod_{number:02}"), &[created(content)]);
    }
    let models = caught_up(dir.path(), &journal).await;
    for sort in [ProductSort::Relevance, ProductSort::Newest, ProductSort::PriceUp, ProductSort::PriceDown, ProductSort::Title] {
        for q in [None, Some("thing".to_owned())] {
            let query = ProductQuery { q: q.clone(), sort, limit: 10, ..Default::default() };
            let before = every_product(&models, query.clone()).await;
            assert_eq!(before.len(), 30);
            let first = models.products(query.clone()).await.unwrap();
            // The page's last item and one still to come go away; new ones come at both ends.
            let (last, later) = (&before[9].id, &before[15].id);
            for gone in [last, later] {
                journal.put("product", gone, &[product::Event::Deleted { reason: "over".into() }]);
            }
            for (id, title, price) in [("prod_low", "Thing 000", 1), ("prod_high", "Thing 99", 9_999)] {
                journal.put("product", id, &[created(content(title, &[(id, price)]))]);
            }
            assert!(models.reached(journal.highest(), WAIT).await);

            let cursor = first.next_cursor.clone();
            let rest = every_product(&models, ProductQuery { cursor: cursor.clone(), limit: 7, ..query.clone() }).await;
            let rest: Vec<_> = product_ids(&rest).into_iter().filter(|id| !["prod_low", "prod_high"].contains(id)).collect();
            let expected: Vec<_> = product_ids(&before)[10..].iter().copied().filter(|id| id != later).collect();
            assert_eq!(rest, expected, "{sort:?} {q:?}");

            let others = [
                ProductQuery { q: Some("other".into()), ..query.clone() },
                ProductQuery { in_stock: Some(false), ..query.clone() },
                ProductQuery {
                    sort: if sort == ProductSort::Title { ProductSort::Newest } else { ProductSort::Title },
                    ..query.clone()
                },
            ];
            for other in others {
                let answer = models.products(ProductQuery { cursor: cursor.clone(), ..other }).await;
                assert_eq!(answer, Err(ReadModelError::BadCursor));
            }
            let orders = models.orders(OrderQuery { cursor, ..Default::default() }).await;
            assert_eq!(orders, Err(ReadModelError::BadCursor));

            // As it was, for the next sort.
            for id in ["prod_low", "prod_high"] {
                journal.put("product", id, &[product::Event::Deleted { reason: "over".into() }]);
            }
            for gone in [last, later] {
                let number: i64 = gone.trim_start_matches("prod_").parse().unwrap();
                let content = content(&format!("Thing {number:02}"), &[(&format!("SKU-{number}"), 100 + number)]);
                journal.put("product", gone, &[created(content)]);
            }
            assert!(models.reached(journal.highest(), WAIT).await);
        }
    }
}

#[tokio::test]
async fn orders_are_listed_newest_first_by_owner_and_by_status() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Arc::new(VecJournal::new());
    let declined = Reason::PaymentDeclined { message: "no".into() };
    let refused = order::Event::LineRefused { sku: "sku".into(), available: 0 };
    journal.put("order", "ord_1", &[placed(Some("ann"), &[1, 2])]);
    journal.put("order", "ord_2", &[placed(Some("bob"), &[1])]);
    journal.put("order", "ord_1", &[order::Event::Updated { status: Status::Reserved }]);
    let models = caught_up(dir.path(), &journal).await;
    assert_eq!(every_order(&models, OrderQuery { status: Some("reserved".into()), ..Default::default() }).await.len(), 1);
    journal.put("order", "ord_1", &[order::Event::PaymentAuthorized, order::Event::PaymentCaptured, paid()]);
    journal.put("order", "ord_3", &[placed(None, &[1]), refused]);
    journal.put("order", "ord_3", &[order::Event::Cancelled { reason: Reason::Unpaid }]);
    journal.put("order", "ord_4", &[placed(Some("ann"), &[1]), order::Event::PaymentFailed { reason: declined.clone() }]);
    journal.put("order", "ord_5", &[placed(Some("ann"), &[5]), paid()]);
    assert!(models.reached(journal.highest(), WAIT).await);

    let query = |owner: Option<&str>, status: Option<&str>| OrderQuery {
        whose: owner.map_or(Whose::Everybodys, |owner| Whose::Accounts(owner.into())),
        status: status.map(Into::into),
        ..Default::default()
    };
    let table = [
        (query(None, None), vec!["ord_5", "ord_4", "ord_3", "ord_2", "ord_1"]),
        (query(Some("ann"), None), vec!["ord_5", "ord_4", "ord_1"]),
        (query(Some("an"), None), vec![]),
        (query(Some(""), None), vec![]),
        (query(Some("ann"), Some("paid")), vec!["ord_5", "ord_1"]),
        (query(Some("bob"), Some("paid")), vec![]),
        (query(None, Some("paid")), vec!["ord_5", "ord_1"]),
        (query(None, Some("payment_failed")), vec!["ord_4"]),
        (query(None, Some("cancelled")), vec!["ord_3"]),
        (query(None, Some("reserved")), vec![]),
        (query(None, Some("delivered")), vec![]),
    ];
    for (query, expected) in &table {
        for limit in [1, 2, 0] {
            let found = every_order(&models, OrderQuery { limit, ..query.clone() }).await;
            assert_eq!(order_ids(&found), *expected, "{query:?} by {limit}");
        }
    }
    let all = every_order(&models, query(None, None)).await;
    assert_eq!(
        serde_json::to_value([&all[4], &all[2]]).unwrap(),
        serde_json::json!([
            {"id": "ord_1", "status": "paid", "total": {"amount": 100, "currency": "EUR"}, "items": 3,
             "placed_at": "1970-01-01T00:00:01.000Z", "owner_user": "ann"},
            {"id": "ord_3", "status": "cancelled", "total": {"amount": 100, "currency": "EUR"}, "items": 1,
             "placed_at": "1970-01-01T00:00:01.000Z", "reason": {"kind": "unpaid"}},
        ])
    );
    assert_eq!(all[1].reason, Some(declined));

    let first = models.orders(OrderQuery { limit: 2, ..query(None, None) }).await.unwrap();
    journal.put("order", "ord_6", &[placed(None, &[1])]);
    assert!(models.reached(journal.highest(), WAIT).await);
    let rest = every_order(&models, OrderQuery { cursor: first.next_cursor, ..query(None, None) }).await;
    assert_eq!(order_ids(&rest), ["ord_3", "ord_2", "ord_1"]);
}

#[tokio::test]
async fn a_shop_lists_its_part_of_each_order_and_whoever_claimed_one_lists_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let journal = shop();
    let mut mixed = placed(None, &[1, 2, 4]);
    if let order::Event::Created { draft, .. } = &mut mixed {
        draft.lines[1].shop = Some("other".into());
        draft.total = eur(700);
    }
    journal.put("order", "ord_1", &[mixed]);
    journal.put("order", "ord_2", &[placed(Some("ann"), &[1])]);
    let models = caught_up(dir.path(), &journal).await;
    let list = async |whose: Whose| every_order(&models, OrderQuery { whose, ..Default::default() }).await;
    let whole = list(Whose::Everybodys).await;
    assert_eq!((whole[1].items, whole[1].total), (7, eur(700)));
    let part = list(Whose::Shops("s".into())).await;
    assert_eq!(order_ids(&part), ["ord_2", "ord_1"]);
    assert_eq!((part[1].items, part[1].total), (5, eur(500)));
    let part = list(Whose::Shops("other".into())).await;
    assert_eq!((order_ids(&part), part[0].items, part[0].total), (vec!["ord_1"], 2, eur(200)));

    let contact = order::Contact::Sealed { contact: order::SealedContact { key: "ann".into(), sealed: "s".into() } };
    journal.put("order", "ord_1", &[order::Event::Claimed { user: "ann".into(), contact }, paid()]);
    assert!(models.reached(journal.highest(), WAIT).await);
    assert_eq!(order_ids(&list(Whose::Accounts("ann".into())).await), ["ord_2", "ord_1"]);
    assert_eq!(list(Whose::Everybodys).await[1].owner_user.as_deref(), Some("ann"));
}

#[tokio::test]
async fn a_journal_that_is_shorter_than_the_models_has_them_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let journal = shop();
    journal.put("order", "ord_1", &[placed(None, &[1])]);
    let models = caught_up(dir.path(), &journal).await;
    models.close().await;
    drop(models);

    let journal = Arc::new(VecJournal::new());
    journal.put("product", "prod_other", &[created(content("Other", &[("O", 1)]))]);
    let models = caught_up(dir.path(), &journal).await;
    assert_eq!(product_ids(&every_product(&models, ProductQuery::default()).await), ["prod_other"]);
    assert_eq!(every_order(&models, OrderQuery::default()).await, []);
    assert_eq!(models.health(), Ok(()));
}

#[tokio::test]
async fn a_record_that_cannot_be_understood_stops_the_follower_and_what_stands_before_it_counts() {
    let envelope = |event_type: &str, data: &str| -> &'static str {
        format!(r#"{{"wake_at":null,"answers":[],"events":[{{"type":"{event_type}","data":{data}}}]}}"#).leak()
    };
    for (kind, payload) in [
        ("order", envelope("order.paid", r#"{"total":1}"#)),
        ("order", envelope("order.created", "{}")),
        ("order", envelope("order.lost", "{}")),
        ("order", "nonsense"),
        ("order", r#"{"events":[]}"#),
        ("product", envelope("product.created", "{}")),
        ("product", envelope("product.lost", "{}")),
        ("inventory", envelope("inventory.reserved", r#"{"available":-1}"#)),
        ("inventory", envelope("inventory.lost", "{}")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(VecJournal::new());
        journal.put("cart", "cart_1", &[cart::Event::Deleted]);
        let before = journal.put("order", "ord_1", &[placed(None, &[1])]);
        let bad = journal.put_raw(kind, "bad_1", payload);
        journal.put("order", "ord_2", &[placed(None, &[1])]);
        for _ in 0..2 {
            let models = open(dir.path(), &journal);
            assert!(!models.reached(bad, WAIT).await, "{payload}");
            assert_eq!(models.position(), before, "{payload}");
            let fault = models.health().unwrap_err();
            assert!(fault.contains(&format!("{kind}/bad_1")), "{fault}");
            assert_eq!(order_ids(&every_order(&models, OrderQuery::default()).await), ["ord_1"]);
            models.close().await;
        }
    }
}

#[tokio::test]
async fn what_is_none_of_our_business_is_passed_over_unread() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Arc::new(VecJournal::new());
    journal.put_raw("cart", "cart_1", "not even JSON");
    journal.put_raw("orders", "x", "not even JSON");
    let models = caught_up(dir.path(), &journal).await;
    assert_eq!((models.position(), models.health()), (journal.highest(), Ok(())));
}

#[tokio::test]
async fn an_unreadable_journal_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let journal = shop();
    journal.failing.store(2, Ordering::SeqCst);
    let models = caught_up(dir.path(), &journal).await;
    assert_eq!(journal.failing.load(Ordering::SeqCst), 0);
    assert_eq!(models.health(), Ok(()));
}

#[tokio::test]
async fn models_that_keep_up_with_a_journal_that_never_rests_stay_a_little_behind() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), Arc::new(VecJournal::new()));
    let models = caught_up(dir.path(), &journal).await;
    let deadline = Instant::now() + WAIT;
    let (mut before, mut fell) = (Duration::ZERO, 0);
    while fell < 3 {
        assert!(Instant::now() < deadline, "it only grows: {before:?}");
        // More than one, so that no first of them is the newest; looked at before the follower can have seen them.
        for _ in 0..3 {
            journal.put("inventory", "a", &[stock(1)]);
        }
        let behind = models.behind();
        assert!(behind > Duration::ZERO || before == Duration::ZERO, "what was just written is not shown yet");
        fell += usize::from(behind < before);
        before = behind;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    models.close().await;
}

#[tokio::test]
async fn models_that_cannot_follow_fall_behind_by_the_clock_and_catch_up() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), Arc::new(VecJournal::new()));
    let models = caught_up(dir.path(), &journal).await;
    journal.put("product", "prod_1", &[created(content("A", &[("a", 1)]))]);
    assert!(models.reached(journal.highest(), WAIT).await);
    assert_eq!(models.behind(), Duration::ZERO);
    models.abandon().await;

    journal.put("product", "prod_2", &[created(content("B", &[("b", 1)]))]);
    let deadline = Instant::now() + WAIT;
    let (first, begun) = (models.behind(), Instant::now());
    while models.behind() < first + Duration::from_millis(20) {
        assert!(Instant::now() < deadline, "it does not grow");
        tokio::task::yield_now().await;
    }
    assert!(begun.elapsed() >= Duration::from_millis(19), "no faster than the clock");

    drop(models);
    let again = caught_up(dir.path(), &journal).await;
    assert_eq!(again.behind(), Duration::ZERO);
}

#[tokio::test]
async fn nobody_waits_longer_than_they_said_nor_for_a_follower_that_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let models = caught_up(dir.path(), &shop()).await;
    assert!(!models.reached(Position(1_000), Duration::from_millis(5)).await);
    models.close().await;
    let asked = Instant::now();
    assert!(!models.reached(Position(1_000), WAIT).await);
    assert!(asked.elapsed() < WAIT);
    assert!(models.health().is_err());
}

/// Each variant of the domain's events is either folded or known to be none of the models' business.
#[tokio::test]
async fn every_event_of_the_domain_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Arc::new(VecJournal::new());
    let (command, reason, sku) = (CommandId::from("c"), String::from("r"), String::from("s"));
    let at = Timestamp::from_millis(1);
    let thing = content("T", &[("s", 1)]);
    let shipment = order::Shipment { carrier: "c".into(), tracking_number: None, shipped_at: at };
    journal.put(
        "order",
        "ord_1",
        &[
            placed(None, &[1]),
            order::Event::LineReserved { sku: sku.clone() },
            order::Event::LineRefused { sku: sku.clone(), available: 0 },
            order::Event::LineReleased { sku: sku.clone() },
            order::Event::LineCommitted { sku: sku.clone() },
            order::Event::LineRestocked { sku: sku.clone() },
            order::Event::Updated { status: Status::Reserved },
            order::Event::PaymentAuthorized,
            order::Event::PaymentCaptured,
            order::Event::PaymentCaptureFailed { reason: reason.clone() },
            order::Event::PaymentVoided,
            paid(),
            order::Event::PaymentFailed { reason: Reason::Unpaid },
            order::Event::Cancelled { reason: Reason::Unpaid },
            order::Event::Shipped { shipment },
            order::Event::Refunded { total: eur(1) },
        ],
    );
    journal.put(
        "product",
        "prod_1",
        &[
            product::Event::Drafted {
                id: "prod_1".into(),
                command: command.clone(),
                content: thing.clone(),
                stock: Default::default(),
            },
            product::Event::SkuClaimed { sku: sku.clone() },
            product::Event::SkuRefused { sku: sku.clone() },
            product::Event::SkuGivenUp { sku: sku.clone() },
            created(thing.clone()),
            product::Event::UpdateDrafted { command, content: thing.clone(), stock: Default::default() },
            product::Event::Updated { content: thing },
            product::Event::UpdateRefused { skus: vec![] },
            product::Event::Deleted { reason: reason.clone() },
        ],
    );
    journal.put(
        "inventory",
        "s",
        &[
            stock(1),
            inventory::Event::Updated { product: None, low_stock_threshold: 1 },
            inventory::Event::LowStock { available: 1, low_stock_threshold: 1 },
            inventory::Event::HoldPlaced { cart: "c".into(), quantity: 1, revision: 1, expires_at: at, available: 1 },
            inventory::Event::HoldReleased { cart: "c".into(), available: 1 },
            inventory::Event::HoldExpired { cart: "c".into(), available: 1 },
            reserved(1),
            inventory::Event::Released { order: "o".into(), available: 1 },
            inventory::Event::Closed { order: "o".into(), until: at },
            inventory::Event::Allotted { sale: "f".into(), allotment: inventory::Allotment::default(), on_hand: 1, available: 1 },
            inventory::Event::Decreased { quantity: 1, reason: reason.clone(), order: None, on_hand: 1, available: 1 },
            inventory::Event::Increased { quantity: 1, reason, order: None, until: None, on_hand: 1, available: 1 },
        ],
    );
    let models = caught_up(dir.path(), &journal).await;
    assert_eq!(models.health(), Ok(()));
    assert_eq!(every_order(&models, OrderQuery::default()).await[0].status, Status::Refunded);
}

#[test]
fn a_status_is_named_as_the_domain_writes_it() {
    for status in [
        Status::Absent,
        Status::Pending,
        Status::Reserved,
        Status::Paid,
        Status::Shipped,
        Status::Cancelled,
        Status::PaymentFailed,
        Status::Refunded,
    ] {
        assert_eq!(serde_json::json!(orders::status_text(status)), serde_json::to_value(status).unwrap());
    }
}

#[tokio::test]
async fn a_product_larger_than_a_piece_comes_back_whole_and_shrinks_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Arc::new(VecJournal::new());
    let skus: Vec<String> = (0..2_000).map(|number| format!("A-LONG-SKU-{number:060}")).collect();
    let prices: Vec<_> = skus.iter().map(|sku| (sku.as_str(), 5)).collect();
    journal.put("product", "prod_1", &[created(content("Large", &prices))]);
    journal.put("product", "prod_2", &[created(content("Small", &prices[..1]))]);
    for large in [true, false] {
        let models = caught_up(dir.path(), &journal).await;
        models.close().await;
        drop(models);
        let models = caught_up(dir.path(), &journal).await;
        let variants: Vec<_> =
            every_product(&models, ProductQuery::default()).await.iter().map(|product| product.variants.len()).collect();
        assert_eq!(variants, [1, if large { 2_000 } else { 1 }]);
        models.close().await;
        journal.put("product", "prod_1", &[product::Event::Updated { content: content("Small now", &prices[..1]) }]);
    }
}

/// Something that happens in a shop.
#[derive(Debug, Clone)]
enum Happens {
    Product { id: u8, title: u8, price: i64, published: bool },
    Deleted { id: u8 },
    Stock { sku: u8, available: u32 },
    Order { id: u8, user: Option<u8>, step: u8 },
    Noise,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        3 => (0..6_u8, 0..4_u8, 0..50_i64, prop::bool::weighted(0.8))
            .prop_map(|(id, title, price, published)| Happens::Product { id, title, price, published }),
        1 => (0..6_u8).prop_map(|id| Happens::Deleted { id }),
        4 => (0..6_u8, 0..3_u32).prop_map(|(sku, available)| Happens::Stock { sku, available }),
        5 => (0..8_u8, prop::option::of(0..2_u8), 0..5_u8).prop_map(|(id, user, step)| Happens::Order { id, user, step }),
        1 => Just(Happens::Noise),
    ]
}

fn happen(journal: &VecJournal, placed_orders: &mut std::collections::HashSet<u8>, what: &Happens) {
    match what {
        Happens::Product { id, title, price, published } => {
            let sku = format!("SKU-{id}");
            let content = Content { published: *published, ..content(&format!("Title {title}"), &[(&sku, *price)]) };
            journal.put("product", &format!("prod_{id}"), &[product::Event::Updated { content }]);
        }
        Happens::Deleted { id } => {
            journal.put("product", &format!("prod_{id}"), &[product::Event::Deleted { reason: "r".into() }]);
        }
        Happens::Stock { sku, available } => {
            journal.put("inventory", &format!("SKU-{sku}"), &[reserved(*available)]);
        }
        Happens::Order { id, user, step } => {
            let event = match step {
                _ if placed_orders.insert(*id) => placed(user.map(|user| format!("user-{user}")).as_deref(), &[1]),
                0 => order::Event::Updated { status: Status::Reserved },
                1 => order::Event::LineReserved { sku: "s".into() },
                2 => paid(),
                3 => order::Event::Cancelled { reason: Reason::Requested { message: format!("{user:?}") } },
                _ => order::Event::Refunded { total: eur(1) },
            };
            journal.put("order", &format!("ord_{id}"), &[event]);
        }
        Happens::Noise => {
            journal.put("cart", "cart_1", &[cart::Event::Deleted]);
        }
    }
}

/// Everything that the models can say, and every key that they store.
async fn everything(models: &ReadModels) -> (Vec<Vec<ProductSummary>>, Vec<Vec<OrderSummary>>, Vec<(Vec<u8>, Vec<u8>)>) {
    let mut products = Vec::new();
    for sort in [ProductSort::Newest, ProductSort::PriceUp, ProductSort::Title] {
        for q in [None, Some("title".into()), Some("1".into())] {
            products.push(every_product(models, ProductQuery { q, sort, limit: 3, ..Default::default() }).await);
        }
    }
    let mut orders = Vec::new();
    for whose in [Whose::Everybodys, Whose::Accounts("user-0".into()), Whose::Accounts("user-1".into()), Whose::Shops("s".into())]
    {
        for status in [None, Some("pending"), Some("reserved"), Some("paid"), Some("cancelled"), Some("refunded")] {
            let query = OrderQuery { whose: whose.clone(), status: status.map(Into::into), limit: 3, cursor: None };
            orders.push(every_order(models, query).await);
        }
    }
    let stored = models.tree.iter().map(|entry| entry.unwrap()).map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
    (products, orders, stored)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn models_that_were_killed_and_restarted_are_those_that_are_rebuilt_from_nothing(
        lives in prop::collection::vec((prop::collection::vec(happens(), 0..25), 0..3_u8), 1..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let journal = Arc::new(VecJournal::new());
            let mut placed_orders = Default::default();
            for (happenings, end) in &lives {
                let models = open(dir.path(), &journal);
                for what in happenings {
                    happen(&journal, &mut placed_orders, what);
                    // Now and then a reader makes a round end here.
                    if matches!(what, Happens::Noise) {
                        assert!(models.reached(journal.highest(), WAIT).await);
                    }
                }
                match end {
                    0 => models.close().await,
                    1 => models.abandon().await,
                    _ => {
                        assert!(models.reached(journal.highest(), WAIT).await);
                        models.abandon().await;
                    }
                }
            }
            let continued = caught_up(dir.path(), &journal).await;
            continued.close().await;
            let fresh_dir = tempfile::tempdir().unwrap();
            let rebuilt = caught_up(fresh_dir.path(), &journal).await;
            rebuilt.close().await;
            prop_assert_eq!(everything(&continued).await, everything(&rebuilt).await);
            Ok(())
        })?;
    }
}

/// Prints costs; asserts nothing about them. Worth reading in a release build.
#[tokio::test(flavor = "multi_thread")]
async fn searching_twenty_thousand_products() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Arc::new(VecJournal::new());
    let count: u32 = std::env::var("SOUK_MEASURE_PRODUCTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(if cfg!(debug_assertions) { 3_000 } else { 20_000 });
    let nouns = ["Grinder", "Mug", "Tent", "Kettle", "Harness", "Lamp", "Chair", "Rope", "Stove", "Scale"];
    for number in 0..count {
        let n = number as usize;
        let skus: Vec<String> = (0..4).map(|variant| format!("SKU-{number:06}-{variant}")).collect();
        let prices: Vec<_> = skus.iter().map(|sku| (sku.as_str(), i64::from(number % 977) * 10)).collect();
        let mut content = content(&format!("Alpine {} No {number}", nouns[n % 10]), &prices);
        content.vendor = format!("Vendor {}", n % 100);
        content.tags = vec![format!("tag{}", n % 50), "all".into()];
        journal.put("product", &format!("prod_{number:026}"), &[created(content)]);
        journal.put("inventory", &skus[0], &[stock(number % 2)]);
    }
    let resident_mb = || -> i64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap() * 4_096 / 1_000_000
    };
    let (begun, before_mb) = (Instant::now(), resident_mb());
    let models = caught_up(dir.path(), &journal).await;
    println!("{count} products followed in {:?}, {} MB more", begun.elapsed(), resident_mb() - before_mb);
    models.close().await;
    drop(models);
    let begun = Instant::now();
    let models = caught_up(dir.path(), &journal).await;
    println!("opened again in {:?}", begun.elapsed());
    let q = |q: &str| ProductQuery { q: Some(q.into()), ..Default::default() };
    for (what, query) in [
        ("all, newest", ProductQuery::default()),
        ("all, by title", ProductQuery { sort: ProductSort::Title, ..Default::default() }),
        ("one word in every title", q("alpine")),
        ("one letter", q("s")),
        ("two words", q("alpine grinder")),
        ("a sku", q("SKU-000777-2")),
        ("nothing found", q("alpine zebra")),
        ("a tag by price", ProductQuery { tag: Some("tag7".into()), sort: ProductSort::PriceUp, ..Default::default() }),
        (
            "in stock, price range, by price",
            ProductQuery {
                in_stock: Some(true),
                min_price: Some(9_000),
                max_price: Some(9_010),
                sort: ProductSort::PriceDown,
                ..Default::default()
            },
        ),
    ] {
        let begun = Instant::now();
        let page = models.products(ProductQuery { limit: 20, ..query }).await.unwrap();
        println!("{what}: {} items in {:?}", page.items.len(), begun.elapsed());
    }
    models.close().await;
}

/// Prints what following a busy shop costs. Too long for every run: `cargo test --release -- --ignored busy --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn following_a_busy_shop() {
    let cpu = || -> f64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    };
    let folder_bytes = |dir: &Path| -> u64 {
        std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().metadata().unwrap()).map(|meta| meta.len()).sum()
    };
    // An order as the shop writes it: five batches of its own, three of its inventory item, two of others.
    let orders = |journal: &VecJournal, from: u32, to: u32| {
        for number in from..to {
            let id = format!("ord_{number:026}");
            let user = format!("user_{:022}", number % 1_000);
            journal.put("order", &id, &[placed(Some(&user), &[1, 1])]);
            journal.put("inventory", &format!("SKU-{}", number % 100), &[reserved(number)]);
            journal.put("order", &id, &[order::Event::LineReserved { sku: "a".into() }]);
            journal.put(
                "order",
                &id,
                &[order::Event::LineReserved { sku: "b".into() }, order::Event::Updated { status: Status::Reserved }],
            );
            journal.put("payment", &id, &[payment::Event::Authorized { reference: "r".into() }]);
            journal.put("order", &id, &[order::Event::PaymentAuthorized]);
            journal.put("order", &id, &[order::Event::PaymentCaptured, paid()]);
            journal.put("inventory", &format!("SKU-{}", number % 100), &[reserved(number)]);
            journal.put("cart", &id, &[cart::Event::Deleted]);
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let journal = Arc::new(VecJournal::new());
    const COUNT: u32 = 100_000;
    orders(&journal, 0, COUNT);
    let (begun, before) = (Instant::now(), cpu());
    let models = caught_up(dir.path(), &journal).await;
    println!(
        "{COUNT} orders in {} batches, as fast as possible: {:?}, cpu {:.2} s, folder {} MB",
        journal.highest().0,
        begun.elapsed(),
        cpu() - before,
        folder_bytes(dir.path()) / 1_000_000
    );

    // The same paced: 5,000 orders a second, in bunches of 1 ms.
    let prepared = Arc::new(VecJournal::new());
    let before_writing = cpu();
    orders(&prepared, 0, 25_000);
    let writing = cpu() - before_writing;
    drop(prepared);
    let before = cpu();
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    for bunch in 0..5_000 {
        tick.tick().await;
        orders(&journal, COUNT + bunch * 5, COUNT + bunch * 5 + 5);
    }
    assert!(models.reached(journal.highest(), WAIT).await);
    println!("5 s of 5,000 orders/s: cpu {:.2} s besides the writing's {writing:.2} s", cpu() - before - writing);

    let noise = Arc::new(VecJournal::new());
    for _ in 0..1_000_000 {
        noise.put_raw("cart", "cart_1", "x");
    }
    let noise_dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let quiet = caught_up(noise_dir.path(), &noise).await;
    println!("1,000,000 batches of no interest: {:?}", begun.elapsed());
    quiet.close().await;

    for (what, query) in [
        ("all", OrderQuery::default()),
        ("of a user", OrderQuery { whose: Whose::Accounts(format!("user_{:022}", 7)), ..Default::default() }),
        ("paid", OrderQuery { status: Some("paid".into()), ..Default::default() }),
        (
            "paid of a user",
            OrderQuery { whose: Whose::Accounts(format!("user_{:022}", 7)), status: Some("paid".into()), ..Default::default() },
        ),
        (
            "refunded of a user",
            OrderQuery {
                whose: Whose::Accounts(format!("user_{:022}", 7)),
                status: Some("refunded".into()),
                ..Default::default()
            },
        ),
    ] {
        let begun = Instant::now();
        let page = models.orders(query).await.unwrap();
        println!("orders, {what}: {} in {:?}", page.items.len(), begun.elapsed());
    }
    models.close().await;
    println!("folder {} MB", folder_bytes(dir.path()) / 1_000_000);
}

/// The names of all events of a kind, as serde lists them.
fn event_types<E: serde::de::DeserializeOwned>() -> Vec<String> {
    let error = serde_json::from_str::<E>(r#"{"type":"?","data":{}}"#).err().unwrap().to_string();
    let (_, listed) = error.split_once("expected one of ").unwrap();
    listed.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[tokio::test]
async fn no_event_that_the_domain_writes_is_unknown_here() {
    let kinds = [
        ("order", event_types::<order::Event>()),
        ("product", event_types::<product::Event>()),
        ("inventory", event_types::<inventory::Event>()),
        ("flash_sale", event_types::<flash_sale::Event>()),
    ];
    for (kind, event_type) in kinds.iter().flat_map(|(kind, types)| types.iter().map(move |event_type| (*kind, event_type))) {
        let folder = tempfile::tempdir().unwrap();
        let journal = Arc::new(VecJournal::new());
        let models = ReadModels::open(folder.path(), journal.clone()).unwrap();
        let payload = format!(r#"{{"events":[{{"type":"{event_type}","data":{{}}}}]}}"#);
        let position = journal.put_raw(kind, "x", payload.leak());
        models.reached(position, WAIT).await;
        // Its data is nonsense here and may be refused; its name may not.
        let fault = models.health().err().unwrap_or_default();
        assert!(!fault.contains("unknown"), "{fault}");
        models.close().await;
    }
    assert!(kinds.iter().all(|(_, types)| types.len() > 5), "{kinds:?}");
}

fn sale(sku: &str, shop: &str, starts_at: i64) -> flash_sale::Event {
    let starts_at = Timestamp::from_millis(starts_at);
    let terms = flash_sale::Terms {
        sku: sku.into(),
        product: "prod_1".into(),
        shop: Some(shop.into()),
        title: r#"A thing, "type":"flash_sale.ended""#.into(),
        price: eur(100),
        quantity: 10,
        per_customer_limit: 2,
        per_address_limit: None,
        starts_at,
        ends_at: starts_at.plus_ms(1_000),
        claim_ms: 1_000,
        admission_ms: 1_000,
        grace_ms: 1_000,
        guests: false,
    };
    flash_sale::Event::Created { id: "fs".into(), terms: Box::new(terms) }
}

fn claimed(claim: u32) -> flash_sale::Event {
    let owner = order::Owner::Guest { token_sha256: "8a".repeat(32) };
    flash_sale::Event::Claimed {
        claim,
        customer: flash_sale::Customer::of(&owner).unwrap(),
        quantity: 1,
        until: Timestamp::from_millis(1),
        command: 1,
        address: 0,
        admits_from_us: None,
    }
}

async fn every_sale(models: &ReadModels, query: SaleQuery) -> Vec<(String, flash_sale::Status)> {
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let page = models.flash_sales(SaleQuery { cursor, ..query.clone() }).await.unwrap();
        all.extend(page.items.into_iter().map(|sale| (sale.id, sale.status)));
        match page.next_cursor {
            Some(next) => cursor = Some(next),
            None => return all,
        }
    }
}

#[tokio::test]
async fn flash_sales_are_listed_soonest_first_by_sku_shop_and_status_and_drafts_only_to_their_own() {
    use flash_sale::Event as E;
    use flash_sale::Status as S;
    let dir = tempfile::tempdir().unwrap();
    let journal = Arc::new(VecJournal::new());
    let command = || CommandId::from("c");
    let scheduled = || vec![E::Approved { command: command() }, E::Scheduled];
    journal.put("flash_sale", "fs_late", &[vec![sale("a", "s1", 3_000)], scheduled()].concat());
    journal.put("flash_sale", "fs_soon", &[vec![sale("b", "s1", 1_000)], scheduled()].concat());
    journal.put("flash_sale", "fs_draft", &[sale("a", "s1", 500)]);
    journal.put("flash_sale", "fs_other", &[sale("a", "s2", 2_000)]);
    let models = caught_up(dir.path(), &journal).await;
    let at = |id: &str, status| (id.to_owned(), status);
    let query = || SaleQuery { limit: 1, ..SaleQuery::default() };
    let (late, soon) = (at("fs_late", S::Scheduled), at("fs_soon", S::Scheduled));
    let of = |shop: &str| SaleQuery { drafts: Drafts::Shops(shop.into()), ..query() };
    let table = [
        (query(), vec![soon.clone(), late.clone()]),
        (of("s1"), vec![at("fs_draft", S::Draft), soon.clone(), late.clone()]),
        (of("s2"), vec![soon.clone(), at("fs_other", S::Draft), late.clone()]),
        (SaleQuery { sku: Some("a".into()), ..of("s1") }, vec![at("fs_draft", S::Draft), late.clone()]),
        (SaleQuery { shop: Some("s2".into()), ..query() }, vec![]),
        (SaleQuery { shop: Some("s2".into()), ..of("s2") }, vec![at("fs_other", S::Draft)]),
        (SaleQuery { status: Some("draft".into()), ..query() }, vec![]),
        (
            SaleQuery { status: Some("draft".into()), drafts: Drafts::Everybodys, ..query() },
            vec![at("fs_draft", S::Draft), at("fs_other", S::Draft)],
        ),
        (SaleQuery { status: Some("scheduled".into()), sku: Some("b".into()), ..query() }, vec![soon]),
        (SaleQuery { status: Some("never".into()), ..query() }, vec![]),
    ];
    for (query, expected) in table {
        assert_eq!(every_sale(&models, query.clone()).await, expected, "{query:?}");
    }

    // Its life, seen by whoever looks later, also across a restart. Changed terms move it in every list.
    journal.put("flash_sale", "fs_late", &[E::Started, claimed(0), E::SoldOut]);
    let moved = match sale("b", "s1", 100) {
        E::Created { terms, .. } => E::Updated { terms },
        other => other,
    };
    journal.put("flash_sale", "fs_draft", &[moved]);
    models.abandon().await;
    drop(models);
    let models = caught_up(dir.path(), &journal).await;
    let sold_out = SaleQuery { status: Some("sold_out".into()), ..query() };
    assert_eq!(every_sale(&models, sold_out.clone()).await, [at("fs_late", S::SoldOut)]);
    let skus_of_b = SaleQuery { sku: Some("b".into()), ..of("s1") };
    assert_eq!(every_sale(&models, skus_of_b).await, [at("fs_draft", S::Draft), at("fs_soon", S::Scheduled)]);
    for (events, status) in [
        (vec![E::Returned { claim: 0 }], S::Active),
        (vec![E::Paused], S::Paused),
        (vec![E::Returned { claim: 0 }, claimed(1)], S::Paused),
        (vec![claimed(2), E::Resumed], S::Active),
        (vec![E::Ended], S::Ended),
    ] {
        let position = journal.put("flash_sale", "fs_late", &events);
        assert!(models.reached(position, WAIT).await);
        let all = every_sale(&models, query()).await;
        assert!(all.contains(&at("fs_late", status)), "{all:?}");
        assert!(every_sale(&models, sold_out.clone()).await.is_empty());
    }
    let broken = models.flash_sales(SaleQuery { cursor: Some("00".into()), ..query() }).await;
    assert_eq!(broken, Err(ReadModelError::BadCursor));
}

#[test]
fn claims_are_passed_over_unread_and_what_else_happens_to_a_sale_is_not() {
    use flash_sale::Event as E;
    let journal = VecJournal::new();
    let cares = |events: &[E]| {
        journal.put("flash_sale", "fs_1", events);
        let committed = journal.newest_batch();
        sales::Sales::cares(&committed)
    };
    assert!(!cares(&[claimed(0), claimed(1), E::Sold { claim: 0 }, E::TicketBack { ticket: 1 }]));
    assert!(cares(&[claimed(2), E::SoldOut, claimed(3)]));
    assert!(cares(&[sale("a", "s", 1)]));
    for odd in [
        r#"{"events":[{"type": "flash_sale.ended","data":{}}]}"#,
        r#"{"events":[{"type":"flash_sale.unheard_of","data":{}}]}"#,
        "not even JSON",
    ] {
        journal.put_raw("flash_sale", "fs_2", odd);
        assert!(sales::Sales::cares(&journal.newest_batch()), "{odd}");
    }
}

#[tokio::test]
async fn what_a_sale_keeps_aside_is_not_available_also_when_that_makes_the_stock_low() {
    let dir = tempfile::tempdir().unwrap();
    let journal = shop();
    let allotted = |available| inventory::Event::Allotted {
        sale: "fs".into(),
        allotment: inventory::Allotment::default(),
        on_hand: 3,
        available,
    };
    let low = inventory::Event::LowStock { available: 0, low_stock_threshold: 1 };
    journal.put("inventory", "GRD-1", &[allotted(2), allotted(0), low]);
    let models = caught_up(dir.path(), &journal).await;
    let grinder = ProductQuery { q: Some("grinder coffee".into()), ..ProductQuery::default() };
    assert_eq!(every_product(&models, grinder).await[0].variants[0].available, 0);
}
