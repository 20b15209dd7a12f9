//! Buyers who purchase one thing after another, and do not give up: each request has a key and is sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use souk::integrations::http_client::{Client, Header, IDEMPOTENCY_KEY, Origin, bearer};
use tokio::task::JoinHandle;
use ulid::Ulid;
use warp::http::HeaderValue;
use warp::http::header::AUTHORIZATION;

use crate::shop::{PAUSE, client, post, read};

/// A purchase that takes longer is lost, and so is the bench.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Crowd {
    stop: Arc<AtomicBool>,
    buyers: Vec<JoinHandle<Vec<(Instant, Instant)>>>,
}

/// When each began and ended.
pub struct Purchases(Vec<(Instant, Instant)>);

impl Purchases {
    /// How long those took that were under way at this moment, from it to their end.
    pub fn hit_by(&self, moment: Instant) -> Vec<Duration> {
        let hit = self.0.iter().filter(|(begun, ended)| *begun <= moment && *ended > moment);
        let mut hit: Vec<Duration> = hit.map(|(_, ended)| *ended - moment).collect();
        hit.sort_unstable();
        hit
    }

    pub fn ended_before(&self, moment: Instant) -> Vec<Duration> {
        let calm = self.0.iter().filter(|(_, ended)| *ended <= moment);
        let mut calm: Vec<Duration> = calm.map(|(begun, ended)| *ended - *begun).collect();
        calm.sort_unstable();
        calm
    }
}

impl Crowd {
    pub fn begin(buyers: usize, origins: &[Origin], skus: &[String]) -> Crowd {
        let stop = Arc::new(AtomicBool::new(false));
        let buyers = (0..buyers).map(|number| {
            let mut buyer = Buyer { clients: origins.iter().map(client).collect(), turn: number };
            let (stop, skus) = (stop.clone(), skus.to_vec());
            tokio::spawn(async move {
                let mut purchases = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let sku = &skus[fastrand::usize(..skus.len())];
                    let begun = Instant::now();
                    buyer.buys(sku).await;
                    purchases.push((begun, Instant::now()));
                }
                purchases
            })
        });
        Crowd { buyers: buyers.collect(), stop }
    }

    pub async fn goes_home(self) -> Purchases {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for buyer in self.buyers {
            all.extend(buyer.await.unwrap());
        }
        Purchases(all)
    }
}

struct Buyer {
    clients: Vec<Client>,
    turn: usize,
}

impl Buyer {
    async fn buys(&mut self, sku: &str) {
        let cart = self.until_done("/api/carts", &[], &json!({})).await;
        let path = format!("/api/carts/{}", cart["id"].as_str().unwrap());
        let token = [(AUTHORIZATION, bearer(cart["token"].as_str().unwrap()).unwrap())];
        self.until_done(&format!("{path}/items"), &token, &json!({ "sku": sku, "quantity": 1 })).await;
        let body = json!({
            "payment": { "provider": "sandbox", "token": "tok_ok" }, "email": "ada@souk.test",
            "shipping_address": { "name": "Ada", "line1": "1 Way", "city": "Fez", "postal_code": "30000", "country": "MA" },
        });
        let order = self.until_done(&format!("{path}/checkout"), &token, &body).await;
        let path = format!("/api/orders/{}", order["id"].as_str().unwrap_or_else(|| panic!("{order}")));
        let begun = Instant::now();
        let mut status = order["status"].clone();
        while status != "paid" {
            assert!(begun.elapsed() < PATIENCE, "{path} is {status}");
            tokio::time::sleep(PAUSE).await;
            self.turn += 1;
            let at = self.turn % self.clients.len();
            if let Ok(answer) = self.clients[at].get(&path, &token).await
                && answer.status == 200
            {
                status = read(&answer.body)["status"].clone();
            }
        }
    }

    async fn until_done(&mut self, path: &str, headers: &[Header], body: &Value) -> Value {
        let key = HeaderValue::from_str(&Ulid::new().to_string()).unwrap();
        let mut headers = headers.to_vec();
        headers.push((IDEMPOTENCY_KEY, key));
        let begun = Instant::now();
        loop {
            self.turn += 1;
            let at = self.turn % self.clients.len();
            match post(&mut self.clients[at], path, &headers, body).await {
                Ok((200..=202, said)) => return said,
                Ok((status, said)) if status < 500 && status != 409 && status != 429 => panic!("{path}: {status} {said}"),
                answer => assert!(begun.elapsed() < PATIENCE, "{path}: {answer:?}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
