// An app with a listener of its own.
import * as sw from "../../dist/esm/index.js";

const { server, spool } = JSON.parse(process.argv[2]);
sw.configure({ server, spoolDir: spool });
const run = sw.startRun("sigterm", { id: "sigterm" });
process.on("SIGTERM", () => {
  run.complete();
  void sw.shutdown().then(() => process.exit(7));
});
setInterval(() => undefined, 1000);
console.log("ready");
