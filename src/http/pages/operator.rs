//! Operation: the cluster, one entity's life, sales to approve, accounts and their roles.

use std::collections::BTreeMap;
use std::sync::Arc;

use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Door;
use super::super::answer::Answer;
use super::super::problem::Problem;
use super::super::request::{Query, Request};
use super::api::Refused;
use super::layout::{Shell, tabs, when};
use super::sales::Sale;
use super::shopper::{Listed, field};
use super::traffic::{self, Traffic};
use super::{Page, shown};
use crate::integrations::http_client::percent_encoded;

const KINDS: [&str; 9] = ["order", "cart", "payment", "inventory", "flash_sale", "product", "shop", "user", "request"];
/// Of an entity with a long life the newest records are listed.
const RECORDS_MAX: usize = 200;
/// The busiest routes are listed.
const ROUTES_MAX: usize = 20;
const CAN_BE_TUNED: [&str; 4] = ["draft", "scheduled", "active", "paused"];
/// As many nodes have a colour of their own in `style.css`.
const OWNERS: usize = 8;

#[derive(Deserialize)]
struct Cluster {
    members: Vec<Member>,
    residents: BTreeMap<String, u64>,
    set_aside: Vec<SetAside>,
    waiting: u64,
    agenda: u64,
    live_sessions: u64,
}

#[derive(Deserialize)]
struct Member {
    name: String,
    #[serde(rename = "self")]
    is_self: bool,
    state: String,
    http: String,
    version: String,
    owned: Vec<u8>,
    handovers: Option<u64>,
    residents: Option<BTreeMap<String, u64>>,
}

#[derive(Deserialize)]
struct SetAside {
    kind: String,
    id: String,
    reason: String,
}

#[derive(Deserialize)]
struct Inspection {
    version: u64,
    state: Value,
    history: Vec<Value>,
}

#[derive(Deserialize)]
struct Account {
    id: String,
    email: String,
    name: String,
    roles: Vec<String>,
}

/// The pages for those who run it.
fn places(here: &str) -> Markup {
    let places = [
        ("/operator", "Cluster"),
        ("/operator/entities", "Entities"),
        ("/operator/sales", "Flash sales"),
        ("/operator/users", "Accounts"),
        ("/metrics", "Metrics"),
    ];
    tabs("Operation", &places, here)
}

/// `GET /operator`
pub async fn home(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let fields = page.form_fields()?;
        let cluster: Cluster = page.api().get("/api/cluster").await?;
        let content = html! {
            h1 { "Operation" }
            (places("/operator"))
            section #cluster data-refresh aria-labelledby="cluster-title" {
                h2 #cluster-title { "The cluster" }
                (overview(&cluster))
            }
            section #set-aside data-refresh aria-labelledby="aside-title" {
                h2 #aside-title { "Set aside" }
                (set_aside(&cluster.set_aside, &fields))
            }
            section #traffic data-refresh aria-labelledby="traffic-title" {
                h2 #traffic-title data-node=(page.door.config.node_name) { "What " (page.door.config.node_name) " answers" }
                (answered(&page.door.metrics.exposition()))
            }
            (limits(page))
        };
        page.show(&Shell::live("Operation", "operator.js"), &content)
    })
    .await
}

