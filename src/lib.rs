//! Souk: a marketplace backend made of actors.
pub mod actors;
pub mod domain;
pub mod http;
pub mod metrics;
pub mod persistence;
pub mod read_models;
