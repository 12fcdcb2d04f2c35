/** Watches go on through whatever happens, and never go back. */

import { setTimeout as sleep } from "node:timers/promises";

import { Code, ConnectError } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { createServer } from "node:http2";
import { MongoClient } from "mongodb";
import { describe, expect, test } from "vitest";

import * as sw from "../src/index.js";
import { ChangeType, ExecutionStatus } from "../src/gen/stepwell/v1/common_pb.js";
import { ExecutionService } from "../src/gen/stepwell/v1/execution_service_pb.js";
import { Mongod } from "./mongod.js";
import { eventually, freePort, later, reporting, Server, sqlite, STORES } from "./harness.js";

/** Watches in the background. */
function collect(events: AsyncIterable<sw.Event>): { seen: sw.Event[]; done: Promise<void> } {
  const seen: sw.Event[] = [];
  const done = (async () => {
    for await (const event of events) seen.push(event);
  })();
  done.catch(() => undefined);
  return { seen, done };
}

describe.each(STORES)("on %s", (store) => {
  test("a watch goes on over kills and restarts of the server, and ends with the run", async () => {
    const server = await Server.started(store);
    const client = reporting(server);
    const run = sw.startRun("watched", { id: "watched" });
    await client.flush();
    const { seen, done } = collect(server.api().watch("watched", { artifacts: true, metrics: true }));
    await eventually("live", () => seen.some((event) => event.kind === "live"));
    for (const [i, signal] of (["SIGKILL", "SIGTERM", "SIGKILL"] as const).entries()) {
      const step = run.startStep(`step ${i}`, { key: `${i}` });
      await client.flush();
      await server.restart(signal);
      step.complete();
      await client.flush();
    }
    // Points are told to who watches just then.
    await eventually("the last step", () => seen.some((event) => event.kind === "step" && event.record.name === "step 2" && event.record.status === "completed"));
    run.artifact("a", "bytes");
    run.metrics({ tokens: 1 });
    await client.flush();
    await eventually("the points", () => seen.some((event) => event.kind === "metrics"));
    run.complete();
    await client.flush();
    await done;

    const last = new Map<string, number>();
    const statuses = new Map<string, string>();
    for (const event of seen) {
      if (event.kind !== "step" && event.kind !== "execution") continue;
      const name = event.kind === "step" ? event.record.name : "run";
      expect(event.record.revision).toBeGreaterThanOrEqual(last.get(name) ?? 0);
      last.set(name, event.record.revision);
      statuses.set(name, event.record.status);
    }
    expect(Object.fromEntries(statuses)).toEqual({ run: "completed", "step 0": "completed", "step 1": "completed", "step 2": "completed" });
    expect(seen.filter((event) => event.kind === "artifact").map((event) => event.record.name)).toContain("a");
    const metrics = seen.find((event) => event.kind === "metrics");
    expect(metrics?.points[0]?.values).toEqual({ tokens: 1 });
    expect(metrics?.record?.id).toBe("watched");
  });

  test("a token that has expired begins the watch anew, and says so", async () => {
    const mongod = store === "mongodb" ? await Mongod.start(["--oplogSize", "2", "--syncdelay", "1"]) : undefined;
    if (mongod !== undefined) later(() => mongod.stop());
    const server = await Server.started(store, mongod?.uri);
    const client = reporting(server);
    const run = sw.startRun("expired", { id: "expired" });
    await client.flush();
    const api = server.api();
    let token = "";
    for await (const event of api.watch("expired")) {
      if (event.kind !== "live") continue;
      token = event.token;
      break;
    }
    run.complete();
    await client.flush();
    await server.stop();
    if (mongod === undefined) {
      sqlite(server, 'db.executescript("UPDATE meta SET value = (SELECT max(seq) FROM changes) WHERE name = \'pruned_through\'; DELETE FROM changes;")\ndb.commit()');
      await server.start();
    } else {
      await server.start();
      const mongo = new MongoClient(mongod.uri);
      later(() => mongo.close());
      const oplog = mongo.db("local").collection("oplog.rs");
      const newest = await oplog.find().sort({ $natural: -1 }).limit(1).next();
      await eventually("the log is cut", async () => {
        await mongo.db("filler").collection("filler").insertOne({ big: "x".repeat(1024 * 1024) });
        const oldest = await oplog.find().sort({ $natural: 1 }).limit(1).next();
        return oldest?.["ts"].greaterThan(newest?.["ts"]);
      });
    }
    const { seen, done } = collect(api.watch("expired", { token }));
    await done;
    expect(seen.map((event) => event.kind)).toEqual(["reset", "execution", "live"]);
    expect(seen[1]).toMatchObject({ record: { status: "completed" } });
  });

  test("a record over 4 MiB ends no watch", async () => {
    const server = await Server.started(store);
    const client = reporting(server, { maxPayloadBytes: 6 * 1024 * 1024 });
    const run = sw.startRun("huge", { id: "huge" });
    const input = { text: "x".repeat(5 * 1024 * 1024) };
    run.startStep("one", { key: "one", input }).complete();
    run.complete();
    await client.flush();
    expect(client.stats()).toMatchObject({ refused: 0, dropped: 0 });
    const api = server.api();
    const { seen, done } = collect(api.watch("huge", { payloads: true }));
    await done;
    const step = seen.find((event) => event.kind === "step");
    expect(step?.record.name).toBe("one");
    // Sent whole, or named as left out; never silently missing.
    expect(step?.record.input !== undefined || step?.record.omittedFields.includes("input")).toBe(true);
    const [whole] = (await api.get("huge", { payloads: true })).steps;
    expect(whole?.input).toEqual(input);
  });

  test("many runs are watched by a filter", async () => {
    const server = await Server.started(store);
    const client = reporting(server);
    sw.startRun("other", { id: "other" });
    sw.startRun("mine", { id: "before" });
    await client.flush();
    const stop = new AbortController();
    const { seen, done } = collect(server.api().watchMany({ app: "mine", steps: true, signal: stop.signal }));
    await eventually("live", () => seen.some((event) => event.kind === "live"));
    const run = sw.startRun("mine", { id: "after" });
    run.startStep("one").complete();
    run.complete();
    await client.flush();
    await eventually("the end", () => seen.some((event) => event.kind === "execution" && event.record.status === "completed"));
    stop.abort();
    await done;
    const ids = new Set(seen.map((event) => (event.kind === "execution" ? event.record.id : event.kind === "step" ? event.record.executionId : "")));
    expect([...ids].sort()).toEqual(["", "after", "before"]);
  });

  test("a cancel aborts the signal of the run, which ends as cancelled", async () => {
    const server = await Server.started(store);
    const client = reporting(server, { heartbeatTimeoutMs: 1000 });
    const running = sw.run("cancelled", { id: "cancelled" }, async (r) => {
      await sleep(60_000, undefined, { signal: r.signal });
    });
    const settled = running.catch((error: unknown) => error);
    await client.flush();
    const api = server.api();
    await expect(api.wait("cancelled", { timeoutMs: 100 })).rejects.toMatchObject({ code: "deadline_exceeded" });
    await api.cancel("cancelled", "enough");
    expect(await settled).toMatchObject({ name: "AbortError" });
    const run = await api.wait("cancelled", { timeoutMs: 20_000 });
    expect(run).toMatchObject({ status: "cancelled", cancelReason: "enough" });
  });
});

