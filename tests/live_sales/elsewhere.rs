//! A sale that is watched on a node that does not have it: two runtimes over one journal, and questions go by hand.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::Value;
use souk::actors::board::{Boards, Place, Threads, Told, Watching, admit};
use souk::actors::live::Live;
use souk::actors::placement::{Lease, MemberSeen, NoAnswer, Owner, Placement, Standing};
use souk::actors::{Builder, Config, Runtime};
use souk::domain::flash_sale::Command;
use souk::domain::{every_kind, payment};
use souk::integrations::payment_providers::PaymentProviders;
use souk::persistence::{Embedded, EntityKey, Options, Snapshots};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

use crate::shop::{PATIENCE, ask, claim, customer, guest, own, picture, sale, until};

/// All lives on `a`.
struct OnA {
    is_a: bool,
    a: Arc<Mutex<Weak<Runtime>>>,
}

impl Placement for OnA {
    fn owner(&self, _: &EntityKey) -> Owner {
        if self.is_a { Owner::Here } else { Owner::Member("a".into()) }
    }

    fn lease(&self, _: &EntityKey) -> Lease {
        Lease { until: Instant::now() + Duration::from_secs(60), tenure: 1 }
    }

    fn standing(&self) -> Standing {
        Standing::InPlace
    }

    fn members(&self) -> Vec<MemberSeen> {
        Vec::new()
    }

    fn ask<'a>(&'a self, _: &'a str, question: Bytes, wait: Duration) -> BoxFuture<'a, Result<Bytes, NoAnswer>> {
        Box::pin(async move {
            let a = self.a.lock().unwrap().upgrade().ok_or(NoAnswer::NotThere)?;
            let answered = tokio::time::timeout(wait, a.serve(&question)).await;
            answered.map(Bytes::from).map_err(|_| NoAnswer::Lost("too late".to_owned()))
        })
    }
}

struct Two {
    a: Arc<Runtime>,
    b: Runtime,
    boards: Boards,
    _folder: TempDir,
}

impl Two {
    async fn start() -> Two {
        let folder = tempfile::tempdir().unwrap();
        let (journal, _) = Embedded::open(&folder.path().join("journal"), Options::default()).unwrap();
        let to_a = Arc::new(Mutex::new(Weak::new()));
        let start = async |name: &str, is_a| {
            let snapshots = Arc::new(Snapshots::open(&folder.path().join(name)));
            let placement = Arc::new(OnA { is_a, a: to_a.clone() });
            let mut builder = Builder::new(journal.clone(), snapshots, Config::default()).among(placement);
            every_kind(&mut builder);
            builder.outside::<payment::Provider>(Arc::new(PaymentProviders::default())).start().await.unwrap()
        };
        let (a, b) = (Arc::new(start("a", true).await), start("b", false).await);
        *to_a.lock().unwrap() = Arc::downgrade(&a);
        let boards = Boards::new(b.clone(), Live::start(journal.clone()), Threads::default());
        Two { a, b, boards, _folder: folder }
    }

    async fn watch(&self, sale: &str, token: &str) -> (Watching, Place) {
        let seen = admit(&self.b, sale, &guest(token)).await.unwrap().unwrap();
        self.boards.join(sale, seen, 0, Arc::default())
    }
}

/// The next thing told that is as wanted.
async fn told(watching: &mut Watching, what: &str, mut wanted: impl FnMut(&Told, &Value) -> bool) -> Value {
    until(what, async || {
        let told = timeout(PATIENCE, watching.next()).await.expect("nothing is told").expect("the watch goes on");
        let value = serde_json::from_str(&told.clone().text()).unwrap();
        wanted(&told, &value).then_some(value)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sale_is_watched_from_a_node_that_does_not_have_it_as_from_its_own() {
    let two = Two::start().await;
    let sale = sale(&two.a, 1, |_| {}).await;
    claim(&two.b, &sale, "ada").await;
    let (mut bob, place) = two.watch(&sale, "bob").await;
    claim(&two.a, &sale, "bob").await;
    let (seq, shown) = picture(&two.a, &sale).await;
    // Which of the two is told first is open.
    let (mut state, mut place_told) = (None, false);
    told(&mut bob, "the state and the place", |told, value| {
        place_told |= value["state"] == "waiting" && value["place"] == 1;
        if matches!(told, Told::State { seq: told, .. } if *told == seq) {
            state = Some(value["state"].clone());
        }
        place_told && state.is_some()
    })
    .await;
    assert_eq!(state, Some(shown));
    assert_eq!(two.b.census().residents["flash_sale"], 0, "the state stays where it lives");

    drop(place);
    until("bob is away", async || own(&two.a, &sale, "bob").await.ticket.unwrap().away_until).await;
    let (mut bob, _place) = two.watch(&sale, "bob").await;
    until("bob is back", async || own(&two.a, &sale, "bob").await.ticket.unwrap().away_until.is_none().then_some(())).await;
    // Another node says that they are gone, which they are not.
    ask(&two.a, &sale, Command::Away { customer: customer("bob") }).await;
    until("bob is back again", async || own(&two.a, &sale, "bob").await.ticket.unwrap().away_until.is_none().then_some(())).await;
    ask(&two.a, &sale, Command::GiveUp { customer: customer("ada"), claim: 0 }).await;
    told(&mut bob, "the admission", |_, told| told["state"] == "admitted").await;
}
