/** Runs and steps, as apps see them. */

import "./dispose.js";

import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import { AsyncLocalStorage } from "node:async_hooks";
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { inspect } from "node:util";

import { carriedBy, carrierOf, type Carried, type Carrier } from "./carrier.js";
import { Client, type Beating, type Pending } from "./client.js";
import { Cancelled } from "./errors.js";
import { errorText } from "./failure.js";
import { ExecutionStatus, StepStatus } from "./gen/stepwell/v1/common_pb.js";
import type {
  ArtifactData,
  ArtifactOptions,
  ArtifactRef,
  PlannedStep,
  Run,
  RunOptions,
  Step,
  StepFunction,
  StepOptions,
} from "./interfaces.js";
import { isPlainPromise, observed } from "./observed.js";
import type { Options } from "./options.js";
import { artifactRecord, type ArtifactRecord } from "./records.js";
import type { Source } from "./uploads.js";
import { convert, convertObject, cut, mergeInto, preview, type Json } from "./values.js";
import * as writes from "./writes.js";

/** Numbers of steps that are left to who else reports into a run, before a plan takes the next. */
const NUMBERS_OF_OTHERS = 1000;
/** Progress of a step is sent at most this often. */
const PROGRESS_MS = 100;

// --- what the process shares ------------------------------------------------------------------------------------

interface Context {
  run: Run;
  step: Step | undefined;
}

/** One for the process, though the package may be loaded both as an ES module and as CommonJS. */
interface Shared {
  client: Client | undefined;
  context: AsyncLocalStorage<Context>;
}

const SHARED = Symbol.for("stepwell.client.1");

function shared(): Shared {
  const holder = globalThis as { [SHARED]?: Shared };
  holder[SHARED] ??= { client: undefined, context: new AsyncLocalStorage() };
  return holder[SHARED];
}

/** The client of this process. The first use makes it. */
export function client(): Client {
  const state = shared();
  state.client ??= new Client({});
  return state.client;
}

/**
 * Sets the client of this process. Optional: the first use does it from the environment. Connects when there is something
 * to send; that nobody listens at the address is no error. An earlier client goes on until the runs it has are ended.
 */
export function configure(options: Options = {}): Client {
  const state = shared();
  state.client?.retire();
  state.client = new Client(options);
  return state.client;
}

/** Everything so far is durable (`true`), or still in the spool (`false`). Never rejects. */
export function flush(timeoutMs?: number): Promise<boolean> {
  return client().flush(timeoutMs);
}

/** Flushes and lets everything go. Happens by itself at the end of the process, and on SIGTERM if nobody else listens. */
export function shutdown(timeoutMs?: number): Promise<boolean> {
  return client().shutdown(timeoutMs);
}

/** What reporting has done so far. */
export function stats(): ReturnType<Client["stats"]> {
  return client().stats();
}

// --- runs ---------------------------------------------------------------------------------------------------------

/** Runs a function as a run, in whose context it runs. Resolves or rejects as the function does, whatever Stepwell does. */
export function run<T>(app: string, fn: (r: Run) => T | Promise<T>): Promise<T>;
export function run<T>(app: string, options: RunOptions, fn: (r: Run) => T | Promise<T>): Promise<T>;
export async function run<T>(
  app: string,
  optionsOrFn: RunOptions | ((r: Run) => T | Promise<T>),
  maybeFn?: (r: Run) => T | Promise<T>,
): Promise<T> {
  const [options, fn] = typeof optionsOrFn === "function" ? [{} as RunOptions, optionsOrFn] : [plain(optionsOrFn), maybeFn];
  if (fn === undefined) throw new TypeError("run needs a function");
  const begun = startRun(app, options);
  try {
    const result = await shared().context.run({ run: begun, step: undefined }, () => fn(begun));
    begun.complete();
    return result;
  } catch (error) {
    if (isCancel(error, begun.signal)) begun.cancel();
    else begun.fail(error);
    throw error;
  } finally {
    if (options.flush === true) await client().flush();
  }
}

