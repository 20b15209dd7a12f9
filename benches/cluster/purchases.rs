//! What a crowd of `souk rehearse checkout` gets done in a second: one node on its own disk, and three nodes over three
//! nats-servers, on the same cores; and where the processor's time went.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use souk::integrations::http_client::Origin;

use crate::node::{Node, souk};
use crate::shop::{Shop, stock_up, vendors_token};
use crate::{Line, progress};

const SKUS: usize = 200;
/// In all, shared among the nodes.
const BUYERS: usize = 48;
const SECONDS: &str = "10";
/// Linux counts the processor's time in these.
const TICK: Duration = Duration::from_millis(10);

struct Rush {
    per_second: f64,
    orders: f64,
    cpu_nodes: Duration,
    cpu_servers: Duration,
    cpu_buyers: Duration,
}

/// The processor's time that a process has used, children that have ended included.
fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<u64> =
        stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2).map(|n| n.parse().unwrap()).collect();
    TICK * (fields[0] + fields[1]) as u32
}

fn cpu_of_children() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<u64> =
        stat.rsplit_once(')').unwrap().1.split_whitespace().skip(13).take(2).map(|n| n.parse().unwrap()).collect();
    TICK * (fields[0] + fields[1]) as u32
}

async fn rush(origins: &[(Origin, String)], nodes: &[u32], servers: &[u32], skus: &[String]) -> Rush {
    let sum = |pids: &[u32]| pids.iter().map(|pid| cpu(*pid)).sum::<Duration>();
    let (before_nodes, before_servers, before_buyers) = (sum(nodes), sum(servers), cpu_of_children());
    let crowds = origins.iter().map(|(_, url)| {
        let mut command = souk();
        command.args(["rehearse", "checkout", "--json", "--seconds", SECONDS, "--url", url, "--sku", &skus.join(",")]);
        command.args(["--buyers", &(BUYERS / origins.len()).to_string()]).stdout(Stdio::piped()).stderr(Stdio::inherit());
        tokio::task::spawn_blocking(move || command.output().unwrap())
    });
    let crowds: Vec<_> = crowds.collect();
    let (mut per_second, mut orders) = (0.0, 0.0);
    for crowd in crowds {
        let output = crowd.await.unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        for trouble in ["refusals", "errors"] {
            if report[trouble].as_object().is_some_and(|reasons| !reasons.is_empty()) {
                progress(&format!("  {trouble}: {}", report[trouble]));
            }
        }
        per_second += report["orders_per_second"].as_f64().unwrap();
        orders += report["orders_paid"].as_f64().unwrap();
    }
    Rush {
        per_second,
        orders,
        cpu_nodes: sum(nodes) - before_nodes,
        cpu_servers: sum(servers) - before_servers,
        cpu_buyers: cpu_of_children() - before_buyers,
    }
}

pub async fn measure() -> Vec<Line> {
    let dir = tempfile::tempdir().unwrap();
    let (node, origin) = Node::start_with(dir.path(), &["--demo"]).await;
    let vendor = vendors_token(&origin).await;
    let skus = stock_up(std::slice::from_ref(&origin), &vendor, SKUS).await;
    let url = |folder: &std::path::Path| fs::read_to_string(folder.join("address")).unwrap().trim().to_owned();
    let at = [(origin, url(dir.path()))];
    // The first is for warmth.
    rush(&at, &[node.pid()], &[], &skus).await;
    let alone = rush(&at, &[node.pid()], &[], &skus).await;
    tell("one node, embedded", &alone);
    node.kill();

    let shop = Shop::open(SKUS, &[]).await;
    let at: Vec<(Origin, String)> =
        shop.nodes.iter().map(|(name, node)| (node.origin.clone(), url(&shop.folder(name)))).collect();
    let nodes: Vec<u32> = shop.nodes.values().map(|node| node.process.pid()).collect();
    rush(&at, &nodes, &shop.nats.pids(), &shop.skus).await;
    let three = rush(&at, &nodes, &shop.nats.pids(), &shop.skus).await;
    tell("three nodes, three nats-servers", &three);

    let line = |what: &str, measured: String| Line { what: what.into(), target: String::new(), measured, is_met: None };
    vec![
        line("purchases/s, one node with its own journal", format!("{:.0}", alone.per_second)),
        line("purchases/s, three nodes over three nats-servers", format!("{:.0}", three.per_second)),
        line("  the one to the other", format!("{:.2}", three.per_second / alone.per_second)),
        line("  processor's time for a purchase, one node", costs(&alone)),
        line("  the same, three nodes", costs(&three)),
    ]
}

fn costs(rush: &Rush) -> String {
    let each = |time: Duration| time.as_secs_f64() * 1_000.0 / rush.orders;
    let (nodes, servers, buyers) = (each(rush.cpu_nodes), each(rush.cpu_servers), each(rush.cpu_buyers));
    format!("nodes {nodes:.2} ms, NATS {servers:.2}, buyers {buyers:.2}")
}

fn tell(what: &str, rush: &Rush) {
    progress(&format!("  {what}: {:.0} purchases/s; {}", rush.per_second, costs(rush)));
}
