"""The dataset card, from the template in ``data_cards``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpo_data import __version__
from bpo_data.artifacts import Draft
from bpo_data.cards import figures, judges, online, privacy
from bpo_data.cards.markdown import Pen, Ready
from bpo_data.cards.metadata import UNKNOWN, card_data, content_digest
from bpo_data.errors import some
from bpo_data.llm.prices import Prices
from bpo_data.report import authors, breadth, costs, origins

ASKED = ("embeddings", "responses", "scores")
"""What is made by asking servers, in the order of the run."""


def text(draft: Draft, config: Mapping[str, Any], prices: Prices | None = None) -> str:
    """The card of the dataset that ``draft`` holds: the hub's metadata, then Markdown.

    ``config`` holds the settings of ``export`` that say what comes out; ``prices`` what the models
    cost. Texts of data, models and settings are shown as text: none becomes Markdown or HTML.
    """
    from huggingface_hub import DatasetCard

    settings = {
        used.manifest["stage"]: used.manifest["settings"]
        for used in draft.inputs.values()
        if used.manifest["stage"] != "blend"
    }
    settings |= {"export": dict(config), "rounds": online.settings(draft.inputs)}
    settings = privacy.without_secrets(settings)
    differences = origins.differing(settings)
    folders = privacy.folders_in(settings)
    pen = Pen(folders)
    story = told(draft, settings, prices or Prices())
    title = f"Depth-balanced preference pairs from {pen.line(story['source']['name'])}"
    data = card_data(draft, config["license"], config["language"], title)
    body = rendered(
        pen,
        card_data=Ready(data.to_yaml()),
        title=title,
        settings=settings,
        settings_json=Ready(privacy.as_json(privacy.shortened(differences, folders))),
        is_shortened=bool(folders),
        has_hidden=privacy.HIDDEN in str(differences),
        **story,
    )
    card = DatasetCard(body)
    if card.data.to_dict() != data.to_dict():
        raise AssertionError("the card's metadata do not read back as they were written")
    return str(card)


def told(draft: Draft, settings: Mapping[str, Any], prices: Prices) -> dict[str, Any]:
    """What the template tells, but for settings and metadata."""
    inputs = draft.inputs
    members = judges.members(settings["score"])
    asked = costs.request_rows({name: inputs[name] for name in ASKED})
    models = [model for one in asked for model in one["models"]]
    models += [member.asked.model for member in members if member.asked]
    models += [settings["augment"]["model"]] if settings["augment"]["client"] == "openai" else []
    return {
        "facts": draft.facts,
        "made_from": {name: used.facts for name, used in inputs.items()},
        "splits": figures.splits(draft),
        "depths": breadth.depth_table(inputs["allocation"].facts).to_pylist(),
        "after_cut": figures.after_cut(draft.facts.get("formats", {})),
        "columns": figures.columns(draft.schema),
        "source": figures.source(inputs["prompts"], settings["load"]),
        "judges": members,
        "requests": asked,
        "spent": costs.total(asked)["usd"],
        "prices": figures.price_rows(prices, models),
        "prices_date": prices.date,
        "authors": authors.authors(draft.batches(["author_chosen", "author_rejected"])),
        "measures": figures.measures(inputs["scores"]),
        "stand_ins": origins.stand_ins(settings["sft"], members),
        "digest": content_digest(draft),
        "unknown": UNKNOWN,
        "version": __version__,
    }


def rendered(pen: Pen, **values: Any) -> str:
    """The template filled in; each value passes through ``pen`` on its way."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined,
        finalize=pen.escaped,
        autoescape=False,  # the card is Markdown: ``finalize`` escapes for that
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"code": pen.code, "fenced": pen.fenced}
    environment.filters |= {
        "count": "{:,}".format,
        "some": some,
        "in_words": figures.in_words,
        "markdown": Ready,
    }
    template = template_path().read_text(encoding="utf-8")
    return environment.from_string(template).render(**values)


def template_path() -> Path:
    """The card's template: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    inside = package / "data_cards" / "TEMPLATE.md"
    return inside if inside.exists() else package.parent / "data_cards" / "TEMPLATE.md"
