"""The settings of a run as a flat mapping, named and written as on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from src.config.references import is_reference, with_references, without_references
from src.config.words import option_of, typed

OF_ROOT = ("image_folder", "webdataset")  # data sets that are defined by the folder they lie in
OMITTED = {  # names or paths
    # chosen anew for every run
    "seed",
    "run_dir",
    "cache_dir",
    "dirpath",
    "save_dir",
    "default_root_dir",
    "resume",
    "optimized_metric",
    "trusted_packages",
    "note",
    "provenance",
    # of what is shown or kept, not of what is learned
    "logger",
    "callback.grid",
    "callback.checkpoint",
    "callback.lr_monitor",
    "callback.progress",
    "callback.throughput",
    "trainer.log_every_n_steps",
    "trainer.enable_model_summary",
    # copies of other settings
    "shape",
    "dataset.load",
    # how a node is built
    "_target_",
    "_partial_",
}


def run_settings(config: dict[str, Any]) -> dict[str, str]:
    """Flat settings of a recorded configuration, the model first: ``{"schedule": "cosine"}``.

    What refers to another setting is none of its own. Raises ValueError where a reference leads
    nowhere.
    """
    own = _own(with_references(config), without_references(config))
    settings = flat_settings({"model": None} | own)
    if settings.get("dataset") not in OF_ROOT:
        settings.pop("dataset.root", None)
    return settings


def flat_settings(node: dict[str, Any], path: str = "") -> dict[str, str]:
    """Dotted names below ``path`` -> values as typed; an option is the value of its group."""
    return {name: typed(value) for name, value in _flat(node, path)}


def _own(node: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    """The node without its references, all else as in ``full``, where they are followed."""
    return {
        key: _own(value, full[key]) if isinstance(value, dict) else full[key]
        for key, value in node.items()
        if not is_reference(value)
    }


def _flat(
    node: dict[str, Any], path: str = "", above: str | None = None
) -> Iterator[tuple[str, Any]]:
    """Names and values; of a node its option, unless the node above it has the same one."""
    option = None if path in ("", "callback", "evaluation") else option_of(node)
    if option not in (None, above):
        yield path, option
    for key, value in node.items():
        name = f"{path}.{key}".lstrip(".")
        if not OMITTED.isdisjoint((key, name)):
            continue
        if isinstance(value, dict):
            yield from _flat(value, name, option or above)
        else:
            yield name, value
