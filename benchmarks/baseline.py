"""The bits of eight small runs, recorded once: what should change no number is held against them.

python benchmarks/baseline.py record | check [CASE ...]

A case trains 50 steps, samples and evaluates by the command line, and is described by what then
lies in files: hashes of weights, average, optimiser and samples, and the numbers of metrics.json
and evaluation.json that are no times. Its arithmetic is one that x86-64 CPUs of any age and make
have in common (``PORTABLE`` and ``baseline_process.plain_kernels``). Still, bits must be equal only
where versions and CPU flags are the recorded ones; elsewhere counts must, and numbers within a
tolerance. New names are listed and are no failure. Where numbers are meant to change, record again
and say so in the commit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RECORDING = Path(__file__).with_suffix(".json")
Leaf = str | int | float | None
Facts = dict[str, Leaf]

SMALL_CODES = ("network.encoder.channels=16", "model.latent_dim=6")
SMALL_UNET = ("network.channels=16", "sampler.num_steps=5")
MODELS = {"ae": SMALL_CODES, "vae": SMALL_CODES, "beta_vae": SMALL_CODES, "ddpm": SMALL_UNET}
DATASETS = {
    "digits": ("features.num_steps=30",),
    "shapes": ("dataset.image_size=16", "dataset.factor_sizes=[3,2,4,4,4]", "features=pixels"),
}
CASES = {
    f"{model}-{dataset}": (f"model={model}", f"dataset={dataset}", *MODELS[model], *words)
    for model in MODELS
    for dataset, words in DATASETS.items()
}
TRAIN = (
    *("trainer.max_steps=50", "trainer.accelerator=cpu", "trainer.val_check_interval=25"),
    *("dataset.global_batch_size=32", "logger=csv", "callback.grid=null"),
    *("callback.generation.num_samples=32", "callback.generation.test_samples=64"),
    "callback.generation.every=1",
)
EVALUATE = (
    *("num_samples=256", "score.importance_samples=10", "score.timesteps=10", "score.flow_steps=2"),
    *("trainer.accelerator=cpu", "logger=csv"),
)

PORTABLE = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "ATEN_CPU_CAPABILITY": "default",  # torch's own kernels
    "MKL_CBWR": "COMPATIBLE",  # torch's matrix products and LAPACK
    "ONEDNN_MAX_CPU_ISA": "SSE41",  # convolutions, should any be left to it
    "OPENBLAS_CORETYPE": "Nehalem",  # matrix products of numpy and scipy
    "OPENBLAS_L2_SIZE": "512",  # and where they are cut into blocks
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",  # numpy's own
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX,-AVX512F",  # exp and log by FMA
    "CUDA_VISIBLE_DEVICES": "",
    "WANDB_MODE": "offline",
    "PYTHONPATH": str(ROOT),
}
FLAGS = ("avx2", "fma", "avx512f")
DECISIVE = ("architecture", *FLAGS, "libc", "torch", "numpy", "scipy", "scikit-learn")
RELATIVE, ABSOLUTE, OF_ERROR = 1e-2, 5e-3, 0.2  # tolerance where bits cannot be asked for


class Comparison(NamedTuple):
    """What differs, a line each; names that the recording does not have; hashes that differ."""

    failures: list[str]
    news: list[str]
    unequal: list[str]


def recording() -> dict[str, Any]:
    """What was recorded: ``machine`` and the facts of ``cases``."""
    return json.loads(RECORDING.read_text())


def machine() -> Facts:
    """What bits may depend on (``DECISIVE``), and on whose machine that was."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = (line.partition(":") for line in info.partition("\n\n")[0].splitlines())
    cpu = {name.strip(): value.strip() for name, _, value in lines}
    flags = cpu.get("flags", "").split()
    return {
        "architecture": platform.machine(),
        "cpu": cpu.get("model name", platform.processor()),
        "vendor": cpu.get("vendor_id", ""),
        **{flag: flag in flags for flag in FLAGS},
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")},
    }


