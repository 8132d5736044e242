"""A model's name → an encoder: shipped, released, a path, random weights, or another library's."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from m2d_bench import archives, download
from m2d_bench.cache.entries import mark_used
from m2d_bench.encoders import baseline, checkpoint, classifier, foreign, hear, huggingface, s3prl, tensor_file
from m2d_bench.encoders.checkpoint import Checkpoint
from m2d_bench.encoders.classifier import Classifier
from m2d_bench.encoders.huggingface import HuggingFaceEncoder
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.protocol import Encoder
from m2d_bench.encoders.vit import ViT, initialise
from m2d_bench.errors import CheckpointError, UsageError
from m2d_bench.registry import listing, unknown
from m2d_bench.settings import Compute, Storage, make_cache, make_folder

logger = logging.getLogger(__name__)

DEFAULT = "m2d_tiny"
RANDOM = "random:"
_SHIPPED = Path(__file__).with_name(DEFAULT) / f"{DEFAULT}.safetensors"
_RANDOM_SEED = 0
REPOSITORY = "https://github.com/nttcslab/m2d"
"""Where the released weights and their licence are."""
_RELEASES = f"{REPOSITORY}/releases/download"
LoadedEncoder = M2DEncoder | HuggingFaceEncoder | Encoder
"""What a name may give."""

FORMS = {
    "a path": "a .pth, .pt, .ckpt, .bin or .safetensors file",
    "random:NAME": "NAME's architecture with random weights",
    "logmel": "mean and standard deviation of the log-mel spectrogram, without a network",
    "FILE.py:NAME or MODULE:NAME": "your own encoder: a class, or a function that gives one",
    "hear:MODULE[@WEIGHTS]": "a model under the HEAR 2021 common API",
    "s3prl:NAME[@CKPT]": "an upstream of s3prl",
    "hf:REPO_OR_FOLDER[@layer=N]": "an audio encoder of Hugging Face (HuBERT, WavLM, Whisper, AST, CLAP, …)",
}
"""What else a name may be, beside those that are listed, and what it gives."""

_OTHERS: dict[str, Callable[..., LoadedEncoder]] = {
    baseline.NAME: baseline.load,
    hear.PREFIX: hear.load,
    s3prl.PREFIX: s3prl.load,
    huggingface.PREFIX: huggingface.load,
}
"""What loads an encoder that is not of the family, by its name or the prefix of it."""

_LARGEST = 2 << 30
"""Bytes of a released .pth file; the largest have less than 1 GiB."""
_SHORT = ("device", "precision", "trust_remote_code")
"""Settings of `Compute` that `load` takes by themselves."""
LICENCE = f"NTT's own licence, for evaluation: {REPOSITORY}"


@dataclass(frozen=True)
class Release:
    """Released weights: a zip file in a release of github.com/nttcslab/m2d that holds one folder of this name."""

    name: str
    tag: str
    about: str
    checksum: str = ""
    """Of the zip file, as `sha256:…` where it is known; else the one of the first download counts."""

    @property
    def url(self) -> str:
        """Address of the zip file."""
        return f"{_RELEASES}/{self.tag}/{self.name}.zip"


RELEASED = {
    release.name: release
    for release in (
        Release("m2d_vit_base-80x608p16x16-221006-mr7", "v0.1.0", "M2D, masking ratio 0.7, AudioSet"),
        Release("m2d_vit_base-80x608p16x16-221006-mr6", "v0.1.0", "M2D, masking ratio 0.6, AudioSet"),
        Release("m2d_vit_base-80x608p16x16-221006-mr7_enconly", "v0.1.0", "M2D, masking ratio 0.7, encoder only"),
        Release("m2d_vit_base-80x608p16x16-220930-mr7_enconly", "v0.1.0", "M2D, masking ratio 0.7, encoder only"),
        Release("m2d_vit_base-80x200p16x4-230529", "v0.1.0", "M2D, a frame every 40 ms, AudioSet"),
        Release("m2d_as_vit_base-80x608p16x16-240213", "v0.1.0", "M2D-AS, AudioSet with labels"),
        Release("m2d_as_vit_base-80x608p16x16p32k-240413_enconly", "v0.1.0", "M2D-AS at 32 kHz, encoder only"),
        Release("m2d_clap_vit_base-80x608p16x16-240128", "v0.1.0", "M2D-CLAP, AudioSet with captions"),
        Release("m2d_s_vit_base-80x608p80x2-230220", "v0.2.0", "M2D-S, 6 s input, LibriSpeech"),
        Release("m2d_s_vit_base-80x512p80x2-230301", "v0.2.0", "M2D-S, 5 s input, LibriSpeech"),
        Release("m2d_s_vit_base-80x400p80x2-230201", "v0.2.0", "M2D-S, 4 s input, LibriSpeech"),
        Release("m2d_vit_base-80x1001p16x16-221006-mr7_as_46ab246d", "v0.3.0", "M2D fine-tuned on AudioSet"),
        Release("m2d_as_vit_base-80x1001p16x16-240213_AS-FT_enconly", "v0.3.0", "M2D-AS fine-tuned on AudioSet"),
        Release("m2d_as_vit_base-80x1001p16x16p32k-240413_AS-FT_enconly", "v0.3.0", "the same at 32 kHz"),
        Release("m2d_clap_vit_base-80x1001p16x16-240128_AS-FT_enconly", "v0.3.0", "M2D-CLAP fine-tuned on AudioSet"),
        Release("m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025", "v0.5.0", "M2D-CLAP of 2025, AudioSet with captions"),
    )
}


def load(
    name: str | os.PathLike[str] = DEFAULT,
    *,
    compute: Compute = Compute(),
    storage: Storage = Storage(),
    **changes: Any,
) -> LoadedEncoder:
    """Loads an encoder by name, frozen and in evaluation mode.

    Args:
        name: `m2d_tiny` (the default) · a released name · a path to .pth, .pt, .ckpt, .bin or .safetensors ·
            another of the `FORMS`.
        compute: Device, precision, and whether code of an `hf:` repository may run. `logmel`, `hear:`, `s3prl:` and
            your own code keep their own precision.
        storage: The cache folder released weights are downloaded into.
        changes: `device`, `precision` and `trust_remote_code`, short for `compute`; and settings of an encoder of the
            family to change: `features`, `encoding`, `dur_frames`, `norm_stats`, `sample_rate`.

    Raises:
        UsageError: Unknown name or setting.
        CheckpointError: The weights cannot be had, or are not what they claim to be.
    """
    shorthand = {key: changes.pop(key) for key in _SHORT if key in changes}
    compute = replace(compute, **shorthand)
    encoder: LoadedEncoder
    if not isinstance(name, str | os.PathLike):
        raise UsageError(
            f"An encoder is loaded by name, got {type(name).__name__}. An encoder itself goes where a name does: "
            "m2d_bench.linear(encoder, …), m2d_bench.encoders.check.check_encoder(encoder)."
        )
    if other := _other(text := os.fspath(name)):
        if changes:
            hint = " A layer of hf: is in its name, @layer=9." if "layer" in changes else ""
            raise UsageError(f"{text}: has no settings {', '.join(changes)}; it is not of the M2D family.{hint}")
        trust = {"trust_remote_code": compute.trust_remote_code} if other is huggingface.load else {}
        encoder = other(text, **trust)
    else:
        encoder = M2DEncoder.from_checkpoint(read(name, storage=storage, **changes))
    encoder = encoder.to(compute.torch_device())
    if not isinstance(encoder, Encoder):
        encoder.precision = compute.resolved_precision()
    elif compute.precision not in ("auto", encoder.precision):
        logger.warning("%s computes in %s, whatever precision is asked for.", text, encoder.precision)
    return encoder


def load_m2d(name: str | os.PathLike[str] = DEFAULT, **settings: Any) -> M2DEncoder:
    """Loads an encoder of the M2D family, as `load` does; a name of another encoder is a UsageError."""
    if _other(os.fspath(name)):
        raise _other_family(os.fspath(name))
    encoder = load(name, **settings)
    assert isinstance(encoder, M2DEncoder)
    return encoder


def load_classifier(
    name: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    multilabel: bool | None = None,
    clip_seconds: float | None = None,
    compute: Compute = Compute(),
    storage: Storage = Storage(),
) -> Classifier:
    """Loads a fine-tuned model with its head, frozen and in evaluation mode.

    Args:
        name: As for `load`; a model with a head.
        classes: Names of the head's outputs; by default those the checkpoint says, else numbers.
        multilabel: Whether a clip may have several; by default what the checkpoint says.
        clip_seconds: Duration that shorter clips are zero-padded to; by default what the checkpoint says.
        compute: Device and precision.
        storage: The cache folder released weights are downloaded into.

    Raises:
        UsageError: Unknown name.
        CheckpointError: The weights cannot be had, or have no head or another number of classes.
    """
    found = classifier.build(read(name, storage=storage), classes, multilabel, clip_seconds).to(compute.torch_device())
    found.encoder.precision = compute.resolved_precision()
    return found


def read(name: str | os.PathLike[str], *, storage: Storage = Storage(), **changes: Any) -> Checkpoint:
    """The checkpoint behind a name, with everything it holds. Args and Raises: as for `load`."""
    name = os.fspath(name)
    if _other(name):
        raise _other_family(name)
    if name == DEFAULT:
        return _shipped(**changes)
    if name.startswith(RANDOM):
        return _random(name, changes)
    if name in RELEASED:
        return checkpoint.read(_released(RELEASED[name], storage.cache_root / "weights"), **changes)
    path = Path(os.path.expanduser(name))
    if name and (path.exists() or path.suffix.lower() in tensor_file.SUFFIXES):
        return checkpoint.read(path, **changes)
    raise unknown(
        "model", name, [DEFAULT, RANDOM, *_OTHERS, *RELEASED], f"m2d-bench models, or give {', '.join(FORMS)}"
    )


def _other(name: str) -> Callable[..., LoadedEncoder] | None:
    """What loads an encoder that is not of the family; None for all other names."""
    if name.startswith(RANDOM):  # also a module's name
        return None
    prefix, colon, rest = name.partition(":")
    if prefix + colon in _OTHERS and colon and not rest.partition("@")[0]:
        raise UsageError(
            f"{name} names no model. Write {next(form for form in FORMS if form.startswith(prefix + colon))}."
        )
    return _OTHERS.get(prefix + colon) or (foreign.load if foreign.is_reference(name) else None)


def _other_family(name: str) -> UsageError:
    """The error for an encoder that is evaluated as it is, where a model of the M2D family is needed."""
    return UsageError(
        f"{name} is no model of the M2D family, whose log-mel patches and positions this trains or reads: it takes "
        f"{DEFAULT}, a released name, {RANDOM}NAME or a checkpoint's path. Others are evaluated as they are: m2d-bench "
        f"linear, embed and check take {name}, and so do pretrain --teacher, superb -u m2d_bench and evar's settings "
        "encoder_bench."
    )


def _shipped(**changes: Any) -> Checkpoint:
    """The weights that come with this package; where they are damaged, the error says to reinstall it."""
    try:
        return checkpoint.read(_SHIPPED, **{"name": DEFAULT, **changes})
    except CheckpointError as error:
        raise CheckpointError(f"{error} It comes with m2d-bench: reinstall that.") from error


def _random(name: str, changes: dict[str, Any]) -> Checkpoint:
    """Fresh weights, the same for the same architecture on every machine."""
    architecture = name.removeprefix(RANDOM)
    config = _shipped().config if architecture == DEFAULT else checkpoint.parse_name(architecture)
    if config is None:
        raise UsageError(
            f"{name!r} names no architecture. After {RANDOM} comes {DEFAULT} or a name in the released form, such as "
            f"m2d_vit_base-80x608p16x16 or m2d_s_vit_small-80x400p80x2p16k."
        )
    config = checkpoint.change(config, {"name": name, **changes})
    vit = initialise(ViT(config.vit), torch.Generator().manual_seed(_RANDOM_SEED))
    return Checkpoint(config=config, encoder=vit.state_dict())


def _released(release: Release, folder: Path) -> Path:
    """Path of released weights in the cache, downloaded and unpacked once."""
    target = folder / release.name
    if checkpoint.files_in(target):  # a cache that is only read needs no lock
        mark_used(Path(f"{target}.lock"))
        return target
    make_cache(folder.parent)
    make_folder(folder, "--cache")
    with FileLock(f"{target}.lock"):
        if not checkpoint.files_in(target):
            archive = folder / f"{release.name}.zip"
            manual = f"put its .pth file into {target}"
            logger.warning("%s: %s", release.name, LICENCE)
            download.fetch(release.url, archive, manual=manual, option="--cache")
            with (
                download.discarding(release.url, archive, manual),
                download.known(archive, release.checksum, folder.with_name("weights.sha256")),
            ):
                _unpack(archive, target)
            archive.unlink()
    return target


def _unpack(archive: Path, target: Path) -> None:
    """Takes the one .pth file out of a released zip; it appears in the target folder as a checkpoint, or not at all."""
    partial = target.with_name(f"{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        members = archives.check([archive], _checkpoint_file)
        if len(members) != 1:
            names = listing([name for name, _ in members]) or "none"
            raise CheckpointError(f"{archive}: holds {len(members)} .pth files ({names}), expected one.")
        name, size = Path(members[0][0]).name, members[0][1]
        if size > _LARGEST:
            raise CheckpointError(f"{archive}: its .pth file has {size} bytes, expected are at most {_LARGEST}.")
        archives.unpack([archive], partial, _checkpoint_file, "--cache")
        checkpoint.read(partial / name)
        target.mkdir(exist_ok=True)
        os.replace(partial / name, target / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _checkpoint_file(name: str) -> str | None:
    """The file name of a zip's entry that is a checkpoint; not of a folder, or of what macOS adds."""
    path = Path(name)
    return path.name if path.suffix == ".pth" and path.name[0] != "." and "__MACOSX" not in path.parts else None
