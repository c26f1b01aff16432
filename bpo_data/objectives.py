"""What ``train.loss`` asks for: which of its terms are TRL's and which ours, and what they need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bpo_data.errors import nearest
from bpo_data.losses import LIST, LOSSES, TOKENS
from bpo_data.losses.entry import Range

if TYPE_CHECKING:
    from bpo_data.trainer import Objective

OF_TRL = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
    *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
"""The losses of TRL 1.16. It notices a name it does not know only at the first update."""
NAMES = (*OF_TRL, *(name for name in LOSSES if name not in OF_TRL))
"""All that ``train.loss`` may be made of."""
OPTIONS_OF_TRL = {
    "use_weighting": Range(words=(True, False)),
    "ld_alpha": Range(0.0, 1.0),
    "f_divergence_type": Range(
        words=("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
    ),
    "f_alpha_divergence_coef": Range(0.0, 100.0),
    "discopop_tau": Range(0.0, 100.0, open=True),
    "sync_ref_model": Range(words=(True, False)),
    "ref_model_mixup_alpha": Range(0.0, 1.0),
    "ref_model_sync_steps": Range(1, 10**9),
}
"""DPOConfig's own variants of its losses: WPO, LD-DPO, f-DPO, DiscoPOP, TR-DPO."""
WITH_DIVERGENCE = (
    *("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"),
)
"""TRL's losses in which a divergence other than the reverse KL means something."""
WITH_SMOOTHING = (
    *("aot", "aot_unpaired"),
    *(name for name, loss in LOSSES.items() if "label_smoothing" in loss.options),
)
"""The losses that look at ``train.label_smoothing``."""


def names(config: Any) -> list[str]:
    """The terms of ``train.loss``."""
    return str(config.loss).split("+")


def split(config: Any) -> tuple[dict[str, float], dict[str, float]]:
    """(ours, TRL's) terms with their weights: TRL's are TRL's unless only ours can do what is
    asked, which is a weight for each pair or a beta for each side."""
    shares = config.loss_weights or [1.0] * len(names(config))
    terms = dict(zip(names(config), shares, strict=True))
    forced = config.weights != "none" or bool(config.beta_rejected)
    theirs = {name: share for name, share in terms.items() if name in OF_TRL and not forced}
    return {name: share for name, share in terms.items() if name not in theirs}, theirs


def problems(config: Any) -> Iterator[str]:
    """One line for each setting of the loss that cannot work."""
    terms = names(config)
    for name in terms:
        if name not in NAMES:
            yield f"train.loss={config.loss}: {name} is no loss.{instead_of(name)}"
    if len(set(terms)) < len(terms):
        yield f"train.loss={config.loss} names a loss twice. Use train.loss_weights."
    if config.loss_weights and len(config.loss_weights) != len(terms):
        yield (
            f"train.loss_weights has {len(config.loss_weights)} numbers for {len(terms)} losses "
            f"in train.loss={config.loss}. Give one for each."
        )
    elif not all(math.isfinite(share) and share >= 0 for share in config.loss_weights):
        yield f"train.loss_weights={config.loss_weights}: a weight is a finite number of 0 or more."
    elif set(terms) <= set(NAMES) and len(set(terms)) == len(terms):
        yield from settled(config)


KNOWN_AS = {
    "dpo": "DPO is sigmoid.",
    "slic": "SLiC is hinge.",
    "rdpo": "rDPO is robust with train.label_smoothing.",
    "cdpo": "cDPO is smoothed with train.label_smoothing.",
    "rpo": "RPO is sigmoid+sft with train.loss_weights.",
    "kto": "KTO learns from single responses: export.formats=[kto] writes them for its trainer.",
}
"""Systems that people know by another name than their loss has."""


def instead_of(name: str) -> str:
    """What to write in place of a loss that there is not."""
    if hint := KNOWN_AS.get(name.lower()):
        return f" {hint}"
    return nearest(name, NAMES) or f" There are {', '.join(sorted(NAMES))}."


def settled(config: Any) -> Iterator[str]:
    """What is wrong with settings whose names are right."""
    ours, theirs = split(config)
    for name in ours:
        if name not in LOSSES:
            asked = (
                f"train.weights={config.weights}"
                if config.weights != "none"
                else f"train.beta_rejected={config.beta_rejected}"
            )
            yield f"{asked} cannot be had with TRL's {name}. Leave one of them out."
        elif config.beta_rejected and not LOSSES[name].two_betas:
            able = ", ".join(one for one, loss in LOSSES.items() if loss.two_betas)
            yield (
                f"train.beta_rejected={config.beta_rejected} means nothing to {name}. "
                f"It does to {able}."
            )
    if "exo_pair" in names(config) and config.label_smoothing == 0:
        yield "train.loss=exo_pair takes a logarithm of train.label_smoothing: set it above 0."
    if config.label_smoothing and not set(WITH_SMOOTHING) & set(names(config)):
        yield (
            f"train.label_smoothing={config.label_smoothing} means nothing to train.loss="
            f"{config.loss}. It does to {', '.join(WITH_SMOOTHING)}."
        )
    if any(loss.measures == LIST for loss in of(ours)):
        yield from with_lists(config, ours)
    yield from of_options(config, ours, theirs)