def foreign(recorded: Facts) -> list[str]:
    """Why bits may differ here from the recorded ones; empty: they may not."""
    here = machine()
    return [
        f"{name} {recorded[name]} was recorded, {here[name]} is here"
        for name in DECISIVE
        if recorded[name] != here[name]
    ]


def rule_of(reasons: Sequence[str]) -> str:
    """The rule by which numbers are compared, in words."""
    if not reasons:
        return "rule: bits are equal (same versions and CPU flags as recorded)"
    return f"rule: numbers agree within tolerance, counts are equal ({'; '.join(reasons)})"


def measure(cases: Sequence[str], folder: Path) -> dict[str, Facts]:
    """Facts of cases, which run one after the other below ``folder`` with portable arithmetic."""
    commands = [command for case in cases for command in _commands(case, folder)]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("baseline_process.py"), folder],
        input=json.dumps({"commands": commands, "runs": cases}),
        cwd=folder,
        env=os.environ | PORTABLE,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-4000:] + done.stderr[-4000:])
    return json.loads((folder / "facts.json").read_text())


def compare(recorded: Facts, found: Facts, bits: bool) -> Comparison:
    """Compare the facts of a case: all to the bit, or else counts exactly and numbers roughly."""
    missing = object()
    failures, unequal = [], []
    for name, value in recorded.items():
        other = found.get(name, missing)
        shown = "nothing" if other is missing else repr(other)
        if repr(value) != repr(other):
            unequal += [name] if name.startswith("hash/") else []
            near = name.startswith("hash/") and other is not missing
            if bits or not (near or _agree(name, recorded, other)):
                failures.append(f"{name}: {value!r} was recorded, {shown} was found")
    return Comparison(failures, sorted(found.keys() - recorded.keys()), unequal)


def _agree(name: str, recorded: Facts, other: object) -> bool:
    """Roughly equal: the error of a number allows for as much; an error itself is rough."""
    value, (number, _, kind) = recorded[name], name.rpartition("/")
    if not (isinstance(value, float) and isinstance(other, float)):
        return False
    error = recorded.get(f"{number}/error") if kind == "value" else None
    allowed = max(ABSOLUTE, error or 0.0)
    relative = OF_ERROR if kind == "error" else RELATIVE
    return math.isclose(value, other, rel_tol=relative, abs_tol=allowed)


def _commands(case: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Entry points and words of a case, whose run directory is ``folder / case``."""
    run, cache = folder / case, f"cache_dir={folder / 'cache'}"
    yield "train", [*CASES[case], *TRAIN, cache, f"hydra.run.dir={run}"]
    if not case.startswith("ae-"):  # it has no prior
        yield "sample", [f"ckpt_path={run}", "num_samples=64", f"output={run / 'drawn'}"]
    yield "evaluate", [f"ckpt_path={run}", cache, *EVALUATE]


def _report(recorded: dict[str, Any], found: dict[str, Facts]) -> int:
    """Print what differs, case by case; return the exit code."""
    reasons = foreign(recorded["machine"])
    failed = 0
    for case, facts in found.items():
        result = compare(recorded["cases"][case], facts, bits=not reasons)
        failed += len(result.failures)
        for line in result.failures:
            print(f"{case}  {line}")
        for name in result.news:
            print(f"{case}  {name}: {facts[name]!r} is new")
        if reasons:
            print(f"{case}  hashes that differ: {', '.join(result.unequal) or 'none'}")
    number = sum(map(len, found.values()))
    print(f"{failed or 'none'} of {number} facts of {len(found)} cases differ; {rule_of(reasons)}")
    return int(failed > 0)


def main() -> None:
    """Record, or check what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("verb", choices=("record", "check"))
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}")
    words = parser.parse_args()
    unknown = set(words.cases) - set(CASES)
    if unknown or (words.cases and words.verb == "record"):
        parser.error(f"cannot {words.verb} {', '.join(sorted(unknown) or words.cases)}")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(words.cases or list(CASES), Path(folder))
    if words.verb == "check":
        sys.exit(_report(recording(), found))
    recorded = {"machine": machine(), "cases": found}
    RECORDING.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
