//! What this node answers, how often and how fast, read from its own metrics.

use std::collections::BTreeMap;

/// The requests of one route since the node started.
#[derive(Debug, Default, PartialEq)]
pub struct Traffic {
    pub requests: u64,
    /// Answered with 500 or more.
    pub failed: u64,
    /// How many took at most so many milliseconds.
    pub within_ms: Vec<(f64, u64)>,
}

impl Traffic {
    /// The bound in milliseconds below which this share of the answers lies; `None` past the last bound.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let wanted = self.requests as f64 * share;
        self.within_ms.iter().find(|(_, count)| *count as f64 >= wanted).map(|(bound, _)| *bound)
    }
}

/// By method and route, from the text that `GET /metrics` shows.
pub fn of(exposition: &str) -> BTreeMap<String, Traffic> {
    let mut by_route: BTreeMap<String, Traffic> = BTreeMap::new();
    for line in exposition.lines() {
        let Some((name, rest)) = line.split_once('{') else { continue };
        if !["souk_http_requests_total", "souk_http_latency_seconds_bucket"].contains(&name) {
            continue;
        }
        let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
        // The labels' values are patterns, methods and numbers: none has a comma or a quote in it.
        let label = |name: &str| {
            let mut pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
            pairs.find(|(given, _)| *given == name).map_or("", |(_, value)| value.trim_matches('"'))
        };
        let Ok(count) = value.parse::<u64>() else { continue };
        let traffic = by_route.entry(format!("{} {}", label("method"), label("route"))).or_default();
        match label("le").parse::<f64>() {
            Ok(bound) if bound.is_finite() => traffic.within_ms.push((bound * 1_000.0, count)),
            Ok(_) => {}
            Err(_) => {
                traffic.requests += count;
                if label("status").starts_with('5') {
                    traffic.failed += count;
                }
            }
        }
    }
    by_route
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Answered, Metrics, Routed};

    #[test]
    fn traffic_is_what_the_metrics_say() {
        let metrics = Metrics::new(|_| {});
        let (route, method) = ("/api/carts/{id}", "GET");
        for (status, seconds) in [(200, 0.000_4), (200, 0.002), (200, 0.002), (503, 60.0)] {
            metrics.http_requests.get_or_create(&Answered { route, method, status }).inc();
            metrics.http_latency.get_or_create(&Routed { route, method }).observe(seconds);
        }
        let by_route = of(&metrics.exposition());
        assert_eq!(by_route.keys().collect::<Vec<_>>(), ["GET /api/carts/{id}"]);
        let traffic = &by_route["GET /api/carts/{id}"];
        assert_eq!((traffic.requests, traffic.failed), (4, 1));
        assert_eq!(
            (traffic.quantile_ms(0.25), traffic.quantile_ms(0.5), traffic.quantile_ms(0.99)),
            (Some(0.5), Some(2.5), None)
        );
    }
}
