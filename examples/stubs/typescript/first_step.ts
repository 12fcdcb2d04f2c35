// A run with one step, with stubs alone: docs/clients.md has the commands.
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { ExecutionStatus, StepStatus } from "./gen/stepwell/v1/common_pb.js";
import { ExecutionService } from "./gen/stepwell/v1/execution_service_pb.js";
import { StepService } from "./gen/stepwell/v1/step_service_pb.js";
import { fromJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";

const transport = createGrpcTransport({ baseUrl: `http://${process.env["STEPWELL_SERVER"] ?? "127.0.0.1:50051"}` });
const [executions, steps] = [createClient(ExecutionService, transport), createClient(StepService, transport)];

const { execution } = await executions.createExecution({ appName: "hello" });
const executionId = execution!.executionId;
const { step } = await steps.startStep({
  executionId,
  stepName: "fetch",
  input: fromJson(ValueSchema, { url: "https://example.org" }),
});
const ended = await steps.finishStep({
  executionId,
  stepId: step!.stepId,
  status: StepStatus.COMPLETED,
  output: fromJson(ValueSchema, { bytes: 1256 }),
});
await executions.finishExecution({ executionId, status: ExecutionStatus.COMPLETED });
console.log(`step ${ended.step!.stepId} ${ended.step!.stepName}: ${StepStatus[ended.step!.status]}`);
