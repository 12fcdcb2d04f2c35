/**
 * What is kept when there is not room for everything: updates go first, then metrics, then payloads.
 *
 * As long as the disk takes it, starts and ends are always kept. Where there is only memory that has an end too: then no
 * run or step begins any more, and what has begun may still end.
 */

import { strip, type Write } from "./entry.js";

/** How full it is when the first of each kind is left out. */
const FULL = { updates: 0.8, metrics: 0.9, payloads: 0.95 } as const;
/** The same of memory, where the disk takes nothing. */
const MEMORY_FULL = { starts: 1, ends: 1.125 } as const;
/** Of memory: what artifacts may take, and writes of runs that the server does not know yet. */
export const ARTIFACTS_SHARE = 0.5;
export const HELD_SHARE = 0.25;
/** What a write, and an artifact, takes in memory beside its bytes, and what a byte takes as a part of an object. */
export const ENTRY_BYTES = 700;
export const JOB_BYTES = 1000;
export const OBJECT_FACTOR = 12;

/** What to do with a write when this much of the room is taken. With `strip` its payloads were left out. */
export function judge(write: Write, full: number): "keep" | "strip" | "drop" {
  if (full < FULL.updates) return "keep";
  switch (write.case) {
    case "updateStep":
      // An output may be the only one that there will be.
      return full < FULL.payloads && write.value.output !== undefined ? "keep" : "drop";
    case "updateExecution":
      return "drop";
    case "recordMetrics":
      return full < FULL.metrics ? "keep" : "drop";
    default:
      return full >= FULL.payloads && strip(write) ? "strip" : "keep";
  }
}

/** Whether a write that the disk does not take may be kept in memory. */
export function fitsInMemory(kind: Write["case"], taken: number, size: number, most: number): boolean {
  const ends = kind === "finishStep" || kind === "finishExecution";
  return taken + size <= most * (ends ? MEMORY_FULL.ends : MEMORY_FULL.starts);
}

/** Puts a key behind all others of a map or set of bounded size; the first goes when there are too many. */
export function remember<V>(map: Map<string, V>, key: string, value: V, most: number): void {
  map.delete(key);
  map.set(key, value);
  if (map.size <= most) return;
  for (const oldest of map.keys()) {
    map.delete(oldest);
    return;
  }
}
