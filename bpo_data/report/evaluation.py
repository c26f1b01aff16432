"""Did it help: the evaluation by topic, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bpo_data.artifacts import Artifact
from bpo_data.cards import judges
from bpo_data.components.wins import SIDES, WORTH
from bpo_data.losses import LOG_PROB, LOSSES
from bpo_data.report.origins import STAND_INS
from bpo_data.statistics import share_by_prompt
from bpo_data.tables import lookup


def evaluator(score: Mapping[str, Any], evaluate: Mapping[str, Any]) -> dict[str, Any]:
    """Who evaluated, of the two stages' settings; raises UserError.

    ``same`` says whether it is the judge that chose the pairs; ``stand_ins`` are its members of
    ``origins.STAND_INS``.
    """
    own = {name: evaluate[name] for name in ("kind", "options")}
    chose = {name: score[name] for name in ("kind", "options")}
    members = judges.members(own if own["kind"] else chose)
    return {
        "same": not own["kind"] or own == chose,
        "judges": members,
        "stand_ins": [member for member in members if member.kind in STAND_INS],
    }


SHARES = {
    "length_controlled": "Win rate if both responses were equally long, by logistic regression.",
    "greedy": "Win rate of greedy responses, one a prompt.",
    "greedy_length_controlled": "Win rate of greedy responses if both were equally long.",
    "held_out": "Held-out pairs whose chosen response was likelier, a token, before {training}.",
    "kept": "Kept pairs whose chosen response was likelier, a token, before {training}.",
}
NATS = {
    "per_response": "How far training moved the policy: KL to the SFT policy, nats a response.",
    "per_token": "The same, nats a token; 0 is not at all.",
}
VARIETY = {
    "words": "Words that all its responses have.",
    "distinct_1": "Share of distinct words; it falls as there are more words.",
    "distinct_2": "Share of distinct runs of two words.",
    "distinct_3": "Share of distinct runs of three words.",
    "entropy": "Entropy of its words, bits.",
}


def opponent(wins: Mapping[str, Any]) -> str:
    """Whom the trained policy was compared with, in a word or two."""
    return "earlier run's" if wins.get("against") else "SFT"


def loss(name: str) -> dict[str, Any]:
    """What the policy was trained with, and whether none of it has a reference."""
    terms = name.split("+")
    alone = {name for name, one in LOSSES.items() if one.measures == LOG_PROB} | {"sft", "pro"}
    free = [term in alone for term in terms]
    return {"name": name, "free": all(free)}


def measured(wins: Mapping[str, Any], rounds: int = 1) -> dict[str, Any]:
    """What the evaluation found besides points and the raw win rate; empty parts where it did not.

    ``shares`` and ``nats`` are rows (sentence, estimate); ``variety`` rows (sentence, figure by
    side). After several rounds the pairs are those of the last, and so is the policy before it.
    """
    training = "the last round" if rounds > 1 else "training"
    greedy = wins.get("greedy") or {}
    shares = {
        "length_controlled": wins.get("length_controlled"),
        "greedy": greedy.get("win_rate"),
        "greedy_length_controlled": greedy.get("length_controlled"),
        **(wins.get("reference_ranking") or {}),
    }
    nats, varied = wins.get("kl") or {}, wins.get("diversity") or {}
    both = all(varied.get(side) for side in SIDES)
    return {
        "shares": [
            (text.format(training=training), shares[name])
            for name, text in SHARES.items()
            if shares.get(name)
        ],
        "nats": [(text, nats[name]) for name, text in NATS.items() if nats.get(name)],
        "variety": [
            (text, {side: varied[side][name] for side in SIDES}) for name, text in VARIETY.items()
        ]
        if both
        else [],
    }


def said(wins: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the judge said of the two policies' responses: each reason's count and share by side."""
    reasons = wins.get("reasons") or {}
    total = {side: max(1, sum(counts[side] for counts in reasons.values())) for side in SIDES}
    return [
        {"reason": reason, **{side: (counts[side], counts[side] / total[side]) for side in SIDES}}
        for reason, counts in reasons.items()
    ]


def by_topic(inputs: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Win rate (ties half) and mean points of each of the source's topics, most compared first."""
    wins = inputs["wins"].table(["prompt_id", "winner", "score_sft", "score_trained"])
    prompts = inputs["prompts"].table(["prompt_id", "topic"])
    topics = lookup(prompts, "prompt_id", wins["prompt_id"])["topic"].to_pylist()
    groups: dict[str, list[dict[str, Any]]] = {}
    for row, topic in zip(wins.to_pylist(), topics, strict=True):
        if topic and row["winner"]:
            groups.setdefault(topic, []).append(row)
    found = [
        {
            "topic": topic,
            "comparisons": len(rows),
            "sft": sum(row["score_sft"] for row in rows) / len(rows),
            "trained": sum(row["score_trained"] for row in rows) / len(rows),
            "win_rate": share_by_prompt((row["prompt_id"], WORTH[row["winner"]]) for row in rows),
        }
        for topic, rows in groups.items()
    ]
    return sorted(found, key=lambda row: (-row["comparisons"], row["topic"]))
