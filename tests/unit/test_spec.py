"""From plain dicts to objects: what is built, what is refused, and in which words."""

import collections
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from dlm.errors import UserError
from dlm.processes import Absorbing
from dlm.schedules import Cosine, Linear, Schedule
from dlm.spec import build, construct, resolve_class

ABSORBING = {
    "_target_": "dlm.processes.Absorbing",
    "num_states": 5,
    "mask_id": 4,
    "schedule": {"_target_": "dlm.schedules.Linear", "alpha_min": 0},
}


@dataclass
class Widget:
    rate: float = 0.5
    count: int = 1
    flag: bool = False
    name: str = ""
    mode: Literal["fast", "slow"] = "fast"
    betas: tuple[float, float] = (0.9, 0.99)
    sizes: Sequence[int] = ()
    top: int | None = None
    place: Path | None = None
    table: dict[str, float] | None = None
    call: Callable[[int], int] = abs
    anything: Any = None
    schedule: Schedule | None = None


class Shape(ABC):
    @abstractmethod
    def area(self) -> float: ...


class Strict:
    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")


class Loose:
    def __init__(self, first: int, **rest: int) -> None:
        self.values = {"first": first, **rest}


HERE = Widget.__module__
TRUST = (HERE.split(".")[0],)


def widget(**values: Any) -> Widget:
    return build({"_target_": f"{HERE}.Widget", **values}, trust=TRUST, path="widget")


def test_nested_objects_are_built_arguments_first():
    assert build(ABSORBING) == Absorbing(num_states=5, mask_id=4, schedule=Linear(0.0))


def test_plain_values_and_objects_pass_through():
    schedule = Cosine()
    assert build({"a": [1, {"b": None}], "c": schedule}) == {"a": [1, {"b": None}], "c": schedule}
    assert build({**ABSORBING, "schedule": schedule}).schedule is schedule


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("rate", 3, 3.0),
        ("betas", [0, 0.5], (0.0, 0.5)),
        ("sizes", [1, 2], [1, 2]),
        ("top", None, None),
        ("top", 4, 4),
        ("place", "a/b", Path("a/b")),
        ("table", {"a": 1}, {"a": 1.0}),
        ("mode", "slow", "slow"),
        ("call", len, len),
        ("anything", {"x": [1]}, {"x": [1]}),
        ("schedule", {"_target_": "dlm.schedules.Cosine"}, Cosine()),
    ],
)
def test_values_take_the_type_of_the_annotation(key, value, expected):
    built = getattr(widget(**{key: value}), key)
    assert built == expected
    assert type(built) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("rate", "fast", "widget.rate must be float, got 'fast'"),
        ("rate", True, "widget.rate must be float, got True"),
        ("rate", None, "widget.rate must be float, got None"),
        ("count", 1.5, "widget.count must be int, got 1.5"),
        ("count", False, "widget.count must be int, got False"),
        ("flag", 1, "widget.flag must be true or false, got 1"),
        ("name", 7, "widget.name must be text, got 7"),
        ("mode", "quick", "widget.mode must be 'fast' or 'slow', got 'quick'"),
        ("betas", [0.1], "widget.betas must be tuple"),
        ("betas", 0.9, "widget.betas must be tuple"),
        ("sizes", "12", "widget.sizes must be"),
        ("sizes", ["a"], "widget.sizes must be"),
        ("top", "x", "widget.top must be int or null, got 'x'"),
        ("table", {"a": "b"}, "widget.table must be"),
        ("call", 3, "widget.call must be"),
        (
            "schedule",
            {"_target_": "dlm.processes.Uniform"},
            "widget.schedule.num_states is missing",
        ),
        ("schedule", 3, "widget.schedule must be Schedule or null, got 3"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_key(key, value, sentence):
    with pytest.raises(UserError) as caught:
        widget(**{key: value})
    assert sentence in str(caught.value)


def test_an_object_of_another_class_is_refused():
    with pytest.raises(UserError, match=r"process\.schedule must be Schedule"):
        build({**ABSORBING, "schedule": ABSORBING}, path="process")


def test_a_misspelt_argument_names_the_nearest():
    with pytest.raises(UserError, match=r"process\.schedule\.alpha_mn .* did you mean 'alpha_min'"):
        build(
            {**ABSORBING, "schedule": {"_target_": "dlm.schedules.Linear", "alpha_mn": 0.1}},
            path="process",
        )


def test_an_argument_unlike_any_other_lists_them():
    with pytest.raises(UserError, match="choose from: alpha_min"):
        build({"_target_": "dlm.schedules.Linear", "zzz": 0.1})


def test_a_missing_argument_is_named():
    with pytest.raises(UserError, match="process.num_states is missing"):
        build({"_target_": "dlm.processes.Uniform", "schedule": Linear()}, path="process")


def test_free_keyword_arguments_are_passed_on():
    built = build({"_target_": f"{HERE}.Loose", "first": 1, "other": 2}, trust=TRUST)
    assert built.values == {"first": 1, "other": 2}


def test_what_the_constructor_refuses_is_a_mistake_of_the_user():
    with pytest.raises(UserError, match=r"node: size must be at least 1, got 0"):
        build({"_target_": f"{HERE}.Strict", "size": 0}, trust=TRUST, path="node")
    with pytest.raises(UserError, match="alpha_min"):
        build({"_target_": "dlm.schedules.Linear", "alpha_min": 2})


def test_abstract_classes_cannot_be_built():
    with pytest.raises(UserError, match="abstract"):
        build({"_target_": "dlm.schedules.Schedule"})
    with pytest.raises(UserError, match="abstract"):
        construct(Shape, {})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "dlmx.processes.Uniform",
        "dlm.spec.importlib.import_module",  # an attribute of ours that leads elsewhere
        "dlm.spec.Path",  # a class that is not defined in dlm
        "dlm.spec.inspect.Signature",
        "dlm.spec.build",  # a function
        "dlm.processes",  # a module
        "dlm.errors.UserError",  # ours, but no part of a model
        "dlm.networks.dit.nn.Linear",
        "dlm.__main__.Main",
        "dlm.processes.Absorbing.__class__",
        "dlm._private.Thing",
        "dlm",
        "",
        7,
        None,
        ["dlm.processes.Uniform"],
    ],
)
def test_foreign_targets_are_refused(target):
    with pytest.raises(UserError) as caught:
        build({"_target_": target}, path="denoiser")
    assert "denoiser._target_" in str(caught.value)


