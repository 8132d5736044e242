"""Speech encoders of Hugging Face's transformers under the contract: wav2vec 2.0, HuBERT, WavLM and their like."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from m2d_bench import compat
from m2d_bench.encoders.protocol import autocast, digest_of
from m2d_bench.encoders.tensor_file import brief, listing
from m2d_bench.encoders.waveform import Lengths, Waveform, check_waveform
from m2d_bench.errors import CheckpointError, UsageError
from m2d_bench.registry import resolve

PREFIX = "hf:"
TYPES = ("data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-conformer", "wavlm")
"""The `model_type` of models that take waveforms through the convolutions of wav2vec 2.0."""

EMBEDDING_VERSION = 1
"""Part of every digest; raised when a change of the code changes embeddings."""

_LAYER = "@layer="
_TRAINING_ONLY = "masked_spec_embed"
"""What pre-training puts in the place of masked frames: some repositories lack it, and it changes no embedding."""

_PROVENANCE = ("_commit_hash", "_name_or_path", "architectures", "transformers_version")
"""Keys of a configuration that say where it comes from."""


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig:
    """Everything that, with the weights, determines an embedding.

    Args:
        name: Name of the model, for people; not part of its identity.
        layer: Block whose output is the embedding, counted from 1, as papers count them.
        sample_rate: Hz.
        normalise: Whether each clip is brought to zero mean and unit variance.
        model: The model's `config.json`, without where it comes from.
    """

    name: str
    layer: int
    sample_rate: int
    normalise: bool
    model: dict[str, Any]


class HuggingFaceEncoder(nn.Module):
    """wav2vec 2.0, HuBERT, WavLM and models built like them: waveform → embeddings.

    Clips of a batch are encoded together where they are of one length: models whose first convolution normalises over
    time (`feat_extract_norm` "group") cannot leave padding out, and attention under a mask rounds otherwise.

    Args:
        config: What was loaded.
        model: The model of transformers.
    """

    def __init__(self, config: HuggingFaceConfig, model: Any) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.precision: Literal["fp32", "bf16"] = "fp32"
        self.sample_rate = config.sample_rate
        kernels, strides = model.config.conv_kernel, model.config.conv_stride
        self.hop_length: int = math.prod(strides)
        self.field_length: int = 1 + sum((size - 1) * math.prod(strides[:index]) for index, size in enumerate(kernels))
        self.hop_ms = 1000 * self.hop_length / self.sample_rate
        self.scene_embedding_size = self.timestamp_embedding_size = int(model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where waveforms are taken."""
        return next(self.parameters()).device

    @property
    def digest(self) -> str:
        """SHA-256 over configuration (without the name) and weights as they are now, 16 hexadecimal digits.

        It reads all weights at every access; `protocol.wrap` keeps it.
        """
        config = {key: value for key, value in asdict(self.config).items() if key != "name"}
        weights = {key: tensor for key, tensor in self.model.state_dict().items() if key != _TRAINING_ONLY}
        return digest_of(["huggingface", EMBEDDING_VERSION, config], weights)

    def hidden_states(self, waveform: Waveform, lengths: Lengths | None = None) -> list[Tensor]:
        """Features of every block, the last one after the final norm where the model has one.

        The output of block N, which papers call layer N, is number N − 1 here and `hidden_states[N]` in transformers,
        whose number 0 is the input of the first block.

        Args:
            waveform: [S] or [B, S], tensor or array of floats in [-1, 1]; shorter than a frame (25 ms) is zero-padded.
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
        timestamps = (starts + self.field_length / 2) * 1000 / self.sample_rate
        return embeddings, timestamps.to(embeddings.device).expand(len(embeddings), -1)

    def scene_embeddings(self, waveform: Waveform, lengths: Lengths | None = None) -> Tensor:
        """Mean over time of the chosen layer's features: [B, D] float32. Args and Raises: as for `hidden_states`."""
        batch, counts = check_waveform(waveform, lengths, self.device)
        (embeddings,) = self._encode(batch, counts, slice(self.config.layer - 1, self.config.layer))
        return embeddings.sum(1) / self.frame_counts(counts).to(embeddings.device)[:, None]

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """Embedding frames of waveforms of the given lengths in samples."""
        return (lengths - self.field_length).clamp(min=0) // self.hop_length + 1

    def _encode(self, batch: Tensor, lengths: Tensor, layers: slice) -> list[Tensor]:
        """[B, S] → [B, T, D] float32 for each of the layers, zero beyond each row's end."""
        size = (len(batch), int(self.frame_counts(lengths).max()), self.timestamp_embedding_size)
        outputs = [
            torch.zeros(size, dtype=torch.float32, device=batch.device)
            for _ in range(self.model.config.num_hidden_layers)[layers]
        ]
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().flatten().to(batch.device)
            states = self._blocks(batch[rows, :length])[layers]
            for output, state in zip(outputs, states, strict=True):
                output[rows, : state.shape[1]] = state.float()
        return outputs

    def _blocks(self, clips: Tensor) -> tuple[Tensor, ...]:
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

    def extra_repr(self) -> str:
        return f"{self.config.name}, layer {self.config.layer}, {self.sample_rate} Hz, a frame every {self.hop_ms:g} ms"


