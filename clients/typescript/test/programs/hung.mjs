// An app whose server answers nothing any more while it returns.
import * as sw from "../../dist/esm/index.js";

const { server, spool, pid } = JSON.parse(process.argv[2]);
sw.configure({ server, spoolDir: spool, flushTimeoutMs: 500 });
sw.startRun("hung", { id: "before" }).complete();
await sw.flush(10_000);
process.kill(pid, "SIGSTOP");
const run = sw.startRun("hung", { id: "hung" });
run.artifact("file", new Uint8Array(1000));
run.complete();
console.log("reported");