@pytest.fixture
def foreign_package(tmp_path, monkeypatch):
    """A package whose import leaves a mark."""
    mark = tmp_path / "mark"
    (tmp_path / "foreign_pkg").mkdir()
    (tmp_path / "foreign_pkg" / "__init__.py").write_text(
        f"import pathlib, decimal\npathlib.Path({str(mark)!r}).touch()\n"
        "class Thing:\n    def __init__(self, size: int = 1) -> None:\n        self.size = size\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    sys.modules.pop("foreign_pkg", None)


def test_a_foreign_package_is_not_even_imported(foreign_package):
    with pytest.raises(UserError, match=r"was not imported.*trust=\[foreign_pkg\]"):
        build({"_target_": "foreign_pkg.Thing"})
    assert not foreign_package.exists()


def test_a_trusted_package_is_built_and_checked(foreign_package):
    built = build({"_target_": "foreign_pkg.Thing", "size": 3}, trust=["foreign_pkg"])
    assert built.size == 3
    assert foreign_package.exists()
    with pytest.raises(UserError, match="size must be int"):
        build({"_target_": "foreign_pkg.Thing", "size": "x"}, trust=["foreign_pkg"])


def test_trust_covers_only_what_the_package_defines(foreign_package):
    with pytest.raises(UserError, match="not a class"):
        build({"_target_": "foreign_pkg.decimal.Decimal"}, trust=["foreign_pkg"])


def test_trusting_dlm_opens_all_its_classes():
    assert resolve_class("dlm.errors.UserError", trust=["dlm"]) is UserError


def test_a_wrong_name_in_ours_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'Absorbing'"):
        resolve_class("dlm.processes.Absorbin")


def test_a_package_that_is_not_there_is_a_sentence():
    with pytest.raises(UserError, match="'no_such_package' is not installed"):
        resolve_class("no_such_package.Thing", trust=["no_such_package"])


def test_specs_may_come_as_any_mapping():
    assert build(collections.OrderedDict(ABSORBING)) == build(ABSORBING)
