//! Whose key seals what is personal, so that it can be forgotten though the journal is never rewritten.
//!
//! - What an account says is sealed by the account's own key, which is destroyed when the account is deleted.
//! - What guests say is sealed by one key for each day (UTC): a day of guests is forgotten together, by
//!   `souk admin forget-guests`. A key for each guest would cost two flushes of the disk for each order.

use serde::{Deserialize, Serialize};

use super::identity::seals::{SealError, Vault};
use super::problem::{FieldError, Problem};
use super::{Door, users};
use crate::actors::credential::{Credential, OPERATOR};
use crate::domain::Timestamp;
use crate::domain::order::{Address, Contact, Owner, SealedContact};
use crate::domain::user::{self, VaultAnswer, VaultRequest};
use crate::integrations::{Call, Integration};

/// What the keys of guests are called, before the day.
pub const GUESTS_PREFIX: &str = "guests-";

/// Destroys the keys of accounts that were deleted.
pub struct Shredder(pub Vault);

impl Integration<user::Vault> for Shredder {
    async fn carry(&self, request: VaultRequest, _call: Call) -> VaultAnswer {
        match self.0.destroy(&request.user).await {
            Ok(_) => VaultAnswer::Destroyed,
            Err(error) => VaultAnswer::Unavailable { reason: error.to_string() },
        }
    }
}

/// Whom an order is for and where it goes, opened.
#[derive(Serialize, Deserialize)]
pub struct OpenContact {
    pub email: Option<String>,
    pub shipping_address: Address,
}

/// The key for what this caller says now.
pub fn key_of(credential: &Credential, now: Timestamp) -> String {
    match credential.account() {
        Some(account) if &*account.user != OPERATOR => account.user.to_string(),
        _ => format!("{GUESTS_PREFIX}{}", now.date()),
    }
}

/// The keys of guests come into being with their day; an account's is there, or is gone for good.
pub async fn seal(vault: &Vault, key: &str, plain: &[u8]) -> Result<String, SealError> {
    match key.starts_with(GUESTS_PREFIX) {
        true => vault.seal_first(key, plain).await,
        false => vault.seal(key, plain).await,
    }
}

/// Checks a contact for an order of this owner, and seals it.
pub async fn seal_contact(
    door: &Door,
    credential: &Credential,
    owner: &Owner,
    email: Option<String>,
    shipping_address: Address,
) -> Result<Contact, Problem> {
    let email = match (email, owner) {
        (None, Owner::Account { user }) => users::email_of(door, user).await?,
        (None, Owner::Guest { .. }) => return Err(Problem::email_needed()),
        (given, _) => given,
    };
    let plain = Contact::Plain { email, shipping_address };
    let wrong: Vec<FieldError> = plain.wrong(owner).into_iter().map(|(field, message)| FieldError::new(field, message)).collect();
    if !wrong.is_empty() {
        return Err(Problem::bad_fields(wrong));
    }
    reseal(door, key_of(credential, door.now()), &plain).await
}

/// The contact under another key; `None` when it can be opened no more.
pub async fn seal_anew(door: &Door, key: &str, contact: &Contact) -> Result<Option<Contact>, Problem> {
    let Some(OpenContact { email, shipping_address }) = open_contact(door, contact).await? else { return Ok(None) };
    Ok(Some(reseal(door, key.to_owned(), &Contact::Plain { email, shipping_address }).await?))
}

async fn reseal(door: &Door, key: String, plain: &Contact) -> Result<Contact, Problem> {
    let bytes = serde_json::to_vec(plain).map_err(|error| Problem::internal("a contact cannot be written", &error))?;
    let sealed = seal(&door.identity.vault, &key, &bytes).await?;
    Ok(Contact::Sealed { contact: SealedContact { key, sealed } })
}

/// `None` when its key was destroyed.
pub async fn open_contact(door: &Door, contact: &Contact) -> Result<Option<OpenContact>, Problem> {
    match contact {
        Contact::Plain { email, shipping_address } => {
            Ok(Some(OpenContact { email: email.clone(), shipping_address: shipping_address.clone() }))
        }
        Contact::Sealed { contact: SealedContact { key, sealed } } => {
            let Some(bytes) = door.identity.vault.open_seal(key, sealed).await? else { return Ok(None) };
            serde_json::from_slice(&bytes).map(Some).map_err(|error| Problem::internal("a contact cannot be read", &error))
        }
    }
}
