/** What an app may set, and what holds when it does not. */

import { homedir } from "node:os";

import { defaultFolder } from "./spool.js";
import { DEFAULT_SERVER, isPrivate, withPort, type TlsOptions } from "./transport.js";
import type { Redact } from "./values.js";

/**
 * Options of {@link configure}. What is left out is taken from the environment (`STEPWELL_SERVER`, `STEPWELL_APP`,
 * `STEPWELL_USER`, `STEPWELL_MODE`, `STEPWELL_SPOOL_DIR`, `STEPWELL_KEY`), else from the defaults named here.
 */
export interface Options {
  /** Address of the server, `host:port` or a URL; `127.0.0.1:50051`. Without a port 50051, with `https://` 443. */
  server?: string | undefined;
  /** Name of the app, for runs that do not name theirs. */
  app?: string | undefined;
  /** Number of the app, where apps have numbers. */
  appId?: number | undefined;
  /** Name of the part of the app. */
  subApp?: string | undefined;
  /** Who runs it, or a function that says so for each run. */
  user?: string | (() => string | undefined) | undefined;
  /**
   * `on`: report. `disabled`: do nothing. `memory`: keep what is reported for a test, in {@link Client.recorded}.
   */
  mode?: "on" | "disabled" | "memory" | undefined;
  /**
   * The folder of the spool; one for each server below `$XDG_STATE_HOME/stepwell/spool` or
   * `~/.local/state/stepwell/spool`. `false`: none, so what is not sent is lost with the process.
   */
  spoolDir?: string | false | undefined;
  /** Size of the spool, artifacts included; 256 MiB. When it is full, updates are left out, then metrics, then payloads. */
  spoolMaxBytes?: number | undefined;
  /** Size of what is kept in memory too, so that it need not be read back; 32 MiB. */
  memoryMaxBytes?: number | undefined;
  /** How long {@link flush}, and the end of the process, wait for the server; 5000. */
  flushTimeoutMs?: number | undefined;
  /** Mark a run FAILED when its process is silent for this long; 60,000. `null`: never. */
  heartbeatTimeoutMs?: number | null | undefined;
  /** An input or output larger than this becomes an artifact, with a preview in its place; 1 MiB, at most 6. */
  maxPayloadBytes?: number | undefined;
  /** Whether {@link traced} reports arguments; true. */
  captureInput?: boolean | undefined;
  /** Whether {@link traced} reports results; true. */
  captureOutput?: boolean | undefined;
  /**
   * Sees every input, output and metadata value, whole and part by part, before it is kept anywhere; what it returns is
   * reported in its place, and nothing where it returns `undefined`.
   */
  redact?: Redact | undefined;
  /** Metadata of every run. */
  metadata?: Record<string, unknown> | undefined;
  /** Encrypt the connection; an `https://` address does too. */
  tls?: TlsOptions | undefined;
  /** Sent with every call, for instance `authorization: "Bearer swk_..."`. */
  headers?: Record<string, string> | undefined;
}

/** Every option with its value. */
export interface Settings {
  server: string;
  app: string;
  appId: number | undefined;
  subApp: string | undefined;
  user: () => string | undefined;
  mode: "on" | "disabled" | "memory";
  spoolDir: string | undefined;
  spoolMaxBytes: number;
  memoryMaxBytes: number;
  flushTimeoutMs: number;
  heartbeatTimeoutMs: number | undefined;
  maxPayloadBytes: number;
  captureInput: boolean;
  captureOutput: boolean;
  redact: Redact | undefined;
  metadata: Record<string, unknown> | undefined;
  tls: TlsOptions | undefined;
  headers: Record<string, string> | undefined;
}

/** Options, else the environment, else defaults. */
export function settle(options: Options): Settings {
  const environment = (name: string): string | undefined => process.env[`STEPWELL_${name}`] || undefined;
  const user = options.user ?? environment("USER");
  const mode = options.mode ?? environment("MODE");
  const server = withPort(options.server ?? environment("SERVER") ?? DEFAULT_SERVER);
  const spoolDir = options.spoolDir ?? environment("SPOOL_DIR") ?? defaultFolder(homedir(), server);
  const heartbeatTimeoutMs = options.heartbeatTimeoutMs === undefined ? 60_000 : options.heartbeatTimeoutMs;
  return {
    server,
    app: options.app ?? environment("APP") ?? "app",
    appId: options.appId,
    subApp: options.subApp,
    user: typeof user === "function" ? user : () => user,
    mode: mode === "disabled" || mode === "memory" ? mode : "on",
    spoolDir: spoolDir === false ? undefined : spoolDir,
    spoolMaxBytes: options.spoolMaxBytes ?? 256 * 1024 * 1024,
    memoryMaxBytes: options.memoryMaxBytes ?? 32 * 1024 * 1024,
    flushTimeoutMs: options.flushTimeoutMs ?? 5_000,
    heartbeatTimeoutMs: heartbeatTimeoutMs ?? undefined,
    maxPayloadBytes: options.maxPayloadBytes ?? 1024 * 1024,
    captureInput: options.captureInput ?? true,
    captureOutput: options.captureOutput ?? true,
    redact: options.redact,
    metadata: options.metadata,
    tls: options.tls,
    headers: withKey(options.headers, server, options.tls),
  };
}

/**
 * The headers of calls, with the key or token of the environment where they name none. It goes over TLS or to this machine
 * alone: whoever sends it in clear has to say so with `headers`.
 */
export function withKey(
  headers: Record<string, string> | undefined,
  server: string,
  tls: TlsOptions | undefined,
): Record<string, string> | undefined {
  const key = process.env["STEPWELL_KEY"] || process.env["STEPWELL_TOKEN"];
  if (!key || Object.keys(headers ?? {}).some((name) => name.toLowerCase() === "authorization")) return headers;
  if (isPrivate(server, tls)) return { ...headers, authorization: `Bearer ${key}` };
  process.emitWarning(`the key of the environment is not sent to ${server}, as the connection is not encrypted: begin it with https://`, {
    type: "StepwellWarning",
    code: "KEY_IN_CLEAR",
  });
  return headers;
}
