//! Inventory items: how much of each sku there is.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use warp::http::StatusCode;

use super::Door;
use super::answer::Answer;
use super::problem::Problem;
use super::request::Request;
use crate::actors::shown;
use crate::domain::inventory::Command;
use crate::domain::{Entity, Inventory};

const REASON_CHARS_MAX: usize = 200;
/// As many units as an item can hold can come or go at once.
const DELTA_MAX: i64 = u32::MAX as i64;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "StockAdjustment")]
pub(super) struct AdjustmentBody {
    /// Units that came, or went if negative.
    #[schemars(range(min = -DELTA_MAX, max = DELTA_MAX), extend("not" = { "const": 0 }))]
    delta: i64,
    #[schemars(length(max = REASON_CHARS_MAX), regex(pattern = r"\S"))]
    reason: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "InventoryPatch")]
pub(super) struct InventoryPatch {
    low_stock_threshold: u32,
}

pub async fn get(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let sku = request.sku_param(0)?;
    show(&door, &request, sku).await
}

async fn show(door: &Door, request: &Request, sku: &str) -> Result<Answer, Problem> {
    let own_sku = sku.to_owned();
    let look = move |state: &<Inventory as Entity>::State, version| {
        Some((Answer::json(StatusCode::OK, &shown::inventory(&own_sku, state, version)?), version))
    };
    match door.runtime.view::<Inventory, _>(sku, look).await? {
        None => Err(Problem::not_found()),
        Some((_, version)) if request.has_version(version) => Ok(Answer::empty(StatusCode::NOT_MODIFIED).etag(version)),
        Some((answer, version)) => Ok(answer?.etag(version)),
    }
}

pub async fn adjust(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let sku = request.sku_param(0)?;
    let AdjustmentBody { delta, reason } = request.json()?;
    if delta == 0 || !(-DELTA_MAX..=DELTA_MAX).contains(&delta) {
        return Err(Problem::bad_body("/delta", format!("must be between -{DELTA_MAX} and {DELTA_MAX}, and not 0")));
    }
    if reason.trim().is_empty() || reason.chars().count() > REASON_CHARS_MAX {
        return Err(Problem::bad_body("/reason", "say why, in at most 200 characters"));
    }
    let answered = door.runtime.ask::<Inventory>(sku, Command::Adjust { delta, reason }, request.caller()?).await?;
    Ok(show(&door, &request, sku).await?.position(answered.position))
}

pub async fn change(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let sku = request.sku_param(0)?;
    let InventoryPatch { low_stock_threshold } = request.json()?;
    let command = Command::SetThreshold { low_stock_threshold };
    let answered = door.runtime.ask::<Inventory>(sku, command, request.caller()?).await?;
    Ok(show(&door, &request, sku).await?.position(answered.position))
}