/** Starts a run, to be ended by `complete`, `fail` or `cancel`, or by `await using`. It is not the current run. */
export function startRun(app: string, options: RunOptions = {}): Run {
  const said = plain(options);
  const made = new ReportedRun(client(), said.id);
  made.begin(app, said);
  return made;
}

/**
 * A run that another process has created: reports into it and does not end it, unless one of its ends is called.
 *
 * Takes its id, or what {@link Run.carrier} gave there, also from among other headers; then steps of it are below the step that
 * was the current one there. Where none is carried, it is a run that does nothing.
 */
export function attach(from: string | Carried): Run {
  const { executionId, stepKey } = carriedIn(from);
  if (executionId === undefined) return NOTHING;
  const attached = new ReportedRun(client(), executionId, { stepKey });
  attached.watchOver(undefined);
  return attached;
}

function carriedIn(from: string | Carried): ReturnType<typeof carriedBy> {
  try {
    return typeof from === "string" ? { executionId: from || undefined, stepKey: undefined } : carriedBy(from);
  } catch (error) {
    client().fault(error);
    return { executionId: undefined, stepKey: undefined };
  }
}

/** The run in whose context this is called; outside of any, one that does nothing. */
export function currentRun(): Run {
  return shared().context.getStore()?.run ?? NOTHING;
}

/** The step in whose context this is called; outside of any, one that does nothing. */
export function currentStep(): Step {
  return shared().context.getStore()?.step ?? NO_STEP;
}

/** Calls a function as a step of the current run, in whose context it runs. Outside a run it only calls the function. */
export function step<T>(name: string, fn: (s: Step) => T | Promise<T>): Promise<T>;
export function step<T>(name: string, options: StepOptions, fn: (s: Step) => T | Promise<T>): Promise<T>;
export function step<T>(
  name: string,
  optionsOrFn: StepOptions | ((s: Step) => T | Promise<T>),
  maybeFn?: (s: Step) => T | Promise<T>,
): Promise<T> {
  return within(currentRun(), undefined, name, optionsOrFn, maybeFn);
}

/**
 * Wraps a function: each call in a run is a step, whose input are the arguments and whose output is the result. The
 * function may be async, a generator or an async generator; what it yields is then the output, texts put together. The
 * wrapped function returns and throws what the function does.
 *
 * With `retries` a function that throws, or whose promise rejects, is called again; one that is not async is so at once, as
 * nothing can wait there. A generator that has begun is not begun again.
 */
export function traced<A extends unknown[], R>(name: string, fn: (...a: A) => R, options: StepOptions = {}): (...a: A) => R {
  return function (this: unknown, ...args: A): R {
    const { settings } = client();
    const of = options.run ?? currentRun();
    const begun = of.startStep(name, {
      ...options,
      key: options.key,
      ...(settings.captureInput && !("input" in options) ? { input: args } : {}),
      parent: options.parent === undefined ? parentIn(of) : options.parent,
    });
    const context = { run: of, step: begun };
    const call = (): R => shared().context.run(context, () => fn.apply(this, args));
    const end = (result: unknown): void => {
      if (settings.captureOutput && result !== undefined) begun.complete(result);
      else begun.complete();
    };
    const fail = (error: unknown): void => begun.fail(error);
    let failures = 0;
    /** It has failed: whether it is to be called again. */
    const again = (error: unknown): boolean => {
      fail(error);
      return failures++ < (options.retries ?? 0) && !isCancel(error, of.signal);
    };
    let result: R;
    for (;;) {
      try {
        result = call();
        break;
      } catch (error) {
        if (!again(error)) throw error;
        begun.retry();
      }
    }
    if ((options.retries ?? 0) > 0 && isPlainPromise(result)) {
      const settle = async (first: unknown): Promise<unknown> => {
        for (let pending = first; ; ) {
          try {
            const value = await pending;
            end(value);
            return value;
          } catch (error) {
            if (!again(error)) throw error;
          }
          await sleep((options.backoffMs ?? 0) * 2 ** (failures - 1));
          begun.retry();
          // Also where it throws before there is a promise.
          pending = new Promise((resolve) => resolve(call()));
        }
      };
      return settle(result) as R;
    }
    return observed(result, (work) => shared().context.run(context, work), end, fail);
  };
}

