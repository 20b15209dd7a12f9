//! A vendor's own shop: orders to ship, products and stock, sales and how they go.

use std::collections::BTreeMap;
use std::sync::Arc;

use maud::{Markup, PreEscaped, html};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Door;
use super::super::answer::Answer;
use super::super::problem::Problem;
use super::super::request::Request;
use super::api::Refused;
use super::layout::{Shell, tabs, when};
use super::sales::Sale;
use super::shopper::{Listed, cents};
use super::{Failed, Page, charts, shown};
use crate::domain::{Currency, Money, Timestamp};
use crate::integrations::http_client::percent_encoded;

/// Pages of the shop's newest orders that its chart is drawn from.
const CHART_PAGES_MAX: usize = 10;
const CHART_HOURS: usize = 24;
const HOUR_MS: i64 = 60 * 60 * 1_000;
const PRODUCTS: usize = 50;

/// Statuses of an order whose money is the shop's.
const PAID: [&str; 3] = ["paid", "shipped", "delivered"];

#[derive(Deserialize)]
struct Ordered {
    id: String,
    status: String,
    total: Money,
    items: u64,
    placed_at: Timestamp,
}

#[derive(Deserialize)]
struct Sold {
    id: String,
    title: String,
    variants: Vec<SoldVariant>,
}

#[derive(Deserialize)]
struct SoldVariant {
    sku: String,
    price: Money,
}

#[derive(Deserialize)]
struct Stock {
    on_hand: u64,
    reserved: u64,
    held: u64,
    available: u64,
    low_stock_threshold: u64,
}

/// The shop of whoever looks.
fn own_shop(page: &Page) -> Result<String, Failed> {
    match page.visit.account() {
        None => Err(Refused { status: 401, ..Refused::default() }.into()),
        Some(account) => account.shop.clone().ok_or_else(|| {
            let title = "This account has no shop.".to_owned();
            Refused { status: 403, title, ..Refused::default() }.into()
        }),
    }
}

/// The pages for those who sell.
fn places(here: &str) -> Markup {
    let places = [
        ("/vendor", "Orders"),
        ("/vendor/products", "Products and stock"),
        ("/vendor/sales", "Flash sales"),
        ("/vendor/figures", "Figures"),
    ];
    tabs("Your shop", &places, here)
}

/// `GET /vendor`
pub async fn home(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let shop = own_shop(page)?;
        let fields = page.form_fields()?;
        let api = page.api();
        let listed =
            async |status: &str| api.get::<Listed<Ordered>>(&format!("/api/orders?shop={shop}&status={status}&limit=50")).await;
        let (to_ship, on_their_way) = tokio::join!(listed("paid"), listed("shipped"));
        let (to_ship, on_their_way) = (to_ship?.items, on_their_way?.items);
        let content = html! {
            h1 { "Your shop" }
            (places("/vendor"))
            section #to-ship data-refresh aria-labelledby="to-ship-title" {
                h2 #to-ship-title { "To ship" }
                @if to_ship.is_empty() { p { "Nothing waits to be sent." } }
                ul .lines { @for order in &to_ship { li { (shipping(order, &fields)) } } }
            }
            section #underway data-refresh aria-labelledby="underway-title" {
                h2 #underway-title { "On their way" }
                @if on_their_way.is_empty() { p { "Nothing is." } }
                ul .lines { @for order in &on_their_way { li .line.row data-sent=(order.id) {
                    a .id href=(format!("/orders/{}", order.id)) { (order.id) } " "
                    form method="post" action=(format!("/vendor/orders/{}/deliver", order.id)) {
                        (fields) button type="submit" { "Delivered" span .hidden { " " (order.id) } }
                    }
                } } }
            }
        };
        page.show(&Shell::live("Your shop", "lists.js"), &content)
    })
    .await
}

fn shipping(order: &Ordered, fields: &Markup) -> Markup {
    let (carrier, number) = (format!("carrier-{}", order.id), format!("number-{}", order.id));
    html! {
        article .line data-order=(order.id) {
            h3 { a .id href=(format!("/orders/{}", order.id)) { (order.id) } }
            p .from { (order.items) @if order.items == 1 { " unit · " } @else { " units · " } (order.total) " · placed " (when(&order.placed_at)) }
            form .row method="post" action=(format!("/vendor/orders/{}/ship", order.id)) {
                (fields)
                p .field { label for=(carrier) { "Carrier" } input id=(carrier) name="carrier" required maxlength="64"; }
                p .field { label for=(number) { "Tracking number" } input id=(number) name="tracking_number" maxlength="64"; }
                button .main type="submit" { "Shipped" span .hidden { " " (order.id) } }
            }
        }
    }
}

