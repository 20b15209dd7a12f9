//! The cluster as its operator sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use warp::http::StatusCode;

use super::Door;
use super::answer::Answer;
use super::problem::Problem;
use super::request::{Query, Request};
use crate::actors::Failure;
use crate::actors::placement::MemberSeen;
use crate::actors::runtime::SetAside;
use crate::persistence::{self, inspect::InspectError};

#[derive(Serialize, JsonSchema)]
pub(super) struct Cluster {
    /// By name.
    members: Vec<Member>,
    /// Entities in memory, by kind, on all members that can be reached.
    residents: BTreeMap<String, usize>,
    set_aside: Vec<SetAside>,
    /// Commands that wait for an answer.
    waiting: usize,
    /// Entities that owe something or wait for a moment.
    agenda: usize,
    live_sessions: usize,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Member {
    name: String,
    /// Whether this is the node that answers.
    #[serde(rename = "self")]
    is_self: bool,
    /// `joining`, `active`, `draining` or `left`.
    state: String,
    /// Where its door is, as it says itself.
    http: String,
    /// Of the program.
    version: String,
    /// How many of the 256 partitions of all entities it owns.
    partitions: usize,
    /// Which ones.
    owned: Vec<u8>,
    /// Entities that left it because another node has them now; `null` when it does not answer.
    handovers: Option<u64>,
    /// Entities in memory there, by kind; `null` when it does not answer.
    residents: Option<BTreeMap<String, usize>>,
}

pub async fn get(door: Arc<Door>, _: Request) -> Result<Answer, Problem> {
    let seen = match door.runtime.members().await {
        Some(members) => members,
        None => {
            let alone = MemberSeen {
                name: door.config.node_name.as_str().into(),
                is_self: true,
                state: "active",
                http: door.config.listen.to_string(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                partitions: (0..=u8::MAX).collect(),
            };
            vec![(alone, Some(door.runtime.census()))]
        }
    };
    let mut cluster = Cluster {
        members: Vec::new(),
        residents: BTreeMap::new(),
        set_aside: Vec::new(),
        waiting: 0,
        agenda: 0,
        live_sessions: 0,
    };
    for (MemberSeen { name, is_self, state, http, version, partitions }, census) in seen {
        let residents = census.as_ref().map(|census| census.residents.clone());
        let (name, state) = (name.to_string(), state.to_owned());
        let handovers = census.as_ref().map(|census| census.handovers);
        let (partitions, owned) = (partitions.len(), partitions);
        cluster.members.push(Member { name, is_self, state, http, version, partitions, owned, handovers, residents });
        let Some(census) = census else { continue };
        for (kind, count) in census.residents {
            *cluster.residents.entry(kind).or_default() += count;
        }
        cluster.set_aside.extend(census.set_aside);
        cluster.waiting += census.waiting;
        cluster.agenda += census.agenda;
        cluster.live_sessions += census.live_sessions;
    }
    Answer::json(StatusCode::OK, &cluster)
}

/// Takes an entity back that was set aside.
pub async fn release(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let (kind, id) = (request.param(0), request.param(1));
    if !door.runtime.release(kind, id).await {
        return Err(Problem::not_found());
    }
    tracing::info!(kind, id, "an operator took an entity back that was set aside");
    Ok(Answer::empty(StatusCode::NO_CONTENT))
}

/// An entity's state and history from the journal, as `souk inspect` prints them.
pub async fn inspect(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let until = Query::parse(&request.query, &["until"])?.parsed("until", "a version")?;
    match persistence::inspect::inspect(&**door.runtime.journal(), request.param(0), request.param(1), until).await {
        Ok(inspection) => Answer::json(StatusCode::OK, &inspection),
        Err(InspectError::Read(error)) => Err(Failure::from(error).into()),
        Err(InspectError::NoSuchKind { .. } | InspectError::Unknown { .. }) => Err(Problem::not_found()),
    }
}
