"""Where a tokenizer comes from: trained on the data (BPE, characters) or loaded (GPT-2, any other).

Trained ones are made from the train split, after the detokenizer, and kept in the cache under a key
of the data and the settings, so that a resumed run and a second rank get the same one.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from dlm.data.cache import cache_dir, digest
from dlm.data.sources import Source
from dlm.data.tokenizers import Tokenizer
from dlm.errors import UserError
from dlm.files import replace_text

log = logging.getLogger(__name__)

EOS_TOKEN = "<|endoftext|>"
UNKNOWN_TOKEN = "<unk>"
_EOS_NAMES = (EOS_TOKEN, "</s>", "<eos>", "[EOS]", "<|eos|>", "<|end_of_text|>", "[SEP]")
_MASK_NAMES = ("[MASK]", "<mask>", "<|mask|>", "<MASK>")
_PAD_NAMES = ("[PAD]", "<pad>", "<|pad|>", "<PAD>")


class TokenizerSource(ABC):
    """A way to get a tokenizer for some data."""

    @abstractmethod
    def load(self, source: Source, *, mask: bool) -> Tokenizer:
        """The tokenizer.

        Args:
            source: the data; tokenizers that are trained are trained on its train split.
            mask: whether the noise process needs a mask state.
        """


@final
class Bpe(TokenizerSource):
    """Byte-level BPE trained on the data. Any text can be encoded and comes back exactly.

    `vocab_size` counts the 256 bytes, the merges and EOS; a mask state comes on top. Very small
    data yields fewer merges.
    """

    def __init__(self, vocab_size: int = 1024, train_mb: float = 1000) -> None:
        """`train_mb`: no more than so many MiB from the start of the train split are looked at."""
        if vocab_size < 257:
            raise UserError(
                f"tokenizer.vocab_size must be at least 257 (256 bytes and EOS), got {vocab_size}"
            )
        self.vocab_size, self.train_mb = vocab_size, train_mb

    def load(self, source: Source, *, mask: bool) -> Tokenizer:
        """See `TokenizerSource.load`."""
        path = _cached(source, ["bpe", self.vocab_size, self.train_mb])
        if not path.is_file():
            log.info("training a byte-level BPE of %d tokens", self.vocab_size)
            backend = tokenizers.Tokenizer(models.BPE())
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=self.vocab_size,
                special_tokens=[EOS_TOKEN],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
            backend.train_from_iterator(_texts(source, self.train_mb), trainer)
            replace_text(path, backend.to_str())
        return _trained(path, mask)


@final
class Char(TokenizerSource):
    """One state per character of the train split.

    A character that never occurred there becomes the state `<unk>` and is shown as such: text with
    unknown characters does not come back, and bits per byte is then too low to be compared.
    """

    def __init__(self, train_mb: float = 1000) -> None:
        """`train_mb`: no more than so many MiB from the start of the train split are looked at."""
        self.train_mb = train_mb

    def load(self, source: Source, *, mask: bool) -> Tokenizer:
        """See `TokenizerSource.load`."""
        path = _cached(source, ["char", self.train_mb])
        if not path.is_file():
            characters: set[str] = set()
            for text in _texts(source, self.train_mb):
                characters.update(text)
            words = [EOS_TOKEN, UNKNOWN_TOKEN, *sorted(characters)]
            vocab = {word: i for i, word in enumerate(words)}
            backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN_TOKEN))
            backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
            backend.decoder = decoders.Fuse()
            backend.add_special_tokens([EOS_TOKEN])
            replace_text(path, backend.to_str())
        return _trained(path, mask)


@final
class Pretrained(TokenizerSource):
    """A `tokenizers` JSON file, or a transformers tokenizer by folder or by name on the hub."""

    def __init__(self, path: str) -> None:
        """`path`: a .json file, a folder, or a name such as `openai-community/gpt2`."""
        self.path = path

    def load(self, source: Source, *, mask: bool) -> Tokenizer:
        """See `TokenizerSource.load`; the data are not looked at."""
        del source
        where = Path(self.path).expanduser()
        if where.is_file():
            return self._from_file(where, mask)
        if self.path.endswith(".json"):
            raise UserError(f"there is no tokenizer file {self.path!r}; check tokenizer.path")
        return self._from_transformers(str(where) if where.is_dir() else self.path, mask)

    def _from_file(self, path: Path, mask: bool) -> Tokenizer:
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the backend raises bare Exceptions
            raise UserError(f"{path} is not a file of the tokenizers library: {error}") from error
        special = {
            token.content: i
            for i, token in backend.get_added_tokens_decoder().items()
            if token.special
        }

        def role(names: tuple[str, ...]) -> int | None:
            return next((special[name] for name in names if name in special), None)

        roles = {"eos": _EOS_NAMES, "mask_token": _MASK_NAMES, "pad": _PAD_NAMES}
        return Tokenizer(backend, mask=mask, **{k: role(names) for k, names in roles.items()})

    def _from_transformers(self, name: str, mask: bool) -> Tokenizer:
        from transformers import AutoTokenizer

        try:
            loaded: Any = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the tokenizer {self.path!r} could not be loaded: {reason}; give a folder, a "
                "tokenizer.json, or a name that the hub knows"
            ) from error
        if not loaded.is_fast:
            raise UserError(
                f"the tokenizer {self.path!r} has no fast version; convert it to a tokenizer.json"
            )
        backend = tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
        eos = loaded.eos_token_id if loaded.eos_token_id is not None else loaded.sep_token_id
        return Tokenizer(
            backend, eos=eos, mask_token=loaded.mask_token_id, pad=loaded.pad_token_id, mask=mask
        )


def _cached(source: Source, settings: list[Any]) -> Path:
    transform = source.detokenizer.fingerprint if source.detokenizer else None
    key = digest(["tokenizer", 1, source.fingerprint("train"), transform, settings])
    return cache_dir() / "tokenizers" / f"{key[:32]}.json"


def _texts(source: Source, train_mb: float) -> Iterator[str]:
    left = train_mb * 2**20
    for document in source.documents("train"):
        yield source.detokenize(document)
        left -= len(document.encode())
        if left <= 0:
            log.info("stopped after %g MiB of text (tokenizer.train_mb)", train_mb)
            return


def _trained(path: Path, mask: bool) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_file(str(path))
    return Tokenizer(
        backend, eos=backend.token_to_id(EOS_TOKEN), mask_token=None, pad=None, mask=mask
    )
