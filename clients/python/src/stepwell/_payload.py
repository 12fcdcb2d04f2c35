"""Input, output and metadata on their way into a request; what is too large for it becomes an artifact."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.struct_pb2 import Struct, Value

from ._pb.artifact_service_pb2 import ArtifactDescription
from ._values import fill_struct, fill_value, from_struct, from_value, preview

if TYPE_CHECKING:
    from ._client import Client

#: Bytes of the wire format are a little fewer than those that the server counts.
MARGIN = 0.9


def set_payload(client: Client, execution_id: str, step_key: str, into: Value, value: Any, what: str) -> None:
    """Sets `into`, the input or output of a step. No `into` stays unset."""
    fill_value(into, value, what, client.settings.redact)
    size = into.ByteSize()
    if size > min(client.settings.max_payload_bytes, int(client.limits.payload_bytes * MARGIN)):
        name = f"step-{step_key}-{what}.json"
        _as_artifact(client, execution_id, step_key, name, from_value(into))
        stand_in = preview(into, size, name)
        into.Clear()
        fill_value(into, stand_in)


def set_metadata(
    client: Client, execution_id: str, step_key: str | None, into: Struct, value: Mapping[Any, Any] | None
) -> None:
    """Sets or leaves out `into`, metadata."""
    if not value:
        return
    fill_struct(into, value, "metadata", client.settings.redact)
    if into.ByteSize() > client.limits.metadata_bytes * MARGIN:
        name = f"{f'step-{step_key}' if step_key else 'run'}-metadata-{uuid.uuid4().hex[:8]}.json"
        plain = from_struct(into)
        _as_artifact(client, execution_id, step_key, name, plain)
        into.Clear()
        # What is small stays where it is looked for.
        kept: dict[str, Any] = {}
        for key, item in plain.items():
            if len(str(item)) < 1000 and len(kept) < 100:
                kept[key] = item
        fill_struct(into, {**kept, "metadata_artifact": name})


def _as_artifact(client: Client, execution_id: str, step_key: str | None, name: str, value: Any) -> None:
    description = ArtifactDescription(
        execution_id=execution_id,
        artifact_type="payload",
        artifact_name=name,
        mime_type="application/json",
        upload_id=str(uuid.uuid4()),
    )
    set_step(description, step_key)
    client.upload(description, json.dumps(value, ensure_ascii=False).encode())


def set_step(description: ArtifactDescription, step_key: str | None) -> None:
    """Which step it belongs to."""
    if step_key:
        description.step_key = step_key
