//! Souk: a marketplace backend made of actors.
pub mod actors;
pub mod domain;
pub mod integrations;
pub mod persistence;
pub mod read_models;
pub mod rehearse;
