"""The drop-in for the tracker of `jkilelo/ai_apps`: programs for that one, as they are or with their imports changed."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest
from servers import Server, environment, run_app

import stepwell as sw
from stepwell.compat.ai_apps import ExecutionStatus, StepStatus, execution_tracker, get_execution_tracker

#: In the manner of a program of that project.
PROGRAM = """
import asyncio
from apps.common.services.execution_tracker import get_execution_tracker
from apps.common.database import ExecutionStatus, StepStatus

async def main():
    tracker = await get_execution_tracker()
    async with tracker.track_execution(app_id=3, app_name="visual_tests", user_id="ann", metadata={"env": "dev"}) as run:
        async with tracker.track_step(execution_id=run, step_id=1, step_name="crawl",
                                      input_data={"url": "https://example.org"}) as set_output:
            set_output({"pages": [1, 2]})
            set_output({"links": 7})
        async with tracker.track_step(run, 2, "judge", "2.1.0") as set_output:
            pass
        await tracker.log_artifact(run, "screenshot", "home.png", b"png", step_id=1, mime_type="image/png")
    details = await tracker.get_execution_details(run)
    print(details["execution"]["status"] == ExecutionStatus.COMPLETED, details["execution"]["duration_ms"] >= 0)
    for step in details["steps"]:
        print(step["step_id"], step["step_name"], step["status"] == StepStatus.COMPLETED, sorted(step["output"].items()))
    try:
        async with tracker.track_execution(app_id=3, app_name="visual_tests", user_id="ann") as run:
            async with tracker.track_step(execution_id=run, step_id=1, step_name="crawl") as set_output:
                raise Exception("no answer")
    except Exception as error:
        print("failed with", error)
    details = await tracker.get_execution_details(run)
    print(details["execution"]["status"].value, details["execution"]["error"], details["steps"][0]["error"])
    history = await tracker.get_execution_history(user_id="ann", app_id=3, limit=5)
    print(len(history), [len(one["steps"]) for one in history])

