//! A node, put together: data folder, journal, runtime, read models; opened in this order and closed in the other.
//!
//! The only place that knows every part. No part may know this module, except the command line and the demo.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use ulid::Ulid;

use crate::actors::clock::Clock;
use crate::actors::members::Members;
use crate::actors::retry::backoff_ms;
use crate::actors::runtime::StartError;
use crate::actors::{AskError, Builder, Caller, Config, Failure, Runtime};
use crate::cluster::{self, Cluster, Name, NatsWire, NatsWireOptions, WireError};
use crate::domain::product::{self, Content, SHOP_DEFAULT};
use crate::domain::{CommandId, Inventory, Product, every_kind, ids, payment, user};
use crate::http::identity::keys::Keys;
use crate::http::identity::keystore::wrapping::WrappingKey;
use crate::http::identity::keystore::{Folder, Keystore, KeystoreError, SharedKeystore};
use crate::http::identity::{Identity, IdentityError};
use crate::http::sealing::Shredder;
use crate::integrations::import::{Catalogue, CatalogueError};
use crate::integrations::payment_providers::PaymentProviders;
use crate::integrations::sandbox::{self, Sandbox};
use crate::persistence::bucket::BucketError;
use crate::persistence::jetstream::{self, Demands, Replicated};
use crate::persistence::nats::{Nats, NatsError, NatsOptions};
use crate::persistence::shared_snapshots::SharedSnapshots;
use crate::persistence::{Embedded, Journal, OpenError, Options, Position, Snapshots};
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

    /// The copy of a cluster's agenda.
    pub fn agenda(&self) -> PathBuf {
        self.0.join("agenda")
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

    /// The `secret` of this installation, without which no account is found by its e-mail (keep a copy of it); the `vault`,
    /// whose keys seal personal data, one for each user (no backup of it may outlive what a deletion promises); and `keys`.
    pub fn keystore(&self) -> Arc<dyn Keystore> {
        Arc::new(Folder::new(&self.0))
    }

    /// Says whose folder it is, if it is that of a cluster's member.
    fn mark(&self) -> PathBuf {
        self.0.join("cluster")
    }

    fn member(&self) -> Result<Option<Mark>, NodeError> {
        let failed = |source| NodeError::DataFolder { path: self.0.clone(), source };
        match fs::read(self.mark()) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_else(|_| Mark::torn()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Refuses the folder of a cluster's member, whose journal and keys are not in it.
    pub fn is_alone(&self) -> Result<(), NodeError> {
        match self.member()? {
            None => Ok(()),
            Some(Mark { prefix, member, .. }) => Err(NodeError::OfMember { path: self.0.clone(), prefix, member }),
        }
    }

    /// Refuses a folder with a journal of its own, or with what is known of another shop. Another member's of the same
    /// shop will do: what is there is as good for this one.
    fn is_for(&self, prefix: &str) -> Result<(), NodeError> {
        let path = self.0.clone();
        match self.member()? {
            Some(there) if there.prefix != prefix && there.prefix != UNKNOWN => {
                Err(NodeError::OfAnotherShop { path, prefix: there.prefix })
            }
            Some(_) => Ok(()),
            None if self.journal().exists() => Err(NodeError::OfNodeAlone { path }),
            None => Ok(()),
        }
    }

    /// Lists of another stream are forgotten: a position means another batch now. Snapshots and the agenda see to that
    /// themselves.
    fn belongs_to(&self, mark: &Mark) -> Result<(), NodeError> {
        let failed = |source| NodeError::DataFolder { path: self.0.clone(), source };
        if self.member()?.is_some_and(|there| there.stream != mark.stream) {
            tracing::warn!(path = %self.0.display(), "the journal is another one than the lists in this folder are of: they are built anew");
            match fs::remove_dir_all(self.read_models()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        let text = serde_json::to_string(mark).map_err(|error| failed(error.into()))?;
        let new = self.mark().with_extension("new");
        fs::write(&new, text + "\n").and_then(|()| fs::rename(&new, self.mark())).map_err(failed)
    }

    /// Where the running node can be reached.
    pub fn address(&self) -> PathBuf {
        self.0.join("address")
    }
}

/// No prefix and no name is written so.
const UNKNOWN: &str = "?";

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    prefix: String,
    member: String,
    /// When the stream of the journal was made.
    stream: String,
}

impl Mark {
    /// What a power failure can leave. All there is can be rebuilt, so the next start may write it anew.
    fn torn() -> Mark {
        let unknown = || UNKNOWN.to_owned();
        Mark { prefix: unknown(), member: unknown(), stream: unknown() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("the data folder {} cannot be used: {source}", path.display())]
    DataFolder { path: PathBuf, source: io::Error },
    #[error(
        "the data folder {} is that of {member}, a member of a cluster: its journal and keys are in NATS, under the prefix {prefix}. \
         Name the servers by --nats, and for what a node is to do a node by --url",
        path.display()
    )]
    OfMember { path: PathBuf, prefix: String, member: String },
    #[error(
        "the data folder {} holds the journal of a node that is alone: move it to the cluster by `souk migrate --data {} --nats …`, \
         and start this node on another folder",
        path.display(),
        path.display()
    )]
    OfNodeAlone { path: PathBuf },
    #[error("the data folder {} is that of another shop, with the NATS prefix {prefix}: take another folder", path.display())]
    OfAnotherShop { path: PathBuf, prefix: String },
    #[error(transparent)]
    Journal(#[from] OpenError),
    #[error(transparent)]
    Runtime(#[from] StartError),
    #[error(transparent)]
    ReadModels(#[from] ReadModelError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error(transparent)]
    Stream(#[from] jetstream::OpenError),
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
    #[error(transparent)]
    Snapshots(#[from] BucketError),
    #[error(transparent)]
    Register(#[from] cluster::nats_wire::OpenError),
    #[error(transparent)]
    Cluster(#[from] WireError),
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

/// How often a node reads again who must be woken of all that it owns.
const AGENDA_AGAIN: Duration = Duration::from_secs(10);
/// How often a node that leaves looks whether all have left.
const HAND_OVER_LOOK: Duration = Duration::from_millis(20);
/// How long a node that leaves waits for others to see its entities' newest states.
const SNAPSHOTS_FLUSH: Duration = Duration::from_secs(5);

/// A node without its door.
pub struct Node {
    pub journal: Arc<dyn Journal>,
    pub runtime: Runtime,
    pub read_models: Arc<ReadModels>,
    pub identity: Arc<Identity>,
    pub payment_providers: Arc<PaymentProviders>,
    store: Store,
}

/// Where the journal lies, and with whom it is shared.
enum Store {
    Folder(Arc<Embedded>),
    Cluster { journal: Arc<Replicated>, snapshots: Arc<Snapshots>, cluster: Cluster, follower: JoinHandle<()> },
}

/// How a node finds its cluster.
pub struct Joining {
    pub nats: NatsOptions,
    pub demands: Demands,
    /// What the shared keys are sealed with, if they are.
    pub identity_key: Option<WrappingKey>,
    pub name: Name,
    /// Where its door is.
    pub http: String,
}

impl Node {
    /// A node that is alone, with all that it knows in its data folder.
    pub async fn open(
        folder: &DataFolder,
        signing_key: Option<&Path>,
        journal: Options,
        config: Config,
    ) -> Result<Node, NodeError> {
        folder.is_alone()?;
        let (embedded, report) = Embedded::open(&folder.journal(), journal)?;
        for repair in &report.repairs {
            tracing::warn!("the journal was repaired: {repair}");
        }
        let keys = folder.signing_keys(signing_key)?;
        let identity = Arc::new(Identity::open(keys, folder.keystore()).await?);
        let snapshots = Arc::new(Snapshots::open(&folder.snapshots()));
        let journal: Arc<dyn Journal> = embedded.clone();
        let builder = Builder::new(journal.clone(), snapshots, config);
        Node::over(folder, journal, identity, builder, Store::Folder(embedded)).await
    }

    /// A member of a cluster. The data folder then holds only what can be rebuilt.
    pub async fn join(
        folder: &DataFolder,
        signing_key: Option<&Path>,
        joining: Joining,
        config: Config,
    ) -> Result<Node, NodeError> {
        let Joining { nats: options, demands, identity_key, name, http } = joining;
        folder.is_for(options.prefix.as_str())?;
        let nats = Nats::connect(&options).await?;
        let (journal, prepared) = Replicated::connect(&nats, &options, &demands, Some(folder.agenda())).await?;
        let (client, prefix) = (nats.client(), nats.prefix().as_str());
        folder.belongs_to(&Mark {
            prefix: prefix.to_owned(),
            member: name.as_str().to_owned(),
            stream: prepared.made.clone(),
        })?;
        let keystore = Arc::new(SharedKeystore::open(client, prefix, prepared.replicas, identity_key).await?);
        let (has_accounts, now) = (journal.highest() > Position(0), Clock::new(config.clock).now());
        let identity = Arc::new(Identity::open_shared(keystore, signing_key, has_accounts, now).await?);
        let shared = SharedSnapshots::open(client, prefix, prepared.replicas).await?;
        let snapshots = Arc::new(Snapshots::open(&folder.snapshots()).over(shared));
        let wire_options = NatsWireOptions { prefix: prefix.to_owned(), replicas: Some(prepared.replicas) };
        // Of its own: a heartbeat waits behind no batch of the journal.
        let members = Nats::connect(&NatsOptions { name: format!("{} members", options.name), ..options }).await?;
        let wire = NatsWire::open(members.client().clone(), &wire_options).await?;
        let cluster = Cluster::join(cluster::Options { name, http, born: Ulid::new() }, Arc::new(wire)).await?;
        let builder = Builder::new(journal.clone(), snapshots.clone(), config).among(Arc::new(Members::new(cluster.clone())));
        let store =
            Store::Cluster { journal: journal.clone(), snapshots, cluster: cluster.clone(), follower: tokio::spawn(async {}) };
        let mut node = Node::over(folder, journal, identity, builder, store).await?;
        let runtime = node.runtime.clone();
        cluster.serve(Arc::new(move |question, _| {
            let runtime = runtime.clone();
            Box::pin(async move { runtime.serve(&question).await.into() })
        }));
        if let Store::Cluster { follower, .. } = &mut node.store {
            *follower = tokio::spawn(follow_members(cluster, node.runtime.clone()));
        }
        Ok(node)
    }

    async fn over(
        folder: &DataFolder,
        journal: Arc<dyn Journal>,
        identity: Arc<Identity>,
        mut builder: Builder,
        store: Store,
    ) -> Result<Node, NodeError> {
        every_kind(&mut builder);
        let payment_providers = Arc::new(PaymentProviders::default().with(sandbox::NAME, Sandbox));
        let builder = builder.outside::<payment::Provider>(payment_providers.clone());
        let runtime = builder.outside::<user::Vault>(Arc::new(Shredder(identity.vault.clone()))).start().await?;
        let read_models = ReadModels::open(folder.read_models(), journal.clone())?;
        Ok(Node { journal, runtime, read_models, identity, payment_providers, store })
    }

    /// Resolves with the reason when the node can no longer keep its word and must end.
    pub fn must_end(&self) -> impl Future<Output = String> + Send + use<> {
        let runtime = self.runtime.clone();
        let of_store: BoxFuture<'static, String> = match &self.store {
            Store::Folder(embedded) => {
                let embedded = embedded.clone();
                Box::pin(async move {
                    format!("the journal can no longer be written: {}", embedded.poisoned().await.unwrap_or_default())
                })
            }
            Store::Cluster { cluster, .. } => {
                let cluster = cluster.clone();
                Box::pin(async move { cluster.name_taken().await.to_string() })
            }
        };
        async move {
            tokio::select! {
                reason = of_store => reason,
                reason = runtime.fatal() => reason,
            }
        }
    }

    /// `None` when it is alone.
    pub fn cluster(&self) -> Option<&Cluster> {
        match &self.store {
            Store::Folder(_) => None,
            Store::Cluster { cluster, .. } => Some(cluster),
        }
    }

    /// Resolves when the node may be asked: at once when it is alone, else when it has its place among the members.
    pub async fn has_joined(&self) {
        if let Some(cluster) = self.cluster() {
            // An error would mean that the node is gone, and then nobody waits.
            let _ = cluster.view().wait_for(|view| view.state == cluster::State::Active).await;
        }
    }

    /// Gives all that lives here to the other members, who go on with it; nothing when it is alone. The door may stay
    /// open: what is asked here is brought to them.
    pub fn hand_over(&self, deadline: Duration) -> impl Future<Output = ()> + Send + use<> {
        let cluster = self.cluster().cloned();
        let runtime = self.runtime.clone();
        async move {
            let Some(cluster) = cluster else { return };
            let until = Instant::now() + deadline;
            if !cluster.drain(deadline).await {
                tracing::warn!("not every member has heard that this one leaves");
            }
            while runtime.hand_over() > 0 {
                if Instant::now() > until {
                    tracing::warn!("not all entities left in time; the others have them from the journal");
                    return;
                }
                tokio::time::sleep(HAND_OVER_LOOK).await;
            }
        }
    }

    /// Lets what is in flight finish, has entities write their snapshots, and closes the journal.
    pub async fn close(self, deadline: Duration) {
        if !self.runtime.drain(deadline).await {
            tracing::warn!("not all entities left in time; they come back from the journal");
        }
        self.read_models.close().await;
        match self.store {
            Store::Folder(embedded) => {
                let closed = tokio::task::spawn_blocking(move || embedded.close());
                if tokio::time::timeout(deadline, closed).await.is_err() {
                    tracing::warn!("the journal did not close in time; nothing acknowledged depends on it");
                }
            }
            Store::Cluster { journal, snapshots, cluster, follower } => {
                follower.abort();
                cluster.leave().await;
                if !snapshots.flush(SNAPSHOTS_FLUSH).await {
                    tracing::warn!("not all snapshots were shared in time; other nodes replay more");
                }
                journal.close();
            }
        }
    }
}

/// Tells the runtime whenever it may have changed who has what.
pub async fn follow_members(cluster: Cluster, runtime: Runtime) {
    let mut view = cluster.view();
    let mut failures = 0;
    loop {
        match runtime.placement_changed().await {
            Ok(_) => {
                failures = 0;
                // A former owner's last writes can land after this: the agenda is read again now and then.
                if let Ok(Err(_)) = tokio::time::timeout(AGENDA_AGAIN, view.changed()).await {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "what this node has to take up cannot be read yet");
                failures += 1;
                tokio::time::sleep(Duration::from_millis(backoff_ms(failures).unsigned_abs())).await;
            }
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
