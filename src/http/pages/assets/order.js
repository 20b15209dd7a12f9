// An order: its status and what happened, as it happens.
import { follow } from "./live.js";

const order = document.querySelector("[data-topic^='order:']");
const words = {
  "order.created": ["pending", "Placed"], "order.paid": ["paid", "Paid"], "order.shipped": ["shipped", "On its way"],
  "order.payment_failed": ["payment_failed", "Not paid"], "order.cancelled": ["cancelled", "Cancelled"],
  "order.refunded": ["refunded", "Refunded"],
};

function show(type, time) {
  const item = document.createElement("li");
  const when = document.createElement("time");
  when.dateTime = time;
  when.textContent = time;
  item.append(when, ` ${type}`);
  order.querySelector("[data-list='timeline']").append(item);
  const found = words[type];
  if (!found) return;
  const [status, text] = found;
  order.querySelector("[data-live='status']").textContent = text;
  const steps = [...order.querySelectorAll("[data-step]")];
  const reached = steps.findIndex((step) => step.dataset.step === status);
  steps.forEach((step, index) => {
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
        if (message.type === "state") location.reload();
      },
    },
  });
}
