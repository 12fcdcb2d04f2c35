/** What somebody new to it does: the first mistakes are said, and what one would expect to work does. */

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { Writable } from "node:stream";
import { execFileSync } from "node:child_process";
import { tmpdir } from "node:os";
import * as path from "node:path";
import { inspect } from "node:util";

import { afterEach, describe, expect, test } from "vitest";

import * as sw from "../src/index.js";
import { settle, withKey } from "../src/options.js";
import { folder, freePort, later, program, reporting, Server } from "./harness.js";

const ROOT = path.join(import.meta.dirname, "..");

/** What is said to who runs this. */
function warnings(): string[] {
  const said: string[] = [];
  const listen = (warning: Error): void => void said.push(warning.message);
  process.on("warning", listen);
  later(() => void process.off("warning", listen));
  return said;
}

const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe("addresses and keys", () => {
  afterEach(() => {
    delete process.env["STEPWELL_KEY"];
    delete process.env["STEPWELL_TOKEN"];
  });

  test.each([
    ["127.0.0.1", "127.0.0.1:50051"],
    ["stepwell.internal", "stepwell.internal:50051"],
    ["stepwell.internal:7000", "stepwell.internal:7000"],
    ["http://stepwell.internal/", "http://stepwell.internal:50051"],
    ["http://stepwell.internal:80", "http://stepwell.internal:80"],
    ["https://stepwell.example.org", "https://stepwell.example.org"],
    ["[::1]", "[::1]:50051"],
    ["[::1]:7000", "[::1]:7000"],
  ])("%s is %s", (said, server) => {
    expect(settle({ server: said }).server).toBe(server);
  });

  test.each([
    ["127.0.0.1:7000", true],
    ["[::1]", true],
    ["http://localhost", true],
    ["https://stepwell.example.org", true],
    ["http://stepwell.example.org", false],
    ["10.1.2.3:7000", false],
  ])("whether the key of the environment goes to %s: %s", async (server, sent) => {
    const said = warnings();
    process.env["STEPWELL_KEY"] = "swk_secret";
    expect(settle({ server }).headers).toEqual(sent ? { authorization: "Bearer swk_secret" } : undefined);
    await tick();
    expect(said.length).toBe(sent ? 0 : 1);
    expect(said.join()).not.toContain("swk_secret");
    expect(withKey({ Authorization: "mine" }, server, undefined)).toEqual({ Authorization: "mine" });
    expect(withKey(undefined, server, {})).toEqual({ authorization: "Bearer swk_secret" });
  });

  test("the token of before is still read", () => {
    process.env["STEPWELL_TOKEN"] = "t";
    expect(settle({}).headers).toEqual({ authorization: "Bearer t" });
  });
});

test("a traced function is called again as often as was said", async () => {
  const server = await Server.started("sqlite");
  const client = reporting(server);
  const calls = { later: 0, now: 0, never: 0, thrown: 0 };
  const begun = Date.now();
  await sw.run("traced", { id: "traced" }, async () => {
    const later = sw.traced("later", async (n: number) => {
      if (++calls.later < 3) throw new Error(`attempt ${calls.later}`);
      return n;
    }, { retries: 2, backoffMs: 20 });
    expect(await later(7)).toBe(7);
    const now = sw.traced("now", (n: number) => {
      if (++calls.now < 2) throw new Error("attempt");
      return n;
    }, { retries: 2 });
    expect(now(8)).toBe(8);
    const never = sw.traced("never", async () => { calls.never++; throw new Error("never"); }, { retries: 1 });
    await expect(never()).rejects.toThrow("never");
    const thrown = sw.traced("thrown", (): Promise<number> => {
      if (++calls.thrown === 2) throw new Error("before there is a promise");
      return calls.thrown < 3 ? Promise.reject(new Error("rejected")) : Promise.resolve(9);
    }, { retries: 5 });
    expect(await thrown()).toBe(9);
  });
  expect(Date.now() - begun).toBeGreaterThanOrEqual(55);
  expect(calls).toEqual({ later: 3, now: 2, never: 2, thrown: 3 });
  expect(await client.flush()).toBe(true);
  const { steps } = await server.api().get("traced", { payloads: true });
  expect(steps.map((step) => [step.name, step.status, step.output ?? null, step.attempts.length])).toEqual([
    ["later", "completed", 7, 2],
    ["now", "completed", 8, 1],
    ["never", "failed", null, 1],
    ["thrown", "completed", 9, 2],
  ]);
  expect(client.stats()).toMatchObject({ refused: 0, dropped: 0, defects: 0 });
});

