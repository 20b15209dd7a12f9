//! What load balancers and dashboards ask.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use warp::http::StatusCode;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE};

use super::answer::Answer;
use super::problem::Problem;
use super::request::Request;
use super::{Door, Phase};
use crate::actors::placement::Standing;
use crate::metrics;

#[derive(Serialize, JsonSchema)]
pub(super) struct Health {
    status: &'static str,
    /// Said only when it is so. It makes no node unready: whatever is not a list is as good as ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    lists: Option<&'static str>,
}

pub async fn live(_: Arc<Door>, _: Request) -> Result<Answer, Problem> {
    Ok(Answer::json(StatusCode::OK, &Health { status: "live", lists: None })?.with(CACHE_CONTROL, "no-store"))
}

pub async fn ready(door: Arc<Door>, _: Request) -> Result<Answer, Problem> {
    match (door.phase(), door.runtime.standing()) {
        (Phase::Leaving | Phase::Draining, _) => Err(Problem::not_ready("This node is shutting down.")),
        (_, Standing::Joining) => Err(Problem::not_ready("This node is joining its cluster.")),
        (_, Standing::OutOfTouch) => Err(Problem::not_ready("This node is out of touch with its cluster.")),
        (_, Standing::Leaving) => Err(Problem::not_ready("This node is leaving its cluster.")),
        (Phase::Starting, Standing::InPlace) => Err(Problem::not_ready("This node is starting.")),
        (Phase::Ready, Standing::InPlace) => {
            let lists = door.read_models.health().err().map(|_| "stale");
            Ok(Answer::json(StatusCode::OK, &Health { status: "ready", lists })?.with(CACHE_CONTROL, "no-store"))
        }
    }
}

pub async fn metrics(door: Arc<Door>, _: Request) -> Result<Answer, Problem> {
    door.metrics.live_sessions.set(i64::try_from(door.sessions.open()).unwrap_or(i64::MAX));
    door.metrics.live_watches.set(i64::try_from(door.live.watches()).unwrap_or(i64::MAX));
    let answer = Answer::bytes(StatusCode::OK, "text/plain", door.metrics.exposition().into_bytes());
    Ok(answer.with(CONTENT_TYPE, metrics::CONTENT_TYPE))
}
