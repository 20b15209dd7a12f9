//! Flash sales as those see them who make, approve and run them, and as everybody looks at them. Claims are in `claims`.
//!
//! A sale bears no ETag: it changes with every claim. Two who change a draft at once are merged as with products. A sale may
//! have a million claims, so it is only ever asked what it shows ([`look`]), never for its state: on another node that would
//! be carried here.

use std::sync::Arc;

use quick_cache::sync::Cache;
use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use ulid::Ulid;
use warp::http::StatusCode;

use super::Door;
use super::answer::Answer;
use super::offers::offer;
use super::orders::CancelBody;
use super::problem::{FieldError, Problem};
use super::products::await_position;
use super::request::{Query, Request, object, present};
use crate::actors::credential::Credential;
use crate::actors::permissions::Permission;
use crate::actors::{Answered, AskError, Caller, Failure, shown};
use crate::domain::flash_sale::{
    ADMISSION_MS, ADMISSIONS_PER_S_MAX, CHALLENGE_BITS_MAX, CLAIM_MS, Command, Customer, DEADLINE_MS_MAX, DEADLINE_MS_MIN,
    GRACE_MS, PER_CUSTOMER_MAX, QUANTITY_MAX, Rejection, Reply, Shown, Status, Terms, Tuning,
};
use crate::domain::money::AMOUNT_MAX;
use crate::domain::time::SECOND_MS;
use crate::domain::{CommandId, FlashSale, Money, Timestamp, ids};
use crate::persistence::{Position, Version};
use crate::read_models::{Drafts, SaleQuery};

/// How often a change is merged anew because somebody else was first.
const MERGES_MAX: u32 = 8;
const SECONDS_MIN: i64 = DEADLINE_MS_MIN / SECOND_MS;
const SECONDS_MAX: i64 = DEADLINE_MS_MAX / SECOND_MS;
const REASON_DEFAULT: &str = "cancelled by the shop";
pub(super) const STATUSES: [&str; 8] = ["draft", "arming", "scheduled", "active", "paused", "sold_out", "ended", "cancelled"];
/// How long what an operator sets of a sale may be taken for what it was.
const KNOWN_MS: i64 = SECOND_MS;
/// Sales that are remembered; each takes less than a kilobyte.
const KNOWN_MAX: usize = 10_000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewFlashSale")]
pub(super) struct SaleBody {
    #[schemars(length(max = ids::SKU_CHARS_MAX), regex(pattern = ids::SKU_PATTERN))]
    sku: String,
    /// In the currency that the product is sold in.
    #[serde(deserialize_with = "object")]
    price: Money,
    /// Units that are set aside for the sale when it is approved.
    #[schemars(range(min = 1, max = QUANTITY_MAX))]
    quantity: u32,
    #[schemars(range(min = 1, max = PER_CUSTOMER_MAX))]
    per_customer_limit: u32,
    /// Units that can go to one network address; a /64 of IPv6 counts as one.
    #[serde(default)]
    #[schemars(range(min = 1, max = QUANTITY_MAX))]
    per_address_limit: Option<u32>,
    #[serde(deserialize_with = "moment")]
    starts_at: Timestamp,
    #[serde(deserialize_with = "moment")]
    ends_at: Timestamp,
    /// How long a claim can be paid.
    #[serde(default = "claim_seconds")]
    #[schemars(range(min = SECONDS_MIN, max = SECONDS_MAX))]
    claim_seconds: i64,
    /// How long an offer to the next in line can be taken up.
    #[serde(default = "admission_seconds")]
    #[schemars(range(min = SECONDS_MIN, max = SECONDS_MAX))]
    admission_seconds: i64,
    /// How long the place of somebody who is gone is kept.
    #[serde(default = "grace_seconds")]
    #[schemars(range(min = SECONDS_MIN, max = SECONDS_MAX))]
    grace_seconds: i64,
    /// Whether one need not be signed in.
    #[serde(default)]
    guests: bool,
}

fn claim_seconds() -> i64 {
    CLAIM_MS / SECOND_MS
}

fn admission_seconds() -> i64 {
    ADMISSION_MS / SECOND_MS
}

fn grace_seconds() -> i64 {
    GRACE_MS / SECOND_MS
}