// --- inside -------------------------------------------------------------------------------------------------------

/** Whether an error is a run's answer to a cancel. */
function isCancel(error: unknown, signal: AbortSignal): boolean {
  if (error instanceof Cancelled) return true;
  return signal.aborted && (error === signal.reason || (error instanceof Error && error.name === "AbortError"));
}

function parentIn(of: Run): Step | undefined {
  const current = shared().context.getStore();
  return current?.run.id === of.id ? current.step : undefined;
}

async function within<T>(
  of: Run,
  parent: Step | undefined,
  name: string,
  optionsOrFn: StepOptions | ((s: Step) => T | Promise<T>),
  maybeFn: ((s: Step) => T | Promise<T>) | undefined,
): Promise<T> {
  const [options, fn] = typeof optionsOrFn === "function" ? [{} as StepOptions, optionsOrFn] : [plain(optionsOrFn), maybeFn];
  if (fn === undefined) throw new TypeError("step needs a function");
  const inRun = options.run ?? of;
  const begun = inRun.startStep(name, {
    ...options,
    parent: options.parent === undefined ? (parent ?? parentIn(inRun)) : options.parent,
  });
  for (let attempt = 0; ; attempt++) {
    try {
      const result = await shared().context.run({ run: inRun, step: begun }, () => fn(begun));
      begun.complete();
      return result;
    } catch (error) {
      begun.fail(error);
      if (attempt >= (options.retries ?? 0) || isCancel(error, inRun.signal)) throw error;
    }
    await sleep((options.backoffMs ?? 0) * 2 ** attempt);
    begun.retry();
  }
}

class ReportedRun implements Run {
  readonly id: string;
  private readonly controller = new AbortController();
  private ended = false;
  /** Held here and nowhere else: with the run, its signs of life end. */
  private readonly beating: Beating;
  /** Keys of planned steps that are not begun, by name, and all that were planned. */
  private readonly planned = new Map<string, string[]>();
  private readonly plannedKeys = new Set<string>();
  /** No step has a greater number, as far as this process knows: the server gives each the next one. */
  private highest: number;
  /** Other processes report into it too. */
  private shared: boolean;

