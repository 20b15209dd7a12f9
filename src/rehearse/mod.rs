//! `souk rehearse`: many buyers at once against a running service, and whether its books balance afterwards.
//!
//! It sees the service only through its HTTP api, as a customer and an auditor would, and may know none of its insides:
//! what it proves would otherwise be that we agree with ourselves. Not for a shop with customers in it: it orders and
//! adds stock, and its sums assume that nobody else does.

pub mod checkout;
pub mod latency;

use std::process::ExitCode;

use clap::{Args, Subcommand};

pub use checkout::CheckoutArgs;

/// Rehearse a rush of buyers against a running service and check its books
#[derive(Debug, Clone, Args)]
pub struct RehearseArgs {
    #[command(subcommand)]
    pub rehearsal: Rehearsal,
}

#[derive(Debug, Clone, Subcommand)]
pub enum Rehearsal {
    Checkout(CheckoutArgs),
}

impl RehearseArgs {
    /// Runs the rehearsal and prints its report. Failure when the books do not balance or nothing was sold.
    pub async fn run(&self) -> ExitCode {
        let Rehearsal::Checkout(args) = &self.rehearsal;
        match checkout::run(args).await {
            Ok(report) => {
                match args.json {
                    true => println!("{}", serde_json::to_string_pretty(&report).unwrap_or_else(|error| error.to_string())),
                    false => print!("{report}"),
                }
                match report.passed {
                    true => ExitCode::SUCCESS,
                    false => ExitCode::FAILURE,
                }
            }
            Err(error) => {
                eprintln!("rehearsal: {error}");
                ExitCode::FAILURE
            }
        }
    }
}
