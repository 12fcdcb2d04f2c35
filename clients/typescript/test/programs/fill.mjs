// Reports more than the disk of its spool takes.
import * as sw from "../../dist/esm/index.js";

const { server, spool, id } = JSON.parse(process.argv[2]);
sw.configure({ server, spoolDir: spool, flushTimeoutMs: 20_000 });
const run = sw.startRun("fill", { id });
for (let i = 0; i < 50; i++) {
  const step = run.startStep(`step ${i}`, { input: { text: "x".repeat(5000) } });
  step.complete({ text: "y".repeat(5000) });
}
run.artifact("large", new Uint8Array(100_000));
run.complete();
console.log(`flushed ${await sw.flush()}`);
