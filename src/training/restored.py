"""The state of a training in a checkpoint: checked before it is put back, errors in one line.

``read_checkpoint`` leaves nothing in it that acts; here it gets the form that the optimiser, the
schedule and Lightning's loops will compute with.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.config.untrusted import MAX_NODES, children, values
from src.errors import CheckpointError, ProjectError, first_line, is_out_of_memory
from src.foreign import is_of, shown

COUNT = (int, bool, type(None))  # what Lightning's loops keep
LARGEST = 2**53  # of a count
RESTORES = ("load_state_dict", "checkpoint_connector")  # functions and modules of Lightning
OPEN = (bool, type(None))  # a switch that is off, on, or the library's choice


@contextmanager
def restoring(path: Path | None) -> Iterator[None]:
    """Make one line of what goes wrong while a state is put back. path: of the checkpoint."""
    try:
        yield
    except (ProjectError, OSError, MemoryError):
        raise
    except Exception as error:
        if path is None or is_out_of_memory(error) or not _restores(error):
            raise
        why = f"refused, its state of the training does not fit ({first_line(error)})"
        raise CheckpointError(f"ckpt_path={path}: {why}") from error


def _restores(error: Exception) -> bool:
    """Whether it was raised while a state was put back, and not while waiting for other ranks."""
    frames = traceback.extract_tb(error.__traceback__)
    places = {name for frame in frames for name in (frame.name, Path(frame.filename).stem)}
    return not places.isdisjoint(RESTORES) and "barrier" not in places


def check_state(
    checkpoint: dict[str, Any], optimizer: Optimizer, scheduler: LRScheduler | None
) -> None:
    """Raise ValueError unless the state of a training fits these two and Lightning's loops.

    What a schedule does not know is removed: torch would make it an attribute.
    """
    for name in ("loops", "MixedPrecision"):
        for value in values(checkpoint.get(name, {}), MAX_NODES):
            if not isinstance(value, dict) and not children(value):
                _check_count(value, name)
    (state,) = checkpoint["optimizer_states"]
    _check_groups(state["param_groups"], optimizer)
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for number, held in state["state"].items():
        _check_moments(held, parameters[number])
    schedules = checkpoint.get("lr_schedulers", [])
    if scheduler is not None:
        (theirs,) = schedules
        ours = scheduler.state_dict()
        for name in theirs.keys() - ours.keys():
            del theirs[name]
        _check_form(theirs, {name: ours[name] for name in theirs}, "lr_schedulers")


def _check_count(value: object, name: str) -> None:
    known = is_of(value, (*COUNT, float)) and abs(value or 0) < LARGEST
    if not known and not isinstance(value, list | tuple):
        raise ValueError(f"{name} hold {shown(value)}, counts were expected")


def _check_groups(theirs: list[dict[str, Any]], optimizer: Optimizer) -> None:
    """Settings that both know have the same form."""
    for their, our in zip(theirs, optimizer.state_dict()["param_groups"], strict=True):
        known = {name: their[name] for name in their if name in our}
        _check_form(known, {name: our[name] for name in known}, "optimizer_states")


def _check_moments(held: dict[str, Any], parameter: Tensor) -> None:
    """Moments have the shape of their parameter, or one that spreads to it; counts are numbers."""
    for name, value in held.items():
        if isinstance(value, Tensor):
            fits = value.numel() == 1 or (
                value.is_floating_point() and _spreads(value.shape, parameter.shape)
            )
        else:
            fits = is_of(value, (int, float, type(None)))
        if not fits:
            what = f"{shown(name)} that does not fit its weight"
            raise ValueError(f"optimizer_states hold {what}")


def _spreads(shape: torch.Size, target: torch.Size) -> bool:
    """Whether numbers of this shape are one for each, or for each row or column, of the target."""
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(one in (1, other) for one, other in pairs)


def _check_form(theirs: object, ours: object, name: str) -> None:
    """Raise ValueError unless both are alike: the same names and lengths, numbers for numbers."""
    numbers = is_of(theirs, (int, float)) and is_of(ours, (int, float))
    if numbers or (is_of(theirs, OPEN) and is_of(ours, OPEN)):
        return
    if isinstance(theirs, Tensor) and isinstance(ours, Tensor) and theirs.shape == ours.shape:
        return
    if type(theirs) is not type(ours) or isinstance(theirs, Tensor):
        raise ValueError(f"{name} is {shown(theirs)}, something like {shown(ours)} was expected")
    if isinstance(theirs, dict):
        for key in theirs.keys() | ours.keys():
            _check_form(theirs.get(key), ours.get(key), f"{name}.{key}")
    elif isinstance(theirs, list | tuple):
        if len(theirs) != len(ours):
            raise ValueError(f"{name} holds {len(theirs)} values, {len(ours)} were expected")
        for one, other in zip(theirs, ours, strict=True):
            _check_form(one, other, name)
