// Compiles src twice, to ES modules and to CommonJS, each in a folder that says which of the two it is.

import { execFileSync } from "node:child_process";
import { rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const tsc = path.join(root, "node_modules", "typescript", "bin", "tsc");

rmSync(path.join(root, "dist"), { recursive: true, force: true });
for (const [format, type] of [["esm", "module"], ["cjs", "commonjs"]]) {
  execFileSync(process.execPath, [tsc, "-p", path.join(root, `tsconfig.${format}.json`)], { stdio: "inherit" });
  writeFileSync(path.join(root, "dist", format, "package.json"), `{ "type": "${type}" }\n`);
}
