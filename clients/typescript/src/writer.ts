/**
 * Brings what was reported to the server: one Ingest stream, everything in order, sent again until it is durable.
 *
 * Every write carries the ids and times of the moment it was reported, so sending it again changes nothing and a late
 * arrival keeps its times. What is not durable is in the spool; what does not fit in memory is only there.
 */

import { create, toBinary } from "@bufbuild/protobuf";
import { Code, createClient, type Client as RpcClient, type Transport } from "@connectrpc/connect";

import { Backlog } from "./backlog.js";
import {
  entryOf,
  executionIdOf,
  isAboutOneMessage,
  isDenied,
  isUpdate,
  merge,
  passing,
  recordKey,
  wired,
  type Entry,
  type Write,
} from "./entry.js";
import { codeName, detailsOfError, detailsOfStatus, type Details } from "./errors.js";
import { IngestRequestSchema, IngestService, type IngestRequest, type IngestResponse } from "./gen/stepwell/v1/ingest_service_pb.js";
import { ENTRY_BYTES, fitsInMemory, HELD_SHARE, judge, OBJECT_FACTOR, remember } from "./room.js";
import type { Location, Segment, Spool } from "./spool.js";
import { Breath, jittered } from "./transport.js";

/** Unanswered writes on a stream at most, in number and bytes. */
const WINDOW_WRITES = 2000;
const WINDOW_BYTES = 16 * 1024 * 1024;
/** A stream on which nothing is answered for this long is given up. */
const ANSWER_MS = 30_000;
/** A stream on which nothing is written for this long is closed. */
const IDLE_MS = 30_000;
/** Between two attempts, doubling. */
const RETRY_MS = { first: 100, most: 5_000 } as const;
/** After a server said that it does not know who this is, or does not let them. */
const DENIED_MS = 30_000;
/** The maker of a run may not have sent it yet: how often to ask, and how long. */
const UNKNOWN_MS = { first: 500, most: 30_000, end: 24 * 3600_000 } as const;
/** Writes that wait in memory to be sent, at most, before more are read from files. */
const READY = 1000;
/** Runs of which is remembered what became of their creation, or that it was dropped. */
const REMEMBERED = 10_000;
/** How long not to try a disk that did not take a record. */
const DISK_MS = 1_000;

/** After so many streams that ended because of some message, messages are sent one by one to find it. */
const FRUITLESS = 3;

/** What the writer says of itself. */
export interface WriterCounts {
  acked: number;
  refused: number;
  dropped: number;
  shortened: number;
  connected: boolean;
  lastError: string | undefined;
}

/** What the writer needs of the client. */
export interface WriterHooks {
  /** The answer to a heartbeat. */
  heartbeat(executionId: string, cancelRequested: boolean): void;
  /** A write of an execution is durable. */
  durable(executionId: string, kind: Write["case"]): void;
  /** There is a connection. */
  connected(): void;
  /** Says something to the operator of the app, once for each reason. */
  warn(reason: string, message: string): void;
}

/** What the writer may use. */
export interface WriterLimits {
  spoolMaxBytes: number;
  memoryMaxBytes: number;
}

/** One Ingest stream. */
interface Stream {
  readonly inflight: Map<number, Entry>;
  /** How many of these are writes, and their bytes; the rest are signs of life. */
  writes: number;
  bytes: number;
  /** Nothing more is sent on it. */
  draining: boolean;
  /** Failed for now. */
  readonly again: Entry[];
  /** What its next one has to wait for. */
  waitMs: number | undefined;
  answered: boolean;
  answers: number;
  lastAnswer: number;
  readonly abort: AbortController;
}

/** Writes of a run that the server does not know (yet). */
interface Held {
  readonly since: number;
  delay: number;
  at: number;
  readonly entries: Entry[];
}

const FULL = "the spool is full: updates, then metrics, then payloads are left out";

