//! `souk migrate`: a stopped shop's data folder becomes a cluster's.
//!
//! The journal first, then the keys, and the secret last of all: a node that finds records and no secret refuses to
//! start, so none serves half a shop. Everything may be done again. The folder is only read, but for the secret of a shop
//! that never had one.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use crate::http::identity::keystore::wrapping::WrappingKey;
use crate::http::identity::keystore::{Folder, Keystore, Name, SharedKeystore};
use crate::http::identity::secret::Secret;
use crate::node::DataFolder;
use crate::persistence::jetstream::Replicated;
use crate::persistence::migration::{Report, Step, migrate};
use crate::persistence::nats::Nats;
use crate::persistence::nats_args::{DemandArgs, NatsArgs};
use crate::persistence::{Embedded, OpenError, Options};

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Keys that are copied at once.
const AT_ONCE: usize = 16;
const BAR_TICK: Duration = Duration::from_millis(200);
const BAR: &str = "{msg} {wide_bar} {pos} of {len} batches, {per_sec}";

/// Move a stopped shop from its data folder to a cluster
#[derive(Args)]
#[command(after_help = "\
Examples:
  souk migrate --data /var/lib/souk --nats nats://a:4222,nats://b:4222,nats://c:4222

The cluster must be empty: no node has served from it yet. Interrupted, it goes on when it is called again; called once
more, it compares both sides and changes nothing. Start no node on the data folder afterwards: what it took would be
missing in the cluster.")]
pub struct MigrateArgs {
    /// The data folder of the stopped node
    #[arg(long, value_name = "FOLDER", default_value = "./data", env = "SOUK_DATA")]
    data: PathBuf,

    /// Seal the shared keys with this key, 64 hex digits, which each node must be given too
    #[arg(long, value_name = "FILE", env = "SOUK_IDENTITY_KEY")]
    identity_key: Option<PathBuf>,

    #[command(flatten)]
    nats: NatsArgs,

    #[command(flatten)]
    demands: DemandArgs,
}

impl MigrateArgs {
    pub async fn run(self) -> Result<(), Failed> {
        if !self.nats.is_given() {
            return Err("--nats: where is the cluster?".into());
        }
        let folder = DataFolder::existing(&self.data)?;
        folder.is_alone()?;
        let (journal, opened) = match Embedded::open(&folder.journal(), Options::default()) {
            Err(OpenError::InUse { .. }) => return Err("a node runs on this data folder: stop it first".into()),
            opened => opened?,
        };
        for repair in &opened.repairs {
            eprintln!("The journal was repaired: {repair}");
        }
        let keys = Folder::new(&self.data);
        // Made now for a shop that is older than accounts: a cluster starts with one or as new.
        Secret::open(&keys, keys.has_vault().await?).await?;
        let secret = keys.get(&Name::Secret).await?.unwrap_or_default();

        let wrapping = self.identity_key.as_deref().map(WrappingKey::read).transpose()?;
        let options = self.nats.options("souk migrate")?;
        let nats = Nats::connect(&options).await?;
        let (stream, prepared) = Replicated::connect(&nats, &options, &self.demands.demands(), None).await?;
        let shared = SharedKeystore::open(nats.client(), nats.prefix().as_str(), prepared.replicas, wrapping).await?;
        // Another secret is another shop.
        if shared.get(&Name::Secret).await?.is_some_and(|there| there.trim_ascii() != secret.trim_ascii()) {
            return Err(AnotherKey { place: shared.place(&Name::Secret) }.into());
        }

        let bar = if io::stderr().is_terminal() { ProgressBar::no_length() } else { ProgressBar::hidden() };
        bar.set_style(ProgressStyle::with_template(BAR)?);
        bar.enable_steady_tick(BAR_TICK);
        let copied = migrate(&*journal, &*stream, |step| show(&bar, step)).await;
        bar.finish_and_clear();
        let report = copied?;
        let moved = copy_keys(&keys, &shared).await?;
        stream.close();
        journal.close();
        tell(&report, &moved);
        Ok(())
    }
}

fn show(bar: &ProgressBar, step: Step) {
    let (message, position, length) = match step {
        Step::ReadingTarget(read) => ("Reading the cluster's", read, None),
        Step::Comparing(read) => ("Comparing", read, None),
        Step::Copying(copied, of) => ("Copying", copied, Some(of)),
    };
    // A template is not worth a lock for each batch.
    if position % 256 != 1 && length != Some(position) {
        return;
    }
    if bar.message() != message {
        bar.set_message(message);
        bar.reset_eta();
    }
    match length {
        Some(length) => bar.set_length(length),
        None => bar.unset_length(),
    }
    bar.set_position(position);
}

fn tell(report: &Report, moved: &Moved) {
    let Report { entities, batches, records, written } = *report;
    let (entities, batches, records) = (HumanCount(entities), HumanCount(batches), HumanCount(records));
    println!("{records} records in {batches} batches of {entities} entities are in the cluster, as they are here.");
    println!("{} signing keys and {} keys of the vault are there, and the secret.", moved.signing, moved.vault);
    match (written, moved.created + moved.destroyed) {
        (0, 0) => println!("Nothing was missing: nothing was changed."),
        (written, keys) => println!("This run wrote {} batches and {} keys.", HumanCount(written), HumanCount(keys)),
    }
}

// Keys --------------------------------------------------------------------------------------------------------------

struct Moved {
    signing: usize,
    vault: usize,
    created: u64,
    /// Those that the folder no longer has.
    destroyed: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("{place} is another than the data folder's: this cluster is not empty, or not this shop's")]
struct AnotherKey {
    place: String,
}

async fn copy_keys(from: &Folder, to: &SharedKeystore) -> Result<Moved, Failed> {
    let signing: Vec<Name> = from.signing_keys().await?.into_iter().map(Name::SigningKey).collect();
    let vault = from.vault_keys()?;
    let mut there: Vec<Name> = to.vault_keys().await?;
    there.extend(to.signing_keys().await?.into_iter().map(Name::SigningKey));
    // A run before this may have copied what the shop has destroyed since.
    let gone: Vec<Name> =
        there.into_iter().filter(|name| !signing.contains(name) && vault.binary_search(name).is_err()).collect();
    stream::iter(&gone)
        .map(|name| async move { to.destroy(name).await.map(drop) })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;

    let copying = stream::iter(signing.iter().chain(&vault)).map(|name| copy_key(from, to, name)).buffer_unordered(AT_ONCE);
    let mut created = copying.try_fold(0, |sum, created| async move { Ok(sum + u64::from(created)) }).await?;
    created += u64::from(copy_key(from, to, &Name::Secret).await?);
    Ok(Moved { signing: signing.len(), vault: vault.len(), created, destroyed: gone.len() as u64 })
}

/// Whether it was not there yet.
async fn copy_key(from: &Folder, to: &SharedKeystore, name: &Name) -> Result<bool, Failed> {
    // Destroyed in the middle of it.
    let Some(value) = from.get(name).await? else { return Ok(false) };
    let created = to.create(name, &value).await?;
    // Read back, whoever wrote it.
    match to.get(name).await? {
        Some(there) if there == value => Ok(created),
        _ => Err(AnotherKey { place: to.place(name) }.into()),
    }
}
