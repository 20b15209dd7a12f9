//! The shop: what there is, the cart, the checkout, and what became of an order.

use std::sync::Arc;

use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::StatusCode;

use super::super::Door;
use super::super::answer::Answer;
use super::super::problem::Problem;
use super::super::request::{Query, Request};
use super::api::Refused;
use super::layout::{Field, Shell, countdown, when};
use super::sales::{self, Sale};
use super::tile::{sign, tile};
use super::visit::Form;
use super::{Failed, Page, shown};
use crate::domain::{Money, Timestamp};
use crate::integrations::http_client::percent_encoded;

const ON_HOME: usize = 8;
const ON_PAGE: usize = 24;
const SORTS: [(&str, &str); 4] =
    [("relevance", "Best match"), ("price", "Price, lowest first"), ("-price", "Price, highest first"), ("newest", "Newest")];

#[derive(Deserialize)]
pub struct Listed<T> {
    pub items: Vec<T>,
    #[serde(default)]
    pub next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Summary {
    id: String,
    title: String,
    vendor: String,
    category: Vec<String>,
    price_from: Money,
    price_to: Money,
    in_stock: bool,
}

#[derive(Deserialize)]
struct Product {
    id: String,
    title: String,
    description: String,
    vendor: String,
    category: Vec<String>,
    tags: Vec<String>,
    options: Vec<String>,
    variants: Vec<Variant>,
}

#[derive(Deserialize)]
struct Variant {
    sku: String,
    price: Money,
    options: Vec<String>,
}

#[derive(Deserialize)]
struct Stock {
    sku: String,
    available: u64,
}

#[derive(Deserialize)]
struct Cart {
    id: String,
    status: String,
    lines: Vec<CartLine>,
    subtotal: Option<Money>,
}

#[derive(Deserialize)]
struct CartLine {
    sku: String,
    product_id: String,
    title: String,
    quantity: u32,
    unit_price: Money,
    total: Option<Money>,
    held_until: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Order {
    id: String,
    status: String,
    lines: Vec<OrderLine>,
    total: Money,
    email: Option<String>,
    shipping_address: Option<Address>,
    placed_at: Timestamp,
    shipments: Vec<Shipment>,
    reason: Option<Value>,
}

#[derive(Deserialize)]
struct OrderLine {
    product_id: String,
    title: String,
    quantity: u32,
    total: Money,
}

#[derive(Deserialize)]
struct Address {
    name: String,
    line1: String,
    line2: Option<String>,
    city: String,
    postal_code: String,
    country: String,
}

#[derive(Deserialize)]
struct Shipment {
    carrier: String,
    tracking_number: Option<String>,
}

#[derive(Deserialize)]
struct OrderSummary {
    id: String,
    status: String,
    total: Money,
    items: u64,
    placed_at: Timestamp,
}

#[derive(Deserialize)]
struct Happened {
    version: u64,
    #[serde(rename = "type")]
    event_type: String,
    time: String,
    #[serde(default)]
    data: Value,
}

// What there is -----------------------------------------------------------------------------------------------------------

/// `GET /`
pub async fn home(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let api = page.api();
        let products_path = format!("/api/products?limit={ON_HOME}&in_stock=true");
        let (running, coming, products) = tokio::join!(
            api.get::<Listed<Sale>>("/api/flash-sales?status=active&limit=3"),
            api.get::<Listed<Sale>>("/api/flash-sales?status=scheduled&limit=3"),
            api.get::<Listed<Summary>>(&products_path),
        );
        let (running, coming, products) = (running?.items, coming?.items, products?.items);
        // A list does not say how many units are left.
        let told = running.iter().map(async |sale| api.get::<Sale>(&format!("/api/flash-sales/{}", sale.id)).await);
        let running: Result<Vec<Sale>, Refused> = futures_util::future::join_all(told).await.into_iter().collect();
        let (running, now) = (running?, page.door.now());
        let content = html! {
            div .hero {
                div {
                    h1 { "Made by hand, sold by whoever made it" }
                    p { "Lanterns, kilims, spices and more, straight from the workshops of the market." }
                    p { a .main href="/products" { "Look around" } }
                }
                (sign())
            }
            div #sales {
                @if !running.is_empty() || !coming.is_empty() {
                    section aria-labelledby="sales-title" {
                        h2 #sales-title { "Flash sales" }
                        ul .cards.sales { @for sale in running.iter().chain(&coming) { li { (sales::card(sale, now)) } } }
                    }
                }
            }
            section aria-labelledby="products" {
                h2 #products { "In the market" }
                @if products.is_empty() { p { "There is nothing in this shop yet." } }
                ul .cards { @for product in &products { li { (product_card(product)) } } }
                p { a href="/products" { "All products" } }
            }
        };
        page.show(&Shell::live("Home", "home.js"), &content)
    })
    .await
}