export class Writer {
  readonly counts: WriterCounts = {
    acked: 0,
    refused: 0,
    dropped: 0,
    shortened: 0,
    connected: false,
    lastError: undefined,
  };
  private readonly rpc: RpcClient<typeof IngestService>;
  /** Not sent, in order. */
  private queue: Entry[] = [];
  private head = 0;
  /** Not durable, in order. */
  private readonly open = new Map<number, Entry>();
  /** Of runs that the server does not know (yet). */
  private readonly unknown = new Map<string, Held>();
  /** How many those are, and what they take in memory. */
  private heldWrites = 0;
  private heldBytes = 0;
  /** The last update of a record that is not sent, into which the next one goes. */
  private readonly updates = new Map<string, Entry>();
  /** Runs whose creation there was no room for: the server would refuse whatever comes after it. */
  private readonly beheaded = new Map<string, true>();
  private readonly backlog: Backlog;
  /** What became of the runs that this process, or one whose spool it has taken, has created. */
  private readonly created = new Map<string, "sent" | "durable" | "refused">();
  private readonly heartbeats = new Set<string>();
  private sequence = 0;
  /** Writes that are not durable, with those that were merged into others. */
  private writes = 0;
  private memory = 0;
  private diskAgainAt = 0;
  private running = false;
  private stopped = false;
  private resting = false;
  private failures = 0;
  /** Streams in a row that ended because of a message, without an answer. */
  private fruitless = 0;
  /** Ends a pause early. */
  private kick: (() => void) | undefined;
  /** Tells the sender that there is something to send. */
  private wake: (() => void) | undefined;
  private waiting: { mark: number; settle: (done: boolean) => void }[] = [];

  constructor(
    transport: Transport,
    private readonly spool: Spool | undefined,
    private readonly limits: WriterLimits,
    private readonly hooks: WriterHooks,
  ) {
    this.rpc = createClient(IngestService, transport);
    this.backlog = new Backlog(spool);
  }

  /** Writes that are not durable. */
  get queued(): number {
    return this.writes;
  }

  /** Whether anything is to be sent, also of what processes that have ended have left. */
  get isBusy(): boolean {
    return this.open.size > 0 || !this.backlog.isEmpty;
  }

  /** What became of the creation of a run, as far as this process knows of it. */
  creationOf(executionId: string): "sent" | "durable" | "refused" | undefined {
    return this.created.get(executionId);
  }

  /** Takes a write. From here on it is in the spool, or, where there is none, in memory. */
  add(write: Write, quiet = false): void {
    if (this.stopped) {
      this.counts.dropped++;
      return;
    }
    const executionId = executionIdOf(write);
    if (!this.hasRoom(write, executionId)) return;
    const sequence = ++this.sequence;
    const record = toBinary(IngestRequestSchema, create(IngestRequestSchema, { sequence: BigInt(sequence), write }));
    const location = this.persist(record);
    if (write.case === "finishExecution") this.spool?.unshare(executionId);
    if (location === undefined && !fitsInMemory(write.case, this.memory, record.length + ENTRY_BYTES, this.limits.memoryMaxBytes)) {
      this.drop("the spool cannot be written, and memory is full: some of what is reported is left out");
      if (write.case === "createExecution") remember(this.beheaded, executionId, true, REMEMBERED);
      return;
    }
    if (write.case === "createExecution") remember(this.created, executionId, "sent", REMEMBERED);
    this.writes++;
    const entry = entryOf(write, record, sequence, quiet);
    entry.location = location;
    if (!this.backlog.holdsBack(entry, this.memory > this.limits.memoryMaxBytes)) this.enqueue(entry);
    else if (location === undefined) this.count(entry);
    this.resting = false;
    this.start();
  }

  /** Takes the files of a process that has ended. `done` is told the runs it has created and not ended. */
  adopt(segments: Segment[], done: (running: string[]) => void): void {
    this.backlog.take(segments, done);
    this.start();
  }

  /** How many files of processes that have ended are open. */
  get takenFiles(): number {
    return this.backlog.files;
  }

