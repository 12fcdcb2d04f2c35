// Another process, which goes on with the run that a request carries, or a message of a queue.
import { createServer } from "node:http";

import * as sw from "../../dist/esm/index.js";

const { server, spool, message, ...more } = JSON.parse(process.argv[2]);
sw.configure({ server, spoolDir: spool, flushTimeoutMs: 20_000 });

/** Reports into the run, and says what it would carry on. */
async function work(carried, name) {
  const r = sw.attach(carried);
  r.metadata({ [name]: process.pid });
  const further = await r.step(name, async () => {
    await sw.step(`in ${name}`, () => undefined);
    return sw.currentRun().carrier();
  });
  r.startStep(`on top of ${name}`, { parent: null }).complete();
  return { id: r.id, further, before: r.carrier() };
}

if (message !== undefined) {
  const said = await work(message, "queued");
  console.log(`did ${JSON.stringify(said)}`);
} else if (more.make !== undefined) {
  // The process that makes runs, hands some of them on, and is killed.
  for (const { id, handOn, finish } of more.make) {
    const r = sw.startRun("made", { id });
    r.startStep("before").complete();
    if (handOn) r.carrier();
    for (let n = 0; n < (more.fill ?? 0); n++) r.startStep("filler", { input: "f".repeat(500_000) }).complete();
    if (finish) r.complete();
  }
  if (more.flush) await sw.flush();
  console.log("made");
  if (more.stay) setInterval(() => undefined, 1000);
  else process.kill(process.pid, "SIGKILL");
} else {
  const http = createServer(async (request, response) => {
    const said = await work(request.headers, "called");
    await sw.flush();
    response.end(JSON.stringify(said));
  });
  http.listen(0, "127.0.0.1", () => console.log(`listens ${http.address().port}.`));
}
