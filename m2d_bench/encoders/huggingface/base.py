"""What encoders on transformers share: identity, batches of one length, frames on a grid."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from m2d_bench.encoders.digest import digest_of
from m2d_bench.encoders.waveform import Lengths, Waveform, check_waveform

EMBEDDING_VERSION = 1
"""Part of every digest; raised when a change of the code changes embeddings."""

TRAINING_ONLY = "masked_spec_embed"
"""What pre-training puts in the place of masked frames: some repositories lack it, and it changes no embedding."""


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig:
    """Everything that, with the weights, determines an embedding.

    Args:
        name: Name of the model, for people; not part of its identity.
        layer: Block whose output is the embedding, counted from 1, as papers count them.
        sample_rate: Hz.
        model: The model's `config.json`, without where it comes from.
    """

    name: str
    layer: int
    sample_rate: int
    model: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig(HuggingFaceConfig):
    """The same for a model that takes what its feature extractor makes of a waveform.

    Args:
        extractor: The feature extractor's `preprocessor_config.json`.
        code: SHA-256 of the repository's code that is run; None if none is.
    """

    extractor: dict[str, Any]
    code: str | None = None


class HuggingFaceEncoder(nn.Module):
    """A model of transformers whose frames lie on a known grid: waveform → embeddings.

    Clips of one length are encoded together, others apart: an embedding never depends on padding. A subclass gives the
    grid and `_blocks`.

    Attributes:
        depth: Number of layers.
        hop_length: Samples between frames.
        field_length: Samples of a clip that its first frame needs; its next needs a hop more.
        centre: Middle of the first frame, in samples.

    Args:
        config: What was loaded.
        model: The model of transformers.
    """

    depth: int
    hop_length: int
    field_length: int
    centre: float

    def __init__(self, config: HuggingFaceConfig, model: Any) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.precision: Literal["fp32", "bf16"] = "fp32"
        self.sample_rate = config.sample_rate
        self.scene_embedding_size = self.timestamp_embedding_size = int(model.config.hidden_size)

    @property
    def hop_ms(self) -> float:
        """Milliseconds between timestamps."""
        return 1000 * self.hop_length / self.sample_rate

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where waveforms are taken."""
        return next(self.parameters()).device

    @property
    def digest(self) -> str:
        """Identity of the weights as they are now and the configuration, see `digest_of_model`."""
        return digest_of_model(self.config, self.model)

    def hidden_states(self, waveform: Waveform, lengths: Lengths | None = None) -> list[Tensor]:
        """Features of every block, the last one after the final norm where the model has one.

        The output of block N, which papers call layer N, is number N − 1 here and `hidden_states[N]` in transformers,
        whose number 0 is the input of the first block.

        Args:
            waveform: [S] or [B, S], tensor or array of floats in [-1, 1]; shorter than 25 ms is zero-padded.
            lengths: Real samples of each row of a padded batch; each row then gets what it gets alone, and zeros in
                the frames beyond its end (see `frame_counts`).

        Returns:
            One [B, T, D] float32 tensor a block.

        Raises:
            AudioError: Wrong shape, type or length, or values that are not finite.
        """
        batch, counts = check_waveform(waveform, lengths, self.device)
        return self._encode(batch, counts, slice(None))

    def timestamp_embeddings(self, waveform: Waveform, lengths: Lengths | None = None) -> tuple[Tensor, Tensor]:
        """Features of the chosen layer and the centres of their frames.

        Args and Raises: as for `hidden_states`.

        Returns:
            Embeddings [B, T, D] float32, and timestamps [B, T] float64 in milliseconds from the start.
        """
        batch, counts = check_waveform(waveform, lengths, self.device)
        (embeddings,) = self._encode(batch, counts, slice(self.config.layer - 1, self.config.layer))
        starts = torch.arange(embeddings.shape[1], dtype=torch.float64) * self.hop_length
        centres = (starts + self.centre).repeat(len(batch), 1)
        centres[:, 0] = centres[:, 0].minimum(counts)  # of a clip shorter than half its frame
        return embeddings, (centres * 1000 / self.sample_rate).to(embeddings.device)

    def scene_embeddings(self, waveform: Waveform, lengths: Lengths | None = None) -> Tensor:
        """Mean over time of the chosen layer's features, or what the model itself has for a clip: [B, D] float32.

        Args and Raises: as for `hidden_states`.
        """
        batch, counts = check_waveform(waveform, lengths, self.device)
        (embeddings,) = self._encode(batch, counts, slice(self.config.layer - 1, self.config.layer), pooled=True)
        return embeddings.sum(1) / self.frame_counts(counts).to(embeddings.device)[:, None]

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """Embedding frames of waveforms of the given lengths in samples."""
        return (lengths - self.field_length).clamp(min=0) // self.hop_length + 1

    def _encode(self, batch: Tensor, lengths: Tensor, layers: slice, pooled: bool = False) -> list[Tensor]:
        """[B, S] → [B, T, D] float32 for each of the layers, zero beyond each row's end."""
        size = (len(batch), int(self.frame_counts(lengths).max()), self.timestamp_embedding_size)
        outputs = [torch.zeros(size, dtype=torch.float32, device=batch.device) for _ in range(self.depth)[layers]]
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().flatten().to(batch.device)
            states = self._blocks(batch[rows, :length], pooled)[layers]
            for output, state in zip(outputs, states, strict=True):
                output[rows, : state.shape[1]] = state.float()
        return outputs

    def _blocks(self, clips: Tensor, pooled: bool) -> tuple[Tensor, ...]:
        """Clips of one length [B, S] → the output of every block, [B, T, D] each.

        Args:
            clips: Waveforms.
            pooled: Give every frame what its model has for the clip, where it has such a thing; the frames' mean is the
                scene embedding.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.config.name}, layer {self.config.layer}, {self.sample_rate} Hz, a frame every {self.hop_ms:g} ms"


def digest_of_model(config: HuggingFaceConfig, model: nn.Module) -> str:
    """SHA-256 over configuration (without the name) and weights, 16 hexadecimal digits.

    It reads all weights; `protocol.wrap` keeps it.
    """
    settings = {key: value for key, value in asdict(config).items() if key != "name"}
    weights = {key: tensor for key, tensor in model.state_dict().items() if key != TRAINING_ONLY}
    return digest_of(["huggingface", EMBEDDING_VERSION, settings], weights)
