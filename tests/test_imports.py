"""The arrows of the floor plan: who may import whom, and what stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("hear_api", "superb_upstream", "evar_adapters", "finetuning", "pretrain", "results")
FILES = [path for folder in ("m2d_bench", *ROOMS) for path in sorted((ROOT / folder).rglob("*.py"))]
HEAVY = {"s3prl": "superb_upstream", "torchaudio": "m2d_bench/compat.py", "evar": "evar_adapters"}
NEVER = {"timm", "torchvision", "tensorflow"}


def imported(path):
    """Absolute names of the modules a file imports; relative ones stay in its room and do not count."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_the_arrows(path):
    room = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] not in NEVER, name
        assert HEAVY.get(parts[0], room) in (room, str(path.relative_to(ROOT))), name
        assert parts[0] not in ROOMS, f"{name}: rooms are imported as m2d_bench.<room>"
        if parts[0] == "m2d_bench":
            assert parts[1:2] != ["cli"], name
            assert parts[1] not in ROOMS or parts[1] == room, f"{room} imports {name}"


def loaded_by(code):
    script = f"import sys\n{code}\nprint(*sys.modules)"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    "code",
    [
        "import m2d_bench",
        "import m2d_bench.results",
        "import m2d_bench.tasks",
        "from m2d_bench.cli import build; build()",
    ],
)
def test_torch_is_not_loaded_before_it_is_needed(code):
    assert "torch" not in loaded_by(code)


def test_importing_every_module_changes_no_global_state():
    code = (
        "import importlib, torch\n"
        "before = (torch.initial_seed(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())\n"
        f"for name in {sorted(module_name(path) for path in FILES)!r}: importlib.import_module(name)\n"
        "after = (torch.initial_seed(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())\n"
        "assert before == after, (before, after)"
    )
    assert "m2d_bench.encoders.zoo" in loaded_by(code)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    inside = parts if parts[0] == "m2d_bench" else ("m2d_bench", *parts)
    return ".".join(inside).removesuffix(".__init__")


def test_dir_lists_the_public_names():
    import m2d_bench

    assert {"linear", "load_encoder", "finetune", "LinearSettings", "hear_api", "results"} <= set(dir(m2d_bench))
    assert all(getattr(m2d_bench, name) for name in dir(m2d_bench))
