"""Recipes and price files are data: they make no objects, read nothing else and stay small."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bpo_data import yaml_text
from bpo_data.errors import UserError
from bpo_data.llm.prices import read_prices
from bpo_data.pipelines.config import read, read_recipe, recipe_folder

LAUGHS = "a: &a [l, l, l, l, l, l, l, l, l]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, this in zip("abcdefgh", "bcdefghi", strict=True)
)
"""387,420,489 times l in nine lines."""

BAD = {
    "objects": (b"load: !!python/object/apply:os.system ['touch it-ran']", "could not determine"),
    "laughs": (LAUGHS.encode(), "aliases come to more than"),
    "itself": (b"load: &a {path: x, options: *a}", "stands for nothing, or for what it is in"),
    "deep": (b"load: " + b"[" * 100_000, "nested more than 50 deep"),
    "deep mappings": (b"load: " + b"{a: " * 100_000, "nested more than 50 deep"),
    "large": (b"load: {path: " + b"x" * 2**21 + b"}", "more than 1,048,576 bytes"),
    "no text": (b"load: {path: \xff}", "is not UTF-8"),
    "control codes": (b"load: {path: '\x1b[2J'}", "special characters are not allowed"),
    "environment": (b"load: {path: '${oc.env:SECRET}'}", "neither the environment nor"),
    "within": (b"load: {options: {a: [1, 'x${load.${oc.env:SECRET}}']}}", "neither the env"),
    "named by another": (
        b"load: {path: oc, kind: '${${load.path}.env:SECRET}'}",
        "neither the env",
    ),
    "decoded": (b"load: {path: '${oc.decode:1}'}", "neither the environment nor"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_recipe_that_wants_more_than_settings_is_refused_at_once(name, tmp_path, monkeypatch):
    content, words = BAD[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "swordfish")
    Path("bad.yaml").write_bytes(content)
    began = time.process_time()
    with pytest.raises(UserError, match=words) as caught:
        read(["recipe=bad.yaml"])
    assert time.process_time() - began < 5
    assert str(caught.value).startswith("recipe=bad.yaml")
    assert "swordfish" not in str(caught.value)
    assert len(str(caught.value)) < 5000
    assert not Path("it-ran").exists()


@pytest.mark.parametrize("name", ["objects", "laughs", "itself", "deep", "large", "no text"])
def test_a_price_file_is_data_too(name, tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_bytes(BAD[name][0])
    with pytest.raises(UserError, match=r"budget\.prices=.*cannot be read"):
        read_prices(str(path))


def test_a_value_on_the_command_line_is_bounded_as_well():
    for value in ("[" * 100_000, f"{{{LAUGHS.replace(chr(10), ', ')}}}"):
        with pytest.raises(UserError, match=r"export\.formats="):
            read(["recipe=own_data", "load.path=x.jsonl", f"export.formats={value}"])


def test_a_recipe_may_name_its_own_settings_and_write_the_letters(tmp_path):
    path = tmp_path / "fine.yaml"
    path.write_text(
        "select: {keep: 7}\nallocate: {budget: '${select.keep}'}\n"
        "load: {path: 'a\\${oc.env:HOME}', kind: 'a: b'}\n"
    )
    found = read_recipe(str(path))
    assert found["allocate.budget"] == 7
    assert found["load.path"] == "a${oc.env:HOME}"


def test_our_own_recipes_are_far_below_the_bounds():
    for path in recipe_folder().glob("*.yaml"):
        assert len(path.read_bytes()) * 20 < yaml_text.LARGEST
        assert yaml_text.checked(path.read_text()) == path.read_text()


@pytest.mark.filterwarnings("ignore:register_new_resolver")  # 2.3 has no other name
@given(st.text("ab$\\{}:.", max_size=12))
def test_what_passes_reads_no_environment(text):
    """OmegaConf itself asks no resolver for a text that is let through."""
    asked = []
    OmegaConf.register_new_resolver("a", lambda *_: asked.append(1) or "x", replace=True)
    try:
        if not list(yaml_text.resolvers([text])):
            with contextlib.suppress(OmegaConfBaseException):  # text that means nothing to it
                OmegaConf.to_container(OmegaConf.create({"a": "b", "v": text}), resolve=True)
    finally:
        OmegaConf.clear_resolver("a")
    assert not asked


@given(
    st.recursive(st.integers() | st.text("ab", max_size=3), lambda one: st.lists(one, max_size=4))
)
def test_size_counts_what_aliases_repeat(value):
    def size(one):
        return 1 + sum(map(size, one)) if isinstance(one, list) else 1

    whole = {"a": value, "b": [value, value]}
    text = yaml.safe_dump(whole)
    limit, yaml_text.MOST = yaml_text.MOST, 5 + 3 * size(value) - 1
    try:
        yaml_text.checked(text)
        yaml_text.MOST -= 1
        with pytest.raises(yaml_text.Refused):
            yaml_text.checked(text)
    finally:
        yaml_text.MOST = limit