test("who plans again and again", async () => {
  const server = await Server.started("sqlite");
  const client = reporting(server);
  await sw.run("plans", { id: "plans" }, async (r) => {
    await r.step("think", () => undefined);
    r.plan("fetch", { name: "answer", dependsOn: ["fetch"], version: "2", metadata: { a: 1 } });
    await r.step("fetch", async () => { await sw.step("detail", () => undefined); });
    r.plan("answer", "check", "answer");
    for (const name of ["answer", "check", "answer", "answer", "think"]) await sw.step(name, () => undefined);
    await sw.traced("check", () => 1)();
    r.plan("check");
    r.plan();
  });
  expect(await client.flush()).toBe(true);
  expect(client.stats()).toMatchObject({ refused: 0, dropped: 0, defects: 0 });
  const { steps } = await server.api().get("plans", { steps: true });
  expect(steps.filter((step) => !["think", "detail"].includes(step.name)).map((step) => [step.id, step.name, step.key, step.status]))
    .toEqual([
      [2, "fetch", "fetch", "completed"],
      [3, "answer", "answer", "completed"],
      [5, "answer", "answer-1", "completed"],
      [6, "check", "check", "completed"],
      [7, "answer", "answer-3", "completed"],
      [9, "check", expect.any(String), "completed"],
      [10, "check", "check-1", "pending"],
    ]);
  expect(steps.find((step) => step.id === 3)).toMatchObject({ dependsOnKeys: ["fetch"], version: "2", metadata: { a: 1 } });

  const memory = reporting("127.0.0.1:1", { mode: "memory" });
  await sw.run("plans", async (r) => { r.plan("a", "b"); await r.step("a", () => undefined); });
  expect(memory.recorded()[0]?.steps.map((step) => [step.name, step.status])).toEqual([["a", "completed"], ["b", "pending"]]);
  sw.currentRun().plan("outside of any");
});

test("texts that a generator yields are one text", async () => {
  const client = reporting("127.0.0.1:1", { mode: "memory" });
  await sw.run("stream", async () => {
    const tokens = sw.traced("tokens", async function* () { yield "The "; yield "answer"; });
    const seen: string[] = [];
    for await (const token of tokens()) seen.push(token);
    expect(seen).toEqual(["The ", "answer"]);
    expect([...sw.traced("mixed", function* () { yield "a"; yield 1; })()]).toEqual(["a", 1]);
    expect([...sw.traced("none", function* (): Generator<string> { /* nothing */ })()]).toEqual([]);
  });
  expect(client.recorded()[0]?.steps.map((step) => step.output)).toEqual(["The answer", ["a", 1], []]);
});

test("a filter that is none is said, and not everything listed", async () => {
  const api = new sw.Api({ server: "127.0.0.1:1", timeoutMs: 500 });
  later(() => api.close());
  const list = (filter: object): Promise<unknown> => api.list(filter as sw.Filter).next();
  await expect(list({ appName: "x" })).rejects.toMatchObject({
    code: "invalid_argument",
    message: "unknown filter appName; there are app, appId, subAppId, user, status, since, until, minDurationMs, metadata",
  });
  await expect(list({ status: "broken" })).rejects.toThrow("status is one of running, completed, failed, cancelled, not broken");
  await expect(list({ since: "yesterday" })).rejects.toThrow('not a time: yesterday; a Date, or how long ago');
  await expect(api.count({ apps: "x" } as sw.Filter)).rejects.toThrow("unknown filter apps");
  await expect(api.watchMany({ limit: 1 } as object as sw.Filter).next()).rejects.toThrow("unknown filter limit");
  // What stands beside a filter is no filter.
  await expect(list({ order: "oldest", limit: 1 })).rejects.toMatchObject({ code: "unavailable" });
});

