"""The rows that a preference trainer is given, with the columns that a loss asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bpo_data import objectives
from bpo_data.artifacts import Artifact
from bpo_data.batches import ends
from bpo_data.components import criteria
from bpo_data.errors import UserError, nearest
from bpo_data.policy import Policy, encode, plain_messages
from bpo_data.tables import lookup

SIDES = ("chosen", "rejected")
MADE_BY = {
    "win_rate": "Its judge's points make them: set score.kind.",
    "shift": "Name the second reference in gradients.reference.",
}
P_CHOSEN = "p_chosen"
REFERENCE = {"ref_chosen_logps", "ref_rejected_logps"}
"""Columns by which a dataset may bring what a reference said of it, in nats."""


def columns_for(
    config: Any, pairs: pa.Table, inputs: Mapping[str, Artifact], cut: int
) -> dict[str, np.ndarray]:
    """What each pair has beside its texts, as the settings of ``train`` ask: name -> (n,) numbers.

    ``cut`` is how many pairs the trainer will cut. Raises UserError where something is missing.
    """
    found = extra_columns(objectives.columns_of(config), pairs, inputs)
    if "smoothed" in objectives.names(config):
        found |= opinions_of(pairs, inputs, config.label_smoothing)
    if config.weights != "none":
        found["weight"] = weights_of(config.weights, pairs, inputs)
    if config.reference_from == "gradients":
        if cut:
            raise UserError(
                f"train.reference_from=gradients was measured on whole responses, and "
                f"train.max_length cuts {cut:,} pairs. Raise it, or use policy."
            )
        return found | reference_columns(pairs, inputs)
    options = config.loss_options
    apart = options.get("sync_ref_model") or "ld_alpha" in options or objectives.has_lists(config)
    if set(pairs.column_names) >= REFERENCE and not cut and not apart:
        found |= {name: finite(name, numbers(pairs[name])) for name in sorted(REFERENCE)}
    return found


def opinions_of(
    pairs: pa.Table, inputs: Mapping[str, Artifact], label_smoothing: float
) -> dict[str, np.ndarray]:
    """The column ``p_chosen``; where it is empty, 1 - ``label_smoothing``; none if all of it is.

    Raises UserError where it is empty and ``label_smoothing`` is 0.
    """
    column = own_column(P_CHOSEN, pairs, inputs)
    if column is None or np.isnan(column).all():
        if label_smoothing:
            return {}
        raise UserError(
            f"train.loss=smoothed finds no column {P_CHOSEN} of judges in the dataset. Set "
            f"train.label_smoothing above 0, or use train.loss=sigmoid."
        )
    empty = int(np.isnan(column).sum())
    if empty and not label_smoothing:
        raise UserError(
            f"train.loss=smoothed: {empty:,} of {len(column):,} pairs have no {P_CHOSEN}, as "
            f"judges have fewer than two opinions of them. Set train.label_smoothing above 0 for "
            f"these, or pair.max_uncertainty below 1 to leave them out."
        )
    return {P_CHOSEN: finite(P_CHOSEN, np.where(np.isnan(column), 1 - label_smoothing, column))}


def extra_columns(
    names: list[str], pairs: pa.Table, inputs: Mapping[str, Artifact]
) -> dict[str, np.ndarray]:
    """(n,) float64 of each name, for n pairs of the dataset.

    A column of the dataset, or of the pairs table, is taken as it is. Without one, win rates come
    from the scores and shifts from the gradients stage's two log-probabilities. Raises UserError
    naming the setting that makes what is missing.
    """
    found = {}
    for name in names:
        column = own_column(name, pairs, inputs)
        if column is None:
            column = made(name, pairs, inputs)
        found[name] = finite(name, column)
    return found


def finite(name: str, column: np.ndarray) -> np.ndarray:
    """The column as it is. Raises UserError where a value is empty or endless."""
    if not np.isfinite(column).all():
        raise UserError(f"train.loss: column {name} of the dataset has empty or endless values.")
    return column


def own_column(name: str, pairs: pa.Table, inputs: Mapping[str, Artifact]) -> np.ndarray | None:
    """The column as the dataset or the pairs table has it, (n,) float64; None if neither does."""
    if name in pairs.column_names:
        return numbers(pairs[name])
    if "pairs" not in inputs or "pair_id" not in pairs.column_names:
        return None
    table = inputs["pairs"].table()
    if name not in table.column_names:
        return None
    return numbers(lookup(table.select(["pair_id", name]), "pair_id", pairs["pair_id"])[name])


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) float64, NaN where there is none."""
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def made(name: str, pairs: pa.Table, inputs: Mapping[str, Artifact]) -> np.ndarray:
    """A column that no table has, worked out. Raises UserError where it cannot be."""
    kind, _, side = name.rpartition("_")
    if kind == "win_rate" and "scores" in inputs:
        weights = inputs["pairs"].manifest.get("settings", {}).get("criteria", {})
        scores = inputs["scores"].table(criteria.needed(weights))
        rates = win_rates(criteria.with_points(scores, weights))
        return np.array([rates[one] for one in ids_of(side, pairs, inputs)])
    if kind == "shift" and "gradients" in inputs and reference_of(inputs["gradients"]):
        table = measured(inputs["gradients"], ids_of(side, pairs, inputs))
        return numbers(table["reference_log_prob"]) - numbers(table["log_prob"])
    raise UserError(
        f"train.loss needs the column {name}, which the dataset does not have. {MADE_BY[kind]}"
    )