  /** Sends a sign of life with whatever else is sent. */
  beat(executionId: string): void {
    if (this.stopped || this.heartbeats.size > 10_000) return;
    this.heartbeats.add(executionId);
    this.start();
  }

  /** Whether everything so far is durable; `false` when it is not within this time. Keeps the process alive meanwhile. */
  flush(timeoutMs: number): Promise<boolean> {
    if (!this.isBusy) return Promise.resolve(true);
    const mark = this.sequence;
    this.resting = false;
    this.hurry();
    return new Promise((resolve) => {
      const timer = setTimeout(() => waiter.settle(false), timeoutMs);
      const waiter = {
        mark,
        settle: (done: boolean): void => {
          clearTimeout(timer);
          this.waiting = this.waiting.filter((each) => each !== waiter);
          resolve(done);
        },
      };
      this.waiting.push(waiter);
    });
  }

  /** Ends a pause between two attempts. */
  hurry(): void {
    for (const held of this.unknown.values()) held.at = 0;
    this.releaseUnknown();
    this.start();
    this.kick?.();
  }

  /** Sends nothing more until something more is reported: the process is about to end, and has waited long enough. */
  rest(): void {
    this.resting = true;
    this.kick?.();
    this.wake?.();
  }

  /** Stops. What is not durable stays in the spool. */
  stop(): void {
    this.stopped = true;
    this.kick?.();
    this.wake?.();
    for (const { settle } of [...this.waiting]) settle(!this.isBusy);
  }

  // --- what is kept -------------------------------------------------------------------------------------------

  private persist(record: Uint8Array): Location | undefined {
    if (this.spool === undefined || Date.now() < this.diskAgainAt) return undefined;
    try {
      return this.spool.append(record);
    } catch (error) {
      this.diskAgainAt = Date.now() + DISK_MS;
      this.counts.lastError = error instanceof Error ? error.message : String(error);
      this.hooks.warn("SPOOL_UNWRITABLE", `the spool cannot be written (${this.counts.lastError}): kept in memory`);
      return undefined;
    }
  }

  /** Whether there is room for a write; leaves payloads out of what has to be kept. */
  private hasRoom(write: Write, executionId: string): boolean {
    if (this.beheaded.has(executionId)) {
      if (write.case === "finishExecution") this.beheaded.delete(executionId);
      this.drop("there was no room for the beginning of a run");
      return false;
    }
    const onDisk = this.spool !== undefined && Date.now() >= this.diskAgainAt;
    const full = onDisk ? this.spool.bytes / this.limits.spoolMaxBytes : this.memory / this.limits.memoryMaxBytes;
    const verdict = judge(write, full);
    if (verdict === "drop") this.drop(FULL);
    if (verdict === "strip") {
      this.counts.shortened++;
      this.hooks.warn("SPOOL_FULL", FULL);
    }
    return verdict !== "drop";
  }

  private drop(why: string): void {
    this.counts.dropped++;
    this.hooks.warn("SPOOL_FULL", why);
  }

  /** An entry is in memory, or takes more or less of it than before. */
  private count(entry: Entry): void {
    const before = entry.cost;
    if (entry.message !== undefined) entry.cost = ENTRY_BYTES + OBJECT_FACTOR * entry.bytes;
    else entry.cost = ENTRY_BYTES + (entry.record?.length ?? 0);
    this.memory += entry.cost - before;
  }

  /** To be sent, or a part of what is to be sent already. */
  private enqueue(entry: Entry): void {
    const key = recordKey(entry.kind, entry.executionId, entry.stepKey);
    const earlier = key === undefined ? undefined : this.updates.get(key);
    if (earlier !== undefined && isUpdate(entry.kind) && merge(earlier, entry)) {
      this.memory -= entry.cost;
      this.count(earlier);
      return;
    }
    this.count(entry);
    this.open.set(entry.sequence, entry);
    this.queue.push(entry);
    if (key === undefined) return;
    if (isUpdate(entry.kind)) this.updates.set(key, entry);
    else this.updates.delete(key);
  }