fn product_card(product: &Summary) -> Markup {
    html! {
        article .card {
            (tile(&product.id))
            div .words {
                h3 { a href=(format!("/products/{}", product.id)) { (product.title) } }
                p .from { (product.vendor) @if let Some(category) = product.category.last() { " · " (category) } }
                p .price {
                    (product.price_from)
                    @if product.price_to != product.price_from { " to " (product.price_to) }
                    @if !product.in_stock { " " span .badge { "Sold out" } }
                }
            }
        }
    }
}

/// `GET /products`
pub async fn products(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let known = ["q", "category", "tag", "shop", "min_price", "max_price", "in_stock", "sort", "cursor"];
        let text = page.request.query.clone();
        let query = Query::parse(&text, &known)?;
        let given: Vec<(&str, String)> = known.iter().filter_map(|name| Some((*name, query.text(name)?))).collect();
        let asked = given.iter().map(|(name, value)| match *name {
            // People write prices in whole units.
            "min_price" | "max_price" => format!("&{name}={}", percent_encoded(&cents(value))),
            _ => format!("&{name}={}", percent_encoded(value)),
        });
        let path = format!("/api/products?limit={ON_PAGE}{}", asked.collect::<String>());
        let found = match page.api().get::<Listed<Summary>>(&path).await {
            Ok(found) => Ok(found),
            Err(refused) if refused.status == 400 => Err(refused),
            Err(refused) => return Err(refused.into()),
        };
        let value = |name: &str| query.get(name).unwrap_or_default();
        let more = |cursor: &str| {
            let rest = given.iter().filter(|(name, _)| *name != "cursor");
            let rest: String = rest.map(|(name, value)| format!("{name}={}&", percent_encoded(value))).collect();
            format!("/products?{rest}cursor={cursor}")
        };
        let content = html! {
            h1 { @if value("q").is_empty() { "Products" } @else { "Products for “" (value("q")) "”" } }
            form .filters.panel method="get" action="/products" {
                input type="hidden" name="q" value=(value("q"));
                (field("category", "Category", value("category"), None))
                (field("min_price", "Price from", value("min_price"), None))
                (field("max_price", "Price up to", value("max_price"), None))
                p .field {
                    label for="sort" { "Order" }
                    select #sort name="sort" {
                        option value="" { "As they are" }
                        @for (name, label) in SORTS { option value=(name) selected[value("sort") == name] { (label) } }
                    }
                }
                p .check {
                    input #in_stock type="checkbox" name="in_stock" value="true" checked[value("in_stock") == "true"];
                    label for="in_stock" { "In stock only" }
                }
                button type="submit" { "Apply" }
            }
            @match &found {
                Err(refused) => p .error role="alert" { (refused.title) @if let Some(detail) = &refused.detail { " " (detail) } },
                Ok(found) => {
                    h2 .hidden { "What was found" }
                    @if found.items.is_empty() { p { "Nothing was found." } }
                    ul .cards { @for product in &found.items { li { (product_card(product)) } } }
                    @if let Some(next) = &found.next_cursor { p { a rel="next" href=(more(next)) { "More products" } } }
                },
            }
        };
        let title = if value("q").is_empty() { "Products".to_owned() } else { format!("{} in products", value("q")) };
        let (q, status) = (value("q").to_owned(), if found.is_ok() { StatusCode::OK } else { StatusCode::BAD_REQUEST });
        page.show_as(status, &Shell { title: &title, q: &q, script: None }, &content)
    })
    .await
}

/// `12.5` as `1250`; whatever cannot be read is left to the API to refuse.
pub fn cents(text: &str) -> String {
    let (whole, part) = text.split_once(['.', ',']).unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match digits(whole) && digits(part) && part.len() <= 2 && !whole.is_empty() {
        true => format!("{whole}{part:0<2}"),
        false => text.to_owned(),
    }
}

