//! Carts, from the first item to the checkout.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use warp::http::StatusCode;

use super::answer::Answer;
use super::offers::{offer, offers};
use super::orders::{self, PurchaseBody};
use super::problem::{FieldError, Problem};
use super::request::Request;
use super::{Door, auth, claims, sealing};
use crate::actors::credential::{Credential, sha256_hex};
use crate::actors::{Answered, AskError, Caller, Failure, shown};
use crate::domain::cart::{Command, Phase, QUANTITY_MAX, Rejection, Reply};
use crate::domain::order::Owner;
use crate::domain::{Cart, Entity, Money, User, ids, user};

/// How soon a checkout is asked for again that met a cart in the middle of a change.
const BUSY_REST: Duration = Duration::from_millis(10);
const BUSY_RESTS_MAX: u32 = 50;
/// By then a checkout that is refused has been.
const REFUSAL_WAIT: Duration = Duration::from_millis(2);

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewCart")]
pub(super) struct CartBody {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewCartLine")]
pub(super) struct ItemBody {
    #[schemars(length(max = ids::SKU_CHARS_MAX), regex(pattern = ids::SKU_PATTERN))]
    sku: String,
    /// Added to what the cart has of it.
    #[schemars(range(min = 1, max = QUANTITY_MAX))]
    quantity: u32,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Quantity")]
pub(super) struct QuantityBody {
    /// 0 removes the line.
    #[schemars(range(min = 0, max = QUANTITY_MAX))]
    quantity: u32,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "CartMerge")]
pub(super) struct MergeBody {
    /// The cart that is to be merged into this one.
    #[schemars(regex(pattern = ids::CART_PATTERN))]
    from: String,
    /// Its token, when it is a guest's.
    #[serde(default)]
    from_token: Option<String>,
}

/// A cart in the answer that made it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CartCreated")]
pub(super) struct Created<'a> {
    #[serde(flatten)]
    cart: shown::CartShown<'a>,
    /// Shown this once, and only to a guest. Whoever has it holds the cart.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
}

/// Whose is what this request makes: the account's, that of the guest who bears a token already, or of the one who gets it.
pub fn owner(door: &Door, request: &Request) -> Result<(Owner, Option<String>), Problem> {
    Ok(match &request.credential {
        Credential::Account(account) => (Owner::Account { user: account.user.to_string() }, None),
        Credential::Bearer { token_sha256 } => (Owner::Guest { token_sha256: token_sha256.clone() }, None),
        Credential::Nobody => {
            let token = request.new_secret(door, "guest token")?;
            (Owner::Guest { token_sha256: sha256_hex(token.as_bytes()) }, Some(token))
        }
    })
}

pub async fn create(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let CartBody {} = request.json()?;
    let id = request.new_id(ids::CART);
    let (owner, token) = owner(&door, &request)?;
    let create = door.runtime.ask::<Cart>(&id, Command::Create { owner }, request.caller()?);
    let answered = match request.credential.account() {
        // Side by side: a cart that is remembered and does not come about is taken for one that is over.
        Some(account) => {
            let (created, used) = tokio::join!(create, use_cart(&door, &request, &account.user, &id));
            used?;
            created?
        }
        None => create.await?,
    };
    let own_id = id.clone();
    let look = move |state: &<Cart as Entity>::State, version| {
        let cart = shown::cart(&own_id, state)?;
        Some((Answer::json(StatusCode::CREATED, &Created { cart, token: token.as_deref() }), version))
    };
    let (answer, version) = door.runtime.view::<Cart, _>(&id, look).await?.ok_or_else(Problem::not_found)?;
    Ok(answer?.etag(version).location(&format!("/api/carts/{id}")).position(answered.position))
}

pub async fn get(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::CART)?;
    let own_id = id.to_owned();
    let look = move |state: &<Cart as Entity>::State, version| {
        Some((Answer::json(StatusCode::OK, &shown::cart(&own_id, state)?), version))
    };
    let (answer, version) = door.runtime.view::<Cart, _>(id, look).await?.ok_or_else(Problem::not_found)?;
    if request.has_version(version) {
        return Ok(Answer::empty(StatusCode::NOT_MODIFIED).etag(version));
    }
    Ok(answer?.etag(version))
}

