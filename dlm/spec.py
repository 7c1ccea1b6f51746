"""From a plain dict to an object: one instantiate for training, loading and the command line.

A spec is made of plain values. A mapping with `_target_` is an object: the target names a class by
its import path, the other keys are arguments of its constructor, built first. The same dict is
saved in the checkpoint, so a model is rebuilt by the very call that built it for training.

A spec read from a file is not trusted. Nothing is imported unless the target lies in `dlm` or in a
package named in `trust`; what it resolves to must be a class *defined* there (attributes of our
modules lead elsewhere: `dlm.spec.importlib` is not ours), and without `trust=("dlm",)` one of the
interfaces that a model and its data are made of. Values are checked against the annotations of the
constructor, which YAML does not know: `lr: fast` is a sentence that names the key, not a crash
three layers down.
"""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dlm.errors import UserError, nearest

TARGET = "_target_"
_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping)


def build(spec: Any, *, trust: Sequence[str] = (), path: str = "") -> Any:
    """Build the object that a spec describes, arguments first.

    Args:
        spec: plain values, lists and mappings; a mapping with `_target_` becomes an object. Values
            that are objects already are passed on as they are.
        trust: packages whose classes may be built besides the interfaces of dlm that a model is
            made of. Name "dlm" for every class of ours.
        path: the dotted key of this node, for messages.

    Raises:
        UserError: a target that is not trusted or does not exist, a misspelt, missing or ill-typed
            argument, or a value that the constructor refuses.
    """
    if isinstance(spec, Mapping):
        values = {
            _text(key, path): build(value, trust=trust, path=_join(path, str(key)))
            for key, value in spec.items()
        }
        if TARGET not in values:
            return values
        cls = resolve_class(values.pop(TARGET), trust=trust, path=path)
        return construct(cls, values, path=path)
    if isinstance(spec, list | tuple) and type(spec) in (list, tuple):
        return [build(v, trust=trust, path=_join(path, str(i))) for i, v in enumerate(spec)]
    return spec


def resolve_class(target: Any, *, trust: Sequence[str] = (), path: str = "") -> type:
    """The class that a `_target_` names, if it may be built; foreign ones are not even imported.

    Raises:
        UserError: see `build`.
    """
    where = _join(path, TARGET)
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(p.isidentifier() and not p.startswith("_") for p in parts):
        raise UserError(f"{where} must be the import path of a class, got {target!r}")
    if parts[0] not in ("dlm", *trust):
        raise UserError(
            f"{where} {target!r} is outside dlm and was not imported; "
            f"if you trust that package, add trust=[{parts[0]}]"
        )
    found = _walk(parts, where)
    if not isinstance(found, type) or not _defined_in(found, ("dlm", *trust)):
        raise UserError(f"{where} {target!r} is not a class defined in {parts[0]}")
    ours = found.__module__.split(".")[0] == "dlm"
    if ours and "dlm" not in trust and not _is_interface(found):
        raise UserError(f"{where} {target!r} is not a part of a model or of its data")
    return found


def construct(cls: type, values: Mapping[str, Any], *, path: str = "") -> Any:
    """Call a constructor with named values, checked against its annotations.

    Args:
        cls: a concrete class.
        values: arguments, built already; 3 becomes 3.0 for a float, a list a tuple, text a Path.
        path: the dotted key of these arguments, for messages.

    Raises:
        UserError: see `build`.
    """
    if inspect.isabstract(cls):
        raise UserError(f"{_join(path, TARGET)} {cls.__name__} is abstract and cannot be built")
    known, hints = inspect.signature(cls).parameters, _hints(cls)
    named = {n: p for n, p in known.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        for name in values.keys() - named.keys():
            raise UserError(
                f"{_join(path, name)} is not an argument of {cls.__name__}; "
                f"{nearest(name, list(named))}"
            )
    for name, parameter in named.items():
        if name not in values and parameter.default is inspect.Parameter.empty:
            raise UserError(f"{_join(path, name)} is missing: {cls.__name__} needs it")
    checked = {n: _checked(v, hints.get(n, Any), _join(path, n)) for n, v in values.items()}
    try:
        return cls(**checked)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path or cls.__name__}: {error}") from error


def _checked(value: Any, hint: Any, path: str) -> Any:
    try:
        return _convert(value, hint)
    except _Mismatch:
        raise UserError(f"{path} must be {_describe(hint)}, got {_show(value)}") from None


