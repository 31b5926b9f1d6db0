// One study: how it stands, its charts, its trials; kept up to date row by row.

import { actionsFor } from "./actions.js";
import * as charts from "./charts.js";
import { badge, code, el, fill, table, tile } from "./dom.js";
import { followStudy } from "./forms.js";
import { progress } from "./fleet.js";
import { isDue, undrawn } from "./panels.js";
import { follow, get } from "./server.js";
import { TrialList } from "./trials.js";
import { number, params, path, plural, span, standing, values } from "./words.js";

const COLUMNS = ["begun", "ended", "seconds", "attempts", "last", "steps"];

// Takes rows that changed into the columns that there are.
export function merge(store, news) {
  news.numbers.forEach((at, row) => {
    store.states[at] = news.states[row];
    for (const name of COLUMNS) store[name][at] = news[name][row];
    news.values.forEach((column, axis) => { (store.values[axis] ??= [])[at] = column[row]; });
    for (const [name, column] of Object.entries(news.params)) (store.params[name] ??= [])[at] = column[row];
  });
}

// Parameters may be called anything, also what each object has from its prototype.
export const empty = () => ({ states: [], values: [], params: Object.create(null), begun: [], ended: [], seconds: [], attempts: [], last: [], steps: [] });

export async function showStudy(around, name) {
  around.crumbs(["Fleet", "/"], [name, path("studies", name)]);
  const api = `/api${path("studies", name)}`;
  let study;
  try { study = await get(api, around.signal); } catch (error) { around.failed(error); return; }
  const view = new View(around, api, study);
  view.draw(study);
  performance.mark("painted");
  try { await view.load(); } catch (error) { if (!around.signal.aborted) around.trouble(error.message); }
  performance.mark("loaded");
  follow(() => `/api/live?study=${encodeURIComponent(name)}&since=${view.revision}&run=${view.run}`, {
    on: { news: (news) => view.take(news), link: (state) => around.link(state), trouble: (message) => around.trouble(message), refused: (error) => around.failed(error) },
    signal: around.signal,
  });
}

class View {
  constructor(around, api, study) {
    Object.assign(this, { around, api, study, store: empty(), revision: 0, run: "", bars: new Map(), barsAt: 0 });
    this.openTrial = (trial, event) => {
      const address = path("studies", this.study.study, "trials", trial);
      if (event.ctrlKey || event.metaKey) globalThis.open(address, "_blank", "noopener");
      else if (!around.signal.aborted) around.go(address);
    };
    this.head = el("section", { class: "head" });
    this.actions = el("div", { class: "actions" });
    this.notes = el("div", { class: "notes" });
    this.tiles = el("dl", { class: "tiles" });
    this.tables = el("div", { class: "tables" });
    this.panels = [];
    this.numValues = study.directions.length;
    const several = this.numValues > 1;
    this.trials = new TrialList(study, around.go);
    this.running = el("div", { class: "tables" });
    const first = el("div", { class: "charts" },
      this.panel("Time line of slots", "wide", "timeline", () => this.timeline(), 3000, "the latest; a click opens a trial, a double click shows all"),
      several ? this.panel("Pareto front", "", "pareto", () => this.pareto(), 1000, "a click on a point opens its trial") : this.panel("History", "wide", "history", () => charts.history(this.store, this.study), 1000, "a click on a point opens its trial"));
    const further = el("div", { class: "charts" },
      this.panel("Curves", "", "curves", () => this.curves(), 5000),
      this.panel("What matters", "", "importances", () => this.importances(), 10000),
      this.panel("Parallel coordinates", "wide", "parallel", () => this.parallel(), 5000, "drag along an axis to choose", true),
      this.panel("Slices", "wide", "slices", (panel) => this.slices(panel), 5000, "the later a trial, the darker"));
    around.place(this.head, this.actions, this.notes, this.tiles, this.running, first, this.tables, this.trials.node, further);
    addEventListener("colours", () => this.redraw(), { signal: around.signal });
    const timer = setInterval(() => this.refresh(), 500);
    around.signal.addEventListener("abort", () => { clearInterval(timer); this.watcher.disconnect(); });
    this.watcher = new IntersectionObserver((seen) => seen.forEach(({ target, isIntersecting }) => {
      this.panels.find((panel) => panel.node === target).isSeen = isIntersecting;
      if (isIntersecting) this.refresh();
    }), { rootMargin: "200px" });
    this.panels.forEach((panel) => this.watcher.observe(panel.node));
  }

  panel(title, kind, id, make, every = 1000, hint = "", isSlow = false) {
    const plot = el("div", { class: "plot", id: `plot-${id}`, role: "img", "aria-label": title });
    const note = el("p", { class: "muted" }, "…");
    const said = el("small", {}, hint);
    const node = el("section", { class: `chart ${kind}`, "aria-labelledby": `title-${id}` }, el("h2", { id: `title-${id}` }, title, " ", said), note, plot);
    this.panels.push({ node, plot, note, said, hint, make, ...undrawn(every, isSlow) });
    return node;
  }

