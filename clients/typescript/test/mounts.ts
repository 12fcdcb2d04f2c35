import { execFileSync } from "node:child_process";
import { mkdtempSync, rmdirSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";

let mountable: boolean | undefined;

/** Whether this machine lets a test mount a small disk of its own. */
export function canMount(): boolean {
  if (mountable === undefined) {
    const at = mkdtempSync(path.join(tmpdir(), "stepwell-mount-"));
    try {
      execFileSync("unshare", ["-Urm", "sh", "-c", `mount -t tmpfs -o size=64k tmpfs ${at}`], { stdio: "ignore" });
      mountable = true;
    } catch {
      mountable = false;
    }
    rmdirSync(at);
  }
  return mountable;
}
