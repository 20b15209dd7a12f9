//! How a rehearsal is told: a table of latencies, the reasons of refusals, and a bar while it runs.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::latency::Summary;

/// Different reasons that are told apart; more are counted as one.
const REASONS_MAX: usize = 50;

#[derive(Debug, Clone, Serialize)]
pub struct Step {
    pub name: &'static str,
    #[serde(flatten)]
    pub took: Summary,
}

#[derive(Default)]
pub struct Reasons(pub BTreeMap<String, u64>);

impl Reasons {
    pub fn add(&mut self, reason: String, count: u64) {
        let reason = match self.0.len() < REASONS_MAX || self.0.contains_key(&reason) {
            true => reason,
            false => "other reasons".to_owned(),
        };
        *self.0.entry(reason).or_default() += count;
    }

    pub fn merge(&mut self, other: Reasons) {
        other.0.into_iter().for_each(|(reason, count)| self.add(reason, count));
    }
}

pub fn write_steps(f: &mut fmt::Formatter<'_>, steps: &[Step]) -> fmt::Result {
    writeln!(f, "{:<14} {:>9} {:>10} {:>10} {:>10} {:>10}", "", "count", "p50 ms", "p95 ms", "p99 ms", "max ms")?;
    for Step { name, took } in steps {
        write!(f, "{name:<14} {:>9}", took.count)?;
        for us in [took.p50_us, took.p95_us, took.p99_us, took.max_us] {
            write!(f, " {:>10.2}", us as f64 / 1000.0)?;
        }
        writeln!(f)?;
    }
    Ok(())
}

pub fn write_reasons(f: &mut fmt::Formatter<'_>, what: &str, reasons: &BTreeMap<String, u64>) -> fmt::Result {
    if !reasons.is_empty() {
        writeln!(f, "\n{what}:")?;
        reasons.iter().try_for_each(|(reason, count)| writeln!(f, "{count:>9}  {reason}"))?;
    }
    Ok(())
}

/// Shown when somebody watches.
pub fn progress_bar(length: u64, is_quiet: bool, unit: &str) -> ProgressBar {
    let bar = match !is_quiet && io::stderr().is_terminal() {
        true => ProgressBar::new(length),
        false => ProgressBar::hidden(),
    };
    if let Ok(style) = ProgressStyle::with_template(&format!("{{wide_bar}} {{pos}}/{{len}} {unit}  {{msg}}")) {
        bar.set_style(style);
    }
    bar
}
