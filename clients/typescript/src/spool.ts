/**
 * The spool: what was reported and is not yet durable at the server, in files of this process.
 *
 * A file is a sequence of IngestRequests, each after its length as a varint. The first is no write but says for which
 * server the file is, as JSON in field 1000, which others skip. Files are named
 * `<lock>~<number>.nodespool`, where `<lock>` names the lock of the process that they belong to (see `lock.ts`) and
 * numbers grow. Bytes of artifacts are beside them, described by `<lock>~<number>.nodeartifact`. A write is one
 * `write` of the kernel and no fsync: it survives the process, not the machine.
 */

import { randomBytes } from "node:crypto";
import {
  appendFileSync,
  closeSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  readdirSync,
  renameSync,
  rmSync,
  unlinkSync,
} from "node:fs";
import * as path from "node:path";

import { Lock } from "./lock.js";
import { remember } from "./room.js";

/** A file is closed at this size and the next one begun, so that what is durable can go. */
const SEGMENT_BYTES = 8 * 1024 * 1024;
/** Each file is held open: so many of them, and then they get longer. */
const SEGMENTS = 32;
/** Runs that others go on with of which is remembered that they do. */
const SHARED = 10_000;
/** How often to look whether the files are still there. */
const LOOK_MS = 1000;
/** No record is longer: a server takes 16 MiB. */
const RECORD_BYTES = 64 * 1024 * 1024;
const RECORDS = ".nodespool";
const ARTIFACTS = ".nodeartifact";
const BLOBS = ".nodeblob";
/** How processes are named: see `owner`. */
const OWNER = /^\d+-\d+-[0-9a-f]{8}$/;

/** Where a record is: its length, then its bytes. */
export interface Location {
  readonly segment: Segment;
  readonly start: number;
  readonly offset: number;
  readonly length: number;
}

/** One file of records. */
export class Segment {
  size = 0;
  /** Records that are not durable yet. */
  live = 0;

  constructor(
    readonly file: string,
    public fd: number,
  ) {}
}

/** The spool of this process. */
export class Spool {
  private lock: Lock | undefined;
  private current: Segment | undefined;
  private readonly segments = new Set<Segment>();
  private number = 0;
  private closed = false;
  private blobs = 0;
  private lookAt = 0;
  /** Runs of which a file may have the beginning, and which others go on with. */
  private readonly shared = new Map<string, true>();
  /** Names the lock and the files of this process: no two processes ever have the same. */
  readonly owner = `${Date.now()}-${process.pid}-${randomBytes(4).toString("hex")}`;

  private constructor(
    readonly folder: string,
    /** What is in it is for this one, and never sent to another. */
    readonly server: string,
  ) {}

  /** Opens a spool in a folder, which is made. Throws if that cannot be. */
  static open(folder: string, server: string): Spool {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const spool = new Spool(folder, server);
    // First the lock, then files: a file whose lock nobody holds is free to take.
    spool.lock = Lock.hold(folder, spool.owner);
    if (spool.lock === undefined) throw new Error("the file system of the spool has no sockets");
    return spool;
  }

  /** Bytes of records and of copied artifacts in it. */
  get bytes(): number {
    let bytes = this.blobs;
    for (const segment of this.segments) bytes += segment.size;
    return bytes;
  }

  /** Writes a record down. Throws when the disk does not take it; nothing of it is left then. */
  append(record: Uint8Array): Location {
    if (this.closed) throw new Error("the spool is closed");
    const now = Date.now();
    if (now >= this.lookAt) {
      this.lookAt = now + LOOK_MS;
      this.look();
    }
    let segment = this.current;
    const most = Math.max(SEGMENT_BYTES, this.bytes / SEGMENTS);
    if (segment === undefined || (segment.size > 0 && segment.size + record.length > most)) {
      segment = this.begin();
    }
    this.write(segment, segment.size === 0 ? [this.head(), record] : [record]);
    segment.live++;
    const offset = segment.size - record.length;
    return { segment, start: offset - writeLength(new Uint8Array(5), record.length), offset, length: record.length };
  }

  /**
   * Others go on with a run of this process: whoever takes its files does not end it. Written down where any file may have
   * its beginning, and in every file from then on.
   */
  share(executionId: string): void {
    if (this.closed || ![...this.segments].some((segment) => segment.size > 0)) return;
    remember(this.shared, executionId, true, SHARED);
    const segment = this.current ?? this.begin();
    this.write(segment, [segment.size === 0 ? this.head() : noteOf({ shared: [executionId] })]);
  }

  /** The run is over. */
  unshare(executionId: string): void {
    this.shared.delete(executionId);
  }

