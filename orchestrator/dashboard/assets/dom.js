// Builds elements; text is always text, whoever wrote it.

// Elements that something is to happen on: they are replaced, not adapted.
const listening = new WeakSet();

export function el(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) { node.addEventListener(name.slice(2), value); listening.add(node); }
    else if (name === "share") node.style.setProperty("--share", String(value));
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

// Has an element hold what is given, by changing what differs: what somebody is about to click, has
// the focus on or has scrolled stays the same element.
export function fill(node, ...children) {
  const fresh = document.createElement("div");
  fresh.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  adapt(node, fresh);
}

function adapt(node, fresh) {
  const before = [...node.childNodes], count = fresh.childNodes.length;
  [...fresh.childNodes].forEach((each, at) => {
    const old = before[at];
    if (!old) node.append(each);
    else if (!isAlike(old, each)) old.replaceWith(each);
    else if (each.nodeType === Node.TEXT_NODE) { if (old.data !== each.data) old.data = each.data; }
    else { adaptAttributes(old, each); adapt(old, each); }
  });
  while (node.childNodes.length > count) node.lastChild.remove();
}

function isAlike(old, each) {
  return old.nodeName === each.nodeName && old.id === each.id && !listening.has(old) && !listening.has(each);
}

function adaptAttributes(old, each) {
  for (const { name } of [...old.attributes]) if (name !== "style" && !each.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of each.attributes) if (name !== "style" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (old.style.cssText !== each.style.cssText) old.style.cssText = each.style.cssText;
}

export function table(caption, columns, rows, empty) {
  if (!rows.length && empty) return el("p", { class: "muted" }, empty);
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {},
      el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, columns.map((column) =>
        el("th", { scope: "col", class: kinds(column) }, column.name)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, at) =>
        el("td", { class: kinds(columns[at]) }, cell)))))));
}

// How a column is shown: numbers to the right, `minor` ones not on a phone.
function kinds(column) {
  return ["number", "wide", "minor"].filter((kind) => column[kind]).join(" ") || null;
}

export function badge(state) {
  return el("span", { class: "badge", "data-state": state.toLowerCase() }, state.toLowerCase().replaceAll("_", " "));
}

export function tile(label, value, note) {
  return el("div", { class: "tile" },
    el("dt", {}, label), el("dd", {}, value, note ? el("small", {}, note) : null));
}

export function code(text) { return el("code", { class: "command" }, text); }
