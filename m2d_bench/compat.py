"""What s3prl 0.4.18, X-ARES and EVAR need of torchaudio, torchvision, huggingface_hub, catalyst and asteroid and no
longer find there.

`restore`, `restore_for_evar` and `restore_torchaudio` add it to this process alone, and only what is missing: where a
package still has a name, it keeps it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, Sampler

from m2d_bench.errors import UsageError


def restore() -> None:
    """Makes s3prl importable; calling it again changes nothing."""
    import_torch_libraries()
    torchaudio: Any = restore_torchaudio()
    _add(torchaudio, set_audio_backend=lambda backend: None, get_audio_backend=lambda: "soundfile", info=_info)
    if not _has_sox(torchaudio):
        effects = _module("torchaudio.sox_effects", apply_effects_file=apply_effects_file)
        effects.apply_effects_tensor = apply_effects  # type: ignore[attr-defined]
        torchaudio.sox_effects = effects
    _add(importlib.import_module("huggingface_hub"), HfFolder=_HfFolder, Repository=_Repository)
    if not _imports("catalyst.data.sampler"):
        for name in ("catalyst", "catalyst.data"):
            _module(name)
        _module("catalyst.data.sampler", DistributedSamplerWrapper=DistributedSamplerWrapper)
    if not _imports("asteroid.metrics"):
        _module("asteroid")
        _module("asteroid.metrics", get_metrics=get_metrics)
        _module("asteroid.losses", PITLossWrapper=None)  # imported, used by a loss that SUPERB does not choose
    if not _imports("sox"):
        _module("sox", Transformer=_Transformer)
    _module("tensorboard.compat.notf")  # TensorBoard's own switch: s3prl's logs need no TensorFlow, slow to import
    logging.getLogger("s3prl.upstream.espnet_hubert.expert").setLevel(logging.ERROR)  # that ESPnet is not installed
    torch.serialization.add_safe_globals([argparse.Namespace])  # s3prl's checkpoints hold its arguments


def restore_for_evar() -> None:
    """Makes what EVAR's scripts import importable; calling it again changes nothing."""
    import_torch_libraries()
    restore_torchaudio()
    if "imp" not in sys.modules and not find_spec("imp"):  # left Python with 3.12
        _module("imp", reload=importlib.reload)


def restore_torchaudio() -> ModuleType:
    """torchaudio, loading and saving with soundfile where torchcodec is missing; calling it again changes nothing."""
    torchaudio: Any = import_torchaudio()
    if not hasattr(torchaudio, "info") and not _imports("torchcodec"):  # torchaudio ≥ 2.9 decodes with it
        torchaudio.load, torchaudio.save = load, _save
    return torchaudio  # type: ignore[no-any-return]


def stay_on_cpu() -> None:
    """Hides GPUs, and lets `Tensor.cuda()`, which speaker verification calls anywhere, leave tensors where they are."""
    torch.cuda.is_available = lambda: False  # else s3prl's runner selects a GPU in any case
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]


def load(
    path: str | Path, frame_offset: int = 0, num_frames: int = -1, normalize: bool = True, channels_first: bool = True
) -> tuple[Tensor, int]:
    """torchaudio.load on soundfile: waveform [channels, frames] float32 in [-1, 1] and sample rate in Hz."""
    if not normalize:
        raise UsageError(
            "torchaudio.load(normalize=False) is not rebuilt; install torchcodec, or torchaudio below 2.9."
        )
    wave, rate = soundfile.read(str(path), num_frames, frame_offset, dtype="float32", always_2d=True)
    return torch.from_numpy(np.ascontiguousarray(wave.T if channels_first else wave)), rate


def apply_effects_file(path: str | Path, effects: Sequence[Sequence[str]]) -> tuple[Tensor, int]:
    """torchaudio.sox_effects.apply_effects_file for the effects of `apply_effects`."""
    return apply_effects(*load(path), effects)


