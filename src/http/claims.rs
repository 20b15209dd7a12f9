//! Claims in flash sales, places in line, and reminders: what one customer has of a sale.
//!
//! Whoever is signed in claims as that account. Where a sale lets guests in, whoever shows a token claims as the guest who
//! bears it, and whoever shows none is given one. A customer's network address leaves the door only as a keyed hash.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use warp::http::StatusCode;
use warp::http::header::CACHE_CONTROL;

use super::Door;
use super::answer::Answer;
use super::flash_sales::{KnownSale, look};
use super::limits::network;
use super::problem::{FieldError, Problem};
use super::proof_of_work::{self, Proof};
use super::request::{Request, object_or_null};
use crate::actors::credential::{Credential, sha256_hex};
use crate::actors::{AskError, shown};
use crate::domain::flash_sale::{Command, Customer, Own, OwnClaim, PER_CUSTOMER_MAX, Rejection, Reply, Terms};
use crate::domain::order::{Claimed, Line, Owner};
use crate::domain::{FlashSale, Money, Timestamp, flash_sale, ids};

const FOR_ADDRESSES: &[u8] = b"claim address";
const GUEST_TOKEN: &str = "guest token";

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewClaim")]
pub(super) struct ClaimBody {
    #[schemars(range(min = 1, max = PER_CUSTOMER_MAX))]
    quantity: u32,
    /// Where the sale asks for one: see its challenge.
    #[serde(default, deserialize_with = "object_or_null")]
    proof: Option<Proof>,
}

/// Units to be paid.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ClaimGranted")]
pub(super) struct Granted<'a> {
    id: String,
    quantity: u32,
    unit_price: Money,
    /// Until when it can be paid.
    expires_at: Timestamp,
    /// Shown this once, and only to a guest who had none. Whoever has it has the claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
}

/// A place in line.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ClaimQueued")]
pub(super) struct Queued<'a> {
    ticket: shown::TicketShown,
    /// Shown this once, and only to a guest who had none. Whoever has it has the place.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
}

/// What the caller has of a sale.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OwnClaims")]
pub(super) struct OwnClaims {
    /// From the newest.
    claims: Vec<shown::ClaimShown>,
    ticket: Option<shown::TicketShown>,
    /// Whether a reminder was asked for.
    reminded: bool,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Reminder")]
pub(super) struct Reminder<'a> {
    reminded: bool,
    /// Shown this once, and only to a guest who had none.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
}

/// Something to work on.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Challenge")]
pub(super) struct Challenge<'a> {
    challenge: &'a str,
    /// Zero bits that the hash must begin with.
    bits: u8,
    expires_at: Timestamp,
    /// Shown this once, and only to a guest who had none: the challenge is for its bearer.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
}

/// The customer that the caller is, if it has shown to be one.
fn shown_customer(request: &Request, terms: &Terms) -> Result<Option<Customer>, Problem> {
    let owner = match &request.credential {
        Credential::Account(account) => Owner::Account { user: account.user.to_string() },
        Credential::Bearer { token_sha256 } if terms.guests => Owner::Guest { token_sha256: token_sha256.clone() },
        Credential::Nobody if terms.guests => return Ok(None),
        Credential::Bearer { .. } | Credential::Nobody => {
            return Err(Problem::unauthorized("this sale is for accounts: sign in"));
        }
    };
    customer_of(&owner).map(Some)
}

fn customer_of(owner: &Owner) -> Result<Customer, Problem> {
    Customer::of(owner).ok_or_else(|| Problem::forbidden("only an account or a guest can buy"))
}

/// The customer that the caller is, or becomes by this token.
fn customer(
    request: &Request,
    terms: &Terms,
    token: impl FnOnce() -> Result<String, Problem>,
) -> Result<(Customer, Option<String>), Problem> {
    match shown_customer(request, terms)? {
        Some(customer) => Ok((customer, None)),
        None => {
            let token = token()?;
            let owner = Owner::Guest { token_sha256: sha256_hex(token.as_bytes()) };
            Ok((customer_of(&owner)?, Some(token)))
        }
    }
}

/// A customer who must have been here before.
fn known_customer(request: &Request, terms: &Terms) -> Result<Customer, Problem> {
    shown_customer(request, terms)?.ok_or_else(|| Problem::unauthorized("sign in, or send the token that came with the claim"))
}

/// The address as the sale counts it: the same for one network in one sale, on every node. 0 where no address is limited.
fn address(door: &Door, id: &str, terms: &Terms, request: &Request) -> u64 {
    if terms.per_address_limit.is_none() {
        return 0;
    }
    let hash = door.identity.secret.derive(&[FOR_ADDRESSES, id.as_bytes(), network(request.client).to_string().as_bytes()]);
    let digits = hash.get(..16).unwrap_or_default();
    u64::from_str_radix(digits, 16).map_or(1, |hash| hash.max(1))
}

