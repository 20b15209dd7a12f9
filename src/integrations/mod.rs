//! The world outside; knows only domain and persistence.
//!
//! What comes in (a shop's product file) and what goes out (calls to other services) is translated here, once, at the
//! border. Nothing here decides a rule of commerce, and nothing here trusts a size, a format or a delay that another
//! system chose: every field, queue, wait and retry has a bound.

pub mod csv_rows;
pub mod http_catalogue;
pub mod http_client;
pub mod import;
pub mod import_command;
pub mod sandbox;
pub mod shopify_csv;

use std::future::Future;

use crate::domain::Outside;

/// Carries requests to something outside, under a key that makes a repeat harmless there.
pub trait Integration<T: Outside>: Send + Sync + 'static {
    fn carry(&self, request: T::Request, key: String) -> impl Future<Output = T::Answer> + Send;
}
