//! Starting and ending servers, and filling them with goods.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use souk::actors::clock::Clock;
use souk::http::identity::keys::Keys;
use souk::http::identity::operators_token;
use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::client::{Answer, Call, Line};

/// The key that every server here signs with.
static SIGNING_KEY: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    Keys::open(folder.path(), Clock::default().now()).unwrap();
    let file = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    (folder, file)
});

/// A token with every permission, for every server here.
pub static ADMIN: LazyLock<String> = LazyLock::new(|| {
    let now = Clock::default().now();
    operators_token(Keys::given(&SIGNING_KEY.1, now).unwrap(), now).unwrap()
});
const START: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// The server that tests share which leave others' things alone. It lives for as long as one of them runs.
static SHARED: Mutex<Weak<Souk>> = Mutex::const_new(Weak::new());
static NAMES: AtomicU32 = AtomicU32::new(0);

/// A running program with a data folder of its own. Dropping it kills it.
pub struct Souk {
    child: Option<Child>,
    address: SocketAddr,
    folder: TempDir,
    flags: Vec<String>,
    program: String,
}

impl Drop for Souk {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() || std::env::var_os("SOUK_DOOR_LOG").is_some() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let tail = log.lines().rev().take(20).collect::<Vec<_>>();
            eprintln!("--- the server's last words\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

impl Souk {
    pub async fn start(flags: &[&str]) -> Souk {
        Souk::start_program(env!("CARGO_BIN_EXE_souk"), flags).await
    }

    pub async fn start_program(program: &str, flags: &[&str]) -> Souk {
        let mut souk = Souk {
            child: None,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            folder: tempfile::tempdir().unwrap(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            program: program.to_owned(),
        };
        souk.launch().await;
        souk
    }

    /// The shared server, with the demo's goods in it.
    pub async fn shared() -> Arc<Souk> {
        let mut shared = SHARED.lock().await;
        if let Some(souk) = shared.upgrade() {
            return souk;
        }
        let souk = Arc::new(Souk::start(&["--demo"]).await);
        *shared = Arc::downgrade(&souk);
        souk
    }

    /// Starts the program and waits until it is ready. Somebody else may take the port first: then another is tried.
    async fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let deadline = Instant::now() + START;
        'port: loop {
            self.address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let log = File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
            let mut command = Command::new(&self.program);
            command.args(["serve", "--listen", &self.address.to_string(), "--data"]).arg(self.folder.path().join("data"));
            // All of a test's clients come from one address. Only those of the limits themselves mind.
            if !self.flags.iter().any(|flag| flag.starts_with("--limit-")) {
                command.arg("--no-limits");
            }
            command.args(&self.flags).arg("--signing-key").arg(&SIGNING_KEY.1).env_remove("RUST_LOG");
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
            let child = self.child.insert(child);
            loop {
                assert!(Instant::now() < deadline, "the server did not start in time");
                if child.try_wait().unwrap().is_some() {
                    self.child = None;
                    continue 'port;
                }
                if tokio::net::TcpStream::connect(self.address).await.is_ok() {
                    break 'port;
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        eventually(START, async || (self.get("/health/ready").send().await.status == 200).then_some(())).await;
    }

    /// kill -9, and nothing of it is left when this returns.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks it to end, as an operator does.
    pub fn ask_to_end(&self) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    /// Waits for the end that was asked for.
    pub async fn ended(&mut self) {
        let mut child = self.child.take().unwrap();
        let status = eventually(END, async || child.try_wait().unwrap()).await;
        assert!(status.success(), "{status}");
    }

    pub async fn start_again(&mut self) {
        self.launch().await;
    }

    /// All files of its data folder but the keys, which are secrets by their nature.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.folder.path().join("data")];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { &mut folders } else { &mut files }.push(path);
            }
        }
        files
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.as_ref().unwrap().id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    pub async fn connect(&self) -> Line {
        Line::open(self.address).await
    }

    pub fn call(&self, method: &str, path: &str) -> Call {
        Call::new(self.address, method, path)
    }

    pub fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    pub fn post(&self, path: &str, body: Value) -> Call {
        self.call("POST", path).json(&body)
    }

    pub fn patch(&self, path: &str, body: Value) -> Call {
        self.call("PATCH", path).json(&body)
    }

    pub fn delete(&self, path: &str) -> Call {
        self.call("DELETE", path)
    }

    // Goods and buyers.

    /// A product with one variant for each (sku, price in cents, stock), and its id.
    pub async fn product(&self, variants: &[(&str, i64, u32)]) -> String {
        let answer = self.post("/api/products", product_body(variants)).bearer(&ADMIN).send().await.expect(201);
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    /// A sku of its own with this price and stock.
    pub async fn sku(&self, cents: i64, stock: u32) -> String {
        let sku = name("SKU");
        self.product(&[(&sku, cents, stock)]).await;
        sku
    }

    pub async fn cart(&self) -> Cart {
        let body = self.post("/api/carts", json!({})).send().await.expect(201).json();
        Cart { id: text(&body["id"]), token: text(&body["token"]) }
    }

    /// A cart with one line.
    pub async fn cart_with(&self, sku: &str, quantity: u32) -> Cart {
        let cart = self.cart().await;
        self.add(&cart, sku, quantity).await.expect(200);
        cart
    }

    pub async fn add(&self, cart: &Cart, sku: &str, quantity: u32) -> Answer {
        let body = json!({ "sku": sku, "quantity": quantity });
        self.post(&cart.path("/items"), body).bearer(&cart.token).send().await
    }

    pub async fn check_out(&self, cart: &Cart, token: &str) -> Answer {
        self.post(&cart.path("/checkout"), purchase(token)).bearer(&cart.token).send().await
    }

    pub async fn inventory(&self, sku: &str) -> Value {
        let path = format!("/api/inventory/{}", souk::integrations::http_client::percent_encoded(sku));
        self.get(&path).send().await.expect(200).json()
    }

    /// The order as its buyer sees it.
    pub async fn order(&self, id: &str, token: &str) -> Value {
        self.get(&format!("/api/orders/{id}")).bearer(token).send().await.expect(200).json()
    }

    /// An account of its own, logged in.
    pub async fn account(&self) -> Account {
        let email = format!("{}@souk.test", name("someone"));
        let body = json!({ "email": email, "password": PASSWORD, "name": "Some One" });
        self.post("/api/users", body).send().await.expect(201);
        self.log_in(&email, PASSWORD).await
    }

    pub async fn log_in(&self, email: &str, password: &str) -> Account {
        let body = json!({ "email": email, "password": password });
        let said = self.post("/api/sessions", body).send().await.expect(201).json();
        Account {
            email: email.to_owned(),
            id: text(&said["user_id"]),
            token: text(&said["access_token"]),
            refresh: text(&said["refresh_token"]),
        }
    }

    /// An account with a shop of its own, and the shop's id.
    pub async fn vendor(&self) -> (Account, String) {
        let account = self.account().await;
        let shop = self.post("/api/shops", json!({ "name": "A shop" })).bearer(&account.token).send().await.expect(201);
        let id = text(&shop.json()["id"]);
        (account, id)
    }

    pub async fn adjust(&self, sku: &str, delta: i64) -> Answer {
        let body = json!({ "delta": delta, "reason": "counted again" });
        self.post(&format!("/api/inventory/{sku}/adjustments"), body).bearer(&ADMIN).send().await
    }
}

pub const PASSWORD: &str = "copper lantern 7";

pub struct Account {
    pub email: String,
    pub id: String,
    pub token: String,
    pub refresh: String,
}

pub struct Cart {
    pub id: String,
    pub token: String,
}

impl Cart {
    pub fn path(&self, rest: &str) -> String {
        format!("/api/carts/{}{rest}", self.id)
    }
}

/// A name that nobody else has in this run.
pub fn name(prefix: &str) -> String {
    format!("{prefix}-{}", NAMES.fetch_add(1, Ordering::Relaxed))
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

pub fn product_body(variants: &[(&str, i64, u32)]) -> Value {
    let variants: Vec<_> = variants
        .iter()
        .map(|(sku, cents, stock)| {
            json!({ "sku": sku, "price": { "amount": cents, "currency": "EUR" }, "options": [sku], "stock": stock })
        })
        .collect();
    json!({ "title": format!("A thing called {}", variants[0]["sku"]), "options": ["Kind"], "variants": variants })
}

pub fn address() -> Value {
    json!({ "name": "Ada Buyer", "line1": "1 Market Street", "city": "Fes", "postal_code": "30000", "country": "MA" })
}

pub fn purchase(token: &str) -> Value {
    json!({
        "payment": { "provider": "sandbox", "token": token },
        "shipping_address": address(),
        "email": "ada@example.test",
    })
}

/// Asks until there is an answer.
pub async fn eventually<T>(within: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "it did not come about within {within:?}");
        tokio::time::sleep(LOOK).await;
    }
}
