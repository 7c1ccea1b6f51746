"""`condition=NAME` and `guidance.*` of `dlm generate`: which predictor draws, given which class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch

from dlm.checkpoint import Loaded
from dlm.denoiser import Predictor
from dlm.errors import UserError
from dlm.guidance import ClassifierFree, ClassifierGuided


@final
@dataclass(frozen=True)
class Guidance:
    """The keys of `guidance` in `configs/generate.yaml`."""

    scale: float
    drop: Literal["condition", "prompt"]
    classifier: str | None
    first_order: bool


class Guided(NamedTuple):
    """What to sample from, and the class of each text, -1 for none; None where none has any."""

    predictor: Predictor
    conditions: list[int] | None


def guided(
    model: Loaded,
    guidance: Guidance,
    conditions: Sequence[str | None],
    prompted: bool,
    device: torch.device,
) -> Guided:
    """The predictor that a request describes.

    Args:
        model: on the device.
        guidance: the settings.
        conditions: the name of a class for each text.
        prompted: whether part of some text is given.
        device: where a classifier goes.

    Raises:
        UserError: an unknown class, a model without classes, or settings that ask for nothing.
    """
    if guidance.classifier is not None:
        return _by_classifier(model, guidance, guidance.classifier, conditions, device)
    classes: list[str] = model.meta.get("classes", [])
    chosen = _class_ids(conditions, classes)
    if guidance.drop == "prompt" and not prompted:
        raise UserError("guidance.drop=prompt needs a prompt, a suffix or an infill template")
    if guidance.scale == 1:
        return Guided(model.denoiser, chosen)
    if guidance.drop == "condition" and chosen is None:
        raise UserError(
            f"guidance.scale={guidance.scale:g} needs something to guide by: condition=NAME "
            f"(this model knows {', '.join(classes) or 'no classes'}), or guidance.drop=prompt"
        )
    return Guided(ClassifierFree(model.denoiser, guidance.scale, guidance.drop), chosen)


def class_id(name: str, classes: Sequence[str]) -> int:
    """The number of a class by its name; case does not matter where that is clear.

    Raises:
        UserError: an unknown name, or no classes.
    """
    if not classes:
        raise UserError(
            f"condition={name}: this model has no classes, it was trained without data.label"
        )
    if name in classes:
        return classes.index(name)
    alike = [i for i, known in enumerate(classes) if known.casefold() == name.casefold()]
    if len(alike) != 1:
        raise UserError(f"there is no class {name!r}; choose from: {', '.join(classes)}")
    return alike[0]


def _class_ids(names: Sequence[str | None], classes: Sequence[str]) -> list[int] | None:
    if all(name is None for name in names):
        return None
    return [-1 if name is None else class_id(name, classes) for name in names]


def _by_classifier(
    model: Loaded,
    guidance: Guidance,
    path: str,
    conditions: Sequence[str | None],
    device: torch.device,
) -> Guided:
    from dlm.classifier import load_classifier  # with its training, which nobody else needs

    if guidance.drop == "prompt":
        raise UserError("guidance.drop=prompt and guidance.classifier exclude each other")
    loaded = load_classifier(path, model)
    chosen = _class_ids(conditions, loaded.classes)
    if chosen is None:
        raise UserError(
            f"guidance.classifier needs condition=NAME, one of {', '.join(loaded.classes)}"
        )
    classifier = loaded.classifier.to(device)
    scale, first_order = guidance.scale, guidance.first_order
    predictor = ClassifierGuided(model.denoiser, classifier, scale, first_order)
    return Guided(predictor, chosen)
