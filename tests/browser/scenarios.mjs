// What people do on the pages, each in a browser of its own. `node scenarios.mjs NAME`, started by main.rs.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const { SOUK_URL: url, SOUK_OPERATOR: operator, CHROMIUM, SCREENSHOTS } = process.env;
const PASSWORD = "souk-demo";
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const lines = createInterface({ input: process.stdin });
const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });

/** A page of a new visitor. */
async function visitor(options = {}) {
  const context = await browser.newContext({ baseURL: url, viewport: { width: 1280, height: 900 }, ...options });
  context.setDefaultTimeout(40000);
  const page = await context.newPage();
  page.on("pageerror", (error) => {
    throw error;
  });
  page.on("console", (message) => {
    // Whatever the page's own policy refuses is said here.
    if (message.text().includes("Content Security Policy")) throw new Error(message.text());
  });
  return page;
}

async function logIn(page, email, password = PASSWORD) {
  await page.goto("/login");
  await page.getByLabel("E-mail address").fill(email);
  await page.getByLabel("Password").fill(password);
  await page.getByRole("main").getByRole("button", { name: "Log in" }).click();
  await page.getByRole("link", { name: "Account" }).waitFor();
}

async function api(method, path, body, token = operator) {
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  const answer = await fetch(`${url}${path}`, { method, headers, body: body && JSON.stringify(body) });
  const text = await answer.text();
  assert.ok(answer.ok, `${method} ${path}: ${answer.status} ${text}`);
  return text ? JSON.parse(text) : null;
}

async function productOf(sku) {
  return (await api("GET", `/api/inventory/${sku}`)).product_id;
}

/** Puts one unit into the cart, by a visible control each time. */
async function addToCart(page, sku) {
  await page.goto(`/products/${await productOf(sku)}`);
  await page.locator(`input[value="${sku}"]`).check();
  await page.getByRole("button", { name: "Add to cart" }).click();
  await page.getByRole("heading", { name: "Your cart" }).waitFor();
}

async function fillCheckout(page, changes = {}) {
  const fields = {
    "E-mail address": "ada@souk.test", Name: "Ada", "Street and number": "1 Market Street", City: "Fez", "Postal code": "30000",
    "Country (two letters)": "MA", ...changes,
  };
  for (const [label, value] of Object.entries(fields)) await page.getByLabel(label, { exact: true }).fill(value);
}

async function buy(page, sku) {
  await addToCart(page, sku);
  await page.getByRole("link", { name: "Check out" }).click();
  await fillCheckout(page);
  await page.getByRole("button", { name: /^Pay/ }).click();
  await page.getByRole("heading", { name: "Your order" }).waitFor();
  await page.locator("[data-live='status']", { hasText: "Paid" }).waitFor();
  // It may be paid before its scripts have come, and only those know that a server was lost.
  await page.waitForLoadState("load");
  return new URL(page.url()).pathname.split("/").at(-1);
}

/** Has something done to the server, and waits until it is. */
async function have(done) {
  console.log(done);
  await once(lines, "line");
}

/** Remembers what the page says of its connection, and that it is still the same page. */
async function watchConnection(page) {
  await page.evaluate(() => {
    window.said = [];
    const connection = document.getElementById("connection");
    new MutationObserver(() => window.said.push(connection.textContent)).observe(connection, { childList: true });
  });
}

/** It said so when the connection was lost, and when it was back, and was never loaded again. */
async function assertRecovered(page) {
  await page.waitForFunction(() => window.said.length > 1 && window.said.at(-1) === "");
  assert.equal(await page.evaluate(() => window.said[0]), "The connection is lost. Trying again…");
}

/** Whatever happened is told once. */
async function assertToldOnce(page, events) {
  const told = await page.locator(".timeline li").allInnerTexts();
  for (const event of events) assert.equal(told.filter((line) => line.endsWith(` ${event}`)).length, 1, told.join("\n"));
}