  /** From the files to the queue, while there is room. */
  private refill(): void {
    // Those that wait for their runs are not what there is to send.
    const waiting = (): boolean => this.open.size > this.heldWrites;
    while (!this.backlog.isEmpty && this.queue.length - this.head < READY) {
      if (waiting() && this.memory - this.heldBytes > this.limits.memoryMaxBytes / 2) return;
      const { entries, lost, unreadable, taken } = this.backlog.read(() => ++this.sequence);
      this.writes -= lost;
      this.counts.dropped += lost + unreadable;
      for (const entry of entries) {
        // Those of other processes are counted from here on.
        if (taken) this.writes++;
        if (taken && entry.kind === "createExecution") remember(this.created, entry.executionId, "sent", REMEMBERED);
        this.enqueue(entry);
      }
    }
    if (this.waiting.length > 0 && !this.isBusy) this.tell();
  }

  private load(entry: Entry): IngestRequest | undefined {
    if (entry.message !== undefined) return entry.message;
    if (entry.record !== undefined) return wired(entry.record, entry.sequence);
    try {
      return entry.location === undefined ? undefined : this.spool && wired(this.spool.read(entry.location), entry.sequence);
    } catch {
      return undefined;
    }
  }

  /** A write is durable, refused or lost: nothing of it is kept. */
  private forget(entry: Entry): void {
    this.open.delete(entry.sequence);
    this.writes -= 1 + entry.merged;
    this.memory -= entry.cost;
    entry.cost = 0;
    entry.record = entry.message = undefined;
    const files = entry.others ?? new Map<Segment, number>();
    const own = entry.location?.segment;
    if (own !== undefined) files.set(own, (files.get(own) ?? 0) + 1);
    entry.location = entry.others = undefined;
    for (const [segment, count] of files) {
      try {
        this.spool?.forget(segment, count);
      } catch {
        // The folder is gone.
      }
    }
    if (this.waiting.length > 0) this.tell();
  }

  private tell(): void {
    const oldest = this.open.keys().next();
    const done = this.backlog.isEmpty;
    for (const { mark, settle } of [...this.waiting]) {
      if (done && (oldest.done === true || oldest.value > mark)) settle(true);
    }
  }

  private next(): Entry | undefined {
    for (;;) {
      if (this.head >= this.queue.length) {
        this.queue = [];
        this.head = 0;
        this.refill();
      }
      const entry = this.queue[this.head];
      if (entry === undefined) return undefined;
      const held = this.unknown.get(entry.executionId);
      if (held === undefined || held.at === 0) return entry;
      // Behind what the server could not place.
      this.head++;
      this.keep(held, entry);
    }
  }

  /** It may be long until it is sent: what it says can wait in the spool. */
  private keep(held: Held, entry: Entry): void {
    if (entry.location !== undefined && entry.message === undefined) {
      entry.record = undefined;
      this.count(entry);
    }
    held.entries.push(entry);
    this.heldWrites++;
    this.heldBytes += entry.cost;
    // Those that wait longest go when there is no room for more.
    for (const [executionId, { entries }] of this.unknown) {
      if (this.heldBytes <= this.limits.memoryMaxBytes * HELD_SHARE) return;
      this.unknown.delete(executionId);
      this.letGo(entries);
      for (const gone of entries) {
        this.counts.dropped += 1 + gone.merged;
        this.forget(gone);
      }
      this.hooks.warn("TOO_MANY_UNKNOWN", "too much waits for runs that the server does not know: some of it is left out");
    }
  }

  private letGo(entries: Entry[]): void {
    this.heldWrites -= entries.length;
    for (const entry of entries) this.heldBytes -= entry.cost;
  }

