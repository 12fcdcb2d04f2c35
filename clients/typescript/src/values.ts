/**
 * What an app passes as input, output or metadata, as JSON that the server takes.
 *
 * Nothing an app passes is an error: what JSON cannot say is said as text, what is too deep or goes in a circle is cut.
 */

import type { JsonObject, JsonValue } from "@bufbuild/protobuf";

/** Any JSON value. Apps may pass anything else too; it is shown as text where JSON has no word for it. */
export type Json = unknown;

/** Sees each value by its path, such as `input.headers.authorization`, and returns what is reported in its place. */
export type Redact = (path: string, value: unknown) => unknown;

/** The server takes values nested 30 deep; the value itself and what a field adds around it count too. */
const DEPTH = 28;

/** Where the conversion stops, so that shared references cannot multiply without bound. */
const BUDGET_BYTES = 64 * 1024 * 1024;

/** A value as JSON, and how large it is once it is stored. */
export interface Converted {
  json: JsonValue;
  bytes: number;
}

/** Converts a value. `undefined` stays `undefined`: there is no value. */
export function convert(value: unknown, path: string, redact?: Redact): Converted | undefined {
  const conversion = new Conversion(redact);
  const json = conversion.value(value, path, 1);
  return json === undefined ? undefined : { json, bytes: conversion.bytes };
}

/** Converts metadata, which is always an object. Anything else is put under `value`. */
export function convertObject(value: unknown, path: string, redact?: Redact): { json: JsonObject; bytes: number } {
  const converted = convert(value, path, redact);
  if (converted === undefined || converted.json === null) return { json: {}, bytes: 0 };
  if (isObject(converted.json)) return { json: converted.json, bytes: converted.bytes };
  return { json: { value: converted.json }, bytes: converted.bytes };
}

/** Whether a JSON value is an object. */
export function isObject(json: JsonValue | undefined): json is JsonObject {
  return typeof json === "object" && json !== null && !Array.isArray(json);
}

/** Merges a patch into an object as the server does: objects deeply, anything else replaces. */
export function mergeInto(object: JsonObject, patch: JsonObject): JsonObject {
  for (const [key, value] of Object.entries(patch)) {
    const before = object[key];
    if (isObject(value) && isObject(before)) mergeInto(before, value);
    else object[key] = value;
  }
  return object;
}

/** Cuts a text to a number of characters, never inside one. */
export function cut(text: string, characters: number): string {
  if (text.length <= characters) return text;
  const cutText = text.slice(0, Math.max(0, characters - 1));
  return `${/[\uD800-\uDBFF]$/.test(cutText) ? cutText.slice(0, -1) : cutText}…`;
}

/** Cuts a text to a number of bytes of UTF-8, never inside a character. */
export function cutBytes(text: string, bytes: number): string {
  if (text.length * 3 <= bytes || Buffer.byteLength(text) <= bytes) return text;
  const encoded = Buffer.from(text).subarray(0, Math.max(0, bytes - 3));
  let end = encoded.length;
  // Back to the beginning of the character that was cut through, which is left out.
  while (end > 0 && ((encoded[end - 1] ?? 0) & 0xc0) === 0x80) end--;
  if (end > 0 && (encoded[end - 1] ?? 0) >= 0xc0) end--;
  return `${encoded.subarray(0, end).toString()}…`;
}

/** A short text that shows the beginning of a value too large to be sent. */
export function preview(text: string): string {
  return cut(text, 1000);
}

class Conversion {
  bytes = 0;
  private readonly ancestors = new Set<object>();

  constructor(private readonly redact: Redact | undefined) {}

  value(original: unknown, path: string, depth: number): JsonValue | undefined {
    let value = original;
    if (this.redact !== undefined) {
      try {
        value = this.redact(path, original);
      } catch {
        // What could not be redacted must not leave the process.
        value = "[redact failed]";
      }
    }
    this.bytes += 2;
    switch (typeof value) {
      case "string":
        return this.text(value);
      case "number":
        this.bytes += 8;
        return Number.isFinite(value) ? value : this.text(String(value));
      case "boolean":
        this.bytes += 1;
        return value;
      case "undefined":
        return undefined;
      case "bigint": {
        this.bytes += 8;
        const number = Number(value);
        return Number.isSafeInteger(number) ? number : this.text(value.toString());
      }
      case "symbol":
        return this.text(String(value));
      case "function":
        return this.text(`[Function ${value.name || "anonymous"}]`);
      default:
        return value === null ? null : this.object(value as object, path, depth);
    }
  }

