/** What lets a process end that has nothing more to do while the package is sending. */

import { createHook } from "node:async_hooks";

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import * as sw from "../src/index.js";
import { Breath } from "../src/transport.js";
import { reporting, Server } from "./harness.js";

test("what is sent and answered takes no thread of the pool, which would keep the process", async () => {
  const server = await Server.started("sqlite");
  const client = reporting(server);
  const unpacked = new Set<number>();
  const hook = createHook({
    init: (id, type) => {
      if (type === "ZLIB") unpacked.add(id);
    },
  }).enable();
  try {
    for (let n = 0; n < 20; n++) sw.startRun("app", { metadata: { text: "t".repeat(5000) } }).complete();
    expect(await client.flush()).toBe(true);
  } finally {
    hook.disable();
  }
  expect(client.stats()).toMatchObject({ acked: 40, refused: 0, dropped: 0 });
  expect(unpacked.size).toBe(0);
});

describe("a breath", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  /** A breath that is due and is taken, with something under way. */
  function taken(): { breath: Breath; isOver: () => boolean; answer: (left: number) => void } {
    const breath = new Breath();
    expect(breath.isDue).toBe(false);
    vi.advanceTimersByTime(500);
    expect(breath.isDue).toBe(true);
    let [underWay, answers, over] = [2, 0, false];
    void breath
      .take(
        () => underWay,
        () => answers,
      )
      .then(() => (over = true));
    return {
      breath,
      isOver: () => over,
      answer: (left) => {
        underWay = left;
        answers++;
      },
    };
  }

  test("waits for what is answered slowly, and the next one is as soon as ever", async () => {
    const { breath, isOver, answer } = taken();
    for (let n = 0; n < 10; n++) {
      await vi.advanceTimersByTimeAsync(900);
      answer(2);
    }
    expect(isOver()).toBe(false);
    answer(0);
    await vi.advanceTimersByTimeAsync(10);
    expect(isOver()).toBe(true);
    expect(breath.isDue).toBe(false);
    await vi.advanceTimersByTimeAsync(500);
    expect(breath.isDue).toBe(true);
  });

  test("does not take an app that holds up the event loop for a server that does not answer", async () => {
    const { breath, isOver, answer } = taken();
    for (let n = 0; n < 10; n++) {
      // Meanwhile no timer comes.
      vi.setSystemTime(Date.now() + 3000);
      await vi.advanceTimersByTimeAsync(5);
    }
    expect(isOver()).toBe(false);
    answer(0);
    await vi.advanceTimersByTimeAsync(10);
    expect(isOver()).toBe(true);
    await vi.advanceTimersByTimeAsync(500);
    expect(breath.isDue).toBe(true);
  });

  test("gives up on an answer that does not come, and holds up the others seldom", async () => {
    const { breath, isOver } = taken();
    await vi.advanceTimersByTimeAsync(900);
    expect(isOver()).toBe(false);
    await vi.advanceTimersByTimeAsync(200);
    expect(isOver()).toBe(true);
    await vi.advanceTimersByTimeAsync(4000);
    expect(breath.isDue).toBe(false);
    await vi.advanceTimersByTimeAsync(1000);
    expect(breath.isDue).toBe(true);
  });
});
