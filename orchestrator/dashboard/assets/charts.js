// The charts, by plotly.js: loaded once, after the page is there. What users named is shown as text.

const FILE = "/assets/plotly-4.1.1.min.js";
const MANY = 1500;
let loading = null;

export function plotly() {
  if (globalThis.Plotly) loading ??= Promise.resolve(globalThis.Plotly); // a file that holds it
  loading ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = FILE;
    script.onload = () => done(globalThis.Plotly);
    script.onerror = () => { loading = null; failed(new Error("the charts' library did not load")); };
    document.head.append(script);
  });
  return loading;
}

// plotly.js reads some tags and entities in texts; of a name they are signs like others.
export function plain(text, limit = 60) {
  const shown = String(text).length > limit ? `${String(text).slice(0, limit)}…` : String(text);
  return shown.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("%{", "% {");
}

// For each of some names a label as short as is asked, and no two alike: long names differ in their ends as often.
export function labels(names, limit) {
  const found = new Map(), taken = new Set();
  const cut = (text) => (text.length > limit ? `${text.slice(0, Math.ceil(limit / 2))}…${text.slice(-Math.floor(limit / 2))}` : text);
  for (const name of new Set(names)) {
    const short = cut(String(name)) || "(empty)";
    let label = plain(short);
    for (let at = 2; taken.has(label); at += 1) label = plain(`${short} (${at})`);
    taken.add(label);
    found.set(name, label);
  }
  return found;
}

// A logarithmic axis for some numbers: some ten lines at most, however many powers of ten they span.
export function logarithmic(numbers) {
  const powers = numbers.filter((each) => each > 0).map(Math.log10);
  const decades = powers.length ? Math.max(...powers) - Math.min(...powers) : 0;
  return { type: "log", dtick: Math.max(1, Math.ceil(decades / 10)), exponentformat: "e" };
}

// Asked when it is needed: without a graphics card the answer alone takes a while.
let canWebGL;
function hasWebGL() {
  try { canWebGL ??= Boolean(document.createElement("canvas").getContext("webgl")); } catch { canWebGL = false; }
  return canWebGL;
}

export function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim(); }

// How a trial or an attempt ended: its colour, and the word for it.
export const ENDS = {
  COMPLETE: ["complete", "complete"], PRUNED: ["pruned", "pruned"], FAILED: ["failed", "failed"],
  DEAD: ["dead", "dead"], CANCELLED: ["cancelled", "cancelled"], RUNNING: ["running", "running"],
  DIED: ["dead", "process died"], LEASE_LOST: ["dead", "lease ran out"], BROKE: ["dead", "CUDA error"],
  OUT_OF_MEMORY: ["failed", "out of memory"], PAUSED: ["paused", "paused"], DRAINED: ["paused", "drained"],
};
const LOSSES = ["DIED", "LEASE_LOST", "BROKE", "FAILED", "OUT_OF_MEMORY", "LOST"];

const BASE = { family: "system-ui, sans-serif", size: 12 };

function layout(given = {}) {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true, tickfont: { color: colour("soft") } };
  const { xaxis, yaxis, ...rest } = given;
  const isNarrow = innerWidth < 600;
  const place = isNarrow ? { y: -0.3, yanchor: "top", entrywidth: 0.5, entrywidthmode: "fraction" } : { y: 1.02, yanchor: "bottom" };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { ...BASE, color: colour("text") }, margin: { l: 56, r: 16, t: 8, b: 44 }, height: 320,
    hovermode: "closest", hoverlabel: { align: "left", font: { ...BASE } }, showlegend: true,
    legend: { orientation: "h", x: 0, ...place, font: { color: colour("soft"), size: isNarrow ? 11 : 12 } },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, uirevision: "kept", dragmode: "zoom", ...rest,
  };
}

const CONFIG = { displayModeBar: false, responsive: true, displaylogo: false, showTips: false, doubleClick: "reset+autosize" };

// `onTrial` is given the trial of a point that is clicked, and the click.
export async function draw(node, traces, given, onTrial = null) {
  const library = await plotly();
  if (!node.isConnected) return;
  await library.react(node, traces, layout(given), CONFIG);
  if (onTrial && !clickable.has(node)) makeClickable(node, onTrial);
}

const clickable = new WeakSet();
const DOUBLE_CLICK_MS = 350;

function makeClickable(node, onTrial) {
  clickable.add(node);
  const trialOf = (found) => found.points.map((point) => point.customdata).find((each) => Number.isInteger(each));
  let due = null; // a second click means the axes
  node.on("plotly_click", (found) => {
    const trial = trialOf(found);
    clearTimeout(due);
    if (trial !== undefined) due = setTimeout(() => onTrial(trial, found.event), DOUBLE_CLICK_MS);
  });
  node.on("plotly_doubleclick", () => clearTimeout(due));
  node.on("plotly_hover", (found) => node.classList.toggle("at-trial", trialOf(found) !== undefined));
  node.on("plotly_unhover", () => node.classList.remove("at-trial"));
}

