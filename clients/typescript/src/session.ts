/**
 * One HTTP/2 connection, opened when it is needed and again when it was lost.
 *
 * Instead of the library's own, as that one keeps the process alive while a stream is open, and as no event of a lost
 * connection may ever reach the app: every emitter here has a listener for errors.
 */

import { Code, ConnectError } from "@connectrpc/connect";
import * as http2 from "node:http2";
import type { Socket } from "node:net";

/** With a call open, a silent connection is probed after this long, and given up when it does not answer. */
const PING_MS = { every: 20_000, timeout: 10_000 } as const;
/** A connection without a call is closed after this long. */
const IDLE_MS = 60_000;

/** What opens the connection. */
export interface Dialing {
  readonly authority: string;
  readonly connectTimeoutMs: number;
  /** Whether open calls keep the process alive. */
  readonly keepsAlive: boolean;
  socket(): Socket;
}

interface Live {
  readonly session: http2.ClientHttp2Session;
  calls: number;
  goingAway: boolean;
  aliveAt: number;
  timer: NodeJS.Timeout | undefined;
}

/** Opens connections and calls on them; what the transport of `@connectrpc/connect-node` takes as a session manager. */
export class Sessions {
  readonly authority: string;
  private live: Live | undefined;
  private opening: Promise<Live> | undefined;
  private readonly all = new Set<Live>();
  private closed = false;

  constructor(private readonly dialing: Dialing) {
    this.authority = dialing.authority;
  }

  async request(
    method: string,
    path: string,
    headers: http2.OutgoingHttpHeaders,
    options: Omit<http2.ClientSessionRequestOptions, "signal">,
  ): Promise<http2.ClientHttp2Stream> {
    const live = await this.usable();
    let stream: http2.ClientHttp2Stream;
    try {
      stream = live.session.request({ ...headers, ":method": method, ":path": path }, options);
    } catch (error) {
      throw unavailable(error);
    }
    // The caller listens too, but not before the next tick.
    stream.on("error", () => undefined);
    this.began(live);
    stream.once("close", () => this.ended(live));
    return stream;
  }

  notifyResponseByteRead(stream: http2.ClientHttp2Stream): void {
    for (const live of this.all) if (live.session === stream.session) live.aliveAt = Date.now();
  }

  /** Ends every connection with what is open on it. One that keeps nobody alive is not opened again. */
  close(): void {
    this.closed = !this.dialing.keepsAlive;
    for (const live of this.all) live.session.destroy();
    this.live = undefined;
  }

  private usable(): Promise<Live> {
    if (this.closed) return Promise.reject(unavailable(new Error("the client was shut down")));
    const { live } = this;
    if (live !== undefined && !live.goingAway && !live.session.closed && !live.session.destroyed) {
      return Promise.resolve(live);
    }
    this.opening ??= this.open().finally(() => {
      this.opening = undefined;
    });
    return this.opening;
  }

  private open(): Promise<Live> {
    return new Promise((resolve, reject) => {
      const { dialing } = this;
      let session: http2.ClientHttp2Session;
      let socket: Socket;
      try {
        socket = dialing.socket();
        socket.on("error", () => undefined);
        if (!dialing.keepsAlive) {
          socket.unref();
          // The session counts its socket in again for every call.
          socket.ref = () => socket;
        }
        session = http2.connect(dialing.authority, { createConnection: () => socket });
      } catch (error) {
        reject(unavailable(error));
        return;
      }
      const live: Live = { session, calls: 0, goingAway: false, aliveAt: Date.now(), timer: undefined };
      this.all.add(live);
      const timeout = setTimeout(() => session.destroy(new Error("no connection in time")), dialing.connectTimeoutMs);
      timeout.unref();
      session.once("connect", () => {
        clearTimeout(timeout);
        session.unref();
        this.live = live;
        this.rest(live);
        resolve(live);
      });
      session.on("error", (error) => reject(unavailable(error)));
      session.on("goaway", () => {
        live.goingAway = true;
        if (live.calls === 0) session.destroy();
      });
      session.once("close", () => {
        clearTimeout(timeout);
        clearTimeout(live.timer);
        this.all.delete(live);
        if (this.live === live) this.live = undefined;
        reject(unavailable(new Error("the connection was closed")));
      });
    });
  }

  private began(live: Live): void {
    if (live.calls++ > 0) return;
    if (this.dialing.keepsAlive) live.session.ref();
    clearTimeout(live.timer);
    this.probe(live);
  }

  private ended(live: Live): void {
    if (--live.calls > 0) return;
    if (live.session.destroyed) return;
    live.session.unref();
    if (live.goingAway) live.session.destroy();
    else this.rest(live);
  }

  private rest(live: Live): void {
    clearTimeout(live.timer);
    live.timer = setTimeout(() => live.session.close(), IDLE_MS);
    live.timer.unref();
  }

  private probe(live: Live): void {
    const silent = Date.now() - live.aliveAt;
    const wait = (ms: number, then: () => void): void => {
      clearTimeout(live.timer);
      live.timer = setTimeout(then, ms);
      live.timer.unref();
    };
    if (silent < PING_MS.every) {
      wait(PING_MS.every - silent, () => this.probe(live));
      return;
    }
    if (live.session.destroyed) return;
    wait(PING_MS.timeout, () => live.session.destroy(new Error("the connection does not answer")));
    try {
      live.session.ping((error) => {
        if (error !== null || live.calls === 0) return;
        live.aliveAt = Date.now();
        this.probe(live);
      });
    } catch {
      live.session.destroy();
    }
  }
}

function unavailable(error: unknown): ConnectError {
  if (error instanceof ConnectError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new ConnectError(message || "no connection", Code.Unavailable, undefined, undefined, error);
}
