/** What happens to reports when their process ends, in whatever way. */

import { existsSync, readdirSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { describe, expect, test } from "vitest";

import * as sw from "../src/index.js";
import { command, eventually, folder, later, NOT_HELD_UP_MS, program, reporting, Server, spooled, STORES } from "./harness.js";

const FLUSH_MS = 1000;

async function names(api: sw.Api, id: string): Promise<string[]> {
  return (await api.get(id, { steps: true })).steps.map((step) => step.name);
}

describe.each(STORES)("on %s", (store) => {
  test("after kill -9 the next process delivers once, and says which runs died", async () => {
    const server = await Server.make(store);
    const spool = folder();
    for (const ids of [["a", "b"], ["c"]]) {
      const app = program("report.mjs", { server: server.address, spool, ids, steps: 3, artifact: true, finish: false, end: "kill" });
      expect(await app.ended).toMatchObject({ signal: "SIGKILL" });
    }
    const done = program("report.mjs", { server: server.address, spool, ids: ["d"], steps: 3, end: "kill" });
    await done.ended;
    expect(spooled(spool).length).toBeGreaterThan(2);
    await server.start();

    const client = reporting(server, { spoolDir: spool });
    sw.startRun("next", { id: "next" }).complete();
    const api = server.api();
    await eventually("everything is delivered", async () => spooled(spool).length === 0 && client.stats().queued === 0);
    expect(client.stats()).toMatchObject({ refused: 0, dropped: 0, defects: 0 });
    for (const id of ["a", "b", "c"]) {
      const run = await api.get(id, { payloads: true });
      expect(run).toMatchObject({ status: "failed", error: { code: "PROCESS_DIED" } });
      expect(run.steps.map((step) => [step.name, step.output])).toEqual([["step 0", { i: 0 }], ["step 1", { i: 1 }], ["step 2", { i: 2 }]]);
      expect(run.artifacts.map((artifact) => artifact.name)).toEqual(["notes.txt"]);
      const { points } = await api.raw.metrics.queryMetrics({ executionId: id });
      expect(points.map((point) => point.metrics)).toEqual([{ tokens: 7 }]);
    }
    expect((await api.get("d")).status).toBe("completed");
    await client.shutdown();
    expect(readdirSync(spool)).toEqual([]);
  });

  test("the server's command sends what a killed app has left", async () => {
    const server = await Server.make(store);
    const spool = folder();
    const options = { server: server.address, spool, ids: ["a"], steps: 3, artifact: true };
    const living = program("report.mjs", { ...options, ids: ["living"], end: "stay" });
    await living.printed("reported");
    await program("report.mjs", { ...options, finish: false, end: "kill" }).ended;
    const rows = await command(["spool", "list", "--output", "json", "--spool-dir", spool]);
    expect(rows.map(({ written_by, state, server: named, artifacts }) => ({ written_by, state, named, artifacts }))).toEqual([
      { written_by: "typescript", state: "in use", named: server.address, artifacts: 1 },
      { written_by: "typescript", state: "left behind", named: server.address, artifacts: 1 },
    ]);
    await living.stop("SIGKILL");
    await server.start();
    const send = ["spool", "send", "--output", "json", "--spool-dir", spool];
    const [sent] = await command(send);
    expect(sent).toMatchObject({ artifacts: 2, refused: 0, left: 0 });
    expect(sent?.["writes"]).toBe(Number(rows[0]?.["writes"]) + Number(rows[1]?.["writes"]));
    expect(readdirSync(spool)).toEqual([]);
    expect(await command(send)).toEqual([]);
    const api = server.api();
    expect(await api.get("a")).toMatchObject({ status: "failed", error: { code: "PROCESS_DIED" } });
    for (const id of ["a", "living"]) {
      const run = await api.get(id, { payloads: true });
      expect(run.steps.map((step) => [step.name, step.output])).toEqual([["step 0", { i: 0 }], ["step 1", { i: 1 }], ["step 2", { i: 2 }]]);
      expect(run.artifacts.map((artifact) => artifact.size)).toEqual([`of ${id}`.length]);
      expect((await api.raw.metrics.queryMetrics({ executionId: id })).points).toHaveLength(1);
    }
    expect((await api.get("living")).status).toBe("completed");
  });

  test("after kill -9 in the middle of delivery nothing is lost or doubled", async () => {
    const server = await Server.started(store);
    const spool = folder();
    const ids = Array.from({ length: 12 }, (_, i) => `mid-${i}`);
    for (const [i, id] of ids.entries()) {
      const app = program("report.mjs", { server: server.address, spool, ids: [id], steps: 40, artifact: true, end: "stay" });
      await app.printed("reported");
      await sleep(i * 4);
      await app.stop("SIGKILL");
    }
    const last = program("report.mjs", { server: server.address, spool, ids: ["last"], steps: 1, end: "stay" });
    await eventually("everything is delivered", () => spooled(spool).length === 0);
    await last.stop("SIGKILL");
    const api = server.api();
    for (const id of ids) {
      await eventually(`the artifact of ${id}`, async () => (await api.get(id, { steps: true })).artifacts.length > 0, 10_000);
      const run = await api.get(id, { steps: true });
      expect(run.status).toBe("completed");
      expect(run.steps.map((step) => step.name)).toEqual(Array.from({ length: 40 }, (_, n) => `step ${n}`));
      expect(run.artifacts).toHaveLength(1);
      expect((await api.raw.metrics.queryMetrics({ executionId: id })).points).toHaveLength(1);
    }
  });

  test("a run whose process is thought dead lives again with its next sign of life", async () => {
    const server = await Server.make(store);
    const spool = folder();
    const made = program("report.mjs", { server: server.address, spool, ids: ["revived"], steps: 0, finish: false, end: "kill" });
    await made.ended;
    await server.start();
    const client = reporting(server, { spoolDir: spool, heartbeatTimeoutMs: 1000 });
    sw.startRun("next").complete();
    const api = server.api();
    await eventually("the guess", async () => {
      try {
        return (await api.get("revived")).status === "failed";
      } catch {
        return false;
      }
    });
    expect((await api.get("revived")).error?.code).toBe("PROCESS_DIED");
    const run = sw.attach("revived");
    await eventually("it runs", async () => (await api.get("revived")).status === "running");
    run.complete();
    await client.flush();
    expect((await api.get("revived")).status).toBe("completed");
  });
});

test("a process that is frozen is not taken for dead", async () => {
  const server = await Server.make("sqlite");
  const spool = folder();
  const frozen = program("report.mjs", { server: server.address, spool, ids: ["frozen"], steps: 2, finish: false, end: "stay" });
  await frozen.printed("reported");
  frozen.signal("SIGSTOP");
  const before = spooled(spool);
  await server.start();
  const client = reporting(server, { spoolDir: spool });
  sw.startRun("next", { id: "next" }).complete();
  expect(await client.flush()).toBe(true);
  await sleep(300);
  expect(spooled(spool)).toEqual(before);
  frozen.signal("SIGCONT");
  await eventually("it delivers by itself", async () => spooled(spool).length === 0);
  expect(await names(server.api(), "frozen")).toEqual(["step 0", "step 1"]);
  expect((await server.api().get("frozen")).status).toBe("running");
  await frozen.stop("SIGKILL");
});

test("the spool works in a folder whose path is too long for a socket", async () => {
  const server = await Server.make("sqlite");
  const spool = path.join(folder(), "l".repeat(60), "o".repeat(60), "n".repeat(60));
  const app = program("report.mjs", { server: server.address, spool, ids: ["long"], steps: 1, end: "kill" });
  await app.ended;
  const stays = program("report.mjs", { server: server.address, spool, ids: ["stays"], steps: 1, end: "stay" });
  await stays.printed("reported");
  await server.start();
  const client = reporting(server, { spoolDir: spool });
  sw.startRun("next").complete();
  await eventually("the killed one's runs", async () => {
    try {
      return (await server.api().get("long")).status === "completed";
    } catch {
      return false;
    }
  });
  await eventually("the living one's runs", async () => spooled(spool).length === 0);
  await stays.stop("SIGTERM");
  await client.shutdown();
  expect(readdirSync(spool)).toEqual([]);
});

test("files of other programs in the folder of the spool are left alone", async () => {
  const server = await Server.started("sqlite");
  const spool = folder();
  const others = ["1796-12.spool", "dead.lock", "x~1.nodespool"];
  for (const name of others) writeFileSync(path.join(spool, name), "theirs");
  const app = program("report.mjs", { server: server.address, spool, ids: ["a"], steps: 1, end: "kill" });
  await app.ended;
  const client = reporting(server, { spoolDir: spool });
  sw.startRun("next").complete();
  await eventually("what was killed is delivered", () => spooled(spool).length <= 2);
  await client.shutdown();
  expect(readdirSync(spool).sort()).toEqual(others.sort());
});

describe("the end of a process", () => {
  test("with the server there, everything is sent, and nothing stays behind", async () => {
    const server = await Server.started("sqlite");
    for (const end of ["normal", "SIGTERM"]) {
      const spool = folder();
      const app = program("report.mjs", { server: server.address, spool, ids: [end], steps: 5, artifact: true, end: end === "normal" ? "" : "stay" });
      if (end !== "normal") {
        await app.printed("reported");
        app.signal("SIGTERM");
      }
      expect(await app.ended).toMatchObject(end === "normal" ? { code: 0 } : { signal: "SIGTERM" });
      expect(readdirSync(spool)).toEqual([]);
      const run = await server.api().get(end, { steps: true });
      expect(run).toMatchObject({ status: "completed" });
      expect(run.steps).toHaveLength(5);
      expect(run.artifacts).toHaveLength(1);
    }
  });

  test("with the server away it takes no longer than flushTimeoutMs, and the next process delivers", async () => {
    const server = await Server.make("sqlite");
    const spool = folder();
    for (const [id, end] of [["returns", ""], ["exits", "exit"], ["terminated", "stay"]] as const) {
      const app = program("report.mjs", {
        server: server.address, spool, ids: [id], steps: 3, artifact: true, end, configure: { flushTimeoutMs: FLUSH_MS },
      });
      await app.printed("reported");
      const reported = Date.now();
      if (end === "stay") app.signal("SIGTERM");
      const { code, signal } = await app.ended;
      expect(end === "stay" ? signal : code).toBe(end === "stay" ? "SIGTERM" : 0);
      expect(Date.now() - reported).toBeLessThan(NOT_HELD_UP_MS);
    }
    await server.start();
    const next = program("report.mjs", { server: server.address, spool, ids: ["next"], steps: 0, end: "stay" });
    await eventually("everything is delivered", () => spooled(spool).length === 0);
    await next.stop("SIGTERM");
    for (const id of ["returns", "exits", "terminated"]) {
      const run = await server.api().get(id, { steps: true });
      expect(run).toMatchObject({ status: "completed" });
      expect(run.steps).toHaveLength(3);
    }
  });

  test("an address that does not answer keeps nobody", async () => {
    // 192.0.2.0/24 is for documentation: nobody is there.
    const app = program("report.mjs", {
      server: "192.0.2.1:50051", spool: folder(), ids: ["nowhere"], end: "", configure: { flushTimeoutMs: FLUSH_MS },
    });
    await app.printed("reported");
    const began = Date.now();
    expect(await app.ended).toMatchObject({ code: 0 });
    expect(Date.now() - began).toBeLessThan(NOT_HELD_UP_MS);
  });

  test("a server that is frozen keeps nobody", async () => {
    const server = await Server.started("sqlite");
    for (let i = 0; i < 2; i++) {
      const app = program("hung.mjs", { server: server.address, spool: folder(), pid: server.child?.pid });
      await app.printed("reported");
      const began = Date.now();
      expect(await app.ended).toMatchObject({ code: 0 });
      expect(Date.now() - began).toBeLessThan(NOT_HELD_UP_MS);
      server.child?.signal("SIGCONT");
    }
  });

  test("an app that listens to SIGTERM ends as it wants to", async () => {
    const server = await Server.started("sqlite");
    const spool = folder();
    const app = program("sigterm.mjs", { server: server.address, spool });
    await app.printed("ready");
    app.signal("SIGTERM");
    expect(await app.ended).toMatchObject({ code: 7 });
    expect((await server.api().get("sigterm")).status).toBe("completed");
  });

  test("an open run, its heartbeats and a watch of progress keep no process alive", async () => {
    const server = await Server.started("sqlite");
    const app = program("idle.mjs", { server: server.address, spool: folder() });
    const ended = await Promise.race([app.ended, sleep(10_000, undefined)]);
    expect(ended).toMatchObject({ code: 0 });
    expect((await server.api().get("idle")).status).toBe("running");
  });
});

test("children, workers and clusters each have a spool and a connection of their own", async () => {
  const server = await Server.started("sqlite");
  const spool = folder();
  const app = program("fork.mjs", { server: server.address, spool });
  const { code } = await app.ended;
  expect(app.out).toContain("done");
  expect(code).toBe(0);
  const api = server.api();
  for (const id of ["parent", "child", "worker", "cluster-0", "cluster-1"]) {
    const run = await api.get(id, { steps: true });
    expect(run).toMatchObject({ status: "completed" });
    expect(run.steps).toHaveLength(id === "parent" ? 2 : 1);
  }
  await eventually("nothing stays behind", () => readdirSync(spool).length === 0);
});

test("what is for one server is never sent to another", async () => {
  const [here, elsewhere] = [await Server.make("sqlite"), await Server.started("sqlite")];
  const spool = folder();
  const app = program("report.mjs", { server: here.address, spool, ids: ["mine"], artifact: true, end: "kill" });
  await app.ended;
  const client = reporting(elsewhere, { spoolDir: spool });
  sw.startRun("other", { id: "other" }).complete();
  expect(await client.flush()).toBe(true);
  await client.shutdown();
  expect((await elsewhere.api().count({})).count).toBe(1);
  expect(spooled(spool).length).toBeGreaterThan(2);
  await here.start();
  const next = reporting(here, { spoolDir: spool });
  sw.startRun("next", { id: "next" }).complete();
  await eventually("it is delivered", () => spooled(spool).length === 0);
  await next.flush();
  expect(await here.api().get("mine")).toMatchObject({ status: "completed" });
});

test("a spool that is deleted is made again, and outlives a kill then", async () => {
  const server = await Server.make("sqlite");
  const spool = path.join(folder(), "spool");
  const app = program("report.mjs", { server: server.address, spool, ids: ["before"], steps: 3, end: "stay", again: "after" });
  await app.printed("reported");
  const { rmSync } = await import("node:fs");
  rmSync(spool, { recursive: true });
  app.signal("SIGUSR2");
  await app.printed("reported again");
  await app.stop("SIGKILL");
  await server.start();
  const client = reporting(server, { spoolDir: spool });
  sw.startRun("next", { id: "next" }).complete();
  const api = server.api();
  await eventually("it is delivered", async () => spooled(spool).length === 0 && client.stats().queued === 0);
  for (const id of ["before", "after"]) {
    expect(await api.get(id)).toMatchObject({ status: "completed" });
    expect(await names(api, id)).toEqual(id === "before" ? ["step 0", "step 1", "step 2"] : ["step 0"]);
  }
});

test("a spool that is deleted under a process is no error of the app", async () => {
  const server = await Server.make("sqlite");
  const spool = folder();
  const client = reporting(server, { spoolDir: spool });
  const run = sw.startRun("deleted", { id: "deleted" });
  run.startStep("step 0").complete();
  const { rmSync } = await import("node:fs");
  rmSync(spool, { recursive: true });
  expect(existsSync(spool)).toBe(false);
  run.startStep("step 1").complete();
  run.artifact("lost", "but from memory");
  run.complete();
  await server.start();
  expect(await client.flush()).toBe(true);
  later(() => undefined);
  const found = await server.api().get("deleted", { steps: true });
  expect(found.steps).toHaveLength(2);
  expect(found.artifacts).toHaveLength(1);
});
