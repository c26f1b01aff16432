"""Log-probabilities of responses under the reference that a pair loss compares a policy with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpo_data.errors import UserError
from bpo_data.policy import UNBOUNDED, Policy, TemplateRefuses, encode, load_policy
from bpo_data.tables import Message

if TYPE_CHECKING:
    import numpy as np

    from bpo_data.gradients.engine import Measured, ResponseGradients

Ids = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Reference:
    """What ``gradients.reference`` names."""

    log_probs: Callable[[Ids, Ids, Measured], np.ndarray]
    """Token ids of n prompts and responses, and what the policy made of them -> (n,) float32."""

    policy: Policy | None = None
    """The second model, where there is one."""

    engine: ResponseGradients | None = None
    """What measures it."""

    @property
    def context(self) -> int:
        """Tokens of prompt and response that a second model can hold; else no limit of its own."""
        return self.policy.context if self.policy else UNBOUNDED

    def check(self, name: str, own: Any, prompt: Sequence[Message], text: str) -> None:
        """Raises UserError when the second model reads other tokens than ``own``, the policy's."""
        if self.policy is None:
            return
        try:
            same = encode(self.policy.tokenizer, prompt, text) == own
        except TemplateRefuses:
            same = False
        if not same:
            raise UserError(
                f"gradients.reference={self.policy.tokenizer.name_or_path} has another tokenizer "
                f"or chat template than the policy: it reads other tokens in response {name}. Use "
                f"a reference with the policy's tokenizer, or gradients.reference=adapter_off."
            )


def reference_of(
    setting: str, revision: str, engine: ResponseGradients, device: str, dtype: str
) -> Reference:
    """The reference that ``gradients.reference`` names. Raises UserError when there is none."""
    if not setting:
        return Reference(lambda prompts, responses, measured: measured.log_prob)
    if setting == "adapter_off":
        try:
            engine.log_probs([], [], adapters=False)
        except ValueError as error:
            raise UserError(
                f"gradients.reference=adapter_off: {error}. Give sft.model a folder with "
                f"adapter_config.json beside the model (the package peft loads it), name the "
                f"reference, or leave gradients.reference empty."
            ) from error
        return Reference(
            lambda prompts, responses, _: engine.log_probs(prompts, responses, adapters=False)
        )
    second = load_policy(setting, revision or None, device, dtype, "gradients.reference")
    measures = engine_for_log_probs(second, engine.batch_tokens)
    return Reference(
        lambda prompts, responses, _: measures.log_probs(prompts, responses), second, measures
    )


def engine_for_log_probs(policy: Policy, batch_tokens: int) -> ResponseGradients:
    """An engine of which only the log-probabilities are wanted: it taps the output head alone."""
    from bpo_data.gradients.engine import ResponseGradients

    head = policy.model.get_output_embeddings()
    name = next(name for name, module in policy.model.named_modules() if module is head)
    return ResponseGradients(
        policy.model,
        rank=1,
        dim=1,
        seed=0,
        layers=f"^{re.escape(name)}$",
        batch_tokens=batch_tokens,
    )