fn overview(cluster: &Cluster) -> Markup {
    let kinds: Vec<&String> = cluster.residents.keys().collect();
    let handovers: u64 = cluster.members.iter().filter_map(|member| member.handovers).sum();
    html! {
        dl .figures {
            div { dt { "Nodes" } dd { (cluster.members.len()) } }
            div { dt { "Entities in memory" } dd { (cluster.residents.values().sum::<u64>()) } }
            div { dt { "Handed over" } dd #handed-over { (handovers) } }
            div { dt { "Commands that wait" } dd { (cluster.waiting) } }
            div { dt { "Owe or wait for a time" } dd { (cluster.agenda) } }
            div { dt { "Live connections" } dd { (cluster.live_sessions) } }
        }
        div .map {
            (map(&cluster.members))
            div .scroll tabindex="0" role="region" aria-label="Nodes" {
                table {
                    thead { tr {
                        @for name in ["Node", "State", "Version", "Partitions", "Handed over"] { th scope="col" { (name) } }
                        @for kind in &kinds { th scope="col" { (kind.replace('_', " ")) } }
                    } }
                    tbody { @for (index, member) in cluster.members.iter().enumerate() { tr {
                        th scope="row" {
                            span class=(format!("mark owner-{}", index % OWNERS)) {} " " (member.name) @if member.is_self { " (this one)" }
                            br; span .from { (member.http) }
                        }
                        td { (member.state) }
                        td { (member.version) }
                        td { (member.owned.len()) }
                        td { @match member.handovers { None => "?", Some(handovers) => (handovers) } }
                        @for kind in &kinds {
                            td { @match &member.residents { None => "?", Some(residents) => (residents.get(*kind).copied().unwrap_or(0)) } }
                        }
                    } } }
                }
            }
        }
    }
}

/// Each partition in the colour of its owner.
fn map(members: &[Member]) -> Markup {
    let cells = |member: &Member| -> String {
        member.owned.iter().map(|partition| format!("M{} {}h9v9h-9z", partition % 16 * 10, partition / 16 * 10)).collect()
    };
    let told: Vec<String> = members.iter().map(|member| format!("{} owns {}", member.name, member.owned.len())).collect();
    html! {
        svg .partitions viewBox="0 0 159 159" role="img" aria-label=(format!("256 partitions: {}", told.join(", "))) {
            @for (index, member) in members.iter().enumerate() { path class=(format!("owner-{}", index % OWNERS)) d=(cells(member)) {} }
        }
    }
}

fn set_aside(entities: &[SetAside], fields: &Markup) -> Markup {
    html! {
        @if entities.is_empty() { p { "No entity is: none has failed too often." } }
        ul .lines { @for aside in entities { li .line.row {
            span { a href=(entity_path(&aside.kind, &aside.id)) { (aside.kind) " " (aside.id) } ": " (aside.reason) }
            form method="post" action="/operator/release" {
                (fields)
                input type="hidden" name="kind" value=(aside.kind); input type="hidden" name="id" value=(aside.id);
                button type="submit" { "Take it back" span .hidden { " " (aside.kind) " " (aside.id) } }
            }
        } } }
    }
}

/// Rates are reckoned by the page's script, between one look and the next.
fn answered(exposition: &str) -> Markup {
    let by_route = traffic::of(exposition);
    let mut rows: Vec<(&String, &Traffic)> = by_route.iter().filter(|(_, traffic)| traffic.requests > 0).collect();
    rows.sort_by_key(|(_, traffic)| std::cmp::Reverse(traffic.requests));
    let total: u64 = rows.iter().map(|(_, traffic)| traffic.requests).sum();
    let ms = |traffic: &Traffic, share| traffic.quantile_ms(share).map_or_else(|| "longer".to_owned(), |ms| format!("{ms} ms"));
    html! {
        p { (total) " requests since its start, " strong data-rate="all" data-count=(total) { "…" } " a second now." }
        div .scroll tabindex="0" role="region" aria-label="Requests by route" {
            table {
                thead { tr { @for name in ["Route", "Requests", "A second", "Half within", "99 % within", "Failed"] { th scope="col" { (name) } } } }
                tbody { @for (route, traffic) in rows.iter().take(ROUTES_MAX) { tr {
                    th scope="row" { (route) }
                    td { (traffic.requests) }
                    td data-rate=(route) data-count=(traffic.requests) { "…" }
                    td { (ms(traffic, 0.5)) }
                    td { (ms(traffic, 0.99)) }
                    td { (traffic.failed) }
                } } }
            }
        }
    }
}

/// What one caller may ask of this node.
fn limits(page: &Page) -> Markup {
    let quotas = &page.door.config.quotas;
    let rows = [
        ("Reads", quotas.reads.to_string()),
        ("Writes", quotas.writes.to_string()),
        ("Checkouts", quotas.checkout.to_string()),
        ("Claims", quotas.claims.to_string()),
        ("Passwords", quotas.login.to_string()),
        ("Operator", quotas.operator.to_string()),
    ];
    html! {
        section aria-labelledby="limits-title" {
            h2 #limits-title { "Limits of one caller at each node" }
            dl .figures {
                @for (name, quota) in &rows {
                    div {
                        dt { (name) }
                        dd { @if let Some((rate, burst)) = quota.split_once(':') { (rate) " " small .from { (burst) " at once" } } @else { "none" } }
                    }
                }
            }
        }
    }
}

fn entity_path(kind: &str, id: &str) -> String {
    format!("/operator/entities?kind={}&id={}", percent_encoded(kind), percent_encoded(id))
}

/// `POST /operator/release`
pub async fn release(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let path =
            format!("/api/cluster/set-aside/{}/{}/release", percent_encoded(form.get("kind")), percent_encoded(form.get("id")));
        let outcome = page.api().post::<Value>(&path, form.get("key"), &json!({})).await;
        page.tell(outcome, "It is taken back.")?;
        page.go("/operator")
    })
    .await
}

