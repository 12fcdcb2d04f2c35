"""The thread that sends: opens the stream, reads the answers, waits when there is a reason to.

gRPC takes what is to be sent from a generator that it runs on a thread of its own. Both threads look into the outbox
under one lock; the app's threads never take that lock, they only put into the inbox.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grpc

from ._channel import open_channel
from ._outbox import Entry, Outbox
from ._pb.admin_service_pb2 import GetServerInfoRequest
from ._pb.admin_service_pb2_grpc import AdminServiceStub
from ._pb.ingest_service_pb2 import IngestRequest, IngestResponse
from ._status import Failure, of_error

if TYPE_CHECKING:
    from ._client import Client

log = logging.getLogger("stepwell")

INGEST = "/stepwell.v1.IngestService/Ingest"
#: What arrives shortly after something else is sent with it: fewer switches between threads for the app.
LINGER_SECONDS = 0.002
#: A stream on which nothing happens for this long is ended; the next write opens another one.
IDLE_SECONDS = 5.0
#: How often to look for what processes that are gone have left.
RESCUE_SECONDS = 30.0
#: How long to wait for the limits of the server.
LEARN_SECONDS = 1.0
#: How long at most without a look at anything.
TICK_SECONDS = 1.0
#: After the stream was ended, how long to wait for the answers that are missing.
DRAIN_SECONDS = 15.0


class Writer:
    """One per client."""

    def __init__(self, client: Client, outbox: Outbox) -> None:
        self.client = client
        self.outbox = outbox
        #: Writes from the app's threads. Taken from it under the lock, so that their order stays.
        self.inbox: deque[Entry] = deque()
        #: Wakes whoever waits. A queue in C, which a signal handler may use while its thread is in it.
        self.bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.rung = False
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.channel: grpc.Channel | None = None
        self.call: Any = None
        self.stopping = False
        self.connected = False
        #: Counts streams, so that the generator of an old one notices.
        self.stream = 0
        self.rescue_at = 0.0
        self.learn_at = 0.0
        self.heartbeat_sequence = 0
        self.hurried = False
        self.sending: threading.Thread | None = None
        self.patience: threading.Timer | None = None

    # --- called by others -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Unless it runs already, or the process is about to fork. May fail at the end of the interpreter."""
        thread = self.thread
        if thread is not None and thread.is_alive():
            return
        with self.client.starting() as allowed:
            if allowed and (self.thread is None or not self.thread.is_alive()):
                self.stopping = False
                self.thread = threading.Thread(target=self._run, name="stepwell-writer", daemon=True)
                self.thread.start()

    def put(self, entry: Entry) -> None:
        """From an app's thread: no lock, no wait."""
        self.inbox.append(entry)
        if not self.rung:
            self.rung = True
            self.bell.put(None)

    @property
    def alive(self) -> bool:
        """Whether anything will be sent."""
        return self.thread is not None and self.thread.is_alive()

    def wake(self) -> None:
        """Have it look now."""
        if not self.rung:
            self.rung = True
            self.bell.put(None)

    def hurry(self) -> None:
        """Somebody waits: do not sit out a pause that was made for politeness."""
        self.hurried = True
        self.wake()

    def park(self, timeout: float) -> bool:
        """Ends the thread and everything of gRPC; what is not answered stays in the outbox."""
        self.stopping = True
        call = self.call
        if call is not None:
            call.cancel()
        deadline = time.monotonic() + timeout
        for thread in (self.thread, self.sending):
            while thread is not None and thread is not threading.current_thread() and thread.is_alive():
                self.bell.put(None)
                thread.join(0.01)
                if time.monotonic() > deadline:
                    return False
        self.thread = self.sending = None
        return True

    # --- the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self.stopping:
                try:
                    self._turn()
                except Exception as error:
                    log.debug("the writer met a defect and goes on", exc_info=True)
                    self.client.noticed(error)
                    time.sleep(0.1)
        finally:
            self._close_channel()

    def _turn(self) -> None:
        self._rescue()
        self._receive(timeout=self._until_next())
        if self.stopping:
            return
        self.client.tick(time.monotonic())
        with self.lock:
            self._refill()
            if self.hurried and self.outbox.unsent and not self.outbox.open:
                self.hurried = False
                self.outbox.retry_at = min(self.outbox.retry_at, time.monotonic() + 0.05)
            wanted = self.outbox.wants_stream(time.monotonic())
        if wanted or (self.client.heartbeat_due(time.monotonic()) and time.monotonic() >= self.outbox.retry_at):
            self._stream()

    def _until_next(self) -> float:
        """How long nothing needs to be done unless something comes."""
        now = time.monotonic()
        with self.lock:
            times = [now + TICK_SECONDS, self.outbox.deadline(), self.client.next_tick()]
        return max(0.0, min(at for at in times if at is not None) - now)

    def _receive(self, timeout: float) -> None:
        """Waits until there is something, then takes all there is from the inbox to the outbox."""
        try:
            if not self.inbox and timeout > 0:
                self.bell.get(timeout=timeout)
            if self.inbox and timeout > 0:
                time.sleep(LINGER_SECONDS)
            # All of them at once: nobody waits for one that was rung before this.
            while True:
                self.bell.get_nowait()
        except queue.Empty:
            self.rung = False
        with self.lock:
            while self.inbox:
                self.outbox.offer(self.inbox.popleft())

    def _refill(self) -> None:
        """From the files to the outbox, while there is room. The lock is held."""
        if len(self.outbox.unsent) < 1000:
            for entry in self.client.unread(self.inbox):
                self.outbox.offer(entry)

    def _rescue(self) -> None:
        now = time.monotonic()
        if now >= self.rescue_at:
            self.rescue_at = now + RESCUE_SECONDS
            self.client.take_over()

    # --- one stream -------------------------------------------------------------------------------------------

    def _stream(self) -> None:
        if self.channel is None:
            self.channel = open_channel(self.client.settings.server, self.client.settings.tls)
        self._learn(self.channel)
        method = self.channel.stream_stream(INGEST, request_serializer=None, response_deserializer=IngestResponse.FromString)
        with self.lock:
            self.stream += 1
            self.outbox.stream_opened()
        failure = Failure("UNKNOWN")
        try:
            self.call = method(self._requests(self.stream), metadata=self.client.headers)
            if self.stopping:
                self.call.cancel()
            for response in self.call:
                self._answered(response)
            failure = Failure("OK")
        except grpc.RpcError as error:
            failure = of_error(error)
        except Exception as error:
            failure = Failure("UNKNOWN", text_of(error))
        finally:
            self.call = None
            self.connected = False
            if self.patience is not None:
                self.patience.cancel()
            with self.lock:
                self.stream += 1
                self.outbox.stream_ended(failure, time.monotonic())
            self.wake()
        log.debug("the stream has ended: %s %s", failure.code, failure.message)

    def _learn(self, channel: grpc.Channel) -> None:
        """The limits of the server, once. Until then they are its defaults."""
        now = time.monotonic()
        if now < self.learn_at:
            return
        try:
            reply = AdminServiceStub(channel).GetServerInfo(
                GetServerInfoRequest(), timeout=LEARN_SECONDS, metadata=self.client.headers
            )
        except grpc.RpcError as error:
            self.learn_at = now if of_error(error).code == "UNAVAILABLE" else now + RESCUE_SECONDS
        else:
            self.learn_at = math.inf
            self.client.limits.learn(reply.limits)

    def _answered(self, response: IngestResponse) -> None:
        self.connected = True
        if response.sequence < 0:
            if response.WhichOneof("result") == "heartbeat":
                self.client.heard(response.sequence, response.heartbeat.cancel_requested)
            return
        with self.lock:
            self.outbox.answered(response, time.monotonic())
            full = len(self.outbox.sent) + 1 >= self.outbox.window or self.outbox.draining
        if full:
            self.wake()

    def _requests(self, stream: int) -> Iterator[bytes]:
        """What gRPC sends; runs on its thread. Ends when the stream is to end."""
        self.sending = threading.current_thread()
        last = time.monotonic()
        while True:
            now = time.monotonic()
            with self.lock:
                if self.stream != stream or self.stopping:
                    break
                entry = self.outbox.take(now)
                if entry is None and not self.outbox.draining:
                    self._refill()
                    entry = self.outbox.take(now)
                finished = entry is None and self.outbox.draining
                idle = self.outbox.idle
            if entry is not None:
                last = now
                data = entry.serialized()
                if data is not None:
                    yield data
                else:
                    with self.lock:
                        self.outbox.unreadable(entry)
                continue
            if finished:
                self._drain_timer(stream)
                break
            beat = self._heartbeat(now)
            if beat is not None:
                last = now
                yield beat
                continue
            if idle and now - last > IDLE_SECONDS and not self.client.beats.runs:
                break
            # Here too: with runs open, a stream may last for days.
            self._rescue()
            self._receive(timeout=min(self._until_next_on_stream(now), IDLE_SECONDS))
            self.client.tick(time.monotonic())
        if self.stream != stream:
            # What was taken here may have woken the wrong one.
            self.wake()

    def _until_next_on_stream(self, now: float) -> float:
        with self.lock:
            times = [now + TICK_SECONDS, self.outbox.deadline(), self.client.next_tick()]
        return max(0.0005, min(at for at in times if at is not None) - now)

    def _heartbeat(self, now: float) -> bytes | None:
        """The next one that is due. Not a write of the outbox: it is never sent again."""
        execution = self.client.next_heartbeat(now)
        if execution is None:
            return None
        self.heartbeat_sequence -= 1
        self.client.beaten(self.heartbeat_sequence, execution)
        request = IngestRequest(sequence=self.heartbeat_sequence)
        request.heartbeat.execution_id = execution
        return request.SerializeToString()

    def _drain_timer(self, stream: int) -> None:
        """A stream that was ended and whose answers do not come is given up."""

        def give_up() -> None:
            call = self.call
            if self.stream == stream and call is not None:
                call.cancel()

        self.patience = threading.Timer(DRAIN_SECONDS, give_up)
        self.patience.daemon = True
        self.patience.start()

    def _close_channel(self) -> None:
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close()


def text_of(error: BaseException) -> str:
    """For `last_error`."""
    return f"{type(error).__name__}: {error}"