  constructor(
    readonly client: Client,
    id: string | undefined,
    /** Another process has made it; the step of it that is the parent of what is reported here. */
    private readonly attached?: { readonly stepKey: string | undefined },
  ) {
    this.id = optional(id, Number.POSITIVE_INFINITY) ?? randomUUID();
    this.shared = attached !== undefined;
    this.highest = this.shared ? NUMBERS_OF_OTHERS * Math.floor(Math.random() * 1000) : 0;
    this.beating = { id: this.id, cancelRequested: () => this.controller.abort(new Cancelled()) };
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  begin(app: string, options: RunOptions): void {
    const { client } = this;
    client.guard(() => {
      const { settings, limits } = client;
      const timeout = options.heartbeatTimeoutMs === undefined ? settings.heartbeatTimeoutMs : options.heartbeatTimeoutMs;
      const parent = options.parent === undefined ? currentRun().id : parentId(options.parent);
      client.report(
        writes.createExecution({
          id: this.id,
          app: optional(app, limits.name_characters) ?? settings.app,
          appId: options.appId ?? settings.appId,
          subApp: optional(options.subApp ?? settings.subApp, limits.name_characters),
          user: optional(options.user ?? userOf(client), limits.name_characters),
          metadata: mergeInto(this.metadataOf(settings.metadata), this.metadataOf(options.metadata)),
          startedAt: new Date(),
          heartbeatTimeoutMs: timeout == null ? undefined : Math.max(100, timeout),
          parentId: parent || undefined,
          configurationVersion: optional(options.configurationVersion, limits.name_characters),
        }),
      );
      if (options.pinned === true) client.report(writes.updateExecution(this.id, undefined, true, client.nextSequence()));
      this.watchOver(timeout ?? undefined);
    });
  }

  /** Sends signs of life and looks whether a cancel was requested. */
  watchOver(timeoutMs: number | undefined): void {
    const { client } = this;
    client.guard(() => {
      client.claim(this.id);
      client.beat(this.beating, timeoutMs ?? client.settings.heartbeatTimeoutMs);
    });
  }

  readonly step: StepFunction = <T>(
    name: string,
    optionsOrFn: StepOptions | ((s: Step) => T | Promise<T>),
    fn?: (s: Step) => T | Promise<T>,
  ): Promise<T> => within(this, undefined, name, optionsOrFn, fn);

  startStep(name: string, options: StepOptions = {}): Step {
    const { run: other, ...rest } = plain(options);
    if (other !== undefined && other.id !== this.id) return other.startStep(name, rest);
    const begun = new ReportedStep(this, name, { ...rest, key: rest.key ?? this.planned.get(name)?.shift() });
    begun.begin();
    return begun;
  }

  /** A step begins. The server numbers steps in the order in which they are reported here. */
  numbered(key: string): void {
    if (!this.plannedKeys.has(key)) this.highest++;
  }

  plan(...steps: readonly (string | PlannedStep)[]): void {
    const { client } = this;
    client.guard(() => {
      const { name_characters } = client.limits;
      if (this.shared) this.highest += NUMBERS_OF_OTHERS;
      const made = steps.map((step, at): writes.NewPlannedStep => {
        const said: PlannedStep = typeof step === "string" ? { name: step } : plain(step);
        const name = optional(said.name, name_characters) ?? "step";
        let key = optional(said.key, 256) ?? cut(name, 200);
        for (let n = at + 1; said.key === undefined && this.plannedKeys.has(key); n++) key = `${cut(name, 200)}-${n}`;
        this.plannedKeys.add(key);
        this.planned.set(said.name, [...(this.planned.get(said.name) ?? []), key]);
        return {
          number: ++this.highest,
          key,
          name,
          version: optional(said.version, name_characters),
          metadata: said.metadata === undefined ? undefined : this.metadataOf(said.metadata),
          dependsOn: (said.dependsOn ?? []).map(String),
        };
      });
      if (made.length > 0) client.report(writes.planSteps(this.id, made));
    });
  }

  metadata(values: Record<string, unknown>): void {
    this.client.guard(() => {
      // Only by the process that has made it: of two with different clocks, one's updates would be dropped.
      const sequence = this.attached === undefined ? this.client.nextSequence() : undefined;
      this.client.report(writes.updateExecution(this.id, this.metadataOf(values), undefined, sequence));
    });
  }

  metrics(values: Record<string, number>, at?: Date): void {
    this.recordMetrics(values, at, undefined);
  }

  recordMetrics(values: Record<string, number>, at: Date | undefined, stepKey: string | undefined): void {
    this.client.guard(() => {
      const metrics: Record<string, number> = {};
      for (const [name, value] of Object.entries(values)) {
        // Only finite numbers are metrics; what is none would have the whole point refused.
        if (Number.isFinite(Number(value)) && name !== "") metrics[cut(name, this.client.limits.name_characters)] = Number(value);
      }
      if (Object.keys(metrics).length === 0) return;
      this.client.report(writes.recordMetrics(this.id, randomUUID(), metrics, at ?? new Date(), stepKey));
    });
  }

  artifact(name: string, data: ArtifactData, options: ArtifactOptions = {}): ArtifactRef {
    const said = plain(options);
    return this.upload(name, data, said, said.step?.key);
  }

  upload(name: string, data: ArtifactData, options: ArtifactOptions, stepKey: string | undefined): ArtifactRef {
    let stored: Promise<ArtifactRecord | undefined> = Promise.resolve(undefined);
    const { client } = this;
    const { name_characters } = client.limits;
    client.guard(() => {
      const metadata = options.metadata === undefined ? undefined : this.metadataOf(options.metadata);
      const source: Source = typeof data === "string" ? Buffer.from(data) : data;
      const mimeType = options.mimeType ?? (typeof data === "string" ? "text/plain; charset=utf-8" : blobType(data));
      const record = client.upload(
        {
          executionId: this.id,
          type: cut(options.type ?? "report", name_characters),
          name: optional(name, name_characters) ?? "artifact",
          ...(stepKey === undefined || stepKey === "" ? {} : { stepKey }),
          ...(mimeType === undefined ? {} : { mimeType: cut(mimeType, name_characters) }),
          ...(metadata === undefined ? {} : { metadata }),
        },
        source,
      );
      stored = record.then(
        (artifact) => (artifact === undefined ? undefined : artifactRecord(artifact)),
        (error: unknown) => {
          client.fault(error);
          return undefined;
        },
      );
    });
    return { name, stored };
  }

  carrier(): Carrier {
    const { client } = this;
    if (client.settings.mode === "disabled") return {};
    this.shared = true;
    if (this.attached === undefined && !this.ended) client.share(this.id);
    return carrierOf(this.id, parentIn(this)?.key ?? this.attached?.stepKey);
  }

  /** The step that one is part of if it does not say. */
  get carriedStep(): string | undefined {
    return this.attached?.stepKey;
  }

  complete(metadata?: Record<string, unknown>): void {
    if (metadata !== undefined) this.metadata(metadata);
    this.end(ExecutionStatus.COMPLETED);
  }

  fail(error: unknown, options: { code?: string | undefined; details?: Json } = {}): void {
    let text: writes.ErrorText | undefined;
    this.client.guard(() => {
      text = errorText(error, options, this.client.limits, this.client.settings.redact);
    });
    this.end(ExecutionStatus.FAILED, text);
  }

  cancel(): void {
    this.end(ExecutionStatus.CANCELLED);
  }

  private end(status: ExecutionStatus, error?: writes.ErrorText): void {
    const { client } = this;
    if (this.ended) return;
    this.ended = true;
    client.guard(() => {
      client.unbeat(this.id);
      client.report(writes.finishExecution(this.id, status, new Date(), error));
    });
  }

  metadataOf(values: unknown): JsonObject {
    return metadataOf(this.client, values);
  }

  /** What a log shows of it: not all that it holds on to, among which are the headers of the connection. */
  toJSON(): { id: string } {
    return { id: this.id };
  }

  [inspect.custom](): string {
    return `Run { id: ${inspect(this.id)} }`;
  }

  [Symbol.asyncDispose](): Promise<void> {
    // The end of a run is for the process that has made it to say.
    if (this.attached !== undefined) this.client.guard(() => this.client.unbeat(this.id));
    else this.complete();
    return Promise.resolve();
  }
}

class ReportedStep implements Step, Pending {
  readonly key: string;
  private readonly name: string;
  private readonly client: Client;
  private startedAt = new Date();
  private attempt = 1;
  private ended = false;
  /** What kind of output the server has, or is on its way to it. */
  private sent: "nothing" | "object" | "other" = "nothing";
  private held: { progress: number; message: string | undefined } | undefined;
  private timer: NodeJS.Timeout | undefined;
  private progressAt = 0;

