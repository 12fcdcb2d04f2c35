/** What was reported, for tests: `configure({ mode: "memory" })`. */

import { toJson, type JsonObject, type JsonValue } from "@bufbuild/protobuf";
import { ValueSchema, type Value } from "@bufbuild/protobuf/wkt";

import { ExecutionStatus, StepStatus } from "./gen/stepwell/v1/common_pb.js";
import type { Description, Source } from "./uploads.js";
import { isObject, mergeInto } from "./values.js";
import type { Write } from "./entry.js";

/** A run as it was reported. */
export interface RecordedRun {
  id: string;
  app: string;
  user: string | undefined;
  parentId: string | undefined;
  status: "running" | "completed" | "failed" | "cancelled";
  error: { message: string; code: string } | undefined;
  metadata: JsonObject;
  steps: RecordedStep[];
  metrics: { step: string | undefined; values: Record<string, number> }[];
  artifacts: { step: string | undefined; name: string; type: string; data: unknown }[];
}

/** A step as it was reported. */
export interface RecordedStep {
  key: string;
  name: string;
  parentKey: string | undefined;
  status: "pending" | "running" | "completed" | "failed" | "skipped";
  input: JsonValue | undefined;
  output: JsonValue | undefined;
  progress: number | undefined;
  metadata: JsonObject;
  error: { message: string; code: string } | undefined;
  attempt: number;
}

/** Applies writes as a server would, as far as tests look at it. */
export class Recorder {
  private readonly byId = new Map<string, RecordedRun>();

  runs(): RecordedRun[] {
    return structuredClone([...this.byId.values()]);
  }

  artifact(description: Omit<Description, "uploadId" | "since">, data: Source): void {
    this.run(description.executionId).artifacts.push({
      step: description.stepKey,
      name: description.name,
      type: description.type,
      data: data instanceof Uint8Array || "path" in data ? data : String(data),
    });
  }

  take(write: Write): void {
    switch (write.case) {
      case "createExecution": {
        const run = this.run(write.value.executionId ?? "");
        run.app = write.value.appName;
        run.user = write.value.userId;
        run.parentId = write.value.parentExecutionId;
        mergeInto(run.metadata, write.value.metadata ?? {});
        break;
      }
      case "updateExecution":
        mergeInto(this.run(write.value.executionId).metadata, write.value.metadata ?? {});
        break;
      case "finishExecution": {
        const run = this.run(write.value.executionId);
        run.status = ExecutionStatus[write.value.status].toLowerCase() as RecordedRun["status"];
        run.error = write.value.error;
        break;
      }
      case "startStep": {
        const step = this.step(write.value.executionId, write.value.stepKey ?? "");
        step.name = write.value.stepName;
        step.status = "running";
        step.error = undefined;
        step.attempt = write.value.attempt ?? 1;
        step.parentKey = write.value.parentStepKey;
        step.input = json(write.value.input);
        mergeInto(step.metadata, write.value.metadata ?? {});
        break;
      }
      case "updateStep": {
        const step = this.step(write.value.executionId, write.value.stepKey ?? "");
        step.progress = write.value.progress ?? step.progress;
        mergeInto(step.metadata, write.value.metadata ?? {});
        const output = json(write.value.output);
        if (isObject(output) && isObject(step.output)) mergeInto(step.output, output);
        else if (output !== undefined) step.output = output;
        break;
      }
      case "finishStep": {
        const step = this.step(write.value.executionId, write.value.stepKey ?? "");
        step.status = StepStatus[write.value.status].toLowerCase() as RecordedStep["status"];
        step.error = write.value.error;
        step.output = json(write.value.output) ?? step.output;
        mergeInto(step.metadata, write.value.metadata ?? {});
        break;
      }
      case "planSteps":
        for (const planned of write.value.steps) {
          const step = this.step(write.value.executionId, planned.stepKey ?? "");
          step.name = planned.stepName;
          step.status = "pending";
          mergeInto(step.metadata, planned.metadata ?? {});
        }
        break;
      case "recordMetrics":
        for (const point of write.value.points) {
          this.run(write.value.executionId).metrics.push({ step: point.stepKey, values: point.metrics });
        }
        break;
      default:
    }
  }

  private run(id: string): RecordedRun {
    let run = this.byId.get(id);
    if (run === undefined) {
      run = {
        id,
        app: "",
        user: undefined,
        parentId: undefined,
        status: "running",
        error: undefined,
        metadata: {},
        steps: [],
        metrics: [],
        artifacts: [],
      };
      this.byId.set(id, run);
    }
    return run;
  }

  private step(executionId: string, key: string): RecordedStep {
    const run = this.run(executionId);
    let step = run.steps.find((each) => each.key === key);
    if (step === undefined) {
      step = {
        key,
        name: "",
        parentKey: undefined,
        status: "running",
        input: undefined,
        output: undefined,
        progress: undefined,
        metadata: {},
        error: undefined,
        attempt: 1,
      };
      run.steps.push(step);
    }
    return step;
  }
}

function json(value: Value | undefined): JsonValue | undefined {
  return value === undefined ? undefined : toJson(ValueSchema, value);
}