export async function drop(node) { if (loading) (await loading).purge(node); }

// So many of an array's places at most, evenly chosen, the last one among them.
export function some(places, most = MANY) {
  if (places.length <= most) return places;
  const far = places.length / most;
  return Array.from({ length: most }, (_, at) => places[Math.min(places.length - 1, Math.round((at + 1) * far) - 1)]);
}

const of = (array, places) => places.map((at) => array[at]);
const isBetter = (direction) => (direction === "maximize" ? (a, b) => a > b : (a, b) => a < b);

export function bestSoFar(store, direction) {
  const better = isBetter(direction);
  const x = [], y = [];
  let best = null;
  store.states.forEach((state, at) => {
    const value = store.values[0]?.[at];
    if (state !== "C" || value === null || value === undefined || (best !== null && !better(value, best))) return;
    best = value;
    x.push(at);
    y.push(value);
  });
  if (x.length) { x.push(store.states.length - 1); y.push(best); }
  return { x, y };
}

export function history(store, study) {
  const kinds = [["C", "complete", "complete", "circle"], ["P", "pruned", "pruned, last report", "circle-open"],
    ["V", "infeasible, violates a constraint", "cancelled", "diamond-open"]];
  const traces = kinds.map(([letter, name, hue, symbol]) => {
    const value = (at) => (letter === "P" ? store.last[at] : store.values[0]?.[at]);
    let places = store.states.flatMap((state, at) => (state === letter && value(at) !== null && value(at) !== undefined ? [at] : []));
    const all = places.length;
    places = some(places);
    const said = letter === "P" ? hue : name;
    return {
      type: "scatter", mode: "markers", name: all > places.length ? `${said} (${places.length} of ${all} drawn)` : said,
      x: places, y: places.map(value), customdata: places, text: places.map((at) => `trial ${at}<br>${plain(value(at))}`),
      hoverinfo: "text", marker: { color: colour(letter === "P" ? "pruned" : hue), size: all > 300 ? 4 : 7, symbol, opacity: letter === "C" ? 0.75 : 0.6 },
    };
  }).filter((trace) => trace.x.length);
  const best = bestSoFar(store, study.directions[0]);
  traces.push({ type: "scatter", mode: "lines", name: "best so far", ...best, customdata: best.x.slice(0, -1), line: { shape: "hv", color: colour("accent"), width: 2.5 }, hoverinfo: "y+name" });
  return [traces, { xaxis: { title: { text: "trial" } }, yaxis: { title: { text: plain(study.metrics[0] ?? "value") } } }];
}

export function curves(found, study) {
  const traces = found.map((curve) => ({
    type: "scatter", mode: curve.steps.length > 1 ? "lines" : "markers", x: curve.steps, y: curve.values, name: `trial ${curve.trial}`, customdata: curve.steps.map(() => curve.trial),
    line: { color: colour(LETTERS[curve.state]), width: curve.state === "O" ? 2.5 : 1.4 }, opacity: curve.state === "P" ? 0.5 : 0.85,
    marker: { color: colour(LETTERS[curve.state]) }, hoverinfo: "x+y+name",
  }));
  return [traces, { showlegend: false, xaxis: { title: { text: "step" } }, yaxis: { title: { text: plain(study.metrics[0] ?? "value") } } }];
}

export const LETTERS = { C: "complete", P: "pruned", F: "failed", D: "dead", X: "cancelled", O: "running", R: "paused", V: "cancelled" };

export function importances(found, study) {
  const names = Object.keys(found.metrics[0] ?? {}).reverse();
  const shown = labels(names, 28);
  const share = (shares, name) => (Object.hasOwn(shares, name) ? shares[name] : 0);
  const traces = found.metrics.map((shares, at) => ({
    type: "bar", orientation: "h", y: names.map((name) => shown.get(name)), x: names.map((name) => share(shares, name)),
    name: plain(study.metrics[at] ?? `value ${at + 1}`), marker: { color: at ? colour("pruned") : colour("accent") },
    text: names.map((name) => share(shares, name).toFixed(2)), textposition: "auto", hoverinfo: "x+y",
  }));
  return [traces, { height: Math.max(160, 60 + 34 * names.length * Math.max(1, traces.length * 0.7)), showlegend: traces.length > 1,
    xaxis: { range: [0, 1.05], title: { text: "share" } }, yaxis: { type: "category", title: { text: "" } } }];
}