/// What is given replaces what was; what is left out stays. The terms of a draft are its vendor's to change, the rate and
/// the challenge an admin's, at any time.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "FlashSalePatch")]
pub(super) struct SalePatch {
    #[serde(default, deserialize_with = "object_present")]
    #[schemars(with = "Money")]
    price: Option<Money>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "u32", range(min = 1, max = QUANTITY_MAX))]
    quantity: Option<u32>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "u32", range(min = 1, max = PER_CUSTOMER_MAX))]
    per_customer_limit: Option<u32>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<u32>", range(min = 1, max = QUANTITY_MAX))]
    per_address_limit: Option<Option<u32>>,
    #[serde(default, deserialize_with = "moment_present")]
    #[schemars(with = "Timestamp")]
    starts_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "moment_present")]
    #[schemars(with = "Timestamp")]
    ends_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "i64", range(min = SECONDS_MIN, max = SECONDS_MAX))]
    claim_seconds: Option<i64>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "i64", range(min = SECONDS_MIN, max = SECONDS_MAX))]
    admission_seconds: Option<i64>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "i64", range(min = SECONDS_MIN, max = SECONDS_MAX))]
    grace_seconds: Option<i64>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "bool")]
    guests: Option<bool>,
    /// `null` is as many as there are units.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<u32>", range(min = 1, max = ADMISSIONS_PER_S_MAX))]
    admissions_per_second: Option<Option<u32>>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "u32", range(min = 0, max = CHALLENGE_BITS_MAX))]
    challenge_bits: Option<u8>,
}

impl SalePatch {
    fn changes_terms(&self) -> bool {
        self.price.is_some()
            || self.quantity.is_some()
            || self.per_customer_limit.is_some()
            || self.per_address_limit.is_some()
            || self.starts_at.is_some()
            || self.ends_at.is_some()
            || self.claim_seconds.is_some()
            || self.admission_seconds.is_some()
            || self.grace_seconds.is_some()
            || self.guests.is_some()
    }

    fn changes_tuning(&self) -> bool {
        self.admissions_per_second.is_some() || self.challenge_bits.is_some()
    }

    fn merge(&self, terms: &mut Terms) {
        fn set<T>(field: &mut T, given: Option<T>) {
            if let Some(given) = given {
                *field = given;
            }
        }
        let ms = |seconds: Option<i64>| seconds.map(|seconds| seconds.saturating_mul(SECOND_MS));
        set(&mut terms.price, self.price);
        set(&mut terms.quantity, self.quantity);
        set(&mut terms.per_customer_limit, self.per_customer_limit);
        set(&mut terms.per_address_limit, self.per_address_limit);
        set(&mut terms.starts_at, self.starts_at);
        set(&mut terms.ends_at, self.ends_at);
        set(&mut terms.claim_ms, ms(self.claim_seconds));
        set(&mut terms.admission_ms, ms(self.admission_seconds));
        set(&mut terms.grace_ms, ms(self.grace_seconds));
        set(&mut terms.guests, self.guests);
    }
}

/// What of terms can be wrong by itself. That they fit together is the sale's to decide.
fn check(terms: &Terms) -> Result<(), Problem> {
    let mut errors = Vec::new();
    let mut within = |pointer: &str, value: i64, min: i64, max: i64| {
        if !(min..=max).contains(&value) {
            errors.push(FieldError::new(pointer, format!("must be between {min} and {max}")));
        }
    };
    within("/price/amount", terms.price.amount, 0, AMOUNT_MAX);
    within("/quantity", terms.quantity.into(), 1, QUANTITY_MAX.into());
    within("/per_customer_limit", terms.per_customer_limit.into(), 1, PER_CUSTOMER_MAX.into());
    if let Some(limit) = terms.per_address_limit {
        within("/per_address_limit", limit.into(), 1, QUANTITY_MAX.into());
    }
    within("/claim_seconds", terms.claim_ms / SECOND_MS, SECONDS_MIN, SECONDS_MAX);
    within("/admission_seconds", terms.admission_ms / SECOND_MS, SECONDS_MIN, SECONDS_MAX);
    within("/grace_seconds", terms.grace_ms / SECOND_MS, SECONDS_MIN, SECONDS_MAX);
    if errors.is_empty() { Ok(()) } else { Err(Problem::bad_fields(errors)) }
}

/// Any time that can be written: one that no sale can have is refused for that, and not as if it were none.
fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    Timestamp::nearest(&text).ok_or_else(|| D::Error::custom("not a time in RFC 3339"))
}

fn moment_present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    moment(deserializer).map(Some)
}

/// For objects that may be left out but not be `null`.
fn object_present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Money>, D::Error> {
    object(deserializer).map(Some)
}

/// What the door must know of a sale before it lets a claim through. Claims come by the thousand each second, and each
/// should ask the sale once: so this is remembered for a moment.
#[derive(Debug, Clone)]
pub struct KnownSale {
    /// They never change once the units are set aside.
    pub terms: Arc<Terms>,
    pub tuning: Tuning,
    until: Timestamp,
}

pub struct KnownSales(Cache<String, KnownSale>);

