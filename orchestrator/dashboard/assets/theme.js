// Sets the colours before anything is drawn: as the system has them, or as somebody chose.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("trialfleet-theme"); } catch { /* storage is off */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
