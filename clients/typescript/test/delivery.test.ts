/** Nothing is lost and nothing comes twice, whatever happens to the server, the database and the disk. */

import { readFileSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";

import { describe, expect, test } from "vitest";

import * as sw from "../src/index.js";
import { Mongod } from "./mongod.js";
import { canMount } from "./mounts.js";
import { Child, clean, eventually, folder, freePort, later, program, reporting, Server, STORES } from "./harness.js";

/** Checks a run of `count` steps, each reported once and whole. */
async function expectWhole(api: sw.Api, id: string, count: number, status: string): Promise<sw.Execution> {
  const run = await api.get(id, { payloads: true });
  expect(run.status).toBe(status);
  expect(run.steps.map((step) => step.name)).toEqual(Array.from({ length: count }, (_, i) => `step ${i}`));
  for (const [i, step] of run.steps.entries()) {
    expect(step).toMatchObject({ status: "completed", key: `${i}`, input: { i }, output: { i }, retryCount: 0 });
  }
  return run;
}

function report(id: string, count: number): sw.Run {
  const run = sw.startRun("delivery", { id });
  for (let i = 0; i < count; i++) {
    const step = run.startStep(`step ${i}`, { key: `${i}`, input: { i } });
    step.progress(0.5);
    step.output({ i });
    step.complete();
  }
  return run;
}

/** The longest time for which the app's thread did not get to run its own code. */
function watchThread(): () => number {
  let longest = 0;
  let last = performance.now();
  const timer = setInterval(() => {
    const now = performance.now();
    longest = Math.max(longest, now - last - 10);
    last = now;
  }, 10);
  return () => {
    clearInterval(timer);
    return longest;
  };
}

describe.each(STORES)("on %s", (store) => {
  test("a server that is away from the start gets everything once it is there, with its times", async () => {
    const server = await Server.make(store);
    const client = reporting(server);
    const before = Date.now();
    const run = report("away", 20);
    run.metrics({ tokens: 3 });
    const { stored } = run.artifact("log.txt", "what happened", { type: "log" });
    run.complete();
    const after = Date.now();
    expect(await client.flush(300)).toBe(false);
    expect(client.stats()).toMatchObject({ refused: 0, dropped: 0, defects: 0, connected: false });
    expect(client.stats().queued).toBeGreaterThan(60);
    expect(client.stats().spooledBytes).toBeGreaterThan(1000);

    await server.start();
    expect(await client.flush()).toBe(true);
    expect(client.stats()).toMatchObject({ queued: 0, refused: 0, dropped: 0, defects: 0, connected: true, spooledBytes: 0 });
    const found = await expectWhole(server.api(), "away", 20, "completed");
    for (const time of [found.startedAt, found.completedAt, ...found.steps.map((step) => step.startedAt)]) {
      expect(time?.getTime()).toBeGreaterThanOrEqual(before);
      expect(time?.getTime()).toBeLessThanOrEqual(after);
    }
    expect(await stored).toMatchObject({ name: "log.txt", type: "log", size: 13 });
  });

  test("SIGTERM and kill -9 of the server between any two writes", async () => {
    const server = await Server.started(store);
    const client = reporting(server, { heartbeatTimeoutMs: 600_000 });
    const run = sw.startRun("kills", { id: "kills" });
    const pieces: (() => unknown)[] = [];
    for (let i = 0; i < 3; i++) {
      let step: sw.Step;
      pieces.push(
        () => (step = run.startStep(`step ${i}`, { key: `${i}`, input: { i } })),
        () => step.output({ i }),
        () => step.complete(),
      );
    }
    pieces.push(() => run.metrics({ tokens: 1 }), () => run.artifact("a", "bytes"), () => run.complete());
    for (const [i, piece] of pieces.entries()) {
      // Half of the time the write before is on its way, half of the time it has arrived.
      if (i % 4 < 2) await client.flush();
      await server.restart(i % 2 === 0 ? "SIGKILL" : "SIGTERM");
      piece();
    }
    expect(await client.flush()).toBe(true);
    expect(client.stats()).toMatchObject({ queued: 0, refused: 0, dropped: 0, defects: 0 });
    const found = await expectWhole(server.api(), "kills", 3, "completed");
    expect(found.artifacts.map((artifact) => artifact.name)).toEqual(["a"]);
    const { points } = await server.api().raw.metrics.queryMetrics({ executionId: "kills" });
    expect(points.map((point) => point.metrics)).toEqual([{ tokens: 1 }]);
  });

  test("kill -9 of the server in the middle of thousands of writes", async () => {
    const server = await Server.started(store);
    const client = reporting(server);
    const ids = Array.from({ length: 20 }, (_, i) => `many-${i}`);
    for (const [i, id] of ids.entries()) {
      report(id, 25).complete();
      await sleep(10);
      if (i % 5 === 2) await server.restart("SIGKILL");
    }
    expect(await client.flush()).toBe(true);
    expect(client.stats()).toMatchObject({ queued: 0, refused: 0, dropped: 0, defects: 0, spooledBytes: 0 });
    const api = server.api();
    for (const id of ids) await expectWhole(api, id, 25, "completed");
  });

  test("a database frozen for 15 seconds neither stops the app nor loses a write", async () => {
    const mongod = store === "mongodb" ? await Mongod.start() : undefined;
    if (mongod !== undefined) later(() => mongod.stop());
    const server = await Server.started(store, mongod?.uri);
    const client = reporting(server);
    report("before", 3).complete();
    expect(await client.flush()).toBe(true);

    let thaw: () => Promise<unknown>;
    if (mongod !== undefined) {
      mongod.child.signal("SIGSTOP");
      thaw = async () => mongod.child.signal("SIGCONT");
    } else {
      const script = `import sqlite3, time\ndb = sqlite3.connect(${JSON.stringify(path.join(server.data, "stepwell.db"))}, timeout=30, isolation_level=None)\ndb.execute("BEGIN IMMEDIATE")\nprint("frozen", flush=True)\ntime.sleep(15)\ndb.execute("ROLLBACK")`;
      const locker = new Child("python3", ["-c", script], { env: clean() });
      await locker.printed("frozen");
      thaw = () => locker.ended;
    }
    const blocked = watchThread();
    const frozenAt = Date.now();
    const run = report("during", 10);
    run.artifact("frozen.txt", "bytes");
    run.complete();
    expect(await client.flush(1000)).toBe(false);
    await sleep(Math.max(0, 15_000 - (Date.now() - frozenAt)));
    // Had it waited for the server, it would have stood still for most of the 15 seconds.
    expect(blocked()).toBeLessThan(7_500);
    await thaw();
    report("after", 3).complete();
    expect(await client.flush(60_000)).toBe(true);
    expect(client.stats()).toMatchObject({ queued: 0, refused: 0, dropped: 0, defects: 0 });
    for (const [id, count] of [["before", 3], ["during", 10], ["after", 3]] as const) {
      await expectWhole(server.api(), id, count, "completed");
    }
  });

  test("a refused write is counted, and the good ones around it arrive", async () => {
    const server = await Server.started(store);
    const warnings: string[] = [];
    const onWarning = (warning: Error & { code?: string }): void => void warnings.push(String(warning.code));
    process.on("warning", onWarning);
    later(() => void process.off("warning", onWarning));
    const client = reporting(server);
    report("good-1", 2).complete();
    // An id with a space, and another run under an id that is taken.
    sw.startRun("delivery", { id: "not an id" }).complete();
    sw.startRun("another", { id: "good-1" });
    report("good-2", 2).complete();
    expect(await client.flush()).toBe(true);
    const { refused, dropped } = client.stats();
    expect({ refused, dropped }).toEqual({ refused: 3, dropped: 0 });
    await expectWhole(server.api(), "good-1", 2, "completed");
    await expectWhole(server.api(), "good-2", 2, "completed");
    await eventually("a warning for each reason", () => warnings.includes("EXECUTION_ALREADY_EXISTS"));
    expect(warnings.filter((code) => code === "INVALID_ARGUMENT")).toHaveLength(1);
  });

  test("outputs of 7 and of 17 MiB become artifacts with a preview in their place", async () => {
    const server = await Server.started(store);
    const client = reporting(server);
    const large = (mib: number): { text: string } => ({ text: "x".repeat(mib * 1024 * 1024) });
    await sw.run("large", { id: "large" }, async (run) => {
      await run.step("seven", { key: "seven" }, (s) => s.output(large(7)));
      await run.step("seventeen", { key: "seventeen", input: large(17) }, (s) => s.output(large(17)));
    });
    expect(await client.flush()).toBe(true);
    expect(client.stats()).toMatchObject({ refused: 0, dropped: 0, defects: 0 });
    const api = server.api();
    const run = await api.get("large", { payloads: true });
    expect(run.steps[0]?.output).toMatchObject({ artifact: "step-seven-output.json" });
    expect(run.steps[1]?.input).toMatchObject({ artifact: "step-seventeen-input.json", bytes: 17 * 1024 * 1024 + 11 });
    const kept = run.artifacts.find((artifact) => artifact.name === "step-seventeen-output.json");
    expect(kept?.size).toBe(17 * 1024 * 1024 + 11);
    const file = path.join(folder(), "output.json");
    await api.download(kept ?? "", file);
    expect(JSON.parse(readFileSync(file, "utf8"))).toEqual(large(17));
  });

  test("values of every kind arrive as JSON", async () => {
    const server = await Server.started(store);
    const client = reporting(server);
    const circle: Record<string, unknown> = { name: "circle" };
    circle["self"] = circle;
    let deep: unknown = "bottom";
    for (let i = 0; i < 100; i++) deep = { deep };
    class Point {
      constructor(readonly x: number, readonly y: number) {}
    }
    const input = {
      nan: Number.NaN, infinite: -Infinity, power: 2n ** 70n, small: 12n, bytes: new Uint8Array([1, 2, 255]),
      point: new Point(1, 2), circle, deep, when: new Date(0), map: new Map([["a", 1]]), set: new Set([1, 2]),
      fn: function named() { return 1; }, symbol: Symbol("s"), nothing: undefined, list: [undefined, null, 1.5],
      error: new RangeError("far"), "dotted.key": { $set: 1 }, "zero\0key": 1, text: "\0 \ud800 ü",
      get broken(): never { throw new Error("no"); }, max: Number.MAX_SAFE_INTEGER, negativeZero: -0,
    };
    await sw.run("values", { id: "values", metadata: input }, (run) => run.step("one", { input }, (s) => s.output([input])));
    expect(await client.flush()).toBe(true);
    expect(client.stats()).toMatchObject({ refused: 0, dropped: 0, defects: 0 });
    const { steps, metadata } = await server.api().get("values", { payloads: true });
    const stored = steps[0]?.input as Record<string, unknown>;
    expect(stored).toMatchObject({
      nan: "NaN", infinite: "-Infinity", power: "1180591620717411303424", small: 12, bytes: "AQL/",
      point: { x: 1, y: 2 }, circle: { name: "circle", self: "[Circular]" }, when: "1970-01-01T00:00:00.000Z",
      map: { a: 1 }, set: [1, 2], fn: "[Function named]", symbol: "Symbol(s)", list: [null, null, 1.5],
      error: { name: "RangeError", message: "far" }, "dotted.key": { $set: 1 }, "zero\u2400key": 1,
      broken: "[unreadable: no]", max: Number.MAX_SAFE_INTEGER, text: "\0 \ufffd ü",
    });
    expect(stored).not.toHaveProperty("nothing");
    expect(JSON.stringify(stored["deep"])).toMatch(/^(\{"deep":){20,28}"\[Object\]"/);
    expect(steps[0]?.output).toEqual([expect.objectContaining({ power: "1180591620717411303424" })]);
    expect(metadata).toMatchObject({ nan: "NaN", circle: { self: "[Circular]" } });
  });

  test("ten thousand updates of a step are sent as a few, and the last wins", async () => {
    const server = await Server.make(store);
    const client = reporting(server);
    const run = sw.startRun("updates", { id: "updates" });
    const step = run.startStep("one", { key: "one" });
    for (let i = 1; i <= 10_000; i++) {
      step.progress(i / 10_000, `at ${i}`);
      if (i % 2 === 0) step.output({ last: i, [`k${i % 10}`]: i }, { merge: true });
    }
    const http = await freePort();
    await server.start({ STEPWELL_HTTP_LISTEN: `127.0.0.1:${http}` });
    expect(await client.flush()).toBe(true);
    const { acked, refused, dropped } = client.stats();
    expect({ refused, dropped }).toEqual({ refused: 0, dropped: 0 });
    expect(acked).toBeGreaterThan(5000);
    // The run, the step, and what was not sent of its updates as one or two: what the server has seen, it has counted.
    const metrics = await (await fetch(`http://127.0.0.1:${http}/metrics`)).text();
    const writes = metrics.split("\n").filter((line) => /^[^#].*write.*_total\b/.test(line));
    const seen = writes.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
    expect(seen, writes.join("\n")).toBeGreaterThan(2);
    expect(seen, writes.join("\n")).toBeLessThan(100);
    const [found] = (await server.api().get("updates", { payloads: true })).steps;
    expect(found).toMatchObject({ progress: 1, progressMessage: "at 10000" });
    expect(found?.output).toEqual({ last: 10_000, k0: 10_000, k2: 9992, k4: 9994, k6: 9996, k8: 9998 });
  });

  test("an output replaces the one before, or is merged into it", async () => {
    const server = await Server.started(store);
    const client = reporting(server);
    const run = sw.startRun("outputs", { id: "outputs" });
    const [first, second] = [run.startStep("replaced"), run.startStep("merged")];
    for (const flushed of [true, false]) {
      first.output({ a: 1, b: 2 });
      if (flushed) await client.flush();
      first.output({ c: 3 });
    }
    second.output({ a: { x: 1 } });
    second.output({ a: { y: 2 }, b: 3 }, { merge: true });
    first.complete();
    second.complete();
    await client.flush();
    const { steps } = await server.api().get("outputs", { payloads: true });
    expect(steps.map((step) => step.output)).toEqual([{ c: 3 }, { a: { x: 1, y: 2 }, b: 3 }]);
  });

  test.each([3600_000, -3600_000])("of two processes with clocks %d ms apart neither loses metadata of their run", async (aheadMs) => {
    // An update whose number is not greater than the stored one is dropped whole, and numbers are of clocks.
    const server = await Server.started(store);
    const spool = folder();
    const maker = program("clocks.mjs", { server: server.address, spool, aheadMs });
    const client = reporting(server);
    const api = server.api();
    for (let n = 0; n < 2; n++) {
      await maker.printed(`flushed ${n} true`);
      await using attached = sw.attach("clocks");
      attached.metadata({ [`attached_${n}`]: n, both: "attached" });
      expect(await client.flush()).toBe(true);
      expect((await api.get("clocks")).metadata["both"]).toBe("attached");
      writeFileSync(path.join(spool, `go-${n}`), "");
    }
    expect(await maker.ended).toMatchObject({ code: 0 });
    // Leaving `await using` ends no run of another process.
    expect(await api.get("clocks")).toMatchObject({
      status: "completed",
      metadata: { made: 1, maker: 1, attached_0: 0, attached_1: 1, both: "attached" },
    });
    const stored = await api.raw.executions.getExecution({ executionId: "clocks" });
    expect(stored.execution?.updateSequence).toBeGreaterThan(0n);
    expect(client.stats()).toMatchObject({ refused: 0, dropped: 0, defects: 0 });
  });

  test("leaving an attached run ends nothing", async () => {
    const server = await Server.started(store);
    const client = reporting(server);
    const made = sw.startRun("left", { id: "left" });
    {
      await using attached = sw.attach("left");
      attached.startStep("there").complete();
    }
    expect(await client.flush()).toBe(true);
    expect(await server.api().get("left")).toMatchObject({ status: "running" });
    made.complete();
    expect(await client.flush()).toBe(true);
    expect(await server.api().get("left")).toMatchObject({ status: "completed" });
  });

  test("an attached run is reported once its maker's spool has arrived", async () => {
    const server = await Server.started(store);
    const client = reporting(server);
    const attached = sw.attach("handed-over");
    const step = attached.startStep("step 0", { key: "0", input: { i: 0 } });
    step.output({ i: 0 });
    step.complete();
    attached.metrics({ tokens: 5 });
    attached.artifact("b", "bytes");
    expect(await client.flush(500)).toBe(false);
    expect(client.stats()).toMatchObject({ refused: 0, dropped: 0, defects: 0 });
    const maker = program("report.mjs", { server: server.address, spool: folder(), ids: ["handed-over"], steps: 0, finish: false });
    expect(await maker.ended).toMatchObject({ code: 0 });
    expect(await client.flush()).toBe(true);
    expect(client.stats()).toMatchObject({ refused: 0, dropped: 0, defects: 0 });
    const found = await expectWhole(server.api(), "handed-over", 1, "running");
    expect(found.artifacts.map((artifact) => artifact.name)).toEqual(["b"]);
  });
});

describe("the spool", () => {
  test("where there is none to be had, everything goes through memory", async () => {
    const server = await Server.started("sqlite");
    const blocker = path.join(folder(), "file");
    writeFileSync(blocker, "");
    const client = reporting(server, { spoolDir: path.join(blocker, "spool") });
    report("no-spool", 5).artifact("c", "bytes");
    expect(await client.flush()).toBe(true);
    expect(client.stats()).toMatchObject({ refused: 0, dropped: 0, defects: 0, spooledBytes: 0 });
    const found = await expectWhole(server.api(), "no-spool", 5, "running");
    expect(found.artifacts).toHaveLength(1);
  });

  test("a disk that is full or read-only stops nothing", async () => {
    const server = await Server.started("sqlite");
    for (const mount of ["size=64k", "size=64k,ro"]) {
      const spool = folder();
      const id = mount.includes("ro") ? "read-only" : "full";
      const namespace = ["unshare", "-Urm", "sh", "-c", `mount -t tmpfs -o ${mount} tmpfs ${spool} && exec "$@"`, "sh"];
      const app = program("fill.mjs", { server: server.address, spool, id }, canMount() ? namespace : limited(spool, mount));
      const { code } = await app.ended;
      expect(app.out).toContain("flushed true");
      expect(code).toBe(0);
      expect(app.out).toMatch(/StepwellWarning: (the spool cannot be written|there is no spool)/);
      const run = await server.api().get(id, { steps: true });
      expect(run).toMatchObject({ status: "completed" });
      expect(run.steps).toHaveLength(50);
      expect(run.artifacts.map((artifact) => artifact.size)).toEqual([100_000]);
    }
  });

  test("a full spool leaves out updates, then metrics, then payloads, and never starts and ends", async () => {
    const server = await Server.make("sqlite");
    const client = reporting(server, { spoolMaxBytes: 200_000 });
    const run = sw.startRun("full", { id: "full" });
    for (let i = 0; i < 300; i++) {
      const step = run.startStep(`step ${i}`, { key: `${i}`, input: { text: "x".repeat(1000) } });
      step.metadata({ i });
      run.metrics({ i });
      step.complete({ i });
    }
    run.complete();
    expect(client.stats().dropped).toBeGreaterThan(100);
    await server.start();
    expect(await client.flush()).toBe(true);
    expect(client.stats().refused).toBe(0);
    const found = await server.api().get("full", { payloads: true });
    expect(found.status).toBe("completed");
    expect(found.steps).toHaveLength(300);
    expect(found.steps.every((step) => step.status === "completed")).toBe(true);
    expect(found.steps[0]).toMatchObject({ output: { i: 0 }, metadata: { i: 0 } });
    expect(found.steps[299]).toMatchObject({ input: {}, metadata: {} });
  });

  test("what does not fit in memory is read back from the disk, in order", async () => {
    const server = await Server.make("sqlite");
    const client = reporting(server, { memoryMaxBytes: 10_000 });
    report("disk", 200).complete();
    await server.start();
    expect(await client.flush()).toBe(true);
    expect(client.stats()).toMatchObject({ refused: 0, dropped: 0, defects: 0, spooledBytes: 0 });
    await expectWhole(server.api(), "disk", 200, "completed");
  });
});

/** Elsewhere: files end at 8 KiB, or the folder cannot be made. */
function limited(spool: string, mount: string): string[] {
  if (!mount.includes("ro")) return ["bash", "-c", `trap '' XFSZ; ulimit -f 8; exec "$@"`, "bash"];
  return ["bash", "-c", `rmdir ${spool} && touch ${spool} && exec "$@"`, "bash"];
}