  private take(entry: Entry): void {
    this.head++;
    if (this.head > 1000 && this.head * 2 > this.queue.length) {
      this.queue = this.queue.slice(this.head);
      this.head = 0;
    }
    const key = isUpdate(entry.kind) ? recordKey(entry.kind, entry.executionId, entry.stepKey) : undefined;
    if (key !== undefined && this.updates.get(key) === entry) this.updates.delete(key);
  }

  private putBack(entries: Entry[]): void {
    const kept = entries.filter((entry) => !entry.passing && this.open.has(entry.sequence));
    if (kept.length === 0) return;
    this.queue = [...kept, ...this.queue.slice(this.head)].sort((a, b) => a.sequence - b.sequence);
    this.head = 0;
  }

  /** The server knows the run: what was held back for it can go, in order with `more`. */
  private release(executionId: string, ...more: Entry[]): void {
    const held = this.unknown.get(executionId);
    if (held === undefined) return;
    this.unknown.delete(executionId);
    this.letGo(held.entries);
    this.putBack([...held.entries, ...more]);
  }

  /** Its run was made between the start of its step and this. */
  private startIsHeld({ executionId, stepKey, sequence }: Entry): boolean {
    const held = this.unknown.get(executionId)?.entries ?? [];
    return held.some((one) => one.kind === "startStep" && one.stepKey === stepKey && one.sequence < sequence);
  }

  private releaseUnknown(): void {
    const now = Date.now();
    for (const held of this.unknown.values()) {
      if (held.at > now || held.entries.length === 0) continue;
      held.at = 0;
      this.letGo(held.entries);
      this.putBack(held.entries.splice(0));
    }
  }

  // --- what is sent -------------------------------------------------------------------------------------------

  private start(): void {
    if (this.running) {
      this.wake?.();
    } else if (!this.stopped && !this.resting && (this.next() !== undefined || this.heartbeats.size > 0)) {
      this.running = true;
      void this.run()
        .catch((error: unknown) => {
          // A defect of this package, which is none of the app's business.
          this.counts.lastError = error instanceof Error ? error.message : String(error);
          return this.pause(RETRY_MS.most);
        })
        .then(() => {
          this.running = false;
          // Something may have come in the last moment.
          this.start();
        });
    }
  }

  private async run(): Promise<void> {
    while (!this.stopped && !this.resting && (this.next() !== undefined || this.heartbeats.size > 0)) {
      const waitMs = await this.stream();
      if (waitMs !== undefined && !this.stopped && !this.resting) await this.pause(waitMs);
    }
  }

  /** One stream, from its beginning to its end. Says how long to wait before the next, if at all. */
  private async stream(): Promise<number | undefined> {
    const stream: Stream = {
      inflight: new Map(),
      writes: 0,
      bytes: 0,
      draining: false,
      again: [],
      waitMs: undefined,
      answered: false,
      answers: 0,
      lastAnswer: Date.now(),
      abort: new AbortController(),
    };
    const watchdog = setInterval(() => {
      if (stream.inflight.size === 0) stream.lastAnswer = Date.now();
      else if (Date.now() - stream.lastAnswer > ANSWER_MS) stream.abort.abort();
    }, 1000);
    watchdog.unref();
    let failure: Details | undefined;
    try {
      const answers = this.rpc.ingest(this.requests(stream), {
        signal: stream.abort.signal,
        onHeader: () => {
          this.counts.connected = true;
          this.hooks.connected();
        },
      });
      for await (const answer of answers) {
        stream.lastAnswer = Date.now();
        stream.answers++;
        this.answer(stream, answer);
      }
    } catch (error) {
      failure = detailsOfError(error);
    } finally {
      clearInterval(watchdog);
      stream.draining = true;
      this.wake?.();
    }
    const left = [...stream.inflight.values(), ...stream.again];
    if (failure?.reason === "BAD_MESSAGE") {
      const last = Number(failure.metadata["last_sequence"] ?? 0);
      const bad = left.find((entry) => entry.sequence > last);
      if (bad !== undefined) this.refuse(bad, failure);
    }
    if (stream.answered) {
      this.failures = 0;
      this.fruitless = 0;
    } else if (failure !== undefined && isAboutOneMessage(failure) && ++this.fruitless > 2 * FRUITLESS) {
      // Sent alone, and still the stream ends without an answer: it is this write.
      const [first] = left.filter((entry) => !entry.passing);
      if (first !== undefined) this.refuse(first, failure);
      this.fruitless = FRUITLESS;
    }
    this.putBack(left);
    if (failure === undefined && stream.waitMs === undefined && left.length === 0) return undefined;
    if (failure !== undefined) {
      this.counts.connected = false;
      this.counts.lastError = `${codeName(failure.code)}: ${failure.message}`;
      if (isDenied(failure)) {
        this.hooks.warn(codeName(failure.code), `${this.counts.lastError}; what is reported stays in the spool`);
        return DENIED_MS;
      }
    }
    const backOff = Math.min(RETRY_MS.most, RETRY_MS.first * 2 ** Math.min(10, this.failures++));
    return stream.waitMs ?? failure?.retryAfterMs ?? jittered(backOff);
  }

