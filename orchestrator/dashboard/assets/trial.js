// One trial: its parameters, its curve, its attempts, and why each ended.

import { retryButton } from "./actions.js";
import * as charts from "./charts.js";
import { badge, el, fill, table, tile } from "./dom.js";
import { get, follow } from "./server.js";
import { clock, number, path, span, text } from "./words.js";

export async function showTrial(around, study, trial) {
  around.crumbs(["Fleet", "/"], [study, path("studies", study)], [`trial ${trial}`, path("studies", study, "trials", trial)]);
  const api = `/api${path("studies", study, "trials", trial)}`;
  const plot = el("div", { class: "plot", id: "plot-curve", role: "img", "aria-label": "The trial's curve" });
  const made = partsOf(plot);
  let found = null;
  const look = async () => {
    try { found = await get(api, around.signal); } catch (error) { if (found) around.trouble(error.message); else around.failed(error); return; }
    if (!made.isShown) around.place(...made.nodes);
    made.isShown = true;
    draw(made, study, found, plot, look);
  };
  await look();
  if (!found) return;
  addEventListener("colours", () => drawCurve(found, plot), { signal: around.signal });
  // the stream tells that something of it changed; the trial is read again then
  let isDue = false;
  const timer = setInterval(() => { if (isDue) { isDue = false; look(); } }, 1000);
  around.signal.addEventListener("abort", () => clearInterval(timer));
  follow(() => `/api/live?study=${encodeURIComponent(study)}&trial=${encodeURIComponent(trial)}`, {
    on: { news: () => { isDue = true; }, link: (state) => around.link(state), trouble: (message) => around.trouble(message), refused: (error) => around.failed(error) },
    signal: around.signal,
  });
}

// The parts of the page, from which the curve stays the same element.
function partsOf(plot) {
  const parts = { head: el("section", { class: "head" }), actions: el("div", { class: "actions" }), tiles: el("dl", { class: "tiles" }), error: el("div", {}),
    params: el("div", {}), attempts: el("div", {}), printed: el("div", {}), life: el("ol", { class: "life" }) };
  const note = el("p", { class: "muted" }, "It has reported no value in between.");
  const block = (title, ...children) => el("section", { class: "block" }, el("h2", {}, title), children);
  const nodes = [parts.head, parts.actions, parts.tiles, parts.error,
    el("div", { class: "halves" }, block("Parameters", parts.params), block("Curve", note, plot)),
    block("Attempts", parts.attempts), parts.printed,
    el("details", { class: "block" }, el("summary", {}, "Its life in sentences"), parts.life)];
  return { parts, nodes, note };
}

function draw({ parts, note }, study, found, plot, again) {
  const { life, running } = found;
  const last = running?.value ?? null;
  const value = found.values ? found.values.map((each) => number(each)).join(", ") : number(last);
  fill(parts.head, el("div", { class: "title" }, el("h1", {}, `Trial ${life.trial}`), badge(life.state)),
    el("p", { class: "muted" }, life.is_ordered ? "people asked for these parameters" : `of ${study}`));
  fill(parts.tiles, tile(found.metrics.join(", ") || "Value", value, found.values || !running ? null : `at step ${running.step}`),
    tile("Attempts", number(life.attempts.length)), tile("Held a slot for", span(life.held_seconds)), tile("Steps made twice", number(life.steps_lost)));
  drawRetry(parts.actions, study, found, again);
  fill(parts.error, life.error ? el("div", { class: "wrong" }, el("strong", {}, "What went wrong"), el("pre", { tabindex: 0 }, life.error)) : null);
  fill(parts.params, table("Parameters", [{ name: "Name" }, { name: "Value", number: true }],
    Object.entries(life.params).map(([name, each]) => [name, el("span", { class: "value" }, text(each))]), "None are known here."));
  fill(parts.attempts, attempts(life));
  fill(parts.printed, printed(found.printed));
  fill(parts.life, found.sentences.map((each) => el("li", { class: each.startsWith("  ") ? "in" : null }, each.trim())));
  note.hidden = Boolean(found.curve?.steps.length);
  plot.hidden = !note.hidden;
  drawCurve(found, plot);
}

function drawRetry(node, study, { can_retry: can, life }, again) {
  if (node.dataset.of === `${can} ${life.retried_as}`) return; // a button that is about to be clicked stays
  node.dataset.of = `${can} ${life.retried_as}`;
  fill(node, can ? retryButton(study, life.trial, again) : null,
    life.retried_as.map((each) => el("a", { href: path("studies", study, "trials", each) }, `tried again as trial ${each}`)));
}

// What it printed: the last attempt's end is seen, the others' are a key away.
function printed(found) {
  if (!found.length) return null;
  const last = found[found.length - 1];
  const isOpen = (each) => document.getElementById(`printed-${each.attempt}`)?.open ?? each === last;
  return el("section", { class: "block" }, el("h2", {}, "What it printed"), found.map((each) =>
    el("details", { id: `printed-${each.attempt}`, open: isOpen(each) }, el("summary", {}, `Attempt ${each.attempt}`), el("pre", { tabindex: 0 }, each.lines.join("\n")))));
}

function attempts(life) {
  if (!life.attempts.length) return el("p", { class: "muted" }, "None has begun.");
  return el("ol", { class: "attempts" }, life.attempts.map((each) => {
    const end = each.ended_at === null ? "RUNNING" : each.ended_as === "QUEUED" && each.cause ? each.cause.toUpperCase() : each.ended_as;
    const [, word] = charts.ENDS[end] ?? ["", String(end).toLowerCase().replaceAll("_", " ")];
    const facts = [
      each.claimed_at ? `from ${clock(each.claimed_at)}` : null, each.held_seconds !== null ? `for ${span(each.held_seconds)}` : null,
      each.from_step !== null ? `from the checkpoint of step ${each.from_step}` : null, each.last_step !== null ? `to step ${each.last_step}` : null,
      each.steps_lost ? `${each.steps_lost} steps made again` : null, each.where,
    ];
    return el("li", { "data-end": (charts.ENDS[end] ?? ["cancelled"])[0] },
      el("div", {}, el("strong", {}, `Attempt ${each.number}`), " ", badge(word)),
      el("p", { class: "muted" }, facts.filter(Boolean).join(" · ")), each.why ? el("p", {}, each.why) : null);
  }));
}

function drawCurve(found, plot) {
  if (!found.curve?.steps.length) return;
  const hue = charts.LETTERS[found.curve.state];
  charts.draw(plot, [{ type: "scatter", mode: found.curve.steps.length > 60 ? "lines" : "lines+markers", x: found.curve.steps, y: found.curve.values, line: { color: charts.colour(hue), width: 2 }, marker: { color: charts.colour(hue), size: 5 }, hoverinfo: "x+y", name: "" }],
    { showlegend: false, height: 260, xaxis: { title: { text: "step" } }, yaxis: { title: { text: charts.plain(found.metrics[0] ?? "value") } } }).catch(() => {});
}
