//! The world outside; knows only domain and persistence.
//!
//! What comes in (a shop's product file) and what goes out (calls to other services) is translated here, once, at the
//! border. Nothing here decides a rule of commerce, and nothing here trusts a size, a format or a delay that another
//! system chose: every field, queue, wait and retry has a bound.

pub mod breaker;
pub mod csv_rows;
pub mod http_catalogue;
pub mod http_client;
pub mod import;
pub mod import_command;
pub mod otlp;
pub mod payment_providers;
pub mod sandbox;
pub mod shopify_csv;
pub mod traceparent;

use std::future::Future;
use std::sync::Arc;

use crate::domain::Outside;

/// What goes with a request to the outside, whatever it asks.
#[derive(Debug, Clone)]
pub struct Call {
    /// Makes a repeat harmless there: the same for each attempt of the same thing.
    pub key: String,
    /// The request of ours that started it all.
    pub correlation: Arc<str>,
}

impl Call {
    pub fn new(key: impl Into<String>, correlation: impl Into<Arc<str>>) -> Self {
        Call { key: key.into(), correlation: correlation.into() }
    }

    /// The `traceparent` that a call over HTTP bears.
    pub fn traceparent(&self) -> String {
        traceparent::traceparent(&self.correlation)
    }
}

/// Carries requests to something outside.
pub trait Integration<T: Outside>: Send + Sync + 'static {
    fn carry(&self, request: T::Request, call: Call) -> impl Future<Output = T::Answer> + Send;
}