class _Mismatch(Exception):  # noqa: N818 - a signal inside this file, never seen outside
    pass


def _convert(value: Any, hint: Any) -> Any:
    """The value as the annotation wants it (3 -> 3.0, list -> tuple, str -> Path), or _Mismatch."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _convert(value, args[0])
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, args)
    if origin is typing.Literal:
        if any(value == arg and type(value) is type(arg) for arg in args):
            return value
        raise _Mismatch
    if hint is None:
        hint = type(None)
    kind = origin or hint
    if kind is tuple or kind in _LISTS:
        return _convert_sequence(value, kind, args)
    if kind in _MAPPINGS and isinstance(value, Mapping):
        if len(args) < 2:
            return value
        return {_convert(k, args[0]): _convert(v, args[1]) for k, v in value.items()}
    return _convert_plain(value, kind)


def _convert_plain(value: Any, kind: Any) -> Any:
    if kind is collections.abc.Callable:
        if not callable(value):
            raise _Mismatch
        return value
    if kind is Any or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return value  # TypeVars, Any, protocols: nothing cheap to check
    if isinstance(value, bool) and kind in (int, float):
        raise _Mismatch  # bool is an int in Python, a slip in YAML
    if kind is float and isinstance(value, int):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, kind):
        raise _Mismatch
    return value


def _convert_union(value: Any, members: tuple[Any, ...]) -> Any:
    for member in members:  # the very type first: `int | float` keeps 3 an int
        if type(value) is member:
            return value
    for member in members:
        try:
            return _convert(value, member)
        except _Mismatch:
            continue
    raise _Mismatch


def _convert_sequence(value: Any, kind: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        if kind in (list, tuple) or isinstance(value, str) or not isinstance(value, kind):
            raise _Mismatch
        return value
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise _Mismatch
        return tuple(_convert(v, a) for v, a in zip(value, args, strict=True))
    items = [_convert(v, args[0]) for v in value] if args else list(value)
    return tuple(items) if kind is tuple else items


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is typing.Literal:
        return " or ".join(f"'{a}'" if isinstance(a, str) else str(a).lower() for a in args)
    if hint in (None, type(None)):
        return "null"
    return {str: "text", bool: "true or false"}.get(hint) or (
        hint.__name__ if isinstance(hint, type) and not args else str(hint).replace("typing.", "")
    )


def _show(value: Any) -> str:
    plain = isinstance(value, str | int | float | bool | list | tuple | dict | None)
    return repr(value) if plain else f"a {type(value).__name__}"


def _walk(parts: list[str], where: str) -> Any:
    """Import the longest prefix that is a module, then follow classes: all else leads away."""
    found, count = _longest_module(parts, where)
    for name in parts[count:]:
        inner = getattr(found, name, None)
        if not isinstance(inner, type):
            names = getattr(found, "__all__", None) or dir(found)
            public = [n for n in names if n[:1].isupper()]
            raise UserError(f"{where} {'.'.join(parts)!r} is not a class; {nearest(name, public)}")
        found = inner
    return found


def _longest_module(parts: list[str], where: str) -> tuple[Any, int]:
    module = None
    for count in range(1, len(parts)):
        name = ".".join(parts[:count])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise UserError(f"{where}: {name} needs the package {error.name!r}") from error
            if module is None:
                raise UserError(f"{where}: the package {name!r} is not installed") from error
            return module, count - 1
    return module, len(parts) - 1


def _defined_in(cls: type, packages: tuple[str, ...]) -> bool:
    module = sys.modules.get(cls.__module__)
    return (
        cls.__module__.split(".")[0] in packages
        and getattr(module, cls.__qualname__, None) is cls  # found where it says it was defined
    )


def _is_interface(cls: type) -> bool:
    from dlm.denoiser import Denoiser
    from dlm.parameterizations import Parameterization
    from dlm.processes import Process
    from dlm.schedules import Schedule

    if issubclass(cls, Denoiser | Process | Schedule | Parameterization):
        return True
    # Sources and packings hold settings; a network may be any module of ours.
    network = issubclass(cls, nn.Module) and cls.__module__.startswith("dlm.networks.")
    return network or cls.__module__.startswith("dlm.data.")


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names imported for type checkers only
        return {}


def _text(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise UserError(f"keys of {path or 'a spec'} must be text, got {key!r}")
    return key


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
