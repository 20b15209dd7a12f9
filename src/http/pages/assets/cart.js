// A cart: how long its units are held, and what changes elsewhere.
import { follow } from "./live.js";
import { countdowns } from "./clock.js";

const cart = document.querySelector("[data-topic^='cart:']");
if (cart) {
  const started = Date.now();
  let pending = false;
  // What another window changed is shown by the server; nothing that is being typed is lost for it.
  const reload = () => {
    const typing = document.activeElement?.matches("input[type=number]");
    if (pending || typing) return;
    pending = true;
    setTimeout(() => location.reload(), 300);
  };
  const changes = ["cart.item.added", "cart.item.removed", "cart.updated", "cart.merged", "cart.completed", "cart.repriced"];
  follow({
    [cart.dataset.topic]: {
      after: Number(cart.dataset.after),
      hear: ({ type, event }) => type === "event" && Date.now() > started && changes.includes(event.type) && reload(),
    },
  });
}
countdowns((element) => {
  element.parentElement.textContent = "Not held for you any more: somebody else may buy it first.";
});
