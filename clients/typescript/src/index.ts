/**
 * Reports the runs of an app to a Stepwell server, and reads and watches them.
 *
 * Reporting never throws into the app, never waits for the network, and never keeps the process alive: what is reported goes
 * to a spool on disk and from there to the server. {@link Api} is for tools: it waits, and it throws.
 *
 * @packageDocumentation
 */

/// <reference types="node" preserve="true" />

import "./dispose.js";

export {
  Api,
  type Ago,
  type ApiOptions,
  type Count,
  type Event,
  type Filter,
  type ListOptions,
  type RawClients,
  type WatchOptions,
} from "./api.js";
export type { Carried, Carrier } from "./carrier.js";
export type { Client, Stats } from "./client.js";
export { Cancelled, StepwellError } from "./errors.js";
export type {
  ArtifactData,
  ArtifactOptions,
  ArtifactRef,
  PlannedStep,
  Run,
  RunOptions,
  Step,
  StepFunction,
  StepOptions,
} from "./interfaces.js";
export type { Options } from "./options.js";
export type { RecordedRun, RecordedStep } from "./recorder.js";
export type {
  ArtifactRecord,
  Attempt,
  Change,
  Execution,
  ExecutionStatus,
  Point,
  RunError,
  StepRecord,
  StepStatus,
} from "./records.js";
export {
  attach,
  configure,
  currentRun,
  currentStep,
  flush,
  run,
  shutdown,
  startRun,
  stats,
  step,
  traced,
} from "./run.js";
export type { TlsOptions } from "./transport.js";
export type { Json, Redact } from "./values.js";
