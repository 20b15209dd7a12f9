//! The list of flash sales: a line for each, the soonest start first, also by sku, by shop and by status.
//!
//! Only what happens to the sale as a whole changes a line, and claims come by the thousand each second: a batch that holds
//! nothing else is looked over ([`Sales::cares`]) and not parsed. How many units are left is not in the list for the same
//! reason. It must never show a draft to anybody whom its reader did not name.

use std::collections::HashMap;

use memchr::memmem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sled::{Batch, Tree};

use super::follower::FoldError;
use super::records::{Unfoldable, briefs};
use super::store::{self, Model, SALE, SALE_BY_SHOP, SALE_BY_SKU, SALE_BY_START, SALE_BY_STATUS};
use super::{Page, ReadModelError, cursor, page_items};
use crate::domain::flash_sale::{Status, Terms};
use crate::domain::{Money, Timestamp};
use crate::persistence::{Committed, EntityKey, Position};

const PREFIX: &str = "flash_sale/";
/// How a record says what it is, up to the part after the dot. In a text that somebody wrote, quotes are escaped.
const MARK: &str = r#""type":"flash_sale."#;
/// The rest of the types that change no line, those that there are most of first.
const PASSED: [&str; 15] = [
    "claimed",
    "queued",
    "checkout_started",
    "sold",
    "admitted",
    "claim_expired",
    "claim_released",
    "ticket.away",
    "ticket.back",
    "ticket.left",
    "allotted",
    "reminder.requested",
    "available_again",
    "starting_soon",
    "tuned",
];
/// A page looks at this many sales, then ends short with a cursor.
const LOOKED_AT_MAX: usize = 5_000;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct SaleQuery {
    pub drafts: Drafts,
    /// As the domain writes it, e.g. `sold_out`.
    pub status: Option<String>,
    pub sku: Option<String>,
    pub shop: Option<String>,
    /// 0 stands for the default.
    pub limit: usize,
    pub cursor: Option<String>,
}

/// Whose drafts are listed along.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub enum Drafts {
    #[default]
    Nobodys,
    Shops(String),
    Everybodys,
}

/// A flash sale as a list shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlashSaleSummary {
    pub id: String,
    pub status: Status,
    pub sku: String,
    pub product_id: String,
    pub shop_id: Option<String>,
    pub title: String,
    pub price: Money,
    /// All units of the sale, sold or not.
    pub quantity: u32,
    pub per_customer_limit: u32,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    /// Whether one need not be signed in.
    pub guests: bool,
}

impl FlashSaleSummary {
    fn new(id: &str, status: Status, terms: Terms) -> Self {
        let Terms { sku, product, shop, title, price, quantity, per_customer_limit, starts_at, ends_at, guests, .. } = terms;
        let (product_id, shop_id) = (product, shop);
        let id = id.to_owned();
        FlashSaleSummary {
            id,
            status,
            sku,
            product_id,
            shop_id,
            title,
            price,
            quantity,
            per_customer_limit,
            starts_at,
            ends_at,
            guests,
        }
    }

    /// Its key in each list.
    fn keys(&self) -> Vec<Vec<u8>> {
        // Moments are never negative.
        let place = [&self.starts_at.as_millis().to_be_bytes()[..], self.id.as_bytes()].concat();
        let mut lists = vec![vec![SALE_BY_START], store::key(SALE_BY_STATUS, status_text(self.status))];
        lists.push(store::key(SALE_BY_SKU, &self.sku));
        lists.extend(self.shop_id.as_deref().map(|shop| store::key(SALE_BY_SHOP, shop)));
        lists.into_iter().map(|list| [list, place.clone()].concat()).collect()
    }

    fn is_for(&self, query: &SaleQuery) -> bool {
        let is_draft = matches!(self.status, Status::Absent | Status::Draft | Status::Arming);
        let shown = match &query.drafts {
            Drafts::Everybodys => true,
            Drafts::Shops(shop) => !is_draft || self.shop_id.as_ref() == Some(shop),
            Drafts::Nobodys => !is_draft,
        };
        shown
            && query.status.as_deref().is_none_or(|status| status == status_text(self.status))
            && query.sku.as_deref().is_none_or(|sku| sku == self.sku)
            && query.shop.as_deref().is_none_or(|shop| self.shop_id.as_deref() == Some(shop))
    }
}

#[derive(Deserialize)]
struct Agreed {
    terms: Terms,
}

/// The fold of life-cycle events. Holds only the sales that the round under way has touched.
pub(super) struct Sales {
    loaded_at: Position,
    touched: HashMap<EntityKey, Touched>,
}

struct Touched {
    /// As it is on disk; `None` when nothing is there.
    stored: Option<FlashSaleSummary>,
    now: FlashSaleSummary,
}

impl Sales {
    pub(super) fn load(tree: &Tree) -> Result<Self, ReadModelError> {
        Ok(Sales { loaded_at: store::position(tree, Model::Sales)?, touched: HashMap::new() })
    }

    pub(super) fn loaded_at(&self) -> Position {
        self.loaded_at
    }

    pub(super) fn is_sale(entity: &EntityKey) -> bool {
        entity.as_str().starts_with(PREFIX)
    }

