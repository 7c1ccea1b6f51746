"""Checkpoints that explain themselves: everything needed to evaluate and generate, and no code.

Two forms hold the same things. A Lightning `.ckpt` carries them under the key "dlm" beside its
`state_dict`, whose "denoiser.*" entries are the weights to use (the EMA where there is one). An
exported folder is `spec.json`, `model.safetensors`, `tokenizer/tokenizer.json` and `meta.json`.
`load` reads both, and those that the package ships by name. It unpickles weights and plain values
only, builds only parts of dlm (see `dlm.spec`), and loads strictly; what is damaged, foreign or
does not fit together is refused with a sentence, and nothing of it is executed.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dlm import __version__
from dlm.data.tokenizers import Tokenizer
from dlm.denoiser import Denoiser
from dlm.errors import UserError
from dlm.spec import build

KEY = "dlm"
FORMAT = 1
_ASSETS = Path(__file__).parent / "assets"
_PREFIX = "denoiser."


class Loaded(NamedTuple):
    """A model as it comes out of a checkpoint, in float32, in evaluation mode, on the CPU.

    Attributes:
        denoiser: the model with its process.
        tokenizer: the one it was trained with.
        meta: what else was recorded: length, packing, data, precision, seed, draws and
            validation_seed, step, version, and the `spec` that `denoiser` was built from.
    """

    denoiser: Denoiser
    tokenizer: Tokenizer
    meta: dict[str, Any]


def payload(
    spec: Mapping[str, Any], tokenizer: Tokenizer, meta: Mapping[str, Any]
) -> dict[str, Any]:
    """What a `.ckpt` carries under the key "dlm": plain Python values only.

    Args:
        spec: the dict that `dlm.spec.build` made the denoiser from.
        tokenizer: stored whole, as JSON text.
        meta: plain values to keep; see `Loaded`.
    """
    text = tokenizer.to_json()
    meta = {**meta, "version": __version__, "tokenizer_sha256": _digest(text)}
    stored = {"format": FORMAT, "spec": dict(spec), "tokenizer": text, "meta": meta}
    return json.loads(json.dumps(stored))  # tuples and paths would not load with weights_only


def load(path: str | Path, *, trust: Sequence[str] = ()) -> Loaded:
    """Load a model from a `.ckpt`, an exported folder, or the name of a shipped checkpoint.

    Args:
        path: a file, a folder, or a name out of `shipped()`.
        trust: packages, besides dlm, whose classes the spec may name.

    Raises:
        UserError: there is none, it is damaged or not of dlm, holds code, names foreign classes, or
            its parts do not fit together.
    """
    place = _locate(path)
    stored, weights = _read_folder(place) if place.is_dir() else _read_file(place)
    spec, text, meta = _opened(stored, place)
    try:
        denoiser = build(spec, trust=trust)
        tokenizer = Tokenizer.from_json(text)
    except UserError as error:
        raise UserError(f"{place} was refused: {error}") from error
    except Exception as error:  # parts of ours, put together in ways that nobody thought of
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{place} was refused: its spec cannot be built ({reason})") from error
    if not isinstance(denoiser, Denoiser):
        raise UserError(f"{place} was refused: its spec does not describe a denoiser")
    _check_tokenizer(tokenizer, text, denoiser, meta, place)
    _load_weights(denoiser, weights, place)
    return Loaded(denoiser.eval(), tokenizer, {**meta, "spec": spec})


def export(
    source: Loaded | str | Path,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    trust: Sequence[str] = (),
) -> None:
    """Write a model folder.

    Args:
        source: a loaded model, or what `load` takes.
        folder: new, empty, or an earlier export that is replaced.
        dtype: how weights are stored; they are loaded as float32 either way.
        trust: as in `load`.

    Raises:
        UserError: the folder holds something else or cannot be written, or see `load`.
    """
    loaded = source if isinstance(source, Loaded) else load(source, trust=trust)
    folder = Path(folder)
    if not _is_free(folder):
        raise UserError(f"output {str(folder)!r} holds something else; name a new folder")
    meta = {key: value for key, value in loaded.meta.items() if key != "spec"}
    text = loaded.tokenizer.to_json()
    meta["tokenizer_sha256"] = _digest(text)
    try:
        (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        weights = folder / "model.safetensors"
        safetensors.torch.save_file(_storable(loaded.denoiser.state_dict(), dtype), weights)
        weights.chmod(0o644)  # safetensors writes for the owner alone
        (folder / "tokenizer" / "tokenizer.json").write_text(text, encoding="utf-8")
        (folder / "meta.json").write_text(_json({"format": FORMAT, **meta}), encoding="utf-8")
        (folder / "spec.json").write_text(_json(loaded.meta["spec"]), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {str(folder)!r}: {error.strerror}") from error


def shipped() -> list[str]:
    """Names of the checkpoints that the package carries."""
    return sorted(spec.parent.name for spec in _ASSETS.glob("*/spec.json"))


def weights_hash(denoiser: Denoiser) -> str:
    """16 hexadecimal digits that name the weights: SHA-256 over names and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(denoiser.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _locate(path: str | Path) -> Path:
    place = Path(path).expanduser()
    if place.is_file() or (place / "spec.json").is_file():
        return place
    name = str(path)
    if name in shipped():
        return _ASSETS / name
    if (place / "checkpoints" / "best.ckpt").is_file():
        raise UserError(f"{name!r} is a run; name {place / 'checkpoints' / 'best.ckpt'}")
    if place.is_dir():
        raise UserError(f"the folder {name!r} holds no checkpoint: it has no spec.json")
    known = ", ".join(shipped()) or "none"
    raise UserError(f"there is no checkpoint {name!r}; the shipped ones are: {known}")


def _read_file(place: Path) -> tuple[Any, dict[str, Tensor]]:
    try:
        content = torch.load(place, map_location="cpu", weights_only=True, mmap=_is_zip(place))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{place} is damaged, or holds more than weights and plain values; "
            "it was refused and nothing in it was executed"
        ) from error
    except Exception as error:  # damaged bytes make the reader fail in any way
        raise UserError(f"{place} is truncated or not a checkpoint") from error
    if not isinstance(content, dict) or KEY not in content:
        raise UserError(f"{place} is not a checkpoint of dlm: it has no entry {KEY!r}")
    state = content.get("state_dict")
    if not isinstance(state, dict):
        raise UserError(f"{place} is not a checkpoint of dlm: it has no state_dict")
    weights = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
    return content[KEY], weights


