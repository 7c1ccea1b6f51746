"""What `dlm generate` is asked for: prompts, templates with holes and choices, files of prompts.

A prompt and a suffix stand at the two ends of a text, an infill template at its beginning:
`[MASK]` is one token to write, `[MASK*8]` eight, `[MASK: red| green]` one of these two. Choices are
taken as they stand, with their spaces, and each must be one token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from dlm.data.tokenizers import Tokenizer
from dlm.errors import UserError, nearest
from dlm.samplers.prompts import Template
from dlm.spec import construct

_CHOICE = re.compile(r"\[MASK:([^\]]*)\]")
LINE_ROWS = 2**32  # rows of a line of a file of prompts: more texts than anyone asks for
_LINE_KEYS = ("prompt", "suffix", "infill", "length", "condition")


@final
@dataclass(frozen=True)
class Asked:
    """A text to write, by the keys of the command or by a line of a file of prompts.

    `line` is the number of that line, from 1.

    Raises:
        UserError: infill together with prompt or suffix, or half a character.
    """

    prompt: str | None = None
    suffix: str | None = None
    infill: str | None = None
    length: int | None = None
    condition: str | None = None
    line: int | None = None

    def __post_init__(self) -> None:
        if self.infill is not None and (self.prompt is not None or self.suffix is not None):
            raise UserError("infill is a whole template; give it without prompt and suffix")
        for text in (self.prompt, self.suffix, self.infill):
            if text is not None and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise UserError(f"{text!r} holds half a character; give it as UTF-8")

    @property
    def first_row(self) -> int:
        """The row of its first text: lines of a file share none."""
        return 0 if self.line is None else (self.line - 1) * LINE_ROWS

    @property
    def given(self) -> str | None:
        """What the user wrote, for the record."""
        if self.infill is not None:
            return self.infill
        parts = [part for part in (self.prompt, self.suffix) if part is not None]
        return " ... ".join(parts) if parts else None


@final
@dataclass(frozen=True)
class Allowed:
    """Tokens whose text matches a regular expression as a whole.

    Args:
        pattern: in the syntax of Python's `re`.
        tokens: bool (K,).
    """

    pattern: str
    tokens: Tensor

    @classmethod
    def matching(cls, pattern: str, tokenizer: Tokenizer) -> Allowed:
        """The tokens of a tokenizer; EOS has the empty text, MASK is never one of them.

        Raises:
            UserError: it is no regular expression, or no token matches.
        """
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UserError(f"allow={pattern!r} is no regular expression: {error}") from error
        matches = [
            state != tokenizer.mask_id
            and expression.fullmatch(tokenizer.decode([state])) is not None
            for state in range(tokenizer.size)
        ]
        if not any(matches):
            raise UserError(
                f"allow={pattern!r} matches no token of this model; a token is a piece of a word, "
                "often with the space before it, and must match as a whole"
            )
        return cls(pattern, torch.tensor(matches))


def read_prompts(path: str, length: int | None, condition: str | None) -> list[Asked]:
    """A file of prompts: one JSON object a line, empty lines left out.

    Args:
        path: the file; its objects hold any of prompt, suffix, infill, length, condition.
        length, condition: for lines that do not say.

    Raises:
        UserError: the file cannot be read, or what is wrong in which line.
    """
    try:
        text = Path(path).expanduser().read_text("utf-8-sig")  # with or without a mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read prompts={path!r}: {reason}") from error
    asked = [
        _read_line(path, number, line, {"length": length, "condition": condition})
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not asked:
        raise UserError(f"prompts={path!r} holds no line; write one JSON object a line")
    return asked


def at_line(path: str | None, asked: Asked, error: UserError) -> UserError:
    """The error with the line that it is about, if there is one."""
    return error if asked.line is None else UserError(f"{path} line {asked.line}: {error}")


def _read_line(path: str, number: int, line: str, defaults: dict[str, Any]) -> Asked:
    where = f"{path} line {number}"
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is no JSON: {error.msg}") from error
    if not isinstance(values, dict):
        raise UserError(f'{where} must be a JSON object such as {{"prompt": "It was"}}')
    for key in values:
        if key not in _LINE_KEYS:
            raise UserError(f"{where} has a key {key!r}; {nearest(key, _LINE_KEYS)}")
    try:
        return construct(Asked, {**defaults, **values, "line": number})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def make_template(
    tokenizer: Tokenizer,
    asked: Asked,
    allow: Allowed | None,
    limit: int,
    in_blocks: bool = False,
) -> Template:
    """The template of a text.

    Args:
        tokenizer: the one of the model.
        asked: prompt and suffix or infill, and length.
        allow: tokens that may be written; None: any.
        limit: the longest sequence that the network takes.
        in_blocks: whether the text may be longer.

    Raises:
        UserError: a text that the tokenizer does not know or that does not fit into the length, a
            length that the network does not take, or a choice that is none.
    """
    head, given, choices = _encode(tokenizer, asked)
    tail = _known(tokenizer, asked.suffix or "")
    shortest = len(head) + len(tail)
    length = asked.length
    if length is None:
        length = limit if asked.infill is None else shortest
    _check_length(length, shortest, limit, in_blocks)
    tokens = torch.zeros(length, dtype=torch.int64)
    frozen = torch.zeros(length, dtype=torch.bool)
    tokens[: len(head)] = torch.tensor(head, dtype=torch.int64)
    frozen[: len(head)] = torch.tensor(given, dtype=torch.bool)
    tokens[length - len(tail) :] = torch.tensor(tail, dtype=torch.int64)
    frozen[length - len(tail) :] = True
    return Template(tokens, frozen, _allowed(choices, allow, length, tokenizer.size))


def _check_length(length: int, shortest: int, limit: int, in_blocks: bool) -> None:
    if length < 1 or (length > limit and not in_blocks):
        raise UserError(
            f"length must be from 1 to {limit} for this model, got {length}"
            + (f"; add blocks.size={limit // 2} to write longer texts" if length > limit else "")
        )
    if shortest > length:
        raise UserError(
            f"the given text has {shortest} tokens, more than the length {length}; "
            "shorten it or raise length"
        )


class _Encoded(NamedTuple):
    """States of a prompt or a template.

    given: which of them are; choices: by their places, the hole as written and its tokens.
    """

    states: list[int]
    given: list[bool]
    choices: dict[int, tuple[str, list[int]]]


def _encode(tokenizer: Tokenizer, asked: Asked) -> _Encoded:
    """Prompt or template."""
    if asked.infill is None:
        states = _known(tokenizer, asked.prompt or "")
        return _Encoded(states, [True] * len(states), {})
    states, given, choices = _Encoded([], [], {})
    end = 0
    for match in [*_CHOICE.finditer(asked.infill), None]:
        text = asked.infill[end : None if match is None else match.start()]
        more, frozen = tokenizer.encode_template(text)
        _refuse_unknown(tokenizer, [s for s, kept in zip(more, frozen, strict=True) if kept], text)
        states += more
        given += frozen
        if match is not None:
            options = _choice(tokenizer, match[1])
            choices[len(states)] = (match[0], options)
            states.append(options[0])
            given.append(False)
            end = match.end()
    return _Encoded(states, given, choices)


def _choice(tokenizer: Tokenizer, options: str) -> list[int]:
    """The tokens of `red| green`."""
    found = []
    for option in options.split("|"):
        states = _known(tokenizer, option)
        if len(states) != 1:
            spaced = len(tokenizer.encode(f" {option}")) == 1
            hint = f"; {f' {option}'!r} is one, its space belongs to it" if spaced else ""
            raise UserError(
                f"the choice {option!r} is {len(states)} tokens of this model, it must be one{hint}"
            )
        found += states
    return found


def _known(tokenizer: Tokenizer, text: str) -> list[int]:
    states = tokenizer.encode(text)
    _refuse_unknown(tokenizer, states, text)
    return states


def _refuse_unknown(tokenizer: Tokenizer, states: Sequence[int], text: str) -> None:
    if tokenizer.unknown_id is not None and tokenizer.unknown_id in states:
        raise UserError(
            f"the tokenizer of this model does not know part of {text!r} (it was not in its "
            "training text); leave that out"
        )


def _allowed(
    choices: dict[int, tuple[str, list[int]]], allow: Allowed | None, length: int, size: int
) -> Tensor | None:
    """Bool (K,) or (L, K): what may stand where; None: anything anywhere."""
    everywhere = None if allow is None else allow.tokens
    if not choices:
        return everywhere
    allowed = torch.ones(length, size, dtype=torch.bool)
    if everywhere is not None:
        allowed &= everywhere
    for place, (hole, states) in choices.items():
        chosen = torch.zeros(size, dtype=torch.bool)
        chosen[states] = True
        allowed[place] &= chosen
        if allow is not None and not allowed[place].any():
            raise UserError(f"no choice of {hole} matches allow={allow.pattern!r}")
    return allowed
