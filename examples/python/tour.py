import contextlib
import datetime

import stepwell as sw

with contextlib.suppress(ValueError), sw.run("poly-py", user="me", metadata={"lang": "py"}) as r:
    with r.step("fetch", input={"query": {"ids": [1, 2, None]}}) as s:
        s.progress(0.5, "half"); s.output({"rows": 3})
    with r.step("llm", input=[1, "two"]) as s:
        r.artifact("report.bin", bytes(3_000_000)); r.metrics(tokens=1234, cost=0.5)
        raise ValueError("boom")                      # step and run FAILED, with the trace
api = sw.Api()
for e in api.watch(r.id, artifacts=True): print(e.kind, e.record.status)
for x in api.list(status="failed", since=datetime.timedelta(hours=24)): print(x.id, x.error.message)
