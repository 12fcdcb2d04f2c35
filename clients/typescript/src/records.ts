/** Records as apps see them: plain objects, times as `Date`, statuses as words, numbers as numbers. */

import { toJson, type JsonObject, type JsonValue } from "@bufbuild/protobuf";
import { timestampDate, ValueSchema, type Timestamp, type Value } from "@bufbuild/protobuf/wkt";

import * as pb from "./gen/stepwell/v1/common_pb.js";
import type { Execution as PbExecution } from "./gen/stepwell/v1/execution_service_pb.js";

/** Status of a run; `unknown` where another program stored something else. */
export type ExecutionStatus = "running" | "completed" | "failed" | "cancelled" | "unknown";
/** Status of a step; `unknown` where another program stored something else. */
export type StepStatus = "pending" | "running" | "completed" | "failed" | "skipped" | "unknown";
/** What happened to the record of an event. */
export type Change = "created" | "updated" | "deleted";

/** Why a run or a step failed. */
export interface RunError {
  readonly message: string;
  /** For machines, such as `HEARTBEAT_TIMEOUT`. */
  readonly code: string;
  readonly stackTrace: string;
  readonly details: JsonObject;
}

/** A run, as stored. */
export interface Execution {
  readonly id: string;
  readonly app: string;
  readonly appId: number | undefined;
  readonly subApp: string | undefined;
  readonly subAppId: number | undefined;
  readonly user: string | undefined;
  readonly status: ExecutionStatus;
  readonly startedAt: Date | undefined;
  readonly completedAt: Date | undefined;
  readonly durationMs: number | undefined;
  readonly error: RunError | undefined;
  readonly metadata: JsonObject;
  readonly createdAt: Date | undefined;
  readonly updatedAt: Date | undefined;
  readonly revision: number;
  readonly heartbeatTimeoutMs: number | undefined;
  readonly lastHeartbeatAt: Date | undefined;
  readonly cancelRequestedAt: Date | undefined;
  readonly cancelReason: string | undefined;
  readonly parentId: string | undefined;
  readonly pinned: boolean;
  readonly configurationVersion: string | undefined;
  /** Fields that are stored but were too large to be sent. */
  readonly omittedFields: readonly string[];
  /** Its steps by number, where they were asked for. */
  readonly steps: readonly StepRecord[];
  /** Its artifacts, where steps were asked for. */
  readonly artifacts: readonly ArtifactRecord[];
}

/** One attempt of a step before the current one. */
export interface Attempt {
  readonly startedAt: Date | undefined;
  readonly completedAt: Date | undefined;
  readonly durationMs: number | undefined;
  readonly error: RunError | undefined;
}

/** A step, as stored. */
export interface StepRecord {
  readonly executionId: string;
  readonly id: number | undefined;
  readonly key: string | undefined;
  readonly name: string;
  readonly version: string | undefined;
  readonly status: StepStatus;
  readonly startedAt: Date | undefined;
  readonly completedAt: Date | undefined;
  readonly durationMs: number | undefined;
  /** What went in; `undefined` unless payloads were asked for. */
  readonly input: JsonValue | undefined;
  /** What came out; `undefined` unless payloads were asked for. */
  readonly output: JsonValue | undefined;
  readonly error: RunError | undefined;
  readonly retryCount: number;
  readonly metadata: JsonObject;
  readonly revision: number;
  readonly createdAt: Date | undefined;
  readonly updatedAt: Date | undefined;
  readonly dependsOn: readonly number[];
  readonly dependsOnKeys: readonly string[];
  readonly parentId: number | undefined;
  readonly parentKey: string | undefined;
  readonly progress: number | undefined;
  readonly progressMessage: string | undefined;
  readonly attempts: readonly Attempt[];
  /** Fields that are stored but were too large to be sent. */
  readonly omittedFields: readonly string[];
}

/** An artifact, as stored. */
export interface ArtifactRecord {
  readonly id: string;
  readonly executionId: string;
  readonly stepId: number | undefined;
  readonly stepKey: string | undefined;
  readonly type: string;
  readonly name: string;
  readonly mimeType: string | undefined;
  readonly size: number | undefined;
  readonly sha256: string | undefined;
  readonly storageType: string | undefined;
  readonly storagePath: string | undefined;
  readonly metadata: JsonObject;
  readonly createdAt: Date | undefined;
}

