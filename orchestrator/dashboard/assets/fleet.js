// The fleet: its studies, its hosts, and the slots with their leases counting down.

import { badge, code, el, fill, table, tile } from "./dom.js";
import { follow } from "./server.js";
import { number, path, plural, span, standing, values } from "./words.js";

export function showFleet(around) {
  around.crumbs(["Fleet", "/"]);
  const studies = el("section", { "aria-labelledby": "studies-title" });
  const hosts = el("section", { "aria-labelledby": "hosts-title" });
  const tiles = el("dl", { class: "tiles" });
  let drawn = false;
  const news = (fleet) => {
    around.trouble(fleet.at_rest ? null : fleet.trouble);
    if (!drawn) around.place(el("h1", { class: "unseen" }, "Fleet"), tiles, studies, hosts);
    drawn = true;
    fill(tiles, tilesOf(fleet));
    drawStudies(studies, fleet.studies);
    drawHosts(hosts, fleet);
  };
  const on = { news, link: (state) => around.link(state), trouble: (message) => around.trouble(message), refused: (error) => around.failed(error) };
  follow(() => "/api/live", { on, signal: around.signal });
  const timer = setInterval(() => countDown(hosts), 250);
  around.signal.addEventListener("abort", () => clearInterval(timer));
}

function tilesOf(fleet) {
  const slots = fleet.processes.filter((each) => each.kind === "trial");
  const busy = slots.filter((each) => each.study !== null && !each.aside).length;
  const going = fleet.studies.filter((each) => each.state === "running").length;
  const hosts = new Set(fleet.processes.filter((each) => each.kind === "main").map((each) => each.host)).size;
  const aside = slots.filter((each) => each.aside).length;
  return [
    tile("Slots that train", `${busy} of ${slots.length}`, aside ? `${aside} take no trials` : null),
    tile("Hosts with workers", number(hosts)),
    tile("Studies running", `${going} of ${fleet.studies.length}`),
    tile("Processes lost", number(fleet.studies.reduce((sum, each) => sum + (each.losses ?? 0), 0)), "by trials so far"),
  ];
}

function drawStudies(section, studies) {
  const order = { running: 0, paused: 1, cancelling: 1 };
  const sorted = [...studies].sort((a, b) => (order[a.state] ?? 2) - (order[b.state] ?? 2) || a.study.localeCompare(b.study));
  const rows = sorted.map((each) => [
    el("a", { href: path("studies", each.study), class: "name" }, each.study),
    badge(standing(each)),
    each.trials ? progress(each) : el("span", { class: "muted" }, each.reason ?? "open it to see its results"),
    each.best ? values(each.best) : "–",
    each.trials ? number(each.trials.running) : "–",
    each.wall_seconds === undefined ? "–" : span(each.wall_seconds),
  ]);
  const columns = [{ name: "Study" }, { name: "State" }, { name: "Trials", wide: true }, { name: "Best", number: true },
    { name: "Running", number: true, minor: true }, { name: "Time", number: true, minor: true }];
  fill(section, el("h2", { id: "studies-title" }, "Studies"),
    rows.length ? table("Studies", columns, rows) : el("div", { class: "empty" },
      el("p", {}, "No study yet. Hand one in:"), code("trialfleet submit ops/studies/language-id.yaml"),
      el("p", {}, "or run one on this machine alone:"), code("trialfleet run ops/studies/language-id.yaml")));
}

export function progress(study) {
  const counts = study.trials;
  const kinds = ["complete", "pruned", "failed", "dead", "cancelled", "running", "paused"];
  const wanted = Math.max(study.wanted, 1);
  const ended = kinds.slice(0, 5).reduce((sum, kind) => sum + counts[kind], 0);
  const told = kinds.filter((kind) => counts[kind]).map((kind) => `${number(counts[kind])} ${kind}`).join(", ");
  return el("div", { class: "progress" },
    el("div", { class: "bar", role: "img", "aria-label": told || "none has begun", title: told },
      kinds.filter((kind) => counts[kind]).map((kind) => el("i", { "data-kind": kind, share: counts[kind] / wanted }))),
    el("span", { class: "number" }, `${number(ended)} / ${number(study.wanted)}`));
}

