//! Whether this caller may do this: checked here for every route, before its handler runs.
//!
//! What belongs to somebody else is not found, so that nobody learns whether it exists.

use super::problem::Problem;
use super::{Door, flash_sales};
use crate::actors::credential::{Credential, Gate, NotRecognised};
use crate::actors::permissions::Permission;
use crate::domain::{Cart, Entity, Inventory, Order, Product, ids, product};

/// Who bears this token.
pub async fn recognise(door: &Door, token: Option<&str>) -> Result<Credential, Problem> {
    if let Some(credential) = door.gate.known(token) {
        return Ok(credential);
    }
    door.gate.recognise(token).await.map_err(|error| match error {
        NotRecognised::Refused(why) => Problem::invalid_token(why),
        NotRecognised::Failed(failure) => failure.into(),
    })
}

/// Lets a caller through to a route whose path has these parameters, or says why not.
pub async fn check(door: &Door, permission: Permission, params: &[String], credential: &Credential) -> Result<(), Problem> {
    let reaches = credential.reaches(permission);
    if reaches.all {
        return Ok(());
    }
    if reaches.nothing() {
        return Err(match credential.account() {
            None => Problem::unauthorized("sign in, or send an API key"),
            Some(account) if account.key.is_some() => {
                Problem::forbidden(format!("this key has no scope `{}`", permission.name()))
            }
            Some(_) => Problem::forbidden(format!("this account has no permission `{}`", permission.name())),
        });
    }
    // Without an id there is nothing that could be somebody else's: the handler does it for the caller.
    let Some(id) = params.first() else { return Ok(()) };
    let reached = Box::pin(reaches_this(door, permission, id, credential)).await?;
    if reached { Ok(()) } else { Err(Problem::not_found()) }
}

/// Whether what a path names is within the caller's reach.
async fn reaches_this(door: &Door, permission: Permission, id: &str, credential: &Credential) -> Result<bool, Problem> {
    use Permission as P;
    Ok(match permission {
        P::CartUse => ids::is_id(ids::CART, id) && owns_cart(door, id, credential).await?,
        P::OrderRead | P::OrderFollow | P::OrderCancel | P::OrderShip => {
            ids::is_id(ids::ORDER, id) && reaches_order(door, permission, id, credential).await?
        }
        P::CatalogueWrite => ids::is_id(ids::PRODUCT, id) && sells_product(door, id, credential).await?,
        P::StockWrite => ids::is_sku(id) && sells_sku(door, id, credential).await?,
        P::SaleWrite => ids::is_id(ids::FLASH_SALE, id) && flash_sales::runs(door, id, credential).await?,
        P::ShopWrite => credential.shop() == Some(id),
        // What is below an account is found in that account alone.
        P::AccountRead | P::AccountUse => true,
        _ => false,
    })
}

/// Whether the caller holds this cart.
pub async fn owns_cart(door: &Door, id: &str, credential: &Credential) -> Result<bool, Problem> {
    let credential = credential.clone();
    let look = move |state: &<Cart as Entity>::State, _| state.owner.as_ref().is_some_and(|owner| credential.owns(owner));
    Ok(door.runtime.view::<Cart, _>(id, look).await?)
}

async fn reaches_order(door: &Door, permission: Permission, id: &str, credential: &Credential) -> Result<bool, Problem> {
    let credential = credential.clone();
    let look = move |state: &<Order as Entity>::State, _| {
        state.draft.as_ref().is_some_and(|draft| credential.reaches_order(permission, draft))
    };
    Ok(door.runtime.view::<Order, _>(id, look).await?)
}

async fn sells_product(door: &Door, id: &str, credential: &Credential) -> Result<bool, Problem> {
    let Some(shop) = credential.shop().map(str::to_owned) else { return Ok(false) };
    let look = move |state: &product::State, _| state.in_force().shop == shop;
    Ok(door.runtime.view::<Product, _>(id, look).await?)
}

async fn sells_sku(door: &Door, sku: &str, credential: &Credential) -> Result<bool, Problem> {
    let product = |state: &<Inventory as Entity>::State, _| state.product.clone();
    match door.runtime.view::<Inventory, _>(sku, product).await? {
        Some(product) => sells_product(door, &product, credential).await,
        None => Ok(false),
    }
}
