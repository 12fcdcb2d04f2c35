"""The ready-made integrations, with the real packages and a model server on loopback."""

from __future__ import annotations

import asyncio
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from model_server import ANSWER, TOOL, model_server
from servers import Server, run_app, wait_until

import stepwell as sw
from stepwell import testing
from stepwell.testing import Recorder

QUESTION = [{"role": "user", "content": "what is the answer?"}]


@pytest.fixture(scope="module")
def models() -> Iterator[str]:
    with model_server() as url:
        yield url


@pytest.fixture
def recorded() -> Iterator[Recorder]:
    with testing.recorder() as recorder:
        yield recorder


# --- OpenAI -------------------------------------------------------------------------------------------------------


@pytest.fixture
def openai(models: str) -> Iterator[Any]:
    import openai as package

    from stepwell.integrations import openai as integration

    integration.instrument()
    yield package
    integration.uninstrument()


def openai_client(package: Any, models: str, kind: str = "OpenAI") -> Any:
    return getattr(package, kind)(base_url=f"{models}/v1", api_key="none", max_retries=0)


def assert_answered(recorded: Recorder, name: str, output: Any) -> None:
    step = recorded.run.step(name)
    assert step.status == "completed"
    assert step.output == output
    assert step.metadata["model"] == "m-large"
    assert step.metadata["usage"]["output_tokens"] == 4
    assert recorded.run.metrics[-1]["input_tokens"] == 7


def test_openai_chat(openai: Any, models: str, recorded: Recorder) -> None:
    client = openai_client(openai, models)
    with sw.run("agent"), sw.step("think") as think:
        answer = client.chat.completions.create(model="m-large", messages=QUESTION, temperature=0.5)
        assert answer.choices[0].message.content == ANSWER
    message = {"role": "assistant", "content": ANSWER}
    assert_answered(recorded, "chat m-large", {"message": message, "finish_reason": "stop"})
    step = recorded.run.step("chat m-large")
    assert step.input == {"model": "m-large", "messages": QUESTION, "temperature": 0.5}
    assert step.parent_key == think.key


def test_openai_streamed(openai: Any, models: str, recorded: Recorder) -> None:
    client = openai_client(openai, models)
    with sw.run("agent"):
        stream = client.chat.completions.create(model="m-large", messages=QUESTION, stream=True)
        assert recorded.run.step("chat m-large").status == "running"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert text == ANSWER
    message = {"role": "assistant", "content": ANSWER}
    assert_answered(recorded, "chat m-large", {"message": message, "finish_reason": "stop"})
    with sw.run("stops early"), client.chat.completions.create(model="m-large", messages=QUESTION, stream=True) as stream:
        next(iter(stream))
    assert recorded.run.step("chat m-large").status == "completed"


@pytest.mark.parametrize("stream", [False, True])
def test_openai_tool_calls(openai: Any, models: str, recorded: Recorder, stream: bool) -> None:
    client = openai_client(openai, models)
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    with sw.run("agent"):
        answer = client.chat.completions.create(model="m-large", messages=QUESTION, tools=tools, stream=stream)
        if stream:
            list(answer)
    step = recorded.run.step("chat m-large")
    (call,) = step.output["message"]["tool_calls"]
    import json

    assert call["id"] == "call-1"
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == (TOOL["name"], TOOL["arguments"])
    assert step.output["finish_reason"] == "tool_calls"
    assert step.input["tools"] == tools


def test_openai_responses_and_embeddings(openai: Any, models: str, recorded: Recorder) -> None:
    client = openai_client(openai, models)
    with sw.run("agent"):
        assert client.responses.create(model="m-large", input="what?").output_text == ANSWER
    assert_answered(recorded, "responses m-large", recorded.run.step("responses m-large").output)
    assert recorded.run.step("responses m-large").output["text"] == ANSWER
    with sw.run("streamed"):
        list(client.responses.create(model="m-large", input="what?", stream=True))
    assert recorded.run.step("responses m-large").output["text"] == ANSWER
    with sw.run("embeddings"):
        client.embeddings.create(model="m-embed", input=["a"], encoding_format="float")
    step = recorded.run.step("embeddings m-embed")
    assert step.output == {"vectors": 1, "dimensions": 3}
    assert step.metadata["usage"] == {"input_tokens": 5, "total_tokens": 5}


