// An order: its status and what happened, as it happens.
import { follow, reload } from "./live.js";

const order = document.querySelector("[data-topic^='order:']");
// As the server writes them: see `happened` in shopper.rs.
const words = {
  "order.created": ["pending", "Placed"], "order.paid": ["paid", "Paid"], "order.shipped": ["shipped", "On its way"],
  "order.payment_failed": ["payment_failed", "Not paid"], "order.cancelled": ["cancelled", "Cancelled"],
  "order.refunded": ["refunded", "Refunded"], "order.delivered": ["delivered", "Delivered"],
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

function show(type, time) {
  const item = document.createElement("li");
  const when = document.createElement("time");
  when.dateTime = time;
  when.textContent = `${time.slice(0, 10)} ${time.slice(11, 16)} UTC`;
  const told = document.createElement("span");
  told.textContent = words[type]?.[1] ?? steps[type] ?? type;
  item.append(when, " ", told);
  order.querySelector("[data-list='timeline']").append(item);
  const found = words[type];
  if (!found) return;
  const [status, text] = found;
  order.querySelector("[data-live='status']").textContent = text;
  const places = [...order.querySelectorAll("[data-step]")];
  const reached = places.findIndex((step) => step.dataset.step === status);
  places.forEach((step, index) => {
    step.classList.toggle("done", index <= reached);
    if (index === reached) step.setAttribute("aria-current", "step");
    else step.removeAttribute("aria-current");
  });
  for (const form of order.querySelectorAll("[data-while]")) form.hidden = !form.dataset.while.split(" ").includes(status);
}

if (order) {
  follow({
    [order.dataset.topic]: {
      after: Number(order.dataset.after),
      hear: (message) => {
        if (message.type === "event") show(message.event.type, message.event.time);
        // Too much was missed: the server tells all of it at once.
        if (message.type === "state") reload();
      },
    },
  });
}