  /** What each file begins with. */
  private head(): Uint8Array {
    // Nothing is in any other file: nobody would know these runs.
    if (this.segments.size === 1) this.shared.clear();
    const shared = this.shared.size > 0 ? { shared: [...this.shared.keys()] } : {};
    return noteOf({ stepwell: 1, server: this.server, ...shared });
  }

  /** All of them, or nothing: throws when the disk does not take them. */
  private write(segment: Segment, records: readonly Uint8Array[]): void {
    const framed = Buffer.allocUnsafe(records.reduce((sum, { length }) => sum + length + 5, 0));
    let end = 0;
    for (const record of records) {
      end += writeLength(framed.subarray(end), record.length);
      framed.set(record, end);
      end += record.length;
    }
    try {
      appendFileSync(segment.fd, framed.subarray(0, end));
    } catch (error) {
      // A part of it may be there.
      try {
        ftruncateSync(segment.fd, segment.size);
      } catch {
        // What follows it could not be told apart, so nothing more goes into this file.
        this.current = undefined;
      }
      throw error;
    }
    segment.size += end;
  }

  /** Reads a record back. */
  read(location: Location): Uint8Array {
    const record = Buffer.allocUnsafe(location.length);
    let done = 0;
    while (done < location.length) {
      const got = readSync(location.segment.fd, record, done, location.length - done, location.offset + done);
      if (got === 0) throw new Error("the spool was cut");
      done += got;
    }
    return record;
  }

  /** Whole records between two offsets, about so many bytes of them, and where the next one begins. */
  readFrom(segment: Segment, from: number, end: number, about: number): { locations: Found[]; next: number } {
    const locations: Found[] = [];
    let at = from;
    let bytes = this.chunk(segment, from, Math.min(end, from + about));
    while (at < end) {
      const head = readLength(bytes, at - from, bytes.length);
      // What a crash has cut off, or left as zeros, was never written as a whole.
      if (head?.length === 0 || (head?.length ?? 0) > RECORD_BYTES) return { locations, next: end };
      if (head === undefined || head.next + head.length > bytes.length) {
        if (locations.length > 0 && from + bytes.length < end) break;
        const most = Math.min(end, head === undefined ? from + about : from + head.next + head.length);
        const more = this.chunk(segment, from, most);
        if (more.length <= bytes.length) return { locations, next: end };
        bytes = more;
        continue;
      }
      const [start, offset] = [at, from + head.next];
      at = offset + head.length;
      // A copy: the chunk goes.
      const record = Uint8Array.prototype.slice.call(bytes, head.next, head.next + head.length);
      locations.push({ record, location: { segment, start, offset, length: head.length } });
    }
    return { locations, next: at };
  }

  private chunk(segment: Segment, from: number, to: number): Uint8Array {
    const bytes = Buffer.allocUnsafe(Math.max(0, to - from));
    try {
      return bytes.subarray(0, readSync(segment.fd, bytes, 0, bytes.length, from));
    } catch {
      return bytes.subarray(0, 0);
    }
  }

  /** Records are durable, or given up. A file goes, or is emptied, when nothing in it is left. */
  forget(segment: Segment, count = 1): void {
    segment.live -= count;
    if (segment.live > 0) return;
    if (segment !== this.current) {
      this.remove(segment);
    } else {
      ftruncateSync(segment.fd, 0);
      segment.size = 0;
      // An older file may have the beginning of a run.
      if (this.segments.size > 1 && this.shared.size > 0) this.write(segment, [this.head()]);
    }
  }

  /** Releases everything. Files with records that are not durable are left to the next process. */
  close(): void {
    this.closed = true;
    const segments = [...this.segments];
    const isLeft = segments.some(({ live }) => live > 0);
    for (const segment of segments) {
      const says = isLeft && this.shared.size > 0 && segment === this.current;
      if (segment.live === 0 && !says) this.remove(segment);
      else closeSync(segment.fd);
    }
    this.segments.clear();
    this.current = undefined;
    this.lock?.release();
  }

  /** A name for a file with bytes of an artifact. */
  blobName(): string {
    return path.join(this.folder, `${this.owner}~${this.nextNumber()}${BLOBS}`);
  }

  /** Counts the bytes of a copied artifact; negative when it is gone. */
  countBlob(bytes: number): void {
    this.blobs = Math.max(0, this.blobs + bytes);
  }

  /** A name for the description of an artifact. */
  artifactName(): string {
    return path.join(this.folder, `${this.owner}~${this.nextNumber()}${ARTIFACTS}`);
  }

