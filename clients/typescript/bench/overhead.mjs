// What a write costs the app's thread: `npm run build && STEPWELL_SERVER=127.0.0.1:50051 npm run bench`.
//
// With the server there, with the server away, and without a spool; each call is timed by itself, and the time that
// sending takes on the same thread, between the calls, is told apart.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";

import * as sw from "../dist/esm/index.js";

const WRITES = Number(process.env.WRITES ?? 20_000);
const server = process.env.STEPWELL_SERVER ?? "127.0.0.1:50051";
const input = { question: "What is the capital of France?", documents: [1, 2, 3], model: { name: "small", temperature: 0.2 } };
const output = { answer: "Paris", tokens: 1234, cost: 0.5 };

async function measure(name, options) {
  const spoolDir = mkdtempSync(path.join(tmpdir(), "stepwell-bench-"));
  const client = sw.configure({ server, spoolDir, flushTimeoutMs: 60_000, ...options });
  const run = sw.startRun("overhead");
  const times = new Float64Array(WRITES);
  const cpu = process.cpuUsage();
  const began = performance.now();
  for (let i = 0; i < WRITES; i += 2) {
    const start = performance.now();
    const step = run.startStep("answer", { input });
    const middle = performance.now();
    step.complete(output);
    times[i] = middle - start;
    times[i + 1] = performance.now() - middle;
    // The event loop gets to run, as it does in an app.
    if (i % 64 === 0) await sleep(0);
  }
  run.complete();
  const calls = times.reduce((sum, each) => sum + each, 0);
  const flushed = options.server === undefined ? await client.flush() : false;
  const all = performance.now() - began;
  const { user, system } = process.cpuUsage(cpu);
  times.sort();
  const micros = (ms) => `${(ms * 1000).toFixed(1)} µs`;
  console.log(
    `${name.padEnd(22)} mean ${micros(calls / WRITES)}  p50 ${micros(times[WRITES >> 1])}  p99 ${micros(times[Math.floor(WRITES * 0.99)])}` +
      `  CPU in all ${((user + system) / WRITES).toFixed(1)} µs a write  ${flushed ? `durable after ${(all / 1000).toFixed(2)} s` : "spooled"}`,
  );
  await client.shutdown(0);
  rmSync(spoolDir, { recursive: true, force: true });
}

console.log(`${WRITES} writes (start and end of steps), ${process.version}`);
await measure("warm-up", {});
await measure("server there", {});
await measure("server away", { server: "127.0.0.1:1" });
await measure("no spool", { spoolDir: false });
await measure("disabled", { mode: "disabled" });