def apply_effects(waveform: Tensor, sample_rate: int, effects: Sequence[Sequence[str]]) -> tuple[Tensor, int]:
    """The SoX effects that SUPERB's data sets are read with: channels 1, rate, gain (dB), silence.

    Args:
        waveform: [channels, frames].
        sample_rate: Hz.
        effects: Name and arguments of each.

    Returns:
        Waveform [channels, frames] float32 and its sample rate. Resampling is soxr's (SoX's own algorithm, without its
        dither); `silence` follows SoX's rules to the 20 ms window in which it measures level.

    Raises:
        UsageError: Another effect.

    Source: manual of SoX 14.4.2.
    """
    wave = waveform.numpy()
    for name, *arguments in effects:
        if name == "channels" and arguments == ["1"]:
            wave = wave.mean(0, keepdims=True)
        elif name == "rate":
            wave = soxr.resample(wave.T, sample_rate, int(arguments[0])).T
            sample_rate = int(arguments[0])
        elif name == "gain":
            wave = wave * 10 ** (float(arguments[0]) / 20)
        elif name == "silence" and arguments[0] == "1" and arguments[3] == "-1":
            seconds, level = float(arguments[1]), float(arguments[2].rstrip("%")) / 100
            wave = _without_silence(wave, round(seconds * sample_rate), level, round(0.02 * sample_rate))
        else:
            raise UsageError(
                f"SoX effect {name} {' '.join(arguments)} is not rebuilt; known: channels 1, rate, gain, "
                "silence 1 … -1 …. Install a torchaudio below 2.9 that has sox_effects."
            )
    return torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)), sample_rate


def _without_silence(wave: np.ndarray, samples: int, level: float, window: int) -> np.ndarray:
    """Cuts what is quieter than `level` (RMS over a window) for `samples` or longer; sound begins with as much of it.

    Args:
        wave: [1, frames].
        samples: Shortest stretch that counts as sound, and as silence.
        level: RMS, full scale 1.
        window: Samples.
    """
    energy = np.cumsum(np.pad(wave[0].astype(np.float64) ** 2, (window, 0)))
    loud = (energy[window:] - energy[:-window]) / window > level**2
    kept = np.zeros(len(loud), dtype=bool)
    begun, end = -1, 0  # of the stretch of sound we are in; -1 for silence
    for start, stop in _runs(loud):
        if begun >= 0 and start - end >= samples:
            kept[begun:end] = True
            begun = -1
        if begun < 0 and stop - start >= samples:
            begun = start
        end = stop
    if begun >= 0:
        kept[begun:end] = True
    return wave[:, kept]


def _runs(mask: np.ndarray) -> np.ndarray:
    """Start and end of every run of True, [runs, 2]."""
    return np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))).reshape(-1, 2)


def get_metrics(
    mix: np.ndarray, clean: np.ndarray, estimate: np.ndarray, *, metrics_list: Sequence[str], **ignored: Any
) -> dict[str, float]:
    """asteroid.metrics.get_metrics for SI-SDR in dB, mean over sources.

    Args:
        mix: [1, samples].
        clean: True sources, [sources, samples].
        estimate: Estimated ones in the same order, [sources, samples].
        metrics_list: ["si_sdr"]; another is an error.
        ignored: asteroid's other settings.

    Returns:
        `si_sdr` of the estimate, and `input_si_sdr` of the mixture.

    Source: Le Roux et al., "SDR – half-baked or well done?" (2019), without removal of the mean.
    """
    if list(metrics_list) != ["si_sdr"]:
        raise UsageError(f"Metrics {list(metrics_list)} need asteroid; si_sdr alone is rebuilt.")

    def si_sdr(guess: np.ndarray) -> float:
        scale = (clean * guess).sum(-1, keepdims=True) / (clean**2).sum(-1, keepdims=True)
        target = scale * clean
        return float(np.mean(10 * np.log10((target**2).sum(-1) / ((guess - target) ** 2).sum(-1))))

    return {"si_sdr": si_sdr(estimate), "input_si_sdr": si_sdr(np.broadcast_to(mix, clean.shape))}


class DistributedSamplerWrapper(DistributedSampler[Any]):
    """catalyst's wrapper: shares the indices that another sampler draws among the processes."""

    def __init__(self, sampler: Sampler[Any], **settings: Any) -> None:
        super().__init__(_Drawn(sampler), **settings)
        self.sampler = sampler

    def __iter__(self) -> Any:
        self.dataset = _Drawn(self.sampler)
        return iter([self.dataset[index] for index in super().__iter__()])


