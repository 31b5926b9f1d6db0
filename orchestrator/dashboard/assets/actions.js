// What may be asked of a study: buttons and forms, each with what it will do.

import { el } from "./dom.js";
import { hasToken, post } from "./server.js";
import { path, plural } from "./words.js";

const said = () => document.getElementById("said");

export function say(text, isProblem = false) {
  const node = el("p", { class: isProblem ? "problem" : null }, text);
  said().replaceChildren(node);
  clearTimeout(say.timer);
  say.timer = setTimeout(() => node.remove(), 8000);
}

async function ask(study, verb, body) {
  const told = await post(`/api${path("studies", study, verb)}`, body);
  say(`${study}: ${told.done}`);
  return told;
}

const NOTES = {
  pause: "Running trials save a checkpoint and go back to the queue; nothing is lost.",
  resume: "The study goes on; trials that have ended stay so.",
  stop: "No further trial is begun; those that run go to their end.",
  cancel: "Trials that run end now as cancelled; what they made is kept.",
  retry: "Parameters of trials that failed or died run again, as new trials on top.",
};

// What each verb is called, and what a click on it does first.
const VERBS = {
  resume: ["Resume", (study, done) => order(study, "resume", {}, done)],
  pause: ["Pause", (study, done) => confirm(study, "pause", done)],
  stop: ["Stop", (study, done) => confirm(study, "stop", done)],
  cancel: ["Cancel", (study, done) => confirm(study, "cancel", done)],
  enqueue: ["Enqueue…", (study, done) => enqueue(study, done)],
  extend: ["Extend…", (study, done) => extend(study, done)],
  retry: ["Retry", (study, done) => confirm(study, "retry", done)],
};

// The buttons of what the server says that a study takes.
export function actionsFor(study, onDone) {
  return study.offers.filter((verb) => VERBS[verb]).map((verb) => {
    const [text, begin] = VERBS[verb];
    const said = verb === "retry" ? `Retry ${plural(study.num_failed, "failed trial")}` : text;
    return actionButton(`do-${verb}`, said, { class: verb === "cancel" ? "danger" : null, title: NOTES[verb] }, () => begin(study, onDone));
  });
}

function actionButton(id, text, given, onclick) {
  const locked = hasToken() ? {} : { disabled: "disabled", title: "acting takes the token: the link that was printed has it" };
  return el("button", { type: "button", id, ...given, ...locked, onclick }, text);
}

export function retryButton(study, number, onDone) {
  return actionButton("do-retry", "Retry", { title: "Its parameters run again, as a new trial." }, () => order({ study }, "retry", { numbers: [number] }, onDone));
}

function order(study, verb, body, onDone) {
  ask(study.study, verb, body).then(onDone, (error) => say(error.message, true));
}

function dialogue(title, parts, verb, read, study, onDone) {
  const problem = el("p", { class: "problem", role: "alert" });
  const opener = document.activeElement;
  const dialog = el("dialog", { "aria-labelledby": "ask-title" }, el("form", { method: "dialog" },
    el("h2", { id: "ask-title" }, title), parts, problem,
    el("div", { class: "buttons" },
      el("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Back"),
      el("button", { type: "submit", class: verb === "cancel" ? "danger" : "main" }, title.replace(/ .*|…/g, "")))));
  dialog.addEventListener("close", () => { dialog.remove(); (document.getElementById(opener.id) ?? opener).focus(); });
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try { await ask(study.study, verb, read()); dialog.close(); onDone(); }
    catch (error) { problem.textContent = error.message; }
  });
  document.body.append(dialog);
  dialog.showModal();
}

function confirm(study, verb, onDone) {
  const now = el("input", { type: "checkbox", id: "ask-now" });
  const parts = [el("p", {}, NOTES[verb])];
  if (verb === "pause") parts.push(el("label", { class: "check" }, now, " also end trials that never report, after 30 s; they begin again later"));
  dialogue(`${verb[0].toUpperCase() + verb.slice(1)} ${study.study}`, parts, verb, () => (verb === "pause" ? { now: now.checked } : {}), study, onDone);
}

function enqueue(study, onDone) {
  const inputs = Object.entries(study.space).map(([name, dimension], at) => [name, dimension, input(name, dimension, at)]);
  const free = inputs.length ? null : el("textarea", { id: "ask-params", rows: 4, placeholder: '{"learning_rate": 0.001}' });
  const parts = [
    el("p", {}, "One trial with parameters of yours, on top of the study's trials. What you leave open, the sampler draws."),
    inputs.map(([name, dimension, node]) => el("div", { class: "field" }, el("label", { for: node.id }, name, el("small", {}, ` ${range(dimension)}`)), node)),
    free ? el("div", { class: "field" }, el("label", { for: "ask-params" }, "Parameters, as JSON"), free) : null,
  ].filter(Boolean);
  const read = () => {
    if (free) return { params: JSON.parse(free.value) };
    const given = inputs.filter(([, , node]) => node.value !== "").map(([name, dimension, node]) =>
      [name, dimension.type === "categorical" ? dimension.choices[Number(node.value)] : exact(name, dimension, node.value)]);
    return { params: Object.fromEntries(given) };
  };
  dialogue(`Enqueue a trial`, parts, "enqueue", read, study, onDone);
}

// A number as it was written: of large whole ones a browser would send another.
function exact(name, dimension, text) {
  const value = Number(text);
  if (dimension.type === "int" && !Number.isInteger(value)) throw new Error(`${name}: ${text} is no whole number`);
  if (dimension.type === "int" && !Number.isSafeInteger(value)) throw new Error(`${name}: ${text} is more than this page can send as it is: trialfleet enqueue can`);
  return value;
}

function input(name, dimension, at) {
  const id = `ask-${at}`;
  if (dimension.type !== "categorical") {
    return el("input", { id, name, type: "number", step: "any", min: dimension.low, max: dimension.high, placeholder: "drawn" });
  }
  return el("select", { id, name }, el("option", { value: "" }, "drawn"), dimension.choices.map((choice, place) => el("option", { value: place }, String(choice))));
}

function range(dimension) {
  if (dimension.type === "categorical") return "";
  return `${dimension.low} to ${dimension.high}${dimension.log ? ", log" : ""}`;
}

function extend(study, onDone) {
  const own = study.wanted - (study.given ?? 0);
  const trials = el("input", { id: "ask-trials", type: "number", min: own, step: 1, placeholder: String(own) });
  const timeout = el("input", { id: "ask-timeout", type: "text", placeholder: "2h, 90m, 1d" });
  const space = el("input", { id: "ask-space", type: "text", placeholder: "space.learning_rate.high=0.1" });
  const parts = [el("p", {}, "The study runs for longer, or in a wider space; one that is over goes on."),
    ...[[trials, "Trials in all"], [timeout, "Of all its time"], [space, "A wider space"]].map(([node, text]) =>
      el("div", { class: "field" }, el("label", { for: node.id }, text), node))];
  const read = () => ({
    ...(trials.value ? { trials: Number(trials.value) } : {}), ...(timeout.value ? { timeout: timeout.value } : {}),
    ...(space.value ? { settings: [space.value] } : {}),
  });
  dialogue("Extend the study", parts, "extend", read, study, onDone);
}
