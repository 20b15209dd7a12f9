//! The order list: a line for each order, newest first, also by owner and by status.
//!
//! There may be millions, so it lives on disk and a page reads only its own items. An order's line is written once for
//! each round that changed it. It must never show an order to anybody: who may see what is the door's to decide.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sled::{Batch, Tree};

use super::follower::FoldError;
use super::records::{Unfoldable, briefs};
use super::store::{self, Model, ORDER, ORDER_BY_STATUS, ORDER_BY_USER};
use super::{Page, ReadModelError, cursor, page_items};
use crate::domain::order::{Owner, Reason, Status};
use crate::domain::{Money, Timestamp};
use crate::persistence::{Committed, EntityKey, Position};

const PREFIX: &str = "order/";
/// A page asked for by owner and status looks at this many of the owner's orders, then ends short with a cursor.
const LOOKED_AT_MAX: usize = 5_000;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct OrderQuery {
    pub owner_user: Option<String>,
    /// As the domain writes it, e.g. `payment_failed`.
    pub status: Option<String>,
    /// 0 stands for the default.
    pub limit: usize,
    pub cursor: Option<String>,
}

/// An order as a list shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrderSummary {
    pub id: String,
    pub status: Status,
    pub total: Money,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Units of all lines together.
    pub items: u64,
    pub placed_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// `None` for a guest's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_user: Option<String>,
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
    email: Option<String>,
}

#[derive(Deserialize)]
struct Line {
    quantity: u32,
}

#[derive(Deserialize)]
struct Updated {
    status: Status,
}

#[derive(Deserialize)]
struct Because {
    reason: Reason,
}

/// The fold of order events. Holds only the orders that the round under way has touched.
pub(super) struct Orders {
    loaded_at: Position,
    touched: HashMap<EntityKey, Touched>,
}

struct Touched {
    /// What is on disk; `None` when nothing is.
    stored: Option<Status>,
    summary: OrderSummary,
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
                "order.updated" => (brief.data::<Updated>(committed)?.status, None),
                "order.paid" => (Status::Paid, None),
                "order.shipped" => (Status::Shipped, None),
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
            if touched.summary.status != status {
                touched.summary.status = status;
                touched.changed = true;
            }
            if reason.is_some() && touched.summary.reason != reason {
                touched.summary.reason = reason;
                touched.changed = true;
            }
        }
        Ok(())
    }

    fn created(&mut self, committed: &Committed, created: Created) {
        let Created { draft, placed_at } = created;
        let summary = OrderSummary {
            id: committed.entity.id().to_owned(),
            status: Status::Pending,
            total: draft.total,
            email: draft.email,
            items: draft.lines.iter().map(|line| u64::from(line.quantity)).sum(),
            placed_at,
            reason: None,
            owner_user: match draft.owner {
                Owner::Account { user } => Some(user),
                Owner::Guest { .. } => None,
            },
        };
        self.touched.insert(committed.entity.clone(), Touched { stored: None, summary, changed: true });
    }

    /// The order that an event changes, which an earlier event must have created.
    fn touch(&mut self, tree: &Tree, committed: &Committed) -> Result<&mut Touched, FoldError> {
        if !self.touched.contains_key(&committed.entity) {
            let stored = tree
                .get(order_key(committed.entity.id().as_bytes()))?
                .ok_or_else(|| Unfoldable::new(committed, "the order was never created"))?;
            let summary: OrderSummary =
                serde_json::from_slice(&stored).map_err(|error| Unfoldable::new(committed, format!("as stored: {error}")))?;
            let touched = Touched { stored: Some(summary.status), summary, changed: false };
            self.touched.insert(committed.entity.clone(), touched);
        }
        let touched = self.touched.get_mut(&committed.entity);
        touched.ok_or_else(|| Unfoldable::new(committed, "the order was lost").into())
    }

    /// Puts the round's changes into a batch; whether there were any.
    pub(super) fn write(&mut self, batch: &mut Batch) -> Result<bool, FoldError> {
        let mut any = false;
        for (entity, Touched { stored, summary, changed }) in self.touched.drain() {
            if !changed {
                continue;
            }
            any = true;
            let id = entity.id();
            batch.insert(order_key(id.as_bytes()), serde_json::to_vec(&summary)?);
            if stored != Some(summary.status) {
                if let Some(stored) = stored {
                    batch.remove(under(ORDER_BY_STATUS, status_text(stored), id));
                }
                batch.insert(under(ORDER_BY_STATUS, status_text(summary.status), id), &[]);
            }
            if stored.is_none()
                && let Some(user) = &summary.owner_user
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
        Status::Cancelled => "cancelled",
        Status::PaymentFailed => "payment_failed",
        Status::Refunded => "refunded",
    }
}

/// One page: walks the list of the owner, else that of the status, else that of all orders, from its newest end.
pub(super) fn page(tree: &Tree, query: &OrderQuery) -> Result<Page<OrderSummary>, ReadModelError> {
    let limit = page_items(query.limit);
    let scope = serde_json::to_vec(&("orders", &query.owner_user, &query.status))
        .map_err(|error| ReadModelError::Unavailable(error.to_string()))?;
    let before = query.cursor.as_deref().map(|cursor| cursor::open(&scope, cursor)).transpose()?;

    let list = match (&query.owner_user, &query.status) {
        (Some(user), _) => store::key(ORDER_BY_USER, user),
        (None, Some(status)) => store::key(ORDER_BY_STATUS, status),
        (None, None) => vec![ORDER],
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
        let stored = match (&query.owner_user, &query.status) {
            (None, None) => Some(value),
            (Some(_), Some(status))
                if !tree.contains_key([&store::key(ORDER_BY_STATUS, status), place.as_slice()].concat())? =>
            {
                None
            }
            _ => tree.get(order_key(&place))?,
        };
        let Some(stored) = stored else { continue };
        let summary: OrderSummary = serde_json::from_slice(&stored)
            .map_err(|error| ReadModelError::Unavailable(format!("an order's line cannot be read: {error}")))?;
        // It may have left this status since its key was read.
        if query.status.as_deref().is_none_or(|status| status == status_text(summary.status)) {
            items.push(summary);
        }
    }
    Ok(Page { items, next_cursor: None })
}
