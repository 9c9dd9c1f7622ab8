"""Read an offline W&B run back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from wandb.proto import wandb_internal_pb2

from src.logger.wandb_file import messages


class OfflineRun(NamedTuple):
    """Names of the logged metrics, the configuration and the summary."""

    history: set[str]
    config: dict[str, Any]
    summary: dict[str, Any]


def read(path: Path) -> OfflineRun:
    """Everything that the run told W&B."""
    run = OfflineRun(set(), {}, {})
    for data in messages(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        run.history.update(_items(record.history.item))
        run.config.update(_items(record.run.config.update) | _items(record.config.update))
        run.summary.update(_items(record.summary.update))
    return run


def _items(items: Any) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