  private async *requests(stream: Stream): AsyncGenerator<IngestRequest> {
    const breath = new Breath();
    const goesOn = (): boolean => !stream.draining && !this.stopped && !this.resting;
    while (goesOn()) {
      if (breath.isDue) {
        await breath.take(
          () => (goesOn() ? stream.inflight.size : 0),
          () => stream.answers,
        );
        continue;
      }
      const [executionId] = this.heartbeats;
      if (executionId !== undefined && stream.inflight.size < 2 * WINDOW_WRITES) {
        this.heartbeats.delete(executionId);
        const sequence = ++this.sequence;
        const message = create(IngestRequestSchema, {
          sequence: BigInt(sequence),
          write: { case: "heartbeat", value: { executionId } },
        });
        stream.inflight.set(sequence, passing(sequence, executionId));
        yield message;
        continue;
      }
      const entry = this.next();
      const window = this.fruitless < FRUITLESS ? WINDOW_WRITES : 1;
      if (entry !== undefined && stream.writes < window && stream.bytes < WINDOW_BYTES) {
        this.take(entry);
        const message = this.load(entry);
        if (message === undefined) {
          // It was in the spool alone, and is not there any more.
          this.counts.dropped += 1 + entry.merged;
          this.forget(entry);
          continue;
        }
        stream.inflight.set(entry.sequence, entry);
        stream.writes++;
        stream.bytes += entry.bytes;
        yield message;
        continue;
      }
      if (!(await this.somethingToSend(stream))) return;
    }
  }

