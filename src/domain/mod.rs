//! What commerce is: pure state machines, one file for each kind of entity.
//!
//! Nothing here knows async, clocks, I/O, actors or the network; time, ids and who asks are handed in. Each rule is
//! tested as a table of (given events, when command, then events) beside the code that holds it.

#[cfg(test)]
mod account_tests;
pub mod cart;
pub mod email;
pub mod entity;
pub mod flash_sale;
pub mod ids;
pub mod inventory;
pub mod money;
pub mod order;
pub mod payment;
pub mod product;
pub mod request;
#[cfg(test)]
mod saga_tests;
pub mod shop;
#[cfg(test)]
mod testing;
pub mod time;
pub mod turn;
pub mod user;

pub use cart::Cart;
pub use email::Email;
pub use entity::{CommandId, Context, Debt, Decision, Entity, Outside, Recipient, Reply, Saga, SagaEnding};
pub use flash_sale::FlashSale;
pub use inventory::Inventory;
pub use money::{Currency, Money};
pub use order::Order;
pub use payment::Payment;
pub use product::Product;
pub use request::Request;
pub use shop::Shop;
pub use time::Timestamp;
pub use user::User;

/// Does something with every kind of entity that there is.
pub trait EveryKind {
    fn kind<E: Entity>(&mut self);
}

/// The register of kinds: a new one is its file here and its line below.
pub fn every_kind(visitor: &mut impl EveryKind) {
    visitor.kind::<Product>();
    visitor.kind::<Inventory>();
    visitor.kind::<Cart>();
    visitor.kind::<Order>();
    visitor.kind::<Payment>();
    visitor.kind::<Request>();
    visitor.kind::<User>();
    visitor.kind::<Email>();
    visitor.kind::<Shop>();
    visitor.kind::<FlashSale>();
}
