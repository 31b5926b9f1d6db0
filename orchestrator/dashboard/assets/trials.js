// All trials of a study, a page of them at a time: chosen by state and number, in some order. What is
// chosen stands in the address, so that the way back from a trial leads to the same page.

import { badge, el, fill, table } from "./dom.js";
import { number, path, span } from "./words.js";

const ROWS = 20;

const STATES = { C: "complete", P: "pruned", F: "failed", D: "dead", X: "cancelled", V: "infeasible", R: "paused", O: "queued or running" };

const ORDERS = { newest: "the newest first", oldest: "the oldest first", best: "the best first", longest: "the longest first" };

// From "7" or "7-12" the first and the last number; of nothing, all; null for what is neither.
export function rangeOf(written) {
  if (!written.trim()) return [0, Infinity];
  const [, first, last] = /^\s*(\d+)(?:\s*-\s*(\d+))?\s*$/.exec(written) ?? [];
  return first === undefined ? null : [Number(first), Number(last ?? first)];
}

// The numbers of the trials that are chosen, in order.
export function choose(store, { state, numbers, order }, direction) {
  const range = rangeOf(numbers);
  if (!range) return [];
  const found = [];
  for (let at = range[0]; at <= Math.min(range[1], store.states.length - 1); at += 1) {
    if (!state || store.states[at] === state) found.push(at);
  }
  if (order === "newest") return found.reverse();
  if (order === "oldest") return found;
  const column = order === "longest" ? store.seconds : store.values[0] ?? [];
  const sign = order === "longest" || direction === "maximize" ? -1 : 1;
  const rank = (at) => (column[at] === null || column[at] === undefined ? Infinity : sign * column[at]);
  return found.sort((a, b) => (rank(a) === rank(b) ? a - b : rank(a) - rank(b)));
}

export class TrialList {
  constructor(study, go) {
    Object.assign(this, { study, store: null, page: 0, places: [] });
    this.state = el("select", { id: "trials-state" });
    this.numbers = el("input", { id: "trials-numbers", type: "text", inputmode: "numeric", placeholder: "7 or 100-200", autocomplete: "off" });
    this.order = el("select", { id: "trials-order" }, Object.entries(ORDERS).map(([value, said]) => el("option", { value }, said)));
    this.rows = el("div", {});
    this.said = el("span", { class: "muted", role: "status" });
    this.newer = this.step("trials-before", "Before", -1);
    this.older = this.step("trials-after", "After", 1);
    const form = el("form", { class: "choice" },
      ...[["State", this.state], ["Number", this.numbers], ["Order", this.order]].map(([label, node]) => el("div", {}, el("label", { for: node.id }, label), node)));
    form.addEventListener("input", () => this.chosen());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.numbers.value && this.places.length === 1) go(path("studies", study.study, "trials", this.places[0]));
    });
    this.node = el("section", { class: "block", "aria-labelledby": "trials-title", hidden: true }, el("h2", { id: "trials-title" }, "All trials"), form,
      this.rows, el("nav", { class: "pages", "aria-label": "Pages of trials" }, this.newer, this.said, this.older));
    this.readAddress();
  }

  // A button that is at its end keeps the focus.
  step(id, said, by) {
    return el("button", { type: "button", class: "quiet", id, onclick: () => { if (this.isIn(this.page + by)) { this.page += by; this.draw(); this.writeAddress(); } } }, said);
  }

  isIn(page) { return page >= 0 && page * ROWS < Math.max(1, this.places.length); }

  chosen() {
    this.page = 0;
    this.draw();
    this.writeAddress();
  }

  readAddress() {
    const asked = new URLSearchParams(location.search);
    this.wanted = STATES[asked.get("state")] ? asked.get("state") : "";
    this.numbers.value = asked.get("numbers") ?? "";
    this.order.value = ORDERS[asked.get("order")] ? asked.get("order") : "newest";
    this.page = Math.max(0, Number.parseInt(asked.get("page") ?? "1", 10) - 1 || 0);
  }

  writeAddress() {
    const asked = new URLSearchParams();
    const told = { state: this.state.value, numbers: this.numbers.value, order: this.order.value === "newest" ? "" : this.order.value, page: this.page ? String(this.page + 1) : "" };
    for (const [name, value] of Object.entries(told)) if (value) asked.set(name, value);
    history.replaceState(null, "", `${location.pathname}${asked.size ? `?${asked}` : ""}`);
  }

  take(store, study) {
    Object.assign(this, { store, study });
    this.draw();
  }

  draw() {
    this.node.hidden = !this.store.states.length;
    this.drawStates();
    const asked = { state: this.state.value, numbers: this.numbers.value, order: this.order.value };
    this.places = choose(this.store, asked, this.study.directions[0]);
    if (!this.isIn(this.page)) this.page = 0;
    const first = this.page * ROWS, shown = this.places.slice(first, first + ROWS);
    const isWrong = rangeOf(asked.numbers) === null;
    fill(this.rows, isWrong ? el("p", { class: "problem" }, "Write a number, or two: 100-200.") : table("Trials", this.columns(), shown.map((at) => this.row(at)), "There are none of these."));
    this.said.textContent = shown.length ? `${number(first + 1)} to ${number(first + shown.length)} of ${number(this.places.length)}` : "none";
    this.newer.setAttribute("aria-disabled", String(!this.isIn(this.page - 1)));
    this.older.setAttribute("aria-disabled", String(!this.isIn(this.page + 1)));
  }

  // What states there are, with how many trials are in each.
  drawStates() {
    const counts = {};
    for (const letter of this.store.states) counts[letter] = (counts[letter] ?? 0) + 1;
    const chosen = this.wanted || this.state.value;
    const letters = Object.keys(STATES).filter((letter) => counts[letter] || letter === chosen);
    // an open list stays as it is, but for what is new in it
    if (document.activeElement === this.state && this.state.options.length === letters.length + 1) return;
    fill(this.state, el("option", { value: "" }, `all ${number(this.store.states.length)}`),
      letters.map((letter) => el("option", { value: letter }, `${STATES[letter]} (${number(counts[letter] ?? 0)})`)));
    this.state.value = chosen;
    this.wanted = "";
  }

  columns() {
    return [{ name: "Trial", number: true }, { name: "State" }, { name: "Parameters", wide: true }, { name: this.study.metrics[0] ?? "Value", number: true },
      { name: "Attempts", number: true, minor: true }, { name: "Took", number: true, minor: true }];
  }

  row(at) {
    const { store, study } = this;
    const letter = store.states[at];
    const open = study.running.some((each) => each.number === at) ? "running" : "queued";
    const params = Object.keys(store.params).filter((name) => store.params[name][at] !== null && store.params[name][at] !== undefined)
      .map((name) => `${name} ${number(store.params[name][at])}`).join(" · ");
    const values = store.values.map((column) => column[at]).filter((each) => each !== null && each !== undefined);
    const last = store.last[at] === null ? "–" : el("span", { class: "muted", title: "its last report" }, number(store.last[at]));
    return [el("a", { href: path("studies", study.study, "trials", at) }, String(at)), badge(letter === "O" ? open : STATES[letter]),
      el("span", { class: "params" }, params || "–"), values.length ? values.map((each) => number(each)).join(", ") : last, number(store.attempts[at]), span(store.seconds[at])];
  }
}
