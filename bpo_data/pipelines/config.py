"""Settings: dataclass defaults < recipe < command line, with every error found before any work."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpo_data import yaml_text
from bpo_data.budget import Budget
from bpo_data.errors import UserError, nearest
from bpo_data.pipelines import checks, named_code
from bpo_data.pipelines.clean import Clean
from bpo_data.pipelines.saying import FORMATS
from bpo_data.pipelines.values import TYPES, typed
from bpo_data.runtime import Runtime
from bpo_data.stages import STAGES
from bpo_data.stages.allocate import AllocateConfig
from bpo_data.stages.augment import AugmentConfig
from bpo_data.stages.cluster import ClusterConfig
from bpo_data.stages.embed import EmbedConfig
from bpo_data.stages.evaluate import EvaluateConfig
from bpo_data.stages.export import ExportConfig
from bpo_data.stages.gradients import GradientsConfig
from bpo_data.stages.load import LoadConfig
from bpo_data.stages.pair import PairConfig
from bpo_data.stages.report import ReportConfig
from bpo_data.stages.rounds import RoundsConfig
from bpo_data.stages.score import ScoreConfig
from bpo_data.stages.select import SelectConfig
from bpo_data.stages.sft import SftConfig
from bpo_data.stages.train import TrainConfig

DEFAULT_RECIPE = "quickstart"
WORDS = ("stage", "recipe", "plan", "format")
"""Words of the command line that are no settings of a section."""
LOOKS = ("status", "clean")
"""What stands in place of stages and makes nothing."""


@dataclass
class Config:
    """All settings: one section a stage, and ``budget``, ``clean`` and ``runtime``."""

    load: LoadConfig = field(default_factory=LoadConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    gradients: GradientsConfig = field(default_factory=GradientsConfig)
    pair: PairConfig = field(default_factory=PairConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    allocate: AllocateConfig = field(default_factory=AllocateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    budget: Budget = field(default_factory=Budget)
    clean: Clean = field(default_factory=Clean)
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        self.runtime.budget = self.budget

    def problems(self) -> Iterator[str]:
        """Everything wrong with the values, sections on their own first, then together."""
        for section in dataclasses.fields(self):
            yield from getattr(self, section.name).problems()
        yield from checks.together(self)


@dataclass(frozen=True)
class Asked:
    """What a command line asks for."""

    config: Config
    stages: tuple[str, ...]
    recipe: str
    plan: bool


def read(arguments: Sequence[str]) -> Asked:
    """The settings of a command line. Raises UserError with one line for each thing wrong."""
    problems: list[str] = []
    words, settings = split_words(arguments, problems)
    recipe = words.get("recipe", DEFAULT_RECIPE)
    values: dict[str, Any] | None = None
    try:
        found = read_recipe(recipe)
        named_code.check(recipe, found, settings)
        values = found
    except UserError as error:
        problems.append(str(error))
    known = values is not None
    values = {**without_stale_options(values or {}, settings), **settings}
    config = build(values, problems)
    stages = wanted(words.get("stage", "all"), problems)
    plan = words.get("plan", "false")
    if plan not in ("true", "false"):
        problems.append(f"plan={plan}: use plan=true or leave it out.")
    form = words.get("format", "text")
    if form not in FORMATS:
        problems.append(f"format={form}: choose {' or '.join(FORMATS)}.")
    if stages == ("clean",):  # it looks at no other setting, and the recipe may want a file
        problems += [*config.clean.problems(), *config.runtime.problems()]
    elif known:  # without its recipe, what the values lack says nothing
        problems += config.problems()
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return Asked(config, stages, recipe, plan == "true")


def format_word(arguments: Sequence[str]) -> str:
    """The format that a command line asks to be answered in, also where the rest is wrong."""
    words, _ = split_words(arguments, [])
    return words.get("format", "text")


def recipe_word(arguments: Sequence[str]) -> str:
    """The recipe that a command line names."""
    words, _ = split_words(arguments, [])
    return words.get("recipe", DEFAULT_RECIPE)


def is_ablation(arguments: Sequence[str]) -> bool:
    """Whether a command line's recipe compares arms."""
    try:
        return any(key.startswith("ablation.") for key in read_recipe(recipe_word(arguments)))
    except UserError:
        return False  # told where settings are read


def without_stale_options(values: dict[str, Any], settings: dict[str, str]) -> dict[str, Any]:
    """A recipe's settings, less the options of a kind that the command line replaces."""
    replaced = {
        key.removesuffix("kind") + "options"
        for key, value in settings.items()
        if key.endswith(".kind") and values.get(key) != value
    }
    return {key: value for key, value in values.items() if key not in replaced}