def of(ours: Mapping[str, float]) -> list[Any]:
    """The entries of our terms."""
    return [LOSSES[name] for name in ours if name in LOSSES]


def with_lists(config: Any, ours: Mapping[str, float]) -> Iterator[str]:
    """What a loss of lists cannot be joined with."""
    for name, loss in zip(ours, of(ours), strict=False):
        if loss.measures != LIST and (loss.may_have or not loss.of_pairs):
            yield f"train.loss={config.loss}: {name} needs columns of pairs, a list has none."
    if config.weights != "none":
        yield f"train.weights={config.weights} is of pairs: train.loss={config.loss} has lists."
    if config.precompute_ref_log_probs or config.reference_from != "policy":
        yield (
            f"train.loss={config.loss} needs the reference of whole lists: leave out "
            f"train.precompute_ref_log_probs and train.reference_from."
        )


def of_options(
    config: Any, ours: Mapping[str, float], theirs: Mapping[str, float]
) -> Iterator[str]:
    """What is wrong with ``train.loss_options``."""
    known: dict[str, Range] = {} if ours else dict(OPTIONS_OF_TRL)
    for loss in of(ours):
        known |= loss.options
    known.pop("label_smoothing", None)
    for name, value in config.loss_options.items():
        if name == "label_smoothing":
            yield "train.loss_options.label_smoothing is a setting of its own: label_smoothing."
        elif name not in known:
            said = ", ".join(known) or "none"
            yield (
                f"train.loss_options.{name} is no option of train.loss={config.loss}."
                f"{nearest(name, known)} It has {said}."
            )
        elif value not in known[name]:
            yield f"train.loss_options.{name}={value}: use {known[name]}."
    for loss in of(ours):
        given = {"label_smoothing": config.label_smoothing} if config.label_smoothing else {}
        yield from loss.problems(given, "train")
    if not ours:
        yield from of_variants(config, list(theirs))


def of_variants(config: Any, theirs: list[str]) -> Iterator[str]:
    """What is wrong with options of TRL's losses, each of them in range."""
    options = config.loss_options
    divergence = options.get("f_divergence_type", "reverse_kl")
    apart = [name for name in theirs if name not in WITH_DIVERGENCE]
    if divergence != "reverse_kl" and apart:
        yield f"train.loss_options.f_divergence_type={divergence} means nothing to {apart[0]}."
    if options.get("use_weighting") and {"aot", "aot_unpaired"} & set(theirs):
        yield "train.loss_options.use_weighting has no use with aot, which sorts a batch."
    alpha, moves = divergence == "alpha_divergence", options.get("sync_ref_model")
    for name, used, by in (
        ("discopop_tau", "discopop" in theirs, "loss=discopop"),
        ("f_alpha_divergence_coef", alpha, "loss_options.f_divergence_type=alpha_divergence"),
        ("ref_model_mixup_alpha", moves, "loss_options.sync_ref_model=true"),
        ("ref_model_sync_steps", moves, "loss_options.sync_ref_model=true"),
    ):
        if name in options and not used:
            yield f"train.loss_options.{name} has no use without train.{by}."
    if "ld_alpha" in options and config.reference_from != "policy":
        yield (
            f"train.loss_options.ld_alpha weighs tokens, and train.reference_from="
            f"{config.reference_from} has sums over them. Use train.reference_from=policy."
        )
    kept = config.precompute_ref_log_probs or config.lora_rank or config.reference_from != "policy"
    if moves and kept:
        yield (
            "train.loss_options.sync_ref_model moves a second model: leave out train.lora_rank, "
            "train.precompute_ref_log_probs and train.reference_from."
        )


def columns_of(config: Any) -> list[str]:
    """Columns that our terms need of the rows; lengths are counted by the trainer."""
    ours, _ = split(config)
    wanted = [name for loss in of(ours) for name in loss.columns if loss.measures != LIST]
    return list(dict.fromkeys(name for name in wanted if name not in TOKENS))


def has_lists(config: Any) -> bool:
    return any(loss.measures == LIST for loss in of(split(config)[0]))


def trl_settings(config: Any) -> dict[str, Any]:
    """What DPOConfig is told of the loss."""
    ours, theirs = split(config)
    options = {} if ours else dict(config.loss_options)
    if "ref_model_sync_steps" in options:
        options["ref_model_sync_steps"] = int(options["ref_model_sync_steps"])
    return {
        # With terms of ours the trainer takes TRL's from the objective.
        "loss_type": ["sigmoid"] if ours else list(theirs),
        "loss_weights": None if ours else (config.loss_weights or None),
        "label_smoothing": config.label_smoothing,
        "beta": config.beta,
        **options,
    }


def objective(config: Any, columns: list[str]) -> Objective | None:
    """The sum to train on, None where all of it is TRL's. ``columns`` are those that rows have."""
    from bpo_data.trainer import Objective

    ours, theirs = split(config)
    if not ours:
        return None
    given = {"label_smoothing": config.label_smoothing} if config.label_smoothing else {}
    return Objective(
        ours,
        theirs,
        given | config.loss_options,
        config.beta,
        config.beta_rejected,
        columns,
    )
