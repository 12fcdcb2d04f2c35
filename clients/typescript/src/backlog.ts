/** What is to be sent and is only in files: what did not fit into memory, and what processes that have ended have left. */

import { fromBinary } from "@bufbuild/protobuf";

import { entryOf, type Entry } from "./entry.js";
import { IngestRequestSchema } from "./gen/stepwell/v1/ingest_service_pb.js";
import { remember } from "./room.js";
import { sharedIn, type Segment, type Spool } from "./spool.js";

/** How much is read at a time. */
const READ_BYTES = 256 * 1024;
/** Runs of a process that has ended of which is remembered that they are open. The others are left to the heartbeat. */
const OPEN_RUNS = 20_000;

/** Records of one file that follow each other, from the first unread one on. */
interface Stretch {
  readonly segment: Segment;
  at: number;
  end: number;
  records: number;
}

/** The files of a process that has ended, and how far they are read. */
interface Taken {
  readonly segments: Segment[];
  at: number;
  /** The runs it has created and not ended. */
  readonly running: Map<string, true>;
  /** Those of them that others go on with. */
  readonly shared: Map<string, true>;
  readonly done: (running: string[]) => void;
}

/** What was read. */
export interface Read {
  entries: Entry[];
  /** Records that cannot be read: of this process, and of others. */
  lost: number;
  unreadable: number;
  /** They are of a process that has ended. */
  taken: boolean;
}

export class Backlog {
  /** Of this process, in order: what is in files, and in between what the disk did not take. */
  private own: (Stretch | Entry)[] = [];
  private taken: Taken[] = [];

  constructor(private readonly spool: Spool | undefined) {}

  get isEmpty(): boolean {
    return this.own.length === 0 && this.taken.length === 0;
  }

  /** How many files of processes that have ended are open. */
  get files(): number {
    return this.taken.reduce((sum, { segments }) => sum + segments.length, 0);
  }

  /**
   * Whether a write that was just made has to wait for others in files. If it is in a file itself it is read from there
   * when its turn comes, and not held in memory.
   */
  holdsBack(entry: Entry, memoryFull: boolean): boolean {
    const { location } = entry;
    if (this.own.length === 0 && (location === undefined || !memoryFull)) return false;
    if (location === undefined) {
      this.own.push(entry);
      return true;
    }
    let last = this.own.at(-1);
    if (last === undefined || "sequence" in last || last.segment !== location.segment) {
      last = { segment: location.segment, at: location.start, end: 0, records: 0 };
      this.own.push(last);
    }
    last.end = location.offset + location.length;
    last.records++;
    return true;
  }

  /**
   * The files of a process that has ended. `done` is told which runs it has created and not ended, and nobody else goes on
   * with, once all is read.
   */
  take(segments: Segment[], done: (running: string[]) => void): void {
    this.taken.push({ segments, at: 0, running: new Map(), shared: new Map(), done });
  }

  /** The next ones; `number` gives those of other processes numbers of this one. */
  read(number: () => number): Read {
    const found: Read = { entries: [], lost: 0, unreadable: 0, taken: false };
    const [first] = this.own;
    if (first !== undefined && "sequence" in first) {
      while (this.own[0] !== undefined && "sequence" in this.own[0]) found.entries.push(this.own.shift() as Entry);
    } else if (first !== undefined) {
      this.readStretch(first, found);
    } else {
      found.taken = true;
      this.readTaken(number, found);
    }
    return found;
  }

  private readStretch(stretch: Stretch, found: Read): void {
    const { spool } = this;
    const { segment } = stretch;
    const { locations, next } = spool?.readFrom(segment, stretch.at, stretch.end, READ_BYTES) ?? { locations: [], next: 0 };
    stretch.at = next;
    for (const { record, location } of locations) {
      const entry = parse(record, undefined);
      if (entry === "note") continue;
      stretch.records--;
      if (entry === undefined) {
        found.lost++;
        spool?.forget(segment);
      } else {
        entry.location = location;
        found.entries.push(entry);
      }
    }
    if (locations.length > 0 && stretch.at < stretch.end) return;
    this.own.shift();
    // Somebody has cut the file.
    found.lost += stretch.records;
    if (stretch.records > 0) spool?.forget(segment, stretch.records);
  }

  private readTaken(number: () => number, found: Read): void {
    const { spool } = this;
    const [taken] = this.taken;
    const segment = taken?.segments[0];
    if (taken === undefined || spool === undefined) return;
    if (segment === undefined) {
      this.taken.shift();
      taken.done([...taken.running.keys()].filter((id) => !taken.shared.has(id)));
      return;
    }
    const { locations, next } = spool.readFrom(segment, taken.at, segment.size, READ_BYTES);
    taken.at = next;
    for (const { record, location } of locations) {
      const entry = parse(record, number);
      if (entry === "note") {
        for (const id of sharedIn(record)) remember(taken.shared, id, true, OPEN_RUNS);
        continue;
      }
      if (entry === undefined) {
        found.unreadable++;
        continue;
      }
      if (entry.kind === "createExecution") remember(taken.running, entry.executionId, true, OPEN_RUNS);
      else if (entry.kind === "finishExecution") taken.running.delete(entry.executionId);
      segment.live++;
      entry.location = location;
      found.entries.push(entry);
    }
    if (locations.length > 0 && next < segment.size) return;
    taken.segments.shift();
    taken.at = 0;
    // It was held for the reading.
    spool.forget(segment);
  }
}

/** A record as an entry; `undefined`: it cannot be read. */
function parse(record: Uint8Array, number: (() => number) | undefined): Entry | "note" | undefined {
  try {
    const { write, sequence } = fromBinary(IngestRequestSchema, record);
    if (write.case === undefined) return "note";
    // What a process that has ended had sent may have been answered: that a repeat is refused is no news.
    return entryOf(write, record, number === undefined ? Number(sequence) : number(), number !== undefined);
  } catch {
    return undefined;
  }
}
