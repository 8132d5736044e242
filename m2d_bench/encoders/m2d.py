"""The encoder of the M2D family: waveform → log-mel → windows → transformer → embeddings."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, constants, hf_hub_download
from torch import Tensor, nn
from typing_extensions import Self

from m2d_bench.encoders import checkpoint
from m2d_bench.encoders.checkpoint import Checkpoint
from m2d_bench.encoders.config import EncoderConfig
from m2d_bench.encoders.digest import digest_of
from m2d_bench.encoders.frontend import HOP_MS, LogMel
from m2d_bench.encoders.precision import autocast
from m2d_bench.encoders.vit import ViT
from m2d_bench.encoders.waveform import Lengths, Waveform, check_waveform
from m2d_bench.errors import AudioError, CheckpointError, StorageError, brief
from m2d_bench.settings import make_folder

logger = logging.getLogger(__name__)

EMBEDDING_VERSION = 1
"""Part of every digest; raised when a change of the code changes embeddings, so that caches and records start anew."""

_TOKENS_AT_ONCE = 16384
"""Patch tokens per forward pass of the blocks: bounds the memory of long audio."""

_CARD = """---
{{ card_data }}
---

# {{ config.name }}

Audio encoder of the Masked Modeling Duo family, {{ config.sample_rate }} Hz: embeddings of {{ size }} numbers every
{{ hop_ms }} ms, and their mean over a clip. Its digest in m2d-bench is `{{ digest }}`.

```python
from m2d_bench import M2DEncoder

encoder = M2DEncoder.from_pretrained("REPO_OR_FOLDER")
embeddings = encoder.scene_embeddings(waveform)  # [B, samples] in [-1, 1] at {{ config.sample_rate }} Hz
```

`config.json` shows the configuration that `model.safetensors` holds.
{% if scores %}
## Scores

{{ scores }}
{% endif %}{% if commands %}
Repeated by:

```console
{{ commands }}
```
{% endif %}"""
"""Template of a model card, for Jinja."""


class M2DEncoder(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="m2d-bench",
    pipeline_tag="feature-extraction",
    tags=["audio", "m2d"],
    model_card_template=_CARD,
):
    """Encoder of the M2D family (M2D, M2D-S, M2D-X, M2D-AS, MSM-MAE): waveform → embeddings.

    `save_pretrained(folder)` writes model.safetensors, config.json and a model card, `push_to_hub(repo)` uploads them
    to huggingface.co. `model_card_kwargs=results.model_card(encoder.digest, runs)` writes its scores on the card.

    Source: M2D-X (2024), III-A2, eq. 4.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = LogMel(config.sample_rate)
        self.vit = ViT(config.vit)
        self.precision: Literal["fp32", "bf16"] = "fp32"
        self.sample_rate = config.sample_rate
        self.hop_ms = HOP_MS * config.vit.patch_size[1]
        stacked = config.vit.grid_size[0] if config.features == "stacked" else 1
        self.scene_embedding_size = self.timestamp_embedding_size = stacked * config.vit.width

    @classmethod
    def from_checkpoint(cls, found: Checkpoint) -> Self:
        """The encoder with a checkpoint's weights, frozen and in evaluation mode."""
        encoder = cls(found.config)
        encoder.vit.load_state_dict(found.encoder)
        return encoder.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **settings: Any) -> Self:
        """Loads what `save_pretrained` or `push_to_hub` wrote, frozen and in evaluation mode.

        Args:
            pretrained_model_name_or_path: A folder, or a repository of huggingface.co.
            settings: `revision`, `cache_dir`, `force_download`, `local_files_only` and `token` of huggingface_hub; the
                others change the configuration, as those of `zoo.load`.

        Raises:
            CheckpointError: The repository cannot be had, or the files are not what was written.
            UsageError: Unknown setting.
        """
        name = pretrained_model_name_or_path
        try:
            return super().from_pretrained(name, **settings)
        except (OSError, ValueError, AttributeError) as error:  # of huggingface_hub, and of a config.json that is none
            raise CheckpointError(
                f"{name}: cannot be loaded: {brief(error)}. It must be a folder that save_pretrained wrote, or a "
                "repository of huggingface.co, which is looked for in the cache of huggingface_hub first. Without "
                "network, fetch it elsewhere (hf download REPO --local-dir FOLDER). m2d_bench.load_encoder(NAME) loads "
                "the other names of m2d-bench models."
            ) from error

    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> str | None:
        """Writes the encoder and a model card.

        Args:
            save_directory: A folder; made where there is none.
            settings: Of huggingface_hub, such as `model_card_kwargs`.

        Raises:
            UsageError: The folder cannot be made or written to.
        """
        make_folder(Path(save_directory))
        return super().save_pretrained(save_directory, **settings)

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:
        """Uploads what `save_pretrained` writes; the address of the commit.

        Args:
            repo_id: A repository of huggingface.co, made where there is none.
            settings: Of huggingface_hub, such as `token`, `private` and `model_card_kwargs`.

        Raises:
            StorageError: It cannot be uploaded.
        """
        try:
            return super().push_to_hub(repo_id, **settings)
        except TypeError:  # no such setting
            raise
        except Exception as error:  # huggingface_hub and what it sends with each raise their own
            raise StorageError(
                f"{repo_id}: cannot be uploaded: {brief(error)}. It must be USER/NAME at huggingface.co, which you may "
                "write to (hf auth login, or token=…). Without network, save_pretrained(FOLDER) writes the same, "
                "and hf upload REPO FOLDER uploads it elsewhere."
            ) from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: Any = None, **settings: Any) -> Self:
        """Reads the weights; `config` is what config.json says."""
        names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        options = {name: settings.pop(name) for name in names}
        if Path(model_id).is_dir():
            path = Path(model_id) / constants.SAFETENSORS_SINGLE_FILE
        else:
            path = Path(hf_hub_download(model_id, constants.SAFETENSORS_SINGLE_FILE, **options))
        found = checkpoint.read(path)
        if config not in (None, inside := json.loads(json.dumps(asdict(found.config)))):
            changed = [key for key in inside if config.get(key) != inside[key]]
            raise CheckpointError(
                f"{model_id}: config.json contradicts {path.name}, which holds the configuration it was written with: "
                f"{', '.join(changed) or 'unknown settings'}. Remove config.json; from_pretrained takes other settings."
            )
        return cls.from_checkpoint(replace(found, config=checkpoint.change(found.config, settings)))

    def _save_pretrained(self, save_directory: Path) -> None:
        """Writes weights and configuration as they are now."""
        found = Checkpoint(config=self.config, encoder=self.vit.state_dict())
        checkpoint.save(found, save_directory / constants.SAFETENSORS_SINGLE_FILE)
        (save_directory / constants.CONFIG_NAME).write_text(json.dumps(asdict(self.config), indent=2))
        card = save_directory / "README.md"
        if card.exists() and self.digest not in card.read_text(encoding="utf-8", errors="replace"):
            logger.warning("%s: stays, though it names another encoder; remove it to have it written anew.", card)

    def generate_model_card(self, *args: Any, **facts: Any) -> ModelCard:
        """The model card; `facts` are the fields of `results.model_card`."""
        size, hop = self.timestamp_embedding_size, f"{self.hop_ms:g}"
        return super().generate_model_card(
            *args, config=self.config, digest=self.digest, size=size, hop_ms=hop, **facts
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where waveforms are taken."""
        return self.vit.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; embeddings are float32 whatever it is."""
        return self.vit.cls_token.dtype

    @property
    def digest(self) -> str:
        """SHA-256 over the configuration (without the name) and the weights as they are now, 16 hexadecimal digits.

        It reads all weights at every access; `protocol.wrap` keeps it.
        """
        config = {key: value for key, value in asdict(self.config).items() if key != "name"}
        if config["vit"]["class_token"]:  # the rule, which digests did not name when they were first written down
            del config["vit"]["class_token"]
        return digest_of([EMBEDDING_VERSION, config], self.vit.state_dict())

    def hidden_states(
        self, waveform: Waveform, lengths: Lengths | None = None, *, sample_rate: int | None = None
    ) -> list[Tensor]:
        """Features of every block, the last one after the final norm.

        Args:
            waveform: [S] or [B, S], tensor or array of floats in [-1, 1], from 25 ms to hours.
            lengths: Real samples of each row of a padded batch; each row then gets what it gets alone, and zeros in
                the frames beyond its end (see `frame_counts`).
            sample_rate: Rate of the waveform, checked if given.

        Returns:
            One [B, T, D] float32 tensor a block; D = N_F·width stacked, width flat.

        Raises:
            AudioError: Wrong rate, shape, type or length, or values that are not finite.
        """
        batch, lengths = self._check(waveform, lengths, sample_rate)
        return self.encode_log_mel(*self.log_mel(batch, lengths))

    def timestamp_embeddings(
        self, waveform: Waveform, lengths: Lengths | None = None, *, sample_rate: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Last layer's features and the centres of their frames.

        Args and Raises: as for `hidden_states`.

        Returns:
            Embeddings [B, T, D] float32, and timestamps [B, T] float64 in milliseconds from the start.
        """
        batch, lengths = self._check(waveform, lengths, sample_rate)
        (embeddings,) = self.encode_log_mel(*self.log_mel(batch, lengths), last_only=True)
        timestamps = self._timestamps(embeddings.shape[1], int(self.front_end.frame_counts(lengths).max()))
        return embeddings, timestamps.to(embeddings.device).expand(len(embeddings), -1)

    def scene_embeddings(
        self, waveform: Waveform, lengths: Lengths | None = None, *, sample_rate: int | None = None
    ) -> Tensor:
        """Mean over time of the last layer's features: [B, D] float32. Args and Raises: as for `hidden_states`."""
        batch, lengths = self._check(waveform, lengths, sample_rate)
        (embeddings,) = self.encode_log_mel(*self.log_mel(batch, lengths), last_only=True)
        counts = self.frame_counts(lengths).to(embeddings.device)
        return embeddings.sum(1) / counts[:, None]

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """Embedding frames of waveforms of the given lengths in samples."""
        frames = self.front_end.frame_counts(lengths)
        return self._columns(frames, self.window(int(frames.max()))).sum(1)

    def log_mel(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised log-mel spectrograms of a padded batch, and their real numbers of frames.

        Args:
            waveform: [B, S] float32.
            lengths: [B] samples.

        Returns:
            [B, 1, 80, frames], zero beyond each row's end, and [B] frames.
        """
        mean, std = self.config.norm_stats
        frames = self.front_end.frame_counts(lengths)
        if bool((lengths == lengths[0]).all()):
            return (self.front_end(waveform[:, : int(lengths[0])]) - mean) / std, frames
        rows = [self.front_end(row[None, :n])[0] for row, n in zip(waveform, lengths.tolist(), strict=True)]
        longest = int(frames.max())
        return torch.stack([nn.functional.pad((r - mean) / std, (0, longest - r.shape[-1])) for r in rows]), frames

    def encode_log_mel(self, log_mel: Tensor, frames: Tensor, *, last_only: bool = False) -> list[Tensor]:
        """Encodes normalised log-mel spectrograms window by window.

        Args:
            log_mel: [B, C, F, frames], zero beyond each row's end.
            frames: Real frames of each row, [B].
            last_only: Return the last layer alone.

        Returns:
            [B, T, D] float32 per layer, zero beyond each row's end.
        """
        patch_time = self.config.vit.patch_size[1]
        window = self.window(int(frames.max()))
        columns = self._columns(frames, window)
        n_windows, widest = columns.shape[1], int(columns.max())
        padded = nn.functional.pad(log_mel, (0, n_windows * window - log_mel.shape[-1]))
        windows = padded.unfold(-1, window, window).permute(0, 3, 1, 2, 4)  # a view [B, n_windows, C, F, window]
        n_layers = 1 if last_only else self.config.vit.depth
        size = (*columns.shape, widest, self.timestamp_embedding_size)
        outputs = [log_mel.new_zeros(size, dtype=torch.float32) for _ in range(n_layers)]
        for row, index in self._groups(columns):
            width = int(columns[row, index].max())
            x = windows[row, index][..., : width * patch_time]
            layers = self._encode_windows(x, columns[row, index], self._positions(width))
            for output, layer in zip(outputs, layers[-n_layers:], strict=True):
                output[row, index, :width] = layer
        total = int(columns.sum(1).max())
        return [output.flatten(1, 2)[:, :total] for output in outputs]

    def encode_patches(self, log_mel: Tensor, kept: Tensor, *, last_only: bool = False) -> list[Tensor]:
        """Encodes some patches of a window.

        Args:
            log_mel: Normalised, [B, C, F, whole patches] of one window at most.
            kept: Indices into the frequency-major patches, [B, n].
            last_only: Return the last layer alone.

        Returns:
            [B, n, width] float32 per layer.
        """
        with autocast(self.precision, log_mel.device):
            positions = self._positions(log_mel.shape[-1] // self.config.vit.patch_size[1])
            tokens = self.vit.embed(log_mel.to(self.dtype), positions)
            layers = self.vit(tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1])))
        return [layer[:, self.vit.n_class_tokens :].float() for layer in (layers[-1:] if last_only else layers)]

    def _groups(self, columns: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows that are encoded together, as (row, place) indices.

        The widest windows go first, without a mask; all narrower ones follow under one. Each width goes alone in one
        pass, where it has positions of its own, and below fp32, where masked attention rounds otherwise than unmasked.
        """
        widest = int(columns.max())
        below_fp32 = self.precision == "bf16" or torch.is_autocast_enabled(self.device.type)
        if self._positions_of_each_width or below_fp32 or self.dtype != torch.float32:
            alike = [columns == width for width in columns[columns > 0].unique().tolist()]
        else:
            alike = [columns == widest, (columns > 0) & (columns < widest)]
        at_once = max(1, _TOKENS_AT_ONCE // (self.config.vit.grid_size[0] * widest))
        for group in alike:
            for chosen in group.nonzero().split(at_once):
                if len(chosen):
                    yield chosen[:, 0], chosen[:, 1]

    @property
    def _positions_of_each_width(self) -> bool:
        """Whether inputs of different widths have different positional embeddings."""
        return self.config.encoding == "one_pass" and self.config.dur_frames is None

    def _positions(self, width: int) -> Tensor:
        """Positional embedding of a window of `width` patch columns, [N_F, width, D]."""
        whole = width if self._positions_of_each_width else self.window(0) // self.config.vit.patch_size[1]
        return self.vit.positions(whole)[:, :width]

    def _encode_windows(self, x: Tensor, columns: Tensor, positions: Tensor) -> list[Tensor]:
        """[W, C, F, frames] of which `columns` [W] patch columns are real → [W, columns, D] a layer."""
        n_freq, n_time = self.config.vit.grid_size[0], x.shape[-1] // self.config.vit.patch_size[1]
        real = (torch.arange(n_time) < columns[:, None]).to(x.device)
        ragged = bool((columns < n_time).any())
        with autocast(self.precision, x.device):
            layers = self.vit(self.vit.embed(x.to(self.dtype), positions), real.repeat(1, n_freq) if ragged else None)
        results = []
        for layer in layers:
            grid = layer[:, self.vit.n_class_tokens :].float().unflatten(1, (n_freq, n_time)).transpose(1, 2)
            features = grid.flatten(2) if self.config.features == "stacked" else grid.mean(2)
            results.append(features * real[..., None] if ragged else features)
        return results

    def window(self, frames: int) -> int:
        """Frames of a window: the model's input size, or the whole input (to whole patches) in one pass."""
        if self.config.encoding == "chunks":
            return self.config.vit.input_size[1]
        patch_time = self.config.vit.patch_size[1]
        return self.config.dur_frames or -(-frames // patch_time) * patch_time

    def window_columns(self, frames: int) -> list[int]:
        """Patch columns of each window of an input of so many frames."""
        return [int(n) for n in self._columns(torch.tensor([frames]), self.window(frames))[0]]

    def _columns(self, frames: Tensor, window: int) -> Tensor:
        """Patch columns in each window of each row, [B, windows]; the last window is padded to whole patches."""
        patch_time = self.config.vit.patch_size[1]
        starts = torch.arange(0, int(frames.max()), window)
        real = (frames[:, None] - starts).clamp(0, window)
        return (-(-real // patch_time)).clamp(max=window // patch_time)

    def _timestamps(self, count: int, frames: int) -> Tensor:
        """Centres in ms of the first `count` patch columns; a spectrogram frame is centred at its index × hop."""
        patch_time = self.config.vit.patch_size[1]
        window = self.window(frames)
        per_window = window // patch_time
        index = torch.arange(count, dtype=torch.float64)
        first_frame = (index // per_window) * window + (index % per_window) * patch_time
        return (first_frame + (patch_time - 1) / 2) * HOP_MS

    def _check(self, waveform: Waveform, lengths: Lengths | None, sample_rate: int | None) -> tuple[Tensor, Tensor]:
        """Waveforms as [B, S] float32 on the encoder's device and lengths [B] on the CPU, or an AudioError."""
        if sample_rate is not None and sample_rate != self.sample_rate:
            raise AudioError(
                f"The waveform is at {sample_rate} Hz, {self.config.name} takes {self.sample_rate} Hz. "
                f"Read it with m2d_bench.audio.read(path, {self.sample_rate}), or resample it with "
                f"soxr.resample(waveform, {sample_rate}, {self.sample_rate})."
            )
        return check_waveform(waveform, lengths, self.device)

    def extra_repr(self) -> str:
        return f"{self.config.name}, {self.sample_rate} Hz, a frame every {self.hop_ms:g} ms"
