// What may be asked of a study: buttons and forms, each with what it will do.

import { el } from "./dom.js";
import { dialogue, field, paramsForm } from "./forms.js";
import { hasToken, post } from "./server.js";
import { path, plural } from "./words.js";

const said = () => document.getElementById("said");

export function say(text, isProblem = false) {
  const node = el("p", { class: isProblem ? "problem" : null }, text);
  said().replaceChildren(node);
  clearTimeout(say.timer);
  say.timer = setTimeout(() => node.remove(), 8000);
}

// `body` is JSON, as it is sent.
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

// The buttons of what the server says that a study takes; `now` gives the study as it is at a click.
export function actionsFor(now, onDone) {
  const study = now();
  return study.offers.filter((verb) => VERBS[verb]).map((verb) => {
    const [text, begin] = VERBS[verb];
    const said = verb === "retry" ? `Retry ${plural(study.num_failed, "failed trial")}` : text;
    return actionButton(`do-${verb}`, said, { class: verb === "cancel" ? "danger" : null, title: NOTES[verb] }, () => begin(now(), onDone));
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
  ask(study.study, verb, JSON.stringify(body)).then(onDone, (error) => say(error.message, true));
}

function confirm(study, verb, onDone) {
  const now = el("input", { type: "checkbox", id: "ask-now" });
  const parts = [el("p", {}, NOTES[verb])];
  if (verb === "pause") parts.push(el("label", { class: "check" }, now, " also end trials that never report, after 30 s; they begin again later"));
  const body = () => (verb === "pause" ? { now: now.checked } : {});
  dialogue(`${verb[0].toUpperCase() + verb.slice(1)} ${study.study}`, parts,
    { verb, study, send: () => ask(study.study, verb, JSON.stringify(body())).then(() => { onDone(); }) });
}

function enqueue(study, onDone) {
  const { parts, adapt, read } = paramsForm(study);
  dialogue("Enqueue a trial", parts, { verb: "enqueue", study, adapt, send: async () => { await ask(study.study, "enqueue", read()); onDone(); } });
}

function extend(study, onDone) {
  const trials = el("input", { id: "ask-trials", type: "number", step: 1 });
  const timeout = el("input", { id: "ask-timeout", type: "text", placeholder: "2h, 90m, 1d" });
  const space = el("input", { id: "ask-space", type: "text", placeholder: "space.learning_rate.high=0.1" });
  const parts = [el("p", {}, "The study runs for longer, or in a wider space; one that is over goes on."),
    field("Trials in all", trials), field("Of all its time", timeout), field("A wider space", space)];
  const adapt = ({ wanted, given }) => { trials.min = trials.placeholder = String(wanted - (given ?? 0)); };
  adapt(study);
  const body = () => ({
    ...(trials.value ? { trials: Number(trials.value) } : {}), ...(timeout.value ? { timeout: timeout.value } : {}),
    ...(space.value ? { settings: [space.value] } : {}),
  });
  dialogue("Extend the study", parts, { verb: "extend", study, adapt, send: () => ask(study.study, "extend", JSON.stringify(body())).then(() => { onDone(); }) });
}