/// `GET /operator/entities`
pub async fn entities(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let text = page.request.query.clone();
        let query = Query::parse(&text, &["kind", "id", "until"])?;
        let (kind, id) = (query.get("kind").unwrap_or("order"), query.get("id").unwrap_or_default());
        let path = format!("/api/cluster/entities/{}/{}", percent_encoded(kind), percent_encoded(id));
        let whole = if id.is_empty() { None } else { page.api().find::<Inspection>(&path).await? };
        let until = query.parsed::<u64>("until", "a version")?.filter(|until| *until > 0);
        let then = match (&whole, until) {
            (Some(whole), Some(until)) if until < whole.version => {
                page.api().find::<Inspection>(&format!("{path}?until={until}")).await?
            }
            _ => None,
        };
        let content = html! {
            h1 { "Operation" }
            (places("/operator/entities"))
            form .filters.panel method="get" action="/operator/entities" {
                p .field { label for="kind" { "Kind" } select #kind name="kind" { @for known in KINDS { option value=(known) selected[known == kind] { (known) } } } }
                (field("id", "Id", id, None))
                button type="submit" { "Show" }
            }
            @match &whole {
                None => @if !id.is_empty() { p .error role="alert" { "The journal knows no " (kind) " of this id." } },
                Some(whole) => (life(kind, id, whole, then.as_ref())),
            }
        };
        page.show(&Shell::live("Entities", "slider.js"), &content)
    })
    .await
}

fn life(kind: &str, id: &str, whole: &Inspection, then: Option<&Inspection>) -> Markup {
    let seen = then.unwrap_or(whole);
    let state = serde_json::to_string_pretty(&seen.state).unwrap_or_default();
    let first = whole.history.len().saturating_sub(RECORDS_MAX);
    let text = |record: &Value, name: &str| record[name].as_str().unwrap_or_default().to_owned();
    html! {
        form .slider.panel method="get" action="/operator/entities" {
            input type="hidden" name="kind" value=(kind);
            input type="hidden" name="id" value=(id);
            p .field {
                label for="until" { "At version " output data-live="version" { (seen.version) } " of " (whole.version) }
                input #until type="range" name="until" min="1" max=(whole.version) value=(seen.version);
            }
            noscript { button type="submit" { "Show it as it was" } }
        }
        div .split.even {
        div #state {
            h2 { "State" }
            pre .scroll tabindex="0" role="region" aria-label="State" { (state) }
        }
        div {
        h2 { "What happened" }
        @if first > 0 { p { "The newest " (RECORDS_MAX) " of " (whole.history.len()) " records." } }
        ol .timeline start=(first + 1) { @for record in whole.history.iter().skip(first) {
            li data-version=(record["entityversion"]) aria-current=[(record["entityversion"] == seen.version).then_some("step")] {
                (when(&text(record, "time"))) " " strong { (text(record, "type")) } " by " (text(record, "askedby"))
                details { summary { "Data" } pre .scroll tabindex="0" role="region" aria-label=(format!("Data of record {}", record["entityversion"])) { (serde_json::to_string_pretty(&record["data"]).unwrap_or_default()) } }
            }
        } }
        }
        }
    }
}

/// `GET /operator/sales`
pub async fn sales(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let fields = page.form_fields()?;
        let api = page.api();
        let listed: Listed<Sale> = api.get("/api/flash-sales?limit=100").await?;
        // A list does not say what is set of a sale that can still be tuned.
        let told = listed.items.into_iter().map(async |sale| match CAN_BE_TUNED.contains(&sale.status.as_str()) {
            true => api.get::<Sale>(&format!("/api/flash-sales/{}", sale.id)).await,
            false => Ok(sale),
        });
        let sales: Result<Vec<Sale>, Refused> = futures_util::future::join_all(told).await.into_iter().collect();
        let sales = sales?;
        let content = html! {
            h1 { "Operation" }
            (places("/operator/sales"))
            ul .lines { @for sale in &sales { li { article .line {
                h2 { a href=(format!("/vendor/sales/{}", sale.id)) { (sale.title) " for " (sale.price) } }
                p { span .badge { (sale.status) } " " (sale.quantity) " units, from " (when(&sale.starts_at)) " to " (when(&sale.ends_at)) }
                @if sale.status == "draft" {
                    form method="post" action=(format!("/vendor/sales/{}/approve", sale.id)) { (fields) button .main type="submit" { "Approve" span .hidden { " " (sale.title) } } }
                }
                @if CAN_BE_TUNED.contains(&sale.status.as_str()) {
                    form .row method="post" action=(format!("/operator/sales/{}", sale.id)) {
                        (fields)
                        p .field {
                            label for=(format!("rate-{}", sale.id)) { "Admissions a second (empty: no limit)" }
                            input id=(format!("rate-{}", sale.id)) type="number" name="rate" min="1" value=[sale.admissions_per_second];
                        }
                        p .field {
                            label for=(format!("bits-{}", sale.id)) { "Bits of work" }
                            input id=(format!("bits-{}", sale.id)) type="number" name="bits" min="0" max="28" value=(sale.challenge_bits);
                        }
                        button type="submit" { "Set" span .hidden { " for " (sale.title) } }
                    }
                }
            } } } }
        };
        page.show(&Shell::plain("Flash sales"), &content)
    })
    .await
}

