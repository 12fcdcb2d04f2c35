/** Requests, as runs and steps report them. */

import { create, fromJson, type JsonObject, type JsonValue } from "@bufbuild/protobuf";
import { DurationSchema, timestampFromDate, TimestampSchema, ValueSchema, type Timestamp, type Value } from "@bufbuild/protobuf/wkt";

import { ErrorSchema, MetricPointSchema, type ExecutionStatus, type StepStatus } from "./gen/stepwell/v1/common_pb.js";
import {
  CreateExecutionRequestSchema,
  FinishExecutionRequestSchema,
  UpdateExecutionRequestSchema,
} from "./gen/stepwell/v1/execution_service_pb.js";
import { RecordMetricsRequestSchema } from "./gen/stepwell/v1/metric_service_pb.js";
import {
  FinishStepRequestSchema,
  PlanStepsRequestSchema,
  StartStepRequestSchema,
  UpdateStepRequestSchema,
} from "./gen/stepwell/v1/step_service_pb.js";
import type { Write } from "./entry.js";

/** An error of a run, within the limits. */
export interface ErrorText {
  message: string;
  code: string;
  stackTrace: string;
  details: JsonObject | undefined;
}

export interface NewExecution {
  id: string;
  app: string;
  appId: number | undefined;
  subApp: string | undefined;
  user: string | undefined;
  metadata: JsonObject | undefined;
  startedAt: Date;
  heartbeatTimeoutMs: number | undefined;
  parentId: string | undefined;
  configurationVersion: string | undefined;
}

export function createExecution(run: NewExecution): Write {
  return {
    case: "createExecution",
    value: create(CreateExecutionRequestSchema, {
      executionId: run.id,
      appId: run.appId,
      appName: run.app,
      subAppName: run.subApp,
      userId: run.user,
      metadata: run.metadata,
      startedAt: timestamp(run.startedAt),
      heartbeatTimeout:
        run.heartbeatTimeoutMs === undefined
          ? undefined
          : create(DurationSchema, {
              seconds: BigInt(Math.floor(run.heartbeatTimeoutMs / 1000)),
              nanos: Math.floor(run.heartbeatTimeoutMs % 1000) * 1_000_000,
            }),
      parentExecutionId: run.parentId,
      configurationVersion: run.configurationVersion,
    }),
  };
}

export function updateExecution(
  executionId: string,
  metadata: JsonObject | undefined,
  pinned: boolean | undefined,
  updateSequence: bigint | undefined,
): Write {
  return {
    case: "updateExecution",
    value: create(UpdateExecutionRequestSchema, { executionId, metadata, pinned, updateSequence }),
  };
}

export function finishExecution(id: string, status: ExecutionStatus, at: Date, error?: ErrorText): Write {
  return {
    case: "finishExecution",
    value: create(FinishExecutionRequestSchema, {
      executionId: id,
      status,
      completedAt: timestamp(at),
      error: error === undefined ? undefined : create(ErrorSchema, error),
    }),
  };
}

export interface NewStep {
  executionId: string;
  key: string;
  name: string;
  version: string | undefined;
  input: JsonValue | undefined;
  metadata: JsonObject | undefined;
  dependsOn: readonly string[];
  parentKey: string | undefined;
  startedAt: Date;
  attempt: number;
}

export interface NewPlannedStep {
  number: number;
  key: string;
  name: string;
  version: string | undefined;
  metadata: JsonObject | undefined;
  dependsOn: readonly string[];
}

export function planSteps(executionId: string, steps: readonly NewPlannedStep[]): Write {
  return {
    case: "planSteps",
    value: create(PlanStepsRequestSchema, {
      executionId,
      steps: steps.map((step) => ({
        stepId: step.number,
        stepKey: step.key,
        stepName: step.name,
        ...(step.version === undefined ? {} : { stepVersion: step.version }),
        ...(step.metadata === undefined ? {} : { metadata: step.metadata }),
        dependsOnKeys: [...step.dependsOn],
      })),
    }),
  };
}

export function startStep(step: NewStep): Write {
  return {
    case: "startStep",
    value: create(StartStepRequestSchema, {
      executionId: step.executionId,
      stepKey: step.key,
      stepName: step.name,
      stepVersion: step.version,
      input: value(step.input),
      metadata: step.metadata,
      dependsOnKeys: [...step.dependsOn],
      parentStepKey: step.parentKey,
      startedAt: timestamp(step.startedAt),
      attempt: step.attempt,
    }),
  };
}

export interface StepUpdate {
  progress?: number | undefined;
  message?: string | undefined;
  metadata?: JsonObject | undefined;
  output?: JsonValue | undefined;
}

export function updateStep(executionId: string, key: string, update: StepUpdate, sequence: bigint): Write {
  return {
    case: "updateStep",
    value: create(UpdateStepRequestSchema, {
      executionId,
      stepKey: key,
      progress: update.progress,
      progressMessage: update.message,
      metadata: update.metadata,
      output: value(update.output),
      updateSequence: sequence,
    }),
  };
}

/** The end of a step. With its name it stands for the whole step where the start was refused. */
export function finishStep(
  step: Pick<NewStep, "executionId" | "key" | "name" | "startedAt">,
  status: StepStatus,
  at: Date,
  rest: { output?: JsonValue | undefined; error?: ErrorText | undefined; metadata?: JsonObject | undefined },
): Write {
  return {
    case: "finishStep",
    value: create(FinishStepRequestSchema, {
      executionId: step.executionId,
      stepKey: step.key,
      stepName: step.name,
      startedAt: timestamp(step.startedAt),
      status,
      output: value(rest.output),
      error: rest.error === undefined ? undefined : create(ErrorSchema, rest.error),
      metadata: rest.metadata,
      completedAt: timestamp(at),
    }),
  };
}

export function recordMetrics(
  executionId: string,
  requestId: string,
  metrics: Record<string, number>,
  at: Date,
  stepKey: string | undefined,
): Write {
  return {
    case: "recordMetrics",
    value: create(RecordMetricsRequestSchema, {
      executionId,
      requestId,
      points: [create(MetricPointSchema, { timestamp: timestamp(at), metrics, stepKey })],
    }),
  };
}

/** A time, or the present where it is none. */
export function timestamp(date: Date): Timestamp {
  return Number.isNaN(date.getTime()) ? create(TimestampSchema, timestampFromDate(new Date())) : timestampFromDate(date);
}

function value(json: JsonValue | undefined): Value | undefined {
  return json === undefined ? undefined : fromJson(ValueSchema, json);
}
