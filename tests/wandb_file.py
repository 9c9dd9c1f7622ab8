"""Read an offline W&B run back: a log of protobuf records in LevelDB's framing (32 KiB blocks, 7-byte headers)."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER, FULL, FIRST, LAST = 32768, 7, 1, 2, 4


class OfflineRun(NamedTuple):
    """Names of the logged metrics, the configuration and the summary."""

    history: set[str]
    config: dict[str, Any]
    summary: dict[str, Any]


def read(path: Path) -> OfflineRun:
    """Everything that the run told W&B."""
    run = OfflineRun(set(), {}, {})
    for data in _messages(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        run.history.update(_items(record.history.item))
        run.config.update(_items(record.run.config.update) | _items(record.config.update))
        run.summary.update(_items(record.summary.update))
    return run


def _items(items: Any) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _messages(data: bytes) -> Iterator[bytes]:
    position, message = HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # no header begins in the last bytes of a block
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += HEADER
        part = data[position : position + length]
        position += length
        message = part if kind in (FULL, FIRST) else message + part
        if kind in (FULL, LAST):
            yield message
