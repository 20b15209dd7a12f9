//! What a live connection can follow: a topic names an entity, and says who may see it.

use std::fmt;

use super::board::{self, Seen};
use super::credential::Credential;
use super::permissions::Permission;
use super::runtime::Runtime;
use super::{Failure, shown};
use crate::domain::{Cart, Entity, FlashSale, Inventory, Order, ids};
use crate::persistence::{EntityKey, Version};

/// An entity that can be followed, as clients name it: `order:ord_…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    kind: Kind,
    name: String,
    key: EntityKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Order,
    Cart,
    Inventory,
    FlashSale,
}

/// Somebody may follow the topic.
pub enum Admitted {
    /// Its records, of which this is the newest.
    Records(Version),
    /// Its states: see `board`.
    States(Seen),
}

/// No topic has this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown topic")]
pub struct UnknownTopic;

impl Topic {
    /// Parses `order:ID`, `cart:ID`, `flash_sale:ID` or `inventory:SKU`.
    pub fn parse(name: &str) -> Result<Self, UnknownTopic> {
        let (prefix, id) = name.split_once(':').ok_or(UnknownTopic)?;
        let (kind, key) = match prefix {
            "order" if ids::is_id(ids::ORDER, id) => (Kind::Order, EntityKey::new(Order::KIND, id)),
            "cart" if ids::is_id(ids::CART, id) => (Kind::Cart, EntityKey::new(Cart::KIND, id)),
            "flash_sale" if ids::is_id(ids::FLASH_SALE, id) => (Kind::FlashSale, EntityKey::new(FlashSale::KIND, id)),
            "inventory" if ids::is_sku(id) => (Kind::Inventory, EntityKey::new(Inventory::KIND, id)),
            _ => return Err(UnknownTopic),
        };
        Ok(Topic { kind, name: name.to_owned(), key })
    }

    pub fn key(&self) -> &EntityKey {
        &self.key
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the topic stands; `None` when it does not exist or is not this caller's to see.
    pub async fn admit(&self, runtime: &Runtime, credential: &Credential) -> Result<Option<Admitted>, Failure> {
        let id = self.key.id();
        let credential = credential.clone();
        let version = match self.kind {
            Kind::FlashSale => return Ok(board::admit(runtime, id, &credential).await?.map(Admitted::States)),
            Kind::Inventory => runtime.view::<Inventory, _>(id, |_, version| (version > 0).then_some(version)).await,
            Kind::Order => {
                let look = move |state: &<Order as Entity>::State, version| {
                    let draft = state.draft.as_ref()?;
                    credential.reaches_order(Permission::OrderFollow, draft).then_some(version)
                };
                runtime.view::<Order, _>(id, look).await
            }
            Kind::Cart => {
                let look = move |state: &<Cart as Entity>::State, version| {
                    state.owner.as_ref().filter(|owner| credential.owns(owner)).map(|_| version)
                };
                runtime.view::<Cart, _>(id, look).await
            }
        };
        version.map(|version| version.map(Admitted::Records))
    }

    /// The newest state in JSON with its version; `null` when it is gone.
    pub async fn state(&self, runtime: &Runtime) -> Result<(Version, String), Failure> {
        fn json<T: serde::Serialize>(shown: Option<T>) -> String {
            serde_json::to_string(&shown).unwrap_or_else(|_| "null".into())
        }
        let id = self.key.id().to_owned();
        match self.kind {
            Kind::Inventory => {
                // Everybody may know how much is left, and no more: see `shown`.
                #[derive(serde::Serialize)]
                struct Left<'a> {
                    sku: &'a str,
                    available: u64,
                }
                let look = move |state: &<Inventory as Entity>::State, version| {
                    let left = shown::inventory(&id, state, version).map(|s| Left { sku: s.sku, available: s.available });
                    (version, json(left))
                };
                runtime.view::<Inventory, _>(self.key.id(), look).await
            }
            Kind::Order => {
                let look = move |state: &<Order as Entity>::State, version| (version, json(shown::order(&id, state)));
                runtime.view::<Order, _>(self.key.id(), look).await
            }
            Kind::Cart => {
                let look = move |state: &<Cart as Entity>::State, version| (version, json(shown::cart(&id, state)));
                runtime.view::<Cart, _>(self.key.id(), look).await
            }
            Kind::FlashSale => {
                let state = board::state(runtime, self.key.id()).await?;
                Ok(state.unwrap_or_else(|| (0, json::<()>(None))))
            }
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The name of the topic that follows this entity, if one does.
pub fn topic_name(key: &EntityKey) -> Option<String> {
    let prefix = match key.kind() {
        kind if kind == Order::KIND => "order",
        kind if kind == Cart::KIND => "cart",
        kind if kind == Inventory::KIND => "inventory",
        kind if kind == FlashSale::KIND => "flash_sale",
        _ => return None,
    };
    Some(format!("{prefix}:{}", key.id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_names_an_entity_and_nonsense_names_none() {
        for (name, key) in [
            ("order:ord_01ARZ3NDEKTSV4RRFFQ69G5FAV", "order/ord_01ARZ3NDEKTSV4RRFFQ69G5FAV"),
            ("cart:cart_01ARZ3NDEKTSV4RRFFQ69G5FAV", "cart/cart_01ARZ3NDEKTSV4RRFFQ69G5FAV"),
            ("flash_sale:fs_01ARZ3NDEKTSV4RRFFQ69G5FAV", "flash_sale/fs_01ARZ3NDEKTSV4RRFFQ69G5FAV"),
            ("inventory:red:shirt/XL", "inventory/red:shirt/XL"),
        ] {
            let topic = Topic::parse(name).unwrap();
            assert_eq!(topic.key().as_str(), key);
            assert_eq!(topic_name(topic.key()).as_deref(), Some(name));
        }
        for name in ["", "order", "order:", "order:cart_01ARZ3NDEKTSV4RRFFQ69G5FAV", "flash_sale:x", "shop:x", "inventory: x"] {
            assert_eq!(Topic::parse(name), Err(UnknownTopic), "{name}");
        }
    }
}
