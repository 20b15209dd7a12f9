//! What all pages have around them.

use maud::{DOCTYPE, Markup, Render, html};

use super::assets;
use super::visit::Visit;
use crate::actors::permissions::Rank;
use crate::domain::Timestamp;

/// A page's frame.
#[derive(Default)]
pub struct Shell<'a> {
    pub title: &'a str,
    /// What was searched for.
    pub q: &'a str,
    /// The script that keeps this page fresh, and what it follows.
    pub script: Option<&'static str>,
}

fn arch() -> Markup {
    html! {
        svg viewBox="0 0 32 32" aria-hidden="true" focusable="false" {
            path d="M4 28V15a12 12 0 0 1 24 0v13h-7V15a5 5 0 0 0-10 0v13z" {}
        }
    }
}

/// A moment as people read it.
pub fn when(time: &impl ToString) -> Markup {
    let time = time.to_string();
    let (day, clock) = (time.get(..10).unwrap_or(&time), time.get(11..16).unwrap_or_default());
    html! { time datetime=(time) { (day) " " (clock) " UTC" } }
}

/// How long it is until then; scripts go on from there, see `clock.js`.
pub fn countdown(at: Timestamp, now: Timestamp) -> Markup {
    let seconds = at.since_ms(now).max(0).saturating_add(999) / 1_000;
    let (days, clock) = (seconds / 86_400, format!("{:02}:{:02}:{:02}", seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60));
    html! {
        time data-countdown="" datetime=(at) { @if seconds == 0 { "now" } @else { @if days > 0 { (days) " d " } (clock) } }
    }
}

/// The pages that belong together, and which of them this is.
pub fn tabs(label: &str, places: &[(&str, &str)], here: &str) -> Markup {
    html! {
        nav .tabs aria-label=(label) {
            @for (path, name) in places { a href=(path) aria-current=[(*path == here).then_some("page")] { (name) } " " }
        }
    }
}

/// A field of a form, with its label, and what is wrong with it beside it.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    pub name: &'a str,
    pub label: &'a str,
    pub kind: &'static str,
    pub value: &'a str,
    /// What a browser may fill in.
    pub autocomplete: Option<&'a str>,
    pub required: bool,
    pub wrong: Option<&'a str>,
}

impl<'a> Field<'a> {
    /// One to be filled in, and empty.
    pub const fn required(name: &'a str, label: &'a str, kind: &'static str, autocomplete: &'a str) -> Self {
        Field { name, label, kind, value: "", autocomplete: Some(autocomplete), required: true, wrong: None }
    }
}

impl Render for Field<'_> {
    fn render(&self) -> Markup {
        let Field { name, label, kind, value, autocomplete, required, wrong } = *self;
        let error = wrong.map(|_| format!("{name}-error"));
        html! {
            p .field {
                label for=(name) { (label) }
                input id=(name) type=(kind) name=(name) value=(value) autocomplete=[autocomplete] required[required]
                    aria-invalid=[wrong.map(|_| "true")] aria-describedby=[error.as_deref()];
                @if let (Some(wrong), Some(error)) = (wrong, &error) { span .error id=(error) { (wrong) } }
            }
        }
    }
}

impl<'a> Shell<'a> {
    pub fn plain(title: &'a str) -> Self {
        Shell { title, ..Shell::default() }
    }

    pub fn live(title: &'a str, script: &'static str) -> Self {
        Shell { title, script: Some(script), ..Shell::default() }
    }

    pub fn around(&self, visit: &Visit, fields: &Markup, content: &Markup) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) " · Souk" }
                    link rel="stylesheet" href=(assets::path("style.css"));
                    link rel="icon" type="image/svg+xml" href=(assets::path("icon.svg"));
                    @if let Some(script) = self.script {
                        @for needed in assets::modules(script) {
                            link rel="modulepreload" href=(assets::path(needed));
                        }
                        script type="module" src=(assets::path(script)) {}
                    }
                }
                body {
                    a .skip href="#content" { "To the content" }
                    header .top {
                        div .wide {
                            a .brand href="/" { (arch()) "Souk" }
                            form .search role="search" action="/products" method="get" {
                                label .hidden for="q" { "Search products" }
                                input #q type="search" name="q" value=(self.q) placeholder="Search products" autocomplete="off";
                                button type="submit" { "Search" }
                            }
                            nav aria-label="Main" {
                                a href="/products" { "Products" }
                                a href="/sales" { "Flash sales" }
                                a href="/cart" { "Cart" }
                                a href="/orders" { "Orders" }
                                @if visit.is(Rank::Vendor) { a href="/vendor" { "Your shop" } }
                                @if visit.is(Rank::Admin) { a href="/operator" { "Operation" } }
                                @if visit.account().is_some() {
                                    a href="/account" { "Account" }
                                    form action="/logout" method="post" { (fields) button .link type="submit" { "Log out" } }
                                } @else {
                                    a href="/login" { "Log in" }
                                }
                            }
                        }
                    }
                    p #connection .connection role="status" aria-live="polite" {}
                    main #content tabindex="-1" {
                        @if let Some(note) = visit.note() { p .note role="status" { (note) } }
                        (content)
                    }
                    footer { div .wide { p { "Souk, an open marketplace" } p { a href="/docs" { "For developers" } } } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_countdown_is_told_as_its_script_tells_it() {
        let now: Timestamp = serde_json::from_str("\"2026-01-01T00:00:00Z\"").unwrap();
        for (ms, text) in [(-5, "now"), (0, "now"), (1, "00:00:01"), (61_000, "00:01:01"), (90_061_001, "1 d 01:01:02")] {
            assert!(countdown(now.plus_ms(ms), now).into_string().ends_with(&format!(">{text}</time>")), "{ms}");
        }
    }
}
