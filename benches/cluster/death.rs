//! A node is killed: when is each entity that it had served again, and what becomes of purchases that were under way?

use std::time::{Duration, Instant};

use crate::buyers::Crowd;
use crate::shop::{Shop, Writer};
use crate::{Line, ms, percentile, progress};

const SKUS: usize = 600;
const TARGET: Duration = Duration::from_secs(3);
const BUYERS: usize = 24;
const CALM: Duration = Duration::from_secs(4);
const AFTERMATH: Duration = Duration::from_secs(25);

pub async fn measure() -> Vec<Line> {
    let mut shop = Shop::open(SKUS, &[]).await;
    let mut times = Vec::new();
    for victim in ["n2", "n3", "n1"] {
        shop.touch_all().await;
        let affected: Vec<String> = shop.skus.iter().filter(|sku| shop.owner(sku) == victim).cloned().collect();
        let dying = shop.nodes.remove(victim).unwrap();
        let survivors = shop.origins();
        let mut writers: Vec<Writer> = affected.iter().map(|sku| Writer::new(&survivors, &shop.vendor, sku)).collect();
        for writer in &mut writers {
            writer.connect().await;
        }
        let begun = Instant::now();
        dying.process.kill();
        let tasks: Vec<_> = writers
            .into_iter()
            .map(|mut writer| {
                tokio::spawn(async move {
                    writer.succeeds().await;
                    begun.elapsed()
                })
            })
            .collect();
        let mut of_this = Vec::new();
        for task in tasks {
            of_this.push(task.await.unwrap());
        }
        of_this.sort_unstable();
        let (p50, last) = (percentile(&of_this, 500), percentile(&of_this, 1_000));
        progress(&format!("  {victim} killed: {} entities, p50 {}, last {}", of_this.len(), ms(p50), ms(last)));
        times.extend(of_this);
        shop.start(victim, &[]).await;
    }
    times.sort_unstable();
    let p99 = percentile(&times, 990);
    let mut lines = vec![Line {
        what: "node killed: first success on each entity that it had, p99".into(),
        target: format!("≤ {}", ms(TARGET)),
        measured: format!("{} (p50 {}, {} entities)", ms(p99), ms(percentile(&times, 500)), times.len()),
        is_met: Some(p99 <= TARGET),
    }];
    lines.push(purchases(&mut shop).await);
    lines
}

/// Purchases at the two survivors, before, while and after the third is killed.
async fn purchases(shop: &mut Shop) -> Line {
    let victim = shop.nodes.remove("n2").unwrap();
    let crowd = Crowd::begin(BUYERS, &shop.origins(), &shop.skus);
    tokio::time::sleep(CALM).await;
    let killed = Instant::now();
    victim.process.kill();
    tokio::time::sleep(AFTERMATH).await;
    let purchases = crowd.goes_home().await;
    let hit: Vec<Duration> = purchases.hit_by(killed);
    let calm = purchases.ended_before(killed);
    let measured = format!(
        "{} to {} (p50 {}; p99 before {})",
        ms(percentile(&hit, 990)),
        ms(percentile(&hit, 1_000)),
        ms(percentile(&hit, 500)),
        ms(percentile(&calm, 990))
    );
    Line {
        what: format!("  the {} purchases under way at that moment, p99", hit.len()),
        target: String::new(),
        measured,
        is_met: None,
    }
}
