/** A MongoDB of the tests: a replica set of one node. */

import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";

import { MongoClient } from "mongodb";

import { Child, eventually, freePort } from "./child.js";

function binary(): string | undefined {
  const target = process.env["CARGO_TARGET_DIR"] ?? path.join(import.meta.dirname, "../../../target");
  const found = [process.env["STEPWELL_TEST_MONGOD"], path.join(target, "mongod", "mongod")];
  for (const folder of (process.env["PATH"] ?? "").split(path.delimiter)) found.push(path.join(folder, "mongod"));
  return found.find((file) => file !== undefined && existsSync(file));
}

export class Mongod {
  private constructor(
    readonly child: Child,
    readonly uri: string,
    private readonly data: string,
  ) {}

  /** Whether there is one to start: `$STEPWELL_TEST_MONGOD`, on PATH, or fetched by `cargo test`. */
  static isThere(): boolean {
    return binary() !== undefined;
  }

  static async start(args: string[] = []): Promise<Mongod> {
    const port = await freePort();
    const data = mkdtempSync(path.join(tmpdir(), "stepwell-ts-mongod-"));
    const child = new Child(binary() ?? "mongod", [
      "--port", String(port), "--bind_ip", "127.0.0.1", "--dbpath", data, "--replSet", "rs0",
      "--wiredTigerCacheSizeGB", "0.25", "--nounixsocket", ...args,
    ]);
    const direct = new MongoClient(`mongodb://127.0.0.1:${port}/?directConnection=true`, { serverSelectionTimeoutMS: 30_000 });
    const admin = direct.db("admin");
    await admin.command({ replSetInitiate: { _id: "rs0", members: [{ _id: 0, host: `127.0.0.1:${port}` }] } });
    await eventually("a primary", async () => ((await admin.command({ hello: 1 })) as { isWritablePrimary: boolean }).isWritablePrimary);
    await direct.close();
    return new Mongod(child, `mongodb://127.0.0.1:${port}/?replicaSet=rs0`, data);
  }

  async stop(): Promise<void> {
    await this.child.stop("SIGTERM");
    rmSync(this.data, { recursive: true, force: true });
  }
}
