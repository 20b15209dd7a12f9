// Flash sales in a list: state, price and countdown of each.
import { follow } from "./live.js";
import { countdowns } from "./clock.js";
import { showSale } from "./sale-state.js";

const topics = {};
for (const card of document.querySelectorAll("[data-topic^='flash_sale:']")) {
  topics[card.dataset.topic] = { after: 0, hear: (message) => message.type === "state" && showSale(card, message.state) };
}
if (Object.keys(topics).length > 0) follow(topics);
countdowns();
