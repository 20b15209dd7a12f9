// A sale: units left, the line, one's own place, and the proof of work where one is asked for.
import { ask, follow, reload, show } from "./live.js";
import { countdowns } from "./clock.js";
import { showSale } from "./sale-state.js";

const page = document.querySelector(".sale-page");

// What is told at the beginning is what the server has just written; only what differs from it is news.
function ticket(message) {
  const inLine = ["waiting", "admitted"];
  const is = inLine.includes(message.state) ? message.state : "";
  if (is !== page.dataset.standing) return reload();
  if (is !== "waiting") return;
  show("place", message.place, page);
  const seconds = message.estimated_wait_seconds;
  show("wait", seconds === null || seconds === undefined ? "" : `About ${seconds} seconds to wait.`, page);
}

follow({
  [page.dataset.topic]: {
    after: 0,
    hear: (message) => {
      if (message.type === "ticket") ticket(message);
      if (message.type !== "state") return;
      // What one can do changes with the status: the server writes that.
      if (message.state.status !== page.dataset.status) return reload();
      showSale(page, message.state);
    },
  },
});
countdowns((element) => element.closest(".claim") && reload());

function zeroBits(bytes) {
  let bits = 0;
  for (const byte of bytes) {
    if (byte === 0) bits += 8;
    else return bits + Math.clz32(byte) - 24;
  }
  return bits;
}

for (const form of page.querySelectorAll("form[data-proof]")) {
  form.addEventListener("submit", async (event) => {
    if (form.elements.nonce) return;
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    button.textContent = "Working on the proof…";
    const { challenge, bits } = await ask(`${location.pathname.replace("/sales/", "/api/flash-sales/")}/challenge`);
    const encoder = new TextEncoder();
    for (let number = 0; ; number += 1) {
      const hash = await crypto.subtle.digest("SHA-256", encoder.encode(`${challenge}.${number}`));
      if (zeroBits(new Uint8Array(hash)) < bits) continue;
      for (const [name, value] of [["challenge", challenge], ["nonce", String(number)]]) {
        const field = document.createElement("input");
        Object.assign(field, { type: "hidden", name, value });
        form.append(field);
      }
      form.requestSubmit();
      return;
    }
  });
}
