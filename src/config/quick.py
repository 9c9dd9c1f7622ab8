"""A quick start: work that libraries do at every start, though nobody asked for it, is left out."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec

import yaml

PARTS = {  # what a training asks of torchmetrics, and where it lies
    "Metric": "torchmetrics.metric",
    "MetricCollection": "torchmetrics.collections",
    "MeanMetric": "torchmetrics.aggregation",
    "__version__": "torchmetrics.__about__",
}


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no cyclic garbage meanwhile: imports make a million objects, which all stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def quick_start() -> Iterator[None]:
    """Where Hydra is imported and composes: C reads and writes YAML, schemas are not copied.

    Hydra copies the store of its schemas with the list of its sources, ``--help`` 150 times;
    whatever it takes out of the store is a copy anyway. Garbage is not looked for until all is
    composed (``collect_garbage``), or the process ends.
    """
    if yaml.__with_libyaml__:
        yaml.SafeLoader, yaml.Dumper = yaml.CSafeLoader, yaml.CDumper  # OmegaConf derives its own
    gc.unfreeze()  # of an earlier start in this process
    gc.disable()
    try:
        from hydra.core.config_store import ConfigStore

        ConfigStore.__deepcopy__ = lambda store, memo: store
        yield
    finally:
        if gc.isenabled():  # a task was done, and its objects are given back
            gc.unfreeze()
        else:
            collect_garbage()


def collect_garbage() -> None:
    """Look for garbage from now on, and only among what is made from now on."""
    gc.freeze()
    gc.enable()


def split_torchmetrics() -> None:
    """Have torchmetrics imported as a whole only when more than ``PARTS`` is asked of it.

    Lightning imports it for two classes; all its metrics bring SciPy, torchvision and a quarter of
    the time to the first step. Until then the package is there, but its ``__init__`` has not run.
    """
    spec = find_spec("torchmetrics")
    if spec is None or "torchmetrics" in sys.modules:
        return
    package = module_from_spec(spec)

    def find(name: str) -> object:
        if name in PARTS:
            return getattr(import_module(PARTS[name]), name)
        if name.startswith("__"):
            raise AttributeError(f"torchmetrics has no {name}")
        del package.__getattr__
        spec.loader.exec_module(package)
        return getattr(package, name)

    package.__getattr__ = find
    package._logger = logging.getLogger("torchmetrics")  # which its modules import
    sys.modules["torchmetrics"] = package
    try:
        import_module("torchmetrics.utilities")  # before metric: they import each other
    except ImportError:  # another version, which needs the whole
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
            del sys.modules[name]
