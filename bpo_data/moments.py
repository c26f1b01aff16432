"""AdamW's second moments: kept beside a policy, and what they make of a weight gradient.

LESS (Xia et al. 2024, arXiv 2402.04333, section 3.1) compares examples by the step Adam would
take, ``m / (sqrt(v) + eps)``, with ``m = (b1 m' + (1 - b1) g) / (1 - b1^t)`` and
``v = (b2 v' + (1 - b2) g^2) / (1 - b2^t)`` for a gradient g after the moments m' and v' of the
training so far. Without the first moment (b1 = 0) m is g itself; with the second moments fixed,
so that g does not enter its own divisor, v is ``v' / (1 - b2^t)``. What remains is

    g / (sqrt(v' / (1 - b2^t)) + eps)

which is linear in g: gradients of pairs are still combinations of gradients of responses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_data.errors import UserError
from bpo_data.tables import canonical

if TYPE_CHECKING:
    import torch

    BaseMapping = Mapping[str, torch.Tensor]
else:
    BaseMapping = Mapping


def beside(model: str | Path) -> Path:
    """Where the moments of a model folder are: ``model.moments.safetensors`` beside ``model``.

    Not inside: some servers load every safetensors file of a folder as weights.
    """
    folder = Path(model).absolute()
    return folder.parent / f"{folder.name}.moments.safetensors"


def save(optimizer: Any, model: Any, path: Path) -> None:
    """Write AdamW's ``exp_avg_sq``, float32 by parameter name, with each one's number of updates.

    Parameters that never had a gradient have no moments. The file's metadata is one JSON text,
    ``adamw``: ``beta2``, ``eps`` and ``steps`` (parameter name -> updates).
    """
    import torch
    from safetensors.torch import save_file

    moments, steps = {}, {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter)
        if state:
            kept = state["exp_avg_sq"].detach().to("cpu", torch.float32)
            moments[name], steps[name] = kept.contiguous(), int(state["step"])
    group = optimizer.param_groups[0]
    # One text and no more: safetensors writes several in another order every time.
    about = {"beta2": group["betas"][1], "eps": group["eps"], "steps": steps}
    save_file(moments, path, metadata={"adamw": canonical(about)})


class AdamScales(BaseMapping):
    """Layer name -> ``1 / (sqrt(v / (1 - beta2^t)) + eps)``, float32 in its weight's shape.

    Each is read when it is asked for, so that no second copy of the model is in memory. The names
    are those of ``model``'s modules without PEFT's wrappers; a layer that shares its weight, such
    as an output head tied to the embedding, has the moments of what it shares. Raises UserError
    when there is no file, and when a layer asked for has no moments or others' in it.
    """

    def __init__(self, path: Path, model: Any) -> None:
        from safetensors import safe_open

        if not path.is_file():
            raise UserError(
                f"gradients.preconditioner=adam needs AdamW's second moments, and the policy has "
                f"none: there is no {path}. Set sft.keep_moments=true where the policy is trained, "
                f"or gradients.preconditioner=none."
            )
        self.path = path
        self._file = safe_open(path, "pt")
        about = json.loads((self._file.metadata() or {}).get("adamw", "{}"))
        if not about.keys() >= {"beta2", "eps", "steps"}:
            raise UserError(f"{path} is not what sft.keep_moments=true writes. Remove it.")
        self._beta2, self._eps, self._steps = about["beta2"], about["eps"], about["steps"]
        names = {id(weight): name for name, weight in model.named_parameters()}
        self._weights = {
            bare(name): (bare(names[id(module.weight)]), tuple(module.weight.shape))
            for name, module in model.named_modules()
            if id(getattr(module, "weight", None)) in names
        }

    def __getitem__(self, layer: str) -> torch.Tensor:
        weight, shape = self._weights[layer]
        if weight not in self._steps:
            raise UserError(
                f"gradients.preconditioner=adam: {self.path} has no second moments of {weight}. "
                f"Leave the layer out with gradients.layers, or use gradients.preconditioner=none."
            )
        second = self._file.get_tensor(weight)
        if tuple(second.shape) != shape:
            raise UserError(
                f"gradients.preconditioner=adam: {self.path} is of another model: {weight} has "
                f"shape {shape}, its second moments {tuple(second.shape)}. Remove the file."
            )
        corrected = second / (1 - self._beta2 ** self._steps[weight])
        return 1 / (corrected.sqrt() + self._eps)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def bare(name: str) -> str:
    """A module's or parameter's name without what PEFT puts around the layer."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")