def split_words(
    arguments: Sequence[str], problems: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """``stage=x`` and the like apart from ``section.key=value``."""
    words: dict[str, str] = {}
    settings: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            problems.append(
                f"{argument} is no setting; write section.key=value, stage=NAME or --help."
            )
        elif key in WORDS:
            words[key] = value
        elif key == "rounds":
            settings["rounds.count"] = value
        elif "." in key:
            settings[key] = value
        else:
            problems.append(
                f"There is no word {key}.{nearest(key, WORDS)} "
                f"There are {', '.join(WORDS)} and settings like select.keep=100."
            )
    return words, settings


def wanted(stages: str, problems: list[str]) -> tuple[str, ...]:
    """``all`` or names with commas."""
    if stages == "all":
        return tuple(STAGES)
    names = [name.strip() for name in stages.split(",")]
    looks = [name for name in names if name in LOOKS]
    if looks and len(names) > 1:
        problems.append(f"stage={stages}: {looks[0]} stands alone.")
    if looks:
        return (looks[0],)
    for name in names:
        if name == "rounds":
            problems.append("stage=rounds: rounds are no stage of their own. Say rounds=2.")
        elif name not in STAGES:
            problems.append(
                f"There is no stage {name}.{nearest(name, STAGES)} "
                f"There are all, {', '.join((*STAGES, *LOOKS))}."
            )
    return tuple(name for name in STAGES if name in names)


def recipe_folder() -> Path:
    """Where the recipes are: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "pipelines"


def recipes() -> list[str]:
    """The names of all recipes that came with the package."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def read_recipe(recipe: str) -> dict[str, Any]:
    """A recipe's settings as ``{"select.keep": 400}``. Raises UserError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else None
    if path is None:
        if recipe not in recipes():
            raise UserError(
                f"There is no recipe {recipe}.{nearest(recipe, recipes())} There are "
                f"{', '.join(recipes())}; or give a path that ends in .yaml."
            )
        path = recipe_folder() / f"{recipe}.yaml"
    try:
        node = OmegaConf.create(yaml_text.read(path))
        for text in yaml_text.resolvers(OmegaConf.to_container(node)):
            raise UserError(
                f"recipe={recipe}: {text} asks for more than another setting of the recipe, and "
                f"recipes read neither the environment nor anything else. Write the value, or "
                f"\\${{ for the letters themselves."
            )
        loaded = OmegaConf.to_container(node, resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"recipe={recipe} cannot be read: {reason}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"recipe={recipe} must be sections of settings, such as `load: {{...}}`.")
    flat: dict[str, Any] = {}
    for section, keys in loaded.items():
        if not isinstance(keys, dict):
            raise UserError(
                f"recipe={recipe}: `{section!s}` must hold settings, such as `{{k: 10}}`."
            )
        flat |= {f"{section!s}.{key!s}": value for key, value in keys.items()}
    return flat


def flat_arm(arm: Mapping[str, Any]) -> dict[str, Any]:
    """``{"allocate": {"kind": "uniform"}, "pair.per_prompt": 2}`` as settings by full name."""
    flat: dict[str, Any] = {}
    for key, value in arm.items():
        nested = isinstance(value, Mapping) and "." not in key
        flat |= {f"{key}.{name}": one for name, one in value.items()} if nested else {key: value}
    return flat


def build(values: Mapping[str, Any], problems: list[str]) -> Config:
    """The settings object; values that do not fit are left out and named in ``problems``."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    node = OmegaConf.structured(Config)
    for key, value in values.items():
        kind = kind_of(key, problems)
        if kind is None:
            continue
        try:
            OmegaConf.update(node, key, typed(value, kind), merge=True, force_add=True)
        except (OmegaConfBaseException, ValueError, KeyError, YAMLError):
            problems.append(f"{key}={value}: give {TYPES.get(kind, 'another type')}.")
    config = OmegaConf.to_object(node)
    assert isinstance(config, Config)
    return config


def kind_of(key: str, problems: list[str]) -> Any:
    """The type of a setting; None, and a problem, where there is no such setting."""
    section, _, rest = key.partition(".")
    sections = typing.get_type_hints(Config)
    if section not in sections:
        problems.append(
            f"There is no section {section} (in {key}).{nearest(section, sections)} "
            f"There are {', '.join(sections)}."
        )
        return None
    kind, path = sections[section], section
    for name in rest.split("."):
        if typing.get_origin(kind) is dict:
            return typing.get_args(kind)[1]
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if name not in hints:
            close = nearest(f"{path}.{name}", [f"{path}.{hint}" for hint in hints])
            problems.append(f"There is no setting {key}.{close} `--help {section}` lists them.")
            return None
        kind, path = required(hints[name]), f"{path}.{name}"
    return typing.get_origin(kind) or kind


def required(kind: Any) -> Any:
    """``float`` for ``float | None``: what a value has to be where there is one."""
    if isinstance(kind, types.UnionType):
        return next(one for one in typing.get_args(kind) if one is not type(None))
    return kind
