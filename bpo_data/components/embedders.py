"""One vector per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from bpo_data.errors import UserError

if TYPE_CHECKING:
    import numpy as np


class Embedder(Protocol):
    def __call__(self, texts: Sequence[str], seed: int, device: str) -> np.ndarray:
        """n texts -> (n, d) float32 rows of unit length; zeros where a text says nothing."""


class TfidfSvd:
    """TF-IDF of words and word pairs, squeezed by truncated SVD: offline, deterministic."""

    def __init__(self, dim: int = 64) -> None:
        if dim < 2:
            raise ValueError("dim must be at least 2")
        self.dim = dim

    def __call__(self, texts: Sequence[str], seed: int, device: str) -> np.ndarray:
        import numpy as np
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from threadpoolctl import threadpool_limits

        words = TfidfVectorizer(
            token_pattern=r"(?u)\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True
        ).fit_transform(texts)
        dim = min(self.dim, *(size - 1 for size in words.shape))
        if dim < 1:  # one prompt, or one word in all
            return unit(words.toarray().astype(np.float32))
        with threadpool_limits(1):  # more threads add in another order
            rows = TruncatedSVD(dim, random_state=seed).fit_transform(words)
        return unit(rows.astype(np.float32))


class Encoder:
    """A sentence encoder: mean of a transformers model's last hidden states over real tokens."""

    def __init__(self, model: str, revision: str = "", batch: int = 64, tokens: int = 256) -> None:
        self.model = model
        self.revision = revision
        self.batch = batch
        self.tokens = tokens

    def __call__(self, texts: Sequence[str], seed: int, device: str) -> np.ndarray:
        import numpy as np
        import torch
        from transformers import AutoModel, AutoTokenizer

        revision = {"revision": self.revision} if self.revision else {}
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model, **revision)
            model = AutoModel.from_pretrained(
                self.model, use_safetensors=True, dtype=torch.float32, **revision
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0][:200]
            raise UserError(
                f"embed.options.model={self.model} cannot be loaded: {reason} Name a folder with "
                f"safetensors weights, or a model of the hub that this machine reaches."
            ) from error
        model.to(device).eval()
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        rows: list[np.ndarray] = [np.empty(0)] * len(texts)
        with torch.no_grad():
            for start in range(0, len(texts), self.batch):
                chosen = order[start : start + self.batch]
                tokens = tokenizer(
                    [texts[row] for row in chosen],
                    padding=True,
                    truncation=True,
                    max_length=self.tokens,
                    return_tensors="pt",
                ).to(device)
                hidden = model(**tokens).last_hidden_state
                real = tokens["attention_mask"][..., None].float()
                means = ((hidden * real).sum(1) / real.sum(1)).cpu().numpy()
                for row, mean in zip(chosen, means, strict=True):
                    rows[row] = mean
        return unit(np.stack(rows).astype(np.float32))


def unit(matrix: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    import numpy as np

    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.divide(matrix, length, out=np.zeros_like(matrix), where=length > 0)


KINDS = {"tfidf_svd": TfidfSvd, "encoder": Encoder}
