// When the charts of a page are drawn: what is seen and stale, each not too often, the slow ones after the others.

// A chart that took so long is drawn again after this many times as long: the page answers meanwhile.
const EASE = 10;

// One chart's standing; `isSlow` is one that a browser without a graphics card draws for seconds.
export const undrawn = (every, isSlow = false) => ({ every, isSlow, stale: true, isSeen: false, isDrawing: false, drawnAt: -Infinity, took: 0 });

export function isDue(panel, panels, now) {
  if (!panel.isSeen || !panel.stale || panel.isDrawing || now - panel.drawnAt < Math.max(panel.every, EASE * panel.took)) return false;
  return !panel.isSlow || !panels.some((other) => other !== panel && other.isSeen && (other.isDrawing || other.drawnAt === -Infinity));
}
