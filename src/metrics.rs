//! Every metric of the node: its name, its labels and its help, in one place.
//!
//! Label values come from fixed sets (a route's pattern, never a path), so that no client can make the exposition grow.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::actors::Runtime;
use crate::actors::durations::Counted;
use crate::cluster::Cluster;
use crate::domain::SagaEnding;
use crate::integrations::breaker::{Census, State};
use crate::integrations::payment_providers::PaymentProviders;
use crate::read_models::ReadModels;

/// The media type of the exposition.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds in seconds: from a cached read to a request that met its deadline.
const LATENCY_SECONDS: [f64; 12] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answered {
    pub route: &'static str,
    pub method: &'static str,
    pub status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Routed {
    pub route: &'static str,
    pub method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Refused {
    pub budget: &'static str,
}

/// The metrics, each to be touched where what it counts happens. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    pub http_requests: Family<Answered, Counter>,
    pub http_latency: Family<Routed, Histogram, fn() -> Histogram>,
    pub http_requests_refused: Family<Refused, Counter>,
    pub http_connections: Gauge,
    pub http_connections_refused: Counter,
    pub http_tls_handshakes_failed: Counter,
    pub live_sessions: Gauge,
    pub live_watches: Gauge,
}

impl Metrics {
    /// `more` registers what other parts of the node count, under the same prefix.
    pub fn new(more: impl FnOnce(&mut Registry)) -> Self {
        let latency: fn() -> Histogram = || Histogram::new(LATENCY_SECONDS);
        let http_requests = Family::default();
        let http_latency = Family::new_with_constructor(latency);
        let http_requests_refused = Family::default();
        let http_connections = Gauge::default();
        let http_connections_refused = Counter::default();
        let http_tls_handshakes_failed = Counter::default();
        let live_sessions = Gauge::default();
        let live_watches = Gauge::default();

        let mut registry = Registry::with_prefix("souk");
        registry.register("build", "The program that runs here", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register("http_requests", "Requests answered, by route, method and status", http_requests.clone());
        registry.register_with_unit(
            "http_latency",
            "Time from a request's head to its answer's head",
            Unit::Seconds,
            http_latency.clone(),
        );
        registry.register(
            "http_requests_refused",
            "Requests refused because their caller had spent its budget, by budget",
            http_requests_refused.clone(),
        );
        registry.register("http_connections", "Open HTTP connections", http_connections.clone());
        registry.register(
            "http_connections_refused",
            "Connections closed at once because there were too many",
            http_connections_refused.clone(),
        );
        registry.register(
            "http_tls_handshakes_failed",
            "TLS handshakes that failed or took too long",
            http_tls_handshakes_failed.clone(),
        );
        registry.register("live_sessions", "Open WebSocket sessions", live_sessions.clone());
        registry.register("live_watches", "Topics that somebody follows, counted once for each follower", live_watches.clone());
        more(&mut registry);
        Metrics {
            registry: Arc::new(registry),
            http_requests,
            http_latency,
            http_requests_refused,
            http_connections,
            http_connections_refused,
            http_tls_handshakes_failed,
            live_sessions,
            live_watches,
        }
    }

    /// The exposition; empty when it cannot be written, which no client can bring about.
    pub fn exposition(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }
}

/// What the runtime, the journal and the read models count themselves, read when somebody asks.
pub struct NodeCollector {
    pub runtime: Runtime,
    pub read_models: Arc<ReadModels>,
    pub payment_providers: Arc<PaymentProviders>,
    /// `None` for a node that is alone.
    pub cluster: Option<Cluster>,
}

impl std::fmt::Debug for NodeCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeCollector")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSaga {
    kind: &'static str,
    ending: &'static str,
}

fn encode_durations(counted: &Counted, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
    encoder.encode_histogram::<NoLabelSet>(counted.sum_seconds, counted.count, &counted.buckets, None)
}

fn gauge_of(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut count = |name: &str, help: &str, value: u64| {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
        };
        let counters = self.runtime.counters();
        count("entity_activations", "Entities brought to life", counters.activations.get())?;
        count("entity_passivations", "Entities that left memory", counters.passivations.get())?;
        count("entity_deaths", "Entities whose actor failed", counters.deaths.get())?;
        count("entity_snapshots", "Snapshots written", counters.snapshots.get())?;
        count("journal_writes", "Batches handed to the journal", counters.writes.get())?;
        count("entity_turned_away", "Commands refused at an entity's door, without asking it", counters.turned_away.get())?;
        count("journal_writes_failed", "Batches that were not, or perhaps not, stored", counters.failed_writes.get())?;
        count("journal_conflicts", "Batches refused because somebody else had written first", counters.conflicts.get())?;
        encode_durations(
            &counters.appends.counted(),
            encoder.encode_descriptor(
                "journal_append_latency",
                "Time from handing a batch to the journal until it is durable",
                Some(&Unit::Seconds),
                MetricType::Histogram,
            )?,
        )?;
        let mut sagas = encoder.encode_descriptor(
            "saga_duration",
            "Time from a saga's beginning to the decision that ended it, once that is durable, by kind and ending",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (kind, ending, counted) in self.runtime.sagas() {
            let ending = match ending {
                SagaEnding::Completed => "completed",
                SagaEnding::Compensated => "compensated",
            };
            encode_durations(&counted, sagas.encode_family(&OfSaga { kind, ending })?)?;
        }

        let census = self.runtime.census();
        let highest = self.runtime.journal().highest().0;
        let mut show = |name: &str, help: &str, value: u64| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        show("journal_position", "The newest durable batch", highest)?;
        show(
            "read_models_lag",
            "Batches that the read models have not seen",
            highest.saturating_sub(self.read_models.position().0),
        )?;
        show("entities_set_aside", "Entities that failed too often and wait for an operator", census.set_aside.len() as u64)?;
        show("entities_in_agenda", "Entities with a timer or a debt", census.agenda as u64)?;
        show("commands_waiting", "Commands that wait for an answer", census.waiting as u64)?;
        let residents = Family::<OfKind, Gauge>::default();
        for (kind, count) in census.residents {
            residents.get_or_create(&OfKind { kind }).set(gauge_of(count));
        }
        residents.encode(encoder.encode_descriptor(
            "entity_residents",
            "Entities in memory",
            None,
            residents.metric_type(),
        )?)?;
        let deepest = Family::<OfKind, Gauge>::default();
        for (kind, waiting) in self.runtime.deepest() {
            deepest.get_or_create(&OfKind { kind: kind.to_owned() }).set(gauge_of(waiting));
        }
        deepest.encode(encoder.encode_descriptor(
            "entity_commands_waiting_max",
            "The most commands that wait for one entity",
            None,
            deepest.metric_type(),
        )?)?;
        let behind = ConstGauge::new(self.read_models.behind().as_secs_f64());
        behind.encode(encoder.encode_descriptor(
            "read_models_lag",
            "How old the newest state of the journal is that the read models show in full; 0 when they show it all",
            Some(&Unit::Seconds),
            behind.metric_type(),
        )?)?;
        if let Some(cluster) = &self.cluster {
            encode_cluster(cluster, counters.handovers.get(), &mut encoder)?;
        }
        encode_breakers(self.payment_providers.breakers(), encoder)
    }
}

fn encode_cluster(cluster: &Cluster, handovers: u64, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let counts = cluster.counts();
    for (name, help, value) in [
        ("cluster_members", "Members that own partitions, as this node sees them", cluster.view().borrow().owners.names().len()),
        ("cluster_partitions_owned", "Partitions of all 256 that this node acts for", cluster.partitions_here()),
    ] {
        let gauge = ConstGauge::new(gauge_of(value));
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
    }
    for (name, help, value) in [
        ("cluster_handovers", "Entities that left this node because another has them now", handovers),
        ("cluster_lease_lost", "Times that reads could not be answered from memory any more", counts.lease_lost),
        ("cluster_out_of_touch", "Times that this node was paused or cut off, and joined anew", counts.out_of_touch),
        ("cluster_heartbeats_missed", "Heartbeats of others that were sent and not heard", counts.beats_missed),
    ] {
        let counter = ConstCounter::new(value);
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    let asks = [
        ("answered", counts.asks_answered),
        ("refused", counts.asks_refused),
        ("timed_out", counts.asks_timed_out),
        ("lost", counts.asks_lost),
    ];
    let served = [("taken", counts.served), ("overloaded", counts.served_overloaded)];
    encode_outcomes("cluster_asks", "Asks of other members, by how they ended", &asks, encoder)?;
    encode_outcomes("cluster_served", "Asks by other members, by what came of them", &served, encoder)
}

fn encode_outcomes(
    name: &str,
    help: &str,
    outcomes: &[(&'static str, u64)],
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    let family = Family::<Ended, Counter>::default();
    for (outcome, count) in outcomes {
        family.get_or_create(&Ended { outcome }).inc_by(*count);
    }
    family.encode(encoder.encode_descriptor(name, help, None, family.metric_type())?)
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProvider {
    provider: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProviderAndState {
    provider: &'static str,
    state: &'static str,
}

fn encode_breakers(breakers: impl Iterator<Item = Census>, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let states = Family::<OfProviderAndState, Gauge>::default();
    let transitions = Family::<OfProviderAndState, Counter>::default();
    let refused = Family::<OfProvider, Counter>::default();
    let failed = Family::<OfProvider, Counter>::default();
    for Census { provider, state, transitions: times, refused: refused_calls, failed: failed_calls } in breakers {
        for (each, times) in State::ALL.into_iter().zip(times) {
            let label = OfProviderAndState { provider, state: each.name() };
            states.get_or_create(&label).set(i64::from(each == state));
            transitions.get_or_create(&label).inc_by(times);
        }
        refused.get_or_create(&OfProvider { provider }).inc_by(refused_calls);
        failed.get_or_create(&OfProvider { provider }).inc_by(failed_calls);
    }
    states.encode(encoder.encode_descriptor(
        "breaker_state",
        "The state of a provider's breaker: 1",
        None,
        states.metric_type(),
    )?)?;
    transitions.encode(encoder.encode_descriptor(
        "breaker_transitions",
        "Times that a provider's breaker came into a state",
        None,
        transitions.metric_type(),
    )?)?;
    refused.encode(encoder.encode_descriptor(
        "breaker_refused",
        "Calls to a provider that its breaker refused",
        None,
        refused.metric_type(),
    )?)?;
    failed.encode(encoder.encode_descriptor(
        "provider_failed",
        "Calls to a provider that failed or took too long",
        None,
        failed.metric_type(),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposition_names_what_was_counted() {
        let metrics = Metrics::new(|_| {});
        metrics.http_requests.get_or_create(&Answered { route: "/api/orders", method: "POST", status: 201 }).inc();
        metrics.http_latency.get_or_create(&Routed { route: "/api/orders", method: "POST" }).observe(0.003);
        let text = metrics.exposition();
        assert!(text.contains(r#"souk_http_requests_total{route="/api/orders",method="POST",status="201"} 1"#), "{text}");
        assert!(text.contains(r#"souk_http_latency_seconds_bucket{le="0.005",route="/api/orders",method="POST"} 1"#), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
