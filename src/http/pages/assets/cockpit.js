// A sale as its vendor sees it: claims a second, and where the units are.
import { follow, reload, show } from "./live.js";

const page = document.querySelector(".cockpit");
let last = null;

follow({
  [page.dataset.topic]: {
    after: 0,
    hear: ({ type, state }) => {
      if (type !== "state") return;
      if (state.status !== page.dataset.status) return reload();
      for (const name of ["available", "held", "sold", "waiting"]) show(name, state[name], page);
      for (const meter of page.querySelectorAll("[data-live-meter='sold']")) meter.value = state.sold;
      const now = { taken: state.held + state.sold, at: performance.now() };
      if (last && now.at - last.at >= 1000) {
        show("rate", Math.max(0, Math.round(((now.taken - last.taken) * 1000) / (now.at - last.at))), page);
        last = now;
      }
      last ??= now;
    },
  },
});
