"""The package outside its checkout: the wheel holds all its data, and trains in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "train",
    "backbone=nano",
    "length=16",
    "batch_size=2",
    "tokenizer=char",
    "data=text",
    "data.path=book.txt",
    "trainer.max_steps=2",
    "run_dir=run",
]
# Through the entry point that the console script is made from; line one proves whose code runs.
CODE = """
import sys
from importlib.metadata import distribution
import dlm
print(dlm.__file__)
(entry,) = (e for e in distribution("dlm").entry_points if e.name == "dlm")
sys.exit(entry.load()())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("dlm-*.whl")
    return path


def package_files() -> set[str]:
    """What must be in the wheel: the package as it stands, and configs/ as dlm/configs/."""
    files = {path.relative_to(ROOT) for path in (ROOT / "dlm").rglob("*") if path.is_file()}
    files |= {
        "dlm" / path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*") if path.is_file()
    }
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_and_its_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert package_files() <= names
    assert "dlm/configs/train.yaml" in names
    assert any(name.endswith(".xz") for name in names), "the embedded corpus"
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [
        name for name in names if name.split("/")[0] not in {"dlm"} and ".dist-info/" not in name
    ]


def test_the_wheel_trains_outside_the_checkout(wheel, tmp_path):
    site, folder = tmp_path / "site", tmp_path / "empty"
    folder.mkdir()
    (folder / "book.txt").write_text("a small book\n" * 60, "utf-8")
    zipfile.ZipFile(wheel).extractall(site)
    environment = os.environ | {"PYTHONPATH": str(site), "DLM_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *TINY],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == str(site / "dlm" / "__init__.py")
    assert (folder / "run" / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "run" / "summary.json").is_file()
