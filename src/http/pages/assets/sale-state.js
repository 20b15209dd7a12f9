// How a sale is told in words, as the server writes it.
import { money, show } from "./live.js";

function words(sale) {
  switch (sale.status) {
    case "scheduled": return ["Starts in", sale.starts_at];
    case "active": return [sale.available > 0 ? `${sale.available} of ${sale.quantity} left, ends in` : "All claimed for now, ends in", sale.ends_at];
    case "paused": return ["Paused, ends in", sale.ends_at];
    case "sold_out": return ["Sold out", sale.ends_at];
    case "ended": return ["Over", null];
    case "cancelled": return ["Called off", null];
    default: return ["Not open yet", null];
  }
}

/** Shows a sale's newest state within this element. */
export function showSale(within, sale) {
  const [text, until] = words(sale);
  show("state", text, within);
  show("price", money(sale.price), within);
  show("waiting", sale.waiting, within);
  for (const meter of within.querySelectorAll("[data-live-meter='available']")) meter.value = sale.available;
  for (const time of within.querySelectorAll(".status time[data-countdown], .card time[data-countdown]")) {
    if (until) time.dateTime = until;
    time.hidden = !until;
  }
}
