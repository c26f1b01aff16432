"""A generated world of questions with right answers, and the program that marks the answers.

``topics`` writes prompts for three uses. What holds between the splits "seed" (noisy responses to
learn from), "pool" (prompts to spend a preference budget on) and "test" (prompts kept aside):

- A prompt is in one split only, and once; the numbers asked of one split do not change another.
- A *core question* is the question without its polite prefix. In the topics with ``held_out``
  (of the first set: add, bigger, spell, reverse, parity, subtract, sort, roman, count), no core
  question of test is in seed or pool. The others (capital, colour, following, convert, multiply)
  have too few questions or can only be learned by heart: there, test asks known questions in
  other wordings.
- Seed and pool may share core questions, never prompts.
- Seed and test ask all topics equally often. The pool is skewed as real pools are: Zipf over the
  topics and, inside a topic, over its questions, so many prompts are near-copies of others.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence

from bpo_data.components import topics_second, topics_tasks
from bpo_data.components.rows import Given, Row
from bpo_data.components.topics_tasks import Topic, World, make_world
from bpo_data.errors import UserError
from bpo_data.tables import Message, canonical, lot

SETS = {"first": topics_tasks.TOPICS, "second": topics_second.TOPICS}
"""Kinds of question that share no question: what is found on one can be confirmed on the other.
"""

PREFIXES = ("", "please, ", "hello! ", "kindly ", "now ", "sorry, ")
STYLES = {
    "equals": "= {}",
    "sentence": "the answer is {}.",
    "reply": "it is {}!",
    "boxed": "[ {} ]",
    "hedged": "maybe {}",
}
SHARES = {"test": 0.20, "pool": 0.30, "seed": 0.50}
ZIPF_TOPICS = 0.8
ZIPF = 1.3
POOL_CORES = 2100
"""Core questions that the topics offer to the pool together, each as many; fewer means more
near-copies."""
LONGEST = 200
"""Characters of a response that are still read; no right response is half as long."""


def topics(
    seed: int, seed_prompts: int, pool_prompts: int, test_prompts: int, chosen: str = "first"
) -> Iterator[Row]:
    """Rows of the three splits, one user turn each; the same for the same ``seed``.

    ``chosen`` names the kinds of question asked, one of ``SETS``.

    ``reference`` is JSON with the right ``answer`` and the wanted ``style``. Raises UserError when
    the world has fewer prompts than asked for.
    """
    world = make_world(seed)
    kinds = SETS[chosen]
    name = "topics" if chosen == "first" else f"topics-{chosen}"
    wanted = {"seed": seed_prompts, "pool": pool_prompts, "test": test_prompts}
    for split, rows in wanted.items():
        draw = random.Random(f"{seed}/{split}")
        for number, (topic, prefix, index) in enumerate(places(seed, split, rows, draw, kinds)):
            question, answer = topic.ask(index, world)
            given = (Given(noisy(topic, answer, world, draw), "seed"),) if split == "seed" else ()
            yield Row(
                prompt=(Message(role="user", content=worded(prefix, question)),),
                given=given,
                origin=f"{name}@{seed}/{split}#{number}",
                topic=topic.name,
                reference=canonical({"answer": answer, "style": topic.style}),
                split=split,
            )


def places(
    seed: int, split: str, rows: int, draw: random.Random, kinds: Sequence[Topic]
) -> Iterator[tuple[Topic, str, int]]:
    """``rows`` different (topic, prefix, question number) of this split."""
    weights = {topic.name: 1.0 for topic in kinds}
    if split == "pool":
        weights = {topic.name: (place + 1) ** -ZIPF_TOPICS for place, topic in enumerate(kinds)}
    favourites = {topic.name: popular(seed, topic, POOL_CORES // len(kinds)) for topic in kinds}
    seen: set[tuple[str, str, int]] = set()
    misses = 0
    while len(seen) < rows:
        topic = draw.choices(kinds, [weights[topic.name] for topic in kinds])[0]
        if split == "pool":
            cores, likelihood = favourites[topic.name]
            index = draw.choices(cores, cum_weights=likelihood)[0]
        else:
            index = draw.randrange(topic.size)
        place = (topic.name, draw.choice(PREFIXES), index)
        if place in seen or home(seed, topic, place[1], index) != split:
            misses += 1
            if misses > 5_000:
                raise UserError(
                    f"The topics world has no {rows:,} prompts for its {split} split; it ran out "
                    f"after {len(seen):,}. Ask for fewer."
                )
            continue
        misses = 0
        seen.add(place)
        yield topic, place[1], index


def popular(seed: int, topic: Topic, cores: int) -> tuple[list[int], list[float]]:
    """The question numbers the pool asks, most asked first, and their cumulated Zipf weights."""
    draw = random.Random(f"{seed}/popular/{topic.name}")
    asked = draw.sample(range(topic.size), min(cores, topic.size))
    total, cumulated = 0.0, []
    for place in range(len(asked)):
        total += (place + 1) ** -ZIPF
        cumulated.append(total)
    return asked, cumulated


def home(seed: int, topic: Topic, prefix: str, index: int) -> str:
    """The one split a prompt may stand in; for held-out topics test is settled by the question."""
    by_core = share(seed, f"{topic.name}/{index}")
    by_prompt = share(seed, f"{topic.name}/{index}/{prefix}")
    if (by_core if topic.held_out else by_prompt) < SHARES["test"]:
        return "test"
    rest = share(seed, f"{topic.name}/{index}/{prefix}/rest")
    return "pool" if rest < SHARES["pool"] / (SHARES["pool"] + SHARES["seed"]) else "seed"


def share(seed: int, name: str) -> float:
    """A number in [0, 1) that belongs to the seed and the name."""
    return int(lot(seed, *name.split("/", 1))[:12], 16) / 16**12


def worded(prefix: str, question: str) -> str:
    return prefix + question


def noisy(topic: Topic, answer: str, world: World, draw: random.Random) -> str:
    """A seed response: wrong at the topic's rate, in any of the five styles."""
    if draw.random() < topic.wrong:
        others = (topic.ask(draw.randrange(topic.size), world)[1] for _ in range(20))
        answer = next((other for other in others if other != answer), answer)
    return STYLES[draw.choices(*manners(topic))[0]].format(answer)