impl Default for KnownSales {
    fn default() -> Self {
        KnownSales(Cache::new(KNOWN_MAX))
    }
}

impl KnownSales {
    /// The sale, which is there for everybody.
    pub async fn get(&self, door: &Door, id: &str) -> Result<KnownSale, Problem> {
        let now = door.now();
        if let Some(known) = self.0.get(id).filter(|known| known.until > now) {
            return Ok(known);
        }
        let (shown, _) =
            Box::pin(look(door, id, None)).await?.filter(|(shown, _)| !is_draft(shown.status)).ok_or_else(Problem::not_found)?;
        let known = KnownSale { terms: Arc::new(shown.terms), tuning: shown.tuning, until: now.plus_ms(KNOWN_MS) };
        self.0.insert(id.to_owned(), known.clone());
        Ok(known)
    }
}

/// What is still its vendor's alone.
fn is_draft(status: Status) -> bool {
    matches!(status, Status::Absent | Status::Draft | Status::Arming)
}

/// The sale as it is now, and what this customer has of it; `None` when there is no such sale.
pub async fn look(door: &Door, id: &str, customer: Option<Customer>) -> Result<Option<(Box<Shown>, Version)>, Problem> {
    let command = CommandId(Ulid::new().to_string());
    let correlation = command.0.clone();
    let asked = door.runtime.ask::<FlashSale>(id, Command::Look { customer }, Caller::new(command, "door", correlation));
    match asked.await {
        Ok(Answered { reply: Reply::Shown(shown), version, .. }) => Ok(Some((shown, version))),
        Ok(_) => Err(Problem::internal("a look at a flash sale got the answer to something else", &id)),
        Err(AskError::Rejected(Rejection::Unknown)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the caller runs this sale: it is of its own shop, or the caller is an admin.
pub async fn runs(door: &Door, id: &str, credential: &Credential) -> Result<bool, Problem> {
    Ok(look(door, id, None).await?.is_some_and(|(shown, _)| is_run_by(&shown.terms, credential)))
}

fn is_run_by(terms: &Terms, credential: &Credential) -> bool {
    let reaches = credential.reaches(Permission::SaleWrite);
    reaches.all || (reaches.shop && terms.shop.is_some() && terms.shop.as_deref() == credential.shop())
}

async fn show(door: &Door, request: &Request, id: &str, status: StatusCode) -> Result<Answer, Problem> {
    let (shown, _) = look(door, id, None).await?.ok_or_else(Problem::not_found)?;
    if is_draft(shown.status) && !is_run_by(&shown.terms, &request.credential) {
        return Err(Problem::not_found());
    }
    Answer::json(status, &shown::flash_sale(id, &shown))
}

pub async fn list(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let query = Query::parse(&request.query, &["status", "sku", "shop", "limit", "cursor"])?;
    if query.get("status").is_some_and(|status| !STATUSES.contains(&status)) {
        return Err(Problem::bad_parameter("status", format!("expected one of {}", STATUSES.join(", "))));
    }
    let reaches = request.credential.reaches(Permission::SaleWrite);
    let drafts = match request.credential.shop() {
        _ if reaches.all => Drafts::Everybodys,
        Some(shop) if reaches.shop => Drafts::Shops(shop.to_owned()),
        _ => Drafts::Nobodys,
    };
    let sales = SaleQuery {
        drafts,
        status: query.owned("status"),
        sku: query.text("sku"),
        shop: query.text("shop"),
        limit: query.limit()?,
        cursor: query.cursor()?,
    };
    await_position(&door, &request).await?;
    Answer::json(StatusCode::OK, &door.read_models.flash_sales(sales).await?)
}

pub async fn get(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::FLASH_SALE)?;
    show(&door, &request, id, StatusCode::OK).await
}

pub async fn create(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let body: SaleBody = request.json()?;
    if !ids::is_sku(&body.sku) {
        return Err(Problem::bad_body("/sku", "this cannot be a sku"));
    }
    let ms = |seconds: i64| seconds.saturating_mul(SECOND_MS);
    let mut terms = Terms {
        sku: body.sku,
        product: String::new(),
        shop: None,
        title: String::new(),
        price: body.price,
        quantity: body.quantity,
        per_customer_limit: body.per_customer_limit,
        per_address_limit: body.per_address_limit,
        starts_at: body.starts_at,
        ends_at: body.ends_at,
        claim_ms: ms(body.claim_seconds),
        admission_ms: ms(body.admission_seconds),
        grace_ms: ms(body.grace_seconds),
        guests: body.guests,
    };
    check(&terms)?;
    let Some(offer) = offer(&door, &terms.sku).await? else {
        return Err(Problem::not_for_sale(vec![("/sku".into(), terms.sku)]));
    };
    (terms.product, terms.shop, terms.title) = (offer.product, offer.shop, offer.title);
    if !is_run_by(&terms, &request.credential) {
        return Err(Problem::forbidden("this is not a product of your shop"));
    }
    same_currency(terms.price, offer.price)?;
    let id = request.new_id(ids::FLASH_SALE);
    let command = Command::Create { terms: Box::new(terms) };
    let answered = door.runtime.ask::<FlashSale>(&id, command, request.caller()?).await?;
    let answer = show(&door, &request, &id, StatusCode::CREATED).await?;
    Ok(answer.location(&format!("/api/flash-sales/{id}")).position(answered.position))
}

fn same_currency(given: Money, sold_in: Money) -> Result<(), Problem> {
    match given.currency == sold_in.currency {
        true => Ok(()),
        false => Err(Problem::contradictory("/price/currency", format!("the product is sold in {}", sold_in.currency))),
    }
}

pub async fn change(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::FLASH_SALE)?;
    let patch: SalePatch = request.json()?;
    if patch.changes_tuning() && !request.credential.reaches(Permission::SaleApprove).all {
        return Err(Problem::forbidden("the rate and the challenge are an admin's to set"));
    }
    check_tuning(&patch)?;
    let mut position = None;
    if patch.changes_terms() {
        position = Some(change_terms(&door, &request, id, &patch).await?);
    }
    if patch.changes_tuning() {
        position = Some(tune(&door, &request, id, &patch).await?);
    }
    let answer = show(&door, &request, id, StatusCode::OK).await?;
    match position {
        Some(position) => Ok(answer.position(position)),
        // Nothing was given, and nothing was written.
        None => Ok(answer.position(door.runtime.journal().end().await.map_err(Failure::from)?)),
    }
}

fn check_tuning(patch: &SalePatch) -> Result<(), Problem> {
    if patch.admissions_per_second.flatten().is_some_and(|rate| !(1..=ADMISSIONS_PER_S_MAX).contains(&rate)) {
        return Err(Problem::bad_body("/admissions_per_second", format!("must be between 1 and {ADMISSIONS_PER_S_MAX}")));
    }
    if patch.challenge_bits.is_some_and(|bits| bits > CHALLENGE_BITS_MAX) {
        return Err(Problem::bad_body("/challenge_bits", format!("must be between 0 and {CHALLENGE_BITS_MAX}")));
    }
    Ok(())
}

async fn change_terms(door: &Door, request: &Request, id: &str, patch: &SalePatch) -> Result<Position, Problem> {
    for attempt in 0..MERGES_MAX {
        let (shown, version) = look(door, id, None).await?.ok_or_else(Problem::not_found)?;
        let mut terms = shown.terms;
        let sold_in = terms.price;
        patch.merge(&mut terms);
        check(&terms)?;
        same_currency(terms.price, sold_in)?;
        // Only a draft can be changed, and its version moves with nothing else.
        let mut caller = request.step(&format!("terms/{attempt}"), &request.credential.asker());
        caller.if_version = is_draft(shown.status).then_some(version);
        match door.runtime.ask::<FlashSale>(id, Command::Update { terms: Box::new(terms) }, caller).await {
            Ok(answered) => return Ok(answered.position),
            Err(AskError::Failed(Failure::VersionDiffers { .. })) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Problem::contended())
}

async fn tune(door: &Door, request: &Request, id: &str, patch: &SalePatch) -> Result<Position, Problem> {
    let (shown, _) = look(door, id, None).await?.ok_or_else(Problem::not_found)?;
    let tuning = Tuning {
        admissions_per_s: patch.admissions_per_second.unwrap_or(shown.tuning.admissions_per_s),
        challenge_bits: patch.challenge_bits.unwrap_or(shown.tuning.challenge_bits),
    };
    let caller = request.step("tune", &request.credential.asker());
    Ok(door.runtime.ask::<FlashSale>(id, Command::Tune { tuning }, caller).await?.position)
}

pub async fn approve(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    run(&door, &request, Command::Approve).await
}

pub async fn pause(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    run(&door, &request, Command::Pause).await
}

pub async fn resume(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    run(&door, &request, Command::Resume).await
}

pub async fn cancel(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let reason = request.json::<CancelBody>()?.reason(REASON_DEFAULT)?;
    run(&door, &request, Command::Cancel { reason }).await
}

async fn run(door: &Door, request: &Request, command: Command) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::FLASH_SALE)?;
    let answered = door.runtime.ask::<FlashSale>(id, command, request.step("run", &request.credential.asker())).await?;
    Ok(show(door, request, id, StatusCode::OK).await?.position(answered.position))
}
