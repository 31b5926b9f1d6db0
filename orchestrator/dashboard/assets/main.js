// The page around the views: which one the address names, the token, the colours, the news.

import { code, el, fill } from "./dom.js";
import { showFleet } from "./fleet.js";
import { changeToken, get, hasToken, showToken, takeTokenFromAddress } from "./server.js";
import { showStudy } from "./study.js";
import { showTrial } from "./trial.js";

const main = document.getElementById("main");
const link = document.getElementById("link");
const trouble = document.getElementById("trouble");
const key = document.getElementById("key");
const theme = document.getElementById("theme");
let shown = null;

const LINKS = { live: "live", away: "no connection", waiting: "connecting", locked: "locked" };

// What a view may do with the page around it.
function frame(signal) {
  return {
    signal, go,
    // a view's own elements: those of the view before are never adapted to them, or what it changes later is not seen
    place(...nodes) { main.replaceChildren(...nodes); },
    again: show, // another study may have come by the name
    link(state) {
      link.dataset.state = state;
      link.textContent = LINKS[state];
      if (state === "away") this.trouble("The dashboard does not answer. This page tries again by itself.");
      else if (state === "live") this.trouble(null);
    },
    trouble(message) {
      trouble.hidden = !message;
      if (trouble.textContent !== (message ?? "")) trouble.textContent = message ?? "";
    },
    crumbs(...parts) {
      fill(document.getElementById("crumbs"), parts.map(([text, href], at) =>
        el("a", { href, "aria-current": at === parts.length - 1 ? "page" : null }, text)));
      document.title = [...parts.map(([text]) => text)].reverse().concat("trialfleet").join(" · ");
    },
    failed(error) {
      if (signal.aborted) return;
      if (error.status === 403) { this.locked(); return; }
      main.replaceChildren(el("section", { class: "empty" },
        el("h1", {}, error.status === 404 ? "Not there" : "This cannot be shown"),
        el("p", {}, error.message), el("p", {}, el("a", { href: "/" }, "Back to the fleet"))));
    },
    locked() {
      this.link("locked");
      this.trouble(null);
      main.replaceChildren(el("section", { class: "empty" },
        el("h1", {}, "This page takes the token"),
        el("p", {}, "Open the link that ", el("code", {}, "trialfleet dashboard"), " printed when it began."),
        el("p", {}, el("button", { type: "button", class: "main", onclick: () => key.click() }, "Give the token"))));
    },
  };
}

function decoded(part) { try { return decodeURIComponent(part); } catch { return part; } }

function show() {
  shown?.abort();
  shown = new AbortController();
  const parts = location.pathname.split("/").filter(Boolean).map(decoded);
  const around = frame(shown.signal);
  around.trouble(null);
  if (parts[0] === "studies" && parts[2] === "trials") showTrial(around, parts[1], parts[3]);
  else if (parts[0] === "studies" && parts.length === 2) showStudy(around, parts[1]);
  else if (parts[0] === "optuna") showOptuna(around);
  else showFleet(around);
}

// Where optuna-dashboard is installed, its own pages are at this address.
function showOptuna(around) {
  around.crumbs(["Fleet", "/"], ["optuna-dashboard", "/optuna/"]);
  main.replaceChildren(el("section", { class: "empty" },
    el("h1", {}, "optuna-dashboard is not installed"),
    el("p", {}, "Where this page is served, install it, and start the page again:"), code("pip install 'trialfleet[dashboard]'"),
    el("p", {}, el("a", { href: "/" }, "Back to the fleet"))));
}

export function go(path) {
  history.pushState(null, "", path);
  show();
  scrollTo(0, 0);
  main.focus({ preventScroll: true });
}

document.addEventListener("click", (event) => {
  const anchor = event.target.closest?.("a[href^='/']");
  const isPlain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey;
  if (!anchor || !isPlain || anchor.target || anchor.getAttribute("href").startsWith("/assets/")) return;
  event.preventDefault();
  go(anchor.getAttribute("href"));
});
addEventListener("popstate", show);

const THEMES = ["auto", "light", "dark"];
const SAID = { auto: "as the system has them", light: "light", dark: "dark" };
function drawTheme() {
  const now = document.documentElement.dataset.theme;
  theme.textContent = now[0].toUpperCase() + now.slice(1);
  theme.setAttribute("aria-label", `Colours: ${SAID[now]}`);
}
theme.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme;
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("trialfleet-theme", next); } catch { /* storage is off */ }
  drawTheme();
  dispatchEvent(new Event("colours"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("colours")));

async function drawKey() {
  key.textContent = hasToken() ? "May act" : "Read only";
  document.documentElement.toggleAttribute("data-may-act", hasToken());
}
key.addEventListener("click", () => {
  const input = el("input", { type: "password", id: "token", autocomplete: "off", required: true });
  const problem = el("p", { class: "problem", role: "alert" });
  const dialog = el("dialog", { "aria-labelledby": "key-title" }, el("form", { method: "dialog" },
    el("h2", { id: "key-title" }, "The token"),
    el("p", {}, "Acting takes it, and reading where the fleet has a password. It is in the link that ", el("code", {}, "trialfleet dashboard"), " printed when it began, behind ", el("code", {}, "#token="), "."),
    el("label", { for: "token" }, "Token"), input, problem,
    el("div", { class: "buttons" },
      el("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Back"),
      el("button", { type: "submit", class: "main" }, "Use it"))));
  dialog.addEventListener("close", () => { dialog.remove(); key.focus(); });
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try { await changeToken(input.value.trim()); dialog.close(); show(); }
    catch (error) { problem.textContent = error.status === 403 ? "This is not the token." : `It could not be shown: ${error.message}`; }
    drawKey();
  });
  document.body.append(dialog);
  dialog.showModal();
});

takeTokenFromAddress();
drawTheme();
drawKey();
showToken().then(drawKey);
show();
export { get };
