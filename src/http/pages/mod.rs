//! The shop window: pages for shoppers, vendors and operators, written on the server.
//!
//! - `api` is how a page asks: as any other client of the API would, so that what a page may see and do is decided there.
//! - `visit` knows the browser by its cookies, `layout` is what all pages have around them, `assets` their style and scripts.
//! - `shopper` holds the shop, `sales` flash sales, `account` logging in and what is one's own; `vendor` is for those who sell,
//!   `operator` for those who run it, who see in `traffic` how it does. `charts` and `tile` draw.
//!
//! A page can be read and its forms work without scripts; scripts keep it fresh. No page may rest on them, and no rule of
//! commerce may live here.

pub mod account;
pub mod api;
pub mod assets;
pub mod charts;
pub mod layout;
pub mod operator;
pub mod sales;
pub mod shopper;
pub mod tile;
pub mod traffic;
pub mod vendor;
pub mod visit;

use std::sync::Arc;

use maud::{Markup, html};
use warp::http::StatusCode;
use warp::http::header::{ACCEPT, HeaderMap, LOCATION};

use super::Door;
use super::answer::Answer;
use super::docs::HTML;
use super::problem::Problem;
use super::request::Request;
use api::{Api, Refused};
use layout::Shell;
use visit::{Form, Visit};

use crate::integrations::http_client::percent_encoded;

/// Why there is no page.
pub enum Failed {
    Refused(Box<Refused>),
    Problem(Problem),
}

impl Failed {
    fn into_problem(self) -> Problem {
        match self {
            Failed::Problem(problem) => problem,
            Failed::Refused(_) => Problem::not_found(),
        }
    }
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Failed::Refused(Box::new(refused))
    }
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Failed::Problem(problem)
    }
}

/// One request for a page, and the browser that sent it.
pub struct Page {
    pub door: Arc<Door>,
    pub request: Request,
    pub visit: Visit,
}

impl Page {
    async fn of(door: Arc<Door>, request: Request) -> Result<Page, Problem> {
        let visit = Visit::of(&door, &request).await?;
        Ok(Page { door, request, visit })
    }

    pub fn api(&self) -> Api<'_> {
        Api { door: &self.door, request: &self.request, token: self.visit.token() }
    }

    pub fn param(&self, index: usize) -> &str {
        self.request.param(index)
    }

    /// The fields of the form that this browser sent, if it is one of ours.
    pub fn form(&self) -> Result<Form, Failed> {
        let form = Form::parse(&self.request.body)?;
        match self.visit.accepts(&self.door, &self.request.headers, form.get("form_token")) {
            true => Ok(form),
            false => Err(Refused {
                status: 403,
                title: "This form is not one of ours, or has grown old.".into(),
                detail: Some("Open the page again and send it from there.".into()),
                ..Refused::default()
            }
            .into()),
        }
    }

    /// What every form bears besides its own fields.
    pub fn form_fields(&mut self) -> Result<Markup, Problem> {
        let (token, key) = (self.visit.form_token(&self.door)?, ulid::Ulid::new().to_string());
        Ok(html! {
            input type="hidden" name="form_token" value=(token);
            input type="hidden" name="key" value=(key);
        })
    }

    pub fn show(&mut self, shell: &Shell<'_>, content: &Markup) -> Result<Answer, Failed> {
        self.show_as(StatusCode::OK, shell, content)
    }

    pub fn show_as(&mut self, status: StatusCode, shell: &Shell<'_>, content: &Markup) -> Result<Answer, Failed> {
        let fields = self.form_fields()?;
        let text = shell.around(&self.visit, &fields, content).into_string();
        Ok(self.visit.dress(Answer::bytes(status, HTML, text.into_bytes())))
    }

    /// Tells on the next page what came of something.
    pub fn tell<T>(&mut self, outcome: Result<T, Refused>, done: &str) -> Result<(), Failed> {
        match outcome {
            Ok(_) => self.visit.say(done),
            Err(refused) if refused.can_be_mended() => self.visit.say(&refused.reason()),
            Err(refused) => return Err(refused.into()),
        }
        Ok(())
    }

    /// Sends the browser to another page, which it then gets by GET.
    pub fn go(&self, path: &str) -> Result<Answer, Failed> {
        Ok(self.visit.dress(Answer::empty(StatusCode::SEE_OTHER).with(LOCATION, path)))
    }
}

type Shown = Result<Answer, Failed>;

/// Makes a page of what a handler gives or fails with.
pub async fn shown(door: Arc<Door>, request: Request, handler: impl AsyncFnOnce(&mut Page) -> Shown) -> Result<Answer, Problem> {
    let mut page = Page::of(door, request).await?;
    let failed = match handler(&mut page).await {
        Ok(answer) => return Ok(answer),
        Err(failed) => failed,
    };
    let refused = match failed {
        Failed::Refused(refused) => *refused,
        Failed::Problem(problem) => told(problem, &page.request.id),
    };
    if refused.status == 401 {
        let back = match page.request.query.as_str() {
            "" => page.request.path.clone(),
            query => format!("{}?{query}", page.request.path),
        };
        let back = percent_encoded(&back);
        return page.go(&format!("/login?back={back}")).map_err(Failed::into_problem);
    }
    let status = StatusCode::from_u16(refused.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let (title, content) = apology(&refused);
    page.show_as(status, &Shell::plain(title), &content).map_err(Failed::into_problem)
}

fn apology(refused: &Refused) -> (&str, Markup) {
    let title = if refused.title.is_empty() { "Something went wrong." } else { &refused.title };
    let content = html! {
        h1 { (title) }
        @if let Some(detail) = &refused.detail { p { (detail) } }
        p { a href="/" { "To the shop" } }
    };
    (title, content)
}

/// Whether whoever asks is a person with a browser, who is told as a page what went wrong.
pub fn is_for_people(path: &str, headers: &HeaderMap) -> bool {
    let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept.contains("text/html"));
    accepts && !path.starts_with("/api/")
}

/// What went wrong before there was a page.
pub fn problem_page(problem: Problem, request_id: &str) -> Answer {
    let status = problem.status();
    let refused = told(problem, request_id);
    let (title, content) = apology(&refused);
    let text = Shell::plain(title).around(&Visit::nobody(), &html! {}, &content).into_string();
    Answer::bytes(status, HTML, text.into_bytes())
}

fn told(problem: Problem, request_id: &str) -> Refused {
    let status = problem.status().as_u16();
    match problem.into_answer(request_id).body {
        super::answer::Body::Bytes(body) => serde_json::from_slice(&body).unwrap_or_default(),
        super::answer::Body::Response(_) => Refused { status, ..Refused::default() },
    }
}
