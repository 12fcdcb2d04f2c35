// What is lost when apps are killed while their server is killed too:
// `npm run build && STEPWELL_BIN=<a stepwell binary> node bench/kills.mjs [apps]`.
//
// Apps report one after the other into one spool, each until it is killed at some moment with SIGKILL; each says on its standard
// output which steps it has reported, after the call has returned. The server is killed and started again all the time.
// In the end everything that was said has to be at the server, once.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, rmSync, statSync, writeSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import * as sw from "../dist/esm/index.js";

if (process.argv[2] === "app") {
  const [, , , server, spoolDir, id] = process.argv;
  sw.configure({ server, spoolDir });
  const run = sw.startRun("kills", { id });
  writeSync(1, `${id}\n`);
  for (let i = 0; ; i++) {
    const step = run.startStep(`${i}`, { key: `${i}`, input: { i, text: "x".repeat(200) } });
    step.complete({ i });
    writeSync(1, `${id} ${i}\n`);
    // Now and then the event loop gets to run, as it does in an app.
    if (i % 20 === 19) await sleep(2);
  }
}

const apps = Number(process.argv[2] ?? 50);
const data = mkdtempSync(path.join(tmpdir(), "stepwell-kills-"));
const spoolDir = path.join(data, "spool");
const probe = createServer().listen(0, "127.0.0.1");
await once(probe, "listening");
const server = `127.0.0.1:${probe.address().port}`;
probe.close();

let child;
let serverKills = 0;
const start = () => {
  child = spawn(process.env.STEPWELL_BIN, ["serve", "--listen", server, "--data-dir", path.join(data, "db")], { stdio: "ignore" });
};
start();
let over = false;
const chaos = (async () => {
  while (!over) {
    await sleep(200 + Math.random() * 800);
    child.kill("SIGKILL");
    await once(child, "exit");
    serverKills++;
    await sleep(Math.random() * 500);
    start();
  }
})();

const said = new Map();
for (let n = 0; n < apps; n++) {
  const app = spawn(process.execPath, [fileURLToPath(import.meta.url), "app", server, spoolDir, `run-${n}`], { stdio: ["ignore", "pipe", "inherit"] });
  let out = "";
  app.stdout.on("data", (bytes) => (out += bytes));
  await once(app.stdout, "data");
  await sleep(Math.random() * 150);
  app.kill("SIGKILL");
  await once(app, "close");
  // A line that was cut was not said.
  for (const line of out.slice(0, out.lastIndexOf("\n")).split("\n")) {
    const [id, step] = line.split(" ");
    if (!said.has(id)) said.set(id, new Set());
    if (step !== undefined) said.get(id).add(step);
  }
}
over = true;
await chaos;

const client = sw.configure({ server, spoolDir, flushTimeoutMs: 60_000 });
sw.startRun("last").complete();
const left = () => readdirSync(spoolDir).filter((name) => name.endsWith(".nodespool") && statSync(path.join(spoolDir, name)).size > 0);
while (left().length > 0 || client.stats().queued > 0) await sleep(50);

const api = new sw.Api({ server });
let steps = 0;
let lost = 0;
let doubled = 0;
const ends = {};
for (const [id, names] of said) {
  const run = await api.get(id, { steps: true }).catch(() => undefined);
  const found = run?.steps.filter((step) => step.status === "completed").map((step) => step.name) ?? [];
  steps += names.size;
  lost += [...names].filter((name) => !found.includes(name)).length + (run === undefined ? 1 : 0);
  doubled += found.length - new Set(found).size;
  const end = run?.error?.code ?? run?.status ?? "missing";
  ends[end] = (ends[end] ?? 0) + 1;
}
console.log(`${said.size} apps and ${serverKills} servers killed; ${steps} steps reported, ${lost} lost, ${doubled} doubled; runs: ${JSON.stringify(ends)}; ${JSON.stringify(client.stats())}`);
await client.shutdown();
child.kill("SIGTERM");
await once(child, "exit");
rmSync(data, { recursive: true, force: true });
process.exit(lost + doubled === 0 ? 0 : 1);