/// `GET /products/{id}`
pub async fn product(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let fields = page.form_fields()?;
        let api = page.api();
        let product: Product = api.get(&format!("/api/products/{}", page.param(0))).await?;
        let stocks = product.variants.iter().map(async |variant| {
            let path = format!("/api/inventory/{}", percent_encoded(&variant.sku));
            api.find::<Stock>(&path).await
        });
        let stocks: Result<Vec<Option<Stock>>, Refused> = futures_util::future::join_all(stocks).await.into_iter().collect();
        let stocks = stocks?;
        let sales_path = |sku: &str| format!("/api/flash-sales?status=active&limit=1&sku={}", percent_encoded(sku));
        let running = product.variants.iter().map(async |variant| api.get::<Listed<Sale>>(&sales_path(&variant.sku)).await);
        let running: Vec<Sale> =
            futures_util::future::join_all(running).await.into_iter().flatten().flat_map(|listed| listed.items).collect();
        let available = |sku: &str| stocks.iter().flatten().find(|stock| stock.sku == sku).map_or(0, |stock| stock.available);
        let first = product.variants.iter().find(|variant| available(&variant.sku) > 0);
        let content = html! {
            nav .crumbs aria-label="Breadcrumbs" {
                ol {
                    li { a href="/products" { "Products" } }
                    @for category in &product.category {
                        li { a href=(format!("/products?category={}", percent_encoded(category))) { (category) } }
                    }
                }
            }
            div .product {
                (tile(&product.id))
                div .about {
                    h1 { (product.title) }
                    p .from { "from " (product.vendor) }
                    p .lead { (product.description) }
                    @for sale in &running {
                        p .note.hot { "On sale now: " a href=(format!("/sales/{}", sale.id)) { (sale.title) " for " (sale.price) } }
                    }
                    form method="post" action="/cart/items" {
                        (fields)
                        fieldset .variants {
                            legend { @if product.options.is_empty() { "Choose" } @else { (product.options.join(", ")) } }
                            @for variant in &product.variants {
                                p .check.choice data-sku=(variant.sku) {
                                    input type="radio" name="sku" id=(format!("sku-{}", variant.sku)) value=(variant.sku) required
                                        checked[first.is_some_and(|first| first.sku == variant.sku)];
                                    label for=(format!("sku-{}", variant.sku)) {
                                        strong { @if variant.options.is_empty() { (product.title) } @else { (variant.options.join(", ")) } }
                                        " " span .price { (variant.price) } " "
                                        span .from data-live=(format!("available {}", variant.sku)) { (in_stock(available(&variant.sku))) }
                                    }
                                }
                            }
                        }
                        p .field {
                            label for="quantity" { "Quantity" }
                            input #quantity type="number" name="quantity" value="1" min="1" max="1000" required inputmode="numeric";
                        }
                        button .main type="submit" { "Add to cart" }
                    }
                    @if !product.tags.is_empty() {
                        p .tags { @for tag in &product.tags { a href=(format!("/products?tag={}", percent_encoded(tag))) { "#" (tag) } " " } }
                    }
                }
            }
        };
        page.show(&Shell::live(&product.title, "product.js"), &content)
    })
    .await
}

fn in_stock(available: u64) -> String {
    match available {
        0 => "sold out".to_owned(),
        units => format!("{units} in stock"),
    }
}

// The cart ------------------------------------------------------------------------------------------------------------------

/// The browser's open cart with its version, if it has one.
async fn open_cart(page: &mut Page) -> Result<Option<(Cart, u64)>, Failed> {
    let own = match (page.visit.cart(), page.visit.account()) {
        (Some(cart), _) => Some(cart.to_owned()),
        (None, Some(_)) => page.api().get::<Me>("/api/users/me").await.ok().and_then(|me| me.cart_id),
        (None, None) => None,
    };
    let Some(id) = own else { return Ok(None) };
    let cart = page.api().find_at::<Cart>(&format!("/api/carts/{id}")).await?;
    match cart {
        Some((cart, version)) if ["open", "checking_out"].contains(&cart.status.as_str()) => Ok(Some((cart, version))),
        _ => {
            page.visit.forget_cart();
            Ok(None)
        }
    }
}

