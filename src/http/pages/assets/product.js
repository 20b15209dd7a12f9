// A product's stock. Only its shop may follow its inventory, so it is asked for now and then, while somebody looks.
import { ask, show } from "./live.js";

const EVERY_MS = 5000;
const skus = [...document.querySelectorAll("[data-sku]")].map((element) => element.dataset.sku);

async function refresh() {
  if (document.visibilityState !== "visible") return;
  for (const sku of skus) {
    try {
      const { available } = await ask(`/api/inventory/${encodeURIComponent(sku)}`);
      show(`available ${sku}`, available > 0 ? `${available} in stock` : "sold out");
    } catch {
      return;
    }
  }
}

setInterval(refresh, EVERY_MS);
