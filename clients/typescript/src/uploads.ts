/**
 * Brings artifacts to the server: in the background, one after the other, gone on with where it stopped, and checked by
 * their SHA-256.
 *
 * What an artifact is stands in a file of the spool beside its bytes, so the next process goes on with it. The bytes
 * of a path are linked into the spool where the file system allows that, else read from where they are.
 */

import { create } from "@bufbuild/protobuf";
import type { JsonObject } from "@bufbuild/protobuf";
import { Code, createClient, type Client as RpcClient, type Transport } from "@connectrpc/connect";
import { createHash, randomUUID } from "node:crypto";
import {
  closeSync,
  createReadStream,
  linkSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { open as openFile, stat } from "node:fs/promises";
import * as path from "node:path";

import { codeName, detailsOfError } from "./errors.js";
import {
  ArtifactService,
  UploadArtifactRequestSchema,
  type UploadArtifactRequest,
} from "./gen/stepwell/v1/artifact_service_pb.js";
import type { Artifact } from "./gen/stepwell/v1/common_pb.js";
import { JOB_BYTES } from "./room.js";
import type { Spool } from "./spool.js";
import { Breath, jittered } from "./transport.js";

const CHUNK_BYTES = 256 * 1024;
const RETRY_MS = { first: 200, most: 5_000 } as const;
const DENIED_MS = 30_000;
/** How long the run of an artifact may be unknown to the server. */
const UNKNOWN_MS = 24 * 3600_000;

/** What an artifact is, as the spool keeps it. */
export interface Description {
  executionId: string;
  stepKey?: string;
  type: string;
  name: string;
  mimeType?: string;
  metadata?: JsonObject;
  uploadId: string;
  since: number;
  /** For which server it is. */
  server?: string;
  /** A file of the spool with the bytes, which goes with the upload. */
  blob?: string;
  /** A file of the app with the bytes. */
  file?: string;
}

/** What is to be uploaded. */
export type Source = Uint8Array | { path: string } | Blob | ReadableStream<Uint8Array>;

interface Job {
  readonly executionId: string;
  readonly since: number;
  /** `undefined`: it is in `file`. */
  description: Description | undefined;
  /** A file of the spool with the bytes. */
  readonly blob: string | undefined;
  /** What it takes in memory. */
  readonly cost: number;
  /** The bytes, where there is no spool. */
  bytes: Uint8Array | undefined;
  /** The description in the spool. */
  file: string | undefined;
  size: number;
  delay: number;
  at: number;
  readonly done: (artifact: Artifact | undefined) => void;
}

/** Neither the spool nor memory has room for an artifact. */
class NoRoom extends Error {}

/** What uploads need of the client. */
export interface UploadHooks {
  /** What became of the creation of the run; `undefined` where this process has not made it. */
  creationOf(executionId: string): "sent" | "durable" | "refused" | undefined;
  refused(reason: string, message: string): void;
  dropped(reason: string, message: string): void;
}

export class Uploads {
  private readonly rpc: RpcClient<typeof ArtifactService>;
  private readonly jobs = new Set<Job>();
  /** Streams of the app that are being read. */
  private readonly reading = new Set<Promise<void>>();
  /** The server is away: none is tried before. */
  private restUntil = 0;
  private delay = 0;
  private running = false;
  private stopped = false;
  private resting = false;
  private call: AbortController | undefined;
  private memory = 0;
  private wake: (() => void) | undefined;
  private waiting: (() => void)[] = [];

  constructor(
    transport: Transport,
    private readonly spool: Spool | undefined,
    private readonly limits: { spoolMaxBytes: number; memoryMaxBytes: number },
    private readonly hooks: UploadHooks,
  ) {
    this.rpc = createClient(ArtifactService, transport);
  }

  /** Artifacts that are not stored yet. */
  get queued(): number {
    return this.jobs.size + this.reading.size;
  }

  /** Whether no more are taken for now. */
  get isFull(): boolean {
    return this.memory + JOB_BYTES > this.limits.memoryMaxBytes;
  }

  /** Takes an artifact. The promise is of its record, and of `undefined` when it was refused or is left to the spool. */
  add(description: Omit<Description, "uploadId" | "since">, source: Source): Promise<Artifact | undefined> {
    const whole: Description = { ...description, uploadId: randomUUID(), since: Date.now() };
    if (this.isFull) {
      this.hooks.dropped("TOO_MANY_ARTIFACTS", `too many artifacts wait: ${description.name} is left out`);
      return Promise.resolve(undefined);
    }
    if (source instanceof Uint8Array) return this.keep(whole, source);
    if ("path" in source) return this.link(whole, source.path);
    const read = this.drain(whole, source instanceof Blob ? (source.stream() as ReadableStream<Uint8Array>) : source);
    const reading = read.then(
      () => undefined,
      () => undefined,
    );
    this.reading.add(reading);
    void reading.then(() => {
      this.reading.delete(reading);
      this.tell();
    });
    return read.then(
      (begun) => begun.stored,
      (error: unknown) => {
        const reason = error instanceof NoRoom ? "SPOOL_FULL" : "ARTIFACT_UNREADABLE";
        this.hooks.dropped(reason, error instanceof Error ? error.message : String(error));
        return undefined;
      },
    );
  }

  /** Takes the artifacts that a process which has ended has left. */
  adopt(files: readonly string[]): void {
    for (const file of files) {
      try {
        const description = JSON.parse(readFileSync(file, "utf8")) as Description;
        const from = description.blob ?? description.file;
        const size = from === undefined ? 0 : statSync(from).size;
        if (description.blob !== undefined) this.spool?.countBlob(size);
        void this.enqueue(description, undefined, file, size);
      } catch (error) {
        this.hooks.dropped("ARTIFACT_UNREADABLE", String(error));
        rmSync(file, { force: true });
      }
    }
  }

  /** Whether everything so far is stored; `false` when it is not within this time. Keeps the process alive meanwhile. */
  async flush(timeoutMs: number): Promise<boolean> {
    const until = Date.now() + timeoutMs;
    const jobs = [...this.jobs];
    const reading = [...this.reading];
    if (jobs.length === 0 && reading.length === 0) return true;
    this.restUntil = 0;
    for (const job of jobs) job.at = 0;
    this.start();
    while (jobs.some((job) => this.jobs.has(job)) || reading.some((each) => this.reading.has(each))) {
      const left = until - Date.now();
      if (left <= 0) return false;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.waiting.push(() => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
    // What was being read has become a job by now.
    return reading.length === 0 || this.flush(until - Date.now());
  }

  /** Sends nothing more until there is more to send: the process is about to end, and has waited long enough. */
  rest(): void {
    this.resting = true;
    this.call?.abort();
    this.wake?.();
  }

  stop(): void {
    this.stopped = true;
    this.wake?.();
    this.tell();
  }

  /** Goes on, as there is a connection, or a run has been stored. */
  hurry(): void {
    this.restUntil = 0;
    this.wake?.();
  }

  // --- what is kept -------------------------------------------------------------------------------------------

  private keep(description: Description, bytes: Uint8Array): Promise<Artifact | undefined> {
    const { spool } = this;
    if (spool !== undefined && spool.bytes + bytes.length <= this.limits.spoolMaxBytes) {
      const blob = spool.blobName();
      try {
        writeFileSync(blob, bytes, { mode: 0o600 });
        spool.countBlob(bytes.length);
        return this.describe({ ...description, blob }, bytes.length);
      } catch {
        // The disk is full: what of it was written must not stay.
        rmSync(blob, { force: true });
      }
    }
    if (this.memory + bytes.length + JOB_BYTES > this.limits.memoryMaxBytes) {
      this.hooks.dropped("SPOOL_FULL", `no room for the artifact ${description.name} of ${bytes.length} bytes`);
      return Promise.resolve(undefined);
    }
    // A copy: the app may go on to use its buffer.
    return this.enqueue(description, Uint8Array.from(bytes), undefined, bytes.length);
  }

  private link(description: Description, file: string): Promise<Artifact | undefined> {
    const { size } = statSync(file);
    if (this.spool !== undefined) {
      const blob = this.spool.blobName();
      try {
        linkSync(path.resolve(file), blob);
        // Linked, so it takes no room of its own.
        return this.describe({ ...description, blob }, size);
      } catch {
        // Another file system, or one without links: read from where it is.
      }
      return this.describe({ ...description, file: path.resolve(file) }, size);
    }
    return this.enqueue({ ...description, file: path.resolve(file) }, undefined, undefined, size);
  }

  private async drain(
    description: Description,
    stream: ReadableStream<Uint8Array>,
  ): Promise<{ stored: Promise<Artifact | undefined> }> {
    const { spool } = this;
    if (spool === undefined) {
      const chunks: Uint8Array[] = [];
      let size = 0;
      try {
        for await (const chunk of stream) {
          if (this.memory + chunk.length + JOB_BYTES > this.limits.memoryMaxBytes) {
            throw new NoRoom(`no room for the artifact ${description.name}`);
          }
          size += chunk.length;
          // Others may be read at the same time.
          this.memory += chunk.length;
          chunks.push(chunk);
        }
      } finally {
        this.memory -= size;
      }
      return { stored: this.enqueue(description, Buffer.concat(chunks), undefined, size) };
    }
    const blob = spool.blobName();
    let size = 0;
    const fd = openSync(blob, "w", 0o600);
    try {
      for await (const chunk of stream) {
        const bytes = typeof chunk === "string" ? Buffer.from(chunk as string) : chunk;
        if (spool.bytes + bytes.length > this.limits.spoolMaxBytes) throw new NoRoom(`no room for the artifact ${description.name}`);
        for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
        size += bytes.length;
        spool.countBlob(bytes.length);
      }
    } catch (error) {
      rmSync(blob, { force: true });
      spool.countBlob(-size);
      throw error;
    } finally {
      closeSync(fd);
    }
    return { stored: this.describe({ ...description, blob }, size) };
  }

  /** Writes the description down, after the bytes that it names. */
  private describe(description: Description, size: number): Promise<Artifact | undefined> {
    let file = this.spool?.artifactName();
    if (file !== undefined) {
      try {
        writeFileSync(`${file}.new`, JSON.stringify({ ...description, server: this.spool?.server }), { mode: 0o600 });
        renameSync(`${file}.new`, file);
      } catch {
        // It is uploaded if this process lives long enough.
        rmSync(`${file}.new`, { force: true });
        file = undefined;
      }
    }
    return this.enqueue(description, undefined, file, size);
  }

  private enqueue(
    description: Description,
    bytes: Uint8Array | undefined,
    file: string | undefined,
    size: number,
  ): Promise<Artifact | undefined> {
    const { executionId, since, blob } = description;
    // What is in the spool is read from there when its turn comes.
    const kept = file === undefined ? description : undefined;
    const cost = JOB_BYTES + (bytes?.length ?? 0) + (kept === undefined ? 0 : 2 * JSON.stringify(kept).length);
    this.memory += cost;
    return new Promise((done) => {
      this.begin({ executionId, since, description: kept, blob, cost, bytes, file, size, delay: 0, at: 0, done });
    });
  }

  private begin(job: Job): void {
    this.jobs.add(job);
    this.start();
  }

  private start(): void {
    this.resting = false;
    this.wake?.();
    if (this.running || this.stopped || this.jobs.size === 0) return;
    this.running = true;
    void this.run()
      .catch((error: unknown) => {
        this.hooks.dropped("ARTIFACT_DEFECT", String(error));
        return this.pause(RETRY_MS.most);
      })
      .then(() => {
        this.running = false;
        // Something may have come in the last moment.
        if (!this.resting && !this.stopped && this.jobs.size > 0) this.start();
      });
  }

  private end(job: Job, artifact: Artifact | undefined): void {
    if (!this.jobs.delete(job)) return;
    const { blob } = job;
    if (job.file !== undefined) rmSync(job.file, { force: true });
    if (blob !== undefined) {
      rmSync(blob, { force: true });
      this.spool?.countBlob(-job.size);
    }
    this.memory -= job.cost;
    job.bytes = undefined;
    job.done(artifact);
    this.tell();
  }

  private tell(): void {
    for (const wake of this.waiting.splice(0)) wake();
  }

  // --- what is sent -------------------------------------------------------------------------------------------

  private async run(): Promise<void> {
    while (!this.stopped && !this.resting && this.jobs.size > 0) {
      const now = Date.now();
      // Looking through very many takes its time, so it is not done all the time.
      let wait = 1000;
      let ready: Job | undefined;
      if (this.restUntil > now) {
        wait = Math.min(wait, this.restUntil - now);
      } else {
        for (const job of this.jobs) {
          if (job.at > now || !this.mayGo(job)) {
            wait = Math.min(wait, Math.max(20, this.jobs.size / 10, job.at - now));
            continue;
          }
          ready = job;
          break;
        }
      }
      if (ready === undefined) await this.pause(wait);
      else await this.attempt(ready);
    }
  }

  private mayGo({ executionId }: Job): boolean {
    return this.hooks.creationOf(executionId) !== "sent";
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => settle(), ms);
      timer.unref();
      const settle = (): void => {
        clearTimeout(timer);
        this.wake = undefined;
        resolve();
      };
      this.wake = settle;
    });
  }

  private async attempt(job: Job): Promise<void> {
    let description: Description;
    try {
      description = job.description ?? (JSON.parse(readFileSync(job.file ?? "", "utf8")) as Description);
    } catch {
      this.hooks.dropped("ARTIFACT_UNREADABLE", "the description of an artifact is gone");
      this.end(job, undefined);
      return;
    }
    try {
      const artifact = await this.upload(job, description);
      this.delay = 0;
      this.end(job, artifact);
    } catch (thrown) {
      if (this.stopped || this.resting) return;
      const details = detailsOfError(thrown);
      const reason = details.reason || codeName(details.code);
      // It may still come: from its maker, or from here.
      const creation = this.hooks.creationOf(job.executionId);
      const isUnknown =
        reason === "EXECUTION_NOT_FOUND" &&
        (creation === "sent" || (creation === undefined && Date.now() - job.since < UNKNOWN_MS));
      const isFile = thrown instanceof Error && "syscall" in thrown;
      const denied = details.code === Code.Unauthenticated || details.code === Code.PermissionDenied;
      if (reason === "UPLOAD_ALREADY_EXISTS") {
        // The file of the app is another one than at the first attempt.
        job.description = { ...description, uploadId: randomUUID() };
        job.at = Date.now() + RETRY_MS.first;
      } else if (isFile) {
        this.hooks.dropped("ARTIFACT_UNREADABLE", `the bytes of the artifact ${description.name} are gone`);
        this.end(job, undefined);
      } else if (denied || isUnknown || details.retryAfterMs !== undefined || isForNow(details.code, reason)) {
        job.delay = Math.min(RETRY_MS.most, Math.max(RETRY_MS.first, job.delay * 2));
        job.at = Date.now() + (denied ? DENIED_MS : (details.retryAfterMs ?? jittered(job.delay)));
        if (denied || details.code === Code.Unavailable) {
          // It is the same for all of them.
          this.delay = Math.min(RETRY_MS.most, Math.max(RETRY_MS.first / 2, this.delay * 2));
          this.restUntil = Date.now() + (denied ? DENIED_MS : jittered(this.delay));
        }
      } else {
        const fields = details.fields.map((each) => `${each.field}: ${each.description}`).join("; ");
        this.hooks.refused(reason, `the server refused the artifact ${description.name}: ${fields || details.message}`);
        this.end(job, undefined);
      }
    }
  }

  private async upload(job: Job, description: Description): Promise<Artifact | undefined> {
    const { sha256, size } = await digestOf(job, description);
    let offset = 0;
    if (job.delay > 0 || description.since < Date.now() - 1000) {
      try {
        // A deadline of the library would keep the process alive; this one does not.
        const options = { signal: AbortSignal.timeout(20_000) };
        const { receivedBytes } = await this.rpc.getUpload({ uploadId: description.uploadId }, options);
        offset = Math.min(size, Number(receivedBytes));
      } catch (thrown) {
        if (detailsOfError(thrown).code !== Code.NotFound) throw thrown;
      }
    }
    this.call = new AbortController();
    const { artifact } = await this.rpc.uploadArtifact(pieces(job, description, offset, size, sha256), { signal: this.call.signal });
    return artifact;
  }
}

