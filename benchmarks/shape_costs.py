"""What a step of experiment=cifar10_ddpm costs, from shapes alone: nothing is computed."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
BATCH = 128  # of the experiment, over all GPUs


class Kernels(TorchDispatchMode):
    """Counts operations that launch a kernel: those that make a new tensor or write into one."""

    VIEWS = (
        "view reshape expand permute transpose t. slice select detach unsqueeze empty squeeze "
        "split chunk unbind"
    )
    VIEWS = tuple(f"{VIEWS} alias as_strided".split())

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        self.count += not str(func).removeprefix("aten.").lstrip("_").startswith(self.VIEWS)
        return func(*args, **(kwargs or {}))


def shape_costs() -> dict[str, float]:
    """Parameters, FLOPs per image, kernels per step and activations of ``cifar10_ddpm``.

    Activations are in bytes per image.
    """
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["experiment=cifar10_ddpm", "dataset.root=x", "run_dir=x"])
    with torch.device("meta"):
        network = instantiate(cfg.network, _convert_="all")
        x, t = torch.zeros(BATCH, 3, 32, 32), torch.ones(BATCH, dtype=torch.long)
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    with Kernels() as kernels:
        with (
            FlopCounterMode(display=False) as forward,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        ):
            output = network(x, t)
        with FlopCounterMode(display=False) as backward:
            output.square().mean().backward()
    activations = sum(size for storage, size in saved.items() if storage not in weights)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "forward": forward.get_total_flops() / BATCH,
        "backward": backward.get_total_flops() / BATCH,
        "kernels": kernels.count,
        "activations": activations / BATCH,
    }
