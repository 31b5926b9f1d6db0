// Builds elements; text is always text, whoever wrote it.

export function el(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "share") node.style.setProperty("--share", String(value));
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

// Replaces what is in an element, and leaves the focus where it was.
export function fill(node, ...children) {
  const held = document.activeElement;
  const id = held && node.contains(held) ? held.id || held.getAttribute("href") : null;
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
  if (!id) return;
  const again = [...node.querySelectorAll("[id],[href]")]
    .find((each) => each.id === id || each.getAttribute("href") === id);
  if (again) again.focus({ preventScroll: true });
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
