/** Reading and watching. Unlike reporting, this throws: a {@link StepwellError} with the server's reason. */

import { create, fromJson, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate, ValueSchema } from "@bufbuild/protobuf/wkt";
import { Code, createClient, type Client as RpcClient, type Transport } from "@connectrpc/connect";
import { once } from "node:events";
import { createHash } from "node:crypto";
import { createWriteStream } from "node:fs";
import type { Writable } from "node:stream";
import { finished } from "node:stream/promises";
import { setTimeout as sleep } from "node:timers/promises";

import { asStepwellError, Cancelled, detailsOfError, StepwellError } from "./errors.js";
import { AdminService } from "./gen/stepwell/v1/admin_service_pb.js";
import { AnalyticsService } from "./gen/stepwell/v1/analytics_service_pb.js";
import { ArtifactService } from "./gen/stepwell/v1/artifact_service_pb.js";
import { ExecutionFilterSchema, ExecutionStatus as PbStatus, type ExecutionFilter } from "./gen/stepwell/v1/common_pb.js";
import { ConfigurationService } from "./gen/stepwell/v1/configuration_service_pb.js";
import {
  ExecutionOrder,
  ExecutionService,
  ExecutionView,
  WatchSnapshot,
  type WatchExecutionResponse,
  type WatchExecutionsResponse,
} from "./gen/stepwell/v1/execution_service_pb.js";
import { IngestService } from "./gen/stepwell/v1/ingest_service_pb.js";
import { MetricService } from "./gen/stepwell/v1/metric_service_pb.js";
import { SearchService } from "./gen/stepwell/v1/search_service_pb.js";
import { StepService } from "./gen/stepwell/v1/step_service_pb.js";
import { withKey } from "./options.js";
import {
  artifactRecord,
  change,
  executionRecord,
  point,
  stepRecord,
  type ArtifactRecord,
  type Change,
  type Execution,
  type ExecutionStatus,
  type Point,
  type StepRecord,
} from "./records.js";
import { client as reporting } from "./run.js";
import { DEFAULT_SERVER, jittered, openChannel, withPort, type TlsOptions } from "./transport.js";

/** Options of an {@link Api}. What is left out is that of reporting, or of the environment. */
export interface ApiOptions {
  server?: string | undefined;
  tls?: TlsOptions | undefined;
  headers?: Record<string, string> | undefined;
  /** How long a call may take, with its retries; 20,000. Watches have no end. */
  timeoutMs?: number | undefined;
}

/** How long ago: milliseconds, or a number with a unit, such as `"24h"`. */
export type Ago = number | `${number}${"ms" | "s" | "m" | "h" | "d"}`;

/** Which runs. Of each list one has to match; all that is given has to hold. */
export interface Filter {
  /** Names of apps. */
  app?: string | readonly string[] | undefined;
  appId?: number | readonly number[] | undefined;
  subAppId?: number | readonly number[] | undefined;
  user?: string | readonly string[] | undefined;
  status?: ExecutionStatus | readonly ExecutionStatus[] | undefined;
  /** Started at or after this. */
  since?: Date | Ago | undefined;
  /** Started before this. */
  until?: Date | Ago | undefined;
  minDurationMs?: number | undefined;
  /** Paths in the metadata and the values they have to have. */
  metadata?: Record<string, unknown> | undefined;
}

/** Options of {@link Api.list}. */
export interface ListOptions {
  /** `newest` start first, unless given. */
  order?: "newest" | "oldest" | undefined;
  /** How many at most. */
  limit?: number | undefined;
}

