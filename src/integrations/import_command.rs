//! What `souk import` is told on the command line, and its way from there to a report.
//!
//! The journal of a stopped node is a catalogue too; its author hands it to [`ImportArgs::into_catalogue`].

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::http_catalogue::HttpCatalogue;
use super::http_client::ClientError;
use super::import::{Catalogue, IN_FLIGHT, ImportError, ImportReport, Importer};
use super::shopify_csv::{ReadError, Reader};
use crate::domain::Currency;

const EXAMPLES: &str = "\
Examples:
  Into a node that is running, with a vendor's token (its shop is then known):
    SOUK_TOKEN=… souk import products.csv --url http://127.0.0.1:8080

  Into the data folder of a node that is stopped:
    souk import products.csv --data ./data --shop shop_01ARZ3NDEKTSV4RRFFQ69G5FAV --currency USD

The file is Shopify's product export or its current import template; the header says which. A product is known by the
skus of its variants. Importing the same file again changes nothing, and the stock of a sku that exists already is
never touched. Rows with errors are named by line and left out; the others are imported.";

/// Bring the products of a Shopify product CSV into the catalogue
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct ImportArgs {
    /// The product CSV
    pub file: PathBuf,

    /// The data folder of a stopped node; not used when --url is given
    #[arg(long, value_name = "FOLDER", default_value = "./data", env = "SOUK_DATA")]
    pub data: PathBuf,

    /// A running node, e.g. http://127.0.0.1:8080
    #[arg(long, env = "SOUK_URL")]
    pub url: Option<String>,

    /// The access token of the shop's vendor or of an admin, for --url
    #[arg(long, env = "SOUK_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// The shop that the products belong to; not needed with a vendor's token
    #[arg(long, value_name = "ID", env = "SOUK_SHOP")]
    pub shop: Option<String>,

    /// The currency of the file's prices, which the file itself does not say
    #[arg(long, value_name = "ISO_CODE", default_value = "EUR", env = "SOUK_CURRENCY")]
    pub currency: Currency,

    /// How many products may be under way at once
    #[arg(long, value_name = "N", default_value_t = IN_FLIGHT as u16, value_parser = clap::value_parser!(u16).range(1..=1024), env = "SOUK_IN_FLIGHT")]
    pub in_flight: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum ImportCommandError {
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: ReadError },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Import(#[from] ImportError),
}

/// Where the products go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination<'a> {
    Node { url: &'a str },
    DataFolder(&'a Path),
}

impl ImportArgs {
    pub fn destination(&self) -> Destination<'_> {
        match &self.url {
            Some(url) => Destination::Node { url },
            None => Destination::DataFolder(&self.data),
        }
    }

    pub async fn into_node(&self, url: &str) -> Result<ImportReport, ImportCommandError> {
        let catalogue = HttpCatalogue::new(url, self.token.clone(), usize::from(self.in_flight))?;
        self.into_catalogue(catalogue).await
    }

    /// Imports the file, with a line of progress when somebody watches.
    pub async fn into_catalogue<C: Catalogue>(&self, catalogue: C) -> Result<ImportReport, ImportCommandError> {
        let path = &self.file;
        let file = File::open(path).map_err(|source| ImportCommandError::Open { path: path.clone(), source })?;
        let reader =
            Reader::new(file, self.currency).map_err(|source| ImportCommandError::Read { path: path.clone(), source })?;
        let importer = Importer::new(catalogue, self.shop.clone()).with_in_flight(usize::from(self.in_flight));

        let line = match io::stderr().is_terminal() {
            true => ProgressBar::new_spinner(),
            false => ProgressBar::hidden(),
        };
        line.set_style(ProgressStyle::default_spinner());
        line.enable_steady_tick(Duration::from_millis(200));
        let report = importer
            .run(reader, |report| {
                line.set_message(format!(
                    "{} products, {} variants, {} errors",
                    report.products(),
                    report.variants,
                    report.row_errors_count
                ));
            })
            .await;
        line.finish_and_clear();
        Ok(report?)
    }
}
