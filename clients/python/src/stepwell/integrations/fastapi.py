"""Requests of FastAPI, Starlette or any ASGI app.

    app.add_middleware(StepwellMiddleware)             # goes on with the run of who calls, if they sent one
    app.add_middleware(StepwellMiddleware, app_name="my-api")    # else makes a run of each request

Who calls sends the headers of `Run.carrier()`:

    httpx.post(url, headers=stepwell.current_run().carrier())
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .._guard import quietly
from .._reporting import attach, run
from .._run import CARRIED_RUN, NullRun, Run

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class StepwellMiddleware:
    """A request that carries a run becomes a step of it; with `app_name` every other one becomes a run."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], app_name: str | None = None) -> None:
        self.app = app
        self.app_name = app_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request."""
        if scope.get("type") != "http":
            await self.app(scope, receive, send)
            return
        name = f"{scope.get('method', '')} {scope.get('path', '')}"
        carried = quietly(lambda: {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}, {})
        owner: Run | None = quietly(lambda: self._run(carried, name))
        if not owner:
            await self.app(scope, receive, send)
            return
        status: list[int] = []

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message.get("type") == "http.response.start":
                status.append(int(message.get("status", 0)))
            await send(message)

        async with owner as inside, inside.step(name, input={"query": _query(scope)}) as step:
            await self.app(scope, receive, watched)
            route = getattr(scope.get("route"), "path", None)
            if route is not None:
                step.metadata(route=route)
            if status and status[0] >= 500:
                step.fail(f"answered with {status[0]}", code=str(status[0]))
            else:
                step.complete({"status": status[0] if status else None})

    def _run(self, carried: dict[str, str], name: str) -> Run | None:
        if CARRIED_RUN in carried:
            made = attach(carried)
            return None if isinstance(made, NullRun) else made
        return run(self.app_name, metadata={"request": name}) if self.app_name else None


def _query(scope: Scope) -> str:
    raw = scope.get("query_string", b"")
    return raw.decode("latin-1") if isinstance(raw, bytes) else str(raw)
