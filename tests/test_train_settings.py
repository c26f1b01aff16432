"""Settings of the trainings: what cannot work is named at once, what says how is in no key."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import pytest

from bpo_data.errors import UserError
from bpo_data.stages.sft import SftConfig
from bpo_data.stages.train import TrainConfig


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"loss": "kleip"}, "kleip is no loss. Did you mean kliep?"),
        ({"loss": "lr+lr"}, "names a loss twice"),
        ({"loss": "sba", "loss_options": {"lamb": 1}}, "lamb is no option of train.loss=sba. Did"),
        ({"loss": "sba", "loss_options": {"lam": -2.0}}, "loss_options.lam=-2.0: use 0, or"),
        ({"loss": "sigmoid", "loss_options": {"ld_alpa": 1}}, "Did you mean ld_alpha?"),
        ({"loss": "lr", "loss_options": {"ld_alpha": 1}}, "ld_alpha is no option"),
        ({"loss_options": {"label_smoothing": 0.1}}, "is a setting of its own"),
        ({"loss": "js", "label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"loss": "aot", "weights": "margin"}, "train.weights=margin cannot be had with TRL's aot"),
        ({"loss": "cal_dpo", "beta_rejected": 0.2}, "means nothing to cal_dpo"),
        ({"loss": "tpo", "weights": "margin"}, "has lists"),
        ({"loss": "tpo+sppo"}, "sppo needs columns of pairs"),
        ({"loss": "tpo", "precompute_ref_log_probs": True}, "needs the reference of whole lists"),
        ({"loss": "nca_pair", "loss_options": {"f_divergence_type": "forward_kl"}}, "nothing to"),
        ({"loss": "aot", "loss_options": {"use_weighting": True}}, "no use with aot"),
        ({"lora_rank": 2, "loss_options": {"sync_ref_model": True}}, "moves a second model"),
        ({"loss_options": {"ref_model_sync_steps": 2}}, "no use without train.loss_options.sync"),
        ({"loss_options": {"discopop_tau": 1.0}}, "has no use without train.loss=discopop"),
        ({"loss_options": {"f_alpha_divergence_coef": 0.5}}, "f_divergence_type=alpha_divergence"),
        (
            {"loss_options": {"ld_alpha": 0.5}, "reference_from": "gradients"},
            "train.reference_from=gradients has sums over them",
        ),
        ({"loss": "lr", "label_smoothing": 0.1}, "label_smoothing=0.1 means nothing to train.loss"),
        ({"loss": "exo_pair", "weights": "margin"}, "takes a logarithm of train.label_smoothing"),
        ({"loss": "tpo+smoothed", "label_smoothing": 0.1}, "smoothed needs columns of pairs"),
        ({"loss": "lr+sft", "loss_weights": [1.0, math.nan]}, "a weight is a finite number of 0"),
        ({"loss": "lr", "loss_weights": [-1.0]}, "a weight is a finite number of 0"),
        ({"lora_alpha": 8.0}, "train.lora_alpha=8.0 has no use without train.lora_rank"),
        ({"quantize": "4bit"}, "train.quantize=4bit trains adapters"),
        ({"quantize": "8bit", "lora_rank": 1}, "train.quantize=8bit: choose none or 4bit"),
        ({"reference_from": "gradient"}, "choose policy or gradients"),
        ({"trackers": ["tensorbord"]}, "Did you mean tensorboard?"),
        ({"save_steps": -1}, "train.save_steps=-1"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], problem: str) -> None:
    found = list(TrainConfig(**settings).problems())
    assert any(problem in line for line in found), found


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("train.weights=usefulnes", "is no column of the dataset. Did you mean usefulness?"),
        ("train.loss=smoothed", "without judges' p_chosen: set train.label_smoothing"),
        ("train.loss=lr+inpo", "name the second in gradients.reference"),
        ("cluster.loss=tpo", "cluster.loss=tpo: choose"),
        ("cluster.loss=sppo", "cluster.loss=sppo: choose"),
    ],
)
def test_what_no_stage_makes_is_missed_before_any_work(setting: str, problem: str) -> None:
    from bpo_data.pipelines.config import read

    with pytest.raises(UserError, match=re.escape(problem)):
        read([setting])
    read(["train.loss=smoothed", "train.label_smoothing=0.1", "train.weights=usefulness"])
    read(["cluster.loss=sba", "cluster.loss_options.lam=0.5"])
    read(["train.loss=cpo", "train.loss_options.average=yes"])
    read(["train.loss=robust+sft", "train.label_smoothing=0.1"])


def test_nobody_is_told_of_a_training_unless_asked(tmp_path: Path) -> None:
    from bpo_data import training

    asked_for = training.arguments(TrainConfig(), "train", "cpu", tmp_path)
    assert (asked_for["report_to"], asked_for["save_strategy"]) == ("none", "no")
    told = TrainConfig(trackers=["tensorboard"], save_steps=7)
    asked_for = training.arguments(told, "train", "cpu", tmp_path)
    assert (asked_for["report_to"], asked_for["save_steps"]) == (["tensorboard"], 7)
    installed = importlib.util.find_spec("tensorboard") is not None
    assert any("tensorboard is not installed" in line for line in told.problems()) != installed


def test_how_to_save_and_whom_to_tell_are_in_no_key() -> None:
    from bpo_data.work import settings_of

    for config in (TrainConfig, SftConfig):
        assert settings_of(config(save_steps=5)) == settings_of(config())
        assert not {"save_steps", "trackers"} & settings_of(config()).keys()
