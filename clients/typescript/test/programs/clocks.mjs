// The maker of a run, whose clock is wrong. Goes on whenever its folder says so.
import { existsSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const { server, spool, aheadMs } = JSON.parse(process.argv[2]);
const now = Date.now.bind(Date);
Date.now = () => now() + aheadMs;
const sw = await import("../../dist/esm/index.js");

sw.configure({ server, spoolDir: path.join(spool, "maker") });
const run = sw.startRun("clocks", { id: "clocks", metadata: { made: 1 } });
for (let n = 0; n < 2; n++) {
  run.metadata({ maker: n, both: "maker" });
  console.log(`flushed ${n} ${await sw.flush(20_000)}`);
  while (!existsSync(path.join(spool, `go-${n}`))) await sleep(10);
}
run.complete();
await sw.flush(20_000);
