"""A model's blocks through torch.compile while it is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel


class CompiledBlocks:
    """The blocks of a model, compiled one graph for all of them at their first use.

    Lengths vary, so the graphs are dynamic. Attention stays outside of them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        names = set(model._no_split_modules or ())
        self.blocks = [block for block in model.modules() if type(block).__name__ in names]
        if not self.blocks:
            raise ValueError(f"{type(model).__name__} does not say what its blocks are: no compile")
        self._ready: dict[nn.Module, object] = {}
        self.seconds = 0.0
        """Spent on compiling so far."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """The blocks run compiled inside the block and as before after it."""
        import torch._dynamo.config as dynamo
        import torch._functorch.config as functorch
        from torch._dynamo.utils import calculate_time_spent

        started = calculate_time_spent().get("entire_frame_compile", 0.0)
        before = [(block, block._compiled_call_impl) for block in self.blocks]
        try:
            for block in self.blocks:
                if block not in self._ready:
                    block.compile(dynamic=True)
                    self._ready[block] = block._compiled_call_impl
                block._compiled_call_impl = self._ready[block]
            # Taps hang on modules, and their sizes change. A prompt's graph is gone through once
            # for each of its responses.
            with (
                dynamo.patch(force_nn_module_property_static_shapes=False),
                functorch.patch(donated_buffer=False),
            ):
                yield
        finally:
            for block, call in before:
                block._compiled_call_impl = call
            spent = calculate_time_spent().get("entire_frame_compile", 0.0)
            self.seconds += spent - started
