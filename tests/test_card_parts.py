"""Parts of the card: Markdown that no text breaks, settings that read back, metadata of the hub."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from reading_markdown import shown, tokens

from bpo_data.cards import metadata, privacy
from bpo_data.cards.markdown import LONGEST, Pen
from bpo_data.errors import plain

TEXTS = st.text(st.characters() | st.sampled_from("|`*_[]()<>#!-+=~&\\:/@.$\n\r\t 1"), max_size=40)
ADDRESSES = st.sampled_from(
    ["http://a.b", "www.a.b", "a@b.c", "- x", "1. x", "---", "&lt;", "`` `", "<b>", "<!-- x"]
)


@given(TEXTS | ADDRESSES)
def test_any_text_is_shown_as_itself_wherever_it_is_put(text):
    pen = Pen()
    wanted = plain(text)
    for written_so in (pen.escaped(text), pen.code(text)):
        seen_as = wanted if wanted or written_so == pen.escaped(text) else "(empty)"
        paragraph = shown(str(written_so)).replace("\u2060", "")
        assert paragraph == seen_as
        table = f"| a | b |\n|---|---|\n| {written_so} | z |"
        cells = [token.content for token in tokens(table) if token.type in ("text", "code_inline")]
        assert "".join(cells).replace("\u2060", "") == f"ab{seen_as}z"
        kinds = {token.type for token in tokens(f"- {written_so} x\n\ny")}
        assert kinds <= {
            "bullet_list_open", "list_item_open", "paragraph_open", "text", "code_inline",
            "paragraph_close", "list_item_close", "bullet_list_close", "text_special",
        }  # fmt: skip


@given(TEXTS, st.integers(0, 8))
def test_no_text_breaks_out_of_its_fence(text, ticks):
    whole = f"{text}\n{'`' * ticks}\n{text}"
    (fence,) = tokens(str(Pen().fenced(whole)))
    assert fence.type == "fence"
    lines = re.split("\r\n|[\n\r\x0b\x0c\x85\u2028\u2029]", whole)
    assert fence.content.splitlines() == [
        "".join(letter if letter.isprintable() or letter == "\t" else "\ufffd" for letter in line)
        for line in lines
    ]


def test_a_long_text_is_cut():
    assert len(Pen().line("x" * 10_000)) == LONGEST


def test_an_address_in_a_text_is_no_link_to_those_who_link_bare_ones():
    bare = re.compile(r"https?://[-.\w]+|www\.[-\w]|[-.\w+]@[-\w]", re.IGNORECASE)
    for text in ("http://evil.example", "WWW.evil.example", "me@evil.example"):
        assert bare.search(text)
        assert not bare.search(shown(str(Pen().escaped(text))))


LEAVES = st.text() | st.integers() | st.booleans() | st.none()


@given(st.dictionaries(st.text(min_size=1), LEAVES | st.lists(LEAVES), max_size=4))
def test_settings_read_back_from_the_card_as_yaml(settings):
    text = privacy.as_json(settings)
    assert "`" not in text
    assert json.loads(text) == settings
    if all(letter.isprintable() or ord(letter) < 0x10000 for letter in text):
        assert yaml.safe_load(text) == settings


LICENSES = {
    "unknown": {"license": "unknown"},
    "Apache-2.0": {"license": "apache-2.0"},
    "Our Lab's own, v2": {"license": "other", "license_name": "our-lab-s-own-v2"},
    "a\n---\nlicense: mit": {"license": "other", "license_name": "a-license-mit"},
}
LANGUAGES = {
    "unknown": {},
    "en": {"language": ["en"]},
    "no, de": {"language": ["no", "de"]},
    "zh-TW,code": {"language": ["zh", "code"], "language_bcp47": ["zh-TW", "code"]},
    "en]\nlicense: mit": {},
}


@pytest.mark.parametrize("license", LICENSES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_licence_and_language_are_what_was_said_or_unknown(license, language):
    from huggingface_hub import DatasetCard, DatasetCardData

    wanted = LICENSES[license] | LANGUAGES[language]
    fields = metadata.license_fields(license) | metadata.language_fields(language)
    assert fields == wanted
    read = DatasetCard(f"---\n{DatasetCardData(**fields).to_yaml()}\n---\n# x\n")
    assert read.data.to_dict() == wanted


@pytest.mark.parametrize(
    ("license", "language", "said"),
    [
        ("", "en", "export.license is empty"),
        ("!!", "en", "export.license=!!"),
        ("mit", "English", "export.language=English"),
        ("mit", "", "export.language="),
        ("mit", "en,,de", "export.language=en,,de"),
    ],
)
def test_what_the_hub_would_refuse_is_said_while_settings_are_read(license, language, said):
    (problem,) = metadata.problems(license, language)
    assert said in problem


@pytest.mark.parametrize("language", ["unknown", "en", "en, de", "zh-TW", "multilingual"])
def test_good_metadata_have_no_problems(language):
    assert not list(metadata.problems("unknown", language))


def test_size_categories_are_the_hub_s():
    words = [metadata.size_category(10**power) for power in range(2, 10)]
    assert words == [
        "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B",
        "1B<n<10B",
    ]  # fmt: skip
