/** A run that is carried to another process, and goes on there. */

import { cpSync, readdirSync, statSync } from "node:fs";
import * as path from "node:path";

import { create, toBinary } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";

import { Backlog } from "../src/backlog.js";
import type { Write } from "../src/entry.js";
import { IngestRequestSchema } from "../src/gen/stepwell/v1/ingest_service_pb.js";
import * as sw from "../src/index.js";
import { Spool, type Location } from "../src/spool.js";
import { createExecution } from "../src/writes.js";
import { command, eventually, folder, later, program, reporting, Server, spooled, STORES } from "./harness.js";

interface Did {
  id: string;
  further: sw.Carrier;
  before: sw.Carrier;
}

function begun(id: string, size: number): Write {
  const nothing = { appId: undefined, subApp: undefined, user: undefined, heartbeatTimeoutMs: undefined };
  const metadata = { text: "t".repeat(size) };
  return createExecution({ ...nothing, id, app: "a", metadata, startedAt: new Date(), parentId: undefined, configurationVersion: undefined });
}

/** The names of the steps of a run, each with that of its parent. */
async function parents(api: sw.Api, id: string): Promise<Record<string, string | undefined>> {
  const { steps } = await api.get(id, { steps: true });
  const names = new Map(steps.map((step) => [step.key, step.name]));
  return Object.fromEntries(steps.map((step) => [step.name, step.parentKey === undefined ? undefined : names.get(step.parentKey)]));
}

describe.each(STORES)("on %s", (store) => {
  test("a call to another process is a step of the run, below the step that has called", async () => {
    const server = await Server.started(store);
    const client = reporting(server);
    const other = program("carried.mjs", { server: server.address, spool: folder() });
    later(() => other.signal("SIGKILL"));
    await other.printed("listens");
    const url = `http://127.0.0.1:${/listens (\d+)/.exec(other.out)?.[1] ?? ""}/`;
    const call = async (headers: Record<string, string>): Promise<Did> => (await (await fetch(url, { headers })).json()) as Did;

    const did = await sw.run("caller", { id: "carried" }, async (r) => {
      r.plan("Größe berechnen 100 %", "last");
      return r.step("Größe berechnen 100 %", async (s) => {
        expect(s.key).toBe("Größe berechnen 100 %");
        return call(sw.currentRun().carrier());
      });
    });
    expect(did.id).toBe("carried");
    // Whoever is attached carries on what it was given.
    expect(did.before).toEqual({ "stepwell-run": "carried", "stepwell-step": "Gr%c3%b6%c3%9fe%20berechnen%20100%20%25" });
    expect(await client.flush()).toBe(true);

    const api = server.api();
    expect(await parents(api, "carried")).toEqual({
      "Größe berechnen 100 %": undefined,
      last: undefined,
      called: "Größe berechnen 100 %",
      "in called": "called",
      "on top of called": undefined,
    });
    const run = await api.get("carried", { steps: true });
    expect(run.status).toBe("completed");
    expect(run.metadata).toEqual({ called: other.pid });
    const called = run.steps.find(({ name }) => name === "called");
    expect(did.further).toEqual({ "stepwell-run": "carried", "stepwell-step": called?.key });
    expect(client.stats()).toMatchObject({ refused: 0, dropped: 0, defects: 0 });
  });

  test("a message is worked on before and after its sender has ended", async () => {
    const server = await Server.started(store);
    const client = reporting(server);
    const run = sw.startRun("sender", { id: "sent" });
    const message = JSON.parse(JSON.stringify({ job: 7, ...run.carrier() })) as Record<string, unknown>;
    expect(message).toEqual({ job: 7, "stepwell-run": "sent" });
    for (const when of ["before", "after"]) {
      const worker = program("carried.mjs", { server: server.address, spool: folder(), message });
      expect(await worker.ended, worker.out).toMatchObject({ code: 0 });
      expect(JSON.parse(/did (.*)/.exec(worker.out)?.[1] ?? "") as Did).toMatchObject({ id: "sent", before: { "stepwell-run": "sent" } });
      const { status, metadata, steps } = await server.api().get("sent", { steps: true });
      expect({ status, metadata }).toEqual({ status: when === "before" ? "running" : "completed", metadata: { queued: worker.pid } });
      expect(steps).toHaveLength(when === "before" ? 3 : 6);
      run.complete();
      expect(await client.flush()).toBe(true);
    }
  });
});

