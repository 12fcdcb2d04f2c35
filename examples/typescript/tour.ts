import * as sw from "stepwell";

const id = crypto.randomUUID();
await sw.run("poly-ts", { id, user: "me", metadata: { lang: "ts" } }, async (r) => {
  await r.step("fetch", { input: { url: "https://example.org" } }, (s) => { s.progress(0.5, "half"); s.output({ rows: 3 }); });
  await r.step("llm", { input: [1, "two"] }, () => {
    r.artifact("report.txt", "all of it"); r.metrics({ tokens: 1234, cost: 0.5 });
    throw new RangeError("boom"); // step and run end FAILED, with the trace; the error goes on to whoever called
  });
}).catch(() => undefined);
const api = new sw.Api();
for await (const e of api.watch(id)) if (e.kind === "step") console.log(e.record.name, e.record.status);
for await (const x of api.list({ status: "failed", since: "24h" })) console.log(x.app, x.error?.code, x.error?.message);
