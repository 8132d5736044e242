"""`hf:REPO_OR_FOLDER[@layer=N]` → an encoder."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from m2d_bench import compat
from m2d_bench.encoders.huggingface.base import TRAINING_ONLY, ExtractorConfig, HuggingFaceEncoder
from m2d_bench.encoders.huggingface.measured import MeasuredEncoder, measure
from m2d_bench.encoders.huggingface.speech import TYPES, SpeechConfig, SpeechEncoder
from m2d_bench.encoders.huggingface.windows import KINDS, WindowEncoder
from m2d_bench.encoders.protocol import Encoder
from m2d_bench.errors import CheckpointError, UsageError, brief
from m2d_bench.registry import listing, resolve

PREFIX = "hf:"

_LAYER = "@layer="

_PROVENANCE = ("_commit_hash", "_name_or_path", "architectures", "transformers_version")
"""Keys of a configuration that say where it comes from."""

_CLASSES = ("auto_map", "processor_class")
"""Keys of a configuration that name classes, and where they lie."""

_AUDIO_PARTS = ("audio_tower", "audio_encoder", "speech_encoder")
"""What transformers calls the part of a larger model that takes sound."""


class _Repository(NamedTuple):
    """What a repository or folder holds beside the weights.

    Args:
        name: As the user wrote it.
        source: The repository or folder in it.
        layer: The layer in it, unchecked; None for the last.
        trusted: Whether code of the repository may run.
        config: The model's configuration.
        written: Its `config.json`.
        extractor: The feature extractor.
        prepared: Its `preprocessor_config.json`.
    """

    name: str
    source: str
    layer: str | None
    trusted: bool
    config: Any
    written: dict[str, Any]
    extractor: Any
    prepared: dict[str, Any]

    @property
    def runs_code(self) -> bool:
        """Whether code of the repository runs."""
        named = {**self.written.get("auto_map", {}), **self.prepared.get("auto_map", {})}
        return self.trusted and not named.keys().isdisjoint({"AutoConfig", "AutoModel", "AutoFeatureExtractor"})

    def facts(self, depth: int) -> dict[str, Any]:
        """Name, layer and sample rate for the configuration of an encoder with so many layers.

        Raises:
            UsageError: No such layer.
        """
        layer = self.layer
        if layer is not None and layer not in map(str, range(1, depth + 1)):
            raise UsageError(
                f"{self.name}: layer is {layer!r}; it is a whole number from 1 to {depth}, the last block."
            )
        shown = Path(self.source).resolve().name if os.path.isdir(self.source) else self.source
        return {
            "name": f"{PREFIX}{shown}" + (f"{_LAYER}{layer}" if layer else ""),
            "layer": int(layer) if layer else depth,
            "sample_rate": int(self.extractor.sampling_rate),
        }


def load(name: str, *, trust_remote_code: bool = False) -> HuggingFaceEncoder | Encoder:
    """Loads a model in float32, frozen and in evaluation mode.

    Args:
        name: `hf:REPO_OR_FOLDER`, with `@layer=N` for another layer than the last: a repository of huggingface.co, or a
            folder that `save_pretrained` of model and feature extractor wrote.
        trust_remote_code: Run the code that the repository holds, where it holds some.

    Raises:
        UsageError: transformers is not installed; no such layer; a model that gives no frames for a clip; or code of
            the repository would have to run.
        CheckpointError: The model cannot be had, or lacks weights, or its feature extractor takes no waveforms.
    """
    repository = _read(name, trust_remote_code)
    if not hasattr(repository.extractor, "sampling_rate"):
        kind = type(repository.extractor).__name__
        raise CheckpointError(f"{name}: its preprocessor_config.json belongs to {kind}, which takes no waveforms.")
    model_type = repository.config.model_type
    if repository.runs_code or model_type not in (*TYPES, *KINDS):
        return _measured(repository)
    encoder = _speech(repository) if model_type in TYPES else _windowed(repository)
    return encoder.eval().requires_grad_(False)


def _read(name: str, trusted: bool) -> _Repository:
    """What a repository holds beside the weights."""
    transformers = import_transformers()
    source, at, layer = name.removeprefix(PREFIX).partition(_LAYER)
    source = os.path.expanduser(source)
    with _explained(name, source):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trusted)
        written, _ = config.get_config_dict(source)
        extractor = transformers.AutoFeatureExtractor.from_pretrained(source, trust_remote_code=trusted)
        prepared, _ = extractor.get_feature_extractor_dict(source)
    return _Repository(name, source, layer if at else None, trusted, config, written, extractor, prepared)


def _speech(repository: _Repository) -> SpeechEncoder:
    extractor, config = repository.extractor, repository.config
    if not isinstance(extractor, import_transformers().Wav2Vec2FeatureExtractor):
        raise CheckpointError(
            f"{repository.name}: its preprocessor_config.json belongs to {type(extractor).__name__}; a "
            f"{config.model_type} model takes the waveforms of a Wav2Vec2FeatureExtractor."
        )
    settings = SpeechConfig(
        **repository.facts(config.num_hidden_layers),
        model=_without(repository.written, _PROVENANCE),
        normalise=bool(extractor.do_normalize),
    )
    return SpeechEncoder(settings, _model(repository))


def _windowed(repository: _Repository) -> WindowEncoder:
    kind = KINDS[repository.config.model_type]
    settings = _with_extractor(repository, kind.depth or repository.config.num_hidden_layers)
    return WindowEncoder(settings, _model(repository, kind.parts), repository.extractor)


def _measured(repository: _Repository) -> Encoder:
    config, extractor = repository.config, repository.extractor
    parts = (*_AUDIO_PARTS, "encoder") if config.is_encoder_decoder else _AUDIO_PARTS
    model = _model(repository, parts).eval().requires_grad_(False)
    measured = measure(repository.name, model, extractor)
    code = _code(config, extractor, model) if repository.runs_code else None
    settings = _with_extractor(repository, measured.depth, code)
    return Encoder(MeasuredEncoder(settings, model, extractor, measured).eval())


def _with_extractor(repository: _Repository, depth: int, code: str | None = None) -> ExtractorConfig:
    return ExtractorConfig(
        **repository.facts(depth),
        model=_without(repository.written, _PROVENANCE + _CLASSES),
        extractor=_without(repository.prepared, _PROVENANCE + _CLASSES),
        code=code,
    )


def _without(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def _code(*parts: Any) -> str:
    """SHA-256 of the Python files beside those of the parts' classes, where transformers put them to run them."""
    folders = {
        Path(inspect.getfile(type(part))).parent for part in parts if "transformers_modules" in type(part).__module__
    }
    files = {path.name: path for folder in folders for path in folder.glob("*.py")}
    sha = hashlib.sha256()
    for name, path in sorted(files.items()):
        sha.update(f"{name}\0".encode() + path.read_bytes())
    return sha.hexdigest()


