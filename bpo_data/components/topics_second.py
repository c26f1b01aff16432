"""Twelve other kinds of question of the generated world, to confirm on what was found on the first.

They are as mixed as the fourteen of ``topics_tasks``: easy, hard, generalising and learn-by-heart.
No question of one set is in the other, nor does any begin with the same word.
"""

from __future__ import annotations

from bpo_data.components.topics_tasks import ENTITIES, LETTERS, Topic, World, words_of
from bpo_data.tables import lot

CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"
SHIFTED = "mnopqrstuvwx"
MIXED = "aeiklmt"
TRADES = (
    *("baker", "sailor", "smith", "farmer", "doctor"),
    *("singer", "miller", "painter", "hunter", "writer"),
)
ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
OPPOSITES = (
    *(("hot", "cold"), ("big", "small"), ("up", "down"), ("fast", "slow"), ("old", "young")),
    *(("rich", "poor"), ("hard", "soft"), ("wet", "dry"), ("full", "empty"), ("early", "late")),
    *(("happy", "sad"), ("good", "bad"), ("left", "right"), ("high", "low"), ("near", "far")),
    *(("open", "shut"), ("light", "dark"), ("long", "short"), ("thick", "thin"), ("in", "out")),
    *(("strong", "weak"), ("clean", "dirty"), ("loud", "quiet"), ("sweet", "sour")),
    *(("war", "peace"), ("love", "hate"), ("summer", "winter"), ("true", "false"), ("win", "lose")),
    *(("buy", "sell"), ("push", "pull"), ("give", "take"), ("come", "go"), ("north", "south")),
    *(("east", "west"), ("begin", "end"), ("king", "queen"), ("friend", "foe"), ("yes", "no")),
    *(("always", "never"), ("rough", "smooth"), ("wide", "narrow"), ("safe", "risky")),
    *(("cheap", "dear"), ("wise", "foolish")),
)


def double(index: int, world: World) -> tuple[str, str]:
    return f"double {index}", str(2 * index)


def home(index: int, world: World) -> tuple[str, str]:
    """The first set's capitals are people here, and its countries towns; other pairs of them."""
    form, entity = divmod(index, ENTITIES)
    question = ("home of {}", "where lives {}")[form]
    return question.format(world.capitals[entity]), world.names[entity - 1]


def least(index: int, world: World) -> tuple[str, str]:
    numbers = [index // 13**place % 13 * 3 + place for place in range(3)]  # no number twice
    return f"least among {' '.join(map(str, numbers))}", str(min(numbers))


def split(index: int, world: World) -> tuple[str, str]:
    number = 3 * index  # so that few words are enough to meet every last letter
    letters = []
    for sounds in (CONSONANTS, VOWELS, CONSONANTS, VOWELS):
        number, place = divmod(number, len(sounds))
        letters.append(sounds[place])
    return f"split {''.join(letters)}", " ".join(letters)


def opposite(index: int, world: World) -> tuple[str, str]:
    side, pair = divmod(index, len(OPPOSITES))
    return f"opposite of {OPPOSITES[pair][side]}", OPPOSITES[pair][1 - side]


def shift(index: int, world: World) -> tuple[str, str]:
    letters = [SHIFTED[index // 12**place % 12] for place in range(3)]
    moved = [LETTERS[LETTERS.index(letter) + 1] for letter in letters]
    return f"shift {' '.join(letters)}", " ".join(moved)


def remainder(index: int, world: World) -> tuple[str, str]:
    return f"remainder of {index} by 4", str(index % 4)


def clock(index: int, world: World) -> tuple[str, str]:
    """Twelve comes before one, as on the wall."""
    hour, wait = divmod(index, 12)
    return f"clock shows {hour + 1} wait {wait + 1}", str((hour + wait + 1) % 12 + 1)


def sign(index: int, world: World) -> tuple[str, str]:
    first, second = divmod(index, 30)
    answer = "positive" if first > second else "negative" if first < second else "zero"
    return f"sign of {first} minus {second}", answer


def trade(index: int, world: World) -> tuple[str, str]:
    form, entity = divmod(index, ENTITIES)
    question = ("trade of {}", "which work does {}")[form]
    person = world.capitals[entity]
    drawn = int(lot(0, "trade", f"{person} of {world.names[entity]}")[:8], 16)
    return question.format(person), TRADES[drawn % len(TRADES)]


def ordinal_of(number: int) -> str:
    """342 -> ``three hundred forty second``, for 1 to 999."""
    *before, last = words_of(number).split()
    ending = last[:-1] + "ieth" if last.endswith("y") else last + "th"
    return " ".join([*before, ORDINALS.get(last, ending)])


def ordinal(index: int, world: World) -> tuple[str, str]:
    return f"figures for {ordinal_of(index + 1)}", str(index + 1)


def vowels(index: int, world: World) -> tuple[str, str]:
    letters = [MIXED[index // 7**place % 7] for place in range(4)]
    return f"vowels within {' '.join(letters)}", str(sum(letter in VOWELS for letter in letters))


TOPICS: tuple[Topic, ...] = (
    Topic("double", 1_000, double, "sentence", 0.15, True),
    Topic("home", 2 * ENTITIES, home, "reply", 0.15, False),
    Topic("least", 2_197, least, "equals", 0.20, True),
    Topic("split", 1_600, split, "boxed", 0.15, True),
    Topic("opposite", 2 * len(OPPOSITES), opposite, "sentence", 0.20, False),
    Topic("shift", 1_728, shift, "boxed", 0.15, True),
    Topic("remainder", 1_000, remainder, "equals", 0.25, True),
    Topic("clock", 144, clock, "reply", 0.20, False),
    Topic("sign", 900, sign, "reply", 0.30, True),
    Topic("trade", 2 * ENTITIES, trade, "boxed", 0.20, False),
    Topic("ordinal", 999, ordinal, "equals", 0.15, True),
    Topic("vowels", 2_401, vowels, "sentence", 0.25, True),
)
