// Countdowns: every `time[data-countdown]` tells how long it is until its moment.

function left(ms) {
  if (ms <= 0) return "now";
  const seconds = Math.ceil(ms / 1000);
  const days = Math.floor(seconds / 86400);
  const pad = (number) => String(number).padStart(2, "0");
  const clock = `${pad(Math.floor(seconds / 3600) % 24)}:${pad(Math.floor(seconds / 60) % 60)}:${pad(seconds % 60)}`;
  return days > 0 ? `${days} d ${clock}` : clock;
}

/** Keeps all countdowns of the page; `over(element)` is called once for each that has come to its end. */
export function countdowns(over = () => {}) {
  const ended = new WeakMap();
  const tick = () => {
    for (const element of document.querySelectorAll("time[data-countdown]")) {
      const ms = Date.parse(element.dateTime) - Date.now();
      const text = left(ms);
      if (element.textContent !== text) element.textContent = text;
      if (ms <= 0 && ended.get(element) !== element.dateTime) {
        ended.set(element, element.dateTime);
        over(element);
      }
    }
  };
  tick();
  setInterval(tick, 500);
}
