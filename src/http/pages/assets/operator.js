// The cluster, as it changes, and how many requests a second there were between one look and the next.
import { fresh } from "./fresh.js";

let last = null;

function counts(page) {
  const found = new Map();
  for (const cell of page.querySelectorAll("[data-rate]")) found.set(cell.dataset.rate, Number(cell.dataset.count));
  return { at: performance.now(), found };
}

fresh((page) => {
  const now = counts(page);
  const then = last ?? counts(document);
  const seconds = last ? (now.at - then.at) / 1000 : 2;
  for (const cell of page.querySelectorAll("[data-rate]")) {
    const before = then.found.get(cell.dataset.rate) ?? 0;
    // A node that was started again counts from nothing.
    const more = Math.max(0, Number(cell.dataset.count) - before);
    cell.textContent = (more / seconds).toFixed(1);
  }
  last = now;
});