    /// Whether a batch of a sale may change its line. What is not understood may.
    pub(super) fn cares(committed: &Committed) -> bool {
        let payload = &committed.batch.payload;
        let mut passed = 0;
        for at in memmem::find_iter(payload, MARK.as_bytes()) {
            let rest = payload.get(at + MARK.len()..).unwrap_or_default();
            let is_passed = |name: &&str| rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"\""));
            if !PASSED.iter().any(is_passed) {
                return true;
            }
            passed += 1;
        }
        passed != committed.batch.count
    }

    pub(super) fn fold(&mut self, tree: &Tree, committed: &Committed) -> Result<(), FoldError> {
        for brief in briefs(committed)? {
            let status = match &*brief.event_type {
                "flash_sale.created" => {
                    let Agreed { terms } = brief.data(committed)?;
                    let now = FlashSaleSummary::new(committed.entity.id(), Status::Draft, terms);
                    self.touched.insert(committed.entity.clone(), Touched { stored: None, now });
                    continue;
                }
                "flash_sale.updated" => {
                    let Agreed { terms } = brief.data(committed)?;
                    let now = &mut self.touch(tree, committed)?.now;
                    *now = FlashSaleSummary::new(committed.entity.id(), now.status, terms);
                    continue;
                }
                // A refund of a sale that was sold out opens it again.
                "flash_sale.returned" => match self.touch(tree, committed)?.now.status {
                    Status::SoldOut => Status::Active,
                    _ => continue,
                },
                "flash_sale.approved" => Status::Arming,
                "flash_sale.refused" => Status::Draft,
                "flash_sale.scheduled" => Status::Scheduled,
                "flash_sale.started" | "flash_sale.resumed" => Status::Active,
                "flash_sale.paused" => Status::Paused,
                "flash_sale.sold_out" => Status::SoldOut,
                "flash_sale.ended" => Status::Ended,
                "flash_sale.cancelled" => Status::Cancelled,
                passed if passed.strip_prefix("flash_sale.").is_some_and(|name| PASSED.contains(&name)) => continue,
                _ => return Err(brief.unknown(committed).into()),
            };
            self.touch(tree, committed)?.now.status = status;
        }
        Ok(())
    }

    /// The sale that an event changes, which an earlier event must have created.
    fn touch(&mut self, tree: &Tree, committed: &Committed) -> Result<&mut Touched, FoldError> {
        if !self.touched.contains_key(&committed.entity) {
            let stored = tree
                .get(sale_key(committed.entity.id().as_bytes()))?
                .ok_or_else(|| Unfoldable::new(committed, "the flash sale was never created"))?;
            let stored: FlashSaleSummary =
                serde_json::from_slice(&stored).map_err(|error| Unfoldable::new(committed, format!("as stored: {error}")))?;
            let touched = Touched { now: stored.clone(), stored: Some(stored) };
            self.touched.insert(committed.entity.clone(), touched);
        }
        let touched = self.touched.get_mut(&committed.entity);
        touched.ok_or_else(|| Unfoldable::new(committed, "the flash sale was lost").into())
    }

    /// Puts the round's changes into a batch; whether there were any.
    pub(super) fn write(&mut self, batch: &mut Batch) -> Result<bool, FoldError> {
        let mut any = false;
        for (entity, Touched { stored, now }) in self.touched.drain() {
            if stored.as_ref() == Some(&now) {
                continue;
            }
            any = true;
            stored.iter().flat_map(FlashSaleSummary::keys).for_each(|key| batch.remove(key));
            now.keys().into_iter().for_each(|key| batch.insert(key, &[]));
            batch.insert(sale_key(entity.id().as_bytes()), serde_json::to_vec(&now)?);
        }
        Ok(any)
    }
}

fn sale_key(id: &[u8]) -> Vec<u8> {
    [&[SALE], id].concat()
}

/// As serde writes it.
fn status_text(status: Status) -> &'static str {
    match status {
        Status::Absent => "absent",
        Status::Draft => "draft",
        Status::Arming => "arming",
        Status::Scheduled => "scheduled",
        Status::Active => "active",
        Status::Paused => "paused",
        Status::SoldOut => "sold_out",
        Status::Ended => "ended",
        Status::Cancelled => "cancelled",
    }
}

/// One page: walks the list of the sku, else that of the shop, else that of the status, else that of all sales.
pub(super) fn page(tree: &Tree, query: &SaleQuery) -> Result<Page<FlashSaleSummary>, ReadModelError> {
    let limit = page_items(query.limit);
    let scope = serde_json::to_vec(&("flash sales", &query.drafts, &query.status, &query.sku, &query.shop))
        .map_err(|error| ReadModelError::Unavailable(error.to_string()))?;
    let after = query.cursor.as_deref().map(|cursor| cursor::open(&scope, cursor)).transpose()?;
    let list = match (&query.sku, &query.shop, &query.status) {
        (Some(sku), _, _) => store::key(SALE_BY_SKU, sku),
        (None, Some(shop), _) => store::key(SALE_BY_SHOP, shop),
        (None, None, Some(status)) => store::key(SALE_BY_STATUS, status),
        (None, None, None) => vec![SALE_BY_START],
    };
    let begin = match &after {
        // The first key after it.
        Some(place) => [list.as_slice(), place, &[0]].concat(),
        None => list.clone(),
    };
    // No moment starts with this byte.
    let end = [list.as_slice(), &[0xff]].concat();
    let mut items = Vec::with_capacity(limit);
    let mut place = Vec::new();
    for (looked_at, entry) in tree.range(begin..end).enumerate() {
        if items.len() == limit || looked_at == LOOKED_AT_MAX {
            // There is at least this one more.
            return Ok(Page { items, next_cursor: Some(cursor::seal(&scope, &place)) });
        }
        let (key, _) = entry?;
        place = key.get(list.len()..).unwrap_or_default().to_vec();
        let Some(stored) = tree.get(sale_key(place.get(size_of::<i64>()..).unwrap_or_default()))? else { continue };
        let summary: FlashSaleSummary = serde_json::from_slice(&stored)
            .map_err(|error| ReadModelError::Unavailable(format!("a flash sale's line cannot be read: {error}")))?;
        // It may have changed since its key was read.
        if summary.is_for(query) {
            items.push(summary);
        }
    }
    Ok(Page { items, next_cursor: None })
}
