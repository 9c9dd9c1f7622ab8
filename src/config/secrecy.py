"""Secrets stay in the environment: settings are recorded in files, checkpoints and at W&B."""

from __future__ import annotations

import os
import re

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError
from omegaconf.resolvers import oc

from src.errors import ConfigError

VARIABLE = re.compile("KEY|TOKEN|SECRET|PASS", re.IGNORECASE)
SETTING = re.compile(
    r"(^|_)((api|access|secret|private)?key|token|secret|pass(word|wd|phrase)?|credentials?)$",
    re.IGNORECASE,
)
SHORTEST = 8  # characters; values like "true" say nothing


def refuse_secrets(words: list[str]) -> None:
    """Raise ConfigError where an override sets a secret, by its name or by its value."""
    for word in words:
        key, _, value = word.partition("=")
        # the names in {name: value}
        inner = re.findall(r"(\w+)['\"]?\s*:", value) if "{" in value else []
        for name in (*re.split(r"[.@/]", key.lstrip("+~")), *inner):
            if SETTING.search(name):
                advice = (
                    "set it in the environment, where W&B and others look for it (WANDB_API_KEY)"
                )
                raise ConfigError(
                    f"{key}=...: {name!r} looks like a secret, and overrides are recorded; {advice}"
                )
        for variable, secret in os.environ.items():
            if _is_secret(variable, secret) and secret in word:
                name = key.replace(secret, "...")
                raise ConfigError(f"{name}=...: holds the value of ${variable}; leave it out")


def _is_secret(variable: str, value: str) -> bool:
    """Whether an environment variable holds one; a path to a key is none."""
    return bool(VARIABLE.search(variable)) and len(value) >= SHORTEST and not os.path.isabs(value)


def _environment(variable: str, *default: str | None) -> str | None:
    """``${oc.env:NAME}``, for names that are no secret."""
    if VARIABLE.search(variable):
        raise InterpolationResolutionError(
            f"${{oc.env:{variable}}} looks like a secret, and configurations are recorded"
        )
    return oc.env(variable, *default)


OmegaConf.register_new_resolver("oc.env", _environment, replace=True)
