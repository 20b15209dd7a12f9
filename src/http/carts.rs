//! Carts, from the first item to the checkout.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use warp::http::StatusCode;

use super::answer::Answer;
use super::offers::{offer, offers};
use super::orders::{self, PurchaseBody};
use super::problem::{FieldError, Problem};
use super::request::Request;
use super::{Door, auth};
use crate::actors::credential::sha256_hex;
use crate::actors::{Answered, AskError, Caller, Failure, shown};
use crate::domain::cart::{Command, Phase, QUANTITY_MAX, Rejection, Reply};
use crate::domain::order::{Contact, Owner};
use crate::domain::{Cart, Entity, Money, ids};

/// How soon a checkout is asked for again that met a cart in the middle of a change.
const BUSY_REST: Duration = Duration::from_millis(10);
const BUSY_RESTS_MAX: u32 = 50;
/// By then a checkout that is refused has been.
const REFUSAL_WAIT: Duration = Duration::from_millis(2);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CartBody {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemBody {
    sku: String,
    quantity: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantityBody {
    quantity: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MergeBody {
    from: String,
    /// The token of the cart that is to be merged into this one.
    from_token: String,
}

/// A cart in the answer that made it.
#[derive(Serialize)]
struct Created<'a> {
    #[serde(flatten)]
    cart: shown::CartShown<'a>,
    token: &'a str,
}

pub async fn create(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let CartBody {} = request.json()?;
    let (id, token) = (request.new_id(ids::CART), request.new_token());
    let owner = Owner::Guest { token_sha256: sha256_hex(token.as_bytes()) };
    let answered = door.runtime.ask::<Cart>(&id, Command::Create { owner }, request.caller()?).await?;
    let own_id = id.clone();
    let look = move |state: &<Cart as Entity>::State, version| {
        let cart = shown::cart(&own_id, state)?;
        Some((Answer::json(StatusCode::CREATED, &Created { cart, token: &token }), version))
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
    auth::owns_cart(&door, &from, &door.gate.recognise(Some(&from_token))).await?;
    let answered = door.runtime.ask::<Cart>(id, Command::Merge { from }, request.caller()?).await?;
    show(&door, id, answered).await
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
    let skus = door.runtime.view::<Cart, _>(id, |state, _| state.lines.keys().cloned().collect::<Vec<_>>()).await?;
    let prices: BTreeMap<String, Money> = offers(&door, skus).await?.into_iter().map(|(sku, offer)| (sku, offer.price)).collect();
    let command = Command::Checkout {
        order: order.clone(),
        payment: body.payment,
        contact: Contact::Plain { email: body.email, shipping_address: body.shipping_address },
        expected_total: body.expected_total,
        prices,
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
        None if is_checking_out(&door, id, &order).await? => orders::accepted(&door, &order, None).await,
        // The order may have come to its end in this very moment; if it does not exist, nothing is known.
        None if orders::exists(&door, &order).await? => orders::accepted(&door, &order, None).await,
        None => Err(Problem::outcome_unknown()),
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
