//! The nats-server that leads the journal's stream is killed: how much longer are writes away than JetStream itself?
//!
//! JetStream's own outage is seen by bare publishers at both surviving servers, each with one message on its way to that
//! same stream, with an expectation. Their messages are batches of a kind that the program does not know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use serde_json::Value;
use souk::domain::{CommandId, Timestamp};
use souk::persistence::record::{Cause, PayloadWriter};
use souk::persistence::{EntityKey, Wake};
use tokio::task::JoinHandle;
use ulid::Ulid;

use crate::buyers::Crowd;
use crate::nats::Nats;
use crate::shop::{PAUSE, Shop, Writer};
use crate::{Line, ms, percentile, progress};

const SKUS: usize = 60;
const ROUNDS: usize = 5;
const STREAM: &str = "souk-journal";
/// How much later than JetStream.
const TARGET: Duration = Duration::from_secs(1);
/// A bare publisher waits so long for an acknowledgement, and then sends another message.
const BARE_WAIT: Duration = Duration::from_millis(200);
/// Writes are under way for so long before the kill.
const CALM: Duration = Duration::from_secs(1);
const BUYERS: usize = 24;
const AFTERMATH: Duration = Duration::from_secs(40);

pub async fn measure() -> Vec<Line> {
    let mut shop = Shop::open(SKUS, &[]).await;
    let (mut outages, mut added) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        shop.touch_all().await;
        let leader = shop.nats.awaits_leader(STREAM).await;
        let bare = Bare::begin(&shop.nats, leader).await;
        let writing = Writing::begin(&shop);
        tokio::time::sleep(CALM).await;
        let killed = Instant::now();
        shop.nats.kill(leader);
        let outage = bare.resumed_after(killed).await;
        let mut resumed = writing.resumed_after(killed).await;
        resumed.sort_unstable();
        let later: Vec<Duration> = resumed.iter().map(|resumed| resumed.saturating_sub(outage)).collect();
        progress(&format!(
            "  round {round}: JetStream away for {}, writes p50 {} and last {} after the kill",
            ms(outage),
            ms(percentile(&resumed, 500)),
            ms(percentile(&resumed, 1_000))
        ));
        outages.push(outage);
        added.extend(later);
        shop.nats.restart(leader);
        shop.nats.ready().await.unwrap();
    }
    outages.sort_unstable();
    added.sort_unstable();
    let last = percentile(&added, 1_000);
    let mut lines = vec![Line {
        what: "stream's leader killed: writes go on later than JetStream does, by at most".into(),
        target: format!("≤ {}", ms(TARGET)),
        measured: format!(
            "{} (p50 {}, p99 {}; JetStream itself {} to {})",
            ms(last),
            ms(percentile(&added, 500)),
            ms(percentile(&added, 990)),
            ms(percentile(&outages, 1)),
            ms(percentile(&outages, 1_000))
        ),
        is_met: Some(last <= TARGET),
    }];
    lines.push(purchases(&mut shop).await);
    lines
}

/// Purchases at all nodes while the leader is killed.
async fn purchases(shop: &mut Shop) -> Line {
    let leader = shop.nats.awaits_leader(STREAM).await;
    let bare = Bare::begin(&shop.nats, leader).await;
    let crowd = Crowd::begin(BUYERS, &shop.origins(), &shop.skus);
    tokio::time::sleep(CALM * 2).await;
    let killed = Instant::now();
    shop.nats.kill(leader);
    let outage = bare.resumed_after(killed).await;
    tokio::time::sleep(AFTERMATH.saturating_sub(killed.elapsed())).await;
    let purchases = crowd.goes_home().await;
    let hit = purchases.hit_by(killed);
    let measured = format!(
        "{} to {} (p50 {}; JetStream itself {})",
        ms(percentile(&hit, 990)),
        ms(percentile(&hit, 1_000)),
        ms(percentile(&hit, 500)),
        ms(outage)
    );
    Line {
        what: format!("  the {} purchases under way at that moment, p99", hit.len()),
        target: String::new(),
        measured,
        is_met: None,
    }
}

/// Writers to each sku at all nodes, one request at a time each; all moments of success.
struct Writing {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Vec<(Instant, Instant)>>>,
}