def _read_folder(place: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        meta = json.loads((place / "meta.json").read_text("utf-8"))
        stored = {
            "format": meta.pop("format", None) if isinstance(meta, dict) else None,
            "spec": json.loads((place / "spec.json").read_text("utf-8")),
            "tokenizer": (place / "tokenizer" / "tokenizer.json").read_text("utf-8"),
            "meta": meta,
        }
        return stored, safetensors.torch.load_file(place / "model.safetensors")
    except FileNotFoundError as error:
        raise UserError(f"{place} is not complete: {error.filename or error} is missing") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{place / 'model.safetensors'} is damaged: {error}") from error
    except (ValueError, RecursionError) as error:  # JSON, UTF-8
        raise UserError(f"a file of {place} is damaged: {error}") from error


def _is_zip(place: Path) -> bool:
    with place.open("rb") as file:
        return file.read(2) == b"PK"  # only torch's own format can be mapped


def _opened(stored: Any, place: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    stored = stored if isinstance(stored, dict) else {}
    if stored.get("format") != FORMAT:
        raise UserError(
            f"{place} has checkpoint format {stored.get('format')!r}, and dlm {__version__} "
            f"reads {FORMAT}; use the version of dlm that wrote it"
        )
    spec, text, meta = (stored.get(key) for key in ("spec", "tokenizer", "meta"))
    if not (isinstance(spec, dict) and isinstance(text, str) and isinstance(meta, dict)):
        raise UserError(f"{place} is not a checkpoint of dlm: spec, tokenizer or meta is missing")
    return spec, text, meta


def _check_tokenizer(
    tokenizer: Tokenizer, text: str, denoiser: Denoiser, meta: Mapping[str, Any], place: Path
) -> None:
    process = denoiser.process
    if tokenizer.size != process.num_states:
        raise UserError(
            f"{place} was made with another tokenizer: its model has {process.num_states} states, "
            f"the tokenizer beside it {tokenizer.size}"
        )
    other = meta.get("tokenizer_sha256", _digest(text)) != _digest(text)
    if other or (process.mask_id is not None and process.mask_id != tokenizer.mask_id):
        raise UserError(f"{place} was made with another tokenizer than the one beside it")


def _load_weights(denoiser: Denoiser, weights: dict[str, Tensor], place: Path) -> None:
    own = denoiser.state_dict()
    weights = {**weights, **_tied(own, weights)}
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        what = f"{missing[0]!r} is missing" if missing else f"{extra[0]!r} is not part of it"
        count = len(missing) + len(extra)
        raise UserError(f"the weights of {place} do not fit its model: {what} ({count} such names)")
    for name, tensor in own.items():
        given = weights[name]
        if not isinstance(given, Tensor) or given.shape != tensor.shape:
            shape = tuple(given.shape) if isinstance(given, Tensor) else given
            raise UserError(
                f"the weights of {place} do not fit its model: {name!r} must have shape "
                f"{tuple(tensor.shape)}, got {shape}"
            )
    denoiser.load_state_dict(weights, strict=True)


def _tied(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names that share memory in the model stand in the file once; give each its tensor."""
    first: dict[int, Tensor] = {}
    for name, tensor in own.items():
        if name in weights:
            first.setdefault(tensor.data_ptr(), weights[name])
    return {
        name: first[tensor.data_ptr()]
        for name, tensor in own.items()
        if name not in weights and tensor.numel() and tensor.data_ptr() in first
    }


def _storable(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    seen: set[int] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue  # a tied weight: safetensors stores each memory once
        seen.add(tensor.data_ptr())
        kept[name] = tensor.to(dtype if tensor.is_floating_point() else None).contiguous()
    return kept


def _is_free(folder: Path) -> bool:
    if not folder.exists() or (folder / "spec.json").is_file():
        return True
    return folder.is_dir() and not any(folder.iterdir())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
