"""metrics.csv, whole at every moment."""

from __future__ import annotations

import csv
import io
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

from src.files import atomic_path, open_regular


class AtomicCSVLogger(CSVLogger):
    """metrics.csv; a new column replaces the file at once.

    Lightning would empty it first and write it again.
    """

    def __init__(self, save_dir: str, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(save_dir, **settings)
        if rank_zero_only.rank == 0:
            self._experiment = _Writer(self.log_dir)


class _Writer(ExperimentWriter):
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with io.TextIOWrapper(
            open_regular(self.metrics_file_path), encoding="utf-8", newline=""
        ) as file:
            rows = list(csv.DictReader(file))
        with (
            atomic_path(self.metrics_file_path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)
