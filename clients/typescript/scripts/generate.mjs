// Makes src/gen from the API's protos; with --check, says whether src/gen is what they make.
//
// Takes `buf` from $PATH, where a check of the whole repository has put it, else from node_modules.

import { execFileSync } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const gen = path.join(root, "src", "gen");
const check = process.argv.includes("--check");
const bin = path.join(root, "node_modules", ".bin");

/** Every file below a folder, by its path in it. */
function files(folder) {
  const names = readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(folder, path.join(entry.parentPath ?? entry.path, entry.name)));
  return new Map(names.sort().map((name) => [name, readFileSync(path.join(folder, name), "utf8")]));
}

const out = mkdtempSync(path.join(tmpdir(), "stepwell-gen-"));
try {
  const template = {
    version: "v2",
    plugins: [{ local: path.join(bin, "protoc-gen-es"), out, opt: ["target=ts", "import_extension=js"] }],
  };
  execFileSync("buf", ["generate", path.join(root, "..", ".."), "--template", JSON.stringify(template)], {
    env: { ...process.env, PATH: `${bin}${path.delimiter}${process.env.PATH}` },
    stdio: "inherit",
  });
  if (check) {
    const [made, kept] = [files(out), files(gen)];
    const differ = [...new Set([...made.keys(), ...kept.keys()])].filter((name) => made.get(name) !== kept.get(name));
    if (differ.length > 0) {
      console.error(`src/gen is not what the protos make: ${differ.join(", ")}\nRun: npm run generate`);
      process.exitCode = 1;
    } else {
      console.log(`src/gen: ${made.size} files are what the protos make`);
    }
  } else {
    rmSync(gen, { recursive: true, force: true });
    cpSync(out, gen, { recursive: true });
  }
} finally {
  rmSync(out, { recursive: true, force: true });
}
