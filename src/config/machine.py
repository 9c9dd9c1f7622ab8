"""Whether this machine and this job can give what the trainer's settings ask for."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from typing import NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator

from src.config.rank import is_first
from src.errors import ConfigError, require

log = logging.getLogger(__name__)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # noise is float32: weights must be too
AUTO = "auto"
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
STRATEGIES = ("auto", "ddp", "DDPStrategy")


class Machine(NamedTuple):
    """What a run may use here. gpus: 0 where it is on the CPU."""

    gpus: int
    cores: int

    @classmethod
    def of(cls, accelerator: str) -> Machine:
        """This machine under ``trainer.accelerator``; raises ConfigError where it has no GPU."""
        gpus = CUDAAccelerator.auto_device_count() or int(MPSAccelerator.is_available())
        if accelerator not in ("auto", "cpu") and not gpus:
            why = "this machine has no GPU; use trainer=cpu, or trainer=default for what there is"
            raise ConfigError(f"trainer.accelerator={accelerator}: {why}")
        return cls(0 if accelerator == "cpu" else gpus, os.cpu_count() or 1)

    @property
    def most_devices(self) -> int:
        """Two processes on one core still show whether a run works on several."""
        return self.gpus or max(2, self.cores)

    @property
    def has_bf16(self) -> bool:
        """Whether its device calculates in bfloat16 itself, which is fast then."""
        if self.gpus:
            has_cuda = torch.cuda.is_available()
            return has_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.backends.mkldnn.is_available() and _cpu_has_bf16()

    def __str__(self) -> str:
        return f"{self.gpus} GPUs" if self.gpus else f"{self.cores} CPU cores"


def _cpu_has_bf16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def check_machine(node: DictConfig) -> int:
    """Raise ConfigError where ``cfg.trainer`` asks for what is unknown, or not there.

    Returns the number of processes that share the work.
    """
    known = {"precision": (*PRECISIONS, AUTO), "accelerator": ACCELERATORS}
    for key, values in known.items():
        allowed = f"must be one of {', '.join(values)}"
        require(node[key] in values, f"trainer.{key}", node[key], allowed)
    machine = Machine.of(node.accelerator)
    _check_precision(node, machine)
    _check_compile(node, machine)
    nodes = node.num_nodes
    is_count = isinstance(nodes, int) and nodes >= 1
    require(is_count, "trainer.num_nodes", nodes, "must be an integer >= 1")
    devices = _num_devices(node.devices, machine)
    _check_job(devices, nodes)
    _check_strategy(node)
    return devices * nodes


def _check_compile(node: DictConfig, machine: Machine) -> None:
    asked = node.get("compile", False)  # older runs do not name it
    require(isinstance(asked, bool), "trainer.compile", asked, "must be true or false")
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    possible = not asked or machine.gpus > 0 or shutil.which(compiler) is not None
    advice = f"needs a C++ compiler, and {compiler} is not there; install it, or name one in CXX"
    require(possible, "trainer.compile", asked, advice)


def settle_precision(node: DictConfig, recorded: str | None = None) -> None:
    """In the place of trainer.precision=auto put what is fast on this machine.

    recorded: of the run that goes on, which stays with it. Raises ConfigError where this machine
    does not have it.
    """
    if node.precision != AUTO:
        return
    machine = Machine.of(node.accelerator)
    if recorded in PRECISIONS:
        node.precision = recorded
    else:
        node.precision = "bf16-mixed" if machine.has_bf16 else "32-true"
    _check_precision(node, machine)


def warn_if_slow(node: DictConfig) -> None:
    """Say so, on rank 0, where ``cfg.trainer`` asks a CPU for bfloat16 that it has to imitate."""
    machine = Machine.of(node.accelerator)
    is_slow = node.precision == "bf16-mixed" and not machine.gpus and not machine.has_bf16
    if is_slow and is_first():
        why = "this CPU has no instructions for bfloat16, and steps take 6 to 13 times as long"
        log.warning("trainer.precision=bf16-mixed: %s; use trainer.precision=32-true", why)


def _check_precision(node: DictConfig, machine: Machine) -> None:
    why = "needs a GPU, and this run is on the CPU"
    advice = "use trainer.precision=auto, which takes bf16-mixed where it is fast, else 32-true"
    is_possible = machine.gpus > 0 or node.precision != "16-mixed"
    require(is_possible, "trainer.precision", node.precision, f"{why}; {advice}")


def _num_devices(devices: object, machine: Machine) -> int:
    """Devices on each node; of GPUs Lightning also takes lists, as in [0,2] or "0,2"."""
    if isinstance(devices, int) or not machine.gpus:
        fits = isinstance(devices, int) and 1 <= devices <= machine.most_devices
        allowed = f"must be auto or from 1 to {machine.most_devices}: this machine has {machine}"
        require(fits or devices == "auto", "trainer.devices", devices, allowed)
    if devices == "auto":
        return machine.gpus or 1
    return devices if isinstance(devices, int) else len(CUDAAccelerator.parse_devices(devices))


def _check_strategy(node: DictConfig) -> None:
    named = isinstance(node.strategy, str)
    strategy = node.strategy if named else OmegaConf.select(node, "strategy._target_")
    why = "every rank holds all weights, see docs/scaling.md"
    allowed = f"must be one of {', '.join(STRATEGIES)}: {why}"
    is_known = str(strategy).rpartition(".")[2] in STRATEGIES
    require(is_known, "trainer.strategy", strategy, allowed)
    seconds = OmegaConf.select(node, "strategy.timeout.seconds", default=1)
    fits = isinstance(seconds, int | float) and 0 < seconds <= 1e6
    allowed = "must be a number of seconds from > 0 to 1e6"
    require(fits, "trainer.strategy.timeout.seconds", seconds, allowed)


def _check_job(devices: int, nodes: int) -> None:
    """Raise ConfigError unless this job has as many processes as the settings say.

    Each would be a run of its own.
    """
    launcher, world, here = _processes(devices, nodes)
    if (world, here) != (devices * nodes, devices):
        found = f"{launcher} has started {world} processes, {here} on a node"
        settings = f"trainer.devices={here} trainer.num_nodes={world // here}"
        asked = f"trainer.devices={devices} and trainer.num_nodes={nodes}"
        raise ConfigError(f"{asked}: {found}; give trainer=ddp {settings}")
    alone = launcher is None and nodes > 1 and "MASTER_ADDR" not in os.environ
    why = "this process was started alone"
    advice = f"{why}; use torchrun or srun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK"
    require(not alone, "trainer.num_nodes", nodes, advice)
    is_job = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    advice = (
        "jobs of --multirun with several devices must be processes of their own; use launcher=local"
    )
    require(not is_job or world == 1, "trainer.devices", devices, advice)


def _processes(devices: int, nodes: int) -> tuple[str | None, int, int]:
    """Who has started the processes of this job, how many there are, and how many on this node.

    Where nobody has, Lightning starts what the settings say.
    """
    job = os.environ
    if TorchElasticEnvironment.detect():
        return "torchrun", int(job["WORLD_SIZE"]), int(job["LOCAL_WORLD_SIZE"])
    if "SLURM_NTASKS" not in job or SLURMEnvironment.job_name() in ("bash", "interactive"):
        return None, devices * nodes, devices
    world = int(job["SLURM_NTASKS"])
    allowed = "tasks of a Slurm job are not placed; give --ntasks-per-node instead"
    require(world == 1 or "SLURM_NTASKS_PER_NODE" in job, "--ntasks", world, allowed)
    return "Slurm", world, int(job.get("SLURM_NTASKS_PER_NODE", 1))
