//! Flash sales: what is on and what is to come, a sale's own page with its waiting room, and claims.

use std::sync::Arc;

use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Door;
use super::super::answer::Answer;
use super::super::problem::Problem;
use super::super::request::Request;
use super::api::Granted;
use super::layout::{Shell, countdown};
use super::shopper::Listed;
use super::tile::tile;
use super::{Failed, Page, shown};
use crate::domain::{Money, Timestamp, ids};

#[derive(Deserialize)]
pub struct Sale {
    pub id: String,
    pub status: String,
    pub sku: String,
    pub product_id: String,
    pub title: String,
    pub price: Money,
    pub quantity: u32,
    pub per_customer_limit: u32,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    pub guests: bool,
    /// A list does not say it.
    #[serde(default)]
    pub available: Option<u32>,
    #[serde(default)]
    pub held: u32,
    #[serde(default)]
    pub sold: u32,
    #[serde(default)]
    pub waiting: u32,
    #[serde(default)]
    pub admissions_per_second: Option<u32>,
    #[serde(default)]
    pub challenge_bits: u8,
}

#[derive(Deserialize, Default)]
struct Own {
    claims: Vec<Claim>,
    ticket: Option<Ticket>,
    reminded: bool,
}

#[derive(Deserialize)]
pub struct Claim {
    pub id: String,
    pub status: String,
    pub quantity: u32,
    pub unit_price: Money,
    pub expires_at: Timestamp,
    #[serde(default)]
    pub order_id: Option<String>,
}

/// What a product costs when it is not on sale.
#[derive(Deserialize)]
struct Usual {
    variants: Vec<UsualPrice>,
}

#[derive(Deserialize)]
struct UsualPrice {
    sku: String,
    price: Money,
}

#[derive(Deserialize)]
struct Ticket {
    place: u32,
    estimated_wait_seconds: Option<i64>,
}

/// What the API says to a claim: a claim, or a place in line.
#[derive(Deserialize)]
struct Answered {
    #[serde(default)]
    id: Option<String>,
}

/// A sale in a list, which scripts keep fresh.
pub fn card(sale: &Sale, now: Timestamp) -> Markup {
    html! {
        article .card.sale data-topic=(format!("flash_sale:{}", sale.id)) {
            (tile(&sale.product_id))
            div .words {
                h3 { a href=(format!("/sales/{}", sale.id)) { (sale.title) } }
                p .price data-live="price" { (sale.price) }
                (stock(sale))
                p .state { span data-live="state" { (state(sale)) } @if let Some(at) = next_moment(sale) { " " (countdown(at, now)) } }
            }
        }
    }
}

/// How much of it is left, as a bar.
fn stock(sale: &Sale) -> Markup {
    html! {
        meter data-live-meter="available" min="0" max=(sale.quantity) value=(sale.available.unwrap_or(sale.quantity)) aria-label=(format!("Units left of {}", sale.title)) {}
    }
}

fn next_moment(sale: &Sale) -> Option<Timestamp> {
    match sale.status.as_str() {
        "scheduled" => Some(sale.starts_at),
        "active" | "paused" | "sold_out" => Some(sale.ends_at),
        _ => None,
    }
}

/// As scripts write it too: see `sale.js`.
fn state(sale: &Sale) -> String {
    match sale.status.as_str() {
        "scheduled" => "Starts in".to_owned(),
        "active" => match sale.available {
            None => "On now, ends in".to_owned(),
            Some(0) => "All claimed for now, ends in".to_owned(),
            Some(available) => format!("{available} of {} left, ends in", sale.quantity),
        },
        "paused" => "Paused, ends in".to_owned(),
        "sold_out" => "Sold out".to_owned(),
        "ended" => "Over".to_owned(),
        "cancelled" => "Called off".to_owned(),
        _ => "Not open yet".to_owned(),
    }
}

/// `GET /sales`
pub async fn list(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let listed: Listed<Sale> = page.api().get("/api/flash-sales?limit=50").await?;
        let now = page.door.now();
        let seen: Vec<&Sale> = listed.items.iter().filter(|sale| !["draft", "arming"].contains(&sale.status.as_str())).collect();
        let content = html! {
            h1 { "Flash sales" }
            h2 .hidden { "All sales" }
            div #sales {
                @if seen.is_empty() { p { "None is planned." } }
                ul .cards.sales { @for sale in &seen { li { (card(sale, now)) } } }
            }
        };
        page.show(&Shell::live("Flash sales", "home.js"), &content)
    })
    .await
}

