"""Search spaces: overrides in Hydra's sweep syntax as Optuna's distributions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import GridSampler

from src.config.cli import CONF
from src.config.words import names, nearest
from src.errors import ConfigError, first_line

Space = dict[str, BaseDistribution]
NO_SETTINGS = ("hydra", "sweep")  # nodes that are no settings of a run
FORMS = (
    "choice(a, b), range(start, stop, step), interval(low, high), "
    "int(interval(low, high)) or tag(log, ...) of one"
)


class Grid(GridSampler):
    """Every combination once; intervals have none."""

    def after_trial(self, *_: object) -> None:
        """Do nothing: the number of trials ends the study, Optuna's own loop is not in use."""


def parse(config: DictConfig, overrides: Sequence[str]) -> tuple[Space, list[str]]:
    """The search space, and the overrides that are the same for all jobs.

    A typed override wins over ``config.sweep.space``. Raises ConfigError for a key that does not
    exist, an invalid form, an empty space.

    Arguments:
        config: the composed configuration of the driver, which has every key of the space.
        overrides: those typed.
    """
    space: Space = {}
    fixed = []
    written = [f"{key}={text}" for key, text in config.sweep.space.items()]
    for override in _parsed([*written, *overrides]):
        key = override.get_key_element()
        space.pop(key, None)
        if override.is_sweep_override():
            _check_key(config, override)
            space[key] = _distribution(override)
        elif override.input_line in written:
            raise ConfigError(f"sweep.space.{override.input_line}: must be {FORMS}")
        else:
            fixed.append(override.input_line)
    if not space:
        example = "'optimizer.lr=tag(log,interval(1e-4,1e-2))'"
        advice = f"write it in sweep.space, or type it, as in {example}"
        raise ConfigError(f"sweep.study={config.sweep.study}: the search space is empty; {advice}")
    return space, fixed


def _parsed(overrides: Sequence[str]) -> Iterator[Override]:
    for text in overrides:
        try:
            yield OverridesParser.create().parse_override(text)
        except OverrideParseException as error:
            raise ConfigError(f"{text}: {first_line(error)}; must be {FORMS}") from error


def _check_key(config: DictConfig, override: Override) -> None:
    """Raise ConfigError for what would make the jobs fail one by one."""
    groups = [name for name in config.hydra.runtime.choices if not name.startswith("hydra/")]
    settings = names(OmegaConf.to_container(config, resolve=False))
    known = [*groups, *(name for name in settings if name.partition(".")[0] not in NO_SETTINGS)]
    key = override.key_or_group
    if not override.is_add() and key not in known:
        advice = nearest(key, known) or "; --cfg job shows them all"
        why = "the search space names a setting that does not exist"
        raise ConfigError(f"{override.input_line}: {why}{advice}")
    options = sorted(path.stem for path in (CONF / key).glob("*.yaml"))
    if not options or not override.is_choice_sweep():
        return
    for option in override.sweep_string_iterator():
        if option not in (*options, "null"):
            there = f"{nearest(option, options)}; there are {', '.join(options)}"
            why = f"the search space names {key}={option}, which is no option{there}"
            raise ConfigError(f"{override.input_line}: {why}")


def _distribution(override: Override) -> BaseDistribution:
    """The distribution of one override; what is not numbers in order is a choice.

    ``range`` ends before its stop, as everywhere in Hydra.
    """
    sweep = override.value()
    log = "log" in getattr(sweep, "tags", ())
    try:
        if override.is_interval_sweep():
            kind = IntDistribution if isinstance(sweep.start, int) else FloatDistribution
            return kind(sweep.start, sweep.end, log=log)
        values = list(override.sweep_string_iterator())
        if not override.is_range_sweep() or sweep.shuffle or sweep.step <= 0:
            return CategoricalDistribution(values)
        if isinstance(sweep.start, int) and isinstance(sweep.step, int):
            return IntDistribution(int(values[0]), int(values[-1]), step=sweep.step, log=log)
        return FloatDistribution(sweep.start, float(values[-1]), step=sweep.step)
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{override.input_line}: {first_line(error)}; must be {FORMS}") from error


def grid(space: Space) -> dict[str, list[CategoricalChoiceType]]:
    """All values of every setting. Raises ConfigError where there are infinitely many."""
    return {key: _values(key, distribution) for key, distribution in space.items()}


def _values(key: str, distribution: BaseDistribution) -> list[CategoricalChoiceType]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if distribution.step is None or distribution.log:
        advice = "use choice(...) or range(...)"
        raise ConfigError(f"{key}=interval(...): a grid needs values; {advice}")
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [distribution.low + i * distribution.step for i in range(count)]


def size(space: Space) -> int:
    """Number of combinations."""
    return prod(len(values) for values in grid(space).values())
