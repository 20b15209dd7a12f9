// A cart: how long its units are held, and what changes elsewhere.
import { follow, reload } from "./live.js";
import { countdowns } from "./clock.js";

const cart = document.querySelector("[data-topic^='cart:']");
if (cart) {
  const changes = ["cart.item.added", "cart.item.removed", "cart.updated", "cart.merged", "cart.completed", "cart.repriced"];
  follow({
    [cart.dataset.topic]: {
      after: Number(cart.dataset.after),
      // What another window changed is shown by the server; nothing that is being typed is lost for it.
      hear: ({ type, event }) => {
        const isChanged = type === "state" || (type === "event" && changes.includes(event.type));
        if (isChanged && !document.activeElement?.matches("input[type=number]")) reload();
      },
    },
  });
}
countdowns((element) => {
  element.parentElement.textContent = "Not held for you any more: somebody else may buy it first.";
});