  constructor(
    readonly run: ReportedRun,
    name: string,
    private readonly options: StepOptions,
  ) {
    this.client = run.client;
    this.key = optional(options.key, 256) ?? randomUUID();
    this.name = optional(name, this.client.limits.name_characters) ?? "step";
  }

  begin(): void {
    const { client, options } = this;
    client.guard(() => {
      this.run.numbered(this.key);
      client.report(
        writes.startStep({
          executionId: this.run.id,
          key: this.key,
          name: this.name,
          version: optional(options.version, client.limits.name_characters),
          input: options.input === undefined ? undefined : this.payload("input", options.input),
          metadata: options.metadata === undefined ? undefined : metadataOf(client, options.metadata),
          dependsOn: (options.dependsOn ?? []).map((each) => each.key).filter((key) => key !== ""),
          parentKey: options.parent === null ? undefined : options.parent?.key || this.run.carriedStep,
          startedAt: this.startedAt,
          attempt: this.attempt,
        }),
      );
    });
  }

  readonly step: StepFunction = <T>(
    name: string,
    optionsOrFn: StepOptions | ((s: Step) => T | Promise<T>),
    fn?: (s: Step) => T | Promise<T>,
  ): Promise<T> => within(this.run, this, name, optionsOrFn, fn);

  startStep(name: string, options: StepOptions = {}): Step {
    return this.run.startStep(name, { parent: this, ...options });
  }

