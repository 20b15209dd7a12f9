//! Who may do what: checked here for every route, before its handler runs.
//!
//! What belongs to somebody else is not found, so that nobody learns whether it exists.

use super::Door;
use super::problem::Problem;
use crate::actors::credential::Credential;
use crate::domain::order::Owner;
use crate::domain::{Cart, Entity, Order, ids};

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// The token of the cart that the path's first parameter names.
    Cart,
    /// The token of the order that the path's first parameter names, or the operator's.
    Order,
    /// The operator's token.
    Admin,
}

pub async fn check(door: &Door, needs: Needs, params: &[String], credential: &Credential) -> Result<(), Problem> {
    let id = params.first().map_or("", String::as_str);
    match needs {
        Needs::Nothing => Ok(()),
        Needs::Admin if credential.is_admin() => Ok(()),
        Needs::Admin if !door.gate.has_admin() => Err(Problem::unauthorized("no operator's token is set on this node")),
        Needs::Admin if credential.is_anonymous() => Err(Problem::unauthorized("this is for operators; no token was sent")),
        Needs::Admin => Err(Problem::unauthorized("this is for operators; the token is not theirs")),
        Needs::Cart if ids::is_id(ids::CART, id) && !credential.is_anonymous() => owns_cart(door, id, credential).await,
        Needs::Order if ids::is_id(ids::ORDER, id) && !credential.is_anonymous() => owns_order(door, id, credential).await,
        Needs::Cart | Needs::Order => Err(Problem::not_found()),
    }
}

/// Whether the caller holds this cart.
pub async fn owns_cart(door: &Door, id: &str, credential: &Credential) -> Result<(), Problem> {
    let credential = credential.clone();
    let look = move |state: &<Cart as Entity>::State, _| state.owner.as_ref().is_some_and(|owner| credential.owns(owner));
    if door.runtime.view::<Cart, _>(id, look).await? { Ok(()) } else { Err(Problem::not_found()) }
}

async fn owns_order(door: &Door, id: &str, credential: &Credential) -> Result<(), Problem> {
    let credential = credential.clone();
    let look = move |state: &<Order as Entity>::State, _| {
        let allowed = |owner: &Owner| credential.is_admin() || credential.owns(owner);
        state.draft.as_ref().is_some_and(|draft| allowed(&draft.owner))
    };
    if door.runtime.view::<Order, _>(id, look).await? { Ok(()) } else { Err(Problem::not_found()) }
}
