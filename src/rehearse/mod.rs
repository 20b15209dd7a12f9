//! `souk rehearse`: many buyers at once against a running service, and whether its books balance afterwards.
//!
//! It sees the service only through its HTTP api, as a customer and an auditor would, and may know none of its insides:
//! what it proves would otherwise be that we agree with ourselves. Not for a shop with customers in it: it orders and
//! adds stock, and its sums assume that nobody else does.

mod answers;
mod chart;
pub mod checkout;
pub mod flash_sale;
pub mod latency;
mod report;

use std::fmt::Display;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

pub use answers::RehearseError;
pub use checkout::CheckoutArgs;
pub use flash_sale::FlashSaleArgs;

/// Rehearse a rush of buyers against a running service and check its books
#[derive(Debug, Clone, Args)]
pub struct RehearseArgs {
    #[command(subcommand)]
    pub rehearsal: Rehearsal,
}

#[derive(Debug, Clone, Subcommand)]
pub enum Rehearsal {
    Checkout(CheckoutArgs),
    FlashSale(Box<FlashSaleArgs>),
}

impl RehearseArgs {
    /// Runs the rehearsal and prints its report. Failure when the books do not balance or nothing was sold.
    pub async fn run(&self) -> ExitCode {
        let told = match &self.rehearsal {
            Rehearsal::Checkout(args) => checkout::run(args).await.map(|report| tell(&report, args.json, report.passed)),
            Rehearsal::FlashSale(args) => flash_sale::run(args).await.map(|report| tell(&report, args.json, report.passed)),
        };
        told.unwrap_or_else(|error| {
            eprintln!("rehearsal: {error}");
            ExitCode::FAILURE
        })
    }
}

fn tell(report: &(impl Serialize + Display), as_json: bool, passed: bool) -> ExitCode {
    match as_json {
        true => println!("{}", serde_json::to_string_pretty(report).unwrap_or_else(|error| error.to_string())),
        false => print!("{report}"),
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
