//! Orders: placed, looked at, cancelled, shipped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use warp::http::StatusCode;

use super::answer::Answer;
use super::carts::within;
use super::offers::offers;
use super::problem::{FieldError, Problem};
use super::products::await_position;
use super::request::{Query, Request, object, object_or_null, objects, present};
use super::{Door, carts, claims, sealing};
use crate::actors::credential::Credential;
use crate::actors::permissions::Permission;
use crate::actors::{Failure, shown};
use crate::domain::cart::Offer;
use crate::domain::order::{
    Address, Command, Draft, LINES_MAX, Line, Outcome, QUANTITY_MAX, Reason, Reply, Short, State, Status,
};
use crate::domain::payment::Method;
use crate::domain::{Entity, Money, Order, ids};
use crate::persistence::record::Payload;
use crate::persistence::{EntityKey, Position, Version};
use crate::read_models::{OrderQuery, Whose};

/// For an order whose node is just lost to be placed on another.
const APPEARS_WAIT: Duration = Duration::from_secs(5);
const REASON_CHARS_MAX: usize = 200;
const REASON_DEFAULT: &str = "cancelled by the customer";
const CARRIER_CHARS_MAX: usize = 100;
pub(super) const STATUSES: [&str; 8] =
    ["pending", "reserved", "paid", "shipped", "delivered", "cancelled", "payment_failed", "refunded"];

/// What every purchase says, with or without a cart.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Purchase")]
pub struct PurchaseBody {
    #[serde(deserialize_with = "object")]
    pub payment: Method,
    #[serde(deserialize_with = "object")]
    pub shipping_address: Address,
    /// Where the confirmation goes. A guest must give one; for an account it is its own address unless another is given.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "String", length(max = Address::FIELD_CHARS_MAX), regex(pattern = "@"))]
    pub email: Option<String>,
    /// Refused with 409 if the total is another one.
    #[serde(default, deserialize_with = "object_or_null")]
    pub expected_total: Option<Money>,
    /// Not offered yet.
    #[serde(default)]
    #[schemars(with = "()")]
    coupon_code: Option<String>,
    /// Not offered yet.
    #[serde(default)]
    #[schemars(with = "()")]
    promotion_code: Option<String>,
    /// A claim in a flash sale, to be bought along.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "String", regex(pattern = ids::CLAIM_PATTERN))]
    pub claim_id: Option<String>,
}