/** Options of watches. */
export interface WatchOptions {
  /** Send steps: true for one run, false for many, unless given. */
  steps?: boolean | undefined;
  /** Send artifacts; of one run only. */
  artifacts?: boolean | undefined;
  /** Send points of metrics; of one run only. */
  metrics?: boolean | undefined;
  /** Send input and output of steps too. */
  payloads?: boolean | undefined;
  /** Go on after the run has ended. */
  follow?: boolean | undefined;
  /** Begin after the event with this token. */
  token?: string | undefined;
  /** Which current state comes first; `all`, and without a filter `active`, unless given. Of many runs only. */
  snapshot?: "all" | "active" | "none" | undefined;
  /** Ends the watch. */
  signal?: AbortSignal | undefined;
}

/**
 * What happened. `token` begins a watch after it, and is empty for the state that comes first. The record is the whole new
 * one; of `metrics`, `live` (the state is complete, changes follow) and `reset` (history no longer reaches back: the
 * state comes once more) it is the run as last known.
 */
export type Event = { readonly token: string } & (
  | { readonly kind: "execution"; readonly change: Change; readonly record: Execution }
  | { readonly kind: "step"; readonly change: Change; readonly record: StepRecord }
  | { readonly kind: "artifact"; readonly change: Change; readonly record: ArtifactRecord }
  | { readonly kind: "metrics"; readonly points: readonly Point[]; readonly record: Execution | undefined }
  | { readonly kind: "live"; readonly record: Execution | undefined }
  | { readonly kind: "reset"; readonly record: Execution | undefined }
);

/** The generated clients of every service, on the same connection. */
export interface RawClients {
  readonly executions: RpcClient<typeof ExecutionService>;
  readonly steps: RpcClient<typeof StepService>;
  readonly ingest: RpcClient<typeof IngestService>;
  readonly artifacts: RpcClient<typeof ArtifactService>;
  readonly metrics: RpcClient<typeof MetricService>;
  readonly configurations: RpcClient<typeof ConfigurationService>;
  readonly analytics: RpcClient<typeof AnalyticsService>;
  readonly search: RpcClient<typeof SearchService>;
  readonly admin: RpcClient<typeof AdminService>;
}

/** How many runs. */
export interface Count {
  readonly count: number;
  /** `false`: at least so many. */
  readonly exact: boolean;
}

const RETRY_MS = { first: 100, most: 5_000 } as const;
/** Records whose last revision is remembered, so that a resumed watch never goes back. */
const REMEMBERED = 100_000;

/** A client that reads. Keeps the process alive only while a call is open. */
export class Api {
  /** The generated clients, for what this class does not have. They throw `ConnectError`s. */
  readonly raw: RawClients;
  private readonly server: string;
  private readonly timeoutMs: number;
  private readonly closeChannel: () => void;

  constructor(options: ApiOptions = {}) {
    const { settings } = reporting();
    this.server = withPort(options.server ?? settings.server ?? DEFAULT_SERVER);
    const same = this.server === settings.server;
    this.timeoutMs = options.timeoutMs ?? 20_000;
    const tls = options.tls ?? (same ? settings.tls : undefined);
    const headers = options.headers === undefined && same ? settings.headers : withKey(options.headers, this.server, tls);
    const { transport, close } = openChannel({ server: this.server, tls, headers }, false);
    this.closeChannel = close;
    this.raw = rawClients(transport);
  }

  /** Closes the connection; open calls end. The next call opens another one. */
  close(): void {
    this.closeChannel();
  }

