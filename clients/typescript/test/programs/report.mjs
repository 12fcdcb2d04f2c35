// Reports runs as an app does, and ends in the way it is told to.
import * as sw from "../../dist/esm/index.js";

const options = JSON.parse(process.argv[2]);
sw.configure({ server: options.server, spoolDir: options.spool, ...options.configure });

const reportedAt = Date.now();
for (const id of options.ids) {
  const run = sw.startRun("report", { id, metadata: { pid: process.pid } });
  for (let i = 0; i < (options.steps ?? 2); i++) {
    const step = run.startStep(`step ${i}`, { key: `${i}`, input: { i } });
    step.progress(0.5, "half");
    step.output({ i });
    step.complete();
  }
  run.metrics({ tokens: 7 });
  if (options.artifact) run.artifact("notes.txt", `of ${id}`);
  if (options.finish !== false) run.complete();
}
console.log(`reported in ${Date.now() - reportedAt} ms`);

if (options.again !== undefined) {
  process.on("SIGUSR2", async () => {
    // The folder is looked at once a second.
    await new Promise((resolve) => setTimeout(resolve, 1100));
    const run = sw.startRun("report", { id: options.again });
    run.startStep("step 0", { key: "0" }).complete();
    run.complete();
    console.log("reported again");
  });
}

switch (options.end) {
  case "kill":
    process.kill(process.pid, "SIGKILL");
    break;
  case "exit":
    process.exit(0);
    break;
  case "flush":
    console.log(`flushed ${await sw.flush()}`);
    process.kill(process.pid, "SIGKILL");
    break;
  case "stay":
    setInterval(() => undefined, 1000);
    break;
  default:
}
