// Reports, then makes children of every kind that report too, and reports again.
import { fork } from "node:child_process";
import cluster from "node:cluster";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { isMainThread, Worker, workerData } from "node:worker_threads";

import * as sw from "../../dist/esm/index.js";

const self = fileURLToPath(import.meta.url);
const options = isMainThread ? JSON.parse(process.argv[2]) : workerData;
sw.configure({ server: options.server, spoolDir: options.spool, flushTimeoutMs: 20_000 });

function report(id) {
  const run = sw.startRun("fork", { id });
  run.startStep("one").complete();
  return run;
}

if (cluster.isWorker) {
  report(`cluster-${process.env.NUMBER}`).complete();
  await sw.shutdown();
  process.disconnect();
} else if (options.id !== undefined) {
  report(options.id).complete();
  await sw.shutdown();
  if (isMainThread) process.disconnect();
} else {
  const run = report("parent");
  const child = fork(self, [JSON.stringify({ ...options, id: "child" })]);
  const worker = new Worker(self, { workerData: { ...options, id: "worker" } });
  cluster.setupPrimary({ exec: self, args: [JSON.stringify(options)] });
  const workers = [0, 1].map((number) => cluster.fork({ NUMBER: String(number) }));
  await Promise.all([once(child, "exit"), once(worker, "exit"), ...workers.map((each) => once(each, "exit"))]);
  run.startStep("two").complete();
  run.complete();
  console.log(`done ${await sw.flush()}`);
}