async def test_openai_asynchronous(openai: Any, models: str, recorded: Recorder) -> None:
    client = openai_client(openai, models, "AsyncOpenAI")
    async with sw.run("agent"):
        await client.chat.completions.create(model="m-large", messages=QUESTION)
    message = {"role": "assistant", "content": ANSWER}
    assert_answered(recorded, "chat m-large", {"message": message, "finish_reason": "stop"})
    async with sw.run("streamed"):
        stream = await client.chat.completions.create(model="m-large", messages=QUESTION, stream=True)
        pieces = [chunk async for chunk in stream]
        assert len(pieces) > 3
    assert_answered(recorded, "chat m-large", {"message": message, "finish_reason": "stop"})


def test_openai_errors_go_on(openai: Any, models: str, recorded: Recorder) -> None:
    client = openai_client(openai, models)
    with pytest.raises(openai.BadRequestError), sw.run("agent"):
        client.chat.completions.create(model="broken", messages=QUESTION)
    step = recorded.run.step("chat broken")
    assert (step.status, step.error_code) == ("failed", "BadRequestError")
    assert recorded.run.status == "failed"
    client.chat.completions.create(model="m-large", messages=QUESTION)
    assert len(recorded.runs) == 1, "outside a run it just works"


def test_openai_one_client_alone(models: str, recorded: Recorder) -> None:
    import openai as package

    from stepwell.integrations import openai as integration

    watched, other = openai_client(package, models), openai_client(package, models)
    integration.instrument(watched)
    integration.instrument(watched)
    with sw.run("agent"):
        other.chat.completions.create(model="m-large", messages=QUESTION)
        watched.chat.completions.create(model="m-large", messages=QUESTION)
    assert len(recorded.run.steps) == 1
    integration.uninstrument()
    with sw.run("agent"):
        watched.chat.completions.create(model="m-large", messages=QUESTION)
    assert recorded.run.steps == []


# --- Anthropic ----------------------------------------------------------------------------------------------------


@pytest.fixture
def anthropic() -> Iterator[Any]:
    import anthropic as package

    from stepwell.integrations import anthropic as integration

    integration.instrument()
    yield package
    integration.uninstrument()


TEXT_OUTPUT = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}], "stop_reason": "end_turn"}
ASK = {"model": "m-large", "max_tokens": 100, "messages": QUESTION}


def test_anthropic_messages(anthropic: Any, models: str, recorded: Recorder) -> None:
    client = anthropic.Anthropic(base_url=models, api_key="none", max_retries=0)
    with sw.run("plain"):
        client.messages.create(**ASK)
    assert_answered(recorded, "messages m-large", TEXT_OUTPUT)
    assert recorded.run.step("messages m-large").input == ASK
    with sw.run("streamed"):
        assert len(list(client.messages.create(**ASK, stream=True))) > 5
    assert_answered(recorded, "messages m-large", TEXT_OUTPUT)
    with sw.run("helper"), client.messages.stream(**ASK) as stream:
        assert "".join(stream.text_stream) == ANSWER
    assert_answered(recorded, "messages m-large", TEXT_OUTPUT)


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_tool_use(anthropic: Any, models: str, recorded: Recorder, stream: bool) -> None:
    client = anthropic.Anthropic(base_url=models, api_key="none", max_retries=0)
    tools = [{"name": "look_up", "description": "d", "input_schema": {"type": "object"}}]
    with sw.run("agent"):
        answer = client.messages.create(**ASK, tools=tools, stream=stream)
        if stream:
            list(answer)
    step = recorded.run.step("messages m-large")
    (block,) = step.output["content"]
    assert (block["name"], block["input"]) == (TOOL["name"], TOOL["arguments"])
    assert step.output["stop_reason"] == "tool_use"


async def test_anthropic_asynchronous(anthropic: Any, models: str, recorded: Recorder) -> None:
    client = anthropic.AsyncAnthropic(base_url=models, api_key="none", max_retries=0)
    async with sw.run("plain"):
        await client.messages.create(**ASK)
    assert_answered(recorded, "messages m-large", TEXT_OUTPUT)
    async with sw.run("helper"), client.messages.stream(**ASK) as stream:
        assert "".join([text async for text in stream.text_stream]) == ANSWER
    assert_answered(recorded, "messages m-large", TEXT_OUTPUT)
    with pytest.raises(anthropic.BadRequestError):
        async with sw.run("broken"):
            await client.messages.create(**{**ASK, "model": "broken"})
    assert recorded.run.step("messages broken").status == "failed"