#[derive(Deserialize)]
struct Me {
    email: String,
    name: String,
    #[serde(default)]
    cart_id: Option<String>,
}

/// `GET /cart`
pub async fn cart(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let fields = page.form_fields()?;
        let cart = open_cart(page).await?.filter(|(cart, _)| !cart.lines.is_empty());
        let now = page.door.now();
        let content = html! {
            h1 { "Your cart" }
            @match &cart {
                None => p { "There is nothing in it yet. " a href="/products" { "Look around" } },
                Some((cart, version)) => div .split data-topic=(format!("cart:{}", cart.id)) data-after=(version) {
                    ul .lines { @for line in &cart.lines { li { (cart_line(line, &fields, now)) } } }
                    section .panel aria-labelledby="sum" {
                        h2 #sum { "Your purchase" }
                        p .total { span { "Subtotal" } " " strong data-live="subtotal" { @if let Some(total) = cart.subtotal { (total) } } }
                        p { a .main.whole href="/checkout" { "Check out" } }
                        p { a href="/products" { "Go on looking" } }
                    }
                },
            }
        };
        page.show(&Shell::live("Your cart", "cart.js"), &content)
    })
    .await
}

fn cart_line(line: &CartLine, fields: &Markup, now: Timestamp) -> Markup {
    let id = format!("quantity-{}", line.sku);
    html! {
        article .line.goods data-sku=(line.sku) {
            (tile(&line.product_id))
            div {
                h2 { a href=(format!("/products/{}", line.product_id)) { (line.title) } }
                p .from { (line.sku) " · " (line.unit_price) " each" }
                @if let Some(until) = line.held_until {
                    p .held { "Held for you for " (countdown(until, now)) }
                }
                form method="post" action=(format!("/cart/items/{}", percent_encoded(&line.sku))) {
                    (fields)
                    label .hidden for=(id) { "Quantity of " (line.title) }
                    input id=(id) type="number" name="quantity" value=(line.quantity) min="0" max="1000" required inputmode="numeric";
                    button type="submit" { "Change" span .hidden { " the quantity of " (line.title) } }
                    button .link type="submit" name="remove" value="1" { "Remove" span .hidden { " " (line.title) } }
                }
            }
            p .price { @if let Some(total) = line.total { (total) } }
        }
    }
}

/// `POST /cart/items`
pub async fn add_to_cart(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let cart = match open_cart(page).await? {
            Some((cart, _)) => cart.id,
            None => {
                page.visit.own_token()?;
                let made = page.api().post::<Cart>("/api/carts", &format!("{}-cart", form.get("key")), &json!({})).await?;
                page.visit.keep_cart(&made.content.id);
                made.content.id
            }
        };
        let body = json!({ "sku": form.get("sku"), "quantity": form.number("quantity") });
        let added = page.api().post::<Cart>(&format!("/api/carts/{cart}/items"), form.get("key"), &body).await;
        match added {
            Ok(_) => page.visit.say("It is in your cart."),
            Err(refused) if refused.status < 500 => page.visit.say(&refused.reason()),
            Err(refused) => return Err(refused.into()),
        }
        page.go("/cart")
    })
    .await
}

/// `POST /cart/items/{sku}`
pub async fn change_cart(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let Some((cart, _)) = open_cart(page).await? else { return page.go("/cart") };
        let quantity = if form.get("remove").is_empty() { form.number("quantity") } else { json!(0) };
        let path = format!("/api/carts/{}/items/{}", cart.id, percent_encoded(page.param(0)));
        match page.api().patch::<Cart>(&path, &json!({ "quantity": quantity })).await {
            Ok(_) => {}
            Err(refused) if refused.status < 500 => page.visit.say(&refused.reason()),
            Err(refused) => return Err(refused.into()),
        }
        page.go("/cart")
    })
    .await
}

// The checkout --------------------------------------------------------------------------------------------------------------