test.runIf(STORES.includes("mongodb"))("a foreign write with the same revision is passed on", async () => {
  const server = await Server.started("mongodb");
  const client = reporting(server);
  sw.startRun("foreign", { id: "foreign" });
  await client.flush();
  const { seen } = collect(server.api().watch("foreign"));
  await eventually("live", () => seen.some((event) => event.kind === "live"));
  const mongo = new MongoClient(server.mongodbUri);
  later(() => mongo.close());
  const executions = mongo.db(server.database).collection("executions");
  await executions.updateOne({ execution_id: "foreign" }, { $set: { "metadata.dashboard": "was here" } });
  await eventually("the foreign write", () =>
    seen.some((event) => event.kind === "execution" && event.record.metadata["dashboard"] === "was here"),
  );
  const runs = seen.filter((event) => event.kind === "execution").map((event) => event.record.revision);
  expect(new Set(runs).size).toBe(1);
});

test("a resumed stream that tells old states again is not believed", async () => {
  const state = (revision: bigint, resumeToken: string) => ({
    resumeToken,
    event: {
      case: "execution" as const,
      value: {
        changeType: ChangeType.UPDATED,
        execution: { executionId: "r", appName: "a", status: ExecutionStatus.RUNNING, revision },
      },
    },
  });
  const asked: string[] = [];
  const streams = [[state(5n, "t5"), state(7n, "t7")], [state(5n, "t5"), state(7n, "t7"), state(9n, "t9")]];
  const handler = connectNodeAdapter({
    routes: (router) =>
      router.service(ExecutionService, {
        async *watchExecution({ resumeToken }) {
          asked.push(resumeToken ?? "");
          yield* streams[asked.length - 1] ?? [];
          if (asked.length === 1) throw new ConnectError("going down", Code.Unavailable);
        },
      }),
  });
  const port = await freePort();
  const http2 = createServer(handler).listen(port, "127.0.0.1");
  later(() => void http2.close());
  const api = new sw.Api({ server: `127.0.0.1:${port}` });
  later(() => api.close());
  const { seen, done } = collect(api.watch("r"));
  await done;
  expect(asked).toEqual(["", "t7"]);
  // 5 came late, 7 is equal and so may be another program's write.
  expect(seen.map((event) => event.record !== undefined && "revision" in event.record && event.record.revision)).toEqual([5, 7, 7, 9]);
});
