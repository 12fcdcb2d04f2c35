"""What tests of apps use."""

from __future__ import annotations

import threading

import pytest

import stepwell as sw
from stepwell import testing


def agent() -> str:
    with sw.run("agent", user="me") as r:
        with r.step("fetch", input={"q": 1}) as s:
            s.progress(0.5)
            s.output({"rows": 3})
            s.metadata(source="web")
        with r.step("answer") as s:
            r.artifact("a.txt", "text")
            r.metrics(tokens=3)
    return r.id


def test_the_recorder() -> None:
    with testing.recorder(app="tests") as recorder:
        id = agent()
        assert [run.id for run in recorder.runs] == [id]
        step = recorder.assert_step("fetch", status="completed", input={"q": 1}, output={"rows": 3}, source="web")
        assert step.progress == 0.5
        assert recorder.run.artifacts[0].data == b"text"
        assert recorder.run.artifacts[0].step_key == recorder.run.step("answer").key
        assert recorder.run.metrics == [{"tokens": 3.0}]
        assert (recorder.run.status, recorder.run.user) == ("completed", "me")
        with pytest.raises(AssertionError, match="no step 'missing'"):
            recorder.assert_step("missing")
        with pytest.raises(AssertionError, match="is like that"):
            recorder.assert_step("fetch", status="failed")
        assert sw.flush()
        recorder.clear()
        assert recorder.runs == []
        with pytest.raises(ValueError, match="x"), sw.run("bad"), sw.step("s"):
            raise ValueError("x")
        recorder.assert_step("s", status="failed", error="x")
    assert not any("stepwell" in thread.name for thread in threading.enumerate())


def test_what_was_there_before_is_there_again() -> None:
    before = sw.configure("127.0.0.1:9", mode="disabled")
    with testing.recorder():
        agent()
    assert sw._reporting.client() is before