/// Items, a claim in a flash sale, or both.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewOrder")]
#[schemars(extend("anyOf" = [
    { "required": ["items"], "properties": { "items": { "minItems": 1 } } },
    { "required": ["claim_id"] },
]))]
pub(super) struct OrderBody {
    #[schemars(length(max = LINES_MAX))]
    #[serde(default, deserialize_with = "objects")]
    items: Vec<ItemBody>,
    /// A claim in a flash sale. Its units are bought at the sale's price, by the account or the guest that has it.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "String", regex(pattern = ids::CLAIM_PATTERN))]
    claim_id: Option<String>,
    #[serde(deserialize_with = "object")]
    payment: Method,
    #[serde(deserialize_with = "object")]
    shipping_address: Address,
    /// Where the confirmation goes. A guest must give one; for an account it is its own address unless another is given.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "String", length(max = Address::FIELD_CHARS_MAX), regex(pattern = "@"))]
    email: Option<String>,
    /// Refused with 409 if the total is another one.
    #[serde(default, deserialize_with = "object_or_null")]
    expected_total: Option<Money>,
    /// Not offered yet.
    #[serde(default, alias = "couponCode")]
    #[schemars(with = "()")]
    coupon_code: Option<String>,
    /// Not offered yet.
    #[serde(default, alias = "promotionCode")]
    #[schemars(with = "()")]
    promotion_code: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewOrderLine")]
pub(super) struct ItemBody {
    #[schemars(length(max = ids::SKU_CHARS_MAX), regex(pattern = ids::SKU_PATTERN))]
    sku: String,
    #[schemars(range(min = 1, max = QUANTITY_MAX))]
    quantity: u32,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Cancellation")]
pub(super) struct CancelBody {
    #[serde(default)]
    #[schemars(length(max = REASON_CHARS_MAX), regex(pattern = r"\S"))]
    reason: Option<String>,
}

impl CancelBody {
    pub(super) fn reason(self, default: &str) -> Result<String, Problem> {
        let reason = self.reason.unwrap_or_else(|| default.into());
        if reason.trim().is_empty() || reason.chars().count() > REASON_CHARS_MAX {
            return Err(Problem::bad_body("/reason", "say why, in at most 200 characters, or leave it out"));
        }
        Ok(reason)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "OrderClaim")]
pub(super) struct ClaimBody {
    /// The token of the guest's order.
    token: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewShipment")]
pub(super) struct ShipmentBody {
    #[schemars(length(max = CARRIER_CHARS_MAX), regex(pattern = r"\S"))]
    carrier: String,
    #[serde(default)]
    #[schemars(length(min = 1, max = CARRIER_CHARS_MAX))]
    tracking_number: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OrderHistory")]
pub(super) struct History {
    items: Vec<shown::HistoryShown>,
    next_cursor: Option<String>,
}

impl PurchaseBody {
    /// What this node does not offer yet is refused, and not ignored.
    pub fn check(&self) -> Result<(), Problem> {
        check_expected(self.expected_total)?;
        no_codes("/coupon_code", self.coupon_code.as_ref())?;
        no_codes("/promotion_code", self.promotion_code.as_ref())
    }
}

fn check_expected(total: Option<Money>) -> Result<(), Problem> {
    match total {
        Some(total) if total.amount < 0 => Err(Problem::bad_body("/expected_total/amount", "must not be negative")),
        _ => Ok(()),
    }
}

fn no_codes(pointer: &str, code: Option<&String>) -> Result<(), Problem> {
    code.map_or(Ok(()), |_| Err(Problem::not_offered(pointer)))
}

pub async fn list(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let query = Query::parse(&request.query, &["status", "shop", "limit", "cursor"])?;
    let reaches = request.credential.reaches(Permission::OrderList);
    let whose = match query.get("shop") {
        Some(shop) if reaches.all || (reaches.shop && request.credential.shop() == Some(shop)) => Whose::Shops(shop.to_owned()),
        Some(_) => return Err(Problem::not_found()),
        None if reaches.all => Whose::Everybodys,
        None => Whose::Accounts(request.account()?.user.to_string()),
    };
    if query.get("status").is_some_and(|status| !STATUSES.contains(&status)) {
        return Err(Problem::bad_parameter("status", format!("expected one of {}", STATUSES.join(", "))));
    }
    let orders = OrderQuery { whose, status: query.owned("status"), limit: query.limit()?, cursor: query.cursor()? };
    await_position(&door, &request).await?;
    Answer::json(StatusCode::OK, &door.read_models.orders(orders).await?)
}

pub async fn get(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::ORDER)?;
    let (mut state, version) = door.runtime.view::<Order, _>(id, |state, version| (state.clone(), version)).await?;
    if let Some(draft) = &mut state.draft {
        show_own_part(draft, &request.credential);
    }
    let answer = show(&door, id, &state, version, StatusCode::OK, None).await?.ok_or_else(Problem::not_found)?;
    if request.has_version(version) {
        return Ok(Answer::empty(StatusCode::NOT_MODIFIED).etag(version));
    }
    Ok(answer)
}

/// The order as an answer; `None` when there is none. `token` is shown to the guest who has just made it.
async fn look(door: &Door, id: &str, status: StatusCode, token: Option<String>) -> Result<Option<(Answer, Version)>, Problem> {
    let (state, version) = door.runtime.view::<Order, _>(id, |state, version| (state.clone(), version)).await?;
    Ok(show(door, id, &state, version, status, token).await?.map(|answer| (answer, version)))
}

/// The order for somebody who may know whom it is for; `None` before it was placed.
async fn show(
    door: &Door,
    id: &str,
    state: &State,
    version: Version,
    status: StatusCode,
    token: Option<String>,
) -> Result<Option<Answer>, Problem> {
    let (Some(mut order), Some(draft)) = (shown::order(id, state), &state.draft) else { return Ok(None) };
    order.token = token.as_deref();
    if let Some(contact) = sealing::open_contact(door, &draft.contact).await? {
        order.email = contact.email;
        order.shipping_address = Some(contact.shipping_address);
    }
    Ok(Some(Answer::json(status, &order)?.etag(version)))
}

pub async fn exists(door: &Door, id: &str) -> Result<bool, Failure> {
    door.runtime.view::<Order, _>(id, |state, _| state.draft.is_some()).await
}

/// Waits for an order that its cart is about to place, and not for ever: it may never come.
pub async fn appears(door: &Door, id: &str) -> Result<(), Failure> {
    let placed = |state: &State, _| state.draft.is_some().then_some(());
    match door.runtime.watch::<Order, _>(id, APPEARS_WAIT, placed).await {
        Ok(_) | Err(Failure::TimedOut) => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// The answer to a purchase that has come to its end.
pub async fn concluded(door: &Door, outcome: Outcome, token: Option<String>, position: Position) -> Result<Answer, Problem> {
    if let (Status::Cancelled, Some(Reason::OutOfStock { short })) = (outcome.status, outcome.reason) {
        return Err(match claim_refused(door, &outcome.order, &short).await? {
            true => Problem::claim_over().of_order(&outcome.order),
            false => Problem::out_of_stock(&outcome.order, short),
        });
    }
    let Some((answer, _)) = look(door, &outcome.order, StatusCode::CREATED, token).await? else {
        return Err(Problem::internal("an order is settled and does not exist", &outcome.order));
    };
    Ok(answer.location(&format!("/api/orders/{}", outcome.order)).position(position))
}

/// Whether what an order could not have are units that its buyer had claimed.
async fn claim_refused(door: &Door, id: &str, short: &[Short]) -> Result<bool, Failure> {
    let skus: Vec<String> = short.iter().map(|short| short.sku.clone()).collect();
    let look = move |state: &State, _| {
        let lines = state.draft.iter().flat_map(|draft| &draft.lines);
        lines.filter(|line| line.claim.is_some()).any(|line| skus.contains(&line.sku))
    };
    door.runtime.view::<Order, _>(id, look).await
}

/// Waits for the order to be paid, and answers with it. For whoever waits for the end of a purchase anyway: to be paid is
/// seen here a write before the cart hears of it.
pub async fn when_paid(door: &Door, id: &str) -> Result<Answer, Problem> {
    let paid = |state: &State, version| (state.status == Status::Paid).then(|| (state.clone(), version));
    let ((state, version), position) = door.runtime.watch::<Order, _>(id, door.config.settle_wait, paid).await?;
    let answer = show(door, id, &state, version, StatusCode::CREATED, None).await?.ok_or_else(Problem::not_found)?;
    Ok(answer.location(&format!("/api/orders/{id}")).position(position))
}

/// The answer to a purchase that takes longer, of an order that exists.
pub async fn accepted(door: &Door, id: &str, token: Option<String>) -> Result<Answer, Problem> {
    let (answer, _) = look(door, id, StatusCode::ACCEPTED, token).await?.ok_or_else(Problem::outcome_unknown)?;
    // What was written for it so far lies before the journal's end.
    let end = door.runtime.journal().end().await.map_err(Failure::from)?;
    Ok(answer.location(&format!("/api/orders/{id}")).position(end))
}

pub async fn create(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let body: OrderBody = request.json()?;
    check_expected(body.expected_total)?;
    no_codes("/coupon_code", body.coupon_code.as_ref())?;
    no_codes("/promotion_code", body.promotion_code.as_ref())?;
    let quantities = match (&body.claim_id, body.items.as_slice()) {
        (Some(_), []) => BTreeMap::new(),
        (_, items) => quantities(items)?,
    };
    let id = request.new_id(ids::ORDER);
    let (owner, token) = match &body.claim_id {
        Some(_) => (claims::buyer(&request)?, None),
        None => carts::owner(&door, &request)?,
    };
    let offers = offers(&door, quantities.keys().map(|sku| (*sku).to_owned())).await?;
    let missing: Vec<_> = body
        .items
        .iter()
        .enumerate()
        .filter(|(_, item)| !offers.contains_key(&item.sku))
        .map(|(index, item)| (format!("/items/{index}/sku"), item.sku.clone()))
        .collect();
    if !missing.is_empty() {
        return Err(Problem::not_for_sale(missing));
    }
    let mut lines = Vec::with_capacity(offers.len());
    for (sku, offer) in offers {
        let quantity = quantities.get(sku.as_str()).copied().unwrap_or_default();
        let total = offer.price.times(quantity).map_err(|error| Problem::bad_body("/items", error.to_string()))?;
        let Offer { product, shop, title, price: unit_price } = offer;
        lines.push(Line { sku, product, shop, title, quantity, unit_price, total, claim: None });
    }
    if let Some(claim_id) = &body.claim_id {
        let claimed = claims::line(&door, claim_id, &owner, &id).await?;
        if lines.iter().any(|line| line.sku == claimed.sku) {
            return Err(Problem::claimed_twice());
        }
        lines.push(claimed);
    }
    let Some(currency) = lines.first().map(|line| line.total.currency) else {
        return Err(Problem::bad_body("/items", "must not be empty"));
    };
    if let Some(other) = lines.iter().find(|line| line.total.currency != currency) {
        return Err(Problem::currencies_differ(format!("{} is sold in {}, not {currency}", other.sku, other.total.currency)));
    }
    let total = Money::sum(currency, lines.iter().map(|line| line.total))
        .map_err(|error| Problem::bad_body("/items", error.to_string()))?;
    if let Some(expected) = body.expected_total.filter(|expected| *expected != total) {
        return Err(Problem::total_differs(expected, total));
    }
    let contact = sealing::seal_contact(&door, &request.credential, &owner, body.email, body.shipping_address).await?;
    let draft = Draft { owner, cart: None, lines, total, contact, payment: body.payment };
    let asked = door.runtime.ask::<Order>(&id, Command::Place { draft }, request.caller()?);
    match within(door.config.settle_wait, asked).await {
        Some(Ok(answered)) => {
            let Reply::Concluded(outcome) = answered.reply else {
                return Err(Problem::internal("a placed order got the answer to something else", &id));
            };
            concluded(&door, outcome, token, answered.position).await
        }
        Some(Err(error)) => Err(error.into()),
        None => accepted(&door, &id, token).await,
    }
}

/// How much of each sku is asked for, over all items.
fn quantities(items: &[ItemBody]) -> Result<BTreeMap<&str, u32>, Problem> {
    let mut errors = Vec::new();
    if items.is_empty() || items.len() > LINES_MAX {
        errors.push(FieldError::new("/items", format!("an order has 1 to {LINES_MAX} items")));
    }
    let mut quantities: BTreeMap<&str, u32> = BTreeMap::new();
    let mut too_many = None;
    for (index, item) in items.iter().enumerate().take(LINES_MAX) {
        if !ids::is_sku(&item.sku) {
            errors.push(FieldError::new(format!("/items/{index}/sku"), "this cannot be a sku"));
            continue;
        }
        if !(1..=QUANTITY_MAX).contains(&item.quantity) {
            errors.push(FieldError::new(format!("/items/{index}/quantity"), format!("must be between 1 and {QUANTITY_MAX}")));
        }
        let sum = quantities.entry(&item.sku).or_default();
        *sum = sum.saturating_add(item.quantity);
        if *sum > QUANTITY_MAX {
            too_many.get_or_insert(index);
        }
    }
    match too_many {
        _ if !errors.is_empty() => Err(Problem::bad_fields(errors)),
        Some(index) => Err(Problem::contradictory(
            &format!("/items/{index}/quantity"),
            format!("with the items of the same sku before it, this is more than {QUANTITY_MAX}"),
        )),
        None => Ok(quantities),
    }
}

pub async fn history(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::ORDER)?;
    let query = Query::parse(&request.query, &["limit", "cursor"])?;
    let after: Version = query.parsed("cursor", "a cursor that this list gave out")?.unwrap_or(0);
    let limit = query.limit()?;
    if !exists(&door, id).await? {
        return Err(Problem::not_found());
    }
    let key = EntityKey::new(Order::KIND, id);
    // Each batch holds at least one record: one batch more than the limit shows whether there are more records.
    let batches = door
        .runtime
        .journal()
        .read(&key, after.saturating_add(1), Position::default(), limit + 1)
        .await
        .map_err(Failure::from)?;
    let mut items = Vec::new();
    for batch in &batches {
        let unreadable = |error: serde_json::Error| Problem::internal("a record cannot be read", &error);
        let payload = Payload::parse(&batch.payload).map_err(unreadable)?;
        for record in payload.events.iter().filter(|record| record.version > after) {
            items.push(shown::history(Order::KIND, record).map_err(unreadable)?);
        }
    }
    let more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| more).map(|item| item.version.to_string());
    Answer::json(StatusCode::OK, &History { items, next_cursor })
}

pub async fn cancel(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::ORDER)?;
    let reason = request.json::<CancelBody>()?.reason(REASON_DEFAULT)?;
    let answered = door.runtime.ask::<Order>(id, Command::Cancel { reason }, request.caller()?).await?;
    changed(&door, id, StatusCode::OK, answered.position).await
}

pub async fn ship(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::ORDER)?;
    let ShipmentBody { carrier, tracking_number } = request.json()?;
    if carrier.trim().is_empty() || carrier.chars().count() > CARRIER_CHARS_MAX {
        return Err(Problem::bad_body("/carrier", "name the carrier, in at most 100 characters"));
    }
    if tracking_number.as_ref().is_some_and(|number| !(1..=CARRIER_CHARS_MAX).contains(&number.chars().count())) {
        return Err(Problem::bad_body("/tracking_number", "1 to 100 characters, or leave it out"));
    }
    let command = Command::Ship { carrier, tracking_number };
    let answered = door.runtime.ask::<Order>(id, command, request.caller()?).await?;
    changed(&door, id, StatusCode::CREATED, answered.position).await
}

pub async fn deliver(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::ORDER)?;
    let answered = door.runtime.ask::<Order>(id, Command::Deliver, request.caller()?).await?;
    changed(&door, id, StatusCode::OK, answered.position).await
}

