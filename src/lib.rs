//! Souk: a marketplace backend made of actors.
pub mod domain;
pub mod persistence;
