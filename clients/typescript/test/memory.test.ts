/**
 * However long the server is away and whatever becomes of the disk: memory has an end, and what is left out is counted.
 *
 * Each test writes far more than may be kept, in a process of its own, and looks at what that process takes of the machine.
 */

import { existsSync, writeFileSync } from "node:fs";
import { createServer as createTcp, type Socket } from "node:net";
import { createServer } from "node:http2";
import * as path from "node:path";

import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { describe, expect, test } from "vitest";

import { StatusSchema } from "../src/gen/google/rpc/status_pb.js";
import { IngestService } from "../src/gen/stepwell/v1/ingest_service_pb.js";
import { eventually, folder, freePort, later, NOT_HELD_UP_MS, program, Server, type Child } from "./harness.js";
import { canMount } from "./mounts.js";

/** The library may keep 4 MiB of what is reported. What V8 keeps for itself comes on top. */
const GROWTH = 40 << 20;

interface Told {
  growth: number;
  made: number;
  queued: number;
  acked: number;
  refused: number;
  dropped: number;
  shortened: number;
  files: number;
  lastError?: string;
}

function grow(server: string, spool: string, scenario: string, more: { go?: string; wrap?: string[] } = {}): Child {
  const options = { server, spool, scenario, ...(more.go === undefined ? {} : { go: more.go }) };
  return program("grow.mjs", options, more.wrap ?? [], ["--expose-gc"]);
}

/** What a program tells at its end, which comes in time though much is not sent. */
async function told(app: Child, counted = true, growth = GROWTH): Promise<Told> {
  await app.printed("told ");
  const began = Date.now();
  const { code } = await app.ended;
  expect(app.out).toContain("told ");
  const found = JSON.parse(/told (.*)/.exec(app.out)?.[1] ?? "{}") as Told;
  expect(code).toBe(0);
  expect(found.growth, JSON.stringify(found)).toBeLessThan(growth);
  if (counted) expect(found.queued + found.acked + found.refused + found.dropped, JSON.stringify(found)).toBe(found.made);
  expect(found.files).toBeLessThan(100);
  expect(Date.now() - began).toBeLessThan(NOT_HELD_UP_MS);
  return found;
}

async function nobody(): Promise<string> {
  return `127.0.0.1:${await freePort()}`;
}

function noFolder(): string {
  const file = path.join(folder(), "spool");
  writeFileSync(file, "a file is where the folder should be");
  return file;
}

describe("nobody listens", () => {
  test("and the spool takes what it may", async () => {
    const found = await told(grow(await nobody(), path.join(folder(), "spool"), "plain"));
    expect(found.queued).toBeGreaterThan(0);
    expect(found.dropped).toBeGreaterThan(0);
    expect(found.shortened).toBeGreaterThan(0);
  });

  test("and there is no spool", async () => {
    const found = await told(grow(await nobody(), noFolder(), "plain"));
    expect(found.queued).toBeGreaterThan(0);
    expect(found.dropped).toBeGreaterThan(0.8 * found.made);
  });

  test.each(["deleted again and again", "deleted for good"])("and the spool is %s", async (scenario) => {
    const found = await told(grow(await nobody(), path.join(folder(), "spool"), scenario));
    expect(found.dropped).toBeGreaterThan(0);
  });

  test.runIf(canMount()).each(["size=1m", "size=1m,ro"])("and the disk of the spool is %s", async (mount) => {
    const spool = folder();
    const wrap = ["unshare", "-Urm", "sh", "-c", `mount -t tmpfs -o ${mount} tmpfs ${spool} && exec "$@"`, "sh"];
    const found = await told(grow(await nobody(), spool, "plain", { wrap }));
    expect(found.dropped).toBeGreaterThan(0);
  });

  test("and very many updates of one step are made", async () => {
    await told(grow(await nobody(), path.join(folder(), "spool"), "one step"));
  });

  test.each(["artifacts", "large artifacts"])("and there are too many %s", async (scenario) => {
    const found = await told(grow(await nobody(), path.join(folder(), "spool"), scenario));
    expect(found.dropped).toBeGreaterThan(0);
  });

  test.each(["artifacts", "large artifacts"])("and there are too many %s without a spool", async (scenario) => {
    const found = await told(grow(await nobody(), noFolder(), scenario));
    expect(found.dropped).toBeGreaterThan(0);
  });

  test("and a generator yields very much", async () => {
    await told(grow(await nobody(), path.join(folder(), "spool"), "a generator"), false, 120 << 20);
  });

  test("and progress of steps is not ended", async () => {
    await told(grow(await nobody(), path.join(folder(), "spool"), "progress"), false);
  });
});

