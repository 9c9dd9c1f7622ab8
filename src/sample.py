"""Draw samples from a trained model: ``python -m src.sample ckpt_path=RUN num_samples=64 sampler=ddim``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.config.cli import run
from src.rundir.directory import OF_RUN

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig


def sample(cfg: DictConfig) -> Path:
    """Write ``num_samples`` images of the model at ``ckpt_path`` to ``output``; return that directory.

    Writes samples.npz (key ``samples``: uint8, N x H x W x C), grid.png and, with images=true, one PNG per sample.
    Sample i depends on (seed, i) alone, not on batch size or number of processes. What was drawn is kept in shards
    until the end: the same command with the same ``output`` goes on where an interrupted one stopped.
    """
    from pathlib import Path

    from pytorch_lightning.utilities import rank_zero_only

    from src.rundir.checkpoint import find_checkpoint, read_checkpoint, restore
    from src.errors import ConfigError
    from src.model.base import CanSample
    from src.rundir.directory import output_directory, run_config
    from src.parallel.sampling import check_sampling, draw, shards_of, write_samples

    check_sampling(cfg)
    path, output = find_checkpoint(cfg.ckpt_path), Path(cfg.output).expanduser()
    checkpoint = read_checkpoint(path)
    node = run_config(checkpoint["config"], cfg.overrides).model
    model = restore(node, checkpoint)
    if not isinstance(model, CanSample):
        raise ConfigError(
            f"ckpt_path={cfg.ckpt_path}: {type(model).__name__} has no prior, it cannot sample"
        )
    shards = shards_of(output, path, node, cfg)
    if rank_zero_only.rank == 0:
        output_directory(output, cfg.overwrite or shards.directory.is_dir())
    images = draw(model, cfg, shards)
    if images is not None:
        pictures = write_samples(images, output, cfg)
        shards.remove()
        print(f"{len(images)} samples in {output}: samples.npz, {', '.join(pictures[:2])}")
    return output


def main() -> None:
    """Entry point of the command line."""
    run(sample, "sample", of_run=OF_RUN)


if __name__ == "__main__":
    main()
