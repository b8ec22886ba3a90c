// Run a WebAssembly build of a program under Node: node test/wasi.js PROGRAM.wasm ARGUMENTS, paths relative to the current folder.
"use strict";
const fs = require("fs"), { WASI } = require("wasi");

const [program, ...rest] = process.argv.slice(2);
const wasi = new WASI({ version: "preview1", args: [program, ...rest], env: {}, preopens: { ".": "." }, returnOnExit: true });
WebAssembly.instantiate(fs.readFileSync(program), { wasi_snapshot_preview1: wasi.wasiImport }).then(({ instance }) => {
  process.exitCode = wasi.start(instance);
});
