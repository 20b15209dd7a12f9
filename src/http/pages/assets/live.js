// One WebSocket for a page: it follows topics, says when the connection is lost, comes back by itself and catches up.

const FIRST_WAIT_MS = 250;
const LAST_WAIT_MS = 8000;
const PING_MS = 10000;
const SILENCE_MS = 25000;

const status = document.getElementById("connection");

function say(text) {
  if (status && status.textContent !== text) status.textContent = text;
}

/** What this browser shows the API: an account's token or a guest's, or nothing. */
export async function token() {
  const answer = await fetch("/session", { headers: { "souk-page": "1" }, cache: "no-store" });
  if (!answer.ok) throw new Error(`session: ${answer.status}`);
  return (await answer.json()).token;
}

/** Asks the API with this browser's token. */
export async function ask(path) {
  const bearer = await token();
  const headers = bearer ? { authorization: `Bearer ${bearer}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store" });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

/**
 * Follows topics: `{ topic: { after, hear(message) } }`. Of each event or state only what is newer than `after` is heard, and
 * once, however often the connection is lost.
 */
export function follow(topics) {
  let wait = FIRST_WAIT_MS;

  async function connect() {
    let socket;
    try {
      const bearer = await token();
      const scheme = location.protocol === "https:" ? "wss:" : "ws:";
      socket = new WebSocket(`${scheme}//${location.host}/ws`);
      let heardAt = Date.now();
      const unanswered = new Set(Object.keys(topics));
      // A connection that only seems to be there would say nothing for ever.
      const pulse = setInterval(() => {
        if (Date.now() - heardAt > SILENCE_MS) socket.close();
        else if (socket.readyState === WebSocket.OPEN) socket.send('{"type":"ping"}');
      }, PING_MS);
      socket.onopen = () => {
        for (const [topic, { after }] of Object.entries(topics)) {
          socket.send(JSON.stringify({ type: "subscribe", topic, after, ...(bearer ? { token: bearer } : {}) }));
        }
      };
      socket.onmessage = ({ data }) => {
        heardAt = Date.now();
        const message = JSON.parse(data);
        // As when a node takes over from another: there is another try, perhaps at another node.
        if (message.type === "error" && message.code === "unavailable") return socket.close();
        if (["subscribed", "error"].includes(message.type)) unanswered.delete(message.topic);
        if (unanswered.size === 0) {
          wait = FIRST_WAIT_MS;
          say("");
        }
        const followed = topics[message.topic];
        if (!followed) return;
        if (message.type === "subscribed") followed.after ??= message.seq;
        if (message.type === "event" || message.type === "state") {
          if (message.seq <= followed.after) return;
          followed.after = message.seq;
        }
        followed.hear(message);
      };
      socket.onclose = () => {
        clearInterval(pulse);
        again();
      };
    } catch {
      again();
    }
  }

  function again() {
    say("The connection is lost. Trying again…");
    setTimeout(connect, wait * (0.5 + Math.random()));
    wait = Math.min(wait * 2, LAST_WAIT_MS);
  }

  connect();
}

let isLeaving = false;
addEventListener("submit", (event) => {
  isLeaving ||= !event.defaultPrevented;
});
addEventListener("pageshow", () => {
  isLeaving = false;
});

/** Gets the page again, unless it is being left: a form that was sent must arrive. */
export function reload() {
  if (isLeaving) return;
  isLeaving = true;
  location.reload();
}

/** Minor units as text, as the server writes them. */
export function money({ amount, currency }) {
  const digits = new Intl.NumberFormat("en", { style: "currency", currency }).resolvedOptions().maximumFractionDigits;
  return `${(amount / 10 ** digits).toFixed(digits)} ${currency}`;
}

/** Sets the text of all elements with this `data-live` name. */
export function show(name, text, within = document) {
  for (const element of within.querySelectorAll(`[data-live="${CSS.escape(name)}"]`)) {
    if (element.textContent !== String(text)) element.textContent = text;
  }
}