/// `GET /vendor/figures`
pub async fn figures(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let shop = own_shop(page)?;
        let lately = lately(page, &shop).await?;
        let orders: u64 = lately.orders.iter().sum();
        let content = html! {
            h1 { "Your shop" }
            (places("/vendor/figures"))
            div #figures data-refresh {
                h2 { "The last 24 hours" }
                dl .figures {
                    div { dt { "Orders" } dd { (orders) @if lately.is_cut { "+" } } }
                    div { dt { "Units" } dd { (lately.units) @if lately.is_cut { "+" } } }
                    @for (_, total) in &lately.takings { div { dt { "Taken in " (total.currency) } dd { (total) }} }
                }
                h3 { "Orders in each hour" }
                (PreEscaped(charts::bars(&lately.hours, &lately.orders, 3)))
                p { (orders) @if orders == 1 { " order" } @else { " orders" } ", at most " (lately.orders.iter().max().copied().unwrap_or(0)) " in one hour." }
                @for (takings, total) in &lately.takings {
                    h3 { "Taken in each hour, " (total.currency) }
                    (PreEscaped(charts::bars(&lately.hours, takings, 3)))
                    p { (total) " in all." }
                }
            }
        };
        page.show(&Shell::live("Figures", "lists.js"), &content)
    })
    .await
}

/// What a shop sold in the last hours, oldest first.
struct Lately {
    hours: Vec<String>,
    orders: Vec<u64>,
    units: u64,
    /// In whole units of each currency, and all of them together.
    takings: Vec<(Vec<u64>, Money)>,
    /// There were more orders than are looked at.
    is_cut: bool,
}

async fn lately(page: &Page, shop: &str) -> Result<Lately, Failed> {
    let now = page.door.now();
    let hour = |index: usize| {
        let back = (CHART_HOURS - 1 - index) as i64 * HOUR_MS;
        now.plus_ms(-back).to_string().get(11..13).map(|hour| format!("{hour}h")).unwrap_or_default()
    };
    let hours = (0..CHART_HOURS).map(hour).collect();
    let mut lately = Lately { hours, orders: vec![0; CHART_HOURS], units: 0, takings: Vec::new(), is_cut: true };
    let mut minor: BTreeMap<Currency, Vec<i64>> = BTreeMap::new();
    let mut cursor = String::new();
    'pages: for _ in 0..CHART_PAGES_MAX {
        let listed: Listed<Ordered> = page.api().get(&format!("/api/orders?shop={shop}&limit=100{cursor}")).await?;
        for order in listed.items {
            let ago = usize::try_from(now.since_ms(order.placed_at).max(0) / HOUR_MS).unwrap_or(usize::MAX);
            let Some(index) = (CHART_HOURS - 1).checked_sub(ago) else {
                lately.is_cut = false;
                break 'pages;
            };
            lately.orders[index] += 1;
            lately.units += order.items;
            if PAID.contains(&order.status.as_str()) {
                let amounts = minor.entry(order.total.currency).or_insert_with(|| vec![0; CHART_HOURS]);
                let hour = &mut amounts[index];
                *hour = hour.saturating_add(order.total.amount);
            }
        }
        match listed.next_cursor {
            Some(next) => cursor = format!("&cursor={next}"),
            None => {
                lately.is_cut = false;
                break;
            }
        }
    }
    lately.takings = minor
        .into_iter()
        .map(|(currency, amounts)| {
            let whole = 10_i64.pow(currency.minor_digits());
            let total = Money { amount: amounts.iter().copied().fold(0, i64::saturating_add), currency };
            (amounts.iter().map(|amount| u64::try_from(amount / whole).unwrap_or(0)).collect(), total)
        })
        .collect();
    Ok(lately)
}

/// `POST /vendor/orders/{id}/ship`
pub async fn ship(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let mut body = json!({ "carrier": form.get("carrier") });
        if !form.get("tracking_number").is_empty() {
            body["tracking_number"] = form.get("tracking_number").into();
        }
        let path = format!("/api/orders/{}/shipments", page.param(0));
        let outcome = page.api().post::<Value>(&path, form.get("key"), &body).await;
        page.tell(outcome, "It is on its way.")?;
        page.go("/vendor")
    })
    .await
}