  /** One run; with `steps` its steps and artifacts, with `payloads` the input and output of each step too. */
  async get(id: string, options: { steps?: boolean; payloads?: boolean } = {}): Promise<Execution> {
    const withSteps = options.steps === true || options.payloads === true;
    await this.reported(id);
    const found = await this.call((timeoutMs) =>
      this.raw.executions.getExecution(
        { executionId: id, view: withSteps ? ExecutionView.FULL : ExecutionView.BASIC },
        { timeoutMs },
      ),
    );
    if (found.execution === undefined) throw new StepwellError("no execution in the answer", "internal", "", undefined, [], {});
    if (!withSteps) return executionRecord(found.execution);
    let steps = found.steps;
    if (found.stepsTruncated || options.payloads === true) {
      steps = [];
      for (let pageToken = ""; ; ) {
        const page = await this.call((timeoutMs) =>
          this.raw.steps.listSteps(
            { executionId: id, pageSize: 1000, pageToken, includePayloads: options.payloads === true },
            { timeoutMs },
          ),
        );
        steps.push(...page.steps);
        pageToken = page.nextPageToken;
        if (pageToken === "") break;
      }
    }
    if (options.payloads === true) {
      // A page leaves out what is large, and an older server all of it (a step always has an input): one by one they
      // come whole.
      for (const [index, step] of steps.entries()) {
        const omitted = step.omittedFields.some((field) => field === "input" || field === "output");
        if (!omitted && step.input !== undefined) continue;
        const { stepId } = step;
        if (stepId === undefined) continue;
        const whole = await this.call((timeoutMs) => this.raw.steps.getStep({ executionId: id, stepId }, { timeoutMs }));
        if (whole.step !== undefined) steps[index] = whole.step;
      }
    }
    return executionRecord(found.execution, steps, found.artifacts);
  }

  /** Runs that match, page after page: `api.list({ status: "failed", since: "24h" })`. */
  async *list(filter: Filter & ListOptions = {}): AsyncGenerator<Execution, void, undefined> {
    await this.reported();
    const wanted = filterOf(filter, OF_LISTS);
    const order = filter.order === "oldest" ? ExecutionOrder.STARTED_AT_ASC : ExecutionOrder.STARTED_AT_DESC;
    let left = filter.limit ?? Number.POSITIVE_INFINITY;
    for (let pageToken = ""; left > 0; ) {
      const pageSize = Math.min(200, left);
      const page = await this.call((timeoutMs) =>
        this.raw.executions.listExecutions({ filter: wanted, order, pageSize, pageToken }, { timeoutMs }),
      );
      for (const record of page.executions) {
        yield executionRecord(record);
        left--;
      }
      pageToken = page.nextPageToken;
      if (pageToken === "") return;
    }
  }

  /** How many runs match. */
  async count(filter: Filter = {}): Promise<Count> {
    await this.reported();
    const { count, exact } = await this.call((timeoutMs) =>
      this.raw.executions.countExecutions({ filter: filterOf(filter), limit: 100_000 }, { timeoutMs }),
    );
    return { count: Number(count), exact };
  }

  /** Waits until a run has ended, and returns it. Rejects with `deadline_exceeded` when it takes too long. */
  async wait(id: string, options: { timeoutMs?: number } = {}): Promise<Execution> {
    const timeout = new AbortController();
    const timer =
      options.timeoutMs === undefined ? undefined : setTimeout(() => timeout.abort(), Math.min(options.timeoutMs, 2 ** 31 - 1));
    try {
      let last: Execution | undefined;
      for await (const event of this.watch(id, { steps: false, signal: timeout.signal })) {
        if (event.kind === "execution") last = event.record;
        if (last !== undefined && last.status !== "running" && last.status !== "unknown") return last;
      }
      if (last !== undefined && !timeout.signal.aborted) return last;
      throw new StepwellError(`${id} has not ended in time`, "deadline_exceeded", "", undefined, [], {});
    } finally {
      clearTimeout(timer);
    }
  }

  /** Asks a run to stop. Its app is told with its next sign of life. */
  async cancel(id: string, reason = ""): Promise<void> {
    await this.reported(id);
    await this.call((timeoutMs) => this.raw.executions.requestCancel({ executionId: id, reason }, { timeoutMs }));
  }