  private text(text: string): string {
    this.bytes += 5 + (text.length < 64 ? text.length * 3 : Buffer.byteLength(text));
    return text;
  }

  private object(value: object, path: string, depth: number): JsonValue | undefined {
    try {
      if (this.ancestors.has(value)) return this.text("[Circular]");
      if (this.bytes > BUDGET_BYTES) return this.text("[too large]");
      const scalar = scalarOf(value);
      if (scalar !== undefined) {
        this.bytes -= 2;
        return this.value(scalar, path, depth);
      }
      if (depth >= DEPTH) return this.text(Array.isArray(value) ? `[Array(${value.length})]` : "[Object]");
      this.ancestors.add(value);
      try {
        return this.inside(value, path, depth + 1);
      } finally {
        this.ancestors.delete(value);
      }
    } catch (error) {
      // A getter, a proxy or a toJSON that throws.
      return this.text(`[unreadable: ${error instanceof Error ? error.message : "an object"}]`);
    }
  }

  private inside(value: object, path: string, depth: number): JsonValue | undefined {
    this.bytes += 5;
    if (Array.isArray(value) || value instanceof Set || (ArrayBuffer.isView(value) && !(value instanceof DataView))) {
      return this.list(value as Iterable<unknown>, path, depth);
    }
    if (value instanceof Map) {
      return [...value.keys()].every((key) => typeof key === "string")
        ? this.fields(value as Map<string, unknown>, path, depth)
        : this.list(value, path, depth);
    }
    if (value instanceof Error) return this.fields(fieldsOfError(value), path, depth);
    const { toJSON } = value as { toJSON?: unknown };
    if (typeof toJSON === "function") {
      const json: unknown = toJSON.call(value, "");
      if (json !== value) {
        return this.value(json, path, depth);
      }
    }
    return this.fields(ownFields(value), path, depth);
  }

  private list(values: Iterable<unknown>, path: string, depth: number): JsonValue {
    const list: JsonValue[] = [];
    for (const value of values) {
      // An index is a key of up to seven digits.
      this.bytes += 6;
      list.push(this.value(value, this.redact === undefined ? path : `${path}.${list.length}`, depth) ?? null);
      if (this.bytes > BUDGET_BYTES) break;
    }
    return list;
  }

  private fields(entries: Iterable<[string, unknown]>, path: string, depth: number): JsonObject {
    const object: JsonObject = {};
    for (const [name, field] of entries) {
      const key = name.includes("\0") ? name.replaceAll("\0", "\u2400") : name;
      const json = this.value(field, this.redact === undefined ? path : `${path}.${key}`, depth);
      if (json === undefined) continue;
      this.bytes += 1 + (key.length < 64 ? key.length * 3 : Buffer.byteLength(key));
      if (key === "__proto__") Object.defineProperty(object, key, { value: json, enumerable: true, configurable: true });
      else object[key] = json;
      if (this.bytes > BUDGET_BYTES) break;
    }
    return object;
  }
}

/** A value of a class that stands for a single value. */
function scalarOf(value: object): string | number | boolean | bigint | undefined {
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? "Invalid Date" : value.toISOString();
  if (value instanceof Uint8Array) return Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("base64");
  if (value instanceof ArrayBuffer) return Buffer.from(value).toString("base64");
  if (value instanceof DataView) return Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("base64");
  if (value instanceof RegExp) return String(value);
  if (value instanceof Promise) return "[Promise]";
  if (value instanceof Number || value instanceof String || value instanceof Boolean) return value.valueOf();
  return undefined;
}

function* fieldsOfError(error: Error): Iterable<[string, unknown]> {
  yield ["name", error.name];
  yield ["message", error.message];
  yield* ownFields(error);
  if (error.cause !== undefined) yield ["cause", error.cause];
}

function* ownFields(value: object): Iterable<[string, unknown]> {
  for (const key of Object.keys(value)) {
    let field: unknown;
    try {
      field = (value as Record<string, unknown>)[key];
    } catch (error) {
      field = `[unreadable: ${error instanceof Error ? error.message : key}]`;
    }
    yield [key, field];
  }
}
