//! Charts, drawn on the server as SVG that a page has in it.
//!
//! They have no style of their own, which the pages' policy would refuse, and each is told in words beside it.

use plotters::prelude::*;

const SIZE: (u32, u32) = (720, 260);
/// Stand for what the page's style says; as plotters writes them.
const INK: RGBColor = RGBColor(1, 1, 1);
const INK_TEXT: &str = "#010101";
const BAR: RGBColor = RGBColor(2, 2, 2);
const BAR_TEXT: &str = "#020202";

/// One bar for each value, with every so many of the labels below.
pub fn bars(labels: &[String], values: &[u64], label_every: usize) -> String {
    let mut svg = String::new();
    // What cannot be drawn is told in words all the same.
    if draw(&mut svg, labels, values, label_every).is_err() {
        svg.clear();
    }
    // Scaled by the page, and part of it.
    svg.split_once("<svg ").map_or_else(String::new, |(_, rest)| {
        let (w, h) = SIZE;
        let inner = rest.split_once('>').map_or("", |(_, inner)| inner);
        // In the colours of the page, light or dark.
        let inner = inner.replace(INK_TEXT, "currentColor").replace(BAR_TEXT, "var(--accent)");
        format!(r#"<svg class="chart" viewBox="0 0 {w} {h}" aria-hidden="true" focusable="false" xmlns="http://www.w3.org/2000/svg">{inner}"#)
    })
}

fn draw(svg: &mut String, labels: &[String], values: &[u64], label_every: usize) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let most = values.iter().copied().max().unwrap_or(0).max(4) as f64 * 1.1;
    let mut chart = ChartBuilder::on(&area)
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..values.len().max(1) as f64, 0.0..most)?;
    let name = |at: &f64| {
        let index = at.round() as usize;
        labels.get(index).filter(|_| index.is_multiple_of(label_every.max(1))).cloned().unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(values.len() + 1)
        .y_labels(5)
        .x_label_formatter(&name)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .axis_style(INK)
        .bold_line_style(INK.mix(0.25))
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .draw()?;
    let bars = values.iter().enumerate().map(|(index, value)| {
        let left = index as f64;
        Rectangle::new([(left + 0.12, 0.0), (left + 0.88, *value as f64)], BAR.filled())
    });
    chart.draw_series(bars)?;
    area.present()?;
    drop(chart);
    drop(area);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_a_bar_for_each_value_and_no_style_of_its_own() {
        let labels: Vec<String> = (0..5).map(|hour| format!("{hour}:00")).collect();
        let svg = bars(&labels, &[0, 3, 9, 1, 4], 1);
        assert!(svg.starts_with("<svg class=\"chart\" viewBox=") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert_eq!(svg.matches("var(--accent)").count(), 5, "{svg}");
        assert!(!svg.contains("style=") && !svg.contains("#0") && svg.contains("3:00"));
        assert!(bars(&[], &[], 1).starts_with("<svg "));
    }
}