async fn own(page: &Page, sale: &Sale) -> Result<Own, Failed> {
    if page.visit.token().is_none() || (page.visit.account().is_none() && !sale.guests) {
        return Ok(Own::default());
    }
    Ok(page.api().find(&format!("/api/flash-sales/{}/claims", sale.id)).await?.unwrap_or_default())
}

/// A claim of this browser's that can be paid now, and its sale.
pub async fn claimed(page: &Page, claim: &str) -> Result<Option<(Sale, Claim)>, Failed> {
    let Some((sale, _)) = ids::parse_claim(claim) else { return Ok(None) };
    let Some(sale) = page.api().find::<Sale>(&format!("/api/flash-sales/{sale}")).await? else { return Ok(None) };
    let claims = own(page, &sale).await?.claims;
    Ok(claims.into_iter().find(|own| own.id == claim && own.status == "held").map(|claim| (sale, claim)))
}

/// `GET /sales/{id}`
pub async fn sale(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        page.visit.own_token()?;
        let fields = page.form_fields()?;
        let path = format!("/api/flash-sales/{}", page.param(0));
        let sale: Sale = page.api().get(&path).await?;
        let own = own(page, &sale).await?;
        let here = format!("/sales/{}", sale.id);
        let product = page.api().find::<Usual>(&format!("/api/products/{}", sale.product_id)).await?;
        let usual = product.into_iter().flat_map(|product| product.variants).find(|variant| variant.sku == sale.sku);
        let usual = usual.map(|variant| variant.price);
        let is_offered = own.claims.iter().any(|claim| claim.status == "offered");
        let standing = if is_offered { "admitted" } else if own.ticket.is_some() { "waiting" } else { "" };
        let now = page.door.now();
        let may_claim = page.visit.account().is_some() || sale.guests;
        let content = html! {
            div .sale-page.product data-topic=(format!("flash_sale:{}", sale.id)) data-status=(sale.status) data-standing=(standing) {
                (tile(&sale.product_id))
                div .about {
                h1 { (sale.title) }
                p .price.large { strong data-live="price" { (sale.price) }
                    @if let Some(usual) = usual { " " span .from { "instead of " s { (usual) } } } }
                p { a href=(format!("/products/{}", sale.product_id)) { "What it is" } }
                p .status role="status" { span data-live="state" { (state(&sale)) } @if let Some(at) = next_moment(&sale) { " " (countdown(at, now)) } }
                (stock(&sale))
                p .from { span data-live="waiting" { (sale.waiting) } " in line. At most " (sale.per_customer_limit) " for each customer." }
                section #own .panel aria-labelledby="own-title" aria-live="polite" {
                    h2 #own-title { "You in this sale" }
                    @if let Some(ticket) = &own.ticket {
                        p .place { "Your place in line: " strong data-live="place" { (ticket.place) } }
                        p data-live="wait" { @if let Some(seconds) = ticket.estimated_wait_seconds { "About " (seconds) " seconds to wait." } }
                        form method="post" action=(format!("{here}/leave")) { (fields) button type="submit" { "Leave the line" } }
                    }
                    @for claim in &own.claims { (own_claim(&here, claim, &fields, now)) }
                    @if standing.is_empty() {
                        @match sale.status.as_str() {
                            "scheduled" => (reminder(&here, own.reminded, &fields)),
                            "active" if !may_claim => p { "This sale is for accounts. " a href=(format!("/login?back={here}")) { "Log in" } },
                            "active" if sale.challenge_bits > 0 => (claim_form(&here, &sale, &fields, true)),
                            "active" => (claim_form(&here, &sale, &fields, false)),
                            _ => p { "Nothing can be claimed now." },
                        }
                    }
                }
                }
            }
        };
        page.show(&Shell::live(&sale.title, "sale.js"), &content)
    })
    .await
}