describe("a run that was handed on is not ended for the process that made it", () => {
  const made = [
    { id: "handed", handOn: true },
    { id: "kept", handOn: false },
    { id: "over", handOn: true, finish: true },
  ];

  async function check(api: sw.Api): Promise<void> {
    expect(await api.get("handed")).toMatchObject({ status: "running" });
    expect(await api.get("kept")).toMatchObject({ status: "failed", error: { code: "PROCESS_DIED" } });
    expect(await api.get("over")).toMatchObject({ status: "completed" });
  }

  test.each([{ fill: 0 }, { fill: 40 }])("by the next process, with %o", async ({ fill }) => {
    const server = await Server.make("sqlite");
    const spool = folder();
    const maker = program("carried.mjs", { server: server.address, spool, make: made, fill });
    expect(await maker.ended, maker.out).toMatchObject({ signal: "SIGKILL" });
    const files = spooled(spool).length;
    expect(files > 5).toBe(fill > 0);
    await server.start();
    const client = reporting(server, { spoolDir: spool });
    sw.startRun("next").complete();
    await eventually("everything is delivered", () => spooled(spool).length === 0 && client.stats().queued === 0);
    await check(server.api());
    await client.shutdown();
    expect(readdirSync(spool)).toEqual([]);
  });

  /** The runs that are ended for a process which has left these files. */
  async function ended(left: string): Promise<string[]> {
    const spool = Spool.open(left, "s");
    const backlog = new Backlog(spool);
    const found: string[] = [];
    let processes = 0;
    await spool.takeOver(({ segments }) => {
      processes++;
      backlog.take(segments, (running) => found.push(...running));
      return true;
    });
    expect(processes).toBe(1);
    for (let read = 0; !backlog.isEmpty && read < 1000; read++) expect(backlog.read(() => read).unreadable).toBe(0);
    expect(backlog.isEmpty).toBe(true);
    spool.close();
    return found;
  }

  test.each(["killed", "at its end"])("whichever of its files are there when it is %s", async (how) => {
    const made = folder();
    const spool = Spool.open(made, "s");
    const left = (): string => {
      const copy = folder();
      // Without the lock, as of a process that is gone.
      if (how === "at its end") spool.close();
      for (const name of readdirSync(made).filter((each) => !each.endsWith(".lock"))) cpSync(path.join(made, name), path.join(copy, name));
      return copy;
    };
    let sequence = 0n;
    const append = (write: Write): Location =>
      spool.append(toBinary(IngestRequestSchema, create(IngestRequestSchema, { sequence: ++sequence, write })));
    const run = (id: string): Location => append(begun(id, 1000));
    const filler = (): Location => append(begun("filler", 9 << 20));

    run("kept");
    run("early");
    spool.share("early");
    run("late");
    const second = filler();
    spool.share("late");
    // Nothing of the second file is left to send: it is there because of what it says alone.
    spool.forget(second.segment);
    if (how === "killed") {
      expect(await ended(left())).toEqual(["kept"]);
      // The third says so too, and the second is gone.
      const third = filler();
      const fourth = filler();
      expect(new Set([second.segment, third.segment, fourth.segment]).size).toBe(3);
      spool.forget(third.segment);
      expect(await ended(left())).toEqual(["kept", "filler"]);
      spool.unshare("late");
      spool.forget(fourth.segment);
      expect(await ended(left())).toEqual(["kept", "late"]);
      spool.close();
    } else {
      expect(await ended(left())).toEqual(["kept"]);
    }
  });

  test("and what nobody has to be told is not written again and again", () => {
    const made = folder();
    const spool = Spool.open(made, "s");
    const size = (): number => readdirSync(made).reduce((sum, name) => sum + statSync(path.join(made, name)).size, 0);
    for (let n = 0; n < 100; n++) {
      const id = `run ${n}`;
      const { segment } = spool.append(toBinary(IngestRequestSchema, create(IngestRequestSchema, { write: begun(id, 10) })));
      spool.share(id);
      expect(size()).toBeLessThan(1000);
      spool.forget(segment);
      expect(size()).toBe(0);
    }
    spool.close();
    expect(readdirSync(made)).toEqual([]);
  });

  test("by the server's command", async () => {
    const server = await Server.make("sqlite");
    const spool = folder();
    await program("carried.mjs", { server: server.address, spool, make: made }).ended;
    await server.start();
    const [sent] = await command(["spool", "send", "--output", "json", "--spool-dir", spool]);
    expect(sent).toMatchObject({ refused: 0, left: 0 });
    await check(server.api());
    expect(readdirSync(spool)).toEqual([]);
  });
});

test("outside of any run, and where nothing is reported, nothing is carried", async () => {
  const client = sw.configure({ mode: "memory" });
  expect(sw.currentRun().carrier()).toEqual({});
  for (const nothing of ["", {}, { "stepwell-run": "" }, { "stepwell-step": "s" }, new Headers(), new Map(), { "stepwell-run": 7 }]) {
    const attached = sw.attach(nothing);
    expect(attached.id).toBe("");
    expect(await attached.step("s", () => "result")).toBe("result");
  }
  const broken = new Proxy({}, { ownKeys: () => { throw new Error("no"); } });
  expect(sw.attach(broken).id).toBe("");
  expect(sw.attach(null as unknown as string).id).toBe("");
  expect(client.recorded()).toEqual([]);

  const run = sw.startRun("app", { id: "r" });
  expect(run.carrier()).toEqual({ "stepwell-run": "r" });
  sw.configure({ mode: "disabled" });
  expect(sw.startRun("app").carrier()).toEqual({});
});

test("what is carried is found among other headers, whatever holds them", () => {
  sw.configure({ mode: "memory" });
  const carrier = { "stepwell-run": "r", "stepwell-step": "a%20b%" };
  const ways: Parameters<typeof sw.attach>[0][] = [
    carrier,
    { ...carrier, host: "h", other: ["x"], nothing: undefined },
    { "Stepwell-Run": "r", "STEPWELL-STEP": ["a%20b%"] },
    new Headers(carrier),
    new Map(Object.entries(carrier)),
    Object.entries(carrier),
  ];
  for (const way of ways) {
    const attached = sw.attach(way);
    // What is no encoding is taken as it is.
    expect(attached.carrier()).toEqual({ "stepwell-run": "r", "stepwell-step": "a%2520b%25" });
  }
  const key = "\u{1f600} 日本 100%\n";
  const run = sw.startRun("app", { id: "r" });
  const there = sw.attach({ ...sw.attach(run.id).carrier(), "stepwell-step": encodeURIComponent(key) });
  expect(new Headers(there.carrier()).get("stepwell-step")).toBe("%f0%9f%98%80%20%e6%97%a5%e6%9c%ac%20100%25%0a");
  expect(sw.attach(new Headers(there.carrier())).carrier()).toEqual(there.carrier());
});
