//! The order list: a line for each order, newest first, also by owner, by shop and by status.
//!
//! There may be millions, so it lives on disk and a page reads only its own items. An order's line is written once for
//! each round that changed it. It must never show an order to anybody: who may see what is the door's to decide.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sled::{Batch, Tree};

use super::follower::FoldError;
use super::records::{Unfoldable, briefs};
use super::store::{self, Model, ORDER, ORDER_BY_SHOP, ORDER_BY_STATUS, ORDER_BY_USER};
use super::{Page, ReadModelError, cursor, page_items};
use crate::domain::order::{Owner, Reason, Status};
use crate::domain::{Money, Timestamp};
use crate::persistence::{Committed, EntityKey, Position};

const PREFIX: &str = "order/";
/// A page asked for by owner or shop and status looks at this many of their orders, then ends short with a cursor.
const LOOKED_AT_MAX: usize = 5_000;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct OrderQuery {
    pub whose: Whose,
    /// As the domain writes it, e.g. `payment_failed`.
    pub status: Option<String>,
    /// 0 stands for the default.
    pub limit: usize,
    pub cursor: Option<String>,
}

/// Which orders are listed, whatever their status.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub enum Whose {
    #[default]
    Everybodys,
    Accounts(String),
    /// Those with a line of this shop; each is shown with this shop's part of it.
    Shops(String),
}

/// An order as a list shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrderSummary {
    pub id: String,
    pub status: Status,
    pub total: Money,
    /// Units of all lines together.
    pub items: u64,
    pub placed_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// `None` for a guest's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_user: Option<String>,
}

/// An order as it lies on disk.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    summary: OrderSummary,
    parts: Vec<Part>,
}

/// What of an order one shop sells.
#[derive(Serialize, Deserialize)]
struct Part {
    shop: String,
    items: u64,
    total: Money,
}

/// What is read of `order.created`.
#[derive(Deserialize)]
struct Created {
    draft: Draft,
    placed_at: Timestamp,
}

#[derive(Deserialize)]
struct Draft {
    owner: Owner,
    lines: Vec<Line>,
    total: Money,
}

#[derive(Deserialize)]
struct Line {
    shop: Option<String>,
    quantity: u32,
    total: Money,
}

#[derive(Deserialize)]
struct Claimed {
    user: String,
}

#[derive(Deserialize)]
struct Updated {
    status: Status,
}

#[derive(Deserialize)]
struct Because {
    reason: Reason,
}

struct Listed {
    status: Status,
    owner_user: Option<String>,
}

/// The fold of order events. Holds only the orders that the round under way has touched.
pub(super) struct Orders {
    loaded_at: Position,
    touched: HashMap<EntityKey, Touched>,
}

struct Touched {
    /// What the lists on disk have it under; `None` when nothing is there.
    listed: Option<Listed>,
    stored: Stored,
    changed: bool,
}

impl Orders {
    pub(super) fn load(tree: &Tree) -> Result<Self, ReadModelError> {
        Ok(Orders { loaded_at: store::position(tree, Model::Orders)?, touched: HashMap::new() })
    }

    pub(super) fn loaded_at(&self) -> Position {
        self.loaded_at
    }

    pub(super) fn cares(entity: &EntityKey) -> bool {
        entity.as_str().starts_with(PREFIX)
    }