/// `POST /operator/sales/{id}`
pub async fn tune(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let rate = if form.get("rate").is_empty() { Value::Null } else { form.number("rate") };
        let body = json!({ "admissions_per_second": rate, "challenge_bits": form.number("bits") });
        let path = format!("/api/flash-sales/{}", page.param(0));
        let outcome = page.api().patch::<Value>(&path, &body).await;
        page.tell(outcome, "It is set.")?;
        page.go("/operator/sales")
    })
    .await
}

/// `GET /operator/users`
pub async fn users(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let text = page.request.query.clone();
        let query = Query::parse(&text, &["email"])?;
        let email = query.get("email").unwrap_or_default().trim().to_owned();
        let fields = page.form_fields()?;
        let found = match email.is_empty() {
            true => Ok(None),
            false => page.api().find::<Account>(&format!("/api/users?email={}", percent_encoded(&email))).await,
        };
        let (found, wrong) = match found {
            Ok(found) => (found, None),
            Err(refused) if refused.status == 400 => (None, Some(refused)),
            Err(refused) => return Err(refused.into()),
        };
        let is_admin = |account: &Account| account.roles.iter().any(|role| role == "admin");
        let content = html! {
            h1 { "Operation" }
            (places("/operator/users"))
            form .filters.panel method="get" action="/operator/users" {
                (field("email", "E-mail address", &email, wrong.as_ref().map(|_| "this cannot be an e-mail address")))
                button type="submit" { "Find" }
            }
            @match &found {
                None => @if !email.is_empty() && wrong.is_none() { p role="status" { "Nobody has this address." } },
                Some(account) => article .panel {
                    h2 { (account.name) }
                    p { (account.email) " " span .id { (account.id) } }
                    p { @for role in &account.roles { span .badge { (role) } " " } }
                    form method="post" action=(format!("/operator/users/{}/admin", account.id)) {
                        (fields)
                        input type="hidden" name="email" value=(account.email);
                        @if is_admin(account) { button type="submit" name="act" value="revoke" { "Not an admin any more" } }
                        @else { button type="submit" name="act" value="grant" { "Make an admin" } }
                    }
                },
            }
        };
        page.show(&Shell::plain("Accounts"), &content)
    })
    .await
}

/// `POST /operator/users/{id}/admin`
pub async fn change_admin(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let path = format!("/api/users/{}/roles", percent_encoded(page.param(0)));
        let outcome: Result<(), Refused> = match form.get("act") {
            "revoke" => page.api().delete(&format!("{path}/admin")).await,
            _ => page.api().post::<Value>(&path, form.get("key"), &json!({ "role": "admin" })).await.map(drop),
        };
        page.tell(outcome, "Done.")?;
        page.go(&format!("/operator/users?email={}", percent_encoded(form.get("email"))))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_can_be_taken_back() {
        let aside = SetAside { kind: "order".into(), id: "ord_1".into(), reason: "it died <5> times".into() };
        let text = set_aside(&[aside], &html! { input name="form_token"; }).into_string();
        for part in [
            "/operator/entities?kind=order&amp;id=ord_1",
            "it died &lt;5&gt; times",
            "action=\"/operator/release\"",
            "name=\"form_token\"",
            "name=\"kind\" value=\"order\"",
            "name=\"id\" value=\"ord_1\"",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_map_shows_each_partition_once_in_the_colour_of_its_owner() {
        let member = |name: &str, owned: Vec<u8>| Member {
            name: name.into(),
            is_self: false,
            state: "active".into(),
            http: String::new(),
            version: String::new(),
            owned,
            handovers: None,
            residents: None,
        };
        let text = map(&[member("a", (0..=99).collect()), member("b", (100..=255).collect())]).into_string();
        assert!(text.contains("a owns 100, b owns 156") && text.contains("class=\"owner-1\""), "{text}");
        assert_eq!((text.matches('M').count(), text.matches("M150 150h").count()), (256, 1), "{text}");
    }
}
