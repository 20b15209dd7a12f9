//! The cluster as its operator sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use warp::http::StatusCode;

use super::Door;
use super::answer::Answer;
use super::problem::Problem;
use super::request::Request;
use crate::actors::Failure;
use crate::actors::runtime::SetAside;
use crate::persistence::{self, inspect::InspectError};

#[derive(Serialize, JsonSchema)]
pub(super) struct Cluster<'a> {
    members: Vec<Member<'a>>,
    /// Entities in memory, by kind.
    residents: BTreeMap<&'static str, usize>,
    set_aside: Vec<SetAside>,
    /// Commands that wait for an answer.
    waiting: usize,
    /// Entities that owe something or wait for a moment.
    agenda: usize,
    live_sessions: usize,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Member<'a> {
    name: &'a str,
    #[serde(rename = "self")]
    is_self: bool,
}

pub async fn get(door: Arc<Door>, _: Request) -> Result<Answer, Problem> {
    let census = door.runtime.census();
    let cluster = Cluster {
        members: vec![Member { name: &door.config.node_name, is_self: true }],
        residents: census.residents,
        set_aside: census.set_aside,
        waiting: census.waiting,
        agenda: census.agenda,
        live_sessions: door.sessions.open(),
    };
    Answer::json(StatusCode::OK, &cluster)
}

/// Takes an entity back that was set aside.
pub async fn release(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let (kind, id) = (request.param(0), request.param(1));
    if !door.runtime.release(kind, id) {
        return Err(Problem::not_found());
    }
    tracing::info!(kind, id, "an operator took an entity back that was set aside");
    Ok(Answer::empty(StatusCode::NO_CONTENT))
}

/// An entity's state and history from the journal, as `souk inspect` prints them.
pub async fn inspect(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    match persistence::inspect::inspect(&**door.runtime.journal(), request.param(0), request.param(1)).await {
        Ok(inspection) => Answer::json(StatusCode::OK, &inspection),
        Err(InspectError::Read(error)) => Err(Failure::Unreadable(error).into()),
        Err(InspectError::NoSuchKind { .. } | InspectError::Unknown { .. }) => Err(Problem::not_found()),
    }
}