/// `POST /vendor/orders/{id}/deliver`
pub async fn deliver(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let path = format!("/api/orders/{}/delivery", page.param(0));
        let outcome = page.api().post::<Value>(&path, form.get("key"), &json!({})).await;
        page.tell(outcome, "It has arrived.")?;
        page.go("/vendor")
    })
    .await
}

/// `GET /vendor/products`
pub async fn products(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let shop = own_shop(page)?;
        let fields = page.form_fields()?;
        let api = page.api();
        let listed: Listed<Sold> = api.get(&format!("/api/products?shop={shop}&limit={PRODUCTS}")).await?;
        let rows = listed.items.iter().flat_map(|product| product.variants.iter().map(move |variant| (product, variant)));
        let rows = rows.map(async |(product, variant)| {
            let stock = api.find::<Stock>(&format!("/api/inventory/{}", percent_encoded(&variant.sku))).await?;
            Ok::<_, Refused>((product, variant, stock))
        });
        let rows: Result<Vec<_>, Refused> = futures_util::future::join_all(rows).await.into_iter().collect();
        let rows = rows?;
        let content = html! {
            h1 { "Your shop" }
            (places("/vendor/products"))
            div #stock .scroll data-refresh tabindex="0" role="region" aria-label="Products and stock" {
                table {
                    thead { tr { @for name in ["Product", "Sku", "Price", "On hand", "Held", "Reserved", "Available", "More or less", "Low from"] { th scope="col" { (name) } } } }
                    tbody { @for (product, variant, stock) in &rows { tr {
                        td { a href=(format!("/products/{}", product.id)) { (product.title) } }
                        td { (variant.sku) }
                        td { (variant.price) }
                        @match stock {
                            None => td colspan="6" { "no stock" },
                            Some(stock) => {
                                td { (stock.on_hand) } td { (stock.held) } td { (stock.reserved) }
                                td {
                                    (stock.available)
                                    @if stock.available == 0 { " " span .badge.hot { "sold out" } }
                                    @else if stock.available <= stock.low_stock_threshold { " " span .badge.hot { "low" } }
                                }
                                td {
                                    form .adjust method="post" action=(format!("/vendor/stock/{}", percent_encoded(&variant.sku))) {
                                        (fields)
                                        label .hidden for=(format!("delta-{}", variant.sku)) { "Units more or less of " (variant.sku) }
                                        input id=(format!("delta-{}", variant.sku)) type="number" name="delta" required;
                                        button type="submit" { "Adjust" span .hidden { " " (variant.sku) } }
                                    }
                                }
                                td {
                                    form .adjust method="post" action=(format!("/vendor/stock/{}/low", percent_encoded(&variant.sku))) {
                                        (fields)
                                        label .hidden for=(format!("low-{}", variant.sku)) { "Units from which " (variant.sku) " is low" }
                                        input id=(format!("low-{}", variant.sku)) type="number" name="threshold" min="0" required value=(stock.low_stock_threshold);
                                        button type="submit" { "Set" span .hidden { " for " (variant.sku) } }
                                    }
                                }
                            },
                        }
                    } } }
                }
            }
        };
        page.show(&Shell::live("Products and stock", "lists.js"), &content)
    })
    .await
}

/// `POST /vendor/stock/{sku}`
pub async fn adjust(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let path = format!("/api/inventory/{}/adjustments", percent_encoded(page.param(0)));
        let body = json!({ "delta": form.number("delta"), "reason": "by its vendor" });
        let outcome = page.api().post::<Value>(&path, form.get("key"), &body).await;
        page.tell(outcome, "The stock is adjusted.")?;
        page.go("/vendor/products")
    })
    .await
}

/// `POST /vendor/stock/{sku}/low`
pub async fn low_from(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let path = format!("/api/inventory/{}", percent_encoded(page.param(0)));
        let body = json!({ "low_stock_threshold": form.number("threshold") });
        let outcome = page.api().patch::<Value>(&path, &body).await;
        page.tell(outcome, "It is set.")?;
        page.go("/vendor/products")
    })
    .await
}