def reference_of(gradients: Artifact) -> str:
    """What was measured as the reference: ``gradients.reference``, or that of an online round;
    empty where it was the policy itself."""
    named = str(gradients.manifest.get("settings", {}).get("reference", ""))
    return named or ("rounds" if "reference" in gradients.manifest.get("inputs", {}) else "")


def ids_of(side: str, pairs: pa.Table, inputs: Mapping[str, Artifact]) -> list[str]:
    """Response ids of one side of the dataset's pairs."""
    table = inputs["pairs"].table(["pair_id", f"{side}_id"])
    ids: list[str] = lookup(table, "pair_id", pairs["pair_id"])[f"{side}_id"].to_pylist()
    return ids


def measured(gradients: Artifact, ids: list[str]) -> pa.Table:
    """Log-probabilities of responses at the policy and its reference, in nats."""
    table = gradients.table(["response_id", "log_prob", "reference_log_prob"])
    return lookup(table, "response_id", ids)


def win_rates(scores: pa.Table) -> dict[str, float]:
    """response_id -> share of the prompt's other scored responses that it beats, a tie as half.

    The prompt is what stands before the last ``/`` of a response's id. A response that is alone
    has 1/2.
    """
    by_prompt: dict[str, list[tuple[str, float]]] = {}
    for row in scores.filter(pc.is_valid(scores["score"])).to_pylist():
        prompt = row["response_id"].rpartition("/")[0]
        by_prompt.setdefault(prompt, []).append((row["response_id"], row["score"]))
    found = {}
    for rows in by_prompt.values():
        points = np.array([score for _, score in rows])
        for name, score in rows:
            beaten = (points < score).sum() + ((points == score).sum() - 1) / 2
            found[name] = float(beaten / (len(rows) - 1)) if len(rows) > 1 else 0.5
    return found


def weights_of(setting: str, pairs: pa.Table, inputs: Mapping[str, Artifact]) -> np.ndarray:
    """(n,) weights of pairs: margins over their mean, or a column as it is. Raises UserError."""
    column = own_column(setting, pairs, inputs)
    if column is None:
        known = [field.name for field in pairs.schema if pa.types.is_floating(field.type)]
        raise UserError(
            f"train.weights={setting} is no column of the dataset.{nearest(setting, known)} "
            f"Use none, margin, or one of {', '.join(known)}."
        )
    if not np.isfinite(column).all() or (column < 0).any():
        raise UserError(f"train.weights={setting}: a weight is a finite number of 0 or more.")
    return column / column.mean() if setting == "margin" else column


def reference_columns(pairs: pa.Table, inputs: Mapping[str, Artifact]) -> dict[str, np.ndarray]:
    """log ref of both sides in nats, as the gradients stage measured it.

    That is at the policy that is trained, or at the reference that an online round brings. Raises
    UserError where it was not measured.
    """
    name = "reference_log_prob" if "reference" in inputs else "log_prob"
    return {
        f"ref_{side}_logps": finite(
            name, numbers(measured(inputs["gradients"], ids_of(side, pairs, inputs))[name])
        )
        for side in SIDES
    }


def of_pairs(
    policy: Policy, pairs: list[dict[str, Any]], columns: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """One row a pair: prompt, chosen and rejected as messages, and the columns."""
    rows = []
    for number, pair in enumerate(pairs):
        row: dict[str, Any] = {
            name: plain_messages(policy.tokenizer, pair[name]) for name in ("prompt", *SIDES)
        }
        rows.append(row | {name: float(values[number]) for name, values in columns.items()})
    return rows


def of_lists(policy: Policy, pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a prompt: its best and worst response as a pair, and all of its pairs' responses.

    ``list_ids`` are the responses' tokens, ``list_scores`` their points. A response that is in
    several pairs stands in the list once.
    """
    prompts: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        found = prompts.setdefault(pair["prompt_id"], {"prompt": pair["prompt"], "points": {}})
        for side in SIDES:
            found["points"].setdefault(pair[side][0]["content"], pair[f"score_{side}"])
    rows = []
    for found in prompts.values():
        texts, scores = list(found["points"]), list(found["points"].values())
        messages = [[{"role": "assistant", "content": text}] for text in texts]
        best, worst = ends(scores)
        pair = {"prompt": found["prompt"], "chosen": messages[best], "rejected": messages[worst]}
        lists = {
            "list_ids": [encode(policy.tokenizer, found["prompt"], text)[1] for text in texts],
            "list_scores": scores,
        }
        rows.append(of_pairs(policy, [pair], {})[0] | lists)
    return rows
