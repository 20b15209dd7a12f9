//! Shops: what vendors sell under.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use warp::http::StatusCode;

use super::Door;
use super::answer::Answer;
use super::problem::Problem;
use super::request::{Request, present};
use super::users::NAME_PATTERN;
use crate::actors::{AskError, Failure, shown};
use crate::domain::shop::{Command, Content, DESCRIPTION_CHARS_MAX, NAME_CHARS_MAX};
use crate::domain::{CommandId, Entity, Shop, ids};

/// How often a change is merged anew because somebody else was first.
const MERGES_MAX: u32 = 8;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewShop")]
pub(super) struct ShopBody {
    #[schemars(length(max = NAME_CHARS_MAX), regex(pattern = NAME_PATTERN))]
    name: String,
    #[serde(default)]
    #[schemars(length(max = DESCRIPTION_CHARS_MAX))]
    description: String,
}

/// What is given replaces what was; what is left out stays.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ShopPatch {
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "String", length(max = NAME_CHARS_MAX), regex(pattern = NAME_PATTERN))]
    name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "String", length(max = DESCRIPTION_CHARS_MAX))]
    description: Option<String>,
}

/// Opens the caller's one shop, which makes a vendor of it.
pub async fn open(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let ShopBody { name, description } = request.json()?;
    let account = request.account()?;
    let (id, owner) = (request.new_id(ids::SHOP), account.user.to_string());
    let command = Command::Open { owner, content: Content { name, description } };
    let answered = door.runtime.ask::<Shop>(&id, command, request.caller()?).await?;
    door.gate.forget(&account.user);
    let answer = show(&door, &request, &id, StatusCode::CREATED).await?;
    Ok(answer.location(&format!("/api/shops/{id}")).position(answered.position))
}

pub async fn get(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::SHOP)?;
    show(&door, &request, id, StatusCode::OK).await
}

async fn show(door: &Door, request: &Request, id: &str, status: StatusCode) -> Result<Answer, Problem> {
    let own_id = id.to_owned();
    let look = move |state: &<Shop as Entity>::State, version| {
        shown::shop(&own_id, state).map(|shown| (Answer::json(status, &shown), version))
    };
    match door.runtime.view::<Shop, _>(id, look).await? {
        None => Err(Problem::not_found()),
        Some((_, version)) if status == StatusCode::OK && request.has_version(version) => {
            Ok(Answer::empty(StatusCode::NOT_MODIFIED).etag(version))
        }
        Some((answer, version)) => Ok(answer?.etag(version)),
    }
}

pub async fn change(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let id = request.id_param(0, ids::SHOP)?;
    let patch: ShopPatch = request.json()?;
    let given = request.caller()?;
    for attempt in 0..MERGES_MAX {
        let look = |state: &<Shop as Entity>::State, version| state.is_open().then(|| (state.content.clone(), version));
        let Some((mut content, version)) = door.runtime.view::<Shop, _>(id, look).await? else {
            return Err(Problem::not_found());
        };
        let ShopPatch { name, description } = patch.clone();
        content.name = name.unwrap_or(content.name);
        content.description = description.unwrap_or(content.description);
        let mut caller = given.clone();
        // The merge is right only for the version that it was made of.
        caller.if_version = Some(given.if_version.unwrap_or(version));
        caller.command = CommandId(format!("{}/{attempt}", request.seed.id));
        match door.runtime.ask::<Shop>(id, Command::Update { content }, caller).await {
            Ok(answered) => return Ok(show(&door, &request, id, StatusCode::OK).await?.position(answered.position)),
            Err(AskError::Failed(Failure::VersionDiffers { .. })) if given.if_version.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Problem::contended())
}
