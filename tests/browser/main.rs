//! The pages in a real browser, as people use them: Chromium, driven by Playwright.
//!
//! What is missing is installed: playwright-core and axe-core come from npm into `target/`, Chromium from Debian's packages where
//! this runs as root. What a person does is in `scenarios.mjs`; a scenario that wants the server killed says so, and this kills
//! it. Screenshots are left in `target/screenshots`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/node.rs"]
#[allow(dead_code)]
mod node;
mod tools;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use souk::integrations::http_client::{Client, Limits, Origin};
use tempfile::TempDir;

use node::{Node, souk};

const SCENARIO_WITHIN: Duration = Duration::from_secs(150);
const FLAGS: [&str; 3] = ["--demo", "--snapshot-every", "10"];

struct Shop {
    node: Option<Node>,
    origin: Origin,
    folder: TempDir,
}

impl Shop {
    async fn open() -> Shop {
        let folder = tempfile::tempdir().unwrap();
        let (node, origin) = Node::start_with(folder.path(), &FLAGS).await;
        Shop { node: Some(node), origin, folder }
    }

    fn url(&self) -> String {
        self.origin.to_string().trim_end_matches('/').to_owned()
    }

    /// kill -9, and a new one where it was.
    async fn dies_and_comes_back(&mut self) {
        self.node.take().unwrap().kill();
        let listen = self.url().strip_prefix("http://").unwrap().to_owned();
        self.node = Some(Node::spawn_at(souk(), &listen, self.folder.path(), &FLAGS));
        self.node.as_mut().unwrap().is_ready().await;
    }
}

/// Plays a scenario to its end. What it says it wants done to the server is done.
async fn play(scenario: &str) {
    let tools = tools::installed();
    let mut shop = Shop::open().await;
    let operator = node::operator(shop.folder.path());
    let screenshots = Path::new(env!("CARGO_BIN_EXE_souk")).ancestors().nth(2).unwrap().join("screenshots");
    std::fs::create_dir_all(&screenshots).unwrap();
    let mut command = Command::new("node");
    command.arg(tools.folder.join("scenarios.mjs")).arg(scenario).current_dir(&tools.folder);
    command.env("SOUK_URL", shop.url()).env("SOUK_OPERATOR", operator).env("CHROMIUM", &tools.chromium);
    command.env("SCREENSHOTS", screenshots);
    let mut playing = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut tell, said) = (playing.stdin.take().unwrap(), playing.stdout.take().unwrap());
    let (line, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || BufReader::new(said).lines().map_while(Result::ok).all(|text| line.send(text).is_ok()));
    let mut errors = playing.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        text
    });
    let until = Instant::now() + SCENARIO_WITHIN;
    let is_late = loop {
        match tokio::time::timeout_at(until.into(), lines.recv()).await {
            Ok(Some(line)) if line == "kill the server" => {
                shop.dies_and_comes_back().await;
                writeln!(tell, "it is back").unwrap();
            }
            Ok(Some(line)) => println!("{scenario}: {line}"),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    if is_late {
        let _ = playing.kill();
    }
    let ended = playing.wait().unwrap();
    let errors = errors.join().unwrap();
    assert!(ended.success() && !is_late, "{scenario} fails ({ended}):\n{errors}\n{}", shop.node.as_ref().unwrap().log());
}

/// Two at a time: each waits half of its time, and more would only wait for each other.
static AT_ONCE: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(2);

macro_rules! scenarios {
    ($($name:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let _turn = AT_ONCE.acquire().await.unwrap();
            play(stringify!($name)).await;
        }
    )*};
}

scenarios! {
    a_purchase_by_mouse
    a_purchase_by_keyboard_alone
    a_purchase_without_scripts
    what_is_wrong_is_told_beside_its_field
    two_browsers_see_the_same_order_move
    the_server_is_killed_and_the_page_recovers_without_a_reload
    a_vendor_ships_and_the_shopper_s_page_moves
    a_flash_sale_with_twenty_tabs
    an_operator_looks_at_the_cluster_and_at_an_entity_s_life
    every_page_is_accessible_from_a_phone_to_a_wall
    the_first_page_is_small
}

#[tokio::test]
async fn a_form_that_no_page_of_ours_has_made_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_node, origin) = Node::start_with(folder.path(), &FLAGS).await;
    let mut client = Client::new(origin, Limits::default());
    for form in ["sku=LANTERN-S&quantity=1", "sku=LANTERN-S&quantity=1&form_token=guessed"] {
        let answer = client.post("/cart/items", &[], form.into()).await.unwrap();
        assert_eq!(answer.status, 403, "{form}");
    }
}
