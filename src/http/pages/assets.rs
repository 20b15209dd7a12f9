//! The pages' style and scripts, part of the program.
//!
//! Their address changes with their content, so browsers keep them for ever. While an upgrade rolls, a page of one version may
//! ask a node of another: it then gets what that one has, and keeps it for no time.

use std::sync::{Arc, LazyLock};

use warp::http::StatusCode;
use warp::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};

use super::super::Door;
use super::super::answer::Answer;
use super::super::docs::CSS;
use super::super::problem::Problem;
use super::super::request::Request;
use crate::actors::credential::sha256_hex;

const SCRIPT: &str = "text/javascript; charset=utf-8";

struct Asset {
    name: &'static str,
    content_type: &'static str,
    text: &'static str,
    /// The other scripts that it imports.
    needs: &'static [&'static str],
}

macro_rules! assets {
    ($($name:literal $content_type:ident $needs:expr;)*) => {
        &[$(Asset { name: $name, content_type: $content_type, text: include_str!(concat!("assets/", $name)), needs: &$needs }),*]
    };
}

const SVG: &str = "image/svg+xml";

static ASSETS: &[Asset] = assets! {
    "style.css" CSS [];
    "icon.svg" SVG [];
    "live.js" SCRIPT [];
    "clock.js" SCRIPT [];
    "sale-state.js" SCRIPT ["live.js"];
    "home.js" SCRIPT ["live.js", "clock.js", "sale-state.js"];
    "product.js" SCRIPT ["live.js"];
    "cart.js" SCRIPT ["live.js", "clock.js"];
    "order.js" SCRIPT ["live.js"];
    "fresh.js" SCRIPT [];
    "lists.js" SCRIPT ["fresh.js"];
    "operator.js" SCRIPT ["fresh.js"];
    "slider.js" SCRIPT [];
    "cockpit.js" SCRIPT ["live.js"];
    "sale.js" SCRIPT ["live.js", "clock.js", "sale-state.js"];
};

static VERSION: LazyLock<String> = LazyLock::new(|| {
    let all: String = ASSETS.iter().map(|asset| asset.text).collect();
    sha256_hex(all.as_bytes()).chars().take(12).collect()
});

/// Where an asset is.
pub fn path(name: &str) -> String {
    format!("/assets/{}/{name}", *VERSION)
}

/// The scripts that this one imports, which are then fetched with it and not after it.
pub fn modules(script: &str) -> &'static [&'static str] {
    ASSETS.iter().find(|asset| asset.name == script).map_or(&[], |asset| asset.needs)
}

/// `GET /assets/{version}/{name}`
pub async fn get(_: Arc<Door>, request: Request) -> Result<Answer, Problem> {
    let asset = ASSETS.iter().find(|asset| asset.name == request.param(1)).ok_or_else(Problem::not_found)?;
    let kept = if request.param(0) == *VERSION { "public, max-age=31536000, immutable" } else { "no-store" };
    let answer = Answer::bytes(StatusCode::OK, asset.content_type, asset.text.as_bytes().to_vec());
    Ok(answer.with(CACHE_CONTROL, kept).with(X_CONTENT_TYPE_OPTIONS, "nosniff"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_names_all_that_it_imports() {
        for asset in ASSETS.iter().filter(|asset| asset.content_type == SCRIPT) {
            let imported = asset.text.lines().filter_map(|line| line.split_once("from \"./")?.1.split_once('"'));
            let imported: Vec<&str> = imported.map(|(name, _)| name).collect();
            assert_eq!(imported, asset.needs, "{}", asset.name);
        }
    }
}
