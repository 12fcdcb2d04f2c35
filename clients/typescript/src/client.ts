/**
 * The reporting of this process: its settings, its spool, its writer, its heartbeats, and its end.
 *
 * Nothing in here throws into the app or waits for the network. What goes wrong is counted, and said once for each
 * reason as a warning of the process.
 */

import { createClient } from "@connectrpc/connect";
import { isMainThread } from "node:worker_threads";
import { debuglog, inspect } from "node:util";

import { AdminService } from "./gen/stepwell/v1/admin_service_pb.js";
import { ExecutionStatus } from "./gen/stepwell/v1/common_pb.js";
import type { Artifact } from "./gen/stepwell/v1/common_pb.js";
import { DEFAULT_LIMITS, limitsOf, type Limits } from "./limits.js";
import { settle, type Options, type Settings } from "./options.js";
import { ARTIFACTS_SHARE, remember } from "./room.js";
import { Recorder, type RecordedRun } from "./recorder.js";
import { addressOf, Spool } from "./spool.js";
import { openChannel, type Channel } from "./transport.js";
import { Uploads, type Description, type Source } from "./uploads.js";
import { finishExecution, type ErrorText } from "./writes.js";
import type { Write } from "./entry.js";
import { Writer } from "./writer.js";

/** How often to look whether a cancel was requested, at least. */
const BEAT_MS = 5_000;
/** How often to look for the spools of processes that have ended. */
const TAKE_OVER_MS = 60_000;

/** Files of processes that have ended which are open at a time. */
const TAKEN_FILES = 64;
/** Runs of which is remembered that they were reported here, and steps whose progress is held back, at most. */
const REMEMBERED = 10_000;
const PENDING = 1000;
/** Reasons that are said, at most. */
const REASONS = 1000;

const debug = debuglog("stepwell");

/** What reporting has done so far. */
export interface Stats {
  /** Writes and artifacts that are not durable at the server yet. */
  queued: number;
  /** Bytes of the spool. */
  spooledBytes: number;
  /** Writes that are durable. */
  acked: number;
  /** Writes that the server refused for good. */
  refused: number;
  /** Writes and artifacts that are never sent, as there was no room for them or they could not be read. */
  dropped: number;
  /** Writes whose input or output was left out, as there was no room for it. */
  shortened: number;
  /** Defects of this package that the app was spared. */
  defects: number;
  /** Whether there is a connection, as far as known. */
  connected: boolean;
  /** The last thing that went wrong. */
  lastError: string | undefined;
}

/** What a run tells the client of itself. */
export interface Beating {
  readonly id: string;
  /** Somebody asked it to stop. */
  cancelRequested(): void;
}

/** Something that is held back for a moment, such as progress. */
export interface Pending {
  commit(): void;
}

/** The reporting of this process. */
export class Client {
  /** @internal */
  readonly settings: Settings;
  /** @internal */
  limits: Limits = DEFAULT_LIMITS;
  private spool: Spool | undefined;
  private channel: Channel | undefined;
  private writer: Writer | undefined;
  private uploads: Uploads | undefined;
  private readonly recorder: Recorder | undefined;
  /** Runs that nobody holds any more are not kept by their heartbeats. */
  private readonly beating = new Map<string, WeakRef<Beating>>();
  private readonly forgotten = new FinalizationRegistry<string>((id) => {
    if (this.beating.get(id)?.deref() === undefined) this.unbeat(id);
  });
  private readonly pending = new Set<Pending>();
  private readonly own = new Map<string, true>();
  private readonly warned = new Set<string>();
  private timers: NodeJS.Timeout[] = [];
  private beatMs = BEAT_MS;
  private beatTimer: NodeJS.Timeout | undefined;
  private faults = 0;
  private uploadCounts = { refused: 0, dropped: 0 };
  private lastError: string | undefined;
  private state: "new" | "open" | "closed" = "new";
  private asked = false;
  private moreIsLeft = false;
  private takingOver: Promise<void> | undefined;
  private lastSequence = 0;

  /** @internal Use {@link configure}. */
  constructor(options: Options) {
    this.settings = settle(options);
    if (this.settings.mode === "memory") this.recorder = new Recorder();
  }