/// A guest's order becomes the caller's account's. Whoever bears its token may do that, once.
pub async fn claim(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::ORDER)?;
    let ClaimBody { token } = request.json()?;
    let account = request.account()?;
    let (guest, own) = (Credential::guest(&token), request.credential.clone());
    let look = move |state: &State, _| {
        let draft = state.draft.as_ref()?;
        (guest.owns(&draft.owner) || own.owns(&draft.owner)).then(|| draft.contact.clone())
    };
    let contact = door.runtime.view::<Order, _>(id, look).await?.ok_or_else(Problem::not_found)?;
    let key = sealing::key_of(&request.credential, door.now());
    let contact = sealing::seal_anew(&door, &key, &contact).await?.unwrap_or(contact);
    let command = Command::Claim { user: account.user.to_string(), contact };
    let answered = door.runtime.ask::<Order>(id, command, request.caller()?).await?;
    changed(&door, id, StatusCode::OK, answered.position).await
}

/// A vendor sees of an order what its shop sells.
fn show_own_part(draft: &mut Draft, caller: &Credential) {
    let whole = caller.reaches(Permission::OrderRead).all || caller.owns(&draft.owner);
    let Some(shop) = caller.shop().filter(|_| !whole) else { return };
    draft.lines.retain(|line| line.shop.as_deref() == Some(shop));
    let part = Money::sum(draft.total.currency, draft.lines.iter().map(|line| line.total));
    draft.total = part.unwrap_or(draft.total);
}