def _model(repository: _Repository, parts: Sequence[str] = ()) -> Any:
    """The model with all its weights in float32; of its parts the first that it has, if it has one."""
    config = repository.config
    config.add_adapter = False  # which shortens the last layer for another model behind it
    with _explained(repository.name, repository.source):
        model, report = import_transformers().AutoModel.from_pretrained(
            repository.source,
            config=config,
            dtype=torch.float32,
            trust_remote_code=repository.trusted,
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
        )
    part = next((part for part in parts if hasattr(model, part)), None)
    lacking = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])} - {TRAINING_ONLY}
    if random := [key for key in sorted(lacking) if part is None or key.startswith(f"{part}.")]:
        raise CheckpointError(
            f"{repository.name}: its weights lack {listing(random)}, or have them in another shape than config.json "
            "says."
        )
    return getattr(model, part) if part else model


def import_transformers() -> Any:
    """The library; its progress bars are silent where stderr is no terminal."""
    compat.import_torch_libraries()  # transformers would stop at one whose compiled part does not load
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
        if "trust_remote_code" in str(error):
            raise UsageError(
                f"{name}: comes with code of its own, which is not run unasked. Read the .py files of {source}; to run "
                "them add --trust-remote-code, in Python trust_remote_code=True. Tools that take a name alone (superb, "
                "evar, xares) take FILE.py:FUNCTION, a function of yours that returns "
                f"m2d_bench.load_encoder({name!r}, trust_remote_code=True)."
            ) from error
        if os.path.isdir(source):
            where = (
                "The folder must hold what save_pretrained of model and feature extractor writes: config.json, "
                "preprocessor_config.json and model.safetensors. One that M2DEncoder.save_pretrained wrote is named "
                f"without {PREFIX}."
            )
        else:
            where = (
                f"There is no folder {source!r}; the repository was looked for in the cache of huggingface_hub and at "
                "huggingface.co. Without network, fetch it elsewhere (hf download REPO --local-dir FOLDER) and pass "
                f"{PREFIX}FOLDER."
            )
        raise CheckpointError(f"{name}: transformers cannot load it: {brief(error)}. {where}") from error