export function slice(store, study, name, at = 0) {
  const all = store.states.flatMap((state, each) => (state === "C" && store.params[name]?.[each] !== null && store.params[name]?.[each] !== undefined ? [each] : []));
  const places = some(all);
  const given = of(store.params[name], places);
  const words = labels(given.filter((each) => typeof each === "string"), 24);
  const x = given.map((each) => words.get(each) ?? each);
  return [[{
    type: "scatter", mode: "markers", x, y: of(store.values[at], places), customdata: places, text: places.map((each, place) => `trial ${each}<br>${plain(given[place])}<br>${plain(store.values[at][each])}`), hoverinfo: "text",
    marker: { size: 6, opacity: 0.8, color: places, colorscale: [[0, colour("faint")], [1, colour("accent")]], showscale: false },
  }], { height: 240, showlegend: false, xaxis: { title: { text: plain(name, 32) }, ...(words.size ? { type: "category" } : study.logs.includes(name) ? logarithmic(x) : {}) },
    yaxis: { title: { text: plain(study.metrics[at] ?? "value") } } }, { drawn: places.length, all: all.length }];
}

export function parallel(store, study, names) {
  if (!hasWebGL()) return "This browser has no WebGL, which this chart is drawn with.";
  const all = store.states.flatMap((state, at) => (state === "C" && Number.isFinite(store.values[0]?.[at]) ? [at] : []));
  if (!all.length) return "No trial is complete with a value that an axis holds.";
  const better = isBetter(study.directions[0]);
  const best = [...all].sort((a, b) => (better(store.values[0][a], store.values[0][b]) ? -1 : 1)).slice(0, MANY / 4);
  const places = [...new Set([...best, ...some(all, MANY / 4)])];
  const dimensions = names.map((name) => dimension(name, of(store.params[name], places), study.logs.includes(name)));
  const values = of(store.values[0], places);
  dimensions.push({ label: plain(study.metrics[0] ?? "value", 18), values });
  return [[{
    type: "parcoords", dimensions, line: { color: values, colorscale: [[0, colour("faint")], [1, colour("accent")]], reversescale: study.directions[0] === "minimize", showscale: false },
    labelfont: { color: colour("text") }, tickfont: { color: colour("soft") }, rangefont: { color: "rgba(0,0,0,0)" }, labelangle: names.length > 5 ? -20 : 0, labelside: "top",
  }], { height: 340, margin: { l: 70, r: 60, t: names.length > 5 ? 96 : 56, b: 24 } }, { drawn: places.length, all: all.length }];
}

function dimension(name, values, log) {
  const label = plain(name, 18);
  if (values.some((each) => typeof each === "string")) {
    const said = values.map((each) => String(each ?? "–"));  // of a trial that was not asked for it
    const words = [...new Set(said)].sort();
    return { label, values: said.map((each) => words.indexOf(each)), tickvals: words.map((_, at) => at), ticktext: [...labels(words, 14).values()], range: [-0.5, words.length - 0.5] };
  }
  if (!log) return { label, values: values.map((each) => each ?? NaN) };
  const logs = values.map((each) => (each > 0 ? Math.log10(each) : NaN));
  const finite = logs.filter(Number.isFinite);
  const least = Math.min(...finite), most = Math.max(...finite);
  const from = Math.floor(least), to = Math.ceil(most);
  const far = Math.max(1, Math.ceil((most - least) / 10));
  const ticks = Array.from({ length: Math.max(0, Math.floor((to - from) / far) + 1) }, (_, at) => from + at * far).filter((each) => each >= least && each <= most);
  return { label, values: logs, tickvals: ticks, ticktext: ticks.map((each) => `1e${each}`) };
}

export function pareto(store, study, front) {
  const complete = store.states.flatMap((state, at) => (state === "C" ? [at] : []));
  const isOn = new Set(front);
  const groups = [["dominated", some(complete.filter((at) => !isOn.has(at))), "faint", 6], ["Pareto front", complete.filter((at) => isOn.has(at)), "accent", 10]];
  const traces = groups.map(([name, places, hue, size]) => ({
    type: "scatter", mode: "markers", name, x: of(store.values[0], places), y: of(store.values[1], places), customdata: places,
    text: places.map((at) => `trial ${at}<br>${store.values.map((each, axis) => `${plain(study.metrics[axis] ?? `value ${axis + 1}`)} ${plain(each[at])}`).join("<br>")}`),
    hoverinfo: "text", marker: { size, color: colour(hue) },
  }));
  return [traces, { xaxis: { title: { text: plain(study.metrics[0] ?? "value 1") } }, yaxis: { title: { text: plain(study.metrics[1] ?? "value 2") } } }];
}