impl Writing {
    fn begin(shop: &Shop) -> Writing {
        let stop = Arc::new(AtomicBool::new(false));
        let origins = shop.origins();
        let writers = shop.skus.iter().map(|sku| {
            let (mut writer, stop) = (Writer::new(&origins, &shop.vendor, sku), stop.clone());
            tokio::spawn(async move {
                let mut successes = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    if writer.once().await.is_ok() {
                        successes.push((begun, Instant::now()));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                successes
            })
        });
        Writing { writers: writers.collect(), stop }
    }

    /// When each entity took its first write after this moment. What was answered within the first moments may have
    /// been acknowledged before: the first gap that a later answer ends is the outage.
    async fn resumed_after(self, moment: Instant) -> Vec<Duration> {
        tokio::time::sleep(AFTERMATH.saturating_sub(moment.elapsed())).await;
        self.stop.store(true, Ordering::Relaxed);
        let mut resumed = Vec::new();
        for writer in self.writers {
            let successes = writer.await.unwrap();
            let gap = successes.windows(2).map(|pair| (pair[1].1 - pair[0].1, pair[1].1)).max_by_key(|(gap, _)| *gap);
            resumed.push(gap.map_or(AFTERMATH, |(_, ended)| ended.saturating_duration_since(moment)));
        }
        resumed
    }
}

/// One publisher at each server that will survive.
struct Bare {
    stop: Arc<AtomicBool>,
    publishers: Vec<JoinHandle<Vec<Instant>>>,
}

impl Bare {
    async fn begin(nats: &Nats, dying: usize) -> Bare {
        let stop = Arc::new(AtomicBool::new(false));
        let mut publishers = Vec::new();
        for index in (0..nats.len()).filter(|index| *index != dying) {
            let (client, stop) = (async_nats::connect(nats.url(index)).await.unwrap(), stop.clone());
            publishers.push(tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let (subject, headers, payload) = message();
                    let sent = client.request_with_headers(subject, headers, payload.into());
                    if let Ok(Ok(answer)) = tokio::time::timeout(BARE_WAIT, sent).await
                        && serde_json::from_slice::<Value>(&answer.payload).is_ok_and(|said| said["seq"].as_u64() > Some(0))
                    {
                        acknowledged.push(Instant::now());
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                acknowledged
            }));
        }
        Bare { stop, publishers }
    }

    /// How long after this moment the first of them was acknowledged again.
    async fn resumed_after(self, moment: Instant) -> Duration {
        tokio::time::sleep(AFTERMATH.saturating_sub(moment.elapsed()) / 2).await;
        self.stop.store(true, Ordering::Relaxed);
        let mut resumed = Vec::new();
        for publisher in self.publishers {
            let acknowledged = publisher.await.unwrap();
            let gap = acknowledged.windows(2).map(|pair| (pair[1] - pair[0], pair[1])).max_by_key(|(gap, _)| *gap);
            resumed.push(gap.map_or(AFTERMATH, |(_, ended)| ended.saturating_duration_since(moment)));
        }
        resumed.into_iter().min().unwrap()
    }
}

/// The first batch of an entity that nobody knows, as `src/persistence/jetstream/envelope.rs` makes them.
fn message() -> (String, HeaderMap, Vec<u8>) {
    let id = Ulid::new().to_string();
    let key = EntityKey::new("bare", &id);
    let command = CommandId(id.clone());
    let cause = Cause { command: &command, correlation: &id, asker: "bench", time: Timestamp::default() };
    let mut payload = PayloadWriter::default();
    payload.event(&key, 1, cause, &serde_json::json!({ "type": "bare.published", "data": {} })).unwrap();
    let payload = payload.finish(Wake::Never).unwrap();
    let never = i64::MAX;
    let mut crc = crc32fast::Hasher::new();
    crc.update(key.as_str().as_bytes());
    crc.update(&[0]);
    crc.update(&1_u64.to_le_bytes());
    crc.update(&1_u32.to_le_bytes());
    crc.update(&never.to_le_bytes());
    crc.update(&payload);
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
    headers.insert("Souk-First", "1");
    headers.insert("Souk-Count", "1");
    headers.insert("Souk-Wake", never.to_string());
    headers.insert("Souk-Crc", format!("{:08x}", crc.finalize()));
    headers.insert("Souk-Write", format!("{:032x}", fastrand::u128(..)));
    (format!("souk.j.bare.{id}"), headers, payload)
}
