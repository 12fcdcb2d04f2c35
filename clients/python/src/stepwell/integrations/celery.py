"""Tasks of Celery as steps of the run that has sent them.

    stepwell.integrations.celery.instrument()      # where tasks are sent, and where they run

A task that is sent inside a run carries it along; where it runs, it is a step of that run, below the step that has
sent it. With `instrument(app_name="my-worker")` a task that was sent outside of one becomes a run.
"""

from __future__ import annotations

from typing import Any

from .._reporting import attach, current_run, run
from .._run import CARRIED_RUN, Run
from .._step import Step
from ._guarded import safely

_open: dict[str, tuple[Run, Step]] = {}
_app_name: str | None = None


@safely
def _before_publish(headers: Any = None, **_: Any) -> None:
    inside = current_run()
    if inside and isinstance(headers, dict):
        headers.update(inside.carrier())


@safely
def _before_run(task_id: Any = None, task: Any = None, args: Any = None, kwargs: Any = None, **_: Any) -> None:
    request = getattr(task, "request", None)
    carried = dict(getattr(request, "headers", None) or {})
    for name in (CARRIED_RUN, "stepwell-step"):
        value = request.get(name) if request is not None else None
        if value:
            carried[name] = value
    owner: Run
    if carried.get(CARRIED_RUN):
        owner = attach(carried)
    elif _app_name is not None:
        owner = run(_app_name)
    else:
        return
    owner.__enter__()
    step = owner.step(str(getattr(task, "name", "task")), input={"args": list(args or ()), "kwargs": dict(kwargs or {})})
    step.__enter__()
    _open[str(task_id)] = owner, step


@safely
def _after_run(task_id: Any = None, retval: Any = None, state: Any = None, **_: Any) -> None:
    held = _open.pop(str(task_id), None)
    if held is None:
        return
    owner, step = held
    error = retval if isinstance(retval, BaseException) else None
    step._leave()
    if error is None and state in ("FAILURE", "RETRY"):
        step.fail(str(retval), code=str(state))
    else:
        step._end(error, retval if error is None else None)
    owner.__exit__(type(error) if error else None, error, None)


def instrument(app_name: str | None = None) -> None:
    """Listens to Celery's signals in this process."""
    global _app_name
    from celery import signals

    _app_name = app_name
    signals.before_task_publish.connect(_before_publish)
    signals.task_prerun.connect(_before_run)
    signals.task_postrun.connect(_after_run)


def uninstrument() -> None:
    """Stops it."""
    from celery import signals

    signals.before_task_publish.disconnect(_before_publish)
    signals.task_prerun.disconnect(_before_run)
    signals.task_postrun.disconnect(_after_run)
