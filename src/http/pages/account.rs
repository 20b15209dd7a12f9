//! Logging in and out, signing up, and what is one's own.

use std::sync::Arc;

use maud::{Render, html};
use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::StatusCode;

use super::super::Door;
use super::super::answer::Answer;
use super::super::problem::Problem;
use super::super::request::{Query, Request};
use super::api::Refused;
use super::layout::{Field, Shell, when};
use super::{Failed, Page, shown};
use crate::domain::Timestamp;

#[derive(Deserialize)]
struct Me {
    email: String,
    name: String,
    roles: Vec<String>,
    created_at: Timestamp,
}

/// Where to go after a log-in: a page of ours.
fn back(given: &str) -> &str {
    let is_ours = given.starts_with('/') && !given.starts_with("//") && !given.contains(['\\', '\n', '\r']);
    if is_ours { given } else { "/" }
}

fn log_in_page(page: &mut Page, email: &str, to: &str, refused: Option<&Refused>) -> Result<Answer, Failed> {
    let fields = page.form_fields()?;
    let content = html! {
        h1 { "Log in" }
        @if let Some(refused) = refused { p .error role="alert" { (refused.reason()) } }
        form method="post" action="/login" {
            (fields)
            input type="hidden" name="back" value=(to);
            p .field { label for="email" { "E-mail address" } input #email type="email" name="email" value=(email) autocomplete="username" required; }
            p .field { label for="password" { "Password" } input #password type="password" name="password" autocomplete="current-password" required; }
            button .main type="submit" { "Log in" }
        }
        p { "No account yet? " a href="/signup" { "Sign up" } }
    };
    let status = if refused.is_some() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    page.show_as(status, &Shell::plain("Log in"), &content)
}

/// `GET /login`
pub async fn log_in(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let text = page.request.query.clone();
        let query = Query::parse(&text, &["back"])?;
        log_in_page(page, "", back(query.get("back").unwrap_or("/")), None)
    })
    .await
}

/// `POST /login`
pub async fn logged_in(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let (email, to) = (form.get("email"), back(form.get("back")));
        match page.visit.log_in(&page.door, &page.request, form.get("key"), email, form.secret("password")).await {
            Ok(()) => page.go(to),
            Err(refused) if refused.status < 500 => log_in_page(page, email, to, Some(&refused)),
            Err(refused) => Err(refused.into()),
        }
    })
    .await
}

/// `POST /logout`
pub async fn log_out(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        page.form()?;
        match page.api().delete("/api/sessions").await {
            Ok(()) => {}
            Err(refused) if refused.status == 401 => {}
            Err(refused) => return Err(refused.into()),
        }
        page.visit.log_out();
        page.go("/")
    })
    .await
}

fn sign_up_page(page: &mut Page, email: &str, name: &str, refused: Option<&Refused>) -> Result<Answer, Failed> {
    let fields = page.form_fields()?;
    let wrong = |pointer: &str| {
        let found = refused.and_then(|refused| refused.errors.iter().find(|wrong| wrong.pointer == pointer));
        found.map(|wrong| wrong.message.clone())
    };
    let input = |name, label, kind, value, fill| {
        let wrong = wrong(&format!("/{name}"));
        Field { name, label, kind, value, autocomplete: Some(fill), required: true, wrong: wrong.as_deref() }.render()
    };
    let content = html! {
        h1 { "Sign up" }
        @if let Some(refused) = refused { p .error role="alert" { @if refused.errors.is_empty() { (refused.reason()) } @else { (refused.title) } } }
        form method="post" action="/signup" {
            (fields)
            (input("name", "Name", "text", name, "name"))
            (input("email", "E-mail address", "email", email, "username"))
            (input("password", "Password", "password", "", "new-password"))
            button .main type="submit" { "Sign up" }
        }
    };
    let status = if refused.is_some() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    page.show_as(status, &Shell::plain("Sign up"), &content)
}

/// `GET /signup`
pub async fn sign_up(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| sign_up_page(page, "", "", None)).await
}

/// `POST /signup`
pub async fn signed_up(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let form = page.form()?;
        let (name, email) = (form.get("name"), form.get("email"));
        let body = json!({ "name": name, "email": email, "password": form.secret("password") });
        match page.api().post::<Value>("/api/users", form.get("key"), &body).await {
            Ok(_) => {}
            Err(refused) if refused.status < 500 => return sign_up_page(page, email, name, Some(&refused)),
            Err(refused) => return Err(refused.into()),
        }
        let key = format!("{}-login", form.get("key"));
        page.visit.log_in(&page.door, &page.request, &key, email, form.secret("password")).await?;
        page.visit.say("Welcome. Your account is there.");
        page.go("/account")
    })
    .await
}

/// `GET /account`
pub async fn account(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let me: Me = page.api().get("/api/users/me").await?;
        let content = html! {
            h1 { "Your account" }
            dl {
                dt { "Name" } dd { (me.name) }
                dt { "E-mail address" } dd { (me.email) }
                dt { "Roles" } dd { (me.roles.join(", ")) }
                dt { "Since" } dd { (when(&me.created_at)) }
            }
            p { a href="/orders" { "Your orders" } }
        };
        page.show(&Shell::plain("Your account"), &content)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_in_never_leads_to_another_site() {
        for (given, expected) in [
            ("/orders?x=1", "/orders?x=1"),
            ("", "/"),
            ("//evil.example", "/"),
            ("/\\evil.example", "/"),
            ("https://evil.example", "/"),
            ("/a\r\nset-cookie: x", "/"),
        ] {
            assert_eq!(back(given), expected);
        }
    }
}
