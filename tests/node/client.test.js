// A Node client that reads `proto/` at run time, against the server whose address is in STEPWELL_ADDRESS.
"use strict";

const assert = require("node:assert/strict");
const path = require("node:path");
const { after, test } = require("node:test");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const repo = path.resolve(__dirname, "../..");
const definitions = loader.loadSync(
  ["execution", "step", "ingest", "admin"].map((name) => `stepwell/v1/${name}_service.proto`),
  {
    includeDirs: [path.join(repo, "proto"), path.join(repo, "third_party")],
    keepCase: true,
    longs: String,
    enums: String,
    oneofs: true,
  },
);
const { stepwell } = grpc.loadPackageDefinition(definitions);
const address = process.env.STEPWELL_ADDRESS;
const client = (service) => new stepwell.v1[service](address, grpc.credentials.createInsecure());
const executions = client("ExecutionService");
const steps = client("StepService");
const ingest = client("IngestService");
const admin = client("AdminService");

after(() => [executions, steps, ingest, admin].forEach((each) => each.close()));

const call = (service, method, request) =>
  new Promise((resolve, reject) => {
    service[method](request, { deadline: Date.now() + 30_000 }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });

test("the server says what it is", async () => {
  const info = await call(admin, "GetServerInfo", {});
  assert.equal(info.store, "sqlite");
});

test("a run, watched live", async () => {
  const execution_id = `node-${process.hrtime.bigint()}`;
  await call(executions, "CreateExecution", { execution_id, app_name: "node" });
  const events = [];
  const watch = executions.WatchExecution({ execution_id, include_steps: true });
  const ended = new Promise((resolve, reject) => watch.on("end", resolve).on("error", reject));
  const live = new Promise((resolve) =>
    watch.on("data", (event) => {
      events.push(event);
      if (event.event === "snapshot_complete") resolve();
    }),
  );
  await live;
  const input = { structValue: { fields: { "a.b": { numberValue: 1 } } } };
  const { step } = await call(steps, "StartStep", { execution_id, step_name: "one", input });
  assert.equal(step.step_id, 1);
  await call(steps, "UpdateStep", { execution_id, step_id: 1, progress: 0.5 });
  await call(steps, "FinishStep", { execution_id, step_id: 1, status: "STEP_STATUS_COMPLETED" });
  await call(executions, "FinishExecution", { execution_id, status: "EXECUTION_STATUS_COMPLETED" });
  await ended;
  assert.equal(events[0].execution.execution.status, "EXECUTION_STATUS_RUNNING");
  const last = events.filter((event) => event.event === "execution").at(-1);
  assert.equal(last.execution.execution.status, "EXECUTION_STATUS_COMPLETED");
  const stored = await call(steps, "GetStep", { execution_id, step_id: 1 });
  assert.equal(stored.step.input.structValue.fields["a.b"].numberValue, 1);
});

test("an error carries its code and its details", async () => {
  await assert.rejects(call(executions, "GetExecution", { execution_id: "no-such" }), (error) => {
    assert.equal(error.code, grpc.status.NOT_FOUND);
    const [details] = error.metadata.get("grpc-status-details-bin");
    assert.match(details.toString("latin1"), /EXECUTION_NOT_FOUND/);
    return true;
  });
});

test("writes over one stream are answered one by one", async () => {
  const execution_id = `node-${process.hrtime.bigint()}`;
  const stream = ingest.Ingest();
  const answers = [];
  stream.on("data", (answer) => answers.push(answer));
  const ended = new Promise((resolve, reject) => stream.on("end", resolve).on("error", reject));
  stream.write({ sequence: 1, create_execution: { execution_id, app_name: "node" } });
  stream.write({ sequence: 2, start_step: { execution_id, step_name: "one" } });
  stream.write({ sequence: 3, finish_step: { execution_id, step_id: 77, status: "STEP_STATUS_FAILED" } });
  stream.end();
  await ended;
  assert.deepEqual(answers.map((answer) => [answer.sequence, answer.result]), [
    ["1", "execution"],
    ["2", "step"],
    ["3", "error"],
  ]);
});
