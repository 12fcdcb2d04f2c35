// Before Node 20.4 there is no `Symbol.asyncDispose`, which `await using` needs and classes here are made with.
(Symbol as { asyncDispose?: symbol }).asyncDispose ??= Symbol.for("Symbol.asyncDispose");

export {};
