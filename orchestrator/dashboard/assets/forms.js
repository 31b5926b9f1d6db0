// The forms by which people order trials and extend studies. Numbers and choices travel as the texts
// that they are in JSON: a browser's own numbers are exact up to 2**53 alone.

import { el } from "./dom.js";
import { text } from "./words.js";

let open = null; // the form that is open, and how it follows its study

// Brings the open form up to date with its study; what is typed stays.
export function followStudy(study) { if (open?.study === study.study) open.adapt(study); }

// A dialogue that sends what `read` gives; what is refused is said in it.
export function dialogue(title, parts, { verb, study, send, adapt = () => {} }) {
  const problem = el("p", { class: "problem", role: "alert" });
  const opener = document.activeElement;
  const dialog = el("dialog", { "aria-labelledby": "ask-title" }, el("form", { method: "dialog" },
    el("h2", { id: "ask-title" }, title), parts, problem,
    el("div", { class: "buttons" },
      el("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Back"),
      el("button", { type: "submit", class: verb === "cancel" ? "danger" : "main" }, title.replace(/ .*|…/g, "")))));
  dialog.addEventListener("close", () => { open = null; dialog.remove(); (document.getElementById(opener.id) ?? opener).focus(); });
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try { await send(); dialog.close(); }
    catch (error) { problem.textContent = error.message; }
  });
  document.body.append(dialog);
  open = { study: study.study, adapt };
  dialog.showModal();
}

// The parts of a form for the parameters of one trial, how it follows its study, and what is typed, as JSON.
export function paramsForm(study) {
  const hasSpace = Object.keys(study.space).length > 0;
  const said = el("p", {}, "One trial with parameters of yours, on top of the study's trials. What you leave open, the sampler draws.");
  if (!hasSpace) {
    const free = el("textarea", { id: "ask-params", rows: 4, placeholder: '{"learning_rate": 0.001}' });
    return { parts: [said, field("Parameters, as JSON", free)], read: () => `{"params":${objectOf(free.value)}}` };
  }
  const fields = el("div", {}), inputs = new Map();
  const adapt = ({ space }) => Object.entries(space).forEach(([name, dimension]) => adaptInput(fields, inputs, name, dimension));
  adapt(study);
  return { parts: [said, fields], adapt, read: () => `{"params":{${[...inputs].flatMap(([name, input]) => given(name, input)).join(",")}}}` };
}

export function field(label, node, note = null) {
  return el("div", { class: "field" }, el("label", { for: node.id }, label, note), node);
}

function adaptInput(fields, inputs, name, dimension) {
  if (!inputs.has(name)) {
    const isChoice = dimension.type === "categorical";
    const node = el(isChoice ? "select" : "input", { id: `ask-${inputs.size}`, name, ...(isChoice ? {} : { type: "number", step: "any", placeholder: "drawn" }) });
    const note = el("small", {});
    inputs.set(name, { node, note });
    fields.append(field(name, node, note));
  }
  const input = inputs.get(name);
  input.dimension = dimension;
  if (dimension.type === "categorical") { fillChoices(input.node, dimension.choices_json); return; }
  input.note.textContent = ` ${dimension.low} to ${dimension.high}${dimension.log ? ", log" : ""}`;
  input.node.min = dimension.low;
  input.node.max = dimension.high;
}

function fillChoices(select, choices) {
  if (select.options.length === choices.length + 1) return; // a space only widens
  const chosen = select.value;
  const labels = choices.map(labelOf);
  const isAlone = (label) => labels.indexOf(label) === labels.lastIndexOf(label);
  select.replaceChildren(el("option", { value: "" }, "drawn"),
    ...choices.map((json, at) => el("option", { value: json }, isAlone(labels[at]) ? labels[at] : json)));
  select.value = chosen;
}

// What a choice is called: a text as it is, anything else as JSON, and so what could be taken for nothing.
export function labelOf(json) {
  if (!json.startsWith('"')) return json;
  const said = text(JSON.parse(json));
  return said.trim() ? said : json;
}

function given(name, { node, dimension }) {
  if (node.validity.badInput) throw new Error(`${name}: this is no number`);
  if (node.value === "") return [];
  return [`${JSON.stringify(name)}:${dimension.type === "categorical" ? node.value : numberOf(name, dimension, node.value)}`];
}

// A number as it was written, where JSON writes it so, too.
export function numberOf(name, dimension, written) {
  const isWhole = dimension.type === "int";
  if ((isWhole ? /^-?(0|[1-9]\d*)$/ : /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/).test(written)) return written;
  const value = Number(written);
  if (isWhole && !Number.isSafeInteger(value)) throw new Error(`${name}: ${written} is no whole number, or too large to be written so: write all its digits`);
  return String(value);
}

// An object as it was written.
export function objectOf(written) {
  let found;
  try { found = JSON.parse(written); } catch (error) { throw new Error(`This is no JSON: ${error.message}`); }
  if (found === null || typeof found !== "object" || Array.isArray(found)) throw new Error('Write an object: {"name": value}');
  return written;
}
