"""One vector per prompt."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from bpo_data import checkpoints
from bpo_data.engines import Job, Make, Place
from bpo_data.errors import UserError, some
from bpo_data.llm.endpoint import Endpoint
from bpo_data.llm.replies import Reply
from bpo_data.llm.requests import EmbeddingRequest
from bpo_data.policy import quiet_progress
from bpo_data.runtime import Runtime
from bpo_data.tables import columns, vectors

if TYPE_CHECKING:
    import numpy as np

    from bpo_data.llm.desk import Desk

BATCHES = 16
"""Batches of an encoder in a part."""
SECTION = "embed.options"
WAY_OUT = "Name a folder with safetensors weights, or a model of the hub that this machine reaches."


class Embedder(Protocol):
    def __call__(self, texts: Sequence[str], seed: int, desk: Desk) -> np.ndarray:
        """n texts -> (n, d) float32 rows of unit length; zeros where a text says nothing."""


class TfidfSvd:
    """TF-IDF of words and word pairs, squeezed by truncated SVD: offline, deterministic."""

    def __init__(self, dim: int = 64) -> None:
        if dim < 2:
            raise ValueError("dim must be at least 2")
        self.dim = dim

    def __call__(self, texts: Sequence[str], seed: int, desk: Desk) -> np.ndarray:
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

    def __call__(self, texts: Sequence[str], seed: int, desk: Desk) -> np.ndarray:
        import numpy as np

        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        rows = pa.table({"text": pa.array([texts[row] for row in order], pa.string())})
        schema = columns(vector=pa.list_(pa.float32()))
        part_rows = self.batch * BATCHES  # no batch straddles a part
        job = Job("vectors", rows, Encoding(self, desk.runtime), schema, part_rows)
        made = desk.spread(job, desk.done)
        found = made["vector"].combine_chunks().flatten().to_numpy().reshape(len(texts), -1)
        whole = np.empty_like(found)
        whole[order] = found
        return unit(whole)

    def load(self, folder: str, device: str) -> tuple[Any, Any]:
        """(model, tokenizer), in eval mode, from where ``model`` is. Raises UserError."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        quiet_progress()
        checkpoints.check_folder(folder, f"{SECTION}.model")
        with checkpoints.loading(folder, f"{SECTION}.model", WAY_OUT):
            tokenizer = AutoTokenizer.from_pretrained(
                folder, **checkpoints.options(folder, self.revision)
            )
            model = AutoModel.from_pretrained(
                folder, dtype=torch.float32, **checkpoints.weights(folder, self.revision)
            )
        return model.to(device).eval(), tokenizer


@dataclass(frozen=True)
class Encoding:
    """How a worker is set up to encode."""

    encoder: Encoder
    runtime: Runtime

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.encoder.model,)

    def __call__(self, place: Place) -> Make:
        folder, device = place.here(self.encoder.model), place.device(self.runtime)
        return partial(self.encoded, *self.encoder.load(folder, device))

    def encoded(self, model: Any, tokenizer: Any, part: pa.Table) -> pa.Table:
        """The mean of the last hidden states of each text of a part, in batches of their order."""
        import numpy as np
        import torch

        texts = part["text"].to_pylist()
        means: list[np.ndarray] = []
        with torch.no_grad():
            for start in range(0, len(texts), self.encoder.batch):
                tokens = tokenizer(
                    texts[start : start + self.encoder.batch],
                    padding=True,
                    truncation=True,
                    max_length=self.encoder.tokens,
                    return_tensors="pt",
                ).to(model.device)
                hidden = model(**tokens).last_hidden_state
                real = tokens["attention_mask"][..., None].float()
                means.append(((hidden * real).sum(1) / real.sum(1)).cpu().numpy())
        return pa.table({"vector": vectors(np.concatenate(means).astype(np.float32))})


@dataclass
class Server:
    """A model at any server that speaks OpenAI's embeddings API; vectors are kept, as replies are.

    A prompt without words is not sent. One that the server finds too long gets zeros, as one
    without words does: nothing is cut.
    """

    model: str
    """The server's name of the model."""

    base_url: str = "https://api.openai.com/v1"
    """The server: vLLM, text-embeddings-inference, Ollama, a vendor."""

    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the server's key."""

    dimensions: int = 0
    """Length of the vectors, for models that can shorten them; 0 leaves it to the model."""

    max_failed: float = 0.0
    """Share of requests that may fail for good before the stage stops; their rows are zeros."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is empty: name the model that the server has")
        if self.dimensions < 0 or not 0 <= self.max_failed <= 1:
            raise ValueError("dimensions must be 0 or more, max_failed a share from 0 to 1")
        self.endpoint = Endpoint(self.base_url, self.key_variable, section=SECTION)

    def ready(self) -> None:
        """Raise UserError when the server's key is missing."""
        self.endpoint.key()

    def requests(self, texts: Sequence[str]) -> list[EmbeddingRequest]:
        """What is asked; a text without words is not."""
        return [
            EmbeddingRequest(text, self.model, self.dimensions) for text in texts if text.strip()
        ]

    def __call__(self, texts: Sequence[str], seed: int, desk: Desk) -> np.ndarray:
        import numpy as np

        rows = [row for row, text in enumerate(texts) if text.strip()]
        replies = desk.complete(
            [(request, 0) for request in self.requests(texts)],
            self.endpoint,
            max_failed=self.max_failed,
            section=SECTION,
            on_done=desk.done,
        )
        vectors = {
            row: np.frombuffer(base64.b64decode(reply.text), dtype="<f4")
            for row, reply in zip(rows, replies, strict=True)
            if reply.state == "ok"
        }
        matrix = np.zeros((len(texts), self.length(vectors, replies)), dtype=np.float32)
        for row, vector in vectors.items():
            matrix[row] = vector
        return unit(matrix)

    def length(self, vectors: dict[int, np.ndarray], replies: Sequence[Reply]) -> int:
        """The one length that all vectors have. Raises UserError when they do not."""
        lengths = {len(vector) for vector in vectors.values()}
        found = " and ".join(map(str, sorted(lengths)))
        if len(lengths) > 1:
            raise UserError(
                f"{SECTION}.model={self.model} gave vectors of {found} numbers: the model was "
                f"changed under its name. Use another runtime.store, or a name with a version."
            )
        if self.dimensions and lengths - {self.dimensions}:
            raise UserError(
                f"{SECTION}.dimensions={self.dimensions}, but {SECTION}.model={self.model} gives "
                f"vectors of {found} numbers. Set {SECTION}.dimensions=0 to take them as they are."
            )
        if replies and not lengths:
            raise UserError(
                f"{SECTION}.model={self.model} gave no vector for any of "
                f"{some(len(replies), 'prompt')}: {replies[0].detail or replies[0].state} "
                f"Choose a model that takes longer texts."
            )
        return max(lengths, default=self.dimensions or 1)


def unit(matrix: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    import numpy as np

    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.divide(matrix, length, out=np.zeros_like(matrix), where=length > 0)


KINDS = {"tfidf_svd": TfidfSvd, "encoder": Encoder, "server": Server}