def manners(topic: Topic) -> tuple[tuple[str, ...], list[float]]:
    """The five styles and how often seed responses of a topic use each.

    Every topic has a bad habit, the style listed after its house style, which is used most. A
    policy that learns this has to look at the topic before it writes the first word; without that,
    a few hundred pairs do not teach it which topic wants which style.
    """
    names = tuple(STYLES)
    habit = names[(names.index(topic.style) + 1) % len(names)]
    shares = dict.fromkeys(names, 0.10) | {"hedged": 0.15, topic.style: 0.25, habit: 0.40}
    return names, [shares[name] for name in names]


def verify(prompt: Sequence[Message], response: str, reference: str | None) -> tuple[float, str]:
    """Points from 1 to 10 for the right answer in the style its question wants, and why in words.

    1 + content + form. Content: 5 for the right answer, else 2.5 times the similarity to it (1
    minus the edit distance over the longer length). Form: 4 for the wanted style, 1 for another of
    ``STYLES``, 0 for none. Hedged, empty and overlong responses get 1. The words tell the kinds of
    content and form apart and nothing finer, so that they can be counted. Only ``reference`` is
    read, not ``prompt``. Raises ValueError when it is missing or unreadable.
    """
    answer, wanted = read_reference(reference)
    text = " ".join(response[: LONGEST + 1].split())
    if not text:
        return 1.0, "empty"
    if len(response) > LONGEST:
        return 1.0, f"longer than {LONGEST} characters"
    style, content = taken_apart(text)
    right = content.casefold() == answer.casefold()
    said = "right" if right else "wrong"
    if style == "hedged":
        return 1.0, f"a guess, {said}"
    form = 4.0 if style == wanted else 1.0 if style else 0.0
    manner = "wanted" if style == wanted else "another" if style else "no known"
    near = 2.0 if right else similarity(content.casefold(), answer.casefold())
    return round(1.0 + 2.5 * near + form, 2), f"{said}, {manner} style"


def read_reference(reference: str | None) -> tuple[str, str]:
    """(right answer, wanted style). Raises ValueError naming what is wrong with ``reference``."""
    if reference is None:
        raise ValueError("there is no reference; the verifier needs one with answer and style")
    try:
        known = json.loads(reference)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the reference is not JSON: {reference[:80]!r}") from error
    if not isinstance(known, dict) or not isinstance(known.get("answer"), str):
        raise ValueError(f"the reference has no text under answer: {reference[:80]!r}")
    if known.get("style") not in tuple(STYLES):
        raise ValueError(f"the reference wants an unknown style: {reference[:80]!r}")
    return known["answer"], known["style"]


def taken_apart(text: str) -> tuple[str, str]:
    """(style, what stands in it); style is empty when a sentence fits none of the styles."""
    for style in STYLES:
        before, after = (re.escape(part.strip()) for part in STYLES[style].split("{}"))
        pattern = rf"{before}\s*(\S.*?)\s*{after}"
        found = re.fullmatch(pattern, text, re.IGNORECASE | re.DOTALL)
        if found:
            return style, found[1].strip()
    return "", text


def similarity(one: str, other: str) -> float:
    """1 minus the Levenshtein distance over the longer length, in [0, 1]."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, start=1):
        above, row = row, [number]
        for place, wanted in enumerate(other, start=1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (letter != wanted)))
    return 1.0 - row[-1] / max(len(one), len(other), 1)