test("progress is a fraction, and what is no number is none", async () => {
  const said = warnings();
  const server = await Server.started("sqlite");
  const client = reporting(server);
  await sw.run("progress", { id: "progress" }, (r) => r.step("one", async (s) => {
    s.progress(0.5, "half");
    s.progress("much" as unknown as number);
  }));
  await sw.run("percent", { id: "percent" }, (r) => r.step("one", (s) => {
    s.progress(50);
    s.progress(60);
  }));
  await client.flush();
  expect((await server.api().get("progress", { steps: true })).steps[0]).toMatchObject({ progress: 0.5, progressMessage: "half" });
  expect((await server.api().get("percent", { steps: true })).steps[0]).toMatchObject({ progress: 1 });
  expect(said).toEqual(["progress is a fraction from 0 to 1: 50 counts as 1"]);
});

test("what a log shows of a run has no headers in it", () => {
  const client = reporting("127.0.0.1:1", { headers: { authorization: "Bearer swk_secret" } });
  const run = sw.startRun("shown", { id: "shown" });
  const step = run.startStep("one", { key: "k" });
  expect(inspect(run)).toBe("Run { id: 'shown' }");
  expect(inspect(step)).toBe("Step { name: 'one', key: 'k', run: 'shown' }");
  expect(JSON.stringify({ run, step })).toBe('{"run":{"id":"shown"},"step":{"key":"k","name":"one","run":"shown"}}');
  for (const shown of [inspect(client), JSON.stringify(client)]) {
    expect(shown).toContain("127.0.0.1:1");
    expect(shown).not.toContain("swk_secret");
  }
});

test("what is left is said at the end, and nothing where nothing is", async () => {
  const server = await Server.started("sqlite");
  const away = `127.0.0.1:${await freePort()}`;
  const spool = folder();
  const options = { spool, ids: ["a"], steps: 1, end: "return", configure: { flushTimeoutMs: 500 } };
  const left = program("report.mjs", { ...options, server: away });
  expect(await left.ended).toMatchObject({ code: 0 });
  expect(left.out).toContain(`[LEFT] StepwellWarning: ${away} has not taken everything (unavailable: `);
  expect(left.out).toMatch(new RegExp(`: \\d+ writes wait in ${spool}: the next program that reports there sends them`));
  const fine = program("report.mjs", { ...options, spool: folder(), server: server.address });
  expect(await fine.ended).toMatchObject({ code: 0 });
  expect(fine.out).not.toContain("Warning");
});

test("a download that cannot be written rejects, and its bytes are those that were stored", async () => {
  const server = await Server.started("sqlite");
  const client = reporting(server);
  const bytes = Buffer.alloc(3_000_000, "stepwell");
  await sw.run("download", { id: "download" }, (r) => void r.artifact("a.bin", bytes));
  const api = server.api();
  // Without a flush: what this process has reported is sent before it is read.
  const [artifact] = (await api.get("download", { steps: true })).artifacts;
  expect(client.stats().queued).toBe(0);
  const to = path.join(folder(), "a.bin");
  await api.download(artifact ?? "", to);
  expect(readFileSync(to).equals(bytes)).toBe(true);
  await expect(api.download(artifact ?? "", path.join(folder(), "none", "a.bin"))).rejects.toMatchObject({ code: "ENOENT" });
  const broken = new Writable({ write: (_chunk, _encoding, done) => done(new Error("the disk is full")) });
  await expect(api.download(artifact ?? "", broken)).rejects.toThrow("the disk is full");
  await expect(api.download("none", path.join(folder(), "x"))).rejects.toMatchObject({ code: expect.stringMatching(/not_found|invalid/) });
});

test("compiles in a project that asks for no types of its own", () => {
  const project = mkdtempSync(path.join(tmpdir(), "stepwell-ts-"));
  later(() => rmSync(project, { recursive: true, force: true }));
  // As newer compilers have it unless told otherwise: no types of the environment.
  writeFileSync(path.join(project, "tsconfig.json"), JSON.stringify({
    compilerOptions: { strict: true, noEmit: true, target: "es2022", module: "nodenext", types: [], paths: { stepwell: [path.join(ROOT, "dist/esm/index.d.ts")] } },
    include: ["*.mts"],
  }));
  writeFileSync(path.join(project, "first.mts"), 'import * as sw from "stepwell";\nawait sw.run("x", async (r) => { await r.step("s", (s) => s.output({ a: 1 })); });\n');
  expect(existsSync(path.join(ROOT, "dist/esm/index.d.ts"))).toBe(true);
  execFileSync(process.execPath, [path.join(ROOT, "node_modules/typescript/bin/tsc"), "-p", project], { encoding: "utf8", stdio: "pipe" });
});