fn claim_form(here: &str, sale: &Sale, fields: &Markup, with_proof: bool) -> Markup {
    html! {
        form method="post" action=(format!("{here}/claims")) data-proof[with_proof] data-bits=(sale.challenge_bits) {
            (fields)
            p .field {
                label for="quantity" { "How many" }
                input #quantity type="number" name="quantity" value="1" min="1" max=(sale.per_customer_limit) required inputmode="numeric";
            }
            @if with_proof { noscript { p { "This sale asks for a proof of work, which takes a script." } } }
            button .main type="submit" { "Claim" }
        }
    }
}

fn reminder(here: &str, is_asked: bool, fields: &Markup) -> Markup {
    html! {
        @if is_asked { p { "You will be reminded." } }
        @else { form method="post" action=(format!("{here}/reminder")) { (fields) button type="submit" { "Remind me" } } }
    }
}

fn own_claim(here: &str, claim: &Claim, fields: &Markup, now: Timestamp) -> Markup {
    let units = format!("{} × {}", claim.quantity, claim.unit_price);
    html! {
        article .claim data-claim=(claim.id) {
            @match claim.status.as_str() {
                "offered" => {
                    p { "It is your turn: " (units) ", for " (countdown(claim.expires_at, now)) }
                    form method="post" action=(format!("{here}/claims")) {
                        (fields) input type="hidden" name="quantity" value=(claim.quantity);
                        button .main type="submit" { "Take it" }
                    }
                },
                "held" => {
                    p { "Yours to pay: " (units) ", for " (countdown(claim.expires_at, now)) }
                    p { a .main href=(format!("/checkout?claim={}", claim.id)) { "Pay" } }
                    form method="post" action=(format!("{here}/give-up")) {
                        (fields) input type="hidden" name="claim" value=(claim.id);
                        button type="submit" { "Give it up" }
                    }
                },
                "paying" | "sold" => p {
                    @if claim.status == "sold" { "Bought: " } @else { "Being paid: " } (units)
                    @if let Some(order) = &claim.order_id { " · " a href=(format!("/orders/{order}")) { "the order" } }
                },
                "expired" => p { "Not paid in time: " (units) },
                _ => p { "Given back: " (units) },
            }
        }
    }
}

/// Does one thing in a sale and shows the sale again, with what was refused.
async fn act(page: &mut Page, path: &str, body: &Value, done: &str) -> Result<Answer, Failed> {
    let form = page.form()?;
    let here = format!("/sales/{}", page.param(0));
    let path = format!("/api/flash-sales/{}/{path}", page.param(0));
    let outcome = page.api().post::<Value>(&path, form.get("key"), body).await;
    page.tell(outcome, done)?;
    page.go(&here)
}

/// `POST /sales/{id}/claims`
pub async fn claim(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let mut body = json!({ "quantity": form.number("quantity") });
        if !form.get("nonce").is_empty() {
            body["proof"] = json!({ "challenge": form.get("challenge"), "nonce": form.get("nonce") });
        }
        let path = format!("/api/flash-sales/{}/claims", page.param(0));
        let here = format!("/sales/{}", page.param(0));
        let answered = page.api().post::<Answered>(&path, form.get("key"), &body).await;
        if let Ok(Granted { content: Answered { id: Some(claim) }, .. }) = &answered {
            return page.go(&format!("/checkout?claim={claim}"));
        }
        page.tell(answered, "You are in line.")?;
        page.go(&here)
    })
    .await
}

/// `POST /sales/{id}/reminder`
pub async fn remind(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| act(page, "reminder", &json!({}), "You will be reminded.").await).await
}

/// `POST /sales/{id}/leave`
pub async fn leave(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        page.form()?;
        let here = format!("/sales/{}", page.param(0));
        page.api().delete(&format!("/api/flash-sales/{}/ticket", page.param(0))).await?;
        page.visit.say("You have left the line.");
        page.go(&here)
    })
    .await
}

/// `POST /sales/{id}/give-up`
pub async fn give_up(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let here = format!("/sales/{}", page.param(0));
        let path = format!("/api/flash-sales/{}/claims/{}", page.param(0), form.get("claim"));
        match page.api().delete(&path).await {
            Ok(()) => page.visit.say("You have given it up."),
            Err(refused) if [404, 409].contains(&refused.status) => page.visit.say(&refused.reason()),
            Err(refused) => return Err(refused.into()),
        }
        page.go(&here)
    })
    .await
}
