/** Writes on their way to the server. */

import { create, fromBinary, toBinary, type UnknownField } from "@bufbuild/protobuf";
import { BinaryReader } from "@bufbuild/protobuf/wire";
import type { Struct } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";

import type { Details } from "./errors.js";
import type { UpdateExecutionRequest } from "./gen/stepwell/v1/execution_service_pb.js";
import { IngestRequestSchema, type IngestRequest } from "./gen/stepwell/v1/ingest_service_pb.js";
import type { UpdateStepRequest } from "./gen/stepwell/v1/step_service_pb.js";
import type { Location, Segment } from "./spool.js";
import { mergeInto } from "./values.js";

/** What a write does, by the name of its field. */
export type Write = Exclude<IngestRequest["write"], { case: undefined }>;

/** Updates are merged up to this size. */
const MERGED_BYTES = 200_000;
/** The field of the number, which is the first. */
const SEQUENCE = IngestRequestSchema.field.sequence.number;

/** A write that is not durable yet. What it says is kept as bytes: as an object it takes many times as much. */
export interface Entry {
  readonly sequence: number;
  readonly kind: Write["case"];
  readonly executionId: string;
  readonly stepKey: string | undefined;
  /** What it says; `undefined`: it is in `message`, or in the spool alone. */
  record: Uint8Array | undefined;
  /** The same with what was merged into it. */
  message: IngestRequest | undefined;
  /** Its size, about. */
  bytes: number;
  /** Where it is in the spool. */
  location: Location | undefined;
  /** The files of those that were merged into it, and how many of them are in each. */
  others: Map<Segment, number> | undefined;
  /** How many those are. */
  merged: number;
  /** What it is counted with in memory. */
  cost: number;
  /** A heartbeat: nobody misses it. */
  readonly passing: boolean;
  /** Being refused is no news. */
  readonly quiet: boolean;
}

/** An entry of a write that was serialized as `record`. */
export function entryOf(write: Write, record: Uint8Array, sequence: number, quiet: boolean): Entry {
  return {
    sequence,
    kind: write.case,
    executionId: executionIdOf(write),
    stepKey: stepKeyOf(write),
    record,
    message: undefined,
    bytes: record.length,
    location: undefined,
    others: undefined,
    merged: 0,
    cost: 0,
    passing: false,
    quiet,
  };
}

/** A sign of life as an entry. */
export function passing(sequence: number, executionId: string): Entry {
  return {
    sequence,
    kind: "heartbeat",
    executionId,
    stepKey: undefined,
    record: undefined,
    message: undefined,
    bytes: 0,
    location: undefined,
    others: undefined,
    merged: 0,
    cost: 0,
    passing: true,
    quiet: true,
  };
}

/** What goes over the wire. The write passes as it was serialized, with the number that it has now. */
export function wired(record: Uint8Array, sequence: number): IngestRequest {
  const message = create(IngestRequestSchema, { sequence: BigInt(sequence) });
  const fields: UnknownField[] = [];
  const reader = new BinaryReader(record);
  while (reader.pos < reader.len) {
    const [no, wireType] = reader.tag();
    const data = reader.skip(wireType, no);
    if (no !== SEQUENCE) fields.push({ no, wireType, data });
  }
  message.$unknown = fields;
  return message;
}

export function isDenied({ code }: Details): boolean {
  return code === Code.Unauthenticated || code === Code.PermissionDenied;
}

/** Whether a stream ended because of a message on it, not because of the server or the way to it. */
export function isAboutOneMessage({ code, reason, retryAfterMs }: Details): boolean {
  if (retryAfterMs !== undefined || reason === "BAD_MESSAGE") return false;
  return code === Code.InvalidArgument || code === Code.OutOfRange || code === Code.ResourceExhausted;
}

export function executionIdOf({ value }: Write): string {
  return value.$typeName === "stepwell.v1.Configuration" ? "" : (value.executionId ?? "");
}

