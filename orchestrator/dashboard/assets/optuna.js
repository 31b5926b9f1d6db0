// Before optuna-dashboard's own script: what its pages ask for below /api lies below /optuna here.

const plain = globalThis.fetch;

globalThis.fetch = (asked, given) =>
  plain(typeof asked === "string" && asked.startsWith("/api/") ? `/optuna${asked}` : asked, given);
