"""The state machine alone, with a clock that stands still and a peer that follows a script."""

from __future__ import annotations

from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2

from stepwell._outbox import ATTACHED_SECONDS, LAST_BACKOFF_SECONDS, PAUSE_SECONDS, STRANGE_ENDS, Entry, Outbox
from stepwell._pb.ingest_service_pb2 import IngestRequest, IngestResponse
from stepwell._status import Failure


class Peer:
    """An outbox, and what its owner heard."""

    def __init__(self) -> None:
        self.outbox = Outbox(self, jitter=lambda: 1.0)
        self.done: list[int] = []
        self.gone: list[tuple[int, str]] = []
        self.merges: list[tuple[int, int]] = []
        self.sequence = 0
        self.now = 0.0

    def settled(self, entry: Entry) -> None:
        self.done += [entry.sequence] * (1 + entry.merged)

    def refused_entry(self, entry: Entry, failure: Failure) -> None:
        self.gone.append((entry.sequence, failure.reason or failure.code))

    def given_up(self, entry: Entry) -> None:
        self.gone.append((entry.sequence, "NO_ROOM"))

    def merged(self, earlier: Entry, later: Entry) -> None:
        self.merges.append((earlier.sequence, later.sequence))

    def changed(self, entry: Entry) -> None:
        entry.cost = 0

    def start(self, execution: str = "x", *, attached: bool = False) -> int:
        self.sequence += 1
        request = IngestRequest(sequence=self.sequence)
        request.start_step.execution_id, request.start_step.step_key = execution, "k"
        self.offer(request, execution, "start_step", attached=attached)
        return self.sequence

    def step(self, execution: str = "x", *, attached: bool = False) -> int:
        self.sequence += 1
        request = IngestRequest(sequence=self.sequence)
        request.finish_step.execution_id, request.finish_step.step_key = execution, "k"
        self.offer(request, execution, "finish_step", attached=attached)
        return self.sequence

    def update(self, key: str = "k", **metadata: float) -> int:
        self.sequence += 1
        request = IngestRequest(sequence=self.sequence)
        update = request.update_step
        update.execution_id, update.step_key, update.update_sequence = "x", key, self.sequence
        for name, value in metadata.items():
            update.metadata[name] = value
        self.offer(request, "x", "update_step", update_key=f"x/{key}")
        return self.sequence

    def offer(self, request: IngestRequest, execution: str, kind: str, **more: object) -> None:
        data = request.SerializeToString()
        entry = Entry(request.sequence, data, execution, kind=kind, born=self.now, **more)  # type: ignore[arg-type]
        entry.cost = 100
        self.outbox.offer(entry)

    def open(self) -> None:
        assert self.outbox.wants_stream(self.now)
        self.outbox.stream_opened()

    def take(self) -> list[int]:
        taken = []
        while (entry := self.outbox.take(self.now)) is not None:
            taken.append(entry.sequence)
        return taken

    def ok(self, *sequences: int) -> None:
        for sequence in sequences:
            response = IngestResponse(sequence=sequence)
            response.execution.execution_id = "x"
            self.outbox.answered(response, self.now)

    def fail(self, sequence: int, code: str, reason: str = "", retry: float | None = None) -> None:
        response = IngestResponse(sequence=sequence)
        response.error.code = code_pb2.Code.Value(code)
        if reason:
            response.error.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="stepwell"))
        if retry is not None:
            delay = duration_pb2.Duration(seconds=int(retry), nanos=int(retry % 1 * 1e9))
            response.error.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        self.outbox.answered(response, self.now)

    def end(self, code: str = "OK", reason: str = "", **metadata: str) -> None:
        self.outbox.stream_ended(Failure(code, reason=reason, metadata=metadata), self.now)


def test_what_is_answered_is_forgotten() -> None:
    peer = Peer()
    peer.step(), peer.step()
    peer.open()
    assert peer.take() == [1, 2]
    peer.ok(2, 1)
    assert peer.done == [2, 1]
    assert peer.outbox.idle
    peer.ok(1)
    assert peer.done == [2, 1], "an answer that comes twice means nothing"


def test_a_stream_that_breaks_is_followed_by_one_that_begins_with_the_first_unanswered() -> None:
    peer = Peer()
    for _ in range(4):
        peer.step()
    peer.open()
    peer.take()
    peer.ok(2)
    peer.step()
    peer.end("UNAVAILABLE")
    assert not peer.outbox.wants_stream(peer.now)
    peer.now = 0.1
    peer.open()
    assert peer.take() == [1, 3, 4, 5]


