// An order: its status and what happened, as it happens.
import { follow, reload } from "./live.js";

const order = document.querySelector("[data-topic^='order:']");
// As the server writes them: see `happened` in shopper.rs.
const statuses = {
  pending: "Placed", reserved: "Reserved", paid: "Paid", shipped: "On its way", delivered: "Delivered",
  payment_failed: "Not paid", cancelled: "Cancelled", refunded: "Refunded",
};
// After these events the order has another status.
const becomes = {
  "order.created": "pending", "order.placed_again": "pending", "order.paid": "paid", "order.shipped": "shipped",
  "order.delivered": "delivered", "order.payment_failed": "payment_failed", "order.cancelled": "cancelled", "order.refunded": "refunded",
};
const steps = {
  "order.placed_again": "Tried again",
  "order.line.reserved": "Units reserved",
  "order.line.refused": "Units not to be had",
  "order.line.released": "Units given back",
  "order.line.committed": "Units set aside for you",
  "order.line.restocked": "Units back in the stock",
  "order.updated": "Updated",
  "order.payment.authorized": "Payment authorized",
  "order.payment.captured": "Money taken",
  "order.payment.capture_failed": "The money could not be taken",
  "order.payment.voided": "Payment voided",
  "order.payment.refunded": "Money given back",
  "order.claimed": "Taken into an account",
};

function show({ type, time, data }) {
  const status = becomes[type] ?? (type === "order.updated" ? data?.status : undefined);
  const item = document.createElement("li");
  const when = document.createElement("time");
  when.dateTime = time;
  when.textContent = `${time.slice(0, 10)} ${time.slice(11, 16)} UTC`;
  const told = document.createElement("span");
  told.textContent = type === "order.placed_again" ? steps[type] : (statuses[status] ?? steps[type] ?? type);
  item.append(when, " ", told);
  order.querySelector("[data-list='timeline']").append(item);
  if (!statuses[status]) return;
  order.querySelector("[data-live='status']").textContent = statuses[status];
  const places = [...order.querySelectorAll("[data-step]")];
  const reached = places.findIndex((step) => step.dataset.step === status);
  places.forEach((step, index) => {
    step.classList.toggle("done", index <= reached);
    if (index === reached) step.setAttribute("aria-current", "step");
    else step.removeAttribute("aria-current");
  });
  refresh();
}

// What else is told of an order changes with its status: who carries it, and whether it can be cancelled.
async function refresh() {
  const answer = await fetch(location.href, { cache: "no-store" }).catch(() => null);
  if (!answer?.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const [panel, newer] = [order, page].map((within) => within.querySelector(".panel"));
  if (newer && !panel.contains(document.activeElement)) panel.replaceChildren(...newer.childNodes);
}

if (order) {
  follow({
    [order.dataset.topic]: {
      after: Number(order.dataset.after),
      hear: (message) => {
        if (message.type === "event") show(message.event);
        // Too much was missed: the server tells all of it at once.
        if (message.type === "state") reload();
      },
    },
  });
}
