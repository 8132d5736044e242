"""The arrows of the floor plan: which module may import which, and what starts without the heavy libraries."""

import ast
import graphlib
import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = (
    "hear_api",
    "superb_upstream",
    "evar_adapters",
    "finetuning",
    "mteb_adapter",
    "pretrain",
    "results",
    "xares_adapter",
)
FLOORS = (  # a core module imports lower floors and its own folder
    ("cli",),
    ("verbs",),
    ("evaluation",),
    ("tasks",),
    ("encoders", "training", "runs"),
    ("predictions",),
    ("run_record", "archives", "download"),
    ("cache",),
    ("settings", "audio", "images"),
    ("values", "compat"),
    ("registry", "files", "mp3"),
    ("errors", "progress", "parallel", "randomness", "output"),
    ("terminal",),
)
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}
ONLY_IN = {
    "s3prl": ("m2d_bench.superb_upstream", "m2d_bench.encoders.s3prl", "m2d_bench.compat"),
    "torchaudio": ("m2d_bench.compat",),
    "xares": ("m2d_bench.xares_adapter",),
    "mteb": ("m2d_bench.mteb_adapter",),
    "evar": ("m2d_bench.evar_adapters",),
    "hearvalidator": ("m2d_bench.hear_api",),
}
NEVER = ("timm", "torchvision", "tensorflow", *ROOMS)  # a room's name is m2d_bench.<room>
HEAVY = {"torch", "pandas", "numpy", "scipy", "sklearn", "matplotlib", "lightning_fabric", "transformers", "tensorflow"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    inside = parts if parts[0] == "m2d_bench" else ("m2d_bench", *parts)
    return ".".join(inside).removesuffix(".__init__")


SOURCES = {
    module_name(path): path.read_text(encoding="utf-8")
    for folder in ("m2d_bench", *ROOMS)
    for path in sorted((ROOT / folder).rglob("*.py"))
}


@cache  # every test reads the whole tree again
def imported_names(module, source, is_package):
    """Full names a module imports anywhere in it, for type checkers and inside functions too, in order."""
    package, names = module if is_package else module.rpartition(".")[0], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return sorted(names)


def imports_of(sources):
    """Each module with the names it imports."""
    packages = {name.rpartition(".")[0] for name in sources}
    return {name: imported_names(name, source, name in packages) for name, source in sources.items()}


def lies_in(name, modules):
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def may_import(module, name):
    top, _, rest = name.partition(".")
    if top != "m2d_bench":
        return top not in NEVER and lies_in(module, ONLY_IN.get(top, (module,)))
    importer, target = module.removeprefix("m2d_bench").lstrip(".").split(".")[0], rest.split(".")[0]
    if importer == target:
        return True
    if target == "cli" or target in ROOMS:
        return not importer and target != "cli"
    if target == "__version__" or not importer:
        return True
    return target in FLOOR and (importer in ROOMS or FLOOR.get(importer, len(FLOORS)) < FLOOR[target])


def backward_imports(sources):
    """Imports against the arrows."""
    imports = imports_of(sources)
    return [
        f"{module} imports {name}" for module in imports for name in imports[module] if not may_import(module, name)
    ]


def circle(sources):
    """Modules that import each other in a circle; none if there is no circle."""
    imports = imports_of(sources)
    graph = {module: {n if n in sources else n.rpartition(".")[0] for n in names} for module, names in imports.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_imports_keep_to_the_arrows():
    assert len(SOURCES) > 100
    assert backward_imports(SOURCES) == []


def test_modules_import_each_other_in_no_circle():
    assert circle(SOURCES) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("m2d_bench.audio", "from .encoders import vit", "m2d_bench.encoders.vit"),
        ("m2d_bench.encoders.new", "from ..tasks.task import Task", "m2d_bench.tasks.task.Task"),
        ("m2d_bench.encoders.new", "def f():\n    from m2d_bench.training import log", "m2d_bench.training.log"),
        ("m2d_bench.runs", "if TYPE_CHECKING:\n    from m2d_bench import tasks", "m2d_bench.tasks"),
        ("m2d_bench.tasks", "from m2d_bench import linear", "m2d_bench.linear"),
        ("m2d_bench.tasks", "import m2d_bench.results", "m2d_bench.results"),
        ("m2d_bench.pretrain.new", "from ..results import report", "m2d_bench.results.report"),
        ("m2d_bench.pretrain.new", "from m2d_bench.cli import main", "m2d_bench.cli.main"),
        ("m2d_bench", "from m2d_bench.cli import main", "m2d_bench.cli.main"),
        ("m2d_bench.pretrain.new", "from finetuning import run", "finetuning.run"),
        ("m2d_bench.encoders.new", "import s3prl.hub", "s3prl.hub"),
        ("m2d_bench.finetuning.new", "from evar.common import np", "evar.common.np"),
        ("m2d_bench.hear_api.new", "import tensorflow as tf", "tensorflow"),
    ],
)
def test_a_planted_import_against_the_arrows_is_found(module, source, found):
    assert backward_imports({**SOURCES, module: source}) == [f"{module} imports {found}"]


@pytest.mark.parametrize(
    "second", ["from .a import x", "def f():\n    from . import a", "if TYPE_CHECKING:\n    import m2d_bench.results.a"]
)
def test_a_planted_circle_is_found(second):
    planted = {"m2d_bench.results.a": "from m2d_bench.results import b", "m2d_bench.results.b": second}
    assert set(circle({**SOURCES, **planted})) == set(planted)


def test_the_package_is_not_found_inside_itself():
    assert importlib.util.find_spec("m2d_bench.m2d_bench") is None


def loaded_by(code):
    script = f"import sys\n{code}\nprint(*sys.modules)"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import m2d_bench", HEAVY),
        ("import m2d_bench.results", {"torch"}),
        ("import m2d_bench.tasks", {"torch"}),
        ("from m2d_bench.cli import main; assert main(['--help']) == 0", HEAVY),
    ],
)
def test_heavy_libraries_are_not_loaded_before_they_are_needed(code, heavy):
    assert not heavy & set(loaded_by(code))


@pytest.mark.slow
def test_importing_every_module_changes_no_global_state():
    code = (
        "import importlib, torch\n"
        "before = (torch.initial_seed(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())\n"
        f"for name in {sorted(SOURCES)!r}: importlib.import_module(name)\n"
        "after = (torch.initial_seed(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())\n"
        "assert before == after, (before, after)"
    )
    assert "m2d_bench.encoders.zoo" in loaded_by(code)
