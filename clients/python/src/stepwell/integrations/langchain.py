"""Chains, models, tools and retrievers of LangChain and LangGraph as steps.

    chain.invoke(question, config={"callbacks": [StepwellCallbackHandler()]})

Inside a run they are its steps, each below the one that called it. Outside of one, `StepwellCallbackHandler(app="name")`
makes a run of each outermost call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .. import _reporting
from .._run import Run
from .._step import Step
from ._calls import finish, plain
from ._guarded import safely

if TYPE_CHECKING:
    BaseCallbackHandler = object
else:
    from langchain_core.callbacks import BaseCallbackHandler


#: Steps that are open at a time, at most.
OPEN_STEPS = 10_000


class StepwellCallbackHandler(BaseCallbackHandler):
    """Give it to `config={"callbacks": [...]}`. Safe for several calls at once.

    Args:
        app: Makes a run of what is called outside of one, with this name.
        run: The run to report into. Default: the current one.
    """

    #: Also in asynchronous calls in the task itself, whose context has the run.
    run_inline = True
    raise_error = False

    def __init__(self, *, app: str | None = None, run: Run | None = None) -> None:
        super().__init__()
        self._app, self._run = app, run
        #: Those that have begun and not ended. The end of one that was broken off may never be told.
        self._steps: dict[UUID, Step] = {}
        self._runs: dict[UUID, Run] = {}

    # --- beginnings -------------------------------------------------------------------------------------------

    @safely
    def on_chain_start(self, serialized: Any, inputs: Any, **more: Any) -> None:
        """A chain, a graph or a node of it."""
        self._begin("chain", serialized, inputs, more)

    @safely
    def on_llm_start(self, serialized: Any, prompts: Sequence[str], **more: Any) -> None:
        """A model that takes text."""
        self._begin("llm", serialized, {"prompts": list(prompts), **_parameters(more)}, more)

    @safely
    def on_chat_model_start(self, serialized: Any, messages: Sequence[Sequence[Any]], **more: Any) -> None:
        """A model that takes messages."""
        given = [[_message(one) for one in each] for each in messages]
        self._begin("llm", serialized, {"messages": given[0] if len(given) == 1 else given, **_parameters(more)}, more)

    @safely
    def on_tool_start(self, serialized: Any, input_str: str, **more: Any) -> None:
        """A tool."""
        self._begin("tool", serialized, more.get("inputs") or input_str, more)

    @safely
    def on_retriever_start(self, serialized: Any, query: str, **more: Any) -> None:
        """A retriever."""
        self._begin("retriever", serialized, query, more)

    def _begin(self, kind: str, serialized: Any, given: Any, more: Mapping[str, Any]) -> None:
        identity, parent_id = more["run_id"], more.get("parent_run_id")
        parent = self._steps.get(parent_id) if parent_id else None
        run = parent.run if parent is not None else self._run or _reporting.current_run()
        if not run and self._app is not None:
            run = self._runs[identity] = _reporting.run(self._app).start()
            if len(self._runs) > OPEN_STEPS:
                del self._runs[next(iter(self._runs))]
        name = more.get("name") or (serialized or {}).get("name") or kind
        step = run.step(str(name), input=_payload(given), metadata={"kind": kind, **_tags(more)})
        step._parent = parent
        self._steps[identity] = step.start()
        if len(self._steps) > OPEN_STEPS:
            del self._steps[next(iter(self._steps))]

    # --- ends -------------------------------------------------------------------------------------------------

    @safely
    def on_chain_end(self, outputs: Any, **more: Any) -> None:
        """A chain has answered."""
        self._end(more, _payload(outputs), {})

    @safely
    def on_tool_end(self, output: Any, **more: Any) -> None:
        """A tool has answered."""
        self._end(more, _payload(output), {})

    @safely
    def on_retriever_end(self, documents: Sequence[Any], **more: Any) -> None:
        """A retriever has answered."""
        self._end(more, [_payload(one) for one in documents], {})

    @safely
    def on_llm_end(self, response: Any, **more: Any) -> None:
        """A model has answered."""
        answers, about = [], {}
        for generations in response.generations:
            for one in generations:
                message = getattr(one, "message", None)
                answers.append(_message(message) if message is not None else one.text)
                usage = getattr(message, "usage_metadata", None)
                if usage:
                    about["usage"] = {key: value for key, value in usage.items() if isinstance(value, int)}
                model = (getattr(message, "response_metadata", None) or {}).get("model_name")
                if model:
                    about["model"] = model
        usage = (response.llm_output or {}).get("token_usage")
        if usage and "usage" not in about:
            about["usage"] = {key: value for key, value in dict(usage).items() if isinstance(value, int)}
        self._end(more, answers[0] if len(answers) == 1 else answers, about)

    def _end(self, more: Mapping[str, Any], output: Any, about: dict[str, Any]) -> None:
        step = self._steps.pop(more["run_id"], None)
        if step is not None:
            finish(step, output, about)
        run = self._runs.pop(more["run_id"], None)
        if run is not None:
            run.complete()

    @safely
    def on_chain_error(self, error: BaseException, **more: Any) -> None:
        """A chain has failed."""
        self._fail(error, more)

    @safely
    def on_llm_error(self, error: BaseException, **more: Any) -> None:
        """A model has failed."""
        self._fail(error, more)

    @safely
    def on_tool_error(self, error: BaseException, **more: Any) -> None:
        """A tool has failed."""
        self._fail(error, more)

    @safely
    def on_retriever_error(self, error: BaseException, **more: Any) -> None:
        """A retriever has failed."""
        self._fail(error, more)

    def _fail(self, error: BaseException, more: Mapping[str, Any]) -> None:
        step = self._steps.pop(more["run_id"], None)
        if step is not None:
            step._end(error)
        run = self._runs.pop(more["run_id"], None)
        if run is not None:
            run._end(error)


def _message(message: Any) -> Any:
    made = {"role": getattr(message, "type", ""), "content": getattr(message, "content", None)}
    calls = getattr(message, "tool_calls", None)
    if calls:
        made["tool_calls"] = calls
    return made


def _payload(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _payload(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_payload(item) for item in value]
    if hasattr(value, "content") and hasattr(value, "type"):
        return _message(value)
    return plain(value)


def _parameters(more: Mapping[str, Any]) -> dict[str, Any]:
    parameters = more.get("invocation_params") or {}
    return {key: parameters[key] for key in ("model", "model_name", "temperature", "tools") if key in parameters}


def _tags(more: Mapping[str, Any]) -> dict[str, Any]:
    tags = more.get("tags")
    return {"tags": list(tags)} if tags else {}