/** Numbers of one moment. */
export interface Point {
  readonly at: Date | undefined;
  readonly executionId: string;
  readonly stepId: number | undefined;
  readonly stepKey: string | undefined;
  readonly values: Readonly<Record<string, number>>;
}

export function executionRecord(
  record: PbExecution,
  steps: readonly pb.Step[] = [],
  artifacts: readonly pb.Artifact[] = [],
): Execution {
  return {
    id: record.executionId,
    app: record.appName,
    appId: record.appId,
    subApp: record.subAppName,
    subAppId: record.subAppId,
    user: record.userId,
    status: statusName(pb.ExecutionStatus[record.status]) as ExecutionStatus,
    startedAt: date(record.startedAt),
    completedAt: date(record.completedAt),
    durationMs: number(record.durationMs),
    error: error(record.error),
    metadata: record.metadata ?? {},
    createdAt: date(record.createdAt),
    updatedAt: date(record.updatedAt),
    revision: Number(record.revision),
    heartbeatTimeoutMs: number(record.heartbeatTimeoutMs),
    lastHeartbeatAt: date(record.lastHeartbeatAt),
    cancelRequestedAt: date(record.cancelRequestedAt),
    cancelReason: record.cancelReason,
    parentId: record.parentExecutionId,
    pinned: record.pinned ?? false,
    configurationVersion: record.configurationVersion,
    omittedFields: record.omittedFields,
    steps: steps.map(stepRecord),
    artifacts: artifacts.map(artifactRecord),
  };
}

export function stepRecord(record: pb.Step): StepRecord {
  return {
    executionId: record.executionId,
    id: record.stepId,
    key: record.stepKey,
    name: record.stepName,
    version: record.stepVersion,
    status: statusName(pb.StepStatus[record.status]) as StepStatus,
    startedAt: date(record.startedAt),
    completedAt: date(record.completedAt),
    durationMs: number(record.durationMs),
    input: json(record.input),
    output: json(record.output),
    error: error(record.error),
    retryCount: record.retryCount,
    metadata: record.metadata ?? {},
    revision: Number(record.revision),
    createdAt: date(record.createdAt),
    updatedAt: date(record.updatedAt),
    dependsOn: record.dependsOn,
    dependsOnKeys: record.dependsOnKeys,
    parentId: record.parentStepId,
    parentKey: record.parentStepKey,
    progress: record.progress,
    progressMessage: record.progressMessage,
    attempts: record.attempts.map((attempt) => ({
      startedAt: date(attempt.startedAt),
      completedAt: date(attempt.completedAt),
      durationMs: number(attempt.durationMs),
      error: error(attempt.error),
    })),
    omittedFields: record.omittedFields,
  };
}

export function artifactRecord(record: pb.Artifact): ArtifactRecord {
  return {
    id: record.artifactId,
    executionId: record.executionId,
    stepId: record.stepId,
    stepKey: record.stepKey,
    type: record.artifactType,
    name: record.artifactName,
    mimeType: record.mimeType,
    size: number(record.sizeBytes),
    sha256: record.sha256,
    storageType: record.storageType,
    storagePath: record.storagePath,
    metadata: record.metadata ?? {},
    createdAt: date(record.createdAt),
  };
}

export function point(record: pb.MetricPoint): Point {
  return {
    at: date(record.timestamp),
    executionId: record.executionId,
    stepId: record.stepId,
    stepKey: record.stepKey,
    values: record.metrics,
  };
}

export function change(type: pb.ChangeType): Change {
  if (type === pb.ChangeType.DELETED) return "deleted";
  return type === pb.ChangeType.CREATED ? "created" : "updated";
}

function statusName(name: string | undefined): string {
  return name === undefined || name === "UNSPECIFIED" ? "unknown" : name.toLowerCase();
}

function error(record: pb.Error | undefined): RunError | undefined {
  if (record === undefined) return undefined;
  const { message, code, stackTrace, details } = record;
  return { message, code, stackTrace, details: details ?? {} };
}

function date(timestamp: Timestamp | undefined): Date | undefined {
  return timestamp === undefined ? undefined : timestampDate(timestamp);
}

function number(value: bigint | undefined): number | undefined {
  return value === undefined ? undefined : Number(value);
}

function json(value: Value | undefined): JsonValue | undefined {
  return value === undefined ? undefined : toJson(ValueSchema, value);
}