class _Drawn(Dataset[Any]):
    """One pass of a sampler as a list."""

    def __init__(self, sampler: Sampler[Any]) -> None:
        self.indices = list(sampler)

    def __getitem__(self, index: int) -> Any:
        return self.indices[index]

    def __len__(self) -> int:
        return len(self.indices)


class _HfFolder:
    """What s3prl imports of huggingface_hub < 1.0: the stored token."""

    @staticmethod
    def get_token() -> str | None:
        """The token in force."""
        from huggingface_hub import get_token

        return get_token()

    @staticmethod
    def save_token(token: str) -> None:
        """Stores a token."""
        from huggingface_hub import login

        login(token)


class _Repository:
    """What s3prl imports of huggingface_hub < 1.0 to push results; it has no successor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise UsageError("--push_to_hf_hub needs huggingface_hub below 1.0: pip install 'huggingface_hub<1'.")


class _Transformer:
    """What s3prl imports of pysox; only recipes outside SUPERB use it."""

    def __init__(self) -> None:
        raise UsageError("This needs SoX: install the program, and pip install sox.")


def import_torch_libraries() -> None:
    """Imports torchaudio and torchvision, as far as they are installed, where other libraries would stop at them."""
    for name, import_library in (("torchaudio", import_torchaudio), ("torchvision", import_torchvision)):
        if find_spec(name):
            import_library()


def import_torchaudio() -> ModuleType:
    """torchaudio; where its compiled extension does not load (CUDA build beside a CPU-only torch), without it."""
    try:
        return importlib.import_module("torchaudio")
    except (OSError, RuntimeError):  # RuntimeError: of another CUDA
        pass
    _forget("torchaudio")
    sys.modules["torchaudio.lib._torchaudio"] = None  # type: ignore[assignment]  # before 2.9, it then does without
    try:
        return importlib.import_module("torchaudio")
    except (OSError, RuntimeError):
        _forget("torchaudio")

    def unavailable(function: Any) -> Any:
        return function

    _module(
        "torchaudio._extension",
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        fail_if_no_align=unavailable,
    )
    return importlib.import_module("torchaudio")


def _forget(package: str) -> None:
    """Lets a package that broke off half imported be imported anew."""
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]


def _has_sox(torchaudio: Any) -> bool:
    """Whether SoX effects run: torchaudio 2.9 removed them; before, they need its compiled part and SoX's library."""
    extension = getattr(sys.modules.get("torchaudio._extension"), "lazy_import_sox_ext", None)
    return hasattr(torchaudio, "sox_effects") and (extension is None or extension().is_available())


def import_torchvision() -> ModuleType:
    """torchvision; where its compiled operators do not load (CUDA build beside a CPU-only torch), without them."""
    try:
        return importlib.import_module("torchvision")
    except (OSError, RuntimeError):
        _forget("torchvision")
        _module("torchvision._meta_registrations")
        return importlib.import_module("torchvision")


def _info(path: str | Path, *args: Any, **kwargs: Any) -> Any:
    """torchaudio.info on soundfile."""
    found = soundfile.info(str(path))
    return argparse.Namespace(sample_rate=found.samplerate, num_frames=found.frames, num_channels=found.channels)


def _save(path: str | Path, waveform: Tensor, sample_rate: int, *args: Any, **kwargs: Any) -> None:
    """torchaudio.save on soundfile."""
    soundfile.write(str(path), waveform.T.numpy(), sample_rate)


def _module(name: str, **names: Any) -> ModuleType:
    """A module of this name with these contents, in sys.modules."""
    module = ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module
    return module


def _add(module: ModuleType, **names: Any) -> None:
    """Sets the names that a module lacks."""
    for name, value in names.items():
        if not hasattr(module, name):
            setattr(module, name, value)


def _imports(name: str) -> bool:
    """Whether a module is installed and can be imported."""
    if name in sys.modules:
        return True
    try:
        importlib.import_module(name)
    except (ImportError, AttributeError, OSError, RuntimeError):
        return False
    return True