def load(name: str) -> HuggingFaceEncoder:
    """Loads a speech encoder in float32, frozen and in evaluation mode, without running code of its repository.

    Args:
        name: `hf:REPO_OR_FOLDER`, with `@layer=N` for another layer than the last: a repository of huggingface.co, or a
            folder that `save_pretrained` of model and feature extractor wrote.

    Raises:
        UsageError: transformers is not installed, or an unknown kind of model or layer.
        CheckpointError: The model cannot be had, or lacks weights, or its feature extractor gives no waveforms.
    """
    transformers = import_transformers()
    source, at, layer = name.removeprefix(PREFIX).partition(_LAYER)
    source = os.path.expanduser(source)
    with _explained(name, source):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        written, _ = config.get_config_dict(source)
    if config.model_type not in TYPES:
        raise UsageError(f"{name}: is a model of type {config.model_type!r}; allowed are {', '.join(TYPES)}.")
    depth = config.num_hidden_layers
    if at and not (layer.isdecimal() and 1 <= int(layer) <= depth):
        raise UsageError(f"{name}: layer is {layer!r}; it is a whole number from 1 to {depth}, the last block.")
    with _explained(name, source):
        extractor = transformers.AutoFeatureExtractor.from_pretrained(source, trust_remote_code=False)
    if not isinstance(extractor, transformers.Wav2Vec2FeatureExtractor):
        raise CheckpointError(
            f"{name}: its preprocessor_config.json belongs to {type(extractor).__name__}; a {config.model_type} model "
            "takes the waveforms of a Wav2Vec2FeatureExtractor."
        )
    shown = Path(source).resolve().name if os.path.isdir(source) else source
    loaded = HuggingFaceConfig(
        name=f"{PREFIX}{shown}{at}{layer}",
        layer=int(layer) if at else depth,
        sample_rate=int(extractor.sampling_rate),
        normalise=bool(extractor.do_normalize),
        model={key: value for key, value in written.items() if key not in _PROVENANCE},
    )
    return HuggingFaceEncoder(loaded, _model(name, source, config)).eval().requires_grad_(False)


def _model(name: str, source: str, config: Any) -> Any:
    """The model with all its weights in float32."""
    config.add_adapter = False  # which shortens the last layer for another model behind it
    with _explained(name, source):
        model, report = import_transformers().AutoModel.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
        )
    random = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])} - {_TRAINING_ONLY}
    if random:
        raise CheckpointError(
            f"{name}: its weights lack {listing(sorted(random))}, or have them in another shape than config.json says."
        )
    return model


def import_transformers() -> Any:
    """The library; its progress bars are silent where stderr is no terminal."""
    if find_spec("torchaudio"):
        compat.import_torchaudio()  # transformers would stop at one whose compiled part does not load
    try:
        transformers = resolve("transformers")
    except ImportError:
        raise UsageError(f"{PREFIX} models need transformers. Run pip install 'm2d-bench[hf]'.") from None
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    return transformers


@contextmanager
def _explained(name: str, source: str) -> Iterator[None]:
    """What transformers raises for a repository or a folder it cannot load, as one error that says where it looked."""
    try:
        yield
    except Exception as error:  # transformers, huggingface_hub, safetensors and pickle each raise their own
        if os.path.isdir(source):
            where = (
                "The folder must hold what save_pretrained of model and feature extractor writes: config.json, "
                "preprocessor_config.json and model.safetensors."
            )
        else:
            where = (
                f"There is no folder {source!r}; the repository was looked for in the cache of huggingface_hub and at "
                "huggingface.co. Without network, fetch it elsewhere (hf download REPO --local-dir FOLDER) and pass "
                f"{PREFIX}FOLDER."
            )
        raise CheckpointError(f"{name}: transformers cannot load it: {brief(error)}. {where}") from error