async fn changed(door: &Door, id: &str, status: StatusCode, position: Position) -> Result<Answer, Problem> {
    let (answer, _) = look(door, id, status, None).await?.ok_or_else(Problem::not_found)?;
    Ok(answer.position(position))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::parse_json;

    #[test]
    fn the_same_sku_twice_is_one_line() {
        let item = |sku: &str, quantity| ItemBody { sku: sku.into(), quantity };
        let items = [item("a", 1), item("b", 2), item("a", 3)];
        assert_eq!(quantities(&items).unwrap(), BTreeMap::from([("a", 4), ("b", 2)]));
        for wrong in [vec![], vec![item("a", 0)], vec![item(" a", 1)], vec![item("a", QUANTITY_MAX), item("a", 1)]] {
            assert!(quantities(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_code_that_is_not_offered_is_refused_and_null_is_none() {
        let body = |code: &str| {
            format!(
                r#"{{"payment":{{"provider":"sandbox","token":"tok_ok"}},"coupon_code":{code},"shipping_address":
                {{"name":"n","line1":"l","city":"c","postal_code":"p","country":"DE"}}}}"#
            )
        };
        assert!(parse_json::<PurchaseBody>(body("null").as_bytes()).unwrap().check().is_ok());
        let refused = parse_json::<PurchaseBody>(body("\"X\"").as_bytes()).unwrap().check().unwrap_err();
        assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    }
}
