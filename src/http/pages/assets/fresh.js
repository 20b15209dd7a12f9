// Parts of a page that are asked for again and again, and replaced when they changed. Nobody is disturbed while typing.

const EVERY_MS = 2000;
const status = document.getElementById("connection");
const parts = [...document.querySelectorAll("[data-refresh]")];

// Each page has forms of its own: their keys are no news.
const isNews = (part, newer) => newer && newer.textContent !== part.textContent;
const isUsed = (part) => part.contains(document.activeElement) && document.activeElement.matches("input, button, select, summary, a");

// Whoever has scrolled a table, or moves in it by keyboard, stays where they are.
function replace(part, newer) {
  const regions = [...part.querySelectorAll("[role=region]")];
  const kept = new Map(regions.map((region) => [region.ariaLabel, [region.scrollLeft, region === document.activeElement]]));
  part.replaceChildren(...newer.childNodes);
  for (const region of part.querySelectorAll("[role=region]")) {
    const [left, isFocused] = kept.get(region.ariaLabel) ?? [0, false];
    region.scrollLeft = left;
    if (isFocused) region.focus({ preventScroll: true });
  }
}

/** Keeps the page's parts fresh; `seen(page)` gets each newer page, before its parts are taken from it. */
export function fresh(seen = () => {}) {
  const look = async () => {
    if (document.visibilityState === "visible") {
      try {
        const answer = await fetch(location.href, { cache: "no-store", redirect: "error" });
        if (!answer.ok) throw new Error(String(answer.status));
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        seen(page);
        for (const part of parts) {
          const newer = page.getElementById(part.id);
          if (isNews(part, newer) && !isUsed(part)) replace(part, newer);
        }
        if (status.textContent) status.textContent = "";
      } catch {
        status.textContent = "The connection is lost. Trying again…";
      }
    }
    setTimeout(look, EVERY_MS);
  };
  if (parts.length > 0) setTimeout(look, EVERY_MS);
}
