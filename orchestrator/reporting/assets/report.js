
// The charts of a report. This follows charts.js in one module: `draw`, `history` and the others
// are its own.

const data = JSON.parse(document.getElementById("data").textContent);
const all = { ...data.charts, states: [...data.charts.states] };
const PRINTED_WIDTH = 660;

// The study with one of its values alone, as charts of one value read it.
const only = (at) => ({ metrics: [data.metrics[at]], directions: [data.directions[at]], logs: data.logs });
const columns = (at) => ({ ...all, values: [all.values[at] ?? []] });
const isComplete = all.states.includes("C");

function contourOf({ names, logs, x, y, z }) {
  const shade = [[0, colour("card")], [1, colour("accent")]];
  const value = plain(data.metrics[0], 24);
  const points = some(all.states.flatMap((state, at) => (state === "C" && names.every((name) => all.params[name][at] !== null) ? [at] : [])), 400);
  const axis = (at) => ({ title: { text: plain(names[at], 32) }, ...(logs[at] ? logarithmic(at ? y : x) : {}) });
  return [[
    { type: "contour", x, y, z, colorscale: shade, reversescale: data.directions[0] === "minimize", ncontours: 12, line: { color: colour("line"), width: 0.6 },
      colorbar: { title: { text: value }, tickfont: { color: colour("soft") }, outlinewidth: 0, thickness: 14 }, hoverinfo: "x+y+z" },
    { type: "scatter", mode: "markers", x: points.map((at) => all.params[names[0]][at]), y: points.map((at) => all.params[names[1]][at]), marker: { size: 5, color: colour("text"), line: { color: colour("card"), width: 1 } },
      text: points.map((at) => `trial ${at}<br>${value} ${plain(all.values[0][at])}`), hoverinfo: "text" },
  ], { height: 400, showlegend: false, xaxis: axis(0), yaxis: axis(1) }];
}

const NONE = "No trial is complete yet.";

// By the end of its id, what a chart is made of: traces and layout, or why there is none.
function figure(id) {
  const [kind, at = "0"] = id.split("-");
  if (kind === "history") return history(columns(Number(at)), only(Number(at)));
  if (kind === "importances") return data.importances.problem ?? importances(data.importances, data);
  if (kind === "curves") return data.curves.length ? curves(prunedLast(), data) : "No trial has reported a value in between: trial.report(value, step).";
  if (kind === "pareto") return isComplete ? pareto(all, data, data.front) : NONE;
  if (kind === "contour") return contourOf(data.charts.contour);
  const now = Math.max(data.now ?? 0, ...data.timeline.map((bar) => bar.ended ?? bar.begun));
  return timeline(data.timeline, now);
}

// Those that ended early lie on top, where they can be seen.
const prunedLast = () => [...data.curves].sort((a, b) => Number(a.state === "P") - Number(b.state === "P"));

async function drawSlices(node, at) {
  const names = Object.keys(all.params).slice(0, data.metrics.length > 1 ? 6 : undefined);
  if (!isComplete || !names.length) return NONE;
  node.classList.add("slices");
  for (const [place, name] of names.entries()) {
    if (!node.children[place]) {
      const plot = document.createElement("div");
      plot.className = "plot";
      plot.setAttribute("role", "img");
      plot.setAttribute("aria-label", `${data.metrics[at]} by ${name}`);
      node.append(plot);
    }
    const [traces, given] = slice(columns(at), only(at), name);
    await draw(node.children[place], traces, given);
  }
  return undefined;
}

function tell(node, text) {
  node.hidden = true;
  node.parentElement.querySelector(".empty-note").textContent = text;
}

async function drawChart(node, width) {
  const id = node.id.slice("plot-".length);
  if (id.startsWith("slices-")) {
    const problem = await drawSlices(node, Number(id.slice("slices-".length)));
    if (problem) tell(node, problem);
    return;
  }
  const found = figure(id);
  if (typeof found === "string") { tell(node, found); return; }
  const [traces, given] = found;
  if (!traces.some((trace) => trace.x?.length)) { tell(node, "No trial has got that far yet."); return; }
  await draw(node, traces, width ? { ...given, width } : given);
}

const plots = () => [...document.querySelectorAll(".chart > .plot")];
const drawAll = (width) => Promise.all(plots().map((node) => drawChart(node, width)));

// On paper all is as by day, and as wide as a page.
addEventListener("beforeprint", () => {
  document.documentElement.dataset.theme = "light";
  document.querySelectorAll(".failures details").forEach((each) => { each.open = true; });
  drawAll(PRINTED_WIDTH);
});
addEventListener("afterprint", () => { document.documentElement.dataset.theme = "auto"; drawAll(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());

await drawAll();
document.documentElement.dataset.drawn = "yes";
