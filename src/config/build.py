"""Objects from configuration nodes, with errors that name the setting as the user types it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pydoc import ErrorDuringImport, locate
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from src.config.settings import setting_of
from src.errors import ConfigError, ProjectError, first_line


def build(cfg: DictConfig, path: str, **filled_in: Any) -> Any:  # noqa: ANN401 (what it names)
    """Build the node at ``path``; ``filled_in`` are arguments that only the caller has.

    Errors of constructors keep their class and get the setting's full name; what they reject
    otherwise (ValueError, TypeError) becomes ConfigError.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    try:
        node = OmegaConf.select(cfg, path)
        if OmegaConf.is_config(node):
            node = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as error:
        missing, _ = setting_of(raw, error.full_key or path)
        raise ConfigError(f"{path}: {_advice_on(missing) or first_line(error)}") from error
    except (MissingMandatoryValue, InterpolationToMissingValueError) as error:
        where, _ = setting_of(raw, error.full_key)
        raise ConfigError(f"{where}: must be given, as in {where}=...") from error
    except OmegaConfBaseException as error:
        where, _ = setting_of(raw, error.full_key or path)
        raise ConfigError(f"{where}: {first_line(error)}") from error
    if filled_in:
        node = node | filled_in
    return construct(node, path, functools.partial(_naming_as_typed, raw))


def construct(
    node: Any,  # noqa: ANN401 (any value of a configuration)
    path: str,
    within: Callable[[str], AbstractContextManager] = nullcontext,
) -> Any:  # noqa: ANN401 (what it names)
    """Build a resolved node: its parts in their order, depth first, then what ``_target_`` names.

    ``_partial_: true`` gives a ``functools.partial`` to be called later; what has no ``_target_``
    stays a dictionary, a list or a value.

    Arguments:
        node: plain values.
        path: of the node in the configuration.
        within: path -> context in which the target at this path is called.
    """
    if isinstance(node, list):
        return [construct(part, f"{path}.{index}", within) for index, part in enumerate(node)]
    if not isinstance(node, dict):
        return node
    parts = {
        key: construct(value, f"{path}.{key}", within)
        for key, value in node.items()
        if not str(key).startswith("_")
    }
    if "_target_" not in node:
        return parts
    with within(path):
        _check_form(node)
        target = _located(node["_target_"])
        return functools.partial(target, **parts) if node.get("_partial_") else target(**parts)


def _check_form(node: Mapping[str, Any]) -> None:
    """Raise ValueError where a node says more than what is built, now or when it is called."""
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        raise ValueError(f"_partial_={partial}: must be true or false")
    for key in node:
        if str(key).startswith("_") and key not in ("_target_", "_partial_"):
            raise ValueError(
                f"{key}={node[key]}: there is no such setting; name arguments one by one"
            )


def _located(name: object) -> Callable[..., Any]:
    """The class or function; raises ValueError where there is none of this name."""
    target = name
    if isinstance(name, str):
        try:
            target = locate(name)
        except ErrorDuringImport as error:
            raise ValueError(f"cannot import {name} ({first_line(error)})") from error
        if target is None:
            raise ValueError(f"cannot import {name}: there is no class or function of this name")
    if not callable(target):
        kind = type(target).__name__
        raise ValueError(f"Expected a callable target, got '{target}' of type '{kind}'")
    return target


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Put ``path`` in front of what is refused; ValueError and TypeError become ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise error.under(path) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error


@contextmanager
def _naming_as_typed(raw: Mapping[str, Any], path: str) -> Iterator[None]:
    """Name what a target refuses as it is typed: ``sampler.num_steps`` in ``model.sampler``.

    raw: the unresolved configuration, in which references are followed. Errors that are no matter
    of a setting pass through: other subclasses of ProjectError, OSError, MemoryError.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, ProjectError) and not isinstance(error, ConfigError):
            raise
        message = first_line(error)
        name = re.match(r"([A-Za-z_][\w.]*)(?==)", message)
        setting, _ = setting_of(raw, f"{path}.{name[1]}" if name else path)
        line = f"{setting}{message[name.end() :]}" if name else f"{setting}: {message}"
        raise ConfigError(line) from error


def _advice_on(missing: str) -> str:
    """What to choose where a reference leads to ``missing``, or "".

    Mostly the network does not fit the model.
    """
    if missing.startswith("network."):
        part = missing.split(".")[1]
        options = "network=conv_autoencoder or network=mlp_autoencoder"
        return f"needs a network with an {part}: {options}"
    if missing == "model.latent_dim":
        options = "network=unet, network=unet_small or network=mlp"
        return f"needs a denoiser, not an autoencoder: {options}"
    return ""