/// The checkout's fields: name, label, what a browser may fill in, and where the API finds it.
const CHECKOUT: [(&str, &str, &str, &str); 7] = [
    ("email", "E-mail address", "email", "/email"),
    ("name", "Name", "name", "/shipping_address/name"),
    ("line1", "Street and number", "address-line1", "/shipping_address/line1"),
    ("line2", "Apartment (optional)", "address-line2", "/shipping_address/line2"),
    ("city", "City", "address-level2", "/shipping_address/city"),
    ("postal_code", "Postal code", "postal-code", "/shipping_address/postal_code"),
    ("country", "Country (two letters)", "country", "/shipping_address/country"),
];
const CARDS: [(&str, &str); 3] = [
    ("tok_ok", "Test card that pays"),
    ("tok_declined", "Test card that is declined"),
    ("tok_slow", "Test card that takes a while"),
];

/// Text that may be left out.
pub fn field<'a>(name: &'a str, label: &'a str, value: &'a str, wrong: Option<&'a str>) -> Field<'a> {
    let kind = if name == "email" { "email" } else { "text" };
    Field { name, label, kind, value, autocomplete: None, required: false, wrong }
}

/// What is bought: the cart, or a claim.
struct Purchase {
    claim: Option<(String, String)>,
    lines: Vec<(String, u32, Option<Money>)>,
    total: Option<Money>,
    until: Option<Timestamp>,
}

async fn purchase(page: &mut Page, claim: &str) -> Result<Option<(Purchase, Option<String>)>, Failed> {
    if claim.is_empty() {
        let Some((cart, _)) = open_cart(page).await?.filter(|(cart, _)| !cart.lines.is_empty()) else { return Ok(None) };
        let until = cart.lines.iter().filter_map(|line| line.held_until).min();
        let lines = cart.lines.into_iter().map(|line| (line.title, line.quantity, line.total)).collect();
        return Ok(Some((Purchase { claim: None, lines, total: cart.subtotal, until }, Some(cart.id))));
    }
    let Some((sale, claim)) = sales::claimed(page, claim).await? else { return Ok(None) };
    let total = claim.unit_price.times(claim.quantity).ok();
    let lines = vec![(sale.title, claim.quantity, total)];
    Ok(Some((Purchase { claim: Some((sale.id, claim.id)), lines, total, until: Some(claim.expires_at) }, None)))
}

fn checkout_form(
    page: &Page,
    fields: &Markup,
    purchase: &Purchase,
    value: &dyn Fn(&str) -> String,
    refused: Option<&Refused>,
) -> Markup {
    let now = page.door.now();
    html! {
        h1 { "Checkout" }
        @if let Some(refused) = refused { p .error role="alert" { (refused.headline()) } }
        div .split {
        section .panel aria-labelledby="what" {
            h2 #what { "What you buy" }
            ul .bill { @for (title, quantity, total) in &purchase.lines { li { span { (quantity) " × " (title) } " " @if let Some(total) = total { span { (total) } } } } }
            p .total { span { "Total" } " " strong { @if let Some(total) = purchase.total { (total) } } }
            @if let Some(until) = purchase.until { p .held { "Held for you for " (countdown(until, now)) } }
        }
        form .first method="post" action="/checkout" {
            (fields)
            @if let Some((_, claim)) = &purchase.claim { input type="hidden" name="claim" value=(claim); }
            @if let Some(total) = purchase.total {
                input type="hidden" name="amount" value=(total.amount);
                input type="hidden" name="currency" value=(total.currency);
            }
            fieldset {
                legend { "Where it goes" }
                @for (name, label, fill, pointer) in CHECKOUT {
                    @let wrong = refused.and_then(|refused| refused.wrong_at(pointer));
                    (Field { autocomplete: Some(fill), required: name != "line2", ..field(name, label, &value(name), wrong) })
                }
            }
            fieldset {
                legend { "How you pay" }
                @for (index, (card, label)) in CARDS.iter().enumerate() {
                    p .check {
                        input type="radio" name="card" id=(card) value=(card) required
                            checked[value("card") == *card || (value("card").is_empty() && index == 0)];
                        label for=(card) { (label) }
                    }
                }
            }
            button .main.whole type="submit" { "Pay" @if let Some(total) = purchase.total { " " (total) } }
        }
        }
    }
}

