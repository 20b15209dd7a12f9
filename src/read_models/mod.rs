//! STUB for the door's branch only: the read models replace this file at the merge.
#![allow(clippy::unimplemented, unused_variables, missing_docs)]

use std::time::Duration;

use serde::Serialize;

use crate::persistence::Position;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProductQuery {
    pub q: Option<String>,
    pub category: Option<String>,
    pub tag: Option<String>,
    pub shop: Option<String>,
    pub min_price: Option<i64>,
    pub max_price: Option<i64>,
    pub in_stock: Option<bool>,
    pub sort: ProductSort,
    pub limit: usize,
    pub cursor: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProductSort {
    #[default]
    Relevance,
    Newest,
    PriceUp,
    PriceDown,
    Title,
}

#[derive(Debug, Clone, Serialize)]
pub struct ProductSummary {}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct OrderQuery {
    pub owner_user: Option<String>,
    pub status: Option<String>,
    pub limit: usize,
    pub cursor: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct OrderSummary {}

#[derive(Debug, Clone, Serialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next_cursor: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadModelError {
    #[error("this cursor was not given out by this list")]
    BadCursor,
    #[error("the read model is unavailable: {0}")]
    Unavailable(String),
}

#[derive(Clone)]
pub struct ReadModels(());

impl ReadModels {
    pub fn stub() -> Self {
        ReadModels(())
    }

    pub async fn products(&self, query: ProductQuery) -> Result<Page<ProductSummary>, ReadModelError> {
        unimplemented!()
    }

    pub async fn orders(&self, query: OrderQuery) -> Result<Page<OrderSummary>, ReadModelError> {
        unimplemented!()
    }

    pub async fn reached(&self, position: Position, timeout: Duration) -> bool {
        unimplemented!()
    }
}
