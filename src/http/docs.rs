//! The contract as a page, made of the OpenAPI document and of nothing else.
//!
//! It works without any other host and without scripts: whoever reads it may have no network but this node. Everything
//! that comes from the document is escaped here, and nothing may be written into the page that is not.

use std::fmt::Write;
use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value};
use warp::http::StatusCode;
use warp::http::header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};

use super::Door;
use super::answer::Answer;
use super::openapi::{self, unless_known};
use super::problem::Problem;
use super::request::Request;
use crate::actors::credential::sha256_hex;

pub const HTML: &str = "text/html; charset=utf-8";
pub const CSS: &str = "text/css; charset=utf-8";
/// The page takes nothing but its own style sheet, from nowhere but here.
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const STYLE: &str = include_str!("docs.css");

struct Made {
    text: String,
    etag: String,
}

impl Made {
    fn new(text: String) -> Self {
        let etag = format!("\"{}\"", sha256_hex(text.as_bytes()).get(..16).unwrap_or_default());
        Made { text, etag }
    }

    fn answer(&self, request: &Request, content_type: &'static str) -> Answer {
        let made = || Answer::bytes(StatusCode::OK, content_type, self.text.clone().into_bytes());
        unless_known(request, &self.etag, made)
            .with(CONTENT_SECURITY_POLICY, POLICY)
            .with(X_CONTENT_TYPE_OPTIONS, "nosniff")
            .with(REFERRER_POLICY, "no-referrer")
    }
}

static PAGE: LazyLock<Made> = LazyLock::new(|| Made::new(page(&openapi::document())));
static SHEET: LazyLock<Made> = LazyLock::new(|| Made::new(STYLE.to_owned()));

/// `GET /docs`
pub async fn get(_: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    Ok(PAGE.answer(&request, HTML))
}

/// `GET /docs/style.css`
pub async fn style(_: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    Ok(SHEET.answer(&request, CSS))
}

/// The only way for text to get into the page.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

/// Text whose `code` is between backticks, and whose paragraphs are between empty lines.
fn prose(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let paragraph = |text: &str| {
        let parts = text.split('`').enumerate();
        let marked: String = parts
            .map(|(index, part)| if index % 2 == 1 { format!("<code>{}</code>", escaped(part)) } else { escaped(part) })
            .collect();
        format!("<p>{}</p>", marked.replace('\n', "<br>"))
    };
    text.split("\n\n").map(paragraph).collect()
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn members<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = (&'v String, &'v Value)> {
    value.get(name).and_then(Value::as_object).into_iter().flatten()
}

fn elements<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// The value, or what it refers to.
fn resolved<'v>(document: &'v Value, value: &'v Value) -> &'v Value {
    let found = value.get("$ref").and_then(Value::as_str).and_then(|at| document.pointer(at.strip_prefix('#')?));
    found.unwrap_or(value)
}

// Writing into a String cannot fail, so what `write!` says of it is not looked at.

fn page(document: &Value) -> String {
    let info = document.get("info").unwrap_or(&Value::Null);
    let (title, version) = (escaped(text(info, "title")), escaped(text(info, "version")));
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title} {version}</title>\n\
         <link rel=\"stylesheet\" href=\"/docs/style.css\">\n</head>\n<body>\n<header>\n<h1>{title} <small>{version}</small></h1>\n\
         {}\n<p>For programs: <a href=\"/api/openapi.json\">openapi.json</a></p>\n</header>\n",
        prose(text(info, "summary")),
    );
    let _ = write!(
        html,
        "<main>\n<section id=\"conventions\">\n<h2>Conventions</h2>\n{}</section>\n",
        prose(text(info, "description"))
    );
    tokens(&mut html, document);
    contents(&mut html, document);
    for tag in elements(document, "tags") {
        let name = text(tag, "name");
        let _ = write!(html, "<section>\n<h2>{}</h2>\n{}", escaped(name), prose(text(tag, "description")));
        for (path, method, operation) in operations(document, name) {
            show_operation(&mut html, document, path, method, operation);
        }
        html.push_str("</section>\n");
    }
    html.push_str("<section>\n<h2>Schemas</h2>\n");
    for (name, schema) in members(document.get("components").unwrap_or(&Value::Null), "schemas") {
        show_schema(&mut html, name, schema);
    }
    html.push_str("</section>\n</main>\n</body>\n</html>\n");
    html
}

fn operations<'v>(document: &'v Value, tag: &str) -> Vec<(&'v str, &'v str, &'v Value)> {
    let mut found = Vec::new();
    for (path, methods) in members(document, "paths") {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            if elements(operation, "tags").any(|given| given.as_str() == Some(tag)) {
                found.push((path.as_str(), method.as_str(), operation));
            }
        }
    }
    found
}

