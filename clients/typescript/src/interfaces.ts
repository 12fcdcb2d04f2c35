/** What runs, steps and artifacts are to an app. */

import type { Carrier } from "./carrier.js";
import type { ArtifactRecord } from "./records.js";
import type { Json } from "./values.js";

/** Options of a run. */
export interface RunOptions {
  /** Its id, 1 to 128 printable ASCII characters without spaces; a UUID unless given. */
  id?: string | undefined;
  /** Anything else to say about it. */
  metadata?: Record<string, unknown> | undefined;
  /** The run that starts this one; the current run unless given. `null`: none. */
  parent?: Run | string | null | undefined;
  /** Who runs it. */
  user?: string | undefined;
  /** Number of the app. */
  appId?: number | undefined;
  /** Name of the part of the app. */
  subApp?: string | undefined;
  /** Version of the app's configuration that it runs with. */
  configurationVersion?: string | undefined;
  /** Keep it whatever retention says. */
  pinned?: boolean | undefined;
  /** Mark it FAILED when its process is silent for this long; `null`: never. */
  heartbeatTimeoutMs?: number | null | undefined;
  /** Wait until it is durable before {@link run} resolves: where the process is frozen after each call. */
  flush?: boolean | undefined;
}

/** Options of a step. */
export interface StepOptions {
  /** Its key, unique in the run; a UUID unless given. */
  key?: string | undefined;
  /** Version of the code or prompt. */
  version?: string | undefined;
  /** What goes in: any value. */
  input?: Json;
  /** Anything else to say about it. */
  metadata?: Record<string, unknown> | undefined;
  /** Steps that had to end first. */
  dependsOn?: readonly Step[] | undefined;
  /** The run it is of; the current one unless given. */
  run?: Run | undefined;
  /** The step it is part of; the current one unless given. `null`: none. */
  parent?: Step | null | undefined;
  /** How often a function that fails is called again; each time is an attempt of the step. 0 unless given. */
  retries?: number | undefined;
  /** How long to wait before the first retry, doubling; 0 unless given. */
  backoffMs?: number | undefined;
}

/** A step that is announced before it runs. */
export interface PlannedStep {
  /** What it will do. */
  name: string;
  /** Its key, unique in the run; its name unless given, and where that is taken the name with a number. */
  key?: string | undefined;
  /** Version of the code or prompt. */
  version?: string | undefined;
  /** Anything else to say about it. */
  metadata?: Record<string, unknown> | undefined;
  /** Keys of the steps that have to end first. */
  dependsOn?: readonly string[] | undefined;
}

/** Options of an artifact. */
export interface ArtifactOptions {
  /** `report` unless given; others are `screenshot`, `log`, `code`, or any word. */
  type?: string | undefined;
  /** Its media type. */
  mimeType?: string | undefined;
  /** Anything else to say about it. */
  metadata?: Record<string, unknown> | undefined;
  /** The step that made it. */
  step?: Step | undefined;
}

/** What an artifact is made of. A `path` is uploaded from where it is; a string is the text itself. */
export type ArtifactData = Uint8Array | string | Blob | ReadableStream<Uint8Array> | { path: string };

/** An artifact on its way. */
export interface ArtifactRef {
  readonly name: string;
  /** Its record once it is stored; `undefined` when it was refused. Never rejects, and nobody has to wait for it. */
  readonly stored: Promise<ArtifactRecord | undefined>;
}

/** Calls a function as a step, in whose context it runs. Settles as the function does. */
export interface StepFunction {
  <T>(name: string, fn: (s: Step) => T | Promise<T>): Promise<T>;
  <T>(name: string, options: StepOptions, fn: (s: Step) => T | Promise<T>): Promise<T>;
}

/** A run that is reported. None of its methods throws or waits. */
export interface Run {
  readonly id: string;
  /** Aborted, with a {@link Cancelled}, when somebody asks the run to stop. */
  readonly signal: AbortSignal;
  /** Calls a function as a step of this run. */
  readonly step: StepFunction;
  /** Starts a step of this run, to be ended by `complete`, `fail` or `skip`. */
  startStep(name: string, options?: StepOptions): Step;
  /** Announces steps, in this order, as often as plans change; a step that begins with a name of them is the planned one. */
  plan(...steps: readonly (string | PlannedStep)[]): void;
  /** Merges into the metadata. */
  metadata(values: Record<string, unknown>): void;
  /** Records numbers of a moment. */
  metrics(values: Record<string, number>, at?: Date): void;
  /**
   * Uploads a file in the background: goes on where it stopped, checked by its SHA-256. Bytes and texts are copied to the
   * spool at once; what is large is better given as a `path`.
   */
  artifact(name: string, data: ArtifactData, options?: ArtifactOptions): ArtifactRef;
  /**
   * What the headers of a call or a message of a queue have to carry, to be given to {@link attach} in another process: the
   * run, and the current step of it. Outside of any run nothing.
   */
  carrier(): Carrier;
  /** Ends the run well. */
  complete(metadata?: Record<string, unknown>): void;
  /** Ends the run badly. */
  fail(error: unknown, options?: { code?: string | undefined; details?: Json }): void;
  /** Ends the run on request. */
  cancel(): void;
  /** Completes the run if it has not ended: what is thrown past an `await using` has to be reported by `fail`. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** A step that is reported. None of its methods throws or waits. */
export interface Step {
  /** Names it in its run; the number is the server's. */
  readonly key: string;
  readonly run: Run;
  /** Calls a function as a step that is part of this one. */
  readonly step: StepFunction;
  /** Starts a step that is part of this one. */
  startStep(name: string, options?: StepOptions): Step;
  /** How far it is, from 0 to 1. The latest wins; at most ten a second are sent. */
  progress(fraction: number, message?: string): void;
  /** What came out: replaces what was said before, or with `merge` adds to it. */
  output(value: Json, options?: { merge?: boolean | undefined }): void;
  /** Merges into the metadata. */
  metadata(values: Record<string, unknown>): void;
  /** Records numbers of a moment. */
  metrics(values: Record<string, number>, at?: Date): void;
  /** Uploads a file in the background, as {@link Run.artifact}. */
  artifact(name: string, data: ArtifactData, options?: ArtifactOptions): ArtifactRef;
  /** Ends it well, with an output if one is given. */
  complete(output?: Json): void;
  /** Ends it badly. */
  fail(error: unknown, options?: { code?: string | undefined; details?: Json }): void;
  /** Ends it without its having run. */
  skip(reason?: string): void;
  /** Begins the next attempt of a step that has failed. */
  retry(): Step;
  /** Completes the step if it has not ended: what is thrown past an `await using` has to be reported by `fail`. */
  [Symbol.asyncDispose](): Promise<void>;
}
