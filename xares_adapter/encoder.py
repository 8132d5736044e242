"""Any encoder of ours under X-ARES' contract."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from m2d_bench import compat
from m2d_bench.encoders import zoo
from m2d_bench.encoders.protocol import SceneEncoder, wrap
from m2d_bench.encoders.timestamps import regular_timestamp_embeddings
from m2d_bench.errors import UsageError
from m2d_bench.settings import Compute

MODEL_VARIABLE = "M2D_BENCH_MODEL"
"""Names the model where X-ARES makes the encoder, which it does without arguments."""

TRUST_VARIABLE = "M2D_BENCH_TRUST_REMOTE_CODE"
"""Is 1 there if the code that the repository of an hf: model holds may run."""


class XaresEncoder(nn.Module):
    """The last layer's frames, in float32; X-ARES chooses the device.

    X-ARES keeps embeddings and scores by the name of an encoder's class, so each object is of a class of its own, which
    is named after the digest.

    Args:
        model: A name of m2d-bench models, by default the one that `MODEL_VARIABLE` holds; or anybody's encoder.

    Attributes:
        sampling_rate: Hz.
        output_dim: D of the embeddings.
        hop_size_in_ms: Between two frames.

    Raises:
        UsageError: No model is named, or it has no timestamp embeddings.
    """

    def __init__(self, model: str | os.PathLike[str] | SceneEncoder | None = None) -> None:
        super().__init__()
        compat.restore_torchaudio()  # X-ARES reads sound files with it
        if model is None and not (model := os.environ.get(MODEL_VARIABLE)):
            raise UsageError(f"Which model? Name one of m2d-bench models in the environment's {MODEL_VARIABLE}.")
        if isinstance(model, str | os.PathLike):
            trust = os.environ.get(TRUST_VARIABLE) == "1"
            model = zoo.load(model, compute=Compute(device="cpu", precision="fp32", trust_remote_code=trust))
        self.encoder = model if isinstance(model, zoo.LoadedEncoder) else wrap(model)
        self.sampling_rate = self.encoder.sample_rate
        self.output_dim = self.encoder.timestamp_embedding_size
        self.hop_size_in_ms = self.encoder.hop_ms
        own_class: Any = type(f"M2DBench_{self.encoder.digest}_Encoder", (type(self),), {})
        self.__class__ = own_class

    def forward(self, waveform: Tensor) -> Tensor:
        """[B, S] → [B, T, D]. X-ARES pads a batch with zeros and tells no lengths, so they are encoded as sound."""
        embeddings, _ = regular_timestamp_embeddings(self.encoder, waveform, self.hop_size_in_ms)
        return embeddings