/** An upload is answered once, at its end. */
const NONE = (): number => 0;

/** The messages of an upload from an offset on. */
async function* pieces(
  job: Job,
  description: Description,
  offset: number,
  size: number,
  sha256: string,
): AsyncGenerator<UploadArtifactRequest> {
  yield create(UploadArtifactRequestSchema, {
    part: {
      case: "description",
      value: {
        executionId: description.executionId,
        artifactType: description.type,
        artifactName: description.name,
        sizeBytes: BigInt(size),
        sha256,
        uploadId: description.uploadId,
        offset: BigInt(offset),
        ...(description.stepKey === undefined ? {} : { stepKey: description.stepKey }),
        ...(description.mimeType === undefined ? {} : { mimeType: description.mimeType }),
        ...(description.metadata === undefined ? {} : { metadata: description.metadata }),
      },
    },
  });
  if (job.bytes !== undefined) {
    for (let at = offset; at < size; at += CHUNK_BYTES) yield chunk(job.bytes.subarray(at, Math.min(size, at + CHUNK_BYTES)));
    return;
  }
  const breath = new Breath();
  const file = await openFile(description.blob ?? description.file ?? "");
  try {
    for (let at = offset; at < size; ) {
      const bytes = new Uint8Array(Math.min(CHUNK_BYTES, size - at));
      const { bytesRead } = await file.read(bytes, 0, bytes.length, at);
      // Cut since it was measured: the server refuses what is too short.
      if (bytesRead === 0) return;
      yield chunk(bytes.subarray(0, bytesRead));
      at += bytesRead;
      if (breath.isDue) await breath.take(NONE, NONE);
    }
  } finally {
    await file.close();
  }
}

function chunk(bytes: Uint8Array): UploadArtifactRequest {
  return create(UploadArtifactRequestSchema, { part: { case: "chunk", value: bytes } });
}

async function digestOf(job: Job, { blob, file }: Description): Promise<{ sha256: string; size: number }> {
  const hash = createHash("sha256");
  if (job.bytes !== undefined) return { sha256: hash.update(job.bytes).digest("hex"), size: job.bytes.length };
  const from = blob ?? file ?? "";
  const { size } = await stat(from);
  let hashed = 0;
  for await (const bytes of createReadStream(from, { end: Math.max(0, size - 1) })) {
    hash.update(bytes as Buffer);
    hashed += (bytes as Buffer).length;
  }
  return { sha256: hash.digest("hex"), size: Math.min(size, hashed) };
}

function isForNow(code: Code, reason: string): boolean {
  switch (code) {
    case Code.Unavailable:
    case Code.DeadlineExceeded:
    case Code.Canceled:
    case Code.Aborted:
    case Code.Internal:
    case Code.Unknown:
      return true;
    default:
      // The part that had arrived is gone: from the beginning again.
      return reason === "UPLOAD_OFFSET" || reason === "UPLOAD_NOT_FOUND";
  }
}