  /** Waits until there may be something to send; `false` when there was nothing for long. */
  private somethingToSend(stream: Stream): Promise<boolean> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => settle(stream.inflight.size > 0), IDLE_MS);
      timer.unref();
      const settle = (goOn: boolean): void => {
        clearTimeout(timer);
        this.wake = undefined;
        resolve(goOn);
      };
      this.wake = () => settle(true);
    });
  }

  private answer(stream: Stream, answer: IngestResponse): void {
    const entry = stream.inflight.get(Number(answer.sequence));
    if (entry === undefined) return;
    const { result } = answer;
    if (result.case !== "error") {
      stream.answered = true;
      this.settled(stream, entry);
      if (result.case === "heartbeat") this.hooks.heartbeat(entry.executionId, result.value.cancelRequested);
      if (entry.passing) return;
      this.counts.acked += 1 + entry.merged;
      this.release(entry.executionId);
      if (entry.kind === "createExecution") remember(this.created, entry.executionId, "durable", REMEMBERED);
      this.forget(entry);
      this.hooks.durable(entry.executionId, entry.kind);
      return;
    }
    const details = detailsOfStatus(result.value);
    if (entry.passing) {
      this.settled(stream, entry);
      return;
    }
    switch (this.judge(entry, details)) {
      case "retry":
        this.settled(stream, entry);
        this.drain(stream, entry, details.retryAfterMs);
        break;
      case "denied":
        this.counts.lastError = `${details.reason}: ${details.message}`;
        this.hooks.warn(codeName(details.code), `${details.message}; what is reported stays in the spool`);
        this.settled(stream, entry);
        this.drain(stream, entry, DENIED_MS);
        break;
      case "unknown":
        this.settled(stream, entry);
        this.hold(entry);
        break;
      case "early":
        this.settled(stream, entry);
        this.release(entry.executionId, entry);
        break;
      case "refused":
        stream.answered = true;
        this.settled(stream, entry);
        this.refuse(entry, details);
    }
  }

  private judge(entry: Entry, details: Details): "retry" | "denied" | "unknown" | "early" | "refused" {
    if (isDenied(details)) return "denied";
    if (details.retryAfterMs !== undefined || details.reason === "EARLIER_WRITE_FAILED") return "retry";
    switch (details.code) {
      case Code.Unavailable:
      case Code.DeadlineExceeded:
      case Code.Canceled:
        return "retry";
      case Code.Aborted:
        return details.reason === "STALE_REVISION" ? "refused" : "retry";
      case Code.NotFound: {
        if (details.reason === "STEP_NOT_FOUND" && this.startIsHeld(entry)) return "early";
        if (details.reason !== "EXECUTION_NOT_FOUND") return "refused";
        const creation = this.created.get(entry.executionId);
        // Metrics pass by a creation that has to be sent again.
        if (creation === "sent") return "retry";
        if (creation !== undefined) return "refused";
        const since = this.unknown.get(entry.executionId)?.since ?? Date.now();
        return Date.now() - since < UNKNOWN_MS.end ? "unknown" : "refused";
      }
      default:
        return "refused";
    }
  }

  private settled(stream: Stream, entry: Entry): void {
    stream.inflight.delete(entry.sequence);
    if (!entry.passing) {
      stream.writes--;
      stream.bytes -= entry.bytes;
    }
    if (!stream.draining) this.wake?.();
  }

  /** Sends nothing more on this stream: it ends when the rest has been answered, and the next one begins with this. */
  private drain(stream: Stream, entry: Entry, waitMs: number | undefined): void {
    stream.again.push(entry);
    stream.draining = true;
    if (waitMs !== undefined) stream.waitMs = Math.max(stream.waitMs ?? RETRY_MS.first, waitMs);
    this.wake?.();
  }

  private hold(entry: Entry): void {
    const now = Date.now();
    const held: Held = this.unknown.get(entry.executionId) ?? { since: now, delay: UNKNOWN_MS.first, at: 0, entries: [] };
    this.unknown.set(entry.executionId, held);
    const isFirst = held.at === 0;
    if (isFirst) held.at = now + jittered(held.delay);
    this.keep(held, entry);
    if (!isFirst) return;
    held.delay = Math.min(UNKNOWN_MS.most, held.delay * 2);
    const timer = setTimeout(() => {
      this.releaseUnknown();
      this.start();
    }, held.at - now + 1);
    timer.unref();
  }

  private refuse(entry: Entry, details: Details): void {
    this.counts.refused += 1 + entry.merged;
    if (entry.kind === "createExecution") remember(this.created, entry.executionId, "refused", REMEMBERED);
    const reason = details.reason || codeName(details.code);
    const fields = details.fields.map(({ field, description }) => `${field}: ${description}`).join("; ");
    this.counts.lastError = `${reason}: ${fields || details.message}`;
    if (!entry.quiet) this.hooks.warn(reason, `the server refused ${entry.kind}: ${fields || details.message}`);
    this.forget(entry);
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => settle(), ms);
      timer.unref();
      const settle = (): void => {
        clearTimeout(timer);
        this.kick = undefined;
        resolve();
      };
      this.kick = settle;
    });
  }
}