asyncio.run(main())
"""


#: What it prints.
OUT = [
    "True True",
    "1 crawl True [('links', 7), ('pages', [1, 2])]",
    "2 judge True []",
    "failed with no answer",
    "failed no answer no answer",
    "2 [1, 2]",
]


def with_one_import(program: str) -> str:
    """Two lines that become one."""
    first, second = (line for line in program.splitlines() if line.startswith("from apps.common."))
    names = ", ".join(line.partition(" import ")[2] for line in (first, second))
    return program.replace(first, f"from stepwell.compat.ai_apps import {names}").replace(second, "")


def with_one_line_more(program: str) -> str:
    return f"import stepwell.compat.ai_apps_in_place\n{program}"


def run_in_place(program: pathlib.Path, server: Server, spool: pathlib.Path, *arguments: str) -> str:
    """The program as it is."""
    done = subprocess.run(
        [sys.executable, "-m", "stepwell.compat.ai_apps_in_place", str(program), *arguments],
        env=environment(server.address, spool),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("changed", [with_one_import, with_one_line_more])
def test_a_program_runs_with_its_imports_changed(server: Server, spool: pathlib.Path, changed: Callable[[str], str]) -> None:
    assert run_app(changed(PROGRAM), server.address, spool).splitlines() == OUT


def test_a_program_runs_as_it_is(server: Server, spool: pathlib.Path, tmp_path: pathlib.Path) -> None:
    program = tmp_path / "there" / "program.py"
    program.parent.mkdir()
    # What is beside it is found, and what it is called with.
    program.with_name("beside.py").write_text("WORD = 'beside'")
    program.write_text(f"import sys, beside\nprint(beside.WORD, __name__, sys.argv[1:])\n{PROGRAM}")
    out = run_in_place(program, server, spool, "--flag", "x")
    assert out.splitlines() == ["beside __main__ ['--flag', 'x']", *OUT]


def test_only_what_is_replaced_is(tmp_path: pathlib.Path) -> None:
    """Also where the project is there: its tracker and its client of MongoDB are not even imported."""
    for folder in ("apps", "apps/common", "apps/common/services", "apps/common/database"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("" if folder.count("/") < 2 else "raise RuntimeError('theirs')")
    (tmp_path / "apps" / "common" / "other.py").write_text("from .database import StepStatus\nWORD = 'theirs'")

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)

    done = run(
        "import stepwell.compat.ai_apps_in_place\n"
        "from apps.common.other import WORD, StepStatus\n"
        "from apps.common.services.execution_tracker import execution_tracker\n"
        "print(WORD, StepStatus.__module__, type(execution_tracker).__module__)"
    )
    assert done.stdout == "theirs stepwell.compat.ai_apps stepwell.compat.ai_apps\n", done.stderr
    done = run("import stepwell.compat.ai_apps_in_place\nfrom apps.common.database import MongoDBClient")
    assert "cannot import name 'MongoDBClient' from 'stepwell.compat.ai_apps'" in done.stderr
    (tmp_path / "apps/common/database/__init__.py").write_text("")
    done = run("import apps.common.database\nimport stepwell.compat.ai_apps_in_place")
    assert "apps.common.database has been imported already" in done.stderr


@pytest.mark.skipif(
    "STEPWELL_TEST_AI_APPS" not in os.environ, reason="STEPWELL_TEST_AI_APPS names no program of that project"
)
def test_a_program_of_that_project(server: Server, spool: pathlib.Path) -> None:
    """Its `examples/mongodb_integration_example.py`, word for word. It is not ours to have here."""
    out = run_in_place(pathlib.Path(os.environ["STEPWELL_TEST_AI_APPS"]), server, spool)
    assert out.splitlines()[-1].endswith("All examples completed!")
    with sw.Api(server.address) as api:
        failed, completed = api.list(app=2, user="demo_user")
        assert (str(completed.status), [str(step.status) for step in api.steps(completed)]) == (
            "completed",
            ["completed"] * 3,
        )
        assert (str(failed.status), [str(step.status) for step in api.steps(failed)]) == ("failed", ["failed"])
    assert out.count("Status: ExecutionStatus.COMPLETED") == 2
    assert "Found 2 recent executions" in out


async def test_steps_of_a_task_that_outlives_the_execution(client: sw.Client, api: sw.Api) -> None:
    """As routers of that project do it: the request is the execution, and its steps come from a background task."""
    tracker = await get_execution_tracker()

    async def work(run: str) -> None:
        async with tracker.track_step(
            execution_id=run, step_id=1, step_name="extract", input_data={"depth": 1}
        ) as set_output:
            await tracker.log_artifact(
                execution_id=run,
                step_id=1,
                artifact_type="screenshot",
                artifact_name="a.png",
                content=b"png",
                mime_type="image/png",
            )
            set_output({"elements": [{"id": "e1"}]})

    async with tracker.track_execution(app_id=2, app_name="web", user_id=None, metadata={"endpoint": "/extract"}) as run:
        task = asyncio.create_task(work(run))
    await task
    details = await tracker.get_execution_details(run)
    assert f"{details['execution']['status']:}" == f"{ExecutionStatus.COMPLETED:}"
    (step,) = details["steps"]
    assert (step["status"], json.dumps(step["output"])) == (StepStatus.COMPLETED, '{"elements": [{"id": "e1"}]}')
    assert [one["artifact_name"] for one in details["artifacts"]] == ["a.png"]
    (found,) = await tracker.get_execution_history(app_id=2, limit=1)
    assert found["execution"]["execution_id"] == run


async def test_what_it_returns(client: sw.Client, api: sw.Api) -> None:
    tracker = await get_execution_tracker()
    assert tracker is execution_tracker
    async with tracker.track_execution(3, "app", 4, "part", "ann", {"a": 1}) as run:
        async with tracker.track_step(run, 7, "text") as set_output:
            set_output("not an object")
        upload = await tracker.log_artifact(run, "log", "log.txt", b"bytes", 7, "text/plain", {"n": 1})
    assert isinstance(upload, str)
    details = await tracker.get_execution_details(run)
    execution = details["execution"]
    assert {key: execution[key] for key in ("app_id", "app_name", "sub_app_id", "sub_app_name", "user_id", "metadata")} == {
        "app_id": 3,
        "app_name": "app",
        "sub_app_id": 4,
        "sub_app_name": "part",
        "user_id": "ann",
        "metadata": {"a": 1},
    }
    assert execution["status"] is ExecutionStatus.COMPLETED
    assert isinstance(execution["started_at"], dt.datetime)
    assert isinstance(execution["duration_ms"], int)
    (step,) = details["steps"]
    assert (step["step_id"], step["step_version"], step["status"]) == (7, "1.0.0", StepStatus.COMPLETED)
    assert (step["input"], step["output"], step["retry_count"]) == ({}, "not an object", 0)
    (artifact,) = details["artifacts"]
    assert (artifact["artifact_name"], artifact["size_bytes"], artifact["step_id"]) == ("log.txt", 5, 7)
    assert artifact["metadata"] == {"n": 1}
    with pytest.raises(ValueError, match="not found"):
        await tracker.get_execution_details("nobody")


async def test_a_cancelled_one_ends(client: sw.Client, api: sw.Api) -> None:
    ids: list[str] = []

    async def work() -> None:
        async with execution_tracker.track_execution(1, "app") as run:
            ids.append(run)
            async with execution_tracker.track_step(run, 1, "long"):
                await asyncio.sleep(30)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(sw.flush, 10)
    assert api.get(ids[0]).status == "cancelled"
    assert [step.status for step in api.steps(ids[0])] == ["failed"]
