/** Results of traced functions: given on as they are, and followed to their end. */

/** Calls something in the context of the step. */
type Within = <T>(work: () => T) => T;

/** Gives back a result of a traced function so that the step ends when the result does. */
export function observed<R>(result: R, within: Within, end: (result: unknown) => void, fail: (error: unknown) => void): R {
  if (isPlainPromise(result)) {
    return result.then(
      (value: unknown) => {
        end(value);
        return value;
      },
      (error: unknown) => {
        fail(error);
        throw error;
      },
    ) as R;
  }
  if (isGenerator(result)) return followed(result, within, end, fail) as R;
  if (isThenable(result)) return thenable(result, end, fail);
  end(result);
  return result;
}

/** A promise of a class of its own has methods that the app may use. */
export function isPlainPromise(value: unknown): value is Promise<unknown> {
  return value instanceof Promise && Object.getPrototypeOf(value) === Promise.prototype;
}

function isThenable(value: unknown): value is object & PromiseLike<unknown> {
  return typeof value === "object" && value !== null && typeof (value as { then?: unknown }).then === "function";
}

type AnyGenerator = (Generator | AsyncGenerator) & object;

function isGenerator(value: unknown): value is AnyGenerator {
  if (typeof value !== "object" || value === null) return false;
  const tag = Object.prototype.toString.call(value);
  return tag === "[object Generator]" || tag === "[object AsyncGenerator]";
}

/** A promise of another kind keeps its own methods; it may do nothing before somebody waits for it. */
function thenable<R extends object & PromiseLike<unknown>>(
  result: R,
  end: (result: unknown) => void,
  fail: (error: unknown) => void,
): R {
  let settled = false;
  const once = (work: () => void): void => {
    if (!settled) work();
    settled = true;
  };
  return new Proxy(result, {
    get(target, property) {
      const member: unknown = Reflect.get(target, property, target);
      if (typeof member !== "function") return member;
      if (property !== "then") return member.bind(target) as unknown;
      return (fulfilled?: (value: unknown) => unknown, rejected?: (error: unknown) => unknown): unknown =>
        target.then(
          (value) => {
            once(() => end(value));
            return fulfilled == null ? value : fulfilled(value);
          },
          (error: unknown) => {
            once(() => fail(error));
            if (rejected == null) throw error;
            return rejected(error);
          },
        );
    },
  });
}

/** What a generator yields is the output, up to some number of values, and of characters and bytes in them. */
const YIELDED = { values: 10_000, bytes: 8 * 1024 * 1024 } as const;

function followed(generator: AnyGenerator, within: Within, end: (result: unknown) => void, fail: (error: unknown) => void): AnyGenerator {
  const yielded: unknown[] = [];
  let bytes = 0;
  let ended = false;
  const seen = (result: IteratorResult<unknown>): IteratorResult<unknown> => {
    if (result.done !== true) {
      const { value } = result;
      if (typeof value === "string") bytes += value.length;
      else if (ArrayBuffer.isView(value)) bytes += value.byteLength;
      if (yielded.length < YIELDED.values && bytes <= YIELDED.bytes) yielded.push(value);
    } else if (!ended) {
      ended = true;
      const texts = yielded.length > 0 && yielded.every((value) => typeof value === "string");
      end(texts ? yielded.join("") : yielded);
    }
    return result;
  };
  const failed = (error: unknown): never => {
    if (!ended) {
      ended = true;
      fail(error);
    }
    throw error;
  };
  const call = (method: "next" | "return" | "throw", args: unknown[]): unknown => {
    let result: unknown;
    try {
      const member = (generator as unknown as Record<string, (...a: unknown[]) => unknown>)[method];
      result = within(() => member?.apply(generator, args));
    } catch (error) {
      return failed(error);
    }
    return result instanceof Promise ? result.then(seen, failed) : seen(result as IteratorResult<unknown>);
  };
  return new Proxy(generator, {
    get(target, property, receiver) {
      if (property === "next" || property === "return" || property === "throw") {
        return (...args: unknown[]) => call(property, args);
      }
      if (property === Symbol.iterator || property === Symbol.asyncIterator) {
        return property in target ? () => receiver as unknown : undefined;
      }
      const member: unknown = Reflect.get(target, property, target);
      return typeof member === "function" ? (member.bind(target) as unknown) : member;
    },
  });
}
