/** Processes of the tests. Each is ended with the test at the latest. */

import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

const children = new Set<ChildProcess>();
process.on("exit", () => {
  for (const child of children) child.kill("SIGKILL");
});

export class Child {
  readonly process: ChildProcess;
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  out = "";

  constructor(command: string, args: string[], options: { env?: NodeJS.ProcessEnv; cwd?: string } = {}) {
    this.process = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], ...options });
    children.add(this.process);
    this.process.stdout?.on("data", (bytes: Buffer) => (this.out += bytes.toString()));
    this.process.stderr?.on("data", (bytes: Buffer) => (this.out += bytes.toString()));
    this.ended = once(this.process, "close").then(([code, signal]) => {
      children.delete(this.process);
      return { code: code as number | null, signal: signal as NodeJS.Signals | null };
    });
  }

  get pid(): number {
    return this.process.pid ?? 0;
  }

  signal(signal: NodeJS.Signals): void {
    this.process.kill(signal);
  }

  async stop(signal: NodeJS.Signals): Promise<void> {
    this.signal(signal);
    await this.ended;
  }

  /** Waits until it has printed a text. */
  printed(text: string): Promise<true> {
    return eventually(`${text} from the process, which said: ${this.out}`, () => this.out.includes(text));
  }
}

export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
}

/** Asks again and again until the answer is yes; fails after a minute. */
export async function eventually(what: string, check: () => unknown, ms = 60_000): Promise<true> {
  const end = Date.now() + ms;
  for (;;) {
    if (await check()) return true;
    if (Date.now() > end) throw new Error(`not in time: ${what}`);
    await sleep(20);
  }
}