export function stepKeyOf({ value }: Write): string | undefined {
  return "stepKey" in value && typeof value.stepKey === "string" ? value.stepKey : undefined;
}

/** Of which record a write is, if updates of it may be merged. */
export function recordKey(kind: Write["case"], executionId: string, stepKey: string | undefined): string | undefined {
  switch (kind) {
    case "updateStep":
    case "startStep":
    case "finishStep":
      return `${executionId}\0${stepKey ?? ""}`;
    case "updateExecution":
    case "finishExecution":
      return executionId;
    default:
      return undefined;
  }
}

export function isUpdate(kind: Write["case"]): boolean {
  return kind === "updateStep" || kind === "updateExecution";
}

/** Leaves the payloads out of a start or an end; whether there were any. */
export function strip({ value }: Write): boolean {
  let found = false;
  for (const field of ["input", "output"] as const) {
    if (!(field in value) || (value as { [field]?: unknown })[field] === undefined) continue;
    delete (value as { [field]?: unknown })[field];
    found = true;
  }
  return found;
}

/** Merges a later update of the same record into an earlier one that is not sent; `false` where that cannot be. */
export function merge(into: Entry, later: Entry): boolean {
  if (into.kind !== later.kind || later.record === undefined || (into.record === undefined && into.message === undefined)) {
    return false;
  }
  if (into.message !== undefined && into.bytes + later.bytes > MERGED_BYTES) {
    // Of the same fields again and again only the last is left.
    into.bytes = toBinary(IngestRequestSchema, into.message).length;
  }
  if (into.bytes + later.bytes > MERGED_BYTES) return false;
  const message = into.message ?? fromBinary(IngestRequestSchema, into.record ?? new Uint8Array());
  // In a file of a process that has ended it had another number.
  message.sequence = BigInt(into.sequence);
  const [before, after] = [message.write, fromBinary(IngestRequestSchema, later.record).write];
  if (before.case === "updateStep" && after.case === "updateStep") {
    if (!mergeStep(before.value, after.value)) return false;
  } else if (before.case === "updateExecution" && after.case === "updateExecution") {
    mergeExecution(before.value, after.value);
  } else {
    return false;
  }
  into.message = message;
  into.record = undefined;
  into.bytes += later.bytes;
  into.merged += 1 + later.merged;
  if (later.location !== undefined) {
    const { segment } = later.location;
    into.others ??= new Map();
    into.others.set(segment, (into.others.get(segment) ?? 0) + 1);
  }
  return true;
}

/** Makes one update of two, as the server would have; `false` where one cannot say what two do. */
function mergeStep(into: UpdateStepRequest, update: UpdateStepRequest): boolean {
  const [before, after] = [into.output?.kind, update.output?.kind];
  if (after?.case === "structValue" && before !== undefined) {
    // After anything else an object replaces; alone it would be merged into what is stored.
    if (before.case !== "structValue") return false;
    mergeFields(before.value, after.value);
  } else if (update.output !== undefined) {
    into.output = update.output;
  }
  if (update.progress !== undefined) into.progress = update.progress;
  if (update.progressMessage !== undefined) into.progressMessage = update.progressMessage;
  if (update.metadata !== undefined) into.metadata = mergeInto(into.metadata ?? {}, update.metadata);
  if (update.updateSequence !== undefined) into.updateSequence = update.updateSequence;
  return true;
}

function mergeExecution(into: UpdateExecutionRequest, update: UpdateExecutionRequest): void {
  if (update.metadata !== undefined) into.metadata = mergeInto(into.metadata ?? {}, update.metadata);
  if (update.pinned !== undefined) into.pinned = update.pinned;
  if (update.updateSequence !== undefined) into.updateSequence = update.updateSequence;
}

function mergeFields(into: Struct, update: Struct): void {
  for (const [key, value] of Object.entries(update.fields)) {
    const before = into.fields[key]?.kind;
    if (before?.case === "structValue" && value.kind.case === "structValue") mergeFields(before.value, value.kind.value);
    else into.fields[key] = value;
  }
}
