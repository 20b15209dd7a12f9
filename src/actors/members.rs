//! The cluster as the runtime sees it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::placement::{Lease, MemberSeen, NoAnswer, Owner, Placement, Standing};
use crate::cluster::{self, AskError, Cluster, Name, State};
use crate::persistence::EntityKey;

pub struct Members(Cluster);

impl Members {
    pub fn new(cluster: Cluster) -> Self {
        Members(cluster)
    }
}

impl Placement for Members {
    fn owner(&self, entity: &EntityKey) -> Owner {
        match self.0.owner(entity) {
            cluster::Owner::Here => Owner::Here,
            cluster::Owner::Member(name) => Owner::Member(name.as_str().into()),
            cluster::Owner::Unknown => Owner::Unknown,
        }
    }

    fn lease(&self, entity: &EntityKey) -> Lease {
        let cluster::Lease { until, tenure } = self.0.lease(entity);
        Lease { until, tenure }
    }

    fn standing(&self) -> Standing {
        match self.0.standing() {
            cluster::Standing::Joining => Standing::Joining,
            cluster::Standing::InPlace => Standing::InPlace,
            cluster::Standing::OutOfTouch => Standing::OutOfTouch,
            cluster::Standing::Leaving => Standing::Leaving,
        }
    }

    fn members(&self) -> Vec<MemberSeen> {
        let view = self.0.view().borrow().clone();
        let seen = view.members.iter().map(|member| MemberSeen {
            name: member.name.as_str().into(),
            is_self: member.name == view.name,
            state: match member.state {
                State::Joining => "joining",
                State::Active => "active",
                State::Draining => "draining",
                State::Left => "left",
            },
            http: member.http.to_string(),
            version: member.version.to_string(),
            partitions: view.partitions(&member.name).map(|partition| partition.0).collect(),
        });
        seen.collect()
    }

    fn ask<'a>(&'a self, member: &'a str, question: Bytes, wait: Duration) -> BoxFuture<'a, Result<Bytes, NoAnswer>> {
        Box::pin(async move {
            let name = Name::parse(member).map_err(|_| NoAnswer::NotThere)?;
            self.0.ask(&name, question, wait).await.map_err(|error| match error {
                AskError::NoSuchMember(_) | AskError::Overloaded(_) => NoAnswer::NotThere,
                AskError::TooLarge { .. } | AskError::TimedOut(_) | AskError::Lost(_) => NoAnswer::Lost(error.to_string()),
            })
        })
    }
}