    pub(super) fn fold(&mut self, tree: &Tree, committed: &Committed) -> Result<(), FoldError> {
        for brief in briefs(committed)? {
            let (status, reason) = match &*brief.event_type {
                "order.created" => {
                    let created: Created = brief.data(committed)?;
                    self.created(committed, created);
                    continue;
                }
                "order.claimed" => {
                    let Claimed { user } = brief.data(committed)?;
                    let touched = self.touch(tree, committed)?;
                    touched.stored.summary.owner_user = Some(user);
                    touched.changed = true;
                    continue;
                }
                "order.updated" => (brief.data::<Updated>(committed)?.status, None),
                "order.paid" => (Status::Paid, None),
                "order.shipped" => (Status::Shipped, None),
                "order.delivered" => (Status::Delivered, None),
                "order.refunded" => (Status::Refunded, None),
                "order.payment_failed" => (Status::PaymentFailed, Some(brief.data::<Because>(committed)?.reason)),
                "order.cancelled" => (Status::Cancelled, Some(brief.data::<Because>(committed)?.reason)),
                "order.line.reserved"
                | "order.line.refused"
                | "order.line.released"
                | "order.line.committed"
                | "order.line.restocked"
                | "order.payment.authorized"
                | "order.payment.captured"
                | "order.payment.capture_failed"
                | "order.payment.voided"
                | "order.payment.refunded"
                | "order.placed_again" => continue,
                _ => return Err(brief.unknown(committed).into()),
            };
            let touched = self.touch(tree, committed)?;
            let summary = &mut touched.stored.summary;
            if summary.status != status {
                summary.status = status;
                touched.changed = true;
            }
            if reason.is_some() && summary.reason != reason {
                summary.reason = reason;
                touched.changed = true;
            }
        }
        Ok(())
    }

    fn created(&mut self, committed: &Committed, created: Created) {
        let Created { draft, placed_at } = created;
        let mut parts: Vec<Part> = Vec::new();
        for line in &draft.lines {
            let Some(shop) = &line.shop else { continue };
            match parts.iter_mut().find(|part| part.shop == *shop) {
                Some(part) => {
                    part.items += u64::from(line.quantity);
                    // A sum that the whole order's total contains.
                    part.total = Money::sum(part.total.currency, [part.total, line.total]).unwrap_or(part.total);
                }
                None => parts.push(Part { shop: shop.clone(), items: u64::from(line.quantity), total: line.total }),
            }
        }
        let summary = OrderSummary {
            id: committed.entity.id().to_owned(),
            status: Status::Pending,
            total: draft.total,
            items: draft.lines.iter().map(|line| u64::from(line.quantity)).sum(),
            placed_at,
            reason: None,
            owner_user: match draft.owner {
                Owner::Account { user } => Some(user),
                Owner::Guest { .. } => None,
            },
        };
        let touched = Touched { listed: None, stored: Stored { summary, parts }, changed: true };
        self.touched.insert(committed.entity.clone(), touched);
    }

    /// The order that an event changes, which an earlier event must have created.
    fn touch(&mut self, tree: &Tree, committed: &Committed) -> Result<&mut Touched, FoldError> {
        if !self.touched.contains_key(&committed.entity) {
            let stored = tree
                .get(order_key(committed.entity.id().as_bytes()))?
                .ok_or_else(|| Unfoldable::new(committed, "the order was never created"))?;
            let stored: Stored =
                serde_json::from_slice(&stored).map_err(|error| Unfoldable::new(committed, format!("as stored: {error}")))?;
            let listed = Listed { status: stored.summary.status, owner_user: stored.summary.owner_user.clone() };
            let touched = Touched { listed: Some(listed), stored, changed: false };
            self.touched.insert(committed.entity.clone(), touched);
        }
        let touched = self.touched.get_mut(&committed.entity);
        touched.ok_or_else(|| Unfoldable::new(committed, "the order was lost").into())
    }

    /// Puts the round's changes into a batch; whether there were any.
    pub(super) fn write(&mut self, batch: &mut Batch) -> Result<bool, FoldError> {
        let mut any = false;
        for (entity, Touched { listed, stored, changed }) in self.touched.drain() {
            if !changed {
                continue;
            }
            any = true;
            let id = entity.id();
            batch.insert(order_key(id.as_bytes()), serde_json::to_vec(&stored)?);
            let Stored { summary, parts } = stored;
            let was = listed.as_ref().map(|listed| listed.status);
            if was != Some(summary.status) {
                if let Some(was) = was {
                    batch.remove(under(ORDER_BY_STATUS, status_text(was), id));
                }
                batch.insert(under(ORDER_BY_STATUS, status_text(summary.status), id), &[]);
            }
            if listed.is_none() {
                parts.iter().for_each(|part| batch.insert(under(ORDER_BY_SHOP, &part.shop, id), &[]));
            }
            // An order goes from a guest to an account, and never from one account to another.
            if let Some(user) = &summary.owner_user
                && listed.is_none_or(|listed| listed.owner_user.is_none())
            {
                batch.insert(under(ORDER_BY_USER, user, id), &[]);
            }
        }
        Ok(any)
    }
}

