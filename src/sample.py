"""Draw samples from a trained model: ``python -m src.sample ckpt_path=RUN num_samples=64 sampler=ddim``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.runtime.cli import run
from src.runtime.run import OF_RUN

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig


def sample(cfg: DictConfig) -> Path:
    """Write ``num_samples`` images of the model at ``ckpt_path`` to ``output``; return that directory.

    Writes samples.npz (key ``samples``: uint8, N x H x W x C), grid.png and, with images=true, one PNG per sample.
    Sample i depends on (seed, i) alone, not on batch size or device count.
    """
    import numpy as np
    from PIL import Image

    from src.checkpoint import read_checkpoint, restore
    from src.errors import ConfigError
    from src.files import atomic_path
    from src.model.base import CanSample
    from src.runtime.pictures import grid
    from src.runtime.run import output_directory, run_config
    from src.runtime.sampling import check_sampling, draw

    check_sampling(cfg)
    checkpoint = read_checkpoint(cfg.ckpt_path)
    model = restore(run_config(checkpoint["config"], cfg.overrides).model, checkpoint)
    if not isinstance(model, CanSample):
        raise ConfigError(f"ckpt_path={cfg.ckpt_path}: {type(model).__name__} has no prior, it cannot sample")
    output = output_directory(cfg.output, cfg.overwrite)
    images = draw(model, cfg)
    with atomic_path(output / "samples.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, samples=images.permute(0, 2, 3, 1).numpy())
    pictures = {"grid.png": grid(images[: cfg.grid_images])}
    if cfg.images:
        pictures |= {
            f"images/{i:06d}.png": image.permute(1, 2, 0).squeeze(-1).numpy() for i, image in enumerate(images)
        }
    for name, picture in pictures.items():
        with atomic_path(output / name) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
    print(f"{len(images)} samples in {output}: samples.npz, {', '.join(list(pictures)[:2])}")
    return output


def main() -> None:
    """Entry point of the command line."""
    run(sample, "sample", of_run=OF_RUN)


if __name__ == "__main__":
    main()