function drawHosts(section, fleet) {
  const hosts = group(fleet.processes);
  const cards = [...hosts].sort(([a], [b]) => a.localeCompare(b)).map(([host, members]) => card(host, members, fleet));
  const unreadable = fleet.unreadable.map((each) => el("p", { class: "problem" }, `${each.record}: ${each.reason}`));
  const hasWorkers = fleet.processes.some((each) => each.kind === "main");
  fill(section, el("h2", { id: "hosts-title" }, "Hosts"),
    fleet.at_rest ? el("p", { class: "empty" }, "No fleet runs here. These are the results that lie on this machine.") : null,
    hasWorkers || fleet.trouble ? null : el("div", { class: "empty" },
      el("p", {}, "No worker yet. Start one on each GPU box:"),
      code("FLEET_REDIS_URL=redis://HOST:6379/0 celery -A workers worker")),
    cards.length ? el("div", { class: "hosts" }, cards) : null,
    unreadable);
}

function group(processes) {
  const found = new Map();
  for (const each of processes) found.set(each.host, [...(found.get(each.host) ?? []), each]);
  return found;
}

function card(host, members, fleet) {
  const mains = members.filter((each) => each.kind === "main");
  const slots = members.filter((each) => each.kind === "trial");
  const loaders = members.filter((each) => each.kind === "loader").length;
  const queues = [...new Set(mains.flatMap((each) => each.queues))].join(", ");
  const busy = slots.filter((each) => each.study !== null).length;
  const driving = members.filter((each) => each.kind === "orchestrator");
  const facts = [mains.length || slots.length ? `${busy} of ${plural(slots.length, "slot")} busy` : null, queues && `queue ${queues}`, loaders && plural(loaders, "loader"),
    driving.length && `${plural(driving.length, "orchestrator")} (process ${driving.map((each) => each.pid).join(", ")})`];
  const problems = [...mains, ...slots].flatMap((each) => [...each.stalled, ...(each.aside ? [`process ${each.pid}: ${each.aside}`] : [])]);
  const rows = slots.sort((a, b) => place(a).localeCompare(place(b), "en", { numeric: true })).map((each) => [
    el("span", { class: "device" }, place(each)),
    doing(each),
    el("span", { class: "muted number" }, String(each.pid)),
    lease(each, fleet),
  ]);
  return el("article", { class: "card" },
    el("h3", {}, host, mains.some((each) => each.is_draining) ? badge("draining") : null, el("small", {}, facts.filter(Boolean).join(" · "))),
    problems.map((each) => el("p", { class: "problem" }, each)),
    !mains.length && !slots.length ? null : table(`Slots of ${host}`, [{ name: "Slot" }, { name: "Trial", wide: true }, { name: "Process", number: true, minor: true }, { name: "Lease", number: true }], rows,
      "This worker's slots are starting."));
}

function place(slot) {
  if (!slot.gpu) return "–";
  return slot.gpu.startsWith("cpu") ? `CPU${slot.gpu.slice(3)}` : `GPU ${slot.gpu}`;
}

function doing(slot) {
  if (slot.aside) return el("span", { class: "problem" }, "takes no trials");
  if (slot.study === null) return el("span", { class: "muted" }, slot.activity ?? "idle");
  return el("span", {},
    el("a", { href: path("studies", slot.study, "trials", slot.trial) }, `${slot.study} ${slot.trial}`),
    slot.activity ? el("small", {}, ` ${slot.activity}`) : null);
}

function lease(each, fleet) {
  const until = performance.now() / 1000 + each.lease_left_seconds;
  return el("span", { class: "lease", "data-until": until, "data-whole": fleet.lease_seconds, share: share(each.lease_left_seconds, fleet.lease_seconds) },
    `${each.lease_left_seconds.toFixed(0)} s`);
}

function share(left, whole) { return Math.max(0, Math.min(1, left / whole)); }

function countDown(section) {
  const now = performance.now() / 1000;
  for (const node of section.querySelectorAll(".lease")) {
    const left = Math.max(0, Number(node.dataset.until) - now);
    node.textContent = left ? `${left.toFixed(0)} s` : "ran out";
    node.style.setProperty("--share", String(share(left, Number(node.dataset.whole))));
  }
}
