/** The connection to a server. */

import { readFileSync } from "node:fs";
import { connect as connectTcp, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";

import type { Interceptor, Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { Sessions } from "./session.js";

/** How to trust a server, and how it trusts this client. Texts are PEM; values that name a file are read. */
export interface TlsOptions {
  /** Certificates of the authorities to trust, instead of those of Node. */
  ca?: string;
  /** The certificate of this client. */
  cert?: string;
  /** The key of this client's certificate. */
  key?: string;
  /** The name to expect in the server's certificate, if it is not that of the address. */
  serverName?: string;
}

/** Where a server is and what is sent to it with every call. */
export interface Connection {
  server: string;
  tls: TlsOptions | undefined;
  headers: Readonly<Record<string, string>> | undefined;
}

/** A transport and the way to close it. */
export interface Channel {
  transport: Transport;
  close(): void;
}

/** Where servers listen unless they are told otherwise. */
export const DEFAULT_SERVER = "127.0.0.1:50051";

/** An address with its port: who says `127.0.0.1` means the server there, and not what listens on port 80. */
export function withPort(server: string): string {
  const [, scheme = "", authority = ""] = /^([a-z]+:\/\/)?([^]*?)\/*$/i.exec(server) ?? [];
  return authority === "" || /^https:/i.test(scheme) || /:\d+$/.test(authority) ? server : `${scheme}${authority}:50051`;
}

/** Whether what is sent there stays on this machine. */
function isThisMachine(host: string): boolean {
  return host === "localhost" || host.endsWith(".localhost") || host === "[::1]" || /^127(\.\d+){3}$/.test(host);
}

/** Whether nobody on the way can read what is sent. */
export function isPrivate(server: string, tls: TlsOptions | undefined): boolean {
  if (tls !== undefined || /^https:/i.test(server)) return true;
  return isThisMachine(withPort(server).replace(/^[a-z]+:\/\//i, "").replace(/:\d+\/*$/, ""));
}

/** Records and payloads are at most 16 MiB; a reply never is more than 4. */
const MESSAGE_BYTES = 32 * 1024 * 1024;

/**
 * Opens a channel, which connects when it is first used. One that is `quiet` never keeps the process alive: its socket
 * does not count, whatever is open on it. Others count while a call is open.
 */
export function openChannel({ server, tls, headers }: Connection, quiet: boolean): Channel {
  const address = withPort(server);
  const url = new URL(/^[a-z]+:\/\//i.test(address) ? address : `${tls === undefined ? "http" : "https"}://${address}`);
  const secure = url.protocol === "https:";
  const sessions = new Sessions({
    authority: url.origin,
    // Three seconds to connect: all that a process can be kept by an address that does not answer at all.
    connectTimeoutMs: quiet ? 3_000 : 10_000,
    keepsAlive: !quiet,
    socket: () => {
      const host = url.hostname.replace(/^\[(.*)\]$/, "$1");
      const port = Number(url.port || (secure ? 443 : 80));
      const socket: Socket = secure
        ? connectTls({
            host,
            port,
            ALPNProtocols: ["h2"],
            servername: tls?.serverName ?? (/^[\d.]+$|:/.test(host) ? "" : host),
            ...(tls?.ca === undefined ? {} : { ca: pem(tls.ca) }),
            ...(tls?.cert === undefined ? {} : { cert: pem(tls.cert) }),
            ...(tls?.key === undefined ? {} : { key: pem(tls.key) }),
          })
        : connectTcp({ host, port });
      return socket.setNoDelay(true);
    },
  });
  const interceptors: Interceptor[] = [];
  if (headers !== undefined) {
    interceptors.push((next) => (request) => {
      for (const [name, value] of Object.entries(headers)) request.header.set(name, value);
      return next(request);
    });
  }
  const transport = createGrpcTransport({
    baseUrl: url.origin,
    sessionManager: sessions,
    interceptors,
    readMaxBytes: MESSAGE_BYTES,
    writeMaxBytes: MESSAGE_BYTES,
    // Answers to what is reported are small. To unpack each would take longer than all else, and the threads that do it keep
    // the process alive.
    ...(quiet ? { acceptCompression: [] } : {}),
  });
  return { transport, close: () => sessions.close() };
}

function pem(text: string): string {
  return text.includes("-----BEGIN") ? text : readFileSync(text, "utf8");
}

/** How often what sends without end leaves the event loop to others, and for how long. */
const BREATH_MS = { every: 500, long: 2, look: 5 } as const;
/** So often it is looked for an answer in vain before it is no longer waited for. */
const SILENT_LOOKS = 200;
/** After that, so many times as long until the next time: one that takes long must not hold up all others again and again. */
const SILENT_FACTOR = 10;

/**
 * Lets the event loop run empty now and then, where the app has nothing more to do: sending keeps it busy, and what is
 * busy never ends. The timers do not count, so `beforeExit` comes.
 */
export class Breath {
  private at = Date.now() + BREATH_MS.every;

  get isDue(): boolean {
    return Date.now() >= this.at;
  }

  /**
   * First waits for the answers to what is under way, as they keep the event loop busy too: there is an end to them, since nothing
   * is sent meanwhile. How long they take is counted in turns of the event loop, which may be held up by the app itself.
   */
  async take(underWay: () => number, answers: () => number): Promise<void> {
    let silent = 0;
    while (underWay() > 0 && silent < SILENT_LOOKS) {
      const before = answers();
      await unseen(BREATH_MS.look);
      silent = answers() === before ? silent + 1 : 0;
    }
    await unseen(BREATH_MS.long);
    this.at = Date.now() + BREATH_MS.every * (silent < SILENT_LOOKS ? 1 : SILENT_FACTOR);
  }
}

/** A while that keeps no process alive. */
function unseen(ms: number): Promise<void> {
  return new Promise((resolve) => void setTimeout(resolve, ms).unref());
}

/** A random share of a time, from half of it to all of it. */
export function jittered(ms: number): number {
  return ms * (0.5 + Math.random() / 2);
}
