use super::*;
use crate::domain::testing::{Given, command_id, eur, given};

fn variant(sku: &str, size: &str) -> Variant {
    Variant { sku: sku.to_owned(), price: eur(100), options: vec![size.to_owned()] }
}

fn content_of(variants: Vec<Variant>) -> Content {
    Content {
        shop: "shop".to_owned(),
        handle: "summit-pro".to_owned(),
        title: "Summit Pro".to_owned(),
        category: vec!["Outdoor".to_owned()],
        tags: vec!["new".to_owned()],
        options: vec!["Size".to_owned()],
        variants,
        ..Content::default()
    }
}

fn content() -> Content {
    content_of(vec![variant("a", "S"), variant("b", "L")])
}

fn stock(stock: &[(&str, u32)]) -> BTreeMap<String, u32> {
    stock.iter().map(|(sku, units)| ((*sku).to_owned(), *units)).collect()
}

fn create() -> Command {
    Command::Create { content: content(), stock: stock(&[("a", 5)]) }
}

fn update(content: Content) -> Command {
    Command::Update { content, stock: BTreeMap::new() }
}

fn claim(sku: &str, granted: bool) -> Command {
    Command::HeardClaim { sku: sku.to_owned(), granted }
}

fn given_up(sku: &str) -> Command {
    Command::HeardGivenUp { sku: sku.to_owned() }
}

fn drafted() -> Given<Product> {
    given([]).after([create()])
}

fn live() -> Given<Product> {
    drafted().after([claim("a", true), claim("b", true)])
}

fn taken(sku: &str) -> Rejection {
    Rejection::SkusTaken { skus: vec![sku.to_owned()] }
}

#[test]
fn a_product_goes_live_when_every_sku_is_claimed() {
    let (id, command, stock) = ("me".to_owned(), command_id("c"), stock(&[("a", 5), ("b", 0)]));
    let product = given::<Product>([]).when(create());
    let product = product.then_later(vec![Event::Drafted { id, command, content: content(), stock }]);
    let product = product.owing(&["register/1/a", "register/1/b"]).and();
    let claimed = |sku: &str| Event::SkuClaimed { sku: sku.to_owned() };
    let product = product.when(claim("a", true)).then(vec![claimed("a")], Reply::Noted).owing(&["register/1/b"]).and();
    product.when(claim("a", true)).then_nothing_but(Reply::Noted);
    let product = product.when(claim("b", true));
    let product = product.then(vec![claimed("b"), Event::Created { content: content() }], Reply::Noted).owing(&[]);
    let product = product.settles(vec![(command_id("c"), Ok(Reply::Created))]);
    assert_eq!(product.state.phase, Phase::Live);
}

#[test]
fn a_product_with_a_taken_sku_is_not_created_and_gives_the_others_up() {
    let product = drafted().after([claim("a", true)]).when(claim("b", false));
    let reason = "skus taken: b".to_owned();
    let product = product.then(vec![Event::SkuRefused { sku: "b".to_owned() }, Event::Deleted { reason }], Reply::Noted);
    let product = product.settles(vec![(command_id("c"), Err(taken("b")))]).owing(&["deregister/1/a"]).and();
    product.when(given_up("a")).then(vec![Event::SkuGivenUp { sku: "a".to_owned() }], Reply::Noted).owing(&[]);
    product.when(given_up("b")).then_nothing_but(Reply::Noted);
    product.when(create()).then_refused(Rejection::Exists);
}

#[test]
fn an_update_without_new_skus_is_made_at_once_and_the_same_content_changes_nothing() {
    live().when(update(content())).then_nothing_but(Reply::Unchanged);
    let content = content_of(vec![variant("a", "S")]);
    let product = live().when(update(content.clone())).then(vec![Event::Updated { content }], Reply::Updated);
    product.owing(&["deregister/1/b"]);
}

#[test]
fn an_update_with_new_skus_shows_when_they_are_claimed() {
    let next = content_of(vec![variant("a", "S"), variant("new", "L")]);
    let (command, stock) = (command_id("c"), stock(&[("new", 0)]));
    let product = live().when(update(next.clone()));
    let product = product.then_later(vec![Event::UpdateDrafted { command, content: next.clone(), stock }]);
    let product = product.owing(&["register/2/new"]).and();
    assert_eq!(product.state.in_force(), &content());
    product.when(update(next.clone())).then_refused(Rejection::Busy);
    product.when(Command::Delete).then_refused(Rejection::Busy);
    let claimed = Event::SkuClaimed { sku: "new".to_owned() };
    let granted = product.when(claim("new", true)).then(vec![claimed, Event::Updated { content: next.clone() }], Reply::Noted);
    let granted = granted.settles(vec![(command_id("c"), Ok(Reply::Updated))]).owing(&["deregister/2/b"]);
    assert_eq!(granted.state.in_force(), &next);
    let refused = product.when(claim("new", false));
    let skus = vec!["new".to_owned()];
    let event = Event::SkuRefused { sku: "new".to_owned() };
    let refused = refused.then(vec![event, Event::UpdateRefused { skus }], Reply::Noted);
    let refused = refused.settles(vec![(command_id("c"), Err(taken("new")))]).owing(&[]);
    assert_eq!(refused.state.content, content());
}

