// Speaks with the server: documents, what changes, and actions. The token goes in a header, from
// this tab's memory; the link that was printed has it behind its #, which browsers send nowhere.
// Whoever shows it once gets a cookie, by which the other tabs read.

const HEADER = "x-trialfleet-token";
const KEPT = "trialfleet-token";

let token = "";
try { token = sessionStorage.getItem(KEPT) ?? ""; } catch { /* storage is off: this page alone */ }

export function takeTokenFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!found) return;
  keepToken(found);
  history.replaceState(null, "", location.pathname + location.search);
}

// Shows the token, if there is one; what is none is forgotten.
export async function showToken() {
  if (!hasToken()) return;
  try { await post("/api/token", "{}"); } catch (error) { if (error.status === 403) keepToken(""); }
}

// Keeps another token if it is the right one; else the one that there is stays.
export async function changeToken(given) {
  if (!/^[\x21-\x7e]+$/.test(given)) throw new Refused(403, "Refused", "no header takes this");
  await post("/api/token", "{}", given);
  keepToken(given);
}

function keepToken(given) {
  token = given;
  try { sessionStorage.setItem(KEPT, given); } catch { /* likewise */ }
}

export function hasToken() { return token !== ""; }

export class Refused extends Error {
  constructor(status, kind, message) { super(message); this.status = status; this.kind = kind; }
}

async function ask(path, given = {}) {
  const headers = { ...(token ? { [HEADER]: token } : {}), ...given.headers };
  const answer = await fetch(path, { ...given, headers, cache: "no-store" });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, told.error?.kind ?? "Error", told.error?.message ?? `the server said ${answer.status}`);
}

export async function get(path, signal) { return (await ask(path, { signal })).json(); }

// Sends what is JSON already.
export async function post(path, body, shown = token) {
  const headers = { "content-type": "application/json", [HEADER]: shown };
  return (await ask(path, { method: "POST", headers, body })).json();
}

// Follows what changes until `signal` says that nobody looks any more; comes back by itself. Browsers
// have six connections to a host for all tabs together: one that is hidden lets go of its own, and goes
// on where it was when it is seen again.
export async function follow(address, { on, signal }) {
  let waits = 500;
  while (!signal.aborted) {
    await untilSeen(signal);
    const hidden = new AbortController();
    const letGo = () => { if (document.hidden) hidden.abort(); };
    document.addEventListener("visibilitychange", letGo);
    try {
      const answer = await ask(address(), { signal: AbortSignal.any([signal, hidden.signal]) });
      on.link("live");
      for await (const { kind, data } of events(answer.body)) {
        waits = 500;
        if (kind === "trouble") on.trouble(data.error.message);
        else if (kind === "well") on.trouble(null);
        else on.news(data);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (hidden.signal.aborted) { on.link("waiting"); continue; }
      if (error instanceof Refused && error.status === 403) { on.refused(error); return; }
      if (error instanceof Refused) on.trouble(error.message);
    } finally {
      document.removeEventListener("visibilitychange", letGo);
    }
    if (signal.aborted) return;
    on.link("away");
    await new Promise((done) => setTimeout(done, waits));
    waits = Math.min(waits * 2, 5000);
  }
}

// Until somebody sees the page, or it shows something else.
function untilSeen(signal) {
  if (!document.hidden || signal.aborted) return Promise.resolve();
  return new Promise((done) => {
    const look = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      done();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look);
  });
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    for (let end = held.indexOf("\n\n"); end >= 0; end = held.indexOf("\n\n")) {
      const lines = held.slice(0, end).split("\n");
      held = held.slice(end + 2);
      const kind = lines.find((line) => line.startsWith("event: "))?.slice(7);
      const data = lines.find((line) => line.startsWith("data: "))?.slice(6);
      if (kind && data) yield { kind, data: JSON.parse(data) };
    }
  }
}