describe("somebody listens", () => {
  test("and is frozen, and the spool is deleted", async () => {
    const server = await Server.started("sqlite");
    const go = path.join(folder(), "go");
    const app = grow(server.address, path.join(folder(), "spool"), "deleted for good", { go });
    await app.printed("ready");
    server.child?.signal("SIGSTOP");
    writeFileSync(go, "");
    const found = await told(app);
    expect(found.dropped).toBeGreaterThan(0);
  });

  test("and takes connections and says nothing", async () => {
    const taken: Socket[] = [];
    const port = await freePort();
    const listener = createTcp((socket) => taken.push(socket.on("error", () => undefined))).listen(port, "127.0.0.1");
    later(() => {
      listener.close();
      for (const socket of taken) socket.destroy();
    });
    await told(grow(`127.0.0.1:${port}`, noFolder(), "plain"));
    expect(taken.length).toBeGreaterThan(0);
  });

  describe.each(["silent", "refused", "for now", "broken", "for now,refused,broken"])("and is %s", (kinds) => {
    test.each([true, false])("with a spool: %s", async (hasSpool) => {
      const found = await told(grow(await strange(kinds), hasSpool ? path.join(folder(), "spool") : noFolder(), "plain"));
      expect(found.acked).toBe(0);
      if (kinds.includes("refused")) expect(found.refused).toBeGreaterThan(0);
      else expect(found.dropped).toBeGreaterThan(0);
    });
  });

  test("and lets nobody in", async () => {
    const keys = path.join(folder(), "keys");
    writeFileSync(keys, `sha256:${"0a".repeat(32)}\n`, { mode: 0o600 });
    const server = await Server.make("sqlite");
    await server.start({ STEPWELL_AUTH_MODE: "required", STEPWELL_AUTH_ADMIN_KEY_FILE: keys });
    const found = await told(grow(server.address, path.join(folder(), "spool"), "plain"));
    expect(found).toMatchObject({ acked: 0, refused: 0 });
  });

  test("and does not know the runs that are reported into", async () => {
    const server = await Server.started("sqlite");
    const found = await told(grow(server.address, path.join(folder(), "spool"), "attached"));
    expect(found.queued).toBeGreaterThan(0);
  });

  test.each(["never ended", "many attached"])("and runs are %s", async (scenario) => {
    const server = await Server.started("sqlite");
    await told(grow(server.address, path.join(folder(), "spool"), scenario), scenario === "never ended");
  });
});

test("a process of which the parent is dead, the server frozen and the spool deleted ends with its program", async () => {
  const server = await Server.started("sqlite");
  const spool = path.join(folder(), "spool");
  const go = path.join(folder(), "go");
  const parent = grow(server.address, spool, "deleted for good", { go, wrap: ["sh", "-c", '"$@" & echo "pid $!"; wait', "sh"] });
  await parent.printed("ready");
  const pid = /pid (\d+)/.exec(parent.out)?.[1] ?? "";
  parent.signal("SIGKILL");
  server.child?.signal("SIGSTOP");
  writeFileSync(go, "");
  await eventually("it has ended", () => !existsSync(`/proc/${pid}`), 40_000);
});

/** A server whose streams are in turn of these kinds: silent, every write refused for good or for now, ended with an error. */
async function strange(kinds: string): Promise<string> {
  let streams = 0;
  const handler = connectNodeAdapter({
    routes: (router) =>
      router.service(IngestService, {
        async *ingest(requests) {
          const all = kinds.split(",");
          const kind = all[++streams % all.length];
          for await (const { sequence, write } of requests) {
            if (kind === "silent" || write.case === "heartbeat") continue;
            if (kind === "broken") throw new ConnectError("no", Code.Internal);
            const code = kind === "refused" ? Code.InvalidArgument : Code.Unavailable;
            yield { sequence, result: { case: "error" as const, value: create(StatusSchema, { code, message: kind ?? "" }) } };
          }
        },
      }),
  });
  const port = await freePort();
  const server = createServer(handler).listen(port, "127.0.0.1");
  later(() => void server.close());
  return `127.0.0.1:${port}`;
}
