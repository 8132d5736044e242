"""Any encoder as one of mteb's: under its EncoderProtocol, with its ModelMeta."""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import numpy as np
import soundfile

from m2d_bench import compat
from m2d_bench.encoders import zoo
from m2d_bench.encoders.protocol import Encoder, SceneEncoder, wrap
from m2d_bench.errors import DataError, UsageError
from m2d_bench.evaluation.embeddings import embed_files
from m2d_bench.registry import resolve
from m2d_bench.settings import Compute, Storage

ORGANISATION = "m2d-bench/"
"""Stands before the name of an encoder in mteb, which asks for one; the name is quoted as in a URL."""

_CLIPS_AT_ONCE = 256
"""Clips whose files are in memory and in the temporary folder at once."""


class MTEBEncoder:
    """An encoder under mteb's `EncoderProtocol`, for audio-only tasks.

    Clips of any length and rate are decoded, mixed down and resampled as `m2d-bench embed` does files, and embedded
    whole; no embedding depends on batch mates.

    Args:
        encoder: Any encoder.
        compute: Decoding threads, and the batch size where mteb names none.
    """

    mteb_model_meta: Any = None
    """Metadata, set by mteb's `ModelMeta.load_model`."""

    def __init__(self, encoder: SceneEncoder, compute: Compute = Compute()) -> None:
        self.encoder, self.compute = wrap(encoder), compute

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        batch_size: int | None = None,
        **ignored: Any,
    ) -> np.ndarray:
        """Embeddings of a data set's column `audio`, [N, D] float32.

        Args:
            inputs: A DataLoader, whose data set is read.
            task_metadata: The task, for messages.
            hf_split: Its split, likewise.
            hf_subset: Its subset, likewise.
            batch_size: Clips per forward pass.
            ignored: What else mteb's encoders may be told.

        Raises:
            UsageError: The data set has no such column.
            DataError: Clips that cannot be embedded, each with the reason.
        """
        dataset, audio_feature = inputs.dataset, resolve("datasets").Audio
        if "audio" not in dataset.features:
            raise UsageError(
                f"{task_metadata.name}: its column audio is missing, there are {', '.join(dataset.features)}. "
                "Encoders of m2d-bench take audio alone."
            )
        dataset = dataset.select_columns("audio")
        if isinstance(dataset.features["audio"], audio_feature):
            dataset = dataset.cast_column("audio", audio_feature(decode=False))  # decoding there needs FFmpeg
        compute = replace(self.compute, batch_size=batch_size or self.compute.batch_size)
        parts = [np.empty((0, self.encoder.scene_embedding_size), np.float32)]
        failures: list[str] = []
        for start in range(0, len(dataset), _CLIPS_AT_ONCE):
            sounds = dataset[start : start + _CLIPS_AT_ONCE]["audio"]
            embeddings, failed = self._embed(dict(enumerate(sounds, start)), compute)
            parts.append(embeddings)
            failures += failed
        if failures:
            where = f"{task_metadata.name}, split {hf_split}, subset {hf_subset}"
            raise DataError("\n".join([f"{where}: {len(failures)} clips cannot be embedded:", *failures]))
        return np.concatenate(parts)

    def _embed(self, sounds: Mapping[int, Any], compute: Compute) -> tuple[np.ndarray, list[str]]:
        """Embeddings of sounds by row, and a message for each row that has none."""
        files: dict[Path, str] = {}
        failures: list[str] = []
        ordered: list[Path] = []
        with TemporaryDirectory(prefix="m2d-bench-") as folder:
            for row, sound in sounds.items():
                try:
                    file = _file(sound, Path(folder) / str(row))
                except (TypeError, LookupError, ValueError, RuntimeError):
                    failures.append(
                        f"row {row}: no sound, which has array and sampling_rate, or bytes or path; got "
                        f"{reprlib.repr(sound)}."
                    )
                    continue
                ordered.append(file)
                files.setdefault(file, f"row {row} ({file.name if file.is_relative_to(folder) else file})")
            _, embeddings, failed = embed_files(self.encoder, ordered, compute)
        for message in failed:
            for file, shown in files.items():
                message = message.replace(str(file), shown)
            failures.append(message)
        return embeddings, failures

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine similarity of each of N with each of M embeddings, [N, M]."""
        return resolve("mteb.similarity_functions").cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine similarity of N pairs, [N]."""
        return resolve("mteb.similarity_functions").pairwise_cos_sim(embeddings1, embeddings2)


