//! A product: what is sold, in which variants, at which price. Each variant's sku is claimed at its inventory item.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{CommandId, Money};

pub struct Product;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub phase: Phase,
    pub content: Content,
    /// Skus of variants that were removed (or never granted) and that are still to be given up.
    pub giving_up: Vec<String>,
    /// The change that waits for its new skus to be claimed.
    pub pending: Option<Pending>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    #[default]
    Absent,
    /// Waits for its skus; not for sale, not shown.
    Claiming,
    Live,
    Deleted,
}

/// Everything of a product that its vendor writes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Content {
    pub shop: String,
    /// The readable part of its address, e.g. `summit-pro-harness`.
    pub handle: String,
    pub title: String,
    pub description: String,
    pub vendor: String,
    pub product_type: String,
    /// From the general to the special, e.g. `["Kitchen", "Coffee Machines"]`.
    pub category: Vec<String>,
    pub tags: Vec<String>,
    /// The names of the options, at most three, e.g. `["Size", "Color"]`.
    pub options: Vec<String>,
    pub variants: Vec<Variant>,
    pub published: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    pub sku: String,
    pub price: Money,
    /// One value for each of the product's options, in their order.
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    pub command: CommandId,
    /// Initial stock of each sku that is still to be claimed.
    pub claims: BTreeMap<String, u32>,
    /// Skus that belong to another product.
    pub refused: Vec<String>,
    /// What the product was before, restored when a claim is refused; `None` for a new product.
    pub before: Option<Box<Content>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Answered when every sku is claimed, or refused as a whole. `stock`: initial units by sku.
    Create {
        content: Content,
        stock: BTreeMap<String, u32>,
    },
    /// Replaces the content; answered at once when it brings no new sku. The same content again changes nothing.
    /// `version`: the caller's If-Match is checked by the runtime's caller, not here.
    Update {
        content: Content,
        stock: BTreeMap<String, u32>,
    },
    Delete,
    HeardClaim {
        sku: String,
        granted: bool,
    },
    HeardGivenUp {
        sku: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Created,
    Updated,
    Unchanged,
    Deleted,
    Noted,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    #[error("no such product")]
    Unknown,
    #[error("the product exists already")]
    Exists,
    /// `field`: a JSON Pointer into the content.
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    #[error("these skus belong to other products: {}", skus.join(", "))]
    SkusTaken { skus: Vec<String> },
    #[error("another change of this product is still claiming its skus")]
    Busy,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    /// The product is written down and starts to claim its skus.
    #[serde(rename = "product.drafted")]
    Drafted { command: CommandId, content: Content, stock: BTreeMap<String, u32> },
    #[serde(rename = "product.sku.claimed")]
    SkuClaimed { sku: String },
    #[serde(rename = "product.sku.refused")]
    SkuRefused { sku: String },
    #[serde(rename = "product.sku.given_up")]
    SkuGivenUp { sku: String },
    /// All skus are claimed: the product is in the catalogue. Carries the content for whoever follows.
    #[serde(rename = "product.created")]
    Created { content: Content },
    /// New content that brings new skus waits for their claim.
    #[serde(rename = "product.update_drafted")]
    UpdateDrafted { command: CommandId, content: Content, stock: BTreeMap<String, u32> },
    #[serde(rename = "product.updated")]
    Updated { content: Content },
    /// A claim was refused; the content is what it was before.
    #[serde(rename = "product.update_refused")]
    UpdateRefused { skus: Vec<String> },
    #[serde(rename = "product.deleted")]
    Deleted { reason: String },
}