# --- LangChain ----------------------------------------------------------------------------------------------------


def chain(models: str, model: str = "m-large") -> Any:
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_openai import ChatOpenAI

    prompt = ChatPromptTemplate.from_messages([("user", "what is {thing}?")])
    made = ChatOpenAI(model=model, base_url=f"{models}/v1", api_key="none", max_retries=0, stream_usage=True)
    return prompt | made | StrOutputParser()


def test_langchain(models: str, recorded: Recorder) -> None:
    from stepwell.integrations.langchain import StepwellCallbackHandler

    handler = StepwellCallbackHandler()
    with sw.run("agent"):
        answer = chain(models).invoke({"thing": "the answer"}, config={"callbacks": [handler]})
    assert answer == ANSWER
    steps = {step.name: step for step in recorded.run.steps}
    assert {step.status for step in recorded.run.steps} == {"completed"}
    outer, model = steps["RunnableSequence"], steps["ChatOpenAI"]
    assert model.parent_key == outer.key
    assert outer.input == {"thing": "the answer"}
    assert outer.output == ANSWER
    assert model.input["messages"] == [{"role": "human", "content": "what is the answer?"}]
    assert model.output["content"] == ANSWER
    assert model.metadata["usage"]["output_tokens"] == 4
    assert not handler._steps


def test_langchain_streamed_failing_and_without_a_run(models: str, recorded: Recorder) -> None:
    from stepwell.integrations.langchain import StepwellCallbackHandler

    handler = StepwellCallbackHandler(app="chains")
    config = {"callbacks": [handler]}
    assert "".join(chain(models).stream({"thing": "the answer"}, config=config)) == ANSWER
    assert (recorded.run.app, recorded.run.status) == ("chains", "completed")
    assert recorded.run.step("ChatOpenAI").output["content"] == ANSWER
    with pytest.raises(Exception, match="no such model"):
        chain(models, "broken").invoke({"thing": "x"}, config=config)
    assert (recorded.run.status, recorded.run.step("ChatOpenAI").status) == ("failed", "failed")
    assert len(recorded.runs) == 2


async def test_langchain_asynchronous_with_tools(models: str, recorded: Recorder) -> None:
    from langchain_core.tools import tool

    from stepwell.integrations.langchain import StepwellCallbackHandler

    @tool
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    config = {"callbacks": [StepwellCallbackHandler()]}
    async with sw.run("agent"):
        results = await asyncio.gather(
            *(chain(models).ainvoke({"thing": str(n)}, config=config) for n in range(3)),
            add.ainvoke({"a": 1, "b": 2}, config=config),
        )
    assert results == [ANSWER] * 3 + [3]
    step = recorded.run.step("add")
    assert (step.input, step.status) == ({"a": 1, "b": 2}, "completed")
    assert len([step for step in recorded.run.steps if step.name == "ChatOpenAI"]) == 3


# --- logging ------------------------------------------------------------------------------------------------------


def test_the_log_of_a_run(recorded: Recorder) -> None:
    from stepwell.integrations.logging import RunLogHandler

    logger = logging.getLogger("app.part")
    handler = RunLogHandler(piece_bytes=200)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        logger.info("outside")
        with sw.run("logged") as r:
            for n in range(10):
                logger.info("line %d", n)
            try:
                raise ValueError("x")
            except ValueError:
                logger.exception("failed")
        with sw.run("other"):
            logger.warning("another run")
    finally:
        logger.removeHandler(handler)
    run = next(run for run in recorded.runs if run.id == r.id)
    assert {(a.name, a.type) for a in run.artifacts} == {("log", "log")}
    assert [a.metadata["part"] for a in run.artifacts] == list(range(1, len(run.artifacts) + 1))
    assert len(run.artifacts) > 2
    text = b"".join(a.data for a in run.artifacts).decode()
    assert [f"line {n}" in text for n in range(10)] == [True] * 10
    assert "ValueError: x" in text
    assert "outside" not in text
    assert "another run" not in text


