// Numbers, times and parameters as people read them.

// A value that may be anything, in one text.
export function text(value) { return typeof value === "object" && value !== null ? JSON.stringify(value) : String(value); }

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return text(value);
  if (value === 0) return "0"; // also what is below it by nothing
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e7) ? value.toExponential(2) : String(Number(value.toPrecision(digits)));
}

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${String(minutes % 60).padStart(2, "0")} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function clock(seconds) {
  if (!seconds) return "–";
  const at = new Date(seconds * 1000);
  const isToday = at.toDateString() === new Date().toDateString();
  const time = at.toLocaleTimeString("en-GB");
  return isToday ? time : `${at.toLocaleDateString("sv-SE")} ${time}`; // of the same zone as the time
}

// A text in a line of others: what is long is cut, and whole on the page of its trial.
export function brief(text, limit = 80) { return text.length > limit ? `${text.slice(0, limit)}…` : text; }

export function params(given) {
  return Object.entries(given ?? {}).map(([name, value]) => `${brief(name)} ${brief(number(value))}`).join(" · ") || "–";
}

export function values(trial) {
  if (trial.values) return trial.values.map((each) => number(each)).join(", ");
  return number(trial.value);
}

export function plural(count, one, many = `${one}s`) { return `${number(count)} ${count === 1 ? one : many}`; }

export function path(...parts) { return `/${parts.map((part) => encodeURIComponent(part)).join("/")}`; }

// How a study stands: also what it was asked to do, where that takes a while.
export function standing({ state, wish }) { return state === "running" && wish === "stop" ? "stopping" : state; }
