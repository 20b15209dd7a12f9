//! A rush drawn over time, as SVG: how much went through each second, and how long a claim took.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use plotters::prelude::*;

use super::latency::{Latency, Summary};

/// Seconds that are told apart; what comes later counts for the last one.
const SECONDS_MAX: usize = 900;
const SIZE: (u32, u32) = (1_000, 700);

/// What happened in each second of the rush.
pub struct Timeline {
    seconds: Box<[Second]>,
}

#[derive(Default)]
pub struct Second {
    pub claims: AtomicU64,
    pub tickets: AtomicU64,
    pub refusals: AtomicU64,
    pub orders: AtomicU64,
    /// From asking for a claim to its answer.
    pub latency: Latency,
}

impl Timeline {
    pub fn over(length: Duration) -> Self {
        let seconds = (length.as_secs() as usize + 1).min(SECONDS_MAX);
        Timeline { seconds: (0..seconds).map(|_| Second::default()).collect() }
    }

    pub fn at(&self, since: Duration) -> &Second {
        &self.seconds[(since.as_secs() as usize).min(self.seconds.len() - 1)]
    }

    /// The most that there was of it in one second.
    pub fn most(&self, of: fn(&Second) -> &AtomicU64) -> u64 {
        self.seconds.iter().map(|second| of(second).load(Ordering::Relaxed)).max().unwrap_or_default()
    }

    /// Writes the chart of the first so many seconds.
    pub fn draw(&self, to: &Path, lasted: Duration) -> Result<(), String> {
        let shown = &self.seconds[..(lasted.as_secs() as usize + 1).min(self.seconds.len())];
        draw(to, shown).map_err(|error| error.to_string())
    }
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(to: &Path, seconds: &[Second]) -> Drawn {
    let root = SVGBackend::new(to, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SIZE.1 / 2);
    let counted = |of: fn(&Second) -> &AtomicU64| seconds.iter().map(|s| of(s).load(Ordering::Relaxed) as f64).collect();
    panel(
        &upper,
        "each second",
        "count",
        &[
            ("claims", BLUE, counted(|s| &s.claims)),
            ("tickets", MAGENTA, counted(|s| &s.tickets)),
            ("refusals", BLACK, counted(|s| &s.refusals)),
            ("orders", GREEN, counted(|s| &s.orders)),
        ],
    )?;
    let summaries: Vec<Summary> = seconds.iter().map(|second| second.latency.summary()).collect();
    let in_ms = |of: fn(&Summary) -> u64| summaries.iter().map(|summary| of(summary) as f64 / 1_000.0).collect();
    panel(
        &lower,
        "how long a claim's answer took",
        "ms",
        &[("p50", BLUE, in_ms(|s| s.p50_us)), ("p95", MAGENTA, in_ms(|s| s.p95_us)), ("p99", RED, in_ms(|s| s.p99_us))],
    )?;
    root.present()?;
    Ok(())
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    unit: &str,
    lines: &[(&str, RGBColor, Vec<f64>)],
) -> Drawn {
    let seconds = lines.iter().map(|(_, _, values)| values.len()).max().unwrap_or(0).max(2);
    let highest = lines.iter().flat_map(|(_, _, values)| values).copied().fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(0..seconds - 1, 0.0..highest * 1.05)?;
    chart.configure_mesh().x_desc("seconds").y_desc(unit).draw()?;
    for (name, color, values) in lines {
        let line = LineSeries::new(values.iter().copied().enumerate(), color);
        let color = *color;
        chart.draw_series(line)?.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_names_its_lines_and_a_moment_past_its_end_counts_for_the_last_second() {
        let timeline = Timeline::over(Duration::from_secs(3));
        timeline.at(Duration::from_secs(1)).claims.fetch_add(5, Ordering::Relaxed);
        timeline.at(Duration::from_secs(99)).latency.record(Duration::from_millis(7));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rush.svg");
        timeline.draw(&file, Duration::from_secs(99)).unwrap();
        let drawn = std::fs::read_to_string(file).unwrap();
        for text in ["<svg", "claims", "tickets", "refusals", "orders", "p50", "p95", "p99", "seconds"] {
            assert!(drawn.contains(text), "{text}");
        }
    }
}