fn order_key(id: &[u8]) -> Vec<u8> {
    [&[ORDER], id].concat()
}

/// The key of an order in a list of those with the same `text`.
fn under(kind: u8, text: &str, id: &str) -> Vec<u8> {
    let mut key = store::key(kind, text);
    key.extend_from_slice(id.as_bytes());
    key
}

/// As serde writes it.
pub(super) fn status_text(status: Status) -> &'static str {
    match status {
        Status::Absent => "absent",
        Status::Pending => "pending",
        Status::Reserved => "reserved",
        Status::Paid => "paid",
        Status::Shipped => "shipped",
        Status::Delivered => "delivered",
        Status::Cancelled => "cancelled",
        Status::PaymentFailed => "payment_failed",
        Status::Refunded => "refunded",
    }
}

/// One page: walks the list of the owner or shop, else that of the status, else that of all orders, from its newest end.
pub(super) fn page(tree: &Tree, query: &OrderQuery) -> Result<Page<OrderSummary>, ReadModelError> {
    let limit = page_items(query.limit);
    let scope = serde_json::to_vec(&("orders", &query.whose, &query.status))
        .map_err(|error| ReadModelError::Unavailable(error.to_string()))?;
    let before = query.cursor.as_deref().map(|cursor| cursor::open(&scope, cursor)).transpose()?;

    let list = match (&query.whose, &query.status) {
        (Whose::Accounts(user), _) => store::key(ORDER_BY_USER, user),
        (Whose::Shops(shop), _) => store::key(ORDER_BY_SHOP, shop),
        (Whose::Everybodys, Some(status)) => store::key(ORDER_BY_STATUS, status),
        (Whose::Everybodys, None) => vec![ORDER],
    };
    let end = match &before {
        Some(place) => [list.as_slice(), place].concat(),
        // No id starts with this byte: it is not UTF-8.
        None => [list.as_slice(), &[0xff]].concat(),
    };
    let mut items = Vec::with_capacity(limit);
    let mut place = Vec::new();
    for (looked_at, entry) in tree.range(list.clone()..end).rev().enumerate() {
        if items.len() == limit || looked_at == LOOKED_AT_MAX {
            // There is at least this one more.
            return Ok(Page { items, next_cursor: Some(cursor::seal(&scope, &place)) });
        }
        let (key, value) = entry?;
        place = key.get(list.len()..).unwrap_or_default().to_vec();
        let stored = match (&query.whose, &query.status) {
            (Whose::Everybodys, None) => Some(value),
            (Whose::Accounts(_) | Whose::Shops(_), Some(status))
                if !tree.contains_key([&store::key(ORDER_BY_STATUS, status), place.as_slice()].concat())? =>
            {
                None
            }
            _ => tree.get(order_key(&place))?,
        };
        let Some(stored) = stored else { continue };
        let Stored { mut summary, parts } = serde_json::from_slice(&stored)
            .map_err(|error| ReadModelError::Unavailable(format!("an order's line cannot be read: {error}")))?;
        if let Whose::Shops(shop) = &query.whose
            && let Some(part) = parts.into_iter().find(|part| part.shop == *shop)
        {
            summary.items = part.items;
            summary.total = part.total;
        }
        // It may have left this status since its key was read.
        if query.status.as_deref().is_none_or(|status| status == status_text(summary.status)) {
            items.push(summary);
        }
    }
    Ok(Page { items, next_cursor: None })
}