  /**
   * Makes the files of processes that have ended this one's own. Each file goes to exactly one process: the one whose
   * rename succeeds. `taken` gets the files of one ended process in the order in which they were written; once it says
   * that this is enough the others are left for later.
   */
  async takeOver(taken: (left: Left) => boolean): Promise<void> {
    const owners = new Map<string, string[]>();
    const names = readdirSync(this.folder);
    for (const name of names) {
      const owner = ownerOf(name);
      if (owner === undefined || owner === this.owner) continue;
      const files = owners.get(owner);
      if (files === undefined) owners.set(owner, [name]);
      else files.push(name);
    }
    for (const [owner, files] of [...owners].sort(([a], [b]) => (a < b ? -1 : 1))) {
      if (this.closed) return;
      if (await Lock.isHeld(this.folder, owner)) continue;
      if (files.some((name) => !this.isForHere(name))) continue;
      if (!this.takeFrom(owner, files, taken)) return;
    }
    // Locks of processes that had nothing left.
    for (const name of names.filter((each) => each.endsWith(".lock"))) {
      const owner = name.slice(0, -".lock".length);
      // Other programs may keep locks in the same folder, which are none of ours.
      if (!OWNER.test(owner) || owner === this.owner || owners.has(owner) || this.closed) continue;
      if (!(await Lock.isHeld(this.folder, owner))) Lock.clear(this.folder, owner);
    }
  }

  /** Whether a file is for the same server. One that does not say is. */
  private isForHere(name: string): boolean {
    const file = path.join(this.folder, name);
    try {
      let server: unknown;
      if (name.endsWith(ARTIFACTS)) {
        ({ server } = JSON.parse(readFileSync(file, "utf8")) as { server?: unknown });
      } else if (name.endsWith(RECORDS)) {
        const segment = new Segment(file, openSync(file, "r"));
        try {
          const [first] = this.readFrom(segment, 0, fstatSync(segment.fd).size, 1024).locations;
          server = first === undefined ? undefined : noteIn(first.record).server;
        } finally {
          closeSync(segment.fd);
        }
      }
      return server === undefined || server === this.server;
    } catch {
      // Somebody else has taken it, or it is damaged: that is seen when it is taken.
      return true;
    }
  }

  private takeFrom(owner: string, files: string[], taken: (left: Left) => boolean): boolean {
    const left: Left = { segments: [], artifacts: [], endedAt: new Date(0) };
    for (const name of files.sort((a, b) => numberOf(a) - numberOf(b))) {
      const from = path.join(this.folder, name);
      if (name.endsWith(ARTIFACTS)) {
        const to = this.artifactName();
        if (claim(from, to)) left.artifacts.push(to);
      } else if (name.endsWith(RECORDS)) {
        const to = path.join(this.folder, `${this.owner}~${this.nextNumber()}${RECORDS}`);
        if (!claim(from, to)) continue;
        const segment = new Segment(to, openSync(to, "r+"));
        const { mtime, size } = fstatSync(segment.fd);
        if (mtime > left.endedAt) left.endedAt = mtime;
        segment.size = size;
        // Held for the reading.
        segment.live = 1;
        this.segments.add(segment);
        if (size === 0) this.remove(segment);
        else left.segments.push(segment);
      }
    }
    Lock.clear(this.folder, owner);
    const goOn = left.segments.length > 0 || left.artifacts.length > 0 ? taken(left) : true;
    this.sweepBlobs(files);
    return goOn;
  }

  /** Removes bytes that no description names: their process was killed between the two. */
  private sweepBlobs(files: string[]): void {
    const named = new Set<string>();
    for (const name of readdirSync(this.folder).filter((each) => each.endsWith(ARTIFACTS))) {
      try {
        const { blob } = JSON.parse(readFileSync(path.join(this.folder, name), "utf8")) as { blob?: string };
        if (blob !== undefined) named.add(path.basename(blob));
      } catch {
        // Another process has it.
        return;
      }
    }
    for (const name of files.filter((each) => each.endsWith(BLOBS) && !named.has(each))) {
      rmSync(path.join(this.folder, name), { force: true });
    }
  }

  /**
   * Somebody may have deleted the folder, as a cleaner of temporary files does. What is written to a deleted file would
   * not survive this process, and without its lock it would be taken for dead. One file at a time, so that nobody waits
   * long.
   */
  private look(): void {
    try {
      const segment = [...this.segments].reverse().find((each) => fstatSync(each.fd).nlink === 0);
      if (segment === undefined) return;
      mkdirSync(this.folder, { recursive: true, mode: 0o700 });
      // The lock before the files.
      if (this.lock?.isThere === false) {
        this.lock.release();
        this.lock = Lock.hold(this.folder, this.owner);
      }
      const fd = openSync(segment.file, "ax+", 0o600);
      try {
        for (let at = 0; at < segment.size; ) {
          const bytes = this.chunk(segment, at, Math.min(segment.size, at + 1024 * 1024));
          if (bytes.length === 0) throw new Error("the spool was cut");
          appendFileSync(fd, bytes);
          at += bytes.length;
        }
      } catch (error) {
        closeSync(fd);
        rmSync(segment.file, { force: true });
        throw error;
      }
      closeSync(segment.fd);
      segment.fd = fd;
    } catch {
      // It is tried again; what is in the deleted file can still be read.
    }
  }