#[test]
fn no_sku_is_claimed_while_another_is_still_being_given_up() {
    let product = live().after([update(content_of(vec![variant("a", "S")]))]);
    product.when(update(content())).then_refused(Rejection::Busy);
    product.after([given_up("b")]).when(update(content())).owing(&["register/2/b"]);
}

#[test]
fn a_deleted_product_gives_everything_up_and_is_no_more() {
    let deleted = Event::Deleted { reason: "requested".to_owned() };
    let product = live().when(Command::Delete).then(vec![deleted], Reply::Deleted);
    let product = product.owing(&["deregister/1/a", "deregister/1/b"]).and();
    product.when(Command::Delete).then_refused(Rejection::Unknown);
    product.when(update(content())).then_refused(Rejection::Unknown);
    given::<Product>([]).when(Command::Delete).then_refused(Rejection::Unknown);
    given::<Product>([]).when(update(content())).then_refused(Rejection::Unknown);
    live().when(create()).then_refused(Rejection::Exists);
}

#[test]
fn faulty_content_is_refused_with_the_place_of_the_fault() {
    type Spoil = fn(&mut Content);
    let cases: [(&str, Spoil); 24] = [
        ("/shop", |content| content.shop.clear()),
        ("/title", |content| content.title.clear()),
        ("/title", |content| content.title = "x".repeat(256)),
        ("/handle", |content| content.handle = "Summit".to_owned()),
        ("/handle", |content| content.handle.clear()),
        ("/description", |content| content.description = "x".repeat(DESCRIPTION_CHARS_MAX + 1)),
        ("/vendor", |content| content.vendor = "x".repeat(256)),
        ("/category", |content| content.category = vec!["x".to_owned(); 9]),
        ("/category/0", |content| content.category[0].clear()),
        ("/tags", |content| content.tags = (0..251).map(|tag| tag.to_string()).collect()),
        ("/tags/0", |content| content.tags[0].clear()),
        ("/tags/1", |content| content.tags.push("new".to_owned())),
        ("/options", |content| content.options = vec!["x".to_owned(); 4]),
        ("/options/1", |content| content.options.push("Size".to_owned())),
        ("/variants", |content| content.variants.clear()),
        ("/variants", |content| content.variants = vec![variant("a", "S"); VARIANTS_MAX + 1]),
        ("/variants/0/sku", |content| content.variants[0].sku = " ".to_owned()),
        ("/variants/1/sku", |content| content.variants[1].sku = "a".to_owned()),
        ("/variants/1/options", |content| content.variants[1].options = vec!["S".to_owned()]),
        ("/variants/1/options", |content| content.variants[1].options.clear()),
        ("/variants/1/options/0", |content| content.variants[1].options[0].clear()),
        ("/variants/0/price/amount", |content| content.variants[0].price = eur(-1)),
        ("/variants/0/price/amount", |content| content.variants[0].price = eur(money::AMOUNT_MAX + 1)),
        ("/variants/1/price/currency", |content| content.variants[1].price = Money::new(1, "USD".parse().unwrap())),
    ];
    for (at, spoil) in cases {
        let mut content = content();
        spoil(&mut content);
        for (product, command) in
            [(given([]), Command::Create { content: content.clone(), stock: BTreeMap::new() }), (live(), update(content.clone()))]
        {
            match product.when(command).result {
                Err(Rejection::Invalid { field, .. } | Rejection::Contradictory { field, .. }) => assert_eq!(field, at),
                other => panic!("{at}: {other:?}"),
            }
        }
    }
}

#[test]
fn stock_is_stated_for_the_products_own_skus_only() {
    let product = given::<Product>([]);
    match product.when(Command::Create { content: content(), stock: stock(&[("a/~", 1)]) }).result {
        Err(Rejection::Invalid { field, .. }) => assert_eq!(field, "/stock/a~1~0"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_product_stays_in_its_shop() {
    let moved = Content { shop: "other".to_owned(), ..content() };
    let message = "a product stays in its shop".to_owned();
    live().when(update(moved)).then_refused(Rejection::Contradictory { field: "/shop".to_owned(), message });
}