/// `GET /checkout`
pub async fn checkout(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let text = page.request.query.clone();
        let query = Query::parse(&text, &["claim"])?;
        let Some((purchase, _)) = purchase(page, query.get("claim").unwrap_or_default()).await? else { return page.go("/cart") };
        let fields = page.form_fields()?;
        // What is known of an account need not be typed.
        let me = match page.visit.account() {
            Some(_) => page.api().get::<Me>("/api/users/me").await.ok(),
            None => None,
        };
        let known = |name: &str| match (name, &me) {
            ("email", Some(me)) => me.email.clone(),
            ("name", Some(me)) => me.name.clone(),
            ("country", _) => "MA".into(),
            _ => String::new(),
        };
        let content = checkout_form(page, &fields, &purchase, &known, None);
        page.show(&Shell::live("Checkout", "cart.js"), &content)
    })
    .await
}

fn order_body(form: &Form) -> Value {
    let mut address = json!({});
    for name in ["name", "line1", "line2", "city", "postal_code", "country"] {
        let value = form.get(name);
        if name != "line2" || !value.is_empty() {
            address[name] = if name == "country" { value.to_uppercase().into() } else { value.into() };
        }
    }
    let mut body = json!({
        "email": form.get("email"), "shipping_address": address, "payment": { "provider": "sandbox", "token": form.get("card") },
    });
    if !form.get("amount").is_empty() {
        body["expected_total"] = json!({ "amount": form.number("amount"), "currency": form.get("currency") });
    }
    body
}

/// `POST /checkout`
pub async fn check_out(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let Some((purchase, cart)) = purchase(page, form.get("claim")).await? else {
            page.visit.say("What you wanted to buy is not held for you any more, or was bought already.");
            return page.go("/cart");
        };
        let mut body = order_body(&form);
        let path = match (&purchase.claim, &cart) {
            (Some((_, claim)), _) => {
                body["claim_id"] = json!(claim);
                "/api/orders".to_owned()
            }
            (None, Some(cart)) => format!("/api/carts/{cart}/checkout"),
            (None, None) => return page.go("/cart"),
        };
        let refused = match page.api().post::<Order>(&path, form.get("key"), &body).await {
            Ok(placed) if placed.content.status != "payment_failed" => return page.go(&format!("/orders/{}", placed.content.id)),
            Ok(_) => Refused {
                status: 409,
                title: "The card was declined.".into(),
                detail: Some("Try another one.".into()),
                ..Refused::default()
            },
            Err(refused) if refused.status < 500 && refused.status != 404 => refused,
            Err(refused) => return Err(refused.into()),
        };
        let fields = page.form_fields()?;
        let content = checkout_form(page, &fields, &purchase, &|name| form.get(name).to_owned(), Some(&refused));
        page.show_as(StatusCode::UNPROCESSABLE_ENTITY, &Shell::live("Checkout", "cart.js"), &content)
    })
    .await
}

// Orders --------------------------------------------------------------------------------------------------------------------

const STEPS: [&str; 5] = ["pending", "reserved", "paid", "shipped", "delivered"];

fn told(status: &str) -> &str {
    match status {
        "pending" => "Placed",
        "reserved" => "Reserved",
        "paid" => "Paid",
        "shipped" => "On its way",
        "delivered" => "Delivered",
        "payment_failed" => "Not paid",
        "cancelled" => "Cancelled",
        "refunded" => "Refunded",
        other => other,
    }
}

/// An event in words, as scripts write it too: see `order.js`.
fn happened(event: &Happened) -> &str {
    match event.event_type.as_str() {
        "order.created" => "Placed",
        "order.placed_again" => "Tried again",
        "order.line.reserved" => "Units reserved",
        "order.line.refused" => "Units not to be had",
        "order.line.released" => "Units given back",
        "order.line.committed" => "Units set aside for you",
        "order.line.restocked" => "Units back in the stock",
        "order.updated" => event.data["status"].as_str().map_or("Updated", told),
        "order.payment.authorized" => "Payment authorized",
        "order.payment.captured" => "Money taken",
        "order.payment.capture_failed" => "The money could not be taken",
        "order.payment.voided" => "Payment voided",
        "order.payment.refunded" => "Money given back",
        "order.claimed" => "Taken into an account",
        "order.paid" | "order.shipped" | "order.delivered" | "order.payment_failed" | "order.cancelled" | "order.refunded" => {
            told(event.event_type.trim_start_matches("order."))
        }
        other => other,
    }
}

