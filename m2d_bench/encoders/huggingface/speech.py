"""Models that take waveforms through the convolutions of wav2vec 2.0: wav2vec 2.0, HuBERT, WavLM and their like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from m2d_bench.encoders.huggingface.base import HuggingFaceConfig, HuggingFaceEncoder
from m2d_bench.encoders.precision import autocast

TYPES = ("data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-conformer", "wavlm")
"""Their `model_type`."""


@dataclass(frozen=True, kw_only=True)
class SpeechConfig(HuggingFaceConfig):
    """Everything that, with the weights, determines an embedding.

    Args:
        normalise: Whether each clip is brought to zero mean and unit variance.
    """

    normalise: bool


class SpeechEncoder(HuggingFaceEncoder):
    """wav2vec 2.0, HuBERT, WavLM and models built like them.

    Clips of different lengths are encoded apart: models whose first convolution normalises over time
    (`feat_extract_norm` "group") cannot leave padding out, and attention under a mask rounds otherwise.

    Args:
        config: What was loaded.
        model: The model of transformers.
    """

    config: SpeechConfig

    def __init__(self, config: SpeechConfig, model: Any) -> None:
        super().__init__(config, model)
        kernels, strides = model.config.conv_kernel, model.config.conv_stride
        self.depth = model.config.num_hidden_layers
        self.hop_length = math.prod(strides)
        self.field_length = 1 + sum((size - 1) * math.prod(strides[:index]) for index, size in enumerate(kernels))
        self.centre = self.field_length / 2

    def _blocks(self, clips: Tensor, pooled: bool) -> tuple[Tensor, ...]:
        """Clips of one length [B, S] → the output of every block, [B, T, D] each.

        Source: `Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm` of transformers.
        """
        if self.config.normalise:
            variance, mean = torch.var_mean(clips, dim=1, keepdim=True, correction=0)
            clips = (clips - mean) / (variance + 1e-7).sqrt()
        clips = nn.functional.pad(clips, (0, max(0, self.field_length - clips.shape[1])))
        with autocast(self.precision, clips.device):
            output = self.model(clips.to(self.model.dtype), output_hidden_states=True)
        return (*output.hidden_states[1:-1], output.last_hidden_state)
