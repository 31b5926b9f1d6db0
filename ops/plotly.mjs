// Builds the plotly.js that the dashboard and the reports carry: of its traces those that they draw.
//
//     node ops/plotly.mjs 4.1.1        (Node.js 20 or later, npm; writes orchestrator/dashboard/assets/plotly-4.1.1.min.js.gz)
//
// Then: the version's name in assets/__init__.py, charts.js and reporting/page.py, and the rules that the new
// version adds at run time as assets/plotly.css.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";

const ASSETS = new URL("../orchestrator/dashboard/assets/", import.meta.url);

// The core has scatter. Strict traces evaluate no text, which the pages' content security policy forbids.
const TRACES = ["lib/bar", "lib/heatmap", "lib/contour", "src/traces/parcoords/strict"];

// As plotly.js builds its own bundles, in its esbuild-config.js; the versions are those of its release.
const BUILDERS = [
  "esbuild@0.28.2", "esbuild-plugin-environment@0.5.0", "esbuild-plugin-glsl@1.4.2",
  "stream-browserify@3.0.0",
];

function configuration(require, folder, version) {
  return {
    absWorkingDir: folder, entryPoints: ["entry.js"], outfile: "plotly.js", bundle: true, minify: true,
    format: "iife", globalName: "Plotly", target: "es2016", logLevel: "warning",
    banner: { js: `/*! plotly.js v${version} (scatter, bar, heatmap, contour, parcoords), MIT licence, Plotly, Inc. */` },
    plugins: [
      require("esbuild-plugin-glsl").glsl({ minify: true }),
      require("esbuild-plugin-environment").environmentPlugin({ NODE_DEBUG: false }),
    ],
    loader: { ".css": "empty" }, // of its maps
    alias: { regl: "@plotly/regl", stream: "stream-browserify" }, define: { global: "window", "define.amd": "false" },
  };
}

async function build(version) {
  const folder = mkdtempSync(join(tmpdir(), "plotly-"));
  try {
    const options = ["--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund", "--silent"];
    execFileSync("npm", ["install", ...options, `plotly.js@${version}`, ...BUILDERS], { stdio: "inherit" });
    const registered = TRACES.map((trace) => `require("plotly.js/${trace}")`);
    writeFileSync(join(folder, "entry.js"),
      `module.exports = require("plotly.js/lib/core"); module.exports.register([${registered}]);`);
    const require = createRequire(join(folder, "entry.js"));
    await require("esbuild").build(configuration(require, folder, version));
    return gzipSync(readFileSync(join(folder, "plotly.js")), { level: 9 });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const [version] = process.argv.slice(2);
if (!/^\d+\.\d+\.\d+$/.test(version ?? "")) {
  console.error("node ops/plotly.mjs VERSION (of plotly.js, as 4.1.1)");
  process.exit(2);
}
const packed = await build(version);
writeFileSync(new URL(`plotly-${version}.min.js.gz`, ASSETS), packed);
console.log(`plotly-${version}.min.js.gz: ${packed.length} bytes`);
