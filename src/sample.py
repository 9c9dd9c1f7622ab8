"""Draw samples: ``python -m src.sample ckpt_path=RUN num_samples=64 sampler=ddim``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.config.quick import quick_start
from src.rundir.recorded import config_inside
from src.training.interruption import INTERRUPTION

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig
    from torch import Tensor


def sample(cfg: DictConfig) -> Path:
    """Write ``num_samples`` images of the model at ``ckpt_path``; return their directory.

    Writes samples.npz (key ``samples``: uint8, N x H x W x C), grid.png and, with images=true, one
    PNG per sample. Sample i depends on (seed, i) alone, not on batch size or number of processes.
    What was drawn is kept in shards until the end: the same command with the same ``output`` goes
    on where an interrupted one stopped.
    """
    from pathlib import Path

    from src.config.rank import is_first
    from src.errors import ConfigError
    from src.model.base import CanSample
    from src.parallel.sampling import check_sampling, draw, shards_of
    from src.report.progress import shown
    from src.rundir.changes import model_of
    from src.rundir.checkpoint import find_checkpoint, read_checkpoint, restore
    from src.rundir.directory import output_directory

    INTERRUPTION.give(cfg.get("grace_seconds", INTERRUPTION.grace))
    check_sampling(cfg)
    path, output = find_checkpoint(cfg.ckpt_path), Path(cfg.output).expanduser()
    checkpoint = read_checkpoint(path, trusted=cfg.trusted_packages)
    node = model_of(cfg, checkpoint)
    model = restore(node, checkpoint)
    if not isinstance(model, CanSample):
        why = f"{type(model).__name__} has no prior, it cannot sample"
        raise ConfigError(f"ckpt_path={cfg.ckpt_path}: {why}")
    shards = shards_of(output, path, node, cfg)
    if is_first():
        output_directory(output, cfg.overwrite or shards.directory.is_dir())
    images = draw(model, cfg, shards, shown("sampling"))
    if images is not None:
        pictures = _write(images, output, cfg)
        shards.remove()
        print(f"{len(images)} samples in {output}: samples.npz, {', '.join(pictures[:2])}")
    return output


def _write(images: Tensor, output: Path, cfg: DictConfig) -> list[str]:
    """Write samples.npz and the pictures that ``cfg`` asks for; return their names."""
    import numpy as np

    from src.files import atomic_path
    from src.report.pictures import grid, save_png

    channels_last = images.permute(0, 2, 3, 1).numpy()
    with atomic_path(output / "samples.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, samples=channels_last)
    pictures = {"grid.png": grid(images[: cfg.grid_images])}
    if cfg.images:
        for i, image in enumerate(channels_last):
            pictures[f"images/{i:06d}.png"] = image.squeeze(-1) if image.shape[-1] == 1 else image
    for name, picture in pictures.items():
        save_png(picture, output / name)
    return list(pictures)


def main() -> None:
    """Entry point of the command line."""
    with quick_start():
        from src.config.cli import run

        run(sample, "sample", INTERRUPTION.listening, config_inside)


if __name__ == "__main__":
    main()