pub async fn delete(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::CART)?;
    let answered = door.runtime.ask::<Cart>(id, Command::Delete, request.caller()?).await?;
    Ok(Answer::empty(StatusCode::NO_CONTENT).position(answered.position))
}

pub async fn add_item(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::CART)?;
    let ItemBody { sku, quantity } = request.json()?;
    let mut errors = Vec::new();
    if !ids::is_sku(&sku) {
        errors.push(FieldError::new("/sku", "this cannot be a sku"));
    }
    if !(1..=QUANTITY_MAX).contains(&quantity) {
        errors.push(FieldError::new("/quantity", format!("must be between 1 and {QUANTITY_MAX}")));
    }
    if !errors.is_empty() {
        return Err(Problem::bad_fields(errors));
    }
    let Some(offer) = offer(&door, &sku).await? else {
        return Err(Problem::not_for_sale(vec![("/sku".into(), sku)]));
    };
    let answered = door.runtime.ask::<Cart>(id, Command::Add { sku, quantity, offer }, request.caller()?).await?;
    show(&door, id, answered).await
}

pub async fn set_item(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let (id, sku) = (request.id_param(0, ids::CART)?, request.sku_param(1)?);
    let QuantityBody { quantity } = request.json()?;
    if quantity > QUANTITY_MAX {
        return Err(Problem::bad_body("/quantity", format!("must be between 0 and {QUANTITY_MAX}")));
    }
    let command = Command::Set { sku: sku.to_owned(), quantity };
    let answered = door.runtime.ask::<Cart>(id, command, request.caller()?).await?;
    show(&door, id, answered).await
}

pub async fn remove_item(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let (id, sku) = (request.id_param(0, ids::CART)?, request.sku_param(1)?);
    let answered = door.runtime.ask::<Cart>(id, Command::Remove { sku: sku.to_owned() }, request.caller()?).await?;
    show(&door, id, answered).await
}

pub async fn merge(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::CART)?;
    let MergeBody { from, from_token } = request.json()?;
    if from == id {
        return Err(Problem::bad_body("/from", "a cart is not merged into itself"));
    }
    if !ids::is_id(ids::CART, &from) {
        return Err(Problem::bad_body("/from", "this is not the id of a cart"));
    }
    // Whoever merges must hold both carts.
    let holder = from_token.as_deref().map_or_else(|| request.credential.clone(), Credential::guest);
    if !auth::owns_cart(&door, &from, &holder).await? {
        return Err(Problem::not_found());
    }
    let answered = door.runtime.ask::<Cart>(id, Command::Merge { from }, request.caller()?).await?;
    show(&door, id, answered).await
}