fn check_proof(door: &Door, id: &str, customer: Customer, sale: &KnownSale, proof: Option<&Proof>) -> Result<(), Problem> {
    let bits = sale.tuning.challenge_bits;
    if bits == 0 {
        return Ok(());
    }
    let proof = proof.ok_or_else(|| Problem::proof_needed(bits))?;
    proof_of_work::verify(&door.identity.secret, id, customer, bits, door.now(), proof)
        .map_err(|error| Problem::proof_refused(bits, &error))
}

pub async fn claim(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::FLASH_SALE)?;
    let ClaimBody { quantity, proof } = request.json()?;
    let mut errors = Vec::new();
    if !(1..=PER_CUSTOMER_MAX).contains(&quantity) {
        errors.push(FieldError::new("/quantity", format!("must be between 1 and {PER_CUSTOMER_MAX}")));
    }
    // Also where none is asked for.
    for (pointer, text, most) in proof.iter().flat_map(Proof::texts) {
        if text.chars().nth(most).is_some() {
            errors.push(FieldError::new(pointer, format!("has at most {most} characters")));
        }
    }
    if !errors.is_empty() {
        return Err(Problem::bad_fields(errors));
    }
    let sale = door.sales.get(&door, id).await?;
    let (customer, token) = customer(&request, &sale.terms, || request.new_secret(&door, GUEST_TOKEN))?;
    let limit = sale.terms.per_customer_limit;
    if quantity > limit {
        return Err(Problem::over_limit(limit, None));
    }
    check_proof(&door, id, customer, &sale, proof.as_ref())?;
    let command = Command::Claim { customer, quantity, address: address(&door, id, &sale.terms, &request) };
    let answered = door.runtime.ask::<FlashSale>(id, command, request.step("claim", &request.credential.asker())).await?;
    let token = token.as_deref();
    let answer = match answered.reply {
        Reply::Claimed { claim, quantity, until } => {
            let claim = ids::claim(id, claim);
            let path = ["/api/flash-sales/", id, "/claims/", &claim].concat();
            let granted = Granted { id: claim, quantity, unit_price: sale.terms.price, expires_at: until, token };
            Answer::json(StatusCode::CREATED, &granted)?.location(&path)
        }
        Reply::Queued { ahead, wait_ms, .. } => {
            // Who was in line already may have asked for another quantity then.
            let waiting = Box::pin(own(&door, id, customer)).await?.ticket;
            let ticket = waiting.map_or_else(
                || shown::ticket(ahead, wait_ms, quantity),
                |ticket| shown::ticket(ticket.ahead, ticket.wait_ms, ticket.quantity),
            );
            Answer::json(StatusCode::ACCEPTED, &Queued { ticket, token })?.location(&format!("/api/flash-sales/{id}/claims"))
        }
        _ => return Err(Problem::internal("a claim got the answer to something else", &id)),
    };
    Ok(answer.position(answered.position))
}

/// What this customer has of a sale that is there.
async fn own(door: &Door, id: &str, customer: Customer) -> Result<Own, Problem> {
    let (shown, _) = look(door, id, Some(customer)).await?.ok_or_else(Problem::not_found)?;
    Ok(shown.own.unwrap_or_default())
}

pub async fn list(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::FLASH_SALE)?;
    let sale = door.sales.get(&door, id).await?;
    let own = own(&door, id, known_customer(&request, &sale.terms)?).await?;
    let claims = own.claims.iter().map(|claim| shown::claim(id, claim, sale.terms.price)).collect();
    let ticket = own.ticket.map(|ticket| shown::ticket(ticket.ahead, ticket.wait_ms, ticket.quantity));
    let answer = Answer::json(StatusCode::OK, &OwnClaims { claims, ticket, reminded: own.reminded })?;
    Ok(answer.with(CACHE_CONTROL, "no-store"))
}

/// The claim of the path: its number, its sale, and its holder.
async fn named(door: &Door, request: &Request) -> Result<(u32, KnownSale, Customer), Problem> {
    let id = request.id_param(0, ids::FLASH_SALE)?;
    let (of, number) = ids::parse_claim(request.param(1)).ok_or_else(Problem::not_found)?;
    if of != id {
        return Err(Problem::not_found());
    }
    let sale = door.sales.get(door, id).await?;
    let customer = known_customer(request, &sale.terms)?;
    Ok((number, sale, customer))
}

