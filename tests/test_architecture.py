"""Who may import whom, kept by reading the imports of every file; `import dlm` stays light.

`ORDER` lists the units of the package (a module or a folder right under `dlm/`) from the bottom up:
each may import only those before it, so no cycle can arise. `ONLY` narrows that for the units that
must stay usable by themselves, and `HOMES` names the folders where a heavy library may appear.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dlm"
ORDER = [
    "errors", "files", "ops", "networks", "random", "schedules", "processes", "parameterizations",
    "denoiser", "guidance", "times", "weightings", "objectives", "samplers", "lab", "spec", "data",
    "evaluation", "checkpoint", "classifier", "interop", "training", "cli",
]  # fmt: skip
ONLY = {
    "errors": set(),
    "ops": {"errors"},
    "networks": {"errors", "ops"},
    "data": {"errors", "files", "random"},
}
HOMES = {
    "hydra": ("cli",),
    "omegaconf": ("cli",),
    "wandb": ("cli",),
    "lightning": ("training", "data/module.py", "cli"),
    "transformers": ("data", "networks/hf.py", "evaluation", "interop"),
    "datasets": ("data", "networks/hf.py", "evaluation", "interop"),
    "triton": ("ops",),
    "flash_attn": ("ops",),
    "rich": ("cli", "training"),
}


def imported(tree: ast.Module, package: tuple[str, ...]) -> Iterator[str]:
    """Absolute dotted names of everything imported, wherever it stands in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def violations(path: str, source: str) -> list[str]:
    """The forbidden imports of one file; `path` is relative to the package."""
    parts = Path(path).with_suffix("").parts
    unit, found = parts[0], []
    for name in imported(ast.parse(source), ("dlm", *parts[:-1])):
        top, *rest = name.split(".")
        homes = HOMES.get(top)
        if homes and not any(Path(path).is_relative_to(home) for home in homes):
            found.append(f"dlm/{path} imports {top}, whose place is {', '.join(homes)}")
        if top != "dlm" or unit == ORDER[-1] or rest[:1] in ([unit], ["__version__"]):
            continue
        if not set(rest[:1] or ["*"]) <= ONLY.get(unit, set(ORDER[: ORDER.index(unit)])):
            found.append(f"dlm/{path} imports {name}, and {unit} may not")
    return found


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_imports_go_one_way():
    files = [path for path in sources("dlm") if path != PACKAGE / "__init__.py"]
    assert files
    units = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in files}
    assert units <= set(ORDER), "a new unit needs its place in ORDER"
    assert not [
        line
        for path in files
        for line in violations(path.relative_to(PACKAGE).as_posix(), path.read_text("utf-8"))
    ]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("processes/base.py", "from dlm.samplers import GridSampler"),
        ("processes/base.py", "from ..denoiser import Denoiser"),
        ("random.py", "def f():\n    import dlm.schedules"),
        ("networks/dit.py", "from dlm.random import Key"),
        ("ops/attention.py", "import dlm.networks.layers"),
        ("denoiser.py", "from dlm import load"),
        ("lab/laws.py", "import dlm"),
        ("checkpoint.py", "import lightning"),
        ("data/sources.py", "from lightning.pytorch import LightningDataModule"),
        ("training/module.py", "from omegaconf import DictConfig"),
        ("networks/attention.py", "import flash_attn.ops"),
    ],
)
def test_a_forbidden_import_is_found(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("processes/absorbing.py", "from .base import Process\nfrom dlm.schedules import Linear"),
        ("data/module.py", "import lightning"),
        ("checkpoint.py", "from dlm import __version__"),
        ("cli/train.py", "import hydra, wandb\nfrom ..training import module"),
    ],
)
def test_a_permitted_import_passes(path, source):
    assert violations(path, source) == []


def test_import_dlm_is_light():
    heavy = ["hydra", "omegaconf", "datasets", "wandb", "lightning", "transformers", "matplotlib"]
    code = (
        "import sys, dlm\n"
        "[getattr(dlm, name) for name in dlm.__all__]\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_too_long():
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in sources("dlm", "scripts")}
    assert not {path: count for path, count in lines.items() if count > 400}


@pytest.mark.parametrize("words", ["NotImplementedError", "weights_only=False", "type: ignore\n"])
def test_habits_we_do_not_take(words):
    assert not [path for path in sources("dlm", "scripts") if words in path.read_text("utf-8")]