  progress(fraction: number, message?: string): void {
    const { client } = this;
    client.guard(() => {
      const number = Number(fraction);
      if (this.ended || Number.isNaN(number)) return;
      if (number > 1.01) client.warn("PROGRESS", `progress is a fraction from 0 to 1: ${number} counts as 1`);
      const progress = Math.min(1, Math.max(0, number));
      this.held = { progress, message: optional(message, client.limits.message_characters) ?? this.held?.message };
      const wait = this.progressAt + PROGRESS_MS - Date.now();
      if (wait <= 0) {
        this.commit();
      } else if (this.timer !== undefined) {
        // It goes with that.
      } else if (!client.addPending(this)) {
        this.commit();
      } else {
        this.timer = setTimeout(() => client.guard(() => this.commit()), wait);
        this.timer.unref();
      }
    });
  }

  /** Sends the progress that is held back. */
  commit(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.client.removePending(this);
    const { held } = this;
    this.held = undefined;
    if (held === undefined) return;
    this.progressAt = Date.now();
    this.update({ progress: held.progress, message: held.message });
  }

  output(value: Json, options: { merge?: boolean | undefined } = {}): void {
    const { client } = this;
    client.guard(() => {
      const output = this.payload("output", value) ?? null;
      const isObject = typeof output === "object" && output !== null && !Array.isArray(output);
      // An update merges objects: to replace one by another, something else has to stand there in between.
      if (isObject && this.sent === "object" && options.merge !== true) this.update({ output: null });
      this.update({ output });
      this.sent = isObject ? "object" : "other";
    });
  }

  metadata(values: Record<string, unknown>): void {
    this.client.guard(() => this.update({ metadata: metadataOf(this.client, values) }));
  }

  metrics(values: Record<string, number>, at?: Date): void {
    this.run.recordMetrics(values, at, this.key);
  }

  artifact(name: string, data: ArtifactData, options: ArtifactOptions = {}): ArtifactRef {
    const said = plain(options);
    return this.run.upload(name, data, said, said.step?.key ?? this.key);
  }

  complete(output?: Json): void {
    this.end(StepStatus.COMPLETED, () => (output === undefined ? {} : { output: this.payload("output", output) }));
  }

  fail(error: unknown, options: { code?: string | undefined; details?: Json } = {}): void {
    const { client } = this;
    this.end(StepStatus.FAILED, () => ({ error: errorText(error, options, client.limits, client.settings.redact) }));
  }

  skip(reason?: string): void {
    this.end(StepStatus.SKIPPED, () =>
      reason === undefined ? {} : { metadata: metadataOf(this.client, { skip_reason: reason }) },
    );
  }

  retry(): Step {
    this.client.guard(() => {
      if (!this.ended) return;
      this.ended = false;
      this.attempt++;
      this.startedAt = new Date();
      this.sent = "nothing";
      this.begin();
    });
    return this;
  }

  private end(status: StepStatus, rest: () => Parameters<typeof writes.finishStep>[3]): void {
    const { client } = this;
    if (this.ended) return;
    client.guard(() => this.commit());
    this.ended = true;
    let said: Parameters<typeof writes.finishStep>[3] = {};
    client.guard(() => {
      said = rest();
    });
    const step = { executionId: this.run.id, key: this.key, name: this.name, startedAt: this.startedAt };
    client.guard(() => client.report(writes.finishStep(step, status, new Date(), said)));
  }

  private update(update: writes.StepUpdate): void {
    this.client.report(writes.updateStep(this.run.id, this.key, update, this.client.nextSequence()));
  }

  /** As of a run. */
  toJSON(): { key: string; name: string; run: string } {
    return { key: this.key, name: this.name, run: this.run.id };
  }