/// `GET /orders/{id}`
pub async fn order(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let fields = page.form_fields()?;
        let path = format!("/api/orders/{}", page.param(0));
        let order: Order = page.api().get(&path).await?;
        let history: Listed<Happened> = page.api().get(&format!("{path}/history?limit=100")).await?;
        let reached = STEPS.iter().position(|status| *status == order.status);
        let after = history.items.last().map_or(0, |event| event.version);
        let can_cancel = ["pending", "reserved", "paid"].contains(&order.status.as_str());
        let content = html! {
            h1 { "Your order" }
            div data-topic=(format!("order:{}", order.id)) data-after=(after) {
                p .status role="status" { strong data-live="status" { (told(&order.status)) } " " span .id { (order.id) } }
                ol .steps {
                    @for (index, status) in STEPS.iter().enumerate() {
                        li data-step=(status) aria-current=[(reached == Some(index)).then_some("step")]
                            .done[reached.is_some_and(|reached| index <= reached)] { (told(status)) }
                    }
                }
                @if let Some(reason) = order.reason.as_ref().and_then(|reason| reason["message"].as_str()) { p { (reason) } }
                div .split {
                    section aria-labelledby="timeline" {
                        h2 #timeline { "What happened" }
                        ol .timeline data-list="timeline" {
                            @for event in &history.items {
                                li { (when(&event.time)) " " span { (happened(event)) } }
                            }
                        }
                    }
                    section .panel aria-labelledby="bought" {
                        h2 #bought { "What you bought" }
                        ul .bill { @for line in &order.lines {
                            li { span { (line.quantity) " × " a href=(format!("/products/{}", line.product_id)) { (line.title) } } " " span { (line.total) } }
                        } }
                        p .total { span { "Total" } " " strong { (order.total) } }
                        @if let Some(to) = &order.shipping_address {
                            address { (to.name) br; (to.line1) br; @if let Some(line2) = &to.line2 { (line2) br; } (to.postal_code) " " (to.city) ", " (to.country) }
                        }
                        @if let Some(email) = &order.email { p { "A confirmation goes to " (email) "." } }
                        p .from { "Placed " (when(&order.placed_at)) "." }
                        @for shipment in &order.shipments {
                            p { "Sent with " (shipment.carrier) @if let Some(number) = &shipment.tracking_number { ", number " (number) } "." }
                        }
                        @if can_cancel {
                            form method="post" action=(format!("/orders/{}/cancel", order.id)) {
                                (fields) button type="submit" { "Cancel the order" }
                            }
                        }
                    }
                }
            }
        };
        page.show(&Shell::live("Your order", "order.js"), &content)
    })
    .await
}

/// `POST /orders/{id}/cancel`
pub async fn cancel_order(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let path = format!("/orders/{}", page.param(0));
        match page.api().post::<Value>(&format!("/api{path}/cancel"), form.get("key"), &json!({})).await {
            Ok(_) => page.visit.say("The order is cancelled."),
            Err(refused) if refused.status == 409 => page.visit.say(&refused.reason()),
            Err(refused) => return Err(refused.into()),
        }
        page.go(&path)
    })
    .await
}

/// `GET /orders`
pub async fn orders(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let text = page.request.query.clone();
        let cursor = Query::parse(&text, &["cursor"])?.cursor()?.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let listed: Listed<OrderSummary> = page.api().get(&format!("/api/orders?limit={ON_PAGE}{cursor}")).await?;
        let content = html! {
            h1 { "Your orders" }
            @if listed.items.is_empty() { p { "You have not ordered anything yet." } }
            @else {
                div #orders .scroll data-refresh tabindex="0" role="region" aria-label="Your orders" {
                    table {
                        thead { tr { th scope="col" { "Order" } th scope="col" { "Placed" } th scope="col" { "Units" } th scope="col" { "Total" } th scope="col" { "Status" } } }
                        tbody { @for order in &listed.items { tr {
                            td { a href=(format!("/orders/{}", order.id)) { (order.id) } }
                            td { (when(&order.placed_at)) }
                            td { (order.items) }
                            td { (order.total) }
                            td { span .badge { (told(&order.status)) } }
                        } } }
                    }
                }
            }
            @if let Some(next) = &listed.next_cursor { p { a rel="next" href=(format!("/orders?cursor={next}")) { "Older orders" } } }
        };
        page.show(&Shell::live("Your orders", "lists.js"), &content)
    })
    .await
}
