//! A node, put together: data folder, journal, runtime, read models; opened in this order and closed in the other.
//!
//! The only place that knows every part. No part may know this module, except the command line and the demo.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ulid::Ulid;

use crate::actors::clock::Clock;
use crate::actors::runtime::StartError;
use crate::actors::{AskError, Builder, Caller, Config, Failure, Runtime};
use crate::domain::product::{self, Content, SHOP_DEFAULT};
use crate::domain::{CommandId, Inventory, Product, every_kind, ids, payment, user};
use crate::http::identity::keys::Keys;
use crate::http::identity::{Identity, IdentityError};
use crate::http::sealing::Shredder;
use crate::integrations::import::{Catalogue, CatalogueError};
use crate::integrations::payment_providers::PaymentProviders;
use crate::integrations::sandbox::{self, Sandbox};
use crate::persistence::{Embedded, OpenError, Options, Snapshots};
use crate::read_models::{ReadModelError, ReadModels};

/// What lies where in a data folder.
#[derive(Debug, Clone)]
pub struct DataFolder(PathBuf);

impl DataFolder {
    /// Opens the folder, making it if need be. It is for this user's eyes only.
    pub fn open(path: &Path) -> Result<Self, NodeError> {
        let failed = |source| NodeError::DataFolder { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
        Ok(DataFolder(path.to_owned()))
    }

    /// A folder that is there already, for whoever only looks.
    pub fn existing(path: &Path) -> Result<Self, NodeError> {
        fs::read_dir(path).map_err(|source| NodeError::DataFolder { path: path.to_owned(), source })?;
        Ok(DataFolder(path.to_owned()))
    }

    pub fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }

    pub fn snapshots(&self) -> PathBuf {
        self.0.join("snapshots")
    }

    pub fn read_models(&self) -> PathBuf {
        self.0.join("read-models")
    }

    /// The keys that sign access tokens, one PEM file for each.
    pub fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    /// The secret of this installation. Without it no account is found by its e-mail: keep a copy of it.
    pub fn secret(&self) -> PathBuf {
        self.0.join("secret")
    }

    /// The keys that seal personal data, one for each user. No backup of it may outlive what a deletion promises.
    pub fn vault(&self) -> PathBuf {
        self.0.join("vault")
    }

    /// Where the running node can be reached.
    pub fn address(&self) -> PathBuf {
        self.0.join("address")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("the data folder {} cannot be used: {source}", path.display())]
    DataFolder { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Journal(#[from] OpenError),
    #[error(transparent)]
    Runtime(#[from] StartError),
    #[error(transparent)]
    ReadModels(#[from] ReadModelError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl DataFolder {
    /// The keys that sign access tokens: the folder's own, whose first is made, unless one is given.
    pub fn signing_keys(&self, given: Option<&Path>) -> Result<Keys, IdentityError> {
        let now = Clock::default().now();
        Ok(match given {
            Some(file) => Keys::given(file, now)?,
            None => Keys::open(&self.keys(), now)?,
        })
    }
}

/// A node without its door.
pub struct Node {
    pub journal: Arc<Embedded>,
    pub runtime: Runtime,
    pub read_models: Arc<ReadModels>,
    pub identity: Arc<Identity>,
    pub payment_providers: Arc<PaymentProviders>,
}

impl Node {
    pub async fn open(
        folder: &DataFolder,
        signing_key: Option<&Path>,
        journal: Options,
        config: Config,
    ) -> Result<Node, NodeError> {
        let (journal, report) = Embedded::open(&folder.journal(), journal)?;
        for repair in &report.repairs {
            tracing::warn!("the journal was repaired: {repair}");
        }
        let keys = folder.signing_keys(signing_key)?;
        let identity = Arc::new(Identity::open(keys, &folder.secret(), &folder.vault())?);
        let snapshots = Arc::new(Snapshots::open(&folder.snapshots()));
        let mut builder = Builder::new(journal.clone(), snapshots, config);
        every_kind(&mut builder);
        let payment_providers = Arc::new(PaymentProviders::default().with(sandbox::NAME, Sandbox));
        let builder = builder.outside::<payment::Provider>(payment_providers.clone());
        let runtime = builder.outside::<user::Vault>(Arc::new(Shredder(identity.vault.clone()))).start().await?;
        let read_models = ReadModels::open(folder.read_models(), journal.clone())?;
        Ok(Node { journal, runtime, read_models, identity, payment_providers })
    }

    /// Lets what is in flight finish, has entities write their snapshots, and closes the journal.
    pub async fn close(self, deadline: Duration) {
        if !self.runtime.drain(deadline).await {
            tracing::warn!("not all entities left in time; they come back from the journal");
        }
        self.read_models.close().await;
        let journal = self.journal.clone();
        let closed = tokio::task::spawn_blocking(move || journal.close());
        if tokio::time::timeout(deadline, closed).await.is_err() {
            tracing::warn!("the journal did not close in time; nothing acknowledged depends on it");
        }
    }
}

/// The catalogue of a node in this process, for imports.
pub struct NodeCatalogue(Runtime);

impl Node {
    pub fn catalogue(&self) -> NodeCatalogue {
        NodeCatalogue(self.runtime.clone())
    }
}

impl NodeCatalogue {
    async fn ask(&self, id: &str, command: product::Command) -> Result<(), CatalogueError> {
        let caller = Caller::new(CommandId(format!("import:{}", Ulid::new())), "import", "import");
        match self.0.ask::<Product>(id, command, caller).await {
            Ok(_) => Ok(()),
            Err(AskError::Rejected(rejection)) => Err(CatalogueError::Refused { reason: rejection.to_string() }),
            Err(AskError::Failed(failure)) => Err(CatalogueError::Unavailable { reason: failure.to_string() }),
        }
    }
}

impl Catalogue for NodeCatalogue {
    async fn find_by_sku(&self, sku: &str) -> Result<Option<(String, Content)>, CatalogueError> {
        let unavailable = |failure: Failure| CatalogueError::Unavailable { reason: failure.to_string() };
        let product = self.0.view::<Inventory, _>(sku, |item, _| item.product.clone()).await.map_err(unavailable)?;
        let Some(id) = product else {
            return Ok(None);
        };
        let content = self.0.view::<Product, _>(&id, |product, _| product.content.clone()).await.map_err(unavailable)?;
        Ok(Some((id, content)))
    }

    async fn create(&self, mut content: Content, stock: BTreeMap<String, u32>) -> Result<(), CatalogueError> {
        if content.shop.is_empty() {
            content.shop = SHOP_DEFAULT.to_owned();
        }
        let id = format!("{}_{}", ids::PRODUCT, Ulid::new());
        self.ask(&id, product::Command::Create { content, stock }).await
    }

    async fn update(&self, id: &str, content: Content, stock: BTreeMap<String, u32>) -> Result<(), CatalogueError> {
        self.ask(id, product::Command::Update { content, stock }).await
    }
}