  async load() {
    this.take(await get(`${this.api}/trials`, this.around.signal));
  }

  take(news) {
    if (news.study.directions.length !== this.numValues) { this.around.again(); return; }
    if (news.again) {  // all there is: what this page has may be of a former study of the name
      this.store = empty();
      this.run = news.run;
      this.bars.clear();
      this.barsAt = 0;
    }
    const began = performance.now();
    this.revision = news.revision;
    this.hasResults = news.has_results;
    merge(this.store, news.trials);
    this.draw(news.study);
    this.trials.take(this.store, news.study);
    this.panels.forEach((panel) => { panel.stale = true; });
    performance.measure("update", { start: began, end: performance.now() });
  }

  refresh() {
    for (const panel of this.panels) if (isDue(panel, this.panels, performance.now())) this.renew(panel);
  }

  // Draws all anew, at once.
  redraw() {
    this.panels.forEach((panel) => Object.assign(panel, { stale: true, drawnAt: -Infinity }));
    this.refresh();
  }

  async renew(panel) {
    Object.assign(panel, { isDrawing: true, stale: false, drawnAt: performance.now() });
    panel.took = 0;
    try { await this.drawPanel(panel); } catch (error) { if (!this.around.signal.aborted) Object.assign(panel.note, { textContent: error.message, hidden: false }); }
    panel.isDrawing = false;
  }

  async drawPanel(panel) {
    const made = await panel.make(panel);
    if (this.around.signal.aborted || made === undefined) return;
    const isChart = typeof made !== "string" && made[0].some((trace) => trace.x?.length || trace.dimensions);
    panel.plot.hidden = !isChart;
    if (isChart) await this.drawChart(panel, panel.plot, ...made);
    else panel.note.textContent = typeof made === "string" ? made : "No trial has got that far yet.";
    panel.note.hidden = isChart;
  }

  // Between two charts the browser shows what there is, and takes what is typed.
  async drawChart(panel, node, traces, layout, counts) {
    await charts.plotly();
    await new Promise((done) => setTimeout(done));
    const began = performance.now();
    await charts.draw(node, traces, layout, this.openTrial);
    const ended = performance.now();
    panel.took += ended - began;
    performance.measure(`draw-${panel.plot.id}`, { start: began, end: ended });
    performance.mark(`drawn-${panel.plot.id}`);
    const part = counts?.drawn < counts?.all ? `${number(counts.drawn)} of ${number(counts.all)}${counts.which ?? ""}` : "";
    panel.said.textContent = [panel.hint, part].filter(Boolean).join("; ");
  }

  names() {
    return Object.keys(this.store.params).sort();
  }

  async timeline() {
    const since = this.barsAt;
    const found = await get(`${this.api}/timeline?since=${since}`, this.around.signal);
    if (found.revision < since || this.barsAt !== since) { this.bars.clear(); this.barsAt = 0; return undefined; }
    this.barsAt = found.revision;
    found.bars.forEach((bar) => this.bars.set(bar.id, bar));
    for (const id of this.bars.keys()) if (id < found.first) this.bars.delete(id);
    const bars = [...this.bars.values()].sort((a, b) => a.id - b.id);
    if (!bars.length) return "No trial has been begun yet.";
    return charts.timeline(bars, found.now);
  }

  async curves() {
    const found = await get(`${this.api}/curves`, this.around.signal);
    if (found.curves.length) return [...charts.curves(found.curves, this.study), { drawn: found.curves.length, all: found.reported, which: ": the best, the latest, those that run, some others" }];
    return "No trial has reported a value in between: trial.report(value, step).";
  }

  async importances() {
    const found = await get(`${this.api}/importances`, this.around.signal);
    return found.problem ?? charts.importances(found, this.study);
  }

  pareto() {
    if (!this.store.states.includes("C")) return "No trial is complete yet.";
    return charts.pareto(this.store, this.study, charts.frontOf(this.store, this.study.directions));
  }

  parallel() {
    const names = this.names().slice(0, 12);
    if (!names.length || !this.store.states.includes("C")) return "No trial is complete yet.";
    const made = charts.parallel(this.store, this.study, names);
    if (typeof made !== "string") made[2].which = ": the best, and others evenly chosen";
    return made;
  }

  async slices(panel) {
    const names = this.names().slice(0, 12);
    if (!names.length || !this.store.states.includes("C")) return "No trial is complete yet.";
    panel.note.hidden = true;
    panel.plot.hidden = false;
    panel.plot.classList.add("slices");
    panel.plots ??= new Map();
    for (const [name, plot] of panel.plots) if (!names.includes(name)) { plot.remove(); panel.plots.delete(name); }
    for (const name of names) {
      if (!panel.plots.has(name)) {
        const plot = el("div", { class: "plot", role: "img", "aria-label": `${this.study.metrics[0]} by ${name}` });
        panel.plots.set(name, plot);
        panel.plot.append(plot);
      }
      await this.drawChart(panel, panel.plots.get(name), ...charts.slice(this.store, this.study, name));
    }
    return undefined;
  }

