//! A node is told to leave while requests come at a steady rate through a load balancer: do any fail, or take longer?
//!
//! The balancer asks `/health/ready` as HAProxy is told to in `cluster-config/`, and sends each request once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use souk::integrations::http_client::{Client, Origin};

use crate::shop::{Shop, client, post};
use crate::{Line, ms, percentile, progress};

const SKUS: usize = 600;
const PER_SECOND: u64 = 400;
const CALM: Duration = Duration::from_secs(8);
const ROUNDS: [&str; 3] = ["n3", "n2", "n1"];
const LOOK: Duration = Duration::from_millis(200);
const TARGET: Duration = Duration::from_millis(100);

/// A node in rotation, with connections that are open and idle.
struct Server {
    origin: Origin,
    idle: Mutex<Vec<Client>>,
}

struct Balancer {
    servers: Mutex<Vec<Arc<Server>>>,
    turn: AtomicUsize,
    vendor: String,
}

impl Balancer {
    fn next(&self) -> Arc<Server> {
        let servers = self.servers.lock().unwrap();
        servers[self.turn.fetch_add(1, Ordering::Relaxed) % servers.len()].clone()
    }

    async fn write(&self, sku: &str) -> Result<(), String> {
        let server = self.next();
        let idle = server.idle.lock().unwrap().pop();
        let mut client = idle.unwrap_or_else(|| client(&server.origin).with_token(&self.vendor).unwrap());
        let body = json!({ "delta": 1, "reason": "a bench" });
        let answer = post(&mut client, &format!("/api/inventory/{sku}/adjustments"), &[], &body).await;
        server.idle.lock().unwrap().push(client);
        match answer {
            Ok((200, _)) => Ok(()),
            Ok((status, said)) => Err(format!("{status} {said}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Takes those out of rotation that are not ready.
    async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let servers = self.servers.lock().unwrap().clone();
            for server in servers {
                let answer = client(&server.origin).get("/health/ready", &[]).await;
                if !answer.is_ok_and(|answer| answer.status == 200) {
                    self.servers.lock().unwrap().retain(|other| !Arc::ptr_eq(other, &server));
                }
            }
        }
    }
}

struct Asked {
    meant_for: Instant,
    took: Duration,
    result: Result<(), String>,
}

/// Sends requests at their times, whatever became of those before, until it is aborted.
async fn load(balancer: Arc<Balancer>, skus: Vec<String>, heard: tokio::sync::mpsc::UnboundedSender<Asked>) {
    let begun = Instant::now();
    for number in 0_u64.. {
        let meant_for = begun + Duration::from_micros(number * 1_000_000 / PER_SECOND);
        tokio::time::sleep_until(meant_for.into()).await;
        let (balancer, heard) = (balancer.clone(), heard.clone());
        let sku = skus[fastrand::usize(..skus.len())].clone();
        tokio::spawn(async move {
            let result = balancer.write(&sku).await;
            let _ = heard.send(Asked { meant_for, took: meant_for.elapsed(), result });
        });
    }
}

pub async fn measure() -> Vec<Line> {
    let mut shop = Shop::open(SKUS, &[]).await;
    let (mut before, mut during, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for leaver in ROUNDS {
        shop.touch_all().await;
        let server = |origin: Origin| Arc::new(Server { origin, idle: Mutex::default() });
        let servers = shop.origins().into_iter().map(server).collect();
        let balancer =
            Arc::new(Balancer { servers: Mutex::new(servers), turn: AtomicUsize::new(0), vendor: shop.vendor.clone() });
        let (heard, mut hear) = tokio::sync::mpsc::unbounded_channel();
        let watch = tokio::spawn(balancer.clone().watch());
        let load = tokio::spawn(load(balancer, shop.skus.clone(), heard));
        tokio::time::sleep(CALM).await;
        let told = Instant::now();
        let leaving = shop.nodes.remove(leaver).unwrap();
        leaving.process.tell_to_drain();
        assert!(leaving.process.ends().await.success());
        let gone = Instant::now();
        load.abort();
        watch.abort();
        let (mut calm, mut busy) = (Vec::new(), Vec::new());
        let mut failed = 0;
        while let Some(Asked { meant_for, took, result }) = hear.recv().await {
            if let Err(why) = result {
                failed += 1;
                failures.push(why);
            }
            // The first second opens connections.
            if meant_for < told && told - meant_for < CALM - Duration::from_secs(1) {
                calm.push(took);
            } else if meant_for >= told {
                busy.push(took);
            }
        }
        calm.sort_unstable();
        busy.sort_unstable();
        progress(&format!(
            "  {leaver} left in {}: p99 {} before, {} while it left (last {}), {failed} failed",
            ms(gone - told),
            ms(percentile(&calm, 990)),
            ms(percentile(&busy, 990)),
            ms(percentile(&busy, 1_000))
        ));
        before.extend(calm);
        during.extend(busy);
        shop.start(leaver, &[]).await;
    }
    before.sort_unstable();
    during.sort_unstable();
    let all = before.len() + during.len();
    if let Some(why) = failures.first() {
        progress(&format!("  the first that failed: {why}"));
    }
    let (calm, busy) = (percentile(&before, 990), percentile(&during, 990));
    let added = busy.saturating_sub(calm);
    vec![
        Line {
            what: "node told to leave: requests that failed".into(),
            target: "0".into(),
            measured: format!("{} of {all}", failures.len()),
            is_met: Some(failures.is_empty()),
        },
        Line {
            what: "  p99 of requests, more than before".into(),
            target: format!("≤ {}", ms(TARGET)),
            measured: format!("{} ({} after {})", ms(added), ms(busy), ms(calm)),
            is_met: Some(added <= TARGET),
        },
    ]
}
