/** What a server may answer that a healthy one seldom does: whether each is sent again, held, or given up. */

import { createServer } from "node:http2";

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { BinaryWriter } from "@bufbuild/protobuf/wire";
import { Code, ConnectError } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { expect, test } from "vitest";

import * as sw from "../src/index.js";
import { StatusSchema } from "../src/gen/google/rpc/status_pb.js";
import { IngestService, type IngestRequest, type IngestResponseSchema } from "../src/gen/stepwell/v1/ingest_service_pb.js";
import { eventually, freePort, later, reporting } from "./harness.js";

type Answer = MessageInitShape<typeof IngestResponseSchema>;

function errorInfo(reason: string, metadata: Record<string, string> = {}): Uint8Array {
  const writer = new BinaryWriter().tag(1, 2).string(reason);
  for (const [key, value] of Object.entries(metadata)) {
    writer.tag(3, 2).bytes(new BinaryWriter().tag(1, 2).string(key).tag(2, 2).string(value).finish());
  }
  return writer.finish();
}

function retryInfo(ms: number): Uint8Array {
  return new BinaryWriter().tag(1, 2).bytes(new BinaryWriter().tag(2, 0).int32(ms * 1e6).finish()).finish();
}

function refusal(sequence: bigint, code: Code, reason: string, retryMs?: number): Answer {
  const details = [{ typeUrl: "type.googleapis.com/google.rpc.ErrorInfo", value: errorInfo(reason) }];
  if (retryMs !== undefined) details.push({ typeUrl: "type.googleapis.com/google.rpc.RetryInfo", value: retryInfo(retryMs) });
  return { sequence, result: { case: "error", value: create(StatusSchema, { code, message: reason, details }) } };
}

function streamError(code: Code, reason: string, metadata: Record<string, string>): ConnectError {
  const error = new ConnectError(reason, code);
  error.details.push({ type: "google.rpc.ErrorInfo", value: errorInfo(reason, metadata) } as never);
  return error;
}

const fine = (sequence: bigint): Answer => ({ sequence, result: { case: "execution", value: {} } });

/** A server that answers writes as it is told, by the number of the stream. */
async function scripted(answer: (request: IngestRequest, stream: number) => Answer | undefined): Promise<{ address: string; streams: string[][] }> {
  const streams: string[][] = [];
  const handler = connectNodeAdapter({
    routes: (router) =>
      router.service(IngestService, {
        async *ingest(requests) {
          const number = streams.push([]) - 1;
          for await (const request of requests) {
            if (request.write.case === "heartbeat") continue;
            streams[number]?.push(`${request.write.case} ${request.write.value?.$typeName === "stepwell.v1.StartStepRequest" ? request.write.value.stepKey : ""}`.trim());
            const answered = answer(request, number);
            if (answered !== undefined) yield answered;
          }
        },
      }),
  });
  const port = await freePort();
  const server = createServer(handler).listen(port, "127.0.0.1");
  later(() => void server.close());
  return { address: `127.0.0.1:${port}`, streams };
}

function report(): void {
  const run = sw.startRun("answers", { id: "r" });
  for (const key of ["a", "b", "c"]) run.startStep(key, { key });
}

const ALL = ["createExecution", "startStep a", "startStep b", "startStep c"];

test("what failed for now is sent again with all behind it, in order, on a new stream and not before it is time", async () => {
  let failed = 0;
  let again = 0;
  const { address, streams } = await scripted((request, stream) => {
    const { sequence, write } = request;
    if (stream > 0) again ||= Date.now();
    if (stream === 0 && write.case === "startStep") {
      failed ||= Date.now();
      return write.value.stepKey === "a"
        ? refusal(sequence, Code.Unavailable, "STORE_UNAVAILABLE", 300)
        : refusal(sequence, Code.Aborted, "EARLIER_WRITE_FAILED");
    }
    return fine(sequence);
  });
  const client = reporting(address);
  report();
  await eventually("all is answered", () => client.stats().queued === 0);
  expect(client.stats()).toMatchObject({ acked: 4, refused: 0 });
  expect(streams[1]).toEqual(ALL.slice(1));
  expect(again - failed).toBeGreaterThanOrEqual(290);
});