async fn own_claim(door: &Door, id: &str, number: u32, customer: Customer) -> Result<OwnClaim, Problem> {
    let claims = own(door, id, customer).await?.claims;
    claims.into_iter().find(|claim| claim.claim == number).ok_or_else(Problem::not_found)
}

pub async fn get(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let (number, sale, customer) = named(&door, &request).await?;
    let id = request.param(0);
    let claim = own_claim(&door, id, number, customer).await?;
    Ok(Answer::json(StatusCode::OK, &shown::claim(id, &claim, sale.terms.price))?.with(CACHE_CONTROL, "no-store"))
}

pub async fn give_up(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let (number, _, customer) = named(&door, &request).await?;
    let id = request.param(0);
    let command = Command::GiveUp { customer, claim: number };
    match door.runtime.ask::<FlashSale>(id, command, request.step("give-up", &request.credential.asker())).await {
        Ok(answered) => Ok(Answer::empty(StatusCode::NO_CONTENT).position(answered.position)),
        Err(AskError::Rejected(Rejection::ClaimOver)) => {
            // Somebody else's is not found.
            own_claim(&door, id, number, customer).await?;
            Err(Rejection::ClaimOver.into())
        }
        Err(error) => Err(error.into()),
    }
}

pub async fn leave(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::FLASH_SALE)?;
    let sale = door.sales.get(&door, id).await?;
    let customer = known_customer(&request, &sale.terms)?;
    let caller = request.step("leave", &request.credential.asker());
    let answered = door.runtime.ask::<FlashSale>(id, Command::Leave { customer }, caller).await?;
    Ok(Answer::empty(StatusCode::NO_CONTENT).position(answered.position))
}

pub async fn remind(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::FLASH_SALE)?;
    let sale = door.sales.get(&door, id).await?;
    let (customer, token) = customer(&request, &sale.terms, || request.new_secret(&door, GUEST_TOKEN))?;
    let caller = request.step("remind", &request.credential.asker());
    let answered = door.runtime.ask::<FlashSale>(id, Command::Remind { customer }, caller).await?;
    let answer = Answer::json(StatusCode::OK, &Reminder { reminded: true, token: token.as_deref() })?;
    Ok(answer.position(answered.position))
}

pub async fn challenge(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::FLASH_SALE)?;
    let sale = door.sales.get(&door, id).await?;
    let (customer, token) = customer(&request, &sale.terms, || request.new_secret(&door, GUEST_TOKEN))?;
    let bits = sale.tuning.challenge_bits;
    let (challenge, expires_at) = proof_of_work::challenge(&door.identity.secret, id, customer, bits, door.now());
    let shown = Challenge { challenge: &challenge, bits, expires_at, token: token.as_deref() };
    Ok(Answer::json(StatusCode::OK, &shown)?.with(CACHE_CONTROL, "no-store"))
}

// Buying --------------------------------------------------------------------------------------------------------------

/// Who buys with a claim: the account, or the guest whose token is shown.
pub fn buyer(request: &Request) -> Result<Owner, Problem> {
    match &request.credential {
        Credential::Account(account) => Ok(Owner::Account { user: account.user.to_string() }),
        Credential::Bearer { token_sha256 } => Ok(Owner::Guest { token_sha256: token_sha256.clone() }),
        Credential::Nobody => Err(Problem::not_found()),
    }
}

/// The line of an order for what its owner has claimed and may pay now, or pays already by this very order.
pub async fn line(door: &Door, claim_id: &str, owner: &Owner, order: &str) -> Result<Line, Problem> {
    let (sale, number) =
        ids::parse_claim(claim_id).ok_or_else(|| Problem::bad_body("/claim_id", "this is not the id of a claim"))?;
    let customer = Customer::of(owner).ok_or_else(Problem::not_found)?;
    let (shown, _) = look(door, &sale, Some(customer)).await?.ok_or_else(Problem::not_found)?;
    let own = shown.own.unwrap_or_default().claims.into_iter().find(|own| own.claim == number);
    let own = own.ok_or_else(Problem::not_found)?;
    let is_payable = own.phase == flash_sale::ClaimPhase::Held || own.order.as_deref() == Some(order);
    if !is_payable {
        return Err(Rejection::ClaimOver.into());
    }
    let Terms { sku, product, shop, title, price: unit_price, .. } = shown.terms;
    let quantity = own.quantity;
    let total = unit_price.times(quantity).map_err(|error| Problem::contradictory("/claim_id", error.to_string()))?;
    let claim = Some(Claimed { sale, claim: number, customer });
    Ok(Line { sku, product, shop, title, quantity, unit_price, total, claim })
}