  /** Everything so far is durable (`true`), or still in the spool (`false`). Never rejects. */
  async flush(timeoutMs: number = this.settings.flushTimeoutMs): Promise<boolean> {
    try {
      this.commitPending();
      if (this.writer === undefined || this.uploads === undefined) return true;
      const until = Date.now() + timeoutMs;
      const written = await this.writer.flush(timeoutMs);
      const uploaded = await this.uploads.flush(Math.max(0, until - Date.now()));
      return written && uploaded;
    } catch (error) {
      this.fault(error);
      return false;
    }
  }

  /** Flushes and lets everything go: the spool, the connection, timers. What is reported after it is dropped. */
  async shutdown(timeoutMs: number = this.settings.flushTimeoutMs): Promise<boolean> {
    const flushed = await this.flush(timeoutMs);
    this.close();
    return flushed;
  }

  /** What reporting has done so far. */
  stats(): Stats {
    const counts = this.writer?.counts;
    return {
      queued: (this.writer?.queued ?? 0) + (this.uploads?.queued ?? 0),
      spooledBytes: this.spool?.bytes ?? 0,
      acked: counts?.acked ?? 0,
      refused: (counts?.refused ?? 0) + this.uploadCounts.refused,
      dropped: (counts?.dropped ?? 0) + this.uploadCounts.dropped,
      shortened: counts?.shortened ?? 0,
      defects: this.faults,
      connected: counts?.connected ?? false,
      lastError: this.lastError ?? counts?.lastError,
    };
  }

  /** @internal What a log shows of it. */
  toJSON(): { server: string; stats: Stats } {
    return { server: this.settings.server, stats: this.stats() };
  }

  /** @internal */
  [inspect.custom](): string {
    return `Client ${inspect(this.toJSON())}`;
  }

  /** With `mode: "memory"`: the runs that were reported. */
  recorded(): RecordedRun[] {
    this.commitPending();
    return this.recorder?.runs() ?? [];
  }

  // --- for runs and steps -------------------------------------------------------------------------------------