# --- FastAPI ------------------------------------------------------------------------------------------------------


def test_fastapi_goes_on_with_the_run_of_who_calls(recorded: Recorder) -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from stepwell.integrations.fastapi import StepwellMiddleware

    app = FastAPI()
    app.add_middleware(StepwellMiddleware, app_name="the-api")

    @app.get("/items/{item}")
    def read(item: int) -> dict[str, Any]:
        with sw.step("inside"):
            return {"run": sw.current_run().id}

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("no")

    http = TestClient(app, raise_server_exceptions=False)
    with sw.run("caller") as r:
        # Its key is its name, and a header only takes ASCII.
        r.plan("聞く 100 %")
        with r.step("聞く 100 %") as call:
            body = http.get("/items/1?q=2", headers={**r.carrier(), "x-other": "Grüße".encode("latin-1")}).json()  # type: ignore[dict-item]
    assert body == {"run": r.id}
    run = next(run for run in recorded.runs if run.id == r.id)
    request = run.step("GET /items/1")
    assert call.key == "聞く 100 %"
    assert (request.parent_key, request.status, request.output) == (call.key, "completed", {"status": 200})
    assert request.metadata == {"route": "/items/{item}"}
    assert request.input == {"query": "q=2"}
    assert run.step("inside").parent_key == request.key
    assert run.status == "completed"

    assert http.get("/items/2").json() != {"run": r.id}
    assert (recorded.run.app, recorded.run.status) == ("the-api", "completed")
    assert http.get("/broken").status_code == 500
    assert recorded.run.step("GET /broken").status == "failed"


# --- Celery -------------------------------------------------------------------------------------------------------


def test_celery_carries_the_run_to_the_worker(shared: Server, spool: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A real worker in a process of its own, over a broker of files."""
    (tmp_path / "tasks.py").write_text(
        f"""
import stepwell as sw
from celery import Celery
from stepwell.integrations.celery import instrument

instrument(app_name="worker")
app = Celery("tasks", broker="filesystem://", backend="file://{tmp_path}/results")
app.conf.broker_transport_options = {{
    "data_folder_in": "{tmp_path}/queue", "data_folder_out": "{tmp_path}/queue", "control_folder": "{tmp_path}/control",
}}
app.conf.worker_hijack_root_logger = False

@app.task
def add(a, b):
    with sw.step("inside"):
        return a + b

@app.task
def broken():
    raise ValueError("no")
"""
    )
    for folder in ("queue", "results", "control"):
        (tmp_path / folder).mkdir()
    environment = {"PYTHONPATH": f"{tmp_path}:{pathlib.Path(sw.__file__).parents[1]}"}
    out = run_app(
        """
        import subprocess, sys, stepwell as sw, tasks
        worker = subprocess.Popen([sys.executable, "-m", "celery", "-A", "tasks", "worker", "--pool", "prefork",
                                   "--concurrency", "2", "--loglevel", "ERROR", "--without-mingle", "--without-gossip"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with sw.run("sender") as r:
                with r.step("send") as s:
                    results = [tasks.add.delay(n, 1) for n in range(3)]
                    bad = tasks.broken.delay()
                assert [one.get(timeout=40) for one in results] == [1, 2, 3]
                bad.get(timeout=40, propagate=False)
            tasks.add.delay(7, 7).get(timeout=40)
            assert sw.flush(20)
            print(r.id, s.key)
        finally:
            worker.terminate()
            worker.wait(20)
        """,
        shared.address,
        spool,
        **environment,
    )
    id, key = out.split()
    with sw.Api(shared.address) as api:
        wait_until("the worker has reported", lambda: len(api.get(id, steps=True).steps) == 8, 20)
        run = api.get(id, steps=True, payloads=True)
        adds = [step for step in run.steps if step.name == "tasks.add"]
        assert sorted(step.output for step in adds) == [1, 2, 3]
        assert {step.parent_step_key for step in adds} == {key}
        assert {step.parent_step_key for step in run.steps if step.name == "inside"} == {step.key for step in adds}
        broken = run.step("tasks.broken")
        assert broken.status == "failed"
        assert broken.error is not None
        assert broken.error.message == "no"
        assert run.status == "completed"
        assert int(api.count(app="worker")) >= 1
