/**
 * Which processes live: each listens on a socket of its own beside its spool, and lives as long as the kernel accepts a
 * connection there.
 *
 * Node has no flock. A pid says nothing: it is reused, and in a container it is another one. A file that says "I live"
 * outlives a kill. A listening socket has what is needed: the kernel closes it whatever ends the process, kill -9
 * included; it accepts connections for a process that is frozen or whose event loop is busy, so nobody is taken for
 * dead who is not; a socket in the file system is the same for all containers that share the folder; and it needs no
 * native code. Names are never used twice, so who was found dead stays dead, and of several that find it the one whose
 * `rename` of a file succeeds has it.
 */

import { createHash } from "node:crypto";
import { closeSync, constants, existsSync, openSync, realpathSync, unlinkSync } from "node:fs";
import { createConnection, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import * as path from "node:path";

/** What the kernels take as the path of a socket, in bytes: 104 on macOS, 108 on Linux, with the final zero. */
const PATH_BYTES = 103;

/** A lock that is held until the process ends, or until it is released. */
export class Lock {
  private constructor(
    private readonly server: Server,
    private readonly folder: string,
    private readonly name: string,
  ) {}

  /** Takes the lock of this name; `undefined` where this file system has no sockets. */
  static hold(folder: string, name: string): Lock | undefined {
    return withAddress(folder, name, (address) => {
      // Whoever connects only wants to know whether that works.
      const server = createServer((socket) => socket.destroy());
      server.on("error", () => undefined);
      // `exclusive`: in a worker of `cluster` the socket would else be the parent's, and outlive the worker.
      server.listen({ path: address, exclusive: true });
      server.unref();
      return server.listening ? new Lock(server, folder, name) : undefined;
    });
  }

  /** Whether its socket still is in the folder. */
  get isThere(): boolean {
    return [path.join(this.folder, fileName(this.name)), elsewhere(this.folder, this.name)].some((each) => existsSync(each));
  }

  /** Gives the lock up; its socket is gone. */
  release(): void {
    this.server.close();
    Lock.clear(this.folder, this.name);
  }

  /** Whether a process holds the lock of this name. In doubt it does. */
  static isHeld(folder: string, name: string): Promise<boolean> {
    return withAddress(
      folder,
      name,
      (address, done) =>
        new Promise<boolean>((resolve) => {
          const settle = (held: boolean): void => {
            socket.destroy();
            done();
            resolve(held);
          };
          const socket = createConnection({ path: address });
          socket.on("connect", () => settle(true));
          socket.on("error", (error: NodeJS.ErrnoException) => {
            settle(error.code !== "ECONNREFUSED" && error.code !== "ENOENT");
          });
        }),
    );
  }

  /** Removes what a process that was killed has left of its lock. */
  static clear(folder: string, name: string): void {
    for (const address of [() => path.join(folder, fileName(name)), () => elsewhere(folder, name)]) {
      try {
        unlinkSync(address());
      } catch {
        // It was not there, the folder neither, or another process was first.
      }
    }
  }
}

function fileName(name: string): string {
  return `${name}.lock`;
}

/** Where the lock is if the path of the folder is too long for a socket. */
function elsewhere(folder: string, name: string): string {
  const digest = createHash("sha256").update(realpathSync(folder)).digest("hex").slice(0, 16);
  return path.join(tmpdir(), `stepwell-${digest}-${fileName(name)}`);
}

/** Calls `use` with the address of a lock. `done` is called when the address is no longer needed. */
function withAddress<T>(folder: string, name: string, use: (address: string, done: () => void) => T): T {
  if (process.platform === "win32") return use(`\\\\.\\pipe\\stepwell-${name}`, () => undefined);
  const direct = path.join(folder, fileName(name));
  if (Buffer.byteLength(direct) <= PATH_BYTES) return use(direct, () => undefined);
  if (process.platform !== "linux") return use(elsewhere(folder, name), () => undefined);
  // On Linux an open folder has a short path too.
  const fd = openSync(folder, constants.O_RDONLY | constants.O_DIRECTORY);
  let open = true;
  const close = (): void => {
    if (open) closeSync(fd);
    open = false;
  };
  const result = use(`/proc/self/fd/${fd}/${fileName(name)}`, close);
  if (!(result instanceof Promise)) close();
  return result;
}