  /** @internal Runs what must not throw. */
  guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.fault(error);
    }
  }

  /** @internal */
  report(write: Write, quiet = false): void {
    if (this.recorder !== undefined) this.recorder.take(write);
    else if (this.settings.mode === "on") {
      const open = this.opened();
      if (open === undefined) this.uploadCounts.dropped++;
      else open.writer.add(write, quiet);
    }
  }

  /** @internal */
  upload(description: Omit<Description, "uploadId" | "since">, source: Source): Promise<Artifact | undefined> {
    if (this.recorder !== undefined) {
      this.recorder.artifact(description, source);
      return Promise.resolve(undefined);
    }
    const open = this.settings.mode === "on" ? this.opened() : undefined;
    if (open !== undefined && this.state === "open") return open.uploads.add(description, source);
    if (this.settings.mode === "on") this.uploadCounts.dropped++;
    return Promise.resolve(undefined);
  }

  /** @internal Numbers of updates: microseconds of the clock, and always greater than the last. */
  nextSequence(): bigint {
    this.lastSequence = Math.max(this.lastSequence + 1, Date.now() * 1000);
    return BigInt(this.lastSequence);
  }

  /** @internal Sends signs of life for a run from now on. */
  beat(run: Beating, timeoutMs: number | undefined): void {
    if (this.settings.mode !== "on") return;
    this.beating.set(run.id, new WeakRef(run));
    this.forgotten.register(run, run.id);
    const every = Math.max(25, Math.min(BEAT_MS, (timeoutMs ?? Number.POSITIVE_INFINITY) / 4));
    if (this.beatTimer !== undefined && every >= this.beatMs) return;
    clearInterval(this.beatTimer);
    this.beatMs = every;
    this.beatTimer = setInterval(() => this.guard(() => this.beatAll()), every);
    this.beatTimer.unref();
  }

  /** @internal No more signs of life. */
  unbeat(id: string): void {
    this.beating.delete(id);
    if (this.beating.size > 0) return;
    clearInterval(this.beatTimer);
    this.beatTimer = undefined;
    this.beatMs = BEAT_MS;
  }

  /** @internal Whether it may be held back: not when very much is already. */
  addPending(pending: Pending): boolean {
    if (this.pending.size >= PENDING) return false;
    this.pending.add(pending);
    return true;
  }

  /** @internal */
  removePending(pending: Pending): void {
    this.pending.delete(pending);
  }

  /** @internal A run that this process reports of. */
  claim(id: string): void {
    remember(this.own, id, true, REMEMBERED);
  }

  /** @internal Others go on with a run that this process has made: its death is not the end of it. */
  share(id: string): void {
    try {
      if (this.state === "open") this.spool?.share(id);
    } catch {
      // The disk does not take it: then it does not take what there would be to send either.
    }
  }

  /** @internal Sends what this process has reported of a run, or of any, before somebody reads it. */
  async flushBeforeReading(server: string, id?: string): Promise<void> {
    if (this.state !== "open" || server !== this.settings.server) return;
    if (id !== undefined && !this.own.has(id)) return;
    await this.flush();
  }

  /** @internal */
  fault(error: unknown): void {
    this.faults++;
    this.lastError = error instanceof Error ? error.message : String(error);
    debug("%o", error);
  }

  // --- beginning and end --------------------------------------------------------------------------------------

  private opened(): { writer: Writer; uploads: Uploads } | undefined {
    if (this.state === "new") this.open();
    const { writer, uploads } = this;
    return writer === undefined || uploads === undefined ? undefined : { writer, uploads };
  }

  private open(): void {
    this.state = "open";
    if (this.settings.mode !== "on") return;
    if (this.settings.spoolDir !== undefined) {
      try {
        this.spool = Spool.open(this.settings.spoolDir, addressOf(this.settings.server));
      } catch (error) {
        this.lastError = error instanceof Error ? error.message : String(error);
        this.warn("SPOOL_UNWRITABLE", `there is no spool (${this.lastError}): kept in memory`);
      }
    }
    const { server, tls, headers, spoolMaxBytes, memoryMaxBytes } = this.settings;
    try {
      this.channel = openChannel({ server, tls, headers }, true);
    } catch (error) {
      this.warn("BAD_SERVER", `nothing is reported: ${error instanceof Error ? error.message : String(error)}`);
      return;
    }
    this.writer = new Writer(this.channel.transport, this.spool, { spoolMaxBytes, memoryMaxBytes }, {
      heartbeat: (id, cancelRequested) => {
        if (cancelRequested) this.guard(() => this.beating.get(id)?.deref()?.cancelRequested());
      },
      durable: (_id, kind) => {
        if (kind === "createExecution") this.uploads?.hurry();
      },
      connected: () => this.ask(),
      warn: (reason, message) => this.warn(reason, message),
    });
    const ofArtifacts = { spoolMaxBytes, memoryMaxBytes: memoryMaxBytes * ARTIFACTS_SHARE };
    this.uploads = new Uploads(this.channel.transport, this.spool, ofArtifacts, {
      creationOf: (id) => this.writer?.creationOf(id),
      refused: (reason, message) => {
        this.uploadCounts.refused++;
        this.warn(reason, message);
      },
      dropped: (reason, message) => {
        this.uploadCounts.dropped++;
        this.warn(reason, message);
      },
    });
    if (this.spool !== undefined) {
      const timer = setInterval(() => void this.takeOver(), TAKE_OVER_MS);
      timer.unref();
      this.timers.push(timer);
      setImmediate(() => void this.takeOver()).unref();
    }
    installHooks(this);
  }

  /** @internal Another client has taken its place: goes on until the runs it has are ended and durable. */
  retire(): void {
    const closeOnceDone = (): void => {
      if (this.beating.size === 0 && !this.isBusy) this.close();
    };
    closeOnceDone();
    if (this.state !== "open") return;
    const timer = setInterval(closeOnceDone, 500);
    timer.unref();
    this.timers.push(timer);
  }

  /** @internal Everything that can be let go at once. */
  close(): void {
    if (this.state === "closed") return;
    this.guard(() => this.commitPending());
    this.state = "closed";
    for (const timer of this.timers) clearInterval(timer);
    clearInterval(this.beatTimer);
    this.beating.clear();
    this.writer?.stop();
    this.uploads?.stop();
    this.guard(() => this.spool?.close());
    this.guard(() => this.channel?.close());
    removeHooks(this);
  }

  /** @internal Leaves what is not sent to the spool, unless something more is reported, and says so. */
  rest(): void {
    const { queued, lastError } = this.stats();
    if (queued > 0) {
      const why = lastError === undefined ? "" : ` (${lastError})`;
      const then =
        this.spool === undefined
          ? "are lost, as there is no spool"
          : `wait in ${this.settings.spoolDir}: the next program that reports there sends them`;
      this.warn("LEFT", `${this.settings.server} has not taken everything${why}: ${queued} writes ${then}`);
    }
    this.writer?.rest();
    this.uploads?.rest();
  }

  /** @internal Writes down what is held back. */
  commitPending(): void {
    for (const pending of [...this.pending]) this.guard(() => pending.commit());
  }

  /** @internal */
  get isBusy(): boolean {
    return this.pending.size > 0 || this.writer?.isBusy === true || (this.uploads?.queued ?? 0) > 0;
  }

  private beatAll(): void {
    for (const [id, run] of this.beating) {
      if (run.deref() === undefined) {
        this.unbeat(id);
        continue;
      }
      // One that is not stored yet needs no sign of life: its writes are some.
      const creation = this.writer?.creationOf(id);
      if (creation === undefined || creation === "durable") this.writer?.beat(id);
    }
  }

  /** Asks the server for its limits, once. */
  private ask(): void {
    if (this.asked || this.channel === undefined) return;
    this.asked = true;
    const admin = createClient(AdminService, this.channel.transport);
    // A deadline of the library would keep the process alive; this one does not.
    admin.getServerInfo({}, { signal: AbortSignal.timeout(10_000) }).then(
      ({ limits }) => {
        this.limits = limitsOf(limits);
      },
      () => {
        this.asked = false;
      },
    );
  }

  /** Takes what processes that have ended have left, sends it, and ends the runs they have left behind. */
  private takeOver(): Promise<void> {
    this.takingOver ??= this.takeAll().finally(() => {
      this.takingOver = undefined;
    });
    return this.takingOver;
  }

  private async takeAll(): Promise<void> {
    try {
      await this.spool?.takeOver(({ segments, artifacts, endedAt }) => {
        this.writer?.adopt(segments, (running) => {
          for (const id of running) this.report(finishExecution(id, ExecutionStatus.FAILED, endedAt, PROCESS_DIED), true);
          if (this.moreIsLeft && this.writer?.takenFiles === 0) void this.takeOver();
        });
        this.uploads?.adopt(artifacts);
        this.moreIsLeft = (this.writer?.takenFiles ?? 0) > TAKEN_FILES || this.uploads?.isFull === true;
        return !this.moreIsLeft;
      });
    } catch (error) {
      this.fault(error);
    }
  }

  /** @internal Once for each reason. */
  warn(reason: string, message: string): void {
    this.lastError = message;
    debug("%s: %s", reason, message);
    if (this.warned.has(reason) || this.warned.size >= REASONS) return;
    this.warned.add(reason);
    process.emitWarning(message, { type: "StepwellWarning", code: reason });
  }
}

