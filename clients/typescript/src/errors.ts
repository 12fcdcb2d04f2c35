/** Errors of calls, with what the server says about them. */

import { BinaryReader } from "@bufbuild/protobuf/wire";
import { Code, ConnectError } from "@connectrpc/connect";

import type { Status } from "./gen/google/rpc/status_pb.js";

/** A call that failed. Only {@link Api} throws it; reporting never does. */
export class StepwellError extends Error {
  override readonly name = "StepwellError";

  constructor(
    message: string,
    /** The canonical code in lower case, such as `not_found`. */
    readonly code: string,
    /** The server's stable reason, such as `EXECUTION_NOT_FOUND`; empty for what did not come from it. */
    readonly reason: string,
    /** When to try again, in milliseconds, if the server says so. */
    readonly retryAfterMs: number | undefined,
    /** The fields of the request that were refused, and why. */
    readonly fields: readonly { field: string; description: string }[],
    /** What else the server says about the reason. */
    readonly metadata: Readonly<Record<string, string>>,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** Thrown by `signal.throwIfAborted()` of a run that somebody asked to stop; ends the run as CANCELLED. */
export class Cancelled extends Error {
  override readonly name = "Cancelled";

  constructor(message = "a cancel was requested") {
    super(message);
  }
}

/** What `google.rpc` details say, wherever they came with. */
export interface Details {
  code: Code;
  message: string;
  reason: string;
  metadata: Record<string, string>;
  retryAfterMs: number | undefined;
  fields: { field: string; description: string }[];
}

/** The details of the status inside an answer of Ingest. */
export function detailsOfStatus(status: Status): Details {
  const details = emptyDetails(status.code as Code, status.message);
  for (const { typeUrl, value } of status.details) read(typeUrl.slice(typeUrl.lastIndexOf("/") + 1), value, details);
  return details;
}

/** The details of whatever a call threw. */
export function detailsOfError(thrown: unknown): Details {
  const error = ConnectError.from(thrown);
  const details = emptyDetails(error.code, error.rawMessage);
  for (const detail of error.details) {
    if ("type" in detail && detail.value instanceof Uint8Array) read(detail.type, detail.value, details);
  }
  return details;
}

/** A failed call as apps see it. */
export function asStepwellError(thrown: unknown): StepwellError {
  if (thrown instanceof StepwellError) return thrown;
  const { code, message, reason, metadata, retryAfterMs, fields } = detailsOfError(thrown);
  return new StepwellError(message || codeName(code), codeName(code), reason, retryAfterMs, fields, metadata, {
    cause: thrown,
  });
}

/** `not_found` for `Code.NotFound`. */
export function codeName(code: Code): string {
  return (Code[code] ?? "Unknown").replaceAll(/(?<!^)[A-Z]/g, (letter) => `_${letter}`).toLowerCase();
}

function emptyDetails(code: Code, message: string): Details {
  return { code, message, reason: "", metadata: {}, retryAfterMs: undefined, fields: [] };
}

/** Reads one of the messages of google/rpc/error_details.proto. What is not understood is left out. */
function read(type: string, bytes: Uint8Array, into: Details): void {
  try {
    if (type === "google.rpc.ErrorInfo") {
      eachField(bytes, (field, reader) => {
        if (field === 1) into.reason = reader.string();
        else if (field === 3) {
          const [key, value] = pair(reader.bytes());
          into.metadata[key] = value;
        } else return false;
        return true;
      });
    } else if (type === "google.rpc.RetryInfo") {
      eachField(bytes, (field, reader) => {
        if (field !== 1) return false;
        into.retryAfterMs = durationMs(reader.bytes());
        return true;
      });
      into.retryAfterMs ??= 0;
    } else if (type === "google.rpc.BadRequest") {
      eachField(bytes, (field, reader) => {
        if (field !== 1) return false;
        const [name, description] = pair(reader.bytes());
        into.fields.push({ field: name, description });
        return true;
      });
    }
  } catch {
    // Newer than this package.
  }
}

function eachField(bytes: Uint8Array, take: (field: number, reader: BinaryReader) => boolean): void {
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const [field, wire] = reader.tag();
    if (!take(field, reader)) reader.skip(wire, field);
  }
}

function pair(bytes: Uint8Array): [string, string] {
  const texts: [string, string] = ["", ""];
  eachField(bytes, (field, reader) => {
    if (field !== 1 && field !== 2) return false;
    texts[field - 1] = reader.string();
    return true;
  });
  return texts;
}

function durationMs(bytes: Uint8Array): number {
  let ms = 0;
  eachField(bytes, (field, reader) => {
    if (field === 1) ms += Number(reader.int64()) * 1000;
    else if (field === 2) ms += reader.int32() / 1e6;
    else return false;
    return true;
  });
  return ms;
}