fn tokens(html: &mut String, document: &Value) {
    html.push_str("<section>\n<h2>Tokens</h2>\n<p>Sent as <code>Authorization: Bearer …</code></p>\n<dl>\n");
    for (name, scheme) in members(document.get("components").unwrap_or(&Value::Null), "securitySchemes") {
        let _ = writeln!(html, "<dt>{}</dt><dd>{}</dd>", escaped(name), prose(text(scheme, "description")));
    }
    html.push_str("</dl>\n</section>\n");
}

fn contents(html: &mut String, document: &Value) {
    html.push_str("<nav aria-label=\"Operations\">\n<h2>Operations</h2>\n");
    for tag in elements(document, "tags") {
        let name = text(tag, "name");
        let _ = writeln!(html, "<h3>{}</h3>\n<ul>", escaped(name));
        for (path, method, operation) in operations(document, name) {
            let (id, summary) = (escaped(text(operation, "operationId")), escaped(text(operation, "summary")));
            let method = escaped(&method.to_uppercase());
            let _ = writeln!(html, "<li><a href=\"#{id}\">{summary}</a> <code>{method} {}</code></li>", escaped(path));
        }
        html.push_str("</ul>\n");
    }
    html.push_str("</nav>\n");
}

fn show_operation(html: &mut String, document: &Value, path: &str, method: &str, operation: &Value) {
    let _ = write!(
        html,
        "<article id=\"{}\">\n<h3>{}</h3>\n<p class=\"line\"><b class=\"{method}\">{}</b> <code>{}</code></p>\n",
        escaped(text(operation, "operationId")),
        escaped(text(operation, "summary")),
        method.to_uppercase(),
        escaped(path),
    );
    if !text(operation, "description").is_empty() {
        html.push_str(&prose(text(operation, "description")));
    }
    let needed: Vec<String> = elements(operation, "security").filter_map(Value::as_object).flat_map(Map::keys).cloned().collect();
    if !needed.is_empty() {
        let _ = writeln!(html, "<p>Token: {}</p>", escaped(&needed.join(" or ")));
    }
    let mut parameters = elements(operation, "parameters").map(|given| resolved(document, given)).peekable();
    if parameters.peek().is_some() {
        html.push_str("<h4>Parameters</h4>\n<dl>\n");
        for parameter in parameters {
            let schema = parameter.get("schema").unwrap_or(&Value::Null);
            let _ = writeln!(
                html,
                "<dt><code>{}</code> <small>{}, {}</small></dt><dd>{}</dd>",
                escaped(text(parameter, "name")),
                escaped(text(parameter, "in")),
                kind(schema),
                prose(text(parameter, "description")),
            );
        }
        html.push_str("</dl>\n");
    }
    if let Some(body) = operation.get("requestBody") {
        html.push_str("<h4>Body</h4>\n");
        content(html, body);
    }
    html.push_str("<h4>Answers</h4>\n");
    for (status, answer) in members(operation, "responses") {
        let headers: Vec<String> =
            members(answer, "headers").map(|(name, _)| format!("<code>{}</code>", escaped(name))).collect();
        let description = text(answer, "description");
        let first = prose(description.lines().next().unwrap_or_default());
        let open = if status.starts_with('2') { " open" } else { "" };
        let _ = write!(
            html,
            "<details{open}>\n<summary><b>{}</b> {}</summary>\n",
            escaped(status),
            first.trim_start_matches("<p>").trim_end_matches("</p>"),
        );
        if let Some((_, rest)) = description.split_once('\n') {
            html.push_str(&prose(rest));
        }
        let _ = writeln!(html, "<p>Headers: {}</p>", headers.join(", "));
        content(html, answer);
        html.push_str("</details>\n");
    }
    html.push_str("</article>\n");
}

/// A body's media type, schema and example.
fn content(html: &mut String, holder: &Value) {
    for (media_type, media) in members(holder, "content") {
        let schema = media.get("schema").unwrap_or(&Value::Null);
        let _ = writeln!(html, "<p><code>{}</code> {}</p>", escaped(media_type), kind(schema));
        let example = match media.get("example") {
            None => continue,
            Some(Value::String(text)) => text.clone(),
            Some(example) => serde_json::to_string_pretty(example).unwrap_or_default(),
        };
        let _ = writeln!(html, "<pre tabindex=\"0\">{}</pre>", escaped(&example));
    }
}

fn show_schema(html: &mut String, name: &str, schema: &Value) {
    let name = escaped(name);
    let _ = write!(html, "<article id=\"schema-{name}\">\n<h3>{name}</h3>\n{}", prose(text(schema, "description")));
    fields(html, schema);
    for (index, choice) in elements(schema, "oneOf").enumerate() {
        let _ = write!(html, "<h4>{}</h4>\n{}", if index == 0 { "Either" } else { "Or" }, prose(text(choice, "description")));
        fields(html, choice);
    }
    if schema.get("properties").is_none() && schema.get("oneOf").is_none() {
        let _ = writeln!(html, "<p>{}</p>", kind(schema));
    }
    html.push_str("</article>\n");
}

