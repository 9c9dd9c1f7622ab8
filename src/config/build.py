"""Objects from configuration nodes, with errors that name the setting as the user types it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from src.errors import ConfigError, ProjectError, first_line
from src.config.settings import setting_of


def build(cfg: DictConfig, path: str, **filled_in: Any) -> Any:  # noqa: ANN401 (whatever the node's target returns)
    """Instantiate the node at ``path``; ``filled_in`` are arguments that only the caller has.

    Errors of constructors keep their class and get the setting's full name; what they reject otherwise (ValueError,
    TypeError) becomes ConfigError.
    """
    node = OmegaConf.select(cfg, path)
    raw = OmegaConf.to_container(
        cfg, resolve=False
    )  # before: instantiate resolves what the node refers to in place
    try:
        return hydra.utils.instantiate(node, _convert_="all", **filled_in)
    except InterpolationKeyError as error:
        raise ConfigError(f"{path}: {_missing_part(str(error))}") from error
    except (InstantiationException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        found = re.search(r"full_key: (\S+)", str(error))
        where = found[1] if found else path
        message = first_line(cause)
        name = re.match(r"([A-Za-z_][\w.]*)=", message)
        setting, _ = setting_of(raw, f"{where}.{name[1]}" if name else where)
        line = f"{setting}{message[len(name[1]) :]}" if name else f"{setting}: {message}"
        if isinstance(cause, ProjectError) and not isinstance(cause, ConfigError):
            raise type(cause)(message) from error
        if isinstance(cause, OSError | MemoryError):
            raise cause from error
        raise ConfigError(line) from error


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Put ``path`` in front of what a constructor refuses; ValueError and TypeError become ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise error.under(path) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error


def _missing_part(text: str) -> str:
    """Explain an interpolation that leads nowhere: mostly a network that does not belong to the model."""
    key = re.search(r"Interpolation key '([^']+)'", text)
    if key and key[1].startswith("network."):
        return f"needs a network with an {key[1].split('.')[1]}: network=conv_autoencoder or network=mlp_autoencoder"
    if key and key[1] == "model.latent_dim":
        return (
            "needs a denoiser, not an autoencoder: network=unet, network=unet_small or network=mlp"
        )
    return text.splitlines()[0]