def test_the_back_off_doubles_and_ends_with_an_answer() -> None:
    peer = Peer()
    peer.step()
    waits = []
    for _ in range(8):
        peer.open()
        peer.take()
        peer.end("UNAVAILABLE")
        waits.append(round(peer.outbox.retry_at - peer.now, 3))
        peer.now = peer.outbox.retry_at
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LAST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS]
    peer.step()
    peer.open()
    peer.take()
    peer.ok(1)
    peer.end("UNAVAILABLE")
    assert round(peer.outbox.retry_at - peer.now, 3) == 0.1


def test_a_failure_for_now_ends_the_stream_and_is_sent_again_in_order() -> None:
    peer = Peer()
    for execution in ("x", "x", "y"):
        peer.step(execution)
    peer.open()
    peer.take()
    peer.fail(1, "UNAVAILABLE", "STORE_UNAVAILABLE", retry=2.5)
    peer.step()
    assert peer.take() == [], "nothing more goes on this stream"
    peer.fail(2, "ABORTED", "EARLIER_WRITE_FAILED")
    peer.ok(3)
    peer.end("OK")
    assert peer.done == [3]
    assert not peer.outbox.wants_stream(2.4)
    peer.now = 2.5
    peer.open()
    assert peer.take() == [1, 2, 4]
    assert peer.gone == []


def test_what_is_refused_is_gone_and_holds_nothing_up() -> None:
    peer = Peer()
    peer.step(), peer.step()
    peer.open()
    peer.take()
    peer.fail(1, "ALREADY_EXISTS", "STEP_ALREADY_EXISTS")
    peer.ok(2)
    peer.step()
    assert peer.take() == [3]
    assert (peer.done, peer.gone) == ([2], [(1, "STEP_ALREADY_EXISTS")])


def test_who_is_not_let_in_waits_and_keeps_everything() -> None:
    for code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        peer = Peer()
        peer.step()
        peer.open()
        peer.take()
        peer.end(code)
        assert peer.outbox.retry_at == PAUSE_SECONDS
        peer.now = PAUSE_SECONDS
        peer.open()
        assert peer.take() == [1]
        peer.fail(1, code)
        peer.end("OK")
        assert peer.outbox.retry_at == 2 * PAUSE_SECONDS
        assert peer.gone == []


def test_a_message_that_cannot_be_read_is_the_one_after_the_last_that_could() -> None:
    peer = Peer()
    for _ in range(3):
        peer.step()
    peer.open()
    peer.take()
    peer.end("INVALID_ARGUMENT", "BAD_MESSAGE", last_sequence="1")
    assert peer.gone == [(2, "BAD_MESSAGE")]
    peer.now = peer.outbox.retry_at
    peer.open()
    assert peer.take() == [1, 3]


def test_what_is_attached_waits_for_its_run_and_holds_up_no_other() -> None:
    peer = Peer()
    peer.step("late", attached=True), peer.step("late", attached=True), peer.step("y")
    peer.open()
    peer.take()
    peer.fail(1, "NOT_FOUND", "EXECUTION_NOT_FOUND")
    peer.fail(2, "NOT_FOUND", "EXECUTION_NOT_FOUND")
    peer.ok(3)
    peer.step("late", attached=True), peer.step("y")
    assert peer.take() == [5]
    peer.ok(5)
    # One is tried, the others wait for what becomes of it.
    peer.now = peer.outbox.deadline() or 0.0
    assert peer.take() == [1]
    peer.fail(1, "NOT_FOUND", "EXECUTION_NOT_FOUND")
    assert peer.take() == []
    later = (peer.outbox.deadline() or 0.0) - peer.now
    assert later > 0.5, "longer and longer"
    peer.now += later
    assert peer.take() == [1]
    peer.ok(1)
    assert peer.take() == [2, 4]
    assert peer.gone == []


def test_a_run_that_is_made_between_the_start_of_a_step_and_its_update() -> None:
    peer = Peer()
    peer.start("late", attached=True), peer.step("late", attached=True), peer.step("late", attached=True)
    peer.open()
    assert peer.take() == [1, 2, 3]
    peer.fail(1, "NOT_FOUND", "EXECUTION_NOT_FOUND")
    peer.step("late", attached=True)
    assert peer.take() == []
    # Its maker's write arrives just here.
    peer.fail(2, "NOT_FOUND", "STEP_NOT_FOUND")
    assert peer.take() == [1, 2, 4]
    assert (peer.outbox.parked_writes, peer.outbox.parked_bytes) == (0, 0)
    peer.ok(3, 1, 2, 4)
    assert (peer.gone, sorted(peer.done)) == ([], [1, 2, 3, 4])
    # A step that nobody has begun is none.
    peer.step("late", attached=True)
    assert peer.take() == [5]
    peer.fail(5, "NOT_FOUND", "STEP_NOT_FOUND")
    assert peer.gone == [(5, "STEP_NOT_FOUND")]