test("who is not let in keeps what is reported", async () => {
  let open = false;
  const { address, streams } = await scripted(({ sequence }) => {
    if (!open) throw new ConnectError("who are you?", Code.Unauthenticated);
    return fine(sequence);
  });
  const client = reporting(address);
  report();
  expect(await client.flush(300)).toBe(false);
  expect(client.stats()).toMatchObject({ queued: 4, refused: 0, dropped: 0, defects: 0, lastError: expect.stringContaining("unauthenticated") as string });
  expect(client.stats().spooledBytes).toBeGreaterThan(0);
  // It pauses rather than ask again and again.
  expect(streams.length).toBeLessThan(4);
  open = true;
  expect(await client.flush()).toBe(true);
  expect(client.stats()).toMatchObject({ queued: 0, acked: 4 });
});

test("a message that cannot be read is given up, the rest goes on", async () => {
  const { address, streams } = await scripted(({ sequence, write }, stream) => {
    if (stream === 0 && write.case === "startStep" && write.value.stepKey === "b") {
      throw streamError(Code.InvalidArgument, "BAD_MESSAGE", { last_sequence: String(sequence - 1n) });
    }
    return fine(sequence);
  });
  const client = reporting(address);
  report();
  await eventually("all is answered", () => client.stats().queued === 0);
  expect(client.stats()).toMatchObject({ acked: 3, refused: 1, dropped: 0, defects: 0 });
  expect(streams.slice(1).flat()).not.toContain("startStep b");
});

test("a message that ends every stream is found and given up", async () => {
  const { address } = await scripted(({ sequence, write }) => {
    if (write.case === "startStep" && write.value.stepKey === "b") throw new ConnectError("too much", Code.ResourceExhausted);
    return fine(sequence);
  });
  const client = reporting(address);
  report();
  await eventually("all is answered", () => client.stats().queued === 0);
  expect(client.stats()).toMatchObject({ acked: 3, refused: 1, dropped: 0, defects: 0 });
});

test("contention is tried again, a stale revision is not, and a stream that ends is opened again", async () => {
  const { address, streams } = await scripted(({ sequence, write }, stream) => {
    if (write.case === "startStep" && write.value.stepKey === "a" && stream === 0) return refusal(sequence, Code.Aborted, "CONTENTION");
    if (write.case === "startStep" && write.value.stepKey === "b") return refusal(sequence, Code.Aborted, "STALE_REVISION");
    if (write.case === "startStep" && write.value.stepKey === "c" && stream < 2) throw new ConnectError("bye", Code.Unavailable);
    return fine(sequence);
  });
  const client = reporting(address);
  report();
  await eventually("all is answered", () => client.stats().queued === 0);
  expect(client.stats()).toMatchObject({ acked: 3, refused: 1, dropped: 0, defects: 0 });
  expect(streams.length).toBeGreaterThan(1);
});

test("a run that is made between the start of a step and its update gets both", async () => {
  let starts = 0;
  const { address, streams } = await scripted(({ sequence, write }) => {
    if (write.case === "startStep" && starts++ === 0) return refusal(sequence, Code.NotFound, "EXECUTION_NOT_FOUND");
    // Its maker's write arrives just here.
    if (write.case === "updateStep" && starts === 1) return refusal(sequence, Code.NotFound, "STEP_NOT_FOUND");
    return fine(sequence);
  });
  const client = reporting(address);
  const step = sw.attach("late").startStep("a", { key: "a" });
  step.output({ rows: 3 });
  expect(await client.flush()).toBe(true);
  expect(client.stats()).toMatchObject({ acked: 2, refused: 0, dropped: 0, defects: 0 });
  expect(streams.flat()).toEqual(["startStep a", "updateStep", "startStep a", "updateStep"]);
});