/** How a run ends whose process has ended without ending it: a guess, which a later end of the run replaces. */
const PROCESS_DIED: ErrorText = {
  message: "the process that reported this run ended before the run did",
  code: "PROCESS_DIED",
  stackTrace: "",
  details: undefined,
};

// --- the end of the process ---------------------------------------------------------------------------------------

const living = new Set<Client>();
/** Whether what has not been sent at the end stays in the spool: once in vain is enough. */
let gaveUp = false;
let listensToSigterm = false;

function installHooks(client: Client): void {
  living.add(client);
  if (living.size > 1) return;
  process.on("beforeExit", beforeExit);
  process.on("exit", onExit);
  // Signals come to the main thread; one that the app listens to is the app's.
  listensToSigterm = isMainThread && process.listenerCount("SIGTERM") === 0;
  if (listensToSigterm) process.on("SIGTERM", onSigterm);
}

function removeHooks(client: Client): void {
  if (!living.delete(client) || living.size > 0) return;
  process.off("beforeExit", beforeExit);
  process.off("exit", onExit);
  if (listensToSigterm) process.off("SIGTERM", onSigterm);
}

function beforeExit(): void {
  const busy = [...living].filter((client) => client.isBusy);
  if (busy.length === 0 || gaveUp) return;
  // Flushing is work, so the process comes by here once more.
  void Promise.all(busy.map((client) => client.flush())).then((done) => {
    gaveUp = done.includes(false);
    // What is under way would keep the process until all of it is sent.
    if (gaveUp) for (const client of busy) client.rest();
  });
}

function onExit(): void {
  for (const client of [...living]) client.close();
}

function onSigterm(): void {
  // An app that has a listener of its own by now ends by itself.
  const alone = process.listenerCount("SIGTERM") === 1;
  void Promise.all([...living].map((client) => (alone ? client.shutdown() : client.flush()))).then(() => {
    // As if nobody had listened: the last client has taken the listener along.
    if (alone) process.kill(process.pid, "SIGTERM");
  });
}
