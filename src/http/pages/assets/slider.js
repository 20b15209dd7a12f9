// An entity's life: the state at the version that the slider is at.

const slider = document.querySelector("form.slider");
if (slider) {
  const range = slider.querySelector("input[type=range]");
  let asked = 0;
  range.addEventListener("input", async () => {
    slider.querySelector("[data-live='version']").textContent = range.value;
    for (const record of document.querySelectorAll("[data-version]")) {
      if (record.dataset.version === range.value) record.setAttribute("aria-current", "step");
      else record.removeAttribute("aria-current");
    }
    const own = (asked += 1);
    const answer = await fetch(`${slider.getAttribute("action")}?${new URLSearchParams(new FormData(slider))}`);
    if (!answer.ok || own !== asked) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (own === asked) document.getElementById("state").replaceChildren(...page.getElementById("state").childNodes);
  });
}