  /**
   * Writes the bytes of an artifact to a file or a stream, and rejects where they are not those that were stored. Goes on
   * where it stopped when the connection is lost.
   */
  async download(artifact: ArtifactRecord | string, to: string | Writable): Promise<void> {
    await this.reported();
    const artifactId = typeof artifact === "string" ? artifact : artifact.id;
    const out = typeof to === "string" ? createWriteStream(to) : to;
    // A stream that fails between two writes would end the process if nobody listened.
    let broken: { error: unknown } | undefined;
    const onError = (error: unknown): void => {
      broken ??= { error };
    };
    out.on("error", onError);
    const digest = createHash("sha256");
    let expected = "";
    let offset = 0n;
    try {
      for (let failures = 0; ; ) {
        try {
          for await (const { part } of this.raw.artifacts.downloadArtifact({ artifactId, offset })) {
            if (part.case === "artifact") expected = part.value.sha256 ?? "";
            if (part.case !== "chunk") continue;
            failures = 0;
            offset += BigInt(part.value.length);
            digest.update(part.value);
            if (broken === undefined && !out.write(part.value)) await once(out, "drain");
            if (broken !== undefined) throw broken.error;
          }
          break;
        } catch (thrown) {
          if (broken !== undefined) throw broken.error;
          if (!isForNow(thrown) || failures > 5) throw asStepwellError(thrown);
          await sleep(jittered(Math.min(RETRY_MS.most, RETRY_MS.first * 2 ** failures++)));
        }
      }
      if (expected !== "" && digest.digest("hex") !== expected) {
        throw new StepwellError("these are not the bytes that were stored", "data_loss", "ARTIFACT_BYTES_LOST", undefined, [], {});
      }
      if (typeof to === "string") {
        out.end();
        if (broken === undefined) await finished(out);
        if (broken !== undefined) throw broken.error;
      }
    } finally {
      if (typeof to === "string") out.destroy();
      else out.off("error", onError);
    }
  }

  /**
   * The state of a run, then every change, until it has ended. Reconnects for ever, and goes on after the last event; never
   * goes back to an older record. Ends when the run does, or the loop is left, or `signal` is aborted.
   */
  async *watch(id: string, options: WatchOptions = {}): AsyncGenerator<Event, void, undefined> {
    await this.reported(id);
    yield* resumed(options, (token, signal) =>
      this.raw.executions.watchExecution(
        {
          executionId: id,
          resumeToken: token,
          includeSteps: options.steps ?? true,
          includeArtifacts: options.artifacts ?? false,
          includeMetrics: options.metrics ?? false,
          includePayloads: options.payloads ?? false,
          follow: options.follow ?? false,
        },
        { signal, timeoutMs: 0 },
      ),
    );
  }

  /** The same for all runs that match; ends only when the loop is left or `signal` is aborted. */
  async *watchMany(filter: Filter & WatchOptions = {}): AsyncGenerator<Event, void, undefined> {
    await this.reported();
    const wanted = filterOf(filter, OF_WATCHES);
    const snapshot = { all: WatchSnapshot.ALL, active: WatchSnapshot.ACTIVE, none: WatchSnapshot.NONE } as const;
    yield* resumed(filter, (token, signal) =>
      this.raw.executions.watchExecutions(
        {
          filter: wanted,
          resumeToken: token,
          includeSteps: filter.steps ?? false,
          includePayloads: filter.payloads ?? false,
          snapshot: filter.snapshot === undefined ? WatchSnapshot.UNSPECIFIED : snapshot[filter.snapshot],
        },
        { signal, timeoutMs: 0 },
      ),
    );
  }

  /** What this process has reported is sent before it is read. */
  private reported(id?: string): Promise<void> {
    return reporting().flushBeforeReading(this.server, id);
  }

  /** Calls what is safe to repeat until it works or the time is over. */
  private async call<T>(attempt: (timeoutMs: number) => Promise<T>): Promise<T> {
    const until = Date.now() + this.timeoutMs;
    let before: unknown;
    for (let failures = 0; ; failures++) {
      try {
        return await attempt(Math.max(1, until - Date.now()));
      } catch (thrown) {
        const { code, retryAfterMs } = detailsOfError(thrown);
        // Why it did not work says more than that the time is over.
        if (code === Code.DeadlineExceeded && before !== undefined) throw asStepwellError(before);
        before = thrown;
        const wait = retryAfterMs ?? jittered(Math.min(RETRY_MS.most, RETRY_MS.first * 2 ** failures));
        if (!isForNow(thrown) || Date.now() + wait >= until) throw asStepwellError(thrown);
        await sleep(wait);
      }
    }
  }
}

