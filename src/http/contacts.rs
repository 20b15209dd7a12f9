//! Whom an order is for and where it goes.

use super::Door;
use super::problem::Problem;
use crate::domain::order::{Address, Contact};

/// The e-mail and the address.
pub async fn open(_door: &Door, contact: &Contact) -> Result<Option<(Option<String>, Address)>, Problem> {
    match contact {
        Contact::Plain { email, shipping_address } => Ok(Some((email.clone(), shipping_address.clone()))),
        Contact::Sealed { .. } => Ok(None),
    }
}
