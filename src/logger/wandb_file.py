"""What W&B keeps of a run on the disk: a log of protobuf records in LevelDB's framing (32 KiB blocks)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK, HEADER, FULL, FIRST, LAST = 32768, 7, 1, 2, 4


def last_row(save_dir: Path, run_id: str) -> int:
    """Number of the last history row in the files of a run below ``save_dir``/wandb; -1 where there is none."""
    from wandb.proto.wandb_internal_pb2 import Record

    last = -1
    for path in Path(save_dir, "wandb").glob("*run-*/*.wandb"):
        for message in messages(path.read_bytes()) if path.name == f"run-{run_id}.wandb" else ():
            record = Record.FromString(message)
            if record.HasField("history"):
                last = max(last, record.history.step.num)
    return last


def messages(data: bytes) -> Iterator[bytes]:
    """The records of a file, up to the one that a killed process has not finished."""
    position, message = HEADER, b""
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