fn fields(html: &mut String, schema: &Value) {
    let required: Vec<&str> = elements(schema, "required").filter_map(Value::as_str).collect();
    if schema.get("properties").is_none() {
        return;
    }
    html.push_str("<dl>\n");
    for (field, of) in members(schema, "properties") {
        let must = if required.contains(&field.as_str()) { "" } else { ", may be left out" };
        let _ = writeln!(
            html,
            "<dt><code>{}</code> <small>{}{must}</small></dt><dd>{}</dd>",
            escaped(field),
            kind(of),
            prose(text(of, "description")),
        );
    }
    html.push_str("</dl>\n");
}

/// What a schema allows, in one line.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|at| at.rsplit('/').next()) {
        let name = escaped(name);
        return format!("<a href=\"#schema-{name}\">{name}</a>");
    }
    let choices: Vec<String> = elements(schema, "anyOf").map(kind).collect();
    if !choices.is_empty() {
        return choices.join(" or ");
    }
    if let Some(value) = schema.get("const") {
        return format!("<code>{}</code>", escaped(&value.to_string()));
    }
    let mut said: Vec<String> = match schema.get("type") {
        Some(Value::String(kind)) => vec![escaped(kind)],
        Some(Value::Array(kinds)) => {
            vec![kinds.iter().filter_map(Value::as_str).map(escaped).collect::<Vec<_>>().join(" or ")]
        }
        _ => Vec::new(),
    };
    if let Some(items) = schema.get("items") {
        said.push(format!("of {}", kind(items)));
    }
    let values: Vec<String> = elements(schema, "enum").map(|value| escaped(value.as_str().unwrap_or("null"))).collect();
    if !values.is_empty() {
        said.push(format!("one of {}", values.join(", ")));
    }
    let bounds = [
        ("minimum", "at least"),
        ("maximum", "at most"),
        ("minLength", "length at least"),
        ("maxLength", "length at most"),
        ("minItems", "items at least"),
        ("maxItems", "items at most"),
        ("default", "else"),
        ("format", ""),
        ("pattern", "like"),
    ];
    for (name, words) in bounds {
        if let Some(value) = schema.get(name) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            said.push(format!("{words} <code>{}</code>", escaped(&value)).trim_start().to_owned());
        }
    }
    if said.is_empty() { "anything".to_owned() } else { said.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_page_shows_every_operation_and_every_schema_and_each_link_leads_somewhere() {
        let document = openapi::document();
        let page = page(&document);
        let mut shown = 0;
        for (path, methods) in members(&document, "paths") {
            for (_, operation) in methods.as_object().unwrap() {
                shown += 1;
                let id = text(operation, "operationId");
                assert!(page.contains(&format!("<article id=\"{id}\">")), "{path}: {id}");
            }
        }
        assert_eq!(page.matches("<p class=\"line\">").count(), shown);
        for (at, _) in page.match_indices("href=\"#") {
            let target = page[at + "href=\"#".len()..].split('"').next().unwrap();
            assert!(page.contains(&format!("id=\"{target}\"")), "{target}");
        }
    }

    #[test]
    fn the_page_needs_no_other_host_and_no_scripts() {
        let page = page(&openapi::document());
        for outside in ["<script", "src=", "http:", "https:", "style=", "<style", "@import", "onclick"] {
            assert!(!page.contains(outside) && !STYLE.contains(outside), "{outside}");
        }
        assert!(!STYLE.contains("url("));
        assert!(!POLICY.contains("unsafe"));
    }

    #[test]
    fn nothing_of_the_document_is_taken_for_markup() {
        let evil = "<img src=x onerror=alert(1)>\"'`<b>`";
        let operation = json!({
            "operationId": evil, "tags": [evil], "summary": evil, "description": evil, "security": [{ (evil): [] }],
            "parameters": [{ "name": evil, "in": evil, "schema": { "enum": [evil], "pattern": evil } }],
            "requestBody": { "content": { (evil): { "schema": { "$ref": evil }, "example": evil } } },
            "responses": { (evil): { "description": evil, "headers": { (evil): {} } } },
        });
        let document = json!({
            "info": { "title": evil, "version": evil, "summary": evil, "description": evil },
            "tags": [{ "name": evil, "description": evil }],
            "paths": { (evil): { "get": operation } },
            "components": { "schemas": { (evil): { "properties": { (evil): { "const": evil } } } }, "securitySchemes": { (evil): {} } },
        });
        let page = page(&document);
        assert!(page.contains("&lt;img"));
        assert!(!page.contains("<img"), "{page}");
    }
}
