// An app that returns with a run open and progress held back.
import * as sw from "../../dist/esm/index.js";

const { server, spool } = JSON.parse(process.argv[2]);
sw.configure({ server, spoolDir: spool, heartbeatTimeoutMs: 60_000 });
const run = sw.startRun("idle", { id: "idle" });
const step = run.startStep("open");
for (let i = 0; i < 100; i++) step.progress(i / 100);
await sw.flush();