/** Opens a stream of events again and again, and tells its events so that nothing is missed and nothing goes back. */
async function* resumed(
  options: WatchOptions,
  open: (token: string, signal: AbortSignal) => AsyncIterable<WatchExecutionResponse | WatchExecutionsResponse>,
): AsyncGenerator<Event, void, undefined> {
  const { signal } = options;
  const seen = new Map<string, number>();
  let token = options.token ?? "";
  let run: Execution | undefined;
  let failures = 0;
  for (;;) {
    if (signal?.aborted === true) return;
    const abort = new AbortController();
    const onAbort = (): void => abort.abort();
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      for await (const message of open(token, abort.signal)) {
        failures = 0;
        // That of the state is empty: a watch that is cut in it begins again.
        if (message.resumeToken !== "") token = message.resumeToken;
        const event = eventOf(message, run);
        if (event === undefined) continue;
        if (event.kind === "execution") run = event.record;
        if (isOlder(event, seen)) continue;
        yield event;
      }
      return;
    } catch (thrown) {
      if (abort.signal.aborted) return;
      const details = detailsOfError(thrown);
      if (details.reason === "RESUME_TOKEN_EXPIRED") {
        token = "";
        yield { kind: "reset", token: "", record: run };
        continue;
      }
      if (!isForNow(thrown)) throw asStepwellError(thrown);
      const wait = details.retryAfterMs ?? jittered(Math.min(RETRY_MS.most, RETRY_MS.first * 2 ** Math.min(10, failures++)));
      try {
        await sleep(wait, undefined, signal === undefined ? {} : { signal });
      } catch {
        return;
      }
    } finally {
      // Leaving the loop ends the call.
      abort.abort();
      signal?.removeEventListener("abort", onAbort);
    }
  }
}

function eventOf(message: WatchExecutionResponse | WatchExecutionsResponse, run: Execution | undefined): Event | undefined {
  const { event, resumeToken: token } = message;
  switch (event.case) {
    case "execution":
      if (event.value.execution === undefined) return undefined;
      return { kind: "execution", change: change(event.value.changeType), record: executionRecord(event.value.execution), token };
    case "step":
      if (event.value.step === undefined) return undefined;
      return { kind: "step", change: change(event.value.changeType), record: stepRecord(event.value.step), token };
    case "artifact":
      if (event.value.artifact === undefined) return undefined;
      return { kind: "artifact", change: change(event.value.changeType), record: artifactRecord(event.value.artifact), token };
    case "metrics":
      return { kind: "metrics", points: event.value.points.map(point), record: run, token };
    case "snapshotComplete":
      return { kind: "live", record: run, token };
    default:
      return undefined;
  }
}

/**
 * Whether a later state of the record was told already. An equal revision is another program's write, and so is none at
 * all: both are passed on.
 */
function isOlder(event: Event, seen: Map<string, number>): boolean {
  if (event.kind !== "execution" && event.kind !== "step") return false;
  const name = event.kind === "execution" ? event.record.id : `${event.record.executionId} ${event.record.id ?? ""}`;
  if (event.change === "deleted") {
    seen.delete(name);
    return false;
  }
  const { revision } = event.record;
  const before = seen.get(name);
  if (before !== undefined && revision !== 0 && revision < before) return true;
  seen.delete(name);
  seen.set(name, revision);
  if (seen.size > REMEMBERED) {
    for (const oldest of seen.keys()) {
      seen.delete(oldest);
      break;
    }
  }
  return false;
}

