//! The supervision tree: a root, one supervisor for each kind, and under it that kind's entities.
//!
//! A supervisor only reports deaths to its kind and must hold no logic of its own that could fail: were it to end, its
//! children would end with it.

use std::marker::PhantomData;
use std::sync::Arc;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;

use super::kind::Kind;
use crate::domain::Entity;

/// Supervises the supervisors. One of them ending means that the node can no longer keep its word.
pub struct Root;

impl Actor for Root {
    type Msg = ();
    type State = watch::Sender<Option<String>>;
    type Arguments = watch::Sender<Option<String>>;

    async fn pre_start(&self, _: ActorRef<()>, fatal: watch::Sender<Option<String>>) -> Result<Self::State, ActorProcessingErr> {
        Ok(fatal)
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        fatal: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            tracing::error!(%error, "a supervisor ended");
            fatal.send_replace(Some(format!("a supervisor ended: {error}")));
        }
        Ok(())
    }
}

/// Supervises the entities of one kind.
pub struct KindSupervisor<E>(PhantomData<fn() -> E>);

impl<E: Entity> KindSupervisor<E> {
    pub async fn start(kind: Arc<Kind<E>>, root: ActorCell) -> Result<ActorCell, ractor::SpawnErr> {
        let (actor, _join) = Actor::spawn_linked(None, KindSupervisor::<E>(PhantomData), kind, root).await?;
        Ok(actor.get_cell())
    }
}

impl<E: Entity> Actor for KindSupervisor<E> {
    type Msg = ();
    type State = Arc<Kind<E>>;
    type Arguments = Arc<Kind<E>>;

    async fn pre_start(&self, _: ActorRef<()>, kind: Arc<Kind<E>>) -> Result<Self::State, ActorProcessingErr> {
        Ok(kind)
    }

    /// ractor's default would end the supervisor, and every entity of the kind, with the first child that ends.
    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        kind: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(actor, error) = event {
            kind.died(actor.get_id(), &error.to_string());
        }
        Ok(())
    }
}
