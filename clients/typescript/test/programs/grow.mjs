// Writes far more than may be kept, and tells what the process has grown by, and what became of the writes.
import { existsSync, readdirSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import * as sw from "../../dist/esm/index.js";

const { server, spool, scenario, go } = JSON.parse(process.argv[2]);
const memoryMaxBytes = 4 << 20;
const client = sw.configure({ server, spoolDir: spool, memoryMaxBytes, spoolMaxBytes: 8 << 20, flushTimeoutMs: 1000 });
let made = 0;
let before = 0;
let peak = 0;

function look() {
  gc();
  peak = Math.max(peak, process.memoryUsage.rss());
}

/** Runs of 50 steps with payloads, updates and points. */
async function work(runs, then = () => undefined, attached = false) {
  for (let n = 0; n < runs; n++) {
    const r = attached ? sw.attach(`never-${n}`) : sw.startRun("work", { metadata: { n, text: "y".repeat(100) } });
    for (let i = 0; i < 50; i++) {
      const s = r.startStep("step", { input: { n, i, text: "i".repeat(300) } });
      s.metadata({ i, note: "m".repeat(50) });
      r.metrics({ i });
      s.complete({ n, i, text: "o".repeat(300) });
    }
    if (!attached) r.complete();
    made += attached ? 200 : 202;
    if (n % 10 === 0) look();
    then(n);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

const endless = (size) =>
  new ReadableStream({
    pull(controller) {
      controller.enqueue(new Uint8Array(size));
    },
  });

/** A folder that was deleted, and cannot be made again. */
function gone() {
  rmSync(spool, { recursive: true, force: true });
  writeFileSync(spool, "");
}

const scenarios = {
  plain: () => work(300),
  attached: () => work(150, undefined, true),
  "deleted again and again": () => work(300, (n) => n >= 20 && rmSync(spool, { recursive: true, force: true })),
  "deleted for good": () => work(300, (n) => n === 20 && gone()),
  async "never ended"() {
    for (let n = 0; n < 30_000; n++) {
      const r = sw.startRun("never ended");
      made += 2;
      r.startStep("never ended");
      if (n % 1000 === 0) {
        look();
        await sleep(1);
      }
    }
  },
  async "many attached"() {
    for (let n = 0; n < 50_000; n++) {
      sw.attach(`attached-${n}`);
      if (n % 1000 === 0) {
        look();
        await sleep(1);
      }
    }
  },
  async progress() {
    const r = sw.startRun("progress");
    for (let n = 0; n < 30_000; n++) {
      const s = r.startStep("s");
      s.progress(0.1);
      s.progress(0.2);
      if (n % 1000 === 0) look();
      if (n % 2 === 0) s.complete();
    }
  },
  async "one step"() {
    const r = sw.startRun("one step");
    const s = r.startStep("s");
    made += 2;
    for (let n = 0; n < 100_000; n++) {
      s.metadata({ [`key ${n % 1000}`]: n, text: "t".repeat(100) });
      made++;
      if (n % 5000 === 0) {
        look();
        await sleep(1);
      }
    }
  },
  async artifacts() {
    const r = sw.startRun("artifacts");
    made++;
    const file = path.join(path.dirname(spool), "file");
    writeFileSync(file, "z".repeat(100));
    for (let n = 0; n < 10_000; n++) {
      r.artifact(`a${n}`, n % 2 === 0 ? { path: file } : "b".repeat(50), { metadata: { text: "m".repeat(100) } });
      made++;
      if (n % 500 === 0) {
        look();
        await sleep(1);
      }
    }
  },
  async "large artifacts"() {
    const r = sw.startRun("artifacts");
    made++;
    const file = path.join(path.dirname(spool), "large");
    writeFileSync(file, "");
    truncateSync(file, 64 << 20);
    for (let n = 0; n < 30; n++) {
      const stored = [
        r.artifact("endless", endless(65_536)).stored,
        r.artifact("endless too", endless(65_536)).stored,
      ];
      r.artifact("large", { path: file });
      r.artifact("bytes", new Uint8Array(300_000));
      made += 4;
      await Promise.all(stored);
      look();
    }
  },
  async "a generator"() {
    const stream = sw.traced("stream", function* () {
      for (let n = 0; n < 3000; n++) yield "x".repeat(100_000) + n;
    });
    await sw.run("generators", () => {
      for (const piece of stream()) if (piece.endsWith("00")) look();
    });
    made += 4;
  },
};

await work(4);
await sleep(300);
look();
before = peak = process.memoryUsage.rss();
console.log("ready");
while (go !== undefined && !existsSync(go)) await sleep(10);
await scenarios[scenario]();
await sleep(300);
look();
const { queued, acked, refused, dropped, shortened, lastError } = client.stats();
const files = existsSync("/proc/self/fd") ? readdirSync("/proc/self/fd").length : 0;
console.log(`told ${JSON.stringify({ growth: peak - before, made, queued, acked, refused, dropped, shortened, files, lastError })}`);