  draw(study) {
    this.study = study;
    const counts = study.trials;
    fill(this.head,
      el("div", { class: "title" }, el("h1", {}, study.study), badge(standing(study))),
      el("p", { class: "muted", title: study.objective }, `${study.objective.replace(/^.*\//, "")} · ${study.directions.map((direction, at) => `${direction} ${study.metrics[at] ?? "value"}`).join(", ")}`),
      progress(study));
    this.drawActions();
    followStudy(study);
    fill(this.notes, notesOf(study, this.hasResults));
    const best = study.best;
    fill(this.tiles,
      tile(study.directions.length > 1 ? "On the Pareto front" : `Best ${study.metrics[0] ?? "value"}`,
        study.directions.length > 1 ? number(study.front) : best ? values(best) : "–", best ? el("a", { href: path("studies", study.study, "trials", best.number) }, `trial ${best.number}`) : null),
      tile("Slots", `${counts.running} of ${study.slots}`, "busy"),
      tile("Time", span(study.wall_seconds), `${span(study.busy_seconds)} of slots`),
      tile("Lost and recovered", number(study.losses), study.losses === 1 ? "process" : "processes"),
      Object.entries(study.budgets).filter(([name]) => name !== "trials").map(([name, budget]) =>
        tile(name.replaceAll("_", " "), `${number(budget.used, 3)} of ${number(budget.allowed, 3)}`)));
    const [running, ...ended] = tablesOf(study, this.store);
    fill(this.running, study.is_over ? [] : running);
    fill(this.tables, ended);
  }

  // The buttons stay the same for as long as they do the same.
  drawActions() {
    const kind = JSON.stringify([this.study.offers, this.study.num_failed]);
    if (this.drawnActions === kind) return;
    this.drawnActions = kind;
    fill(this.actions, actionsFor(() => this.study, () => this.reload()));
  }

  async reload() {
    try {
      const study = await get(this.api, this.around.signal);
      if (study.directions.length === this.numValues) this.draw(study);
      else this.around.again();
    } catch (error) { this.around.trouble(error.message); }
  }
}

function notesOf(study, hasResults) {
  const told = [];
  if (study.stalled) told.push(["problem", study.stalled]);
  if (study.wish === "stop") told.push(["", study.is_over ? "It was stopped: Resume lets it go on, and take orders again." : "It was stopped: no further trial begins, and those that run go to their end. Resume lets it go on."]);
  if (study.ended_by) told.push(["", `Ended by ${study.ended_by}`]);
  study.waits_for.forEach((reason) => told.push(["", `Waits: ${reason}`]));
  study.put_aside.forEach((reason) => told.push(["problem", reason]));
  study.other_code.forEach((reason) => told.push(["problem", reason]));
  if (study.end_problem) told.push(["problem", study.end_problem]);
  if (hasResults === false && study.best) told.push(["", "The results are on the orchestrator's machine: here are the best and the latest trials; the charts are where `trialfleet dashboard` runs beside it."]);
  const notes = told.map(([kind, text]) => el("p", { class: kind || "note" }, text));
  if (study.traceback) notes.push(el("details", {}, el("summary", {}, "The traceback of the failures that ended it"), el("pre", {}, study.traceback)));
  if (!study.slots && study.state === "running") notes.push(code("celery -A workers worker"));
  return notes;
}

function tablesOf(study, store) {
  const link = (trial) => el("a", { href: path("studies", study.study, "trials", trial.number) }, String(trial.number));
  const several = study.directions.length > 1;
  const running = study.running.map((trial) => [link(trial), el("span", { class: "params" }, params(trial.params)), number(trial.attempt), number(Math.max(trial.step, store.steps[trial.number] ?? 0)), number(store.last[trial.number] ?? trial.value), trial.activity ?? "trains"]);
  const rows = (trials) => trials.map((trial) => [link(trial), badge(trial.state), el("span", { class: "params" }, trial.error ? trial.error.split("\n", 1)[0].slice(0, 160) : params(trial.params)), values(trial), number(trial.attempts), span(trial.seconds)]);
  const ended = [{ name: "Trial", number: true }, { name: "State" }, { name: "Parameters, or what went wrong", wide: true }, { name: study.metrics[0] ?? "Value", number: true }, { name: "Attempts", number: true, minor: true }, { name: "Took", number: true, minor: true }];
  return [
    section("Running", table("Running trials", [{ name: "Trial", number: true }, { name: "Parameters", wide: true }, { name: "Attempt", number: true, minor: true }, { name: "Step", number: true }, { name: "Last value", number: true }, { name: "Now", minor: true }], running, "Nothing runs at the moment.")),
    section(several ? "On the Pareto front" : "Best", table("Best trials", ended, rows(study.top), "No trial is complete yet.")),
    section("Latest", table("Latest trials", ended, rows([...study.recent].reverse().slice(0, 8)), "No trial has ended yet.")),
  ];
}

function section(title, ...children) { return el("section", { class: "block" }, el("h2", {}, title), children); }
export { plural };
