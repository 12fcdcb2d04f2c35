/** What an app has thrown, as the error of a run or a step. */

import type { JsonObject } from "@bufbuild/protobuf";
import { inspect } from "node:util";

import type { Limits } from "./limits.js";
import { convertObject, cut, cutBytes, type Json, type Redact } from "./values.js";
import type { ErrorText } from "./writes.js";

/** Whatever was thrown: its type as code, its message, its stack with those of its causes. */
export function errorText(
  error: unknown,
  options: { code?: string | undefined; details?: Json },
  limits: Limits,
  redact: Redact | undefined,
): ErrorText {
  const isError = error instanceof Error;
  const message = isError ? error.message || error.name : typeof error === "string" ? error : inspect(error, { depth: 3 });
  const code = options.code ?? (isError ? codeOf(error) : "");
  return {
    message: cutBytes(message, limits.error_message_bytes),
    code: cut(code, limits.name_characters),
    stackTrace: isError ? cutBytes(traceOf(error), limits.stack_trace_bytes) : "",
    details: detailsOf(error, options.details, limits, redact),
  };
}

function codeOf(error: Error): string {
  const { code } = error as { code?: unknown };
  if (typeof code === "string" && code !== "") return code;
  return error.name !== "Error" ? error.name : (error.constructor?.name ?? "Error");
}

function traceOf(error: Error): string {
  const parts: string[] = [];
  const seen = new Set<unknown>();
  for (let each: unknown = error; each instanceof Error && !seen.has(each) && parts.length < 10; each = each.cause) {
    seen.add(each);
    parts.push(each.stack ?? String(each));
  }
  return parts.join("\nCaused by: ");
}

function detailsOf(error: unknown, details: Json, limits: Limits, redact: Redact | undefined): JsonObject | undefined {
  const given: unknown =
    details ??
    (error instanceof AggregateError ? { errors: error.errors.map((each: unknown) => String(each)).slice(0, 100) } : undefined);
  if (given === undefined) return undefined;
  const { json, bytes } = convertObject(given, "error.details", redact);
  return bytes <= limits.metadata_bytes ? json : { too_large: bytes };
}