function rawClients(transport: Transport): RawClients {
  return {
    executions: createClient(ExecutionService, transport),
    steps: createClient(StepService, transport),
    ingest: createClient(IngestService, transport),
    artifacts: createClient(ArtifactService, transport),
    metrics: createClient(MetricService, transport),
    configurations: createClient(ConfigurationService, transport),
    analytics: createClient(AnalyticsService, transport),
    search: createClient(SearchService, transport),
    admin: createClient(AdminService, transport),
  };
}

const FILTERS: Record<keyof Filter, true> = {
  app: true,
  appId: true,
  subAppId: true,
  user: true,
  status: true,
  since: true,
  until: true,
  minDurationMs: true,
  metadata: true,
};
const OF_LISTS: Record<keyof ListOptions, true> = { order: true, limit: true };
const OF_WATCHES: Record<keyof WatchOptions, true> = {
  steps: true,
  artifacts: true,
  metrics: true,
  payloads: true,
  follow: true,
  token: true,
  snapshot: true,
  signal: true,
};
const STATUSES: readonly ExecutionStatus[] = ["running", "completed", "failed", "cancelled"];

/** A filter that is not one: what is wrong with it is said, and not whatever there is listed. */
function noFilter(message: string): StepwellError {
  return new StepwellError(message, "invalid_argument", "INVALID_ARGUMENT", undefined, [], {});
}

/** `beside` are the options that stand beside the filter. */
function filterOf(filter: Filter, beside: object = {}): ExecutionFilter {
  const unknown = Object.keys(filter).filter((name) => !(name in FILTERS) && !(name in beside));
  if (unknown.length > 0) {
    throw noFilter(`unknown filter ${unknown.join(", ")}; there are ${Object.keys(FILTERS).join(", ")}`);
  }
  const init: MessageInitShape<typeof ExecutionFilterSchema> = {
    appNames: many(filter.app),
    appIds: many(filter.appId),
    subAppIds: many(filter.subAppId),
    userIds: many(filter.user),
    statuses: many(filter.status).map((status) => {
      if (!STATUSES.includes(status)) throw noFilter(`status is one of ${STATUSES.join(", ")}, not ${status}`);
      return PbStatus[status.toUpperCase() as keyof typeof PbStatus];
    }),
    metadata: Object.fromEntries(
      Object.entries(filter.metadata ?? {}).map(([path, value]) => [path, fromJson(ValueSchema, value as never)]),
    ),
  };
  if (filter.since !== undefined) init.startedAtFrom = timestampFromDate(moment(filter.since));
  if (filter.until !== undefined) init.startedAtUntil = timestampFromDate(moment(filter.until));
  if (filter.minDurationMs !== undefined) init.minDurationMs = BigInt(filter.minDurationMs);
  return create(ExecutionFilterSchema, init);
}

function many<T>(values: T | readonly T[] | undefined): T[] {
  if (values === undefined) return [];
  return Array.isArray(values) ? [...(values as readonly T[])] : [values as T];
}

const UNITS_MS = { ms: 1, s: 1000, m: 60_000, h: 3600_000, d: 24 * 3600_000 } as const;

function moment(when: Date | Ago): Date {
  if (when instanceof Date) return when;
  if (typeof when === "number") return new Date(Date.now() - when);
  const [, amount, unit] = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/.exec(when) ?? [];
  if (amount === undefined || unit === undefined) {
    throw noFilter(`not a time: ${when}; a Date, or how long ago, in milliseconds or such as "24h"`);
  }
  return new Date(Date.now() - Number(amount) * UNITS_MS[unit as keyof typeof UNITS_MS]);
}

/** Whether a call may work a little later. */
function isForNow(thrown: unknown): boolean {
  if (thrown instanceof Cancelled) return false;
  const { code, retryAfterMs } = detailsOfError(thrown);
  if (retryAfterMs !== undefined) return true;
  // Cancelled here is a connection that was lost, or a server that was going down.
  return code === Code.Unavailable || code === Code.Canceled || code === Code.Aborted;
}