// The trials than which no other is better in one value and worse in none.
export function frontOf(store, directions) {
  const signs = directions.map((each) => (each === "maximize" ? -1 : 1));
  const cost = (at, axis) => signs[axis] * store.values[axis][at];
  const places = store.states.flatMap((state, at) => (state === "C" && directions.every((_, axis) => store.values[axis]?.[at] !== null) ? [at] : []));
  places.sort((a, b) => { for (const axis of signs.keys()) { const far = cost(a, axis) - cost(b, axis); if (far) return far; } return a - b; });
  const front = [];
  for (const at of places) {
    const isWorse = front.some((other) => signs.every((_, axis) => cost(other, axis) <= cost(at, axis)) && signs.some((_, axis) => cost(other, axis) < cost(at, axis)));
    if (!isWorse) front.push(at);
  }
  return front;
}

// The time of the latest bars, some for each lane: days of them would be too narrow to be seen.
function latest(bars, numLanes, now) {
  const from = bars[Math.max(0, bars.length - 15 * numLanes)].begun;
  const to = Math.max(...bars.map((bar) => bar.ended ?? now));
  return [(from - (to - from) * 0.01) * 1000, (to + (to - from) * 0.01) * 1000];
}

export function timeline(bars, now) {
  const shown = bars.slice(-1000);
  const lanes = [...new Set(shown.map((bar) => bar.lane))].sort((a, b) => b.localeCompare(a, "en", { numeric: true }));
  const hosts = new Set(lanes.map((lane) => lane.slice(0, lane.indexOf(" "))));
  const said = (lane) => (hosts.size > 1 ? lane : lane.slice(lane.indexOf(" ") + 1));
  const shownAs = labels(lanes.map(said), 34);
  const name = (lane) => shownAs.get(said(lane));
  const groups = new Map();
  for (const bar of shown) {
    const [hue, word] = ENDS[bar.end] ?? ["cancelled", bar.end.toLowerCase().replaceAll("_", " ")];
    groups.set(word, { hue, bars: [...(groups.get(word)?.bars ?? []), bar] });
  }
  const end = (bar) => bar.ended ?? now;
  const traces = [...groups].map(([word, { hue, bars: each }]) => ({
    type: "bar", orientation: "h", name: word, base: each.map((bar) => bar.begun * 1000), x: each.map((bar) => Math.max(50, (end(bar) - bar.begun) * 1000)),
    y: each.map((bar) => name(bar.lane)), customdata: each.map((bar) => bar.trial), width: 0.62, marker: { color: colour(hue), line: { color: colour("card"), width: 1 } },
    text: each.map((bar) => String(bar.trial)), textposition: "inside", insidetextanchor: "middle", insidetextfont: { color: colour("on-mark"), size: 11 }, constraintext: "inside",
    hovertext: each.map((bar) => [`trial ${bar.trial}, attempt ${bar.attempt}`, `${word} after ${(end(bar) - bar.begun).toFixed(1)} s`, bar.from_step ? `from the checkpoint of step ${bar.from_step}` : "", plain(bar.why, 90)].filter(Boolean).join("<br>")), hoverinfo: "text",
  }));
  const lost = shown.filter((bar) => LOSSES.includes(bar.end) && bar.ended);
  const next = (bar) => shown.find((other) => other.trial === bar.trial && other.begun >= bar.ended && other.id > bar.id);
  const links = { x: [], y: [] };
  for (const bar of lost) {
    const after = next(bar);
    if (after) { links.x.push(bar.ended * 1000, after.begun * 1000, null); links.y.push(name(bar.lane), name(after.lane), null); }
  }
  if (links.x.length) traces.push({ type: "scatter", mode: "lines", name: "goes on", ...links, line: { color: colour("text"), width: 1.6, dash: "dot" }, hoverinfo: "skip" });
  if (lost.length) traces.push({
    type: "scatter", mode: "markers", name: "lost", x: lost.map((bar) => bar.ended * 1000), y: lost.map((bar) => name(bar.lane)), customdata: lost.map((bar) => bar.trial),
    marker: { symbol: "x", size: 11, color: colour("dead"), line: { color: colour("card"), width: 1.5 } },
    hovertext: lost.map((bar) => `trial ${bar.trial}: ${plain(bar.why || bar.end, 90)}`), hoverinfo: "text",
  });
  return [traces, { barmode: "overlay", bargap: 0.2, height: Math.max(150, (innerWidth < 600 ? 190 : 92) + 30 * lanes.length), xaxis: { type: "date", range: latest(shown, lanes.length, now), tickangle: 0, nticks: innerWidth < 600 ? 3 : 10 },
    yaxis: { type: "category", categoryorder: "array", categoryarray: lanes.map(name), title: { text: "" } } }];
}
