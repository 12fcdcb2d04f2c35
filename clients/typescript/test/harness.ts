/** Real servers on both stores, and programs that use the package as it is published. */

import { execFileSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import * as path from "node:path";

import { afterEach, inject } from "vitest";

import { configure, type Client, type Options } from "../src/index.js";
import { Api } from "../src/index.js";
import { Child, eventually, freePort } from "./child.js";

export { Child, eventually, freePort } from "./child.js";

export type Store = "sqlite" | "mongodb";
export const STORES: readonly Store[] = inject("mongodb") === undefined ? ["sqlite"] : ["sqlite", "mongodb"];

/**
 * What nothing holds up ends within this, also on a machine that has much else to do; what holds it up in these tests would do
 * so for good.
 */
export const NOT_HELD_UP_MS = 15_000;

const ROOT = path.join(import.meta.dirname, "..");

function binary(): string {
  const target = process.env["CARGO_TARGET_DIR"] ?? path.join(ROOT, "../../target");
  const found = [process.env["STEPWELL_BIN"], path.join(target, "release/stepwell"), path.join(target, "debug/stepwell")];
  const file = found.find((each) => each !== undefined && existsSync(each));
  if (file === undefined) throw new Error("no stepwell binary: set STEPWELL_BIN");
  return file;
}

/** What a command of the server's program prints, line by line, as JSON. */
export async function command(args: string[]): Promise<Record<string, unknown>[]> {
  const child = new Child(binary(), args, { env: clean() });
  const { code } = await child.ended;
  if (code !== 0) throw new Error(`it ended with ${code}: ${child.out}`);
  const lines = child.out.split("\n").filter((line) => line !== "");
  return lines.map((line) => JSON.parse(line) as Record<string, unknown>);
}

const cleanups: (() => void | Promise<void>)[] = [];

/** Does something when the test is over. */
export function later(work: () => void | Promise<void>): void {
  cleanups.push(work);
}

afterEach(async () => {
  for (const work of cleanups.splice(0).reverse()) await work();
});

export function folder(): string {
  const made = mkdtempSync(path.join(tmpdir(), "stepwell-ts-"));
  later(() => rmSync(made, { recursive: true, force: true }));
  return made;
}

/** A server that can be killed and started again at the same address on the same data. */
export class Server {
  child: Child | undefined;
  readonly data = folder();
  readonly database = `ts_${randomUUID().slice(0, 8)}`;

  private constructor(
    readonly store: Store,
    readonly port: number,
    private readonly mongodb: string | undefined,
  ) {}

  static async make(store: Store, mongodb = inject("mongodb")): Promise<Server> {
    const server = new Server(store, await freePort(), mongodb);
    later(() => server.stop());
    return server;
  }

  static async started(store: Store, mongodb = inject("mongodb")): Promise<Server> {
    const server = await Server.make(store, mongodb);
    await server.start();
    return server;
  }

  get address(): string {
    return `127.0.0.1:${this.port}`;
  }

  get mongodbUri(): string {
    return this.mongodb ?? "";
  }

  async start(env: Record<string, string> = {}): Promise<void> {
    const args = ["serve", "--listen", this.address, "--data-dir", this.data];
    if (this.store === "mongodb") args.push("--mongodb-uri", this.mongodbUri, "--mongodb-database", this.database);
    const child = new Child(binary(), args, { env: { ...clean(), ...env } });
    this.child = child;
    await eventually(`the server listens; it said: ${child.out}`, async () => {
      if (child.process.exitCode !== null) throw new Error(`the server ended: ${child.out}`);
      return listens(this.port);
    });
  }

  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    const { child } = this;
    this.child = undefined;
    if (child === undefined) return;
    child.signal("SIGCONT");
    await child.stop(signal);
  }

  async restart(signal: NodeJS.Signals): Promise<void> {
    await this.stop(signal);
    await this.start();
  }

  api(): Api {
    const api = new Api({ server: this.address });
    later(() => api.close());
    return api;
  }
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ port, host: "127.0.0.1" });
    socket.on("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.on("error", () => resolve(false));
  });
}

/** The environment without the settings of whoever runs the tests. */
export function clean(): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("STEPWELL_")));
}

/** A client of this process for the test, with a spool of its own. */
export function reporting(server: { address: string } | string, options: Options = {}): Client {
  const client = configure({
    server: typeof server === "string" ? server : server.address,
    spoolDir: folder(),
    flushTimeoutMs: 30_000,
    ...options,
  });
  later(async () => {
    await client.shutdown(0);
  });
  return client;
}

/** Starts a program of `test/programs` on the published package. */
export function program(name: string, options: Record<string, unknown>, wrap: string[] = [], flags: string[] = []): Child {
  const command = [...wrap, process.execPath, ...flags, path.join(ROOT, "test/programs", name), JSON.stringify(options)];
  const [file = process.execPath, ...args] = command;
  return new Child(file, args, { env: clean() });
}

/** Files of a spool that hold something. */
export function spooled(spool: string): string[] {
  return readdirSync(spool).filter((name) => {
    // It may go just now.
    const size = statSync(path.join(spool, name), { throwIfNoEntry: false })?.size ?? 0;
    return !name.endsWith(".lock") && size > 0;
  });
}

/** Python is what is here that can open SQLite as another program. */
export function sqlite(server: Server, script: string): void {
  execFileSync("python3", ["-c", `import sqlite3\ndb = sqlite3.connect(${JSON.stringify(path.join(server.data, "stepwell.db"))}, timeout=30)\n${script}`]);
}
