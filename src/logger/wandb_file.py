"""Reads W&B's file of a run: a log of protobuf records in LevelDB's framing (32 KiB blocks).

It buys: a run that logs offline, is killed and resumed has each step in W&B once. Only this file
knows which rows survived; metrics.csv is flushed at other moments. It costs: the format is private
to W&B and may change with it (then tests/test_loggers.py fails, and a run that resumes stops
logging to W&B with a warning).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32768  # bytes
HEADER = 7  # bytes: checksum, length, kind
FULL, FIRST, LAST = 1, 2, 4  # kinds of parts


def last_row(save_dir: Path, run_id: str) -> int:
    """Number of the last history row in the files of a run below ``save_dir``/wandb; -1: none."""
    from wandb.proto.wandb_internal_pb2 import Record

    last = -1
    for path in Path(save_dir, "wandb").glob("*run-*/*.wandb"):
        if path.name != f"run-{run_id}.wandb":
            continue
        for message in messages(path.read_bytes()):
            record = Record.FromString(message)
            if record.HasField("history"):
                last = max(last, record.history.step.num)
    return last


def messages(data: bytes) -> Iterator[bytes]:
    """The records of a file, up to the one that a killed process has not finished."""
    position = HEADER
    message = b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # no header begins in the last bytes of a block
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += HEADER
        part = data[position : position + length]
        position += length
        if len(part) < length:
            return
        message = part if kind in (FULL, FIRST) else message + part
        if kind in (FULL, LAST):
            yield message
