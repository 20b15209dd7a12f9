// The cluster, as it changes, and how many requests a second a node answered between one look at it and the next.
import { fresh } from "./fresh.js";

// Behind a balancer each look may be at another node.
const last = new Map();

function look(page) {
  const node = page.querySelector("[data-node]").dataset.node;
  const cells = [...page.querySelectorAll("[data-rate]")];
  const counts = new Map(cells.map((cell) => [cell.dataset.rate, Number(cell.dataset.count)]));
  const then = last.get(node);
  const now = { at: performance.now(), counts };
  last.set(node, now);
  if (!then) return;
  for (const cell of cells) {
    // A node that was started again counts from nothing.
    const more = Math.max(0, counts.get(cell.dataset.rate) - (then.counts.get(cell.dataset.rate) ?? 0));
    cell.textContent = ((more * 1000) / (now.at - then.at)).toFixed(1);
  }
}

look(document);
fresh(look);
