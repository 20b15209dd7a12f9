// Parts of a page that are asked for again and again, and replaced when they changed. Nobody is disturbed while typing.

const status = document.getElementById("connection");

async function refresh(part) {
  if (document.visibilityState !== "visible" || part.contains(document.activeElement)) return;
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const newer = page.getElementById(part.id);
    // Each page has forms of its own: their keys are no news.
    const told = (element) => element.textContent;
    if (newer && told(newer) !== told(part) && !part.contains(document.activeElement)) part.replaceChildren(...newer.childNodes);
    if (status?.textContent) status.textContent = "";
  } catch {
    if (status) status.textContent = "The connection is lost. Trying again…";
  }
}

for (const part of document.querySelectorAll("[data-refresh]")) {
  const again = async () => {
    await refresh(part);
    setTimeout(again, Number(part.dataset.refresh));
  };
  setTimeout(again, Number(part.dataset.refresh));
}
