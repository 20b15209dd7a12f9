//! What commerce is: pure state machines, one file for each kind of entity.
//!
//! Nothing here knows async, clocks, I/O, actors or the network; time, ids and who asks are handed in. Each rule is
//! tested as a table of (given events, when command, then events) beside the code that holds it.

pub mod cart;
pub mod entity;
pub mod ids;
pub mod inventory;
pub mod money;
pub mod order;
pub mod payment;
pub mod product;
pub mod request;
pub mod time;

pub use cart::Cart;
pub use entity::{CommandId, Context, Debt, Decision, Entity, Outside, Recipient, Reply};
pub use inventory::Inventory;
pub use money::{Currency, Money};
pub use order::Order;
pub use payment::Payment;
pub use product::Product;
pub use request::Request;
pub use time::Timestamp;
