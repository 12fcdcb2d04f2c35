/** What carries a run to another process, in the headers of a call or in a message of a queue. */

/** The names of both libraries: what one gives the other takes. */
const RUN = "stepwell-run";
const STEP = "stepwell-step";

/** What {@link Run.carrier} gives: headers, or fields of a message. */
export type Carrier = Record<string, string>;

/** What carries a run, maybe among other things: headers of any kind, fields of a message, a Map. */
export type Carried = Iterable<readonly [string, unknown]> | Readonly<Record<string, unknown>>;

/** Carries a run, and the step that is the parent of what happens there. */
export function carrierOf(executionId: string, stepKey: string | undefined): Carrier {
  return { [RUN]: executionId, ...(stepKey ? { [STEP]: encode(stepKey) } : {}) };
}

/** What is carried. Names are in any case, as on their way they may change. */
export function carriedBy(carried: Carried): { executionId: string | undefined; stepKey: string | undefined } {
  const found = new Map<string, string>();
  const all = Symbol.iterator in carried ? (carried as Iterable<readonly [string, unknown]>) : Object.entries(carried);
  for (const [name, value] of all) {
    const key = String(name).toLowerCase();
    if (key !== RUN && key !== STEP) continue;
    const first: unknown = Array.isArray(value) ? value[0] : value;
    if (typeof first === "string" && first !== "") found.set(key, first);
  }
  const stepKey = found.get(STEP);
  return { executionId: found.get(RUN), stepKey: stepKey === undefined ? undefined : decode(stepKey) };
}

/** A key may be any text, the name of a planned step for instance; a header takes what ASCII can print. */
function encode(key: string): string {
  const percent = (text: string): string => [...Buffer.from(text)].map((byte) => `%${byte.toString(16).padStart(2, "0")}`).join("");
  return key.replace(/[^!-$&-~]+/g, percent);
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
