//! Logging in and out, signing up, and what is one's own.

use std::sync::Arc;

use maud::{Markup, Render, html};
use serde::Deserialize;
use serde_json::{Value, json};
use warp::http::StatusCode;

use super::super::Door;
use super::super::answer::Answer;
use super::super::problem::Problem;
use super::super::request::{Query, Request};
use super::api::Refused;
use super::layout::{Field, Shell, when};
use super::visit::Form;
use super::{Failed, Page, shown};
use crate::domain::Timestamp;
use crate::integrations::http_client::percent_encoded;

#[derive(Deserialize)]
struct Me {
    email: String,
    name: String,
    roles: Vec<String>,
    created_at: Timestamp,
}

#[derive(Deserialize)]
struct Sessions {
    items: Vec<Session>,
}

#[derive(Deserialize)]
struct Session {
    id: String,
    device: String,
    opened_at: Timestamp,
    used_at: Timestamp,
    current: bool,
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
    let input = |name, label, kind, value, fill| {
        let wrong = refused.and_then(|refused| refused.wrong_at(&format!("/{name}")));
        Field { value, wrong, ..Field::required(name, label, kind, fill) }.render()
    };
    let content = html! {
        h1 { "Sign up" }
        @if let Some(refused) = refused { p .error role="alert" { (refused.headline()) } }
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

/// What its holder can change of an account.
struct Change {
    /// In the paths of the page and of the API.
    name: &'static str,
    title: &'static str,
    /// With what the API calls each: two forms of one page ask for the same password.
    fields: &'static [(Field<'static>, &'static str)],
    button: &'static str,
    done: &'static str,
}

const CHANGES: [Change; 3] = [
    Change {
        name: "name",
        title: "Name",
        fields: &[(Field::required("name", "Name", "text", "name"), "name")],
        button: "Change the name",
        done: "Your name is changed.",
    },
    Change {
        name: "email",
        title: "E-mail address",
        fields: &[
            (Field::required("email", "E-mail address", "email", "username"), "email"),
            (Field::required("email_password", "Password", "password", "current-password"), "current_password"),
        ],
        button: "Change the address",
        done: "Your e-mail address is changed.",
    },
    Change {
        name: "password",
        title: "Password",
        fields: &[
            (Field::required("current_password", "Password until now", "password", "current-password"), "current_password"),
            (Field::required("new_password", "New password", "password", "new-password"), "new_password"),
        ],
        button: "Change the password",
        done: "Your password is changed. Everywhere else you are logged out.",
    },
];

/// A change that was refused, and the form that asked for it.
struct Tried<'a> {
    change: &'a Change,
    form: &'a Form,
    refused: &'a Refused,
}

impl Change {
    fn render(&self, me: &Me, fields: &Markup, tried: Option<&Tried<'_>>) -> Markup {
        let tried = tried.filter(|tried| tried.change.name == self.name);
        let value = |field: &Field<'_>| match (tried, field.kind, field.name) {
            (_, "password", _) => String::new(),
            (Some(tried), _, name) => tried.form.get(name).to_owned(),
            (None, _, "name") => me.name.clone(),
            (None, ..) => me.email.clone(),
        };
        let wrong = |member: &str| tried?.refused.wrong_at(&format!("/{member}"));
        html! {
            form method="post" action=(format!("/account/{}", self.name)) {
                (fields)
                fieldset {
                    legend { (self.title) }
                    @if let Some(tried) = tried { p .error role="alert" { (tried.refused.headline()) } }
                    @for (field, member) in self.fields {
                        (Field { value: &value(field), wrong: wrong(member), ..*field })
                    }
                    button type="submit" { (self.button) }
                }
            }
        }
    }
}

async fn account_page(page: &mut Page, tried: Option<Tried<'_>>) -> Result<Answer, Failed> {
    let me: Me = page.api().get("/api/users/me").await?;
    let sessions: Sessions = page.api().get("/api/users/me/sessions").await?;
    let fields = page.form_fields()?;
    let change = |change: &Change| change.render(&me, &fields, tried.as_ref());
    let [name, email, password] = &CHANGES;
    let content = html! {
        h1 { "Your account" }
        p { @for role in &me.roles { span .badge { (role) } " " } "since " (when(&me.created_at)) ". " a href="/orders" { "Your orders" } }
        div .split.even {
            div { (change(name)) (change(email)) }
            div { (change(password)) }
        }
        section {
            h2 { "Where you are logged in" }
            ul .lines {
                @for session in &sessions.items {
                    li .line.row {
                        span { (session.device) " " span .from { "since " (when(&session.opened_at)) ", last seen " (when(&session.used_at)) } }
                        @if session.current { span .badge { "here" } } @else {
                            form method="post" action=(format!("/account/sessions/{}", percent_encoded(&session.id))) {
                                (fields)
                                button type="submit" { "Log out there" }
                            }
                        }
                    }
                }
            }
        }
        section {
            h2 { "Leaving" }
            form method="post" action="/account/leave" {
                (fields)
                p .check {
                    input #sure type="checkbox" name="sure" value="yes" required;
                    label for="sure" { "Delete this account and what is known of me. It cannot be undone." }
                }
                button type="submit" { "Delete the account" }
            }
        }
    };
    let status = if tried.is_some() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    page.show_as(status, &Shell::plain("Your account"), &content)
}

/// `GET /account`
pub async fn account(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| account_page(page, None).await).await
}

/// `POST /account/{change}`
pub async fn changed(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        let change = CHANGES.iter().find(|change| change.name == page.param(0)).ok_or_else(Problem::not_found)?;
        let form = page.form()?;
        let text = |field: &Field<'_>| match field.kind {
            "password" => form.secret(field.name).to_owned(),
            _ => form.get(field.name).to_owned(),
        };
        let body: Value = change.fields.iter().map(|(field, member)| (*member, text(field))).collect();
        let outcome: Result<(), Refused> = match change.name {
            "name" => page.api().patch::<Value>("/api/users/me", &body).await.map(drop),
            other => page.api().post::<Value>(&format!("/api/users/me/{other}"), form.get("key"), &body).await.map(drop),
        };
        match outcome {
            Ok(()) => page.visit.say(change.done),
            Err(refused) if refused.can_be_mended() => {
                return account_page(page, Some(Tried { change, form: &form, refused: &refused })).await;
            }
            Err(refused) => return Err(refused.into()),
        }
        page.go("/account")
    })
    .await
}

/// `POST /account/sessions/{id}`
pub async fn end_session(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        page.form()?;
        let outcome = page.api().delete(&format!("/api/users/me/sessions/{}", percent_encoded(page.param(0)))).await;
        page.tell(outcome, "You are logged out there.")?;
        page.go("/account")
    })
    .await
}

/// `POST /account/leave`
pub async fn leave(door: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    shown(door, request, async |page| {
        if page.form()?.get("sure") != "yes" {
            page.visit.say("Say first that you are sure.");
            return page.go("/account");
        }
        let outcome = page.api().delete("/api/users/me").await;
        let mut to = "/account";
        if outcome.is_ok() {
            page.visit.log_out();
            to = "/";
        }
        page.tell(outcome, "Your account is deleted.")?;
        page.go(to)
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