  private begin(): Segment {
    const before = this.current;
    if (before !== undefined && before.live === 0) this.remove(before);
    const file = path.join(this.folder, `${this.owner}~${this.nextNumber()}${RECORDS}`);
    const segment = new Segment(file, this.create(file));
    this.segments.add(segment);
    this.current = segment;
    return segment;
  }

  private create(file: string): number {
    try {
      return openSync(file, "a+", 0o600);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
      // Somebody has deleted the folder.
      mkdirSync(this.folder, { recursive: true, mode: 0o700 });
      this.lock?.release();
      this.lock = Lock.hold(this.folder, this.owner);
      return openSync(file, "a+", 0o600);
    }
  }

  private remove(segment: Segment): void {
    this.segments.delete(segment);
    if (this.current === segment) this.current = undefined;
    try {
      closeSync(segment.fd);
      unlinkSync(segment.file);
    } catch {
      // Somebody has removed it.
    }
  }

  private nextNumber(): number {
    return ++this.number;
  }
}

/** A record that was read. */
export interface Found {
  record: Uint8Array;
  location: Location;
}

/** What a process that has ended has left. */
export interface Left {
  /** The files with its records, in order. */
  segments: Segment[];
  /** Descriptions of artifacts that are not uploaded. */
  artifacts: string[];
  /** When it last wrote. */
  endedAt: Date;
}

/** The folder of the spool when nothing says otherwise: one for each server. */
export function defaultFolder(home: string, server: string): string {
  const state = process.env["XDG_STATE_HOME"] || path.join(home, ".local", "state");
  const name = addressOf(server).replace(/[^\p{L}\p{N}.-]/gu, "_").slice(0, 100);
  return path.join(state, "stepwell", "spool", name);
}

/** An address without what says how to speak to it. */
export function addressOf(server: string): string {
  return server.replace(/^[a-z]+:\/\//i, "").replace(/\/+$/, "");
}

/** Field 1000 of an IngestRequest, with a text. */
const NOTE_TAG = [0xc2, 0x3e] as const;

/** What a file says of itself, or of runs in it. */
interface Note {
  /** The version of the format. */
  stepwell?: number;
  server?: string;
  shared?: string[];
}

function noteOf(note: Note): Uint8Array {
  const text = Buffer.from(JSON.stringify(note));
  const head = Buffer.alloc(7);
  head.set(NOTE_TAG);
  return Buffer.concat([head.subarray(0, 2 + writeLength(head.subarray(2), text.length)), text]);
}

function noteIn(record: Uint8Array): { [name in keyof Note]: unknown } {
  if (record[0] !== NOTE_TAG[0] || record[1] !== NOTE_TAG[1]) return {};
  const text = readLength(record, 2, record.length);
  const note: unknown = JSON.parse(Buffer.from(record.subarray(text?.next ?? 0)).toString());
  return typeof note === "object" && note !== null ? note : {};
}

/** The runs of which a note says that others go on with them. */
export function sharedIn(record: Uint8Array): string[] {
  try {
    const { shared } = noteIn(record);
    return Array.isArray(shared) ? shared.map(String) : [];
  } catch {
    return [];
  }
}

function claim(from: string, to: string): boolean {
  try {
    renameSync(from, to);
    return true;
  } catch {
    return false;
  }
}

function ownerOf(name: string): string | undefined {
  const known = name.endsWith(RECORDS) || name.endsWith(ARTIFACTS) || name.endsWith(BLOBS);
  const mark = name.indexOf("~");
  const owner = name.slice(0, Math.max(0, mark));
  return known && OWNER.test(owner) ? owner : undefined;
}

function numberOf(name: string): number {
  return Number.parseInt(name.slice(name.indexOf("~") + 1), 10) || 0;
}

function writeLength(into: Uint8Array, length: number): number {
  let rest = length;
  let at = 0;
  while (rest > 0x7f) {
    into[at++] = (rest & 0x7f) | 0x80;
    rest >>>= 7;
  }
  into[at++] = rest;
  return at;
}

function readLength(bytes: Uint8Array, from: number, end: number): { length: number; next: number } | undefined {
  let length = 0;
  for (let at = from, shift = 0; at < end && shift < 35; at++, shift += 7) {
    const byte = bytes[at] ?? 0;
    length += (byte & 0x7f) * 2 ** shift;
    if (byte < 0x80) return { length, next: at + 1 };
  }
  return undefined;
}