/// Has the account remember its cart, so that whatever it is logged in on finds it.
async fn use_cart(door: &Door, request: &Request, user: &str, cart: &str) -> Result<(), Problem> {
    let caller = request.step("use-cart", user);
    match door.runtime.ask::<User>(user, user::Command::UseCart { cart: cart.to_owned() }, caller).await {
        // The operator of a node has no account.
        Ok(_) | Err(AskError::Rejected(user::Rejection::Unknown)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Merges a guest's cart into the account's, which is made if it has none, and gives the account's. A guest's cart that
/// cannot be merged any more is left alone.
pub async fn take_over(door: &Door, request: &Request, user: &str, from: &str) -> Result<String, Problem> {
    let own = door.runtime.view::<User, _>(user, |state, _| state.cart.clone()).await?;
    let open = match own {
        Some(own) => {
            let look = |state: &<Cart as Entity>::State, _| state.phase == Phase::Open;
            door.runtime.view::<Cart, _>(&own, look).await?.then_some(own)
        }
        None => None,
    };
    let into = match open {
        Some(own) => own,
        None => {
            let id = request.new_id(ids::CART);
            let owner = Owner::Account { user: user.to_owned() };
            door.runtime.ask::<Cart>(&id, Command::Create { owner }, request.step("make-cart", user)).await?;
            use_cart(door, request, user, &id).await?;
            id
        }
    };
    match door.runtime.ask::<Cart>(&into, Command::Merge { from: from.to_owned() }, request.step("merge-cart", user)).await {
        Ok(_) | Err(AskError::Rejected(_)) => Ok(into),
        Err(error) => Err(error.into()),
    }
}

/// The cart after a change.
async fn show(door: &Door, id: &str, answered: Answered<Reply>) -> Result<Answer, Problem> {
    let own_id = id.to_owned();
    let look = move |state: &<Cart as Entity>::State, version| {
        Some((Answer::json(StatusCode::OK, &shown::cart(&own_id, state)?), version))
    };
    let (answer, version) = door.runtime.view::<Cart, _>(id, look).await?.ok_or_else(Problem::not_found)?;
    Ok(answer?.etag(version).position(answered.position))
}

pub async fn checkout(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::CART)?;
    let body: PurchaseBody = request.json()?;
    body.check()?;
    let order = request.new_id(ids::ORDER);
    let owner = door.runtime.view::<Cart, _>(id, |state, _| state.owner.clone()).await?.ok_or_else(Problem::not_found)?;
    let contact = sealing::seal_contact(&door, &request.credential, &owner, body.email, body.shipping_address).await?;
    let skus = door.runtime.view::<Cart, _>(id, |state, _| state.lines.keys().cloned().collect::<Vec<_>>()).await?;
    let claimed = match &body.claim_id {
        Some(claim_id) => {
            let line = claims::line(&door, claim_id, &owner, &order).await?;
            if skus.contains(&line.sku) {
                return Err(Problem::claimed_twice());
            }
            Some(Box::new(line))
        }
        None => None,
    };
    let prices: BTreeMap<String, Money> = offers(&door, skus).await?.into_iter().map(|(sku, offer)| (sku, offer.price)).collect();
    let command = Command::Checkout {
        order: order.clone(),
        payment: body.payment,
        contact,
        expected_total: body.expected_total,
        prices,
        claimed,
    };
    let caller = request.caller()?;
    let mut asked = pin!(within(door.config.settle_wait, check_out(&door, id, command, caller)));
    // A refusal comes at once. Whoever still waits looks at the order itself; how it failed, if it fails, the cart tells,
    // which can then be used again.
    let answered = tokio::select! {
        biased;
        answered = &mut asked => answered,
        () = tokio::time::sleep(REFUSAL_WAIT) => tokio::select! {
            biased;
            answered = &mut asked => answered,
            Ok(answer) = orders::when_paid(&door, &order) => return Ok(answer),
        },
    };
    match answered {
        Some(Ok(answered)) => {
            let Reply::Concluded(outcome) = answered.reply else {
                return Err(Problem::internal("a checkout got the answer to something else", &format_args!("cart {id}")));
            };
            orders::concluded(&door, outcome, None, answered.position).await
        }
        Some(Err(error)) => Err(error.into()),
        None => {
            // Whoever is told of an order must find it, though the node that is to have it is just lost.
            if is_checking_out(&door, id, &order).await? {
                orders::appears(&door, &order).await?;
            }
            orders::accepted(&door, &order, None).await
        }
    }
}

/// Asks again while the cart confirms its holds, which it also does by itself after a payment was declined: whoever tries
/// another card at once should not have to know. A refusal leaves nothing behind, so the same command may be asked again.
async fn check_out(door: &Door, id: &str, command: Command, caller: Caller) -> Result<Answered<Reply>, AskError<Rejection>> {
    let mut rests = BUSY_RESTS_MAX;
    loop {
        match door.runtime.ask::<Cart>(id, command.clone(), caller.clone()).await {
            Err(AskError::Rejected(Rejection::Busy)) if rests > 0 => tokio::time::sleep(BUSY_REST).await,
            answered => return answered,
        }
        rests -= 1;
    }
}

async fn is_checking_out(door: &Door, id: &str, order: &str) -> Result<bool, Failure> {
    let order = order.to_owned();
    let look =
        move |state: &<Cart as Entity>::State, _| matches!(&state.phase, Phase::CheckingOut { order: o, .. } if *o == order);
    door.runtime.view::<Cart, _>(id, look).await
}

/// The answer, or `None` when it takes longer. The command goes on all the same.
pub async fn within<T, R>(wait: Duration, asked: impl Future<Output = Result<T, AskError<R>>>) -> Option<Result<T, AskError<R>>> {
    match tokio::time::timeout(wait, asked).await {
        Ok(Err(AskError::Failed(Failure::TimedOut))) | Err(_) => None,
        Ok(answered) => Some(answered),
    }
}