const shot = (page, name, fullPage = true) => page.screenshot({ path: join(SCREENSHOTS, `${name}.png`), fullPage });

/** What axe finds wrong with a page as it is now, in light and in dark. */
async function assertAccessible(page, what) {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    // Not through a script element, which the page's policy refuses.
    await page.evaluate(axe);
    const rules = { runOnly: { type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] } };
    const { violations } = await page.evaluate((options) => window.axe.run(document, options), rules);
    const told = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} ${node.failureSummary}`).join("\n")}`);
    assert.deepEqual(told, [], `${what} in ${colorScheme}`);
  }
}

/** Nothing is cut off or has to be scrolled sideways to be read, from a phone to a wall. */
async function assertFits(page, what) {
  for (const [width, colorScheme] of [[320, "light"], [3840, "dark"], [1280, "dark"], [1280, "light"]]) {
    await page.setViewportSize({ width, height: 900 });
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(wide <= 0, `${what} at ${width}: ${wide} px too wide`);
    if (width < 3840) await shot(page, `${what.replace(/\W+/g, "-")}-${width}-${colorScheme}`);
  }
}

const scenarios = {
  async a_purchase_by_mouse() {
    const page = await visitor();
    await page.goto("/");
    await shot(page, "home");
    await page.getByRole("link", { name: "All products" }).click();
    await page.getByRole("searchbox", { name: "Search products" }).fill("lantern");
    await page.getByRole("button", { name: "Search" }).click();
    await page.getByRole("link", { name: "Copper Lantern" }).click();
    await page.getByText(/Large/).click();
    await shot(page, "product");
    await page.getByRole("button", { name: "Add to cart" }).click();
    // The hold runs out before one's eyes.
    const held = page.locator(".held time");
    await held.filter({ hasText: /^00:1\d:\d\d$/ }).waitFor();
    await page.waitForFunction((then) => document.querySelector(".held time").textContent < then, await held.innerText());
    await page.getByLabel("Quantity of Copper Lantern").fill("2");
    await page.getByRole("button", { name: "Change" }).click();
    await page.locator("[data-live='subtotal']").filter({ hasText: "98.00" }).waitFor();
    await shot(page, "cart");
    await page.getByRole("link", { name: "Check out" }).click();
    await fillCheckout(page);
    await shot(page, "checkout");
    await page.getByRole("button", { name: /^Pay/ }).click();
    await page.locator("[data-live='status']", { hasText: "Paid" }).waitFor();
    assert.match(await page.locator(".timeline").innerText(), /Placed[\s\S]*Paid/);
    await shot(page, "order");
    // The same form once more does not buy once more.
    await page.goto("/cart");
    await page.getByText("There is nothing in it yet.").waitFor();
  },

  async a_purchase_by_keyboard_alone() {
    const page = await visitor();
    // Tab until this has the focus, as somebody without a mouse does.
    const reach = async (what) => {
      for (let tabs = 0; tabs < 150; tabs += 1) {
        await page.keyboard.press("Tab");
        const here = await page.evaluate(() => {
          const element = document.activeElement;
          const label = element.labels?.[0]?.innerText ?? "";
          return [element.innerText ?? "", label, element.getAttribute("aria-label") ?? "", element.value ?? ""].join("\n");
        });
        if (what.test(here)) return;
      }
      assert.fail(`the keyboard does not reach ${what}`);
    };
    await page.goto("/");
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.innerText), "To the content");
    await reach(/^Saffron Threads/);
    await Promise.all([page.waitForURL("**/products/**"), page.keyboard.press("Enter")]);
    await reach(/Add to cart/);
    await Promise.all([page.waitForURL("**/cart"), page.keyboard.press("Enter")]);
    await reach(/^Check out/);
    await Promise.all([page.waitForURL("**/checkout"), page.keyboard.press("Enter")]);
    for (const [label, value] of [
      [/E-mail address/, "ada@souk.test"], [/^\s*Name/, "Ada"], [/Street and number/, "1 Market Street"], [/^\s*City/, "Fez"],
      [/Postal code/, "30000"],
    ]) {
      await reach(label);
      await page.keyboard.type(value);
    }
    await reach(/^Pay/);
    await Promise.all([page.waitForURL("**/orders/**"), page.keyboard.press("Enter")]);
    await page.locator("[data-live='status']", { hasText: "Paid" }).waitFor();
  },

  async a_purchase_without_scripts() {
    const page = await visitor({ javaScriptEnabled: false });
    await page.goto("/products?q=chess");
    await page.getByRole("link", { name: "Cedar Chess Set" }).click();
    await page.getByRole("button", { name: "Add to cart" }).click();
    await page.getByRole("link", { name: "Check out" }).click();
    await fillCheckout(page);
    await page.getByRole("button", { name: /^Pay/ }).click();
    await page.getByRole("heading", { name: "Your order" }).waitFor();
    for (let looks = 0; looks < 20 && !(await page.locator(".status").innerText()).includes("Paid"); looks += 1) {
      await page.waitForTimeout(200);
      await page.reload();
    }
    assert.match(await page.locator(".status").innerText(), /Paid/);
  },

  async what_is_wrong_is_told_beside_its_field() {
    const page = await visitor();
    await addToCart(page, "BAG-INDIGO");
    await page.getByRole("link", { name: "Check out" }).click();
    await fillCheckout(page, { "Country (two letters)": "Morocco", "E-mail address": "ada", "Postal code": " " });
    await page.locator("form[action='/checkout']").evaluate((form) => (form.noValidate = true));
    await page.getByRole("button", { name: /^Pay/ }).click();
    const country = page.getByLabel("Country (two letters)", { exact: true });
    await page.locator("[aria-invalid='true']").first().waitFor();
    assert.equal(await country.getAttribute("aria-invalid"), "true");
    assert.equal(await page.locator("[aria-invalid='true']").count(), 3, "all that is wrong is told at once");
    const error = page.locator(`#${await country.getAttribute("aria-describedby")}`);
    assert.ok((await error.innerText()).length > 5);
    assert.equal(await page.getByLabel("City").inputValue(), "Fez", "what was right is kept");
    await fillCheckout(page);
    await page.getByLabel("Test card that is declined").check();
    await page.getByRole("button", { name: /^Pay/ }).click();
    await page.getByRole("alert").filter({ hasText: "declined" }).waitFor();
    await page.getByLabel("Test card that pays").check();
    await page.getByRole("button", { name: /^Pay/ }).click();
    await page.locator("[data-live='status']", { hasText: "Paid" }).waitFor();
    await page.goto("/login?back=/orders");
    await page.getByLabel("E-mail address").fill("nobody@souk.test");
    await page.getByLabel("Password").fill("not this one");
    await page.getByRole("main").getByRole("button", { name: "Log in" }).click();
    await page.getByRole("alert").waitFor();
  },

  async two_browsers_see_the_same_order_move() {
    const [one, two] = [await visitor(), await visitor()];
    await logIn(one, "shopper@souk.test");
    await logIn(two, "shopper@souk.test");
    const order = await buy(one, "TEA-AMBER");
    await two.goto(`/orders/${order}`);
    await two.evaluate(() => (window.stays = true));
    await one.getByRole("button", { name: "Cancel the order" }).click();
    await two.locator("[data-live='status']", { hasText: /Cancelled|Refunded/ }).waitFor();
    assert.ok(await two.evaluate(() => window.stays), "the page was not loaded again");
  },

  async the_server_is_killed_and_the_page_recovers_without_a_reload() {
    const page = await visitor();
    const order = await buy(page, "KILIM-120");
    await watchConnection(page);
    await have("kill the server");
    await page.getByText("The connection is lost. Trying again…").waitFor();
    await have("start the server");
    await api("POST", `/api/orders/${order}/shipments`, { carrier: "Caravan" });
    await page.locator("[data-live='status']", { hasText: "On its way" }).waitFor();
    await assertRecovered(page);
    await assertToldOnce(page, ["Placed", "Paid", "On its way"]);
  },

  async a_page_goes_on_at_another_node_when_its_own_is_killed() {
    const [page, admin] = [await visitor(), await visitor()];
    const order = await buy(page, "KILIM-120");
    await logIn(admin, "admin@souk.test");
    await admin.goto("/operator");
    const map = (owners) => admin.getByRole("img", { name: owners }).waitFor();
    await map(/n1 owns \d+, n2 owns \d+$/);
    await shot(admin, "cluster");
    await watchConnection(page);
    await admin.evaluate(() => (window.stays = true));
    await have("kill the server");
    // The node that is left takes over what lived there.
    const until = Date.now() + 60000;
    for (;;) {
      try {
        await api("POST", `/api/orders/${order}/shipments`, { carrier: "Caravan" });
        break;
      } catch (error) {
        if (Date.now() > until) throw error;
        await page.waitForTimeout(200);
      }
    }
    await page.locator("[data-live='status']", { hasText: "On its way" }).waitFor();
    await assertRecovered(page);
    await assertToldOnce(page, ["Placed", "Paid", "On its way"]);
    await map(/n[12] owns 256/);
    // Whatever is asked for now lives there, and about half of it belongs to the other one when that comes back.
    const { items } = await api("GET", "/api/products?limit=100");
    const skus = items.flatMap((product) => product.variants.map((variant) => variant.sku));
    await Promise.all(skus.map((sku) => api("GET", `/api/inventory/${sku}`)));
    const before = Number(await admin.locator("#handed-over").innerText());
    await have("start the server");
    await map(/n1 owns 1?\d\d, n2 owns 1?\d\d$/);
    // What now belongs to the node that came back was handed over to it.
    await admin.waitForFunction((then) => Number(document.getElementById("handed-over").textContent) > then, before);
    assert.ok(await admin.evaluate(() => window.stays), "the page was not loaded again");
  },

  async a_vendor_ships_and_the_shopper_s_page_moves() {
    const [vendor, shopper] = [await visitor(), await visitor()];
    await logIn(vendor, "vendor@souk.test");
    await vendor.goto("/vendor");
    const order = await buy(shopper, "BOARD-OLIVE");
    // It comes to the list by itself.
    const line = vendor.locator(`[data-order="${order}"]`);
    await line.waitFor();
    await shot(vendor, "vendor");
    await assertAccessible(vendor, "an order to ship");
    await line.getByLabel("Carrier").fill("Caravan");
    await line.getByLabel("Tracking number").fill("C-1");
    await line.getByRole("button", { name: "Shipped" }).click();
    await vendor.getByText("It is on its way.").waitFor();
    await shopper.locator("[data-live='status']", { hasText: "On its way" }).waitFor();
    await shopper.getByText("Sent with Caravan, number C-1.").waitFor();
    assert.equal(await shopper.getByRole("button", { name: "Cancel the order" }).count(), 0);
    await vendor.getByRole("button", { name: `Delivered ${order}` }).click();
    await shopper.locator("[data-live='status']", { hasText: "Delivered" }).waitFor();
    await vendor.goto("/vendor/products");
    await vendor.getByLabel("Units more or less of BOARD-OLIVE").fill("-250");
    await vendor.getByRole("button", { name: "Adjust BOARD-OLIVE" }).click();
    await vendor.getByText("The stock is adjusted.").waitFor();
    await vendor.getByLabel("Units from which BOARD-OLIVE is low").fill("20");
    await vendor.getByRole("button", { name: "Set for BOARD-OLIVE" }).click();
    const row = vendor.getByRole("row").filter({ hasText: "BOARD-OLIVE" });
    await row.getByText("low", { exact: true }).waitFor();
    // Somebody else buys the rest: it is told without a reload.
    await vendor.evaluate(() => (window.stays = true));
    await api("POST", "/api/inventory/BOARD-OLIVE/adjustments", { delta: -9, reason: "counted" });
    await row.getByText("sold out", { exact: true }).waitFor();
    assert.ok(await vendor.evaluate(() => window.stays), "the page was not loaded again");
    await shot(vendor, "stock");
    await vendor.getByRole("link", { name: "Figures" }).click();
    await vendor.getByText("1 order, at most 1 in one hour.").waitFor();
    assert.equal(await vendor.locator("svg.chart").count(), 2);
    await shot(vendor, "figures");
  },

  async a_flash_sale_with_twenty_tabs() {
    const early = await visitor();
    await early.goto("/");
    await early.evaluate(() => (window.stays = true));
    const starts = new Date(Date.now() - 1000).toISOString();
    const ends = new Date(Date.now() + 600000).toISOString();
    const terms = {
      sku: "LANTERN-S", price: { amount: 990, currency: "EUR" }, quantity: 6, per_customer_limit: 1, guests: true, starts_at: starts,
      ends_at: ends, claim_seconds: 600, admission_seconds: 300,
    };
    const sale = await api("POST", "/api/flash-sales", terms);
    await api("POST", `/api/flash-sales/${sale.id}/approve`, {});
    const [home, vendor] = [await visitor(), await visitor()];
    await logIn(vendor, "vendor@souk.test");
    await vendor.goto(`/vendor/sales/${sale.id}`);
    await vendor.evaluate(() => {
      window.rates = [];
      const rate = document.querySelector("[data-live='rate']");
      new MutationObserver(() => window.rates.push(Number(rate.textContent))).observe(rate, { childList: true });
    });
    await home.goto("/");
    const card = home.locator(`[data-topic="flash_sale:${sale.id}"]`);
    await card.getByText("6 of 6 left, ends in").waitFor();
    await shot(home, "shop", false);
    const tabs = await Promise.all(Array.from({ length: 20 }, () => visitor()));
    await Promise.all(tabs.map((tab) => tab.goto(`/sales/${sale.id}`)));
    await shot(tabs[0], "sale");
    await Promise.all(tabs.map((tab) => tab.getByRole("button", { name: "Claim" }).click()));
    await Promise.all(tabs.map((tab) => tab.waitForURL(/\/checkout\?claim=|\/sales\//)));
    await Promise.all(tabs.map((tab) => tab.locator("h1", { hasText: /Checkout|Copper Lantern/ }).waitFor()));
    const claimed = tabs.filter((tab) => tab.url().includes("/checkout"));
    const waiting = tabs.filter((tab) => !tab.url().includes("/checkout"));
    assert.deepEqual([claimed.length, waiting.length], [6, 14]);
    await Promise.all(waiting.map((tab) => tab.locator("[data-live='place']").waitFor()));
    const places = await Promise.all(waiting.map((tab) => tab.locator("[data-live='place']").innerText()));
    assert.deepEqual(places.map(Number).sort((a, b) => a - b), Array.from({ length: 14 }, (_, index) => index + 1));
    const figure = (name, text) => vendor.locator(`[data-live='${name}']`, { hasText: text }).waitFor();
    await Promise.all([figure("held", /^6$/), figure("waiting", /^14$/), figure("available", /^0$/)]);
    await vendor.waitForFunction(() => window.rates.some((rate) => rate > 0));
    await shot(vendor, "cockpit");
    await card.getByText("All claimed for now, ends in").waitFor();
    const first = waiting[places.indexOf("1")];
    await shot(first, "waiting-room");
    await assertAccessible(first, "a waiting room");
    // One who holds a unit gives it up: the first in line is told that it is their turn, and the others move up.
    await claimed[0].goto(`/sales/${sale.id}`);
    await claimed[0].getByRole("button", { name: "Give it up" }).click();
    await first.getByRole("button", { name: "Take it" }).waitFor();
    await assertAccessible(first, "an offered claim");
    await first.getByRole("button", { name: "Take it" }).click();
    await first.waitForURL(/\/checkout\?claim=/);
    await fillCheckout(first);
    await first.getByRole("button", { name: /^Pay/ }).click();
    await first.locator("[data-live='status']", { hasText: "Paid" }).waitFor();
    const second = waiting[places.indexOf("2")];
    await second.locator("[data-live='place']", { hasText: /^1$/ }).waitFor();
    // Who was there before the sale sees it come, and follows it.
    const news = early.locator(`[data-topic="flash_sale:${sale.id}"]`);
    await news.getByText("All claimed for now, ends in").waitFor({ timeout: 60000 });
    assert.ok(await early.evaluate(() => window.stays), "the page was not loaded again");
    const shown = await api("GET", `/api/flash-sales/${sale.id}`);
    assert.deepEqual([shown.sold, shown.held, shown.available], [1, 5, 0]);
  },

  async an_operator_looks_at_the_cluster_and_at_an_entity_s_life() {
    const page = await visitor();
    const order = await buy(page, "TEA-CLEAR");
    await logIn(page, "admin@souk.test");
    await page.goto("/operator");
    await page.getByRole("rowheader", { name: /this one/ }).waitFor();
    await page.getByRole("img", { name: /^256 partitions: .* owns 256$/ }).waitFor();
    // What the page itself asks for is what it shows.
    await page.locator("[data-rate='all']", { hasText: /[1-9]/ }).waitFor();
    await page.locator("[data-rate='GET /operator']", { hasText: /[1-9]/ }).waitFor();
    await page.getByText("Limits of one caller").waitFor();
    await shot(page, "operator");
    await page.goto(`/operator/entities?kind=order&id=${order}`);
    await page.locator("#state", { hasText: '"paid"' }).waitFor();
    const slider = page.getByRole("slider");
    await slider.focus();
    await page.keyboard.press("Home");
    await page.locator("#state", { hasText: '"pending"' }).waitFor();
    await page.locator("li[aria-current='step']", { hasText: "order.created" }).waitFor();
    await page.keyboard.press("ArrowRight");
    await page.locator("li[aria-current='step'][data-version='2']").waitFor();
    await shot(page, "entity");
    await page.goto("/operator/users?email=shopper@souk.test");
    await page.getByRole("button", { name: "Make an admin" }).click();
    await page.getByRole("button", { name: "Not an admin any more" }).click();
    await page.getByRole("button", { name: "Make an admin" }).waitFor();
    // A vendor drafts a sale, and the operator approves it.
    const vendor = await visitor();
    await logIn(vendor, "vendor@souk.test");
    await vendor.goto("/vendor/sales");
    await vendor.getByLabel("Sku").fill("CHESS-CEDAR");
    await vendor.getByLabel("Price").fill("59.90");
    await vendor.getByLabel("Units").fill("5");
    await vendor.getByRole("button", { name: "Propose it" }).click();
    await vendor.getByText("It is proposed.").waitFor();
    await page.goto("/operator/sales");
    await page.getByRole("button", { name: "Approve Cedar Chess Set" }).click();
    await page.getByText("Done.").waitFor();
    // The vendor hears of it without a reload.
    await vendor.locator("#sales li", { hasText: "Cedar Chess Set" }).getByText("scheduled").waitFor();
    await page.goto("/operator/sales");
    const sale = page.locator("li", { hasText: "Cedar Chess Set" });
    await sale.getByLabel("Admissions a second").fill("7");
    await sale.getByRole("button", { name: "Set for" }).click();
    await page.getByText("It is set.").waitFor();
    assert.equal(await sale.getByLabel("Admissions a second").inputValue(), "7");
    // Nobody else gets there.
    await vendor.goto("/operator");
    await vendor.getByRole("heading", { level: 1 }).waitFor();
    assert.equal(await vendor.locator("#cluster").count(), 0);
  },

  async an_account_is_changed_and_left_by_its_holder() {
    const [page, other] = [await visitor(), await visitor()];
    const [email, password] = ["ibn@souk.test", "a caravan at dusk"];
    await page.goto("/signup");
    await page.getByLabel("Name").fill("Ibn");
    await page.getByLabel("E-mail address").fill(email);
    await page.getByLabel("Password").fill(password);
    await page.getByRole("main").getByRole("button", { name: "Sign up" }).click();
    await page.getByText("Welcome. Your account is there.").waitFor();
    await logIn(other, email, password);
    const change = async (name, fields) => {
      for (const [label, value] of Object.entries(fields)) await page.getByRole("group", { name }).getByLabel(label).fill(value);
      await page.getByRole("group", { name }).getByRole("button").click();
    };
    await change("Name", { Name: "Ibn Battuta" });
    await page.getByText("Your name is changed.").waitFor();
    assert.equal(await page.getByLabel("Name").inputValue(), "Ibn Battuta");
    // What is wrong is told beside its field, and what was typed is kept unless it is a password.
    await change("E-mail address", { "E-mail address": "battuta@souk.test", Password: "not this one" });
    await page.getByRole("alert").waitFor();
    const wrong = page.locator("[aria-invalid='true']");
    assert.equal(await wrong.count(), 1);
    assert.equal(await wrong.getAttribute("id"), "email_password");
    assert.ok((await page.locator(`#${await wrong.getAttribute("aria-describedby")}`).innerText()).length > 5);
    assert.equal(await page.getByLabel("E-mail address").inputValue(), "battuta@souk.test");
    await assertAccessible(page, "an account with errors");
    await change("E-mail address", { Password: password });
    await page.getByText("Your e-mail address is changed.").waitFor();
    await change("Password", { "Password until now": password, "New password": "short" });
    await page.locator("#new_password[aria-invalid='true']").waitFor();
    await change("Password", { "Password until now": password, "New password": "the desert at dawn" });
    await page.getByText("Your password is changed.").waitFor();
    // Whoever was logged in elsewhere is not any more, and comes back by the new address and password.
    await other.goto("/account");
    await other.getByRole("heading", { name: "Log in" }).waitFor();
    await logIn(other, "battuta@souk.test", "the desert at dawn");
    await page.goto("/account");
    await shot(page, "account");
    await page.getByRole("button", { name: "Log out there" }).click();
    await page.getByText("You are logged out there.").waitFor();
    await other.goto("/account");
    await other.getByRole("heading", { name: "Log in" }).waitFor();
    await page.getByRole("checkbox").check();
    await page.getByRole("button", { name: "Delete the account" }).click();
    await page.getByText("Your account is deleted.").waitFor();
    await page.getByRole("link", { name: "Log in" }).waitFor();
    const { status } = await fetch(`${url}/api/sessions`, {
      method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify({ email: "battuta@souk.test", password: "the desert at dawn" }),
    });
    assert.equal(status, 401);
  },

  async what_was_set_aside_is_taken_back() {
    const damaged = "cart_01M00000000000000000000000"; // main.rs has written it
    const admin = await visitor();
    await logIn(admin, "admin@souk.test");
    await admin.goto("/operator");
    await admin.getByText("No entity is").waitFor();
    await admin.evaluate(() => (window.stays = true));
    // It dies each time that somebody looks at it, until nobody may any more.
    const until = Date.now() + 60000;
    for (let code; code !== "set-aside"; ) {
      assert.ok(Date.now() < until, `not set aside: ${code}`);
      const answer = await fetch(`${url}/api/carts/${damaged}`, { headers: { authorization: `Bearer ${operator}` } });
      code = (await answer.json()).type.split("/").at(-1);
      await admin.waitForTimeout(50);
    }
    const release = admin.getByRole("button", { name: `Take it back cart ${damaged}` });
    await release.waitFor();
    assert.ok(await admin.evaluate(() => window.stays), "the page was not loaded again");
    await assertAccessible(admin, "an entity that is set aside");
    await shot(admin, "set-aside");
    await release.click();
    await admin.getByText("It is taken back.").waitFor();
    await admin.getByText("No entity is").waitFor();
  },

  async every_page_is_accessible_from_a_phone_to_a_wall() {
    const guest = await visitor();
    const order = await buy(guest, "SAFFRON-2G");
    await addToCart(guest, "BAG-INDIGO");
    const [sale] = (await api("GET", "/api/flash-sales")).items;
    const product = await productOf("LANTERN-S");
    const shopper = await visitor();
    await logIn(shopper, "shopper@souk.test");
    const vendor = await visitor();
    await logIn(vendor, "vendor@souk.test");
    const admin = await visitor();
    await logIn(admin, "admin@souk.test");
    const pages = [
      [guest, "/"], [guest, "/products"], [guest, "/products?q=nothing-like-it"], [guest, `/products/${product}`], [guest, "/cart"],
      [guest, "/checkout"], [guest, `/orders/${order}`], [guest, "/sales"], [guest, `/sales/${sale.id}`], [guest, "/login"],
      [guest, "/signup"], [guest, "/nowhere"], [shopper, "/orders"], [shopper, "/account"], [vendor, "/vendor"],
      [vendor, "/vendor/products"], [vendor, "/vendor/sales"], [vendor, "/vendor/figures"], [vendor, `/vendor/sales/${sale.id}`], [admin, "/operator"],
      [admin, `/operator/entities?kind=order&id=${order}`], [admin, "/operator/sales"],
      [admin, "/operator/users?email=shopper@souk.test"],
    ];
    for (const [page, path] of pages) {
      const answer = await page.goto(path);
      const policy = answer.headers()["content-security-policy"];
      assert.ok(policy.startsWith("default-src 'self'") && !policy.includes("unsafe"), policy);
      const what = path === "/" ? "front" : path.slice(1).replace(/[a-z]+_[0-9A-Z]{26}/, "one");
      await assertFits(page, what);
      await assertAccessible(page, what);
    }
    await guest.goto("/");
    const moves = () => guest.locator(".card").first().evaluate((card) => getComputedStyle(card).transitionDuration);
    assert.equal(await moves(), "0s");
    await guest.emulateMedia({ reducedMotion: "no-preference" });
    assert.notEqual(await moves(), "0s");
    // What is told of errors can be read too, and that the connection is lost.
    await guest.goto("/checkout");
    await guest.locator("form[action='/checkout']").evaluate((form) => (form.noValidate = true));
    await guest.getByRole("button", { name: /^Pay/ }).click();
    await guest.locator("[aria-invalid='true']").first().waitFor();
    await guest.evaluate(() => (document.getElementById("connection").textContent = "The connection is lost. Trying again…"));
    await assertAccessible(guest, "a checkout with errors");
    console.log(`${pages.length} pages`);
  },

  async the_first_page_is_small() {
    const page = await visitor();
    const sizes = [];
    page.on("response", (response) => sizes.push(response.request().sizes().then((size) => [response.url(), size.responseBodySize + size.responseHeadersSize])));
    const first = await page.goto("/", { waitUntil: "networkidle" });
    // What fits into the first ten packets comes within one round trip.
    const { responseBodySize, responseHeadersSize } = await first.request().sizes();
    assert.ok(responseBodySize + responseHeadersSize < 14 * 1024, `${responseBodySize} bytes`);
    const html = await first.text();
    for (const text of ["Copper Lantern", "Flash sales"]) assert.ok(html.includes(text), `${text} comes with the first answer`);
    const told = await Promise.all(sizes);
    const bytes = told.reduce((sum, [, size]) => sum + size, 0);
    console.log(`${told.length} requests, ${bytes} bytes`);
    assert.ok(bytes < 100 * 1024, JSON.stringify(told));
    assert.ok(told.length <= 10, JSON.stringify(told));
    assert.ok(told.every(([from]) => from.startsWith(url)), "nothing comes from another host");
  },
};

try {
  await scenarios[process.argv[2]]();
} finally {
  await browser.close();
  lines.close();
}
