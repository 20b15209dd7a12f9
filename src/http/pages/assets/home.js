// Flash sales in a list: state, price and countdown of each, and which there are.
import { follow } from "./live.js";
import { countdowns } from "./clock.js";
import { showSale } from "./sale-state.js";

const LOOK_MS = 30000;
const followed = new Set();
const cards = (within) => [...within.querySelectorAll("[data-topic^='flash_sale:']")];
const names = (within) => cards(within).map((card) => card.dataset.topic).join();

function followAll() {
  const topics = {};
  for (const topic of cards(document).map((card) => card.dataset.topic)) {
    if (followed.has(topic)) continue;
    followed.add(topic);
    const hear = ({ type, state }) => {
      const card = cards(document).find((card) => card.dataset.topic === topic);
      if (card && type === "state") showSale(card, state);
    };
    topics[topic] = { after: 0, hear };
  }
  if (Object.keys(topics).length > 0) follow(topics);
}

// No topic tells of a sale that is new: the page is asked for again now and then, while somebody looks.
async function look() {
  if (document.visibilityState !== "visible") return;
  const answer = await fetch(location.href, { cache: "no-store" });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const part = document.getElementById("sales");
  if (names(page) === names(document) || part.contains(document.activeElement)) return;
  part.replaceChildren(...page.getElementById("sales").childNodes);
  followAll();
}

// Not all at once. A look that fails is told by what follows the sales, or is nothing to tell.
function lookLater() {
  setTimeout(() => look().catch(() => {}).finally(lookLater), LOOK_MS * (0.5 + Math.random()));
}

followAll();
countdowns();
lookLater();
