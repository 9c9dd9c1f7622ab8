"""The process of benchmarks/baseline.py in which its commands run and their files are read.

python benchmarks/baseline_process.py FOLDER < PLAN

PLAN: {"commands": [[entry, words], ...], "runs": [directory in FOLDER, ...]}. FOLDER/facts.json is
written. It knows the program by its command line and its files only.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401
import numpy as np
import pytorch_lightning  # noqa: F401
import sklearn.svm  # noqa: F401
import torch

Leaf = str | int | float | None
ATEN = torch.library.Library("aten", "IMPL")  # lives as long as what it replaces
# beside those that begin with "time/"
TIMES = ("seconds", "train_seconds", "step_seconds", "images_per_second", "peak_memory_gib")


def plain_kernels() -> None:
    """Take kernels out of use whose bits depend on the CPU whatever the environment says.

    Convolutions of oneDNN and NNPACK: matrix products remain. Square roots of MKL's vector library,
    which begin with the CPU's own estimate of 1 / sqrt(x): those of IEEE 754 take their place.
    """
    torch.backends.mkldnn.set_flags(False)
    torch.backends.nnpack.set_flags(False)
    ATEN.impl("sqrt", lambda x: _sqrt(x, torch.empty_like(x)), "CPU")
    ATEN.impl("sqrt_", lambda x: _sqrt(x, x), "CPU")
    ATEN.impl("sqrt.out", lambda x, *, out: _sqrt(x, out), "CPU")


def _sqrt(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    np.sqrt(x.detach().numpy(), out=out.detach().numpy())
    return out


def run(entry: str, words: Sequence[str]) -> None:
    """``python -m src.<entry> WORDS`` in a fork: it need not import torch, and leaves nothing."""
    process = multiprocessing.get_context("fork").Process(target=_enter, args=(entry, words))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"src.{entry} {' '.join(words)} ended with {process.exitcode}")


def _enter(entry: str, words: Sequence[str]) -> None:
    sys.argv = [f"src/{entry}.py", *words]
    runpy.run_module(f"src.{entry}", run_name="__main__", alter_sys=True)


def facts_of(run: Path) -> Iterator[tuple[str, Leaf]]:
    """Names and values of everything that a run has left behind."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    parts = {"model": "state_dict", "average": "ema", "optimiser": "optimizer_states"}
    for name, key in parts.items():
        if key in checkpoint:
            yield f"hash/{name}", _sha256(checkpoint[key])
    if (run / "drawn").is_dir():
        with np.load(run / "drawn" / "samples.npz") as arrays:
            yield "hash/samples", _sha256(torch.from_numpy(arrays["samples"]))
    for name, value in json.loads((run / "metrics.json").read_text()).items():
        if name not in TIMES and not name.startswith("time/"):
            yield f"metrics/{name}", value
    card = json.loads((run / "evaluation.json").read_text())
    for name, details in card["details"].items():
        yield f"card/{name}/value", card[name]
        yield f"card/{name}/error", details["error"]
        for key, value in details["context"].items():
            if isinstance(value, int | float) and not isinstance(value, bool) and key != "seed":
                yield f"card/{name}/{key}", value


def _sha256(value: Any) -> str:  # noqa: ANN401
    """Hash of nested dicts and lists: sorted names, and of tensors types, shapes and raw bytes."""
    state = hashlib.sha256()
    for path, leaf in _leaves(value, ""):
        if hasattr(leaf, "numpy"):
            state.update(f"{path} {leaf.dtype} {tuple(leaf.shape)}\n".encode())
            state.update(leaf.contiguous().numpy().tobytes())
        else:
            state.update(f"{path} {leaf!r}\n".encode())
    return state.hexdigest()


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _leaves(value[key], f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}/{index}")
    else:
        yield path, value


def main() -> None:
    """Run everything before a tensor is touched here: forks then behave like fresh processes."""
    folder, plan = Path(sys.argv[1]), json.load(sys.stdin)
    plain_kernels()
    for entry, words in plan["commands"]:
        run(entry, words)
    facts = {name: dict(sorted(facts_of(folder / name))) for name in plan["runs"]}
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
