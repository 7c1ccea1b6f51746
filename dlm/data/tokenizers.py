"""The tokenizer: text to states of the noise process and back.

A `Tokenizer` wraps a `tokenizers.Tokenizer` (the backend) and numbers the *states*: the ids
`0 .. size - 1` that the network and the process see. States are the backend's ids in their order,
except that

* a process without a mask (`mask=False`) has neither a mask nor a padding state: such ids of the
  backend are left out and the others move up;
* an EOS is added at the end if the backend has no token that ends a document;
* a process with a mask (`mask=True`) uses the backend's mask token if it has one, else MASK is
  added at the very end.

So for `mask=True` states equal backend ids, and BERT's `[MASK]` keeps its number.

Text of the user is only text: `encode("[MASK]")` gives the pieces of four letters and two brackets,
never a mask, an EOS or a padding state (where a backend has the whole string as an ordinary word,
its unknown token stands for it). Templates with masks have their own method, `encode_template`.

Decoding shows a mask as `[MASK]`. EOS separates documents: a run of them is one newline between
two texts and nothing at either end, so `decode(encode(text) + [eos_id]) == text` for byte-level
backends.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, final

import numpy as np
import tokenizers

from dlm.errors import UserError

MASK_TEXT = "[MASK]"
_TEMPLATE = re.compile(r"\[MASK(?:\*(\d+))?\]")
_PIECE = 2**20  # characters encoded at once: a backend needs about 100 bytes of memory a token
_GROUP = 2**22  # characters handed to the backend's threads in one call


@final
class Tokenizer:
    """Text to states and back; see the module. Make one by a `TokenizerSource` or `from_json`."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos: int | None,
        mask_token: int | None,
        pad: int | None,
        mask: bool,
    ) -> None:
        """Takes the backend over: truncation, padding and special-token matching are switched off.

        Args:
            backend: the vocabulary and its rules.
            eos: backend id of the token that ends a document, None to add one.
            mask_token: backend id of its mask token, None if it has none.
            pad: backend id of its padding token, None if it has none.
            mask: whether the process needs a mask state.
        """
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # special tokens in a text are text
        self._backend = backend
        self._roles = {"eos": eos, "mask_token": mask_token, "pad": pad, "mask": mask}
        left_out = set() if mask else {mask_token, pad} - {eos}
        num_backend = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        kept = np.array([i for i in range(num_backend) if i not in left_out], dtype=np.int64)
        self._to_backend = kept
        self._to_state = np.full(num_backend, -1, dtype=np.int64)
        self._to_state[kept] = np.arange(len(kept))
        size = len(kept)
        if eos is None:
            self.eos_id, size = size, size + 1
        else:
            self.eos_id = int(self._to_state[eos])
        if mask and mask_token is None:
            size += 1
            self.mask_id: int | None = size - 1
        else:
            self.mask_id = mask_token if mask else None
        self.size = size
        self._reserved = [i for i in (eos, mask_token, pad) if i is not None]

    @cached_property
    def unknown_id(self) -> int | None:
        """The state that stands for text outside the vocabulary, if there is one."""
        model = json.loads(self._backend.to_str())["model"]
        token, index = model.get("unk_token"), model.get("unk_id")
        found = self._backend.token_to_id(token) if token is not None else index
        return None if found is None or self._to_state[found] < 0 else int(self._to_state[found])

    def encode(self, text: str) -> list[int]:
        """The states of a text, without EOS."""
        return self.encode_arrays([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The states of several texts, on all cores."""
        return [states.tolist() for states in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_batch` as int64 arrays, for large data.

        A text of more than a million characters is encoded in pieces, cut between two words, so
        that memory does not grow with it. For the usual word-splitting backends this changes no id.
        """
        pieces = [(row, piece) for row, text in enumerate(texts) for piece in _pieces(text)]
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        for group in _groups(pieces):
            encodings = self._backend.encode_batch_fast(
                [piece for _, piece in group], add_special_tokens=False
            )
            for (row, _), encoding in zip(group, encodings, strict=True):
                parts[row].append(self._states(encoding.ids))
        return [np.concatenate(part) if part else np.empty(0, np.int64) for part in parts]

    def _states(self, ids: list[int]) -> np.ndarray:
        found = np.asarray(ids, dtype=np.int64)
        states = self._to_state[found]
        reserved = np.isin(found, self._reserved)
        if not reserved.any():
            return states
        if self.unknown_id is None:
            return states[~reserved]
        return np.where(reserved, self.unknown_id, states)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some states; see the module for masks and EOS.

        Raises:
            ValueError: an id outside `0 .. size - 1`.
        """
        documents: list[str] = []
        pieces: list[str] = []
        run: list[int] = []

        def flush() -> None:
            if run:
                text = self._backend.decode(run, skip_special_tokens=False)
                pieces.append(text.replace(self._mask_word, MASK_TEXT))
                run.clear()

        for state in map(int, ids):
            if not 0 <= state < self.size:
                raise ValueError(f"id {state} is outside 0 .. {self.size - 1}")
            if state == self.eos_id:
                flush()
                documents.append("".join(pieces))
                pieces.clear()
            elif state >= len(self._to_backend):  # the mask that was added
                flush()
                pieces.append(MASK_TEXT)
            else:
                run.append(int(self._to_backend[state]))
        flush()
        documents.append("".join(pieces))
        return "\n".join(text for text in documents if text)

    @cached_property
    def _mask_word(self) -> str:
        token = self._roles["mask_token"]
        return MASK_TEXT if token is None else self._backend.id_to_token(token) or MASK_TEXT

    def encode_template(self, text: str) -> tuple[list[int], list[bool]]:
        """States and frozen positions of a template: `[MASK]` is one hole, `[MASK*8]` eight.

        A hole is the mask state; without one (uniform), it holds EOS as a placeholder, to be
        replaced by noise. What is not a hole is frozen. The texts between holes are encoded each by
        itself.
        """
        ids: list[int] = []
        frozen: list[bool] = []
        hole = self.eos_id if self.mask_id is None else self.mask_id
        end = 0
        for match in _TEMPLATE.finditer(text):
            between = self.encode(text[end : match.start()])
            holes = int(match[1] or 1)
            ids += [*between, *[hole] * holes]
            frozen += [True] * len(between) + [False] * holes
            end = match.end()
        rest = self.encode(text[end:])
        return ids + rest, frozen + [True] * len(rest)

    def to_json(self) -> str:
        """Everything, as text: the backend's JSON and the roles of its tokens."""
        backend = json.loads(self._backend.to_str())
        return json.dumps({"format": 1, **self._roles, "backend": backend}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The inverse of `to_json`.

        Raises:
            UserError: not such a text.
        """
        try:
            data = json.loads(text)
            roles: dict[str, Any] = {k: data[k] for k in ("eos", "mask_token", "pad", "mask")}
            backend = tokenizers.Tokenizer.from_str(json.dumps(data["backend"], ensure_ascii=False))
        except Exception as error:  # the backend raises bare Exceptions
            raise UserError(f"this is not a tokenizer that dlm has saved: {error}") from error
        return cls(backend, **roles)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer.from_json, (self.to_json(),)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of `to_json`: equal only if every text gets the same states."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of at most `_PIECE` characters, cut before the space between two words."""
    start = 0
    while len(text) - start > _PIECE:
        stop = start + _PIECE
        cut = next(
            (i for i in range(stop - 1, start + _PIECE // 2, -1) if _between_words(text, i)), stop
        )
        yield text[start:cut]
        start = cut
    yield text[start:]


def _between_words(text: str, i: int) -> bool:
    return text[i] == " " and text[i - 1].isalnum() and text[i + 1].isalnum()


def _groups(pieces: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    group: list[tuple[int, str]] = []
    size = 0
    for piece in pieces:
        if group and size + len(piece[1]) > _GROUP:
            yield group
            group, size = [], 0
        group.append(piece)
        size += len(piece[1])
    if group:
        yield group
