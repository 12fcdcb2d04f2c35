"""What is kept when there is not room for everything: updates go first, then metrics, then payloads.

As long as the disk takes it, starts and ends are always kept. Where there is only memory that has an end too: then no
run or step begins any more, and what has begun may still end.
"""

from __future__ import annotations

import enum

from ._pb.ingest_service_pb2 import IngestRequest

#: How full it is when the first of each kind is left out.
DROP_UPDATES = 0.80
DROP_METRICS = 0.90
DROP_PAYLOADS = 0.95
#: Of memory, where the disk takes nothing.
DROP_STARTS = 1.0
DROP_ENDS = 1.125
#: Of memory: what artifacts may take, and writes of runs that the server does not know yet.
ARTIFACTS_SHARE = 0.5
PARKED_SHARE = 0.25
#: What a write costs in memory beside its bytes, and what it costs in the end as a message, per byte.
ENTRY_BYTES = 500
MESSAGE_FACTOR = 4
#: What an artifact costs in memory beside its bytes.
UPLOAD_BYTES = 800

UPDATES = frozenset({"update_step", "update_execution"})
ENDS = frozenset({"finish_step", "finish_execution"})


class Verdict(enum.Enum):
    """What to do with a write."""

    KEEP = 0
    WITHOUT_PAYLOAD = 1
    DROP = 2


def judge(request: IngestRequest, kind: str, full: float) -> Verdict:
    """What to do with it when this much of the room is taken."""
    if full < DROP_UPDATES:
        return Verdict.KEEP
    if kind == "update_step":
        # An output may be the only one that there will be.
        keep = full < DROP_PAYLOADS and request.update_step.HasField("output")
    elif kind == "update_execution":
        keep = False
    elif kind == "record_metrics":
        keep = full < DROP_METRICS
    else:
        return Verdict.WITHOUT_PAYLOAD if full >= DROP_PAYLOADS and _take_payload_out(request, kind) else Verdict.KEEP
    return Verdict.KEEP if keep else Verdict.DROP


def _take_payload_out(request: IngestRequest, kind: str) -> bool:
    """Whether there was one."""
    found = False
    if kind in ("start_step", "finish_step"):
        body = getattr(request, kind)
        for field in ("input", "output"):
            if field in body.DESCRIPTOR.fields_by_name and body.HasField(field):
                body.ClearField(field)
                found = True
    return found


def fits_in_memory(kind: str, taken: int, size: int, most: int) -> bool:
    """Whether a write that the disk does not take may be kept in memory."""
    return taken + size <= most * (DROP_ENDS if kind in ENDS else DROP_STARTS)