/// `GET /vendor/sales`
pub async fn sales(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let shop = own_shop(page)?;
        let fields = page.form_fields()?;
        let listed: Listed<Sale> = page.api().get(&format!("/api/flash-sales?shop={shop}&limit=50")).await?;
        let now = page.door.now();
        let content = html! {
            h1 { "Your shop" }
            (places("/vendor/sales"))
            ul #sales .lines data-refresh { @for sale in &listed.items {
                li .line.row { a href=(format!("/vendor/sales/{}", sale.id)) { (sale.title) " for " (sale.price) } " " span { (sale.quantity) " units" } " " span .badge { (sale.status) } }
            } }
            section .panel aria-labelledby="new" {
                h2 #new { "A new one" }
                form method="post" action="/vendor/sales" {
                    (fields)
                    p .field { label for="sku" { "Sku" } input #sku name="sku" required; }
                    p .field { label for="price" { "Price" } input #price name="price" inputmode="decimal" required; }
                    p .field { label for="currency" { "Currency" } input #currency name="currency" value="EUR" maxlength="3" required; }
                    p .field { label for="quantity" { "Units" } input #quantity type="number" name="quantity" min="1" value="100" required; }
                    p .field { label for="limit" { "At most for each customer" } input #limit type="number" name="limit" min="1" value="1" required; }
                    p .field { label for="starts_at" { "Starts at (UTC)" } input #starts_at name="starts_at" value=(now.plus_ms(HOUR_MS)) required; }
                    p .field { label for="ends_at" { "Ends at (UTC)" } input #ends_at name="ends_at" value=(now.plus_ms(2 * HOUR_MS)) required; }
                    p .check { input #guests type="checkbox" name="guests" value="true"; label for="guests" { "Also for guests" } }
                    button .main type="submit" { "Propose it" }
                }
                p { "An admin approves it; then its units are set aside." }
            }
        };
        page.show(&Shell::live("Your flash sales", "lists.js"), &content)
    })
    .await
}

/// `POST /vendor/sales`
pub async fn new_sale(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let price: Value = cents(form.get("price")).parse::<i64>().map_or_else(|_| form.get("price").into(), Value::from);
        let body = json!({
            "sku": form.get("sku"), "price": { "amount": price, "currency": form.get("currency").to_uppercase() },
            "quantity": form.number("quantity"), "per_customer_limit": form.number("limit"),
            "starts_at": form.get("starts_at"), "ends_at": form.get("ends_at"), "guests": form.get("guests") == "true",
        });
        let outcome = page.api().post::<Value>("/api/flash-sales", form.get("key"), &body).await;
        page.tell(outcome, "It is proposed.")?;
        page.go("/vendor/sales")
    })
    .await
}

/// `GET /vendor/sales/{id}`: a sale's cockpit.
pub async fn cockpit(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let fields = page.form_fields()?;
        let sale: Sale = page.api().get(&format!("/api/flash-sales/{}", page.param(0))).await?;
        let acts: &[(&str, &str)] = match sale.status.as_str() {
            "draft" | "scheduled" => &[("cancel", "Call it off")],
            "active" => &[("pause", "Pause"), ("cancel", "Call it off")],
            "paused" => &[("resume", "Go on"), ("cancel", "Call it off")],
            _ => &[],
        };
        let content = html! {
            div .sale-page .cockpit data-topic=(format!("flash_sale:{}", sale.id)) data-status=(sale.status) {
                h1 { (sale.title) }
                p .status role="status" { strong { (sale.status) } " · " (sale.price) " · until " (when(&sale.ends_at)) }
                dl .figures {
                    div { dt { "Claimed a second" } dd data-live="rate" { "0.0" } }
                    div { dt { "Free" } dd data-live="available" { (sale.available.unwrap_or(0)) } }
                    div { dt { "Held" } dd data-live="held" { (sale.held) } }
                    div { dt { "Sold" } dd data-live="sold" { (sale.sold) } }
                    div { dt { "In line" } dd data-live="waiting" { (sale.waiting) } }
                }
                meter data-live-meter="sold" min="0" max=(sale.quantity) value=(sale.sold) aria-label="Units sold" {}
                div .row { @for (act, label) in acts {
                    form method="post" action=(format!("/vendor/sales/{}/{act}", sale.id)) { (fields) button type="submit" { (label) } }
                } }
            }
        };
        page.show(&Shell::live(&sale.title, "cockpit.js"), &content)
    })
    .await
}

/// `POST /vendor/sales/{id}/{act}`
pub async fn act(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let (sale, act) = (page.param(0).to_owned(), page.param(1).to_owned());
        if !["pause", "resume", "cancel", "approve"].contains(&act.as_str()) {
            return Err(Problem::not_found().into());
        }
        let path = format!("/api/flash-sales/{sale}/{act}");
        let outcome = page.api().post::<Value>(&path, form.get("key"), &json!({})).await;
        page.tell(outcome, "Done.")?;
        page.go(&format!("/vendor/sales/{sale}"))
    })
    .await
}