def test_what_is_attached_is_given_up_after_a_day() -> None:
    peer = Peer()
    peer.step("never", attached=True)
    peer.open()
    while not peer.gone:
        peer.take()
        peer.fail(1, "NOT_FOUND", "EXECUTION_NOT_FOUND")
        peer.now = peer.outbox.deadline() or peer.now
        assert peer.now < ATTACHED_SECONDS + 120
    assert peer.now > ATTACHED_SECONDS - 120


def test_what_waits_longest_for_its_run_goes_when_there_is_no_room() -> None:
    peer = Peer()
    peer.outbox.parked_max_bytes = 1000
    for number in range(20):
        peer.step(f"never-{number}", attached=True)
    peer.open()
    for sequence in peer.take():
        peer.fail(sequence, "NOT_FOUND", "EXECUTION_NOT_FOUND")
    assert peer.gone == [(sequence, "NO_ROOM") for sequence in range(1, 11)]
    assert (peer.outbox.parked_writes, peer.outbox.parked_bytes) == (10, 1000)
    for _ in range(30):
        peer.step("never-19", attached=True)
    assert peer.outbox.parked_bytes <= 1000
    assert len(peer.gone) + peer.outbox.parked_writes + len(peer.outbox.unsent) == 50
    peer.now = (peer.outbox.deadline() or 0.0) + 100
    for sequence in peer.take():
        peer.ok(sequence)
    peer.take()
    assert (peer.outbox.parked_writes, peer.outbox.parked_bytes) == (0, 0)


def test_metrics_that_get_ahead_of_their_run_wait_for_it() -> None:
    peer = Peer()
    peer.sequence = 2
    create = IngestRequest(sequence=1)
    create.create_execution.execution_id = "x"
    peer.offer(create, "x", "create_execution")
    record = IngestRequest(sequence=2)
    record.record_metrics.execution_id = "x"
    peer.offer(record, "x", "record_metrics")
    peer.open()
    assert peer.take() == [1, 2]
    peer.fail(1, "UNAVAILABLE", "STORE_AWAY", retry=1.0)
    peer.fail(2, "NOT_FOUND", "EXECUTION_NOT_FOUND")
    peer.end("OK")
    assert peer.gone == []
    peer.now = 1.0
    peer.open()
    assert peer.take()[0] == 1
    peer.ok(1)
    peer.take()
    peer.ok(2)
    assert peer.done == [1, 2]


def test_a_run_of_this_process_that_is_not_there_was_deleted() -> None:
    peer = Peer()
    peer.step()
    peer.open()
    peer.take()
    peer.fail(1, "NOT_FOUND", "EXECUTION_NOT_FOUND")
    assert peer.gone == [(1, "EXECUTION_NOT_FOUND")]


def test_updates_of_a_step_that_are_not_sent_become_one() -> None:
    peer = Peer()
    peer.update(a=1, b=1)
    peer.update("other", a=9)
    peer.update(b=2, c=3)
    peer.open()
    first = peer.outbox.take(0.0)
    assert first is not None
    sent = IngestRequest.FromString(first.serialized() or b"").update_step
    assert dict(sent.metadata.fields["b"].ListFields()) != {}
    assert {key: value.number_value for key, value in sent.metadata.fields.items()} == {"a": 1, "b": 2, "c": 3}
    assert sent.update_sequence == 3
    peer.update(d=4)
    assert peer.take() == [2, 4], "what is sent is not merged into"
    peer.ok(1)
    assert peer.done == [1, 1], "both are settled"
    assert peer.merges == [(1, 3)]


def test_an_update_is_never_merged_across_an_end() -> None:
    peer = Peer()
    peer.update(a=1)
    peer.step()
    peer.update(a=2)
    peer.open()
    assert peer.take() == [1, 2, 3]


def test_what_ends_streams_strangely_is_found_and_refused() -> None:
    peer = Peer()
    for _ in range(3):
        peer.step()
    poison = 2
    for _ in range(50):
        if peer.outbox.idle:
            break
        peer.now = max(peer.now, peer.outbox.retry_at)
        peer.open()
        sent = peer.take()
        if poison in sent:
            peer.ok(*sent[: sent.index(poison)]) if len(sent) > 1 else None
            peer.end("INTERNAL")
        else:
            peer.ok(*sent)
            peer.end("OK")
    assert peer.done == [1, 3]
    assert peer.gone == [(2, "INTERNAL")]
    assert STRANGE_ENDS > 1, "once is nobody's fault"