  [inspect.custom](): string {
    return `Step { name: ${inspect(this.name)}, key: ${inspect(this.key)}, run: ${inspect(this.run.id)} }`;
  }

  /** A value as the server takes it. One that is too large becomes an artifact, with a preview in its place. */
  private payload(field: "input" | "output", value: Json): JsonValue | undefined {
    const { client } = this;
    const converted = convert(value, field, client.settings.redact);
    if (converted === undefined) return undefined;
    const { json, bytes } = converted;
    if (bytes <= Math.min(client.settings.maxPayloadBytes, client.limits.payload_bytes)) return json;
    const text = JSON.stringify(json);
    const name = `step-${this.key}-${field}.json`;
    this.run.upload(name, text, { type: "payload", mimeType: "application/json" }, this.key);
    return { artifact: name, bytes: Buffer.byteLength(text), preview: preview(text) };
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.complete();
    return Promise.resolve();
  }
}

function metadataOf(client: Client, values: unknown): JsonObject {
  const { json, bytes } = convertObject(values, "metadata", client.settings.redact);
  if (bytes <= client.limits.metadata_bytes) return json;
  // As much of it as there is room for, in the order in which it was given.
  const kept: JsonObject = {};
  let room = client.limits.metadata_bytes - 4096;
  for (const [key, value] of Object.entries(json)) {
    const size = (convert(value, "metadata")?.bytes ?? 0) + key.length * 3;
    if (size <= room) kept[key] = value;
    else if (room > 8192) kept[cut(key, 256)] = { too_large: size, preview: preview(JSON.stringify(value)) };
    else continue;
    room -= Math.min(size, 8192 > size ? size : 4096);
  }
  return kept;
}

function userOf(client: Client): string | undefined {
  try {
    return client.settings.user();
  } catch (error) {
    client.fault(error);
    return undefined;
  }
}

/** Options as an object of our own: reading the app's may throw, and does so here only. */
function plain<T extends object>(options: T): T {
  try {
    return { ...options };
  } catch {
    return {} as T;
  }
}

/** A text within its limit; `undefined` for none, and for what cannot be made one. */
function optional(text: string | null | undefined, characters: number): string | undefined {
  try {
    return text == null || text === "" ? undefined : cut(String(text), characters);
  } catch {
    return undefined;
  }
}

function parentId(parent: Run | string | null): string | undefined {
  return parent === null ? undefined : typeof parent === "string" ? parent : parent.id;
}

function blobType(data: ArtifactData): string | undefined {
  return data instanceof Blob && data.type !== "" ? data.type : undefined;
}

// --- outside of any run -------------------------------------------------------------------------------------------

const NO_ARTIFACT = (name: string): ArtifactRef => ({ name, stored: Promise.resolve(undefined) });
const NEVER = new AbortController().signal;

const NOTHING: Run = {
  id: "",
  signal: NEVER,
  step: <T>(name: string, optionsOrFn: StepOptions | ((s: Step) => T | Promise<T>), fn?: (s: Step) => T | Promise<T>) =>
    within(NOTHING, undefined, name, optionsOrFn, fn),
  plan: () => undefined,
  startStep: (name, options) => (options?.run === undefined ? NO_STEP : options.run.startStep(name, options)),
  metadata: () => undefined,
  metrics: () => undefined,
  artifact: NO_ARTIFACT,
  carrier: () => ({}),
  complete: () => undefined,
  fail: () => undefined,
  cancel: () => undefined,
  [Symbol.asyncDispose]: () => Promise.resolve(),
};

const NO_STEP: Step = {
  key: "",
  run: NOTHING,
  step: NOTHING.step,
  startStep: NOTHING.startStep,
  progress: () => undefined,
  output: () => undefined,
  metadata: () => undefined,
  metrics: () => undefined,
  artifact: NO_ARTIFACT,
  complete: () => undefined,
  fail: () => undefined,
  skip: () => undefined,
  retry: () => NO_STEP,
  [Symbol.asyncDispose]: () => Promise.resolve(),
};
