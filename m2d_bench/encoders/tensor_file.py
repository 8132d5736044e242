"""Files of tensors: read without running anything that is in them, and checked before they are believed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from m2d_bench import archives
from m2d_bench.errors import CheckpointError, brief
from m2d_bench.registry import listing

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_ZIP = b"PK\x03\x04"
_INTEGERS = ("norm_stats", "num_batches_tracked")
"""Ends of the keys that may hold whole numbers; weights are floating-point."""
_ALIASED = 4
"""Tensors may share what is stored, tied weights do: together they are at most this many times as large."""


class _Unread:
    """Stands for an object beside the tensors; its own class is neither imported nor called."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_PATHS = [f"{kind}{system}Path" for kind in ("", "Pure") for system in ("Posix", "Windows")]
_OMEGACONF = {
    "dictconfig": ["DictConfig"],
    "listconfig": ["ListConfig"],
    "base": ["ContainerMetadata", "Metadata"],
    "nodes": [f"{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean", "Enum", "Path", "Bytes")],
}
"""What Lightning keeps of a module that Hydra configured; these refer to the types below."""
_UNREAD = [
    *(f"{module}.{path}" for module in ("pathlib", "pathlib._local") for path in _PATHS),
    *("argparse.Namespace", "datetime.date", "datetime.datetime", "datetime.timedelta"),
    *(f"omegaconf.{module}.{kind}" for module, kinds in _OMEGACONF.items() for kind in kinds),
    *("typing.Any", "collections.defaultdict", *(f"builtins.{kind}" for kind in ("dict", "list", "int"))),
]
_NUMPY: list[tuple[str, Any]] = [
    ("scalar", np.float64().__reduce__()[0]),
    ("_reconstruct", np.zeros(0).__reduce__()[0]),
]
_ALLOWED: list[Any] = [
    *((_Unread, name) for name in _UNREAD),
    *((call, f"numpy.{core}.multiarray.{name}") for name, call in _NUMPY for core in ("core", "_core")),
    *(np.dtype, np.ndarray, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}),
]
"""What trainers keep beside the tensors; of NumPy numbers only, for its texts believe the size that a file states."""


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote: tensors and plain values. The sums its zip carries are compared, which torch does not.

    Reading 340 MB for it takes 0.2 s.

    Raises:
        CheckpointError: It cannot be read, is damaged, or holds Python objects of other kinds.
    """
    start = b""
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if start.startswith(_ZIP):
            _check_sums(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_ALLOWED):
            warnings.simplefilter("ignore")  # torch's words on files that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        begins = "" if start.startswith(_ZIP) else f"; the file begins with {start!r}"
        raise CheckpointError(
            f"{path}: cannot be loaded safely: {_cause(error)}{begins}. Only tensors and plain values are "
            "read from a pickle, nothing in it is run. Get the file anew, or save the weights alone where they were "
            "made: torch.save({'model': model.state_dict()}, FILE)."
        ) from None


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and its metadata.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {brief(error)}. Get the file anew.") from error


def check(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Each tensor has numbers of its own, floating-point and finite ones.

    Raises:
        CheckpointError: Lists those that have not, by fault.
    """
    refuse(path, _by_fault(_type_fault, tensors))
    storages = [tensor.untyped_storage() for tensor in tensors.values()]
    stored = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > _ALIASED * stored:
        raise CheckpointError(f"{path}: its tensors claim {claimed} bytes of {stored} stored. Get the file anew.")
    refuse(path, _by_fault(_value_fault, tensors))


def refuse(path: Path, faults: Mapping[str, Sequence[str]]) -> None:
    """Raises a CheckpointError that lists the keys of each fault, if there are any."""
    if lists := "; ".join(f"{fault}: {listing(keys)}" for fault, keys in faults.items() if keys):
        raise CheckpointError(f"{path}: not the encoder its tensors describe. Keys {lists}.")


def check_shapes(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Raises a CheckpointError where tensors are missing, beside those expected, or of another shape."""
    refuse(
        path,
        {
            "unexpected": [key for key in state if key not in expected],
            "missing": [key for key in expected if key not in state],
            "of another shape": [
                f"{key} {list(state[key].shape)} instead of {list(shape)}"
                for key, shape in expected.items()
                if key in state and state[key].shape != shape
            ],
        },
    )


def _check_sums(path: Path) -> None:
    """Compares the CRC-32 of each record of a zip."""
    with archives.open_zip(path) as archive:
        records = archive.infolist()
        archives.check_size(path, sum(record.file_size for record in records), path.stat().st_size)
        wrong = archive.testzip() if any(record.CRC for record in records) else None  # torch can leave them out
    if wrong is not None:
        raise CheckpointError(f"{path}: damaged, the checksum of {listing([wrong])} does not match. Get the file anew.")


def _cause(error: Exception) -> str:
    """What torch found, without its advice to switch the safety off."""
    found = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    if name := re.search(r"GLOBAL ([\w.]+)|<class '([\w.]+)'>", found):
        return f"it asks for the Python object {name[1] or name[2]}"
    if "operand" in found:
        return f"not a pickle as torch.save writes it ({brief(found).lower()})"
    if "weights_only" in found:
        return "it is of another format of torch (TorchScript or .tar)"
    return brief(found or error)


def _by_fault(find: Callable[[str, Tensor], str | None], tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    faults: dict[str, list[str]] = {}
    for key, tensor in tensors.items():
        if fault := find(key, tensor):
            faults.setdefault(fault, []).append(key)
    return faults


def _type_fault(key: str, tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_meta:
        return "without values (of device meta)"
    if tensor.is_quantized:
        return "quantised"
    if not tensor.is_floating_point() and (
        tensor.is_complex() or tensor.dtype == torch.bool or not key.endswith(_INTEGERS)
    ):
        return f"not floating-point ({tensor.dtype})"
    return None


def _value_fault(_: str, tensor: Tensor) -> str | None:
    return None if bool(tensor.float().isfinite().all()) else "with NaN or infinity"