def _file(sound: Mapping[str, Any], folder: Path) -> Path:
    """A sound as a file: the one it names, or one in this folder with its bytes or its samples [S] or [channels, S]."""
    if "array" not in sound and sound["bytes"] is None:
        return Path(sound["path"])
    folder.mkdir()
    if "array" in sound:
        file, samples = folder / "clip.wav", np.asarray(sound["array"], dtype=np.float32)
        soundfile.write(file, samples.T, int(sound["sampling_rate"]), subtype="FLOAT")
        return file
    file = folder / Path(sound["path"] or "clip").name
    file.write_bytes(sound["bytes"])
    return file


def load(model: str | os.PathLike[str] | SceneEncoder, compute: Compute, storage: Storage) -> Encoder:
    """The encoder of a name, or somebody's, under the whole contract."""
    if isinstance(model, str | os.PathLike):
        return wrap(zoo.load(model, compute=compute, storage=storage))
    return wrap(model)


def model_meta(
    model: str | os.PathLike[str] | SceneEncoder = zoo.DEFAULT,
    compute: Compute = Compute(),
    storage: Storage = Storage(),
) -> Any:
    """An encoder's `ModelMeta`, which `mteb.evaluate` takes, and whose `load_model` gives an `MTEBEncoder`.

    Its revision is the digest of weights and settings: mteb, which keeps results by name and revision, never takes
    those of another encoder.

    Args:
        model: A model's name (see `zoo.load`), or anybody's encoder, which keeps its own device and precision.
        compute: Device, precision, decoding threads.
        storage: Cache folder of the weights.

    Raises:
        UsageError: Unknown model, or mteb is not installed.
        CheckpointError: The weights cannot be had.
    """
    import_mteb()
    encoder = load(model, compute, storage)

    def make(name: str, revision: str, *, device: str | None = None, **experiment: Any) -> MTEBEncoder:
        return MTEBEncoder(encoder.to(device) if device else encoder, compute)

    released = encoder.name in zoo.RELEASED
    weights = list(encoder.parameters())
    return resolve("mteb.models.model_meta").ModelMeta(
        loader=make,
        name=ORGANISATION + quote(encoder.name, safe=""),
        revision=encoder.digest,
        experiment_kwargs=None if encoder.precision == "fp32" else {"encoder_precision": encoder.precision},
        modalities=["audio"],
        n_parameters=sum(weight.numel() for weight in weights),
        n_embedding_parameters=0,
        memory_usage_mb=sum(weight.nbytes for weight in weights) / 2**20,
        embed_dim=encoder.scene_embedding_size,
        max_tokens=None,
        similarity_fn_name="cosine",
        framework=["PyTorch"],
        use_instructions=False,
        open_weights=True if released else None,
        license=zoo.REPOSITORY if released else None,
        reference=zoo.REPOSITORY if released else None,
        public_training_code=None,
        public_training_data=None,
        training_datasets=None,
        release_date=None,
        languages=None,
    )


def import_mteb() -> Any:
    """The library; progress bars of data sets are silent where stderr is no terminal.

    Raises:
        UsageError: It is not installed.
    """
    if find_spec("mteb") is None:
        raise UsageError(
            "MTEB needs the package mteb. Run pip install 'm2d-bench[mteb]' with Python 3.11 or newer; this is "
            f"{sys.version_info.major}.{sys.version_info.minor}."
        )
    compat.import_torch_libraries()  # libraries that mteb imports would stop at one whose compiled part does not load
    if not sys.stderr.isatty():
        resolve("datasets").disable_progress_bars()
    return resolve("mteb")
