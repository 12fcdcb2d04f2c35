/** Builds the package, as programs of the tests use what is published, and starts one MongoDB for all tests. */

import { execFileSync } from "node:child_process";
import * as path from "node:path";

import type { TestProject } from "vitest/node";

import { Mongod } from "./mongod.js";

declare module "vitest" {
  interface ProvidedContext {
    mongodb: string | undefined;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  execFileSync(process.execPath, [path.join(import.meta.dirname, "..", "scripts", "build.mjs")], { stdio: "inherit" });
  const mongod = Mongod.isThere() ? await Mongod.start() : undefined;
  project.provide("mongodb", mongod?.uri);
  return async () => {
    await mongod?.stop();
  };
}
