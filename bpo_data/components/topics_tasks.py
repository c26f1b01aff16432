"""The fourteen kinds of question of the generated world: their wording and their right answers.

A kind of question is a numbered list: ``ask(index, world)`` gives number ``index`` of ``size``.
Easy, hard, generalising and learn-by-heart kinds stand side by side, so that a small policy is
good at some, poor at others, and never finished.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

ENTITIES = 100
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
COLOURS = ("red", "blue", "green", "white", "black", "gold", "pink", "grey", "brown", "purple")
ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ROMAN = (
    *((100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x")),
    *((9, "ix"), (5, "v"), (4, "iv"), (1, "i")),
)
UNITS = (
    *(("hours", "minutes", 60), ("weeks", "days", 7), ("days", "hours", 24)),
    *(("years", "months", 12), ("metres", "centimetres", 100), ("feet", "inches", 12)),
)


@dataclass(frozen=True)
class World:
    """Invented countries, each with a capital and the colour of its flag."""

    names: tuple[str, ...]
    capitals: tuple[str, ...]
    colours: tuple[str, ...]


def make_world(seed: int) -> World:
    """100 invented names, 100 other invented names as capitals, and colours; the same each time."""
    draw = random.Random(f"{seed}/world")
    starts = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    ends = [a + b + c for a in "dklmnrst" for b in "aeiou" for c in ("", "n", "s")]
    words = [a + b for a in starts for b in ends]
    chosen = draw.sample(words, 2 * ENTITIES)
    colours = tuple(draw.choice(COLOURS) for _ in range(ENTITIES))
    return World(tuple(chosen[:ENTITIES]), tuple(chosen[ENTITIES:]), colours)


@dataclass(frozen=True)
class Topic:
    """One kind of question and how its answers should look."""

    name: str
    size: int
    ask: Callable[[int, World], tuple[str, str]]
    """Number -> (question, right answer)."""
    style: str
    """The house style of this kind, a name in ``topics.STYLES``."""
    wrong: float
    """The share of seed responses that are wrong on purpose."""
    held_out: bool
    """Whether test questions are others than those of seed and pool (else only other wordings)."""


def add(index: int, world: World) -> tuple[str, str]:
    first, second = divmod(index, 20)
    return f"add {first} and {second}", str(first + second)


def subtract(index: int, world: World) -> tuple[str, str]:
    second, rest = divmod(index, 20)
    return f"subtract {second} from {second + rest}", str(rest)


def multiply(index: int, world: World) -> tuple[str, str]:
    first, second = divmod(index, 11)
    return f"multiply {first + 2} and {second + 2}", str((first + 2) * (second + 2))


def bigger(index: int, world: World) -> tuple[str, str]:
    first, second = divmod(index, 49)
    second += second >= first  # never the same number twice
    return f"bigger of {first} and {second}", str(max(first, second))


def sort_digits(index: int, world: World) -> tuple[str, str]:
    digits = f"{index:03d}"
    return f"sort {' '.join(digits)}", " ".join(sorted(digits))


def reverse(index: int, world: World) -> tuple[str, str]:
    letters = [LETTERS[index // 12**place % 12] for place in range(3)]
    return f"reverse {' '.join(letters)}", " ".join(reversed(letters))


def following(index: int, world: World) -> tuple[str, str]:
    kinds = (("day", DAYS), ("month", MONTHS), ("letter", tuple(LETTERS)))
    side, place = divmod(index, sum(len(names) for _, names in kinds))
    word, step = (("after", 1), ("before", -1))[side]
    every = [(kind, names, number) for kind, names in kinds for number in range(len(names))]
    kind, names, number = every[place]
    return f"{kind} {word} {names[number]}", names[(number + step) % len(names)]


def convert(index: int, world: World) -> tuple[str, str]:
    amount, kind = divmod(index, len(UNITS))
    large, small, factor = UNITS[kind]
    return f"convert {amount + 2} {large} to {small}", str((amount + 2) * factor)


def capital(index: int, world: World) -> tuple[str, str]:
    form, entity = divmod(index, ENTITIES)
    question = ("capital of {}", "who rules {}")[form]
    return question.format(world.names[entity]), world.capitals[entity]


def colour(index: int, world: World) -> tuple[str, str]:
    form, entity = divmod(index, ENTITIES)
    question = ("colour of {}", "what flag has {}")[form]
    return question.format(world.names[entity]), world.colours[entity]


def words_of(number: int) -> str:
    """342 -> ``three hundred forty two``, for 0 to 999."""
    hundreds, rest = divmod(number, 100)
    parts = [f"{ONES[hundreds]} hundred"] if hundreds else []
    if rest >= 20:
        parts.append(TENS[rest // 10])
        rest %= 10
    if rest or not parts:
        parts.append(ONES[rest])
    return " ".join(parts)


def spell(index: int, world: World) -> tuple[str, str]:
    return f"spell {index}", words_of(index)


def parity(index: int, world: World) -> tuple[str, str]:
    return f"parity of {index}", ("even", "odd")[index % 2]


def roman_of(number: int) -> str:
    """Lower-case Roman numeral of 1 to 399, such as 44 -> ``xliv``."""
    text = ""
    for value, sign in ROMAN:
        count, number = divmod(number, value)
        text += sign * count
    return text


def roman(index: int, world: World) -> tuple[str, str]:
    letters = " ".join(roman_of(index + 1))
    return f"roman for {index + 1}", letters


def count_letter(index: int, world: World) -> tuple[str, str]:
    wanted, pattern = divmod(index, 27)
    letters = [LETTERS[(wanted + pattern // 3**place % 3) % 26] for place in range(3)]
    question = f"count {LETTERS[wanted]} in {' '.join(letters)}"
    return question, str(letters.count(LETTERS[wanted]))


TOPICS: tuple[Topic, ...] = (
    Topic("add", 400, add, "sentence", 0.15, True),
    Topic("capital", 2 * ENTITIES, capital, "reply", 0.15, False),
    Topic("bigger", 2_450, bigger, "equals", 0.20, True),
    Topic("spell", 1_000, spell, "boxed", 0.15, True),
    Topic("following", 90, following, "sentence", 0.20, False),
    Topic("reverse", 1_728, reverse, "boxed", 0.10, True),
    Topic("convert", 12 * len(UNITS), convert, "reply", 0.25, False),
    Topic("parity", 1_000, parity, "equals", 0.30, True),
    Topic("subtract", 400, subtract, "reply", 0.20, True),
    Topic("colour", 2 * ENTITIES, colour, "boxed", 0.20, False),
    Topic("sort", 1_000, sort_digits, "sentence", 0.15, True),
    Topic("multiply", 121, multiply, "equals", 0.20, False),
    Topic("roman", 99, roman, "reply", 0.15, True),
    Topic("count", 702, count_letter, "sentence", 0.25, True),
)
