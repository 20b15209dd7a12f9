// A sale as its vendor sees it: units claimed a second, and where the units are.
import { follow, reload, show } from "./live.js";

const OVER_SECONDS = 5;
const page = document.querySelector(".cockpit");
// Units that are held or sold, as of each of the last seconds.
const taken = [];
let newest = null;

follow({
  [page.dataset.topic]: {
    after: 0,
    hear: ({ type, state }) => {
      if (type !== "state") return;
      if (state.status !== page.dataset.status) return reload();
      for (const name of ["available", "held", "sold", "waiting"]) show(name, state[name], page);
      for (const meter of page.querySelectorAll("[data-live-meter='sold']")) meter.value = state.sold;
      newest = state.held + state.sold;
      if (taken.length === 0) taken.push(newest);
    },
  },
});

setInterval(() => {
  if (newest === null) return;
  taken.push(newest);
  if (taken.length > OVER_SECONDS + 1) taken.shift();
  show("rate", (Math.max(0, newest - taken[0]) / OVER_SECONDS).toFixed(1), page);
}, 1000);
