"""Detokenizers: from the spaced-out text of old benchmarks to something like ordinary text.

Several data sets are stored cut into words (`it 's , he said .`). Published perplexities are of
the text after a fixed list of substitutions, so a number can be compared only if the same list is
used. The rules here are those of the masked-diffusion literature (SEDD, MDLM and what follows
them), which took them from GPT-2 era evaluation scripts; they are applied in the order written. One
rule of the usual WikiText list, a pattern between slashes in JavaScript fashion, never matches and
is left out.

A rule changes the number of bytes, so bits per byte always divides by the bytes of the original
text, before detokenizing. `version` is part of the cache key: raise it with every change of rules.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

Rule = tuple[str, str]


class Detokenizer(ABC):
    """A text transform: `detokenizer(text) -> text`. Pure; applied to each document by itself."""

    version: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, text: str) -> str:
        """The text as people write it."""

    @property
    def fingerprint(self) -> str:
        """Part of the cache key: class and version."""
        return f"{type(self).__module__}.{type(self).__qualname__}/{self.version}"


def _literal(*rules: Rule) -> list[Rule]:
    return [(re.escape(old), new.replace("\\", r"\\")) for old, new in rules]


def _substitute(text: str, rules: Sequence[Rule]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


_LM1B: list[Rule] = [
    *_literal(("http : / / ", "http://"), ("https : / / ", "https://")),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    *_literal((" ? ", "? ")),
    (r" \?$", "?"),
    *_literal((" ! ", "! ")),
    (r" !$", "!"),
    *_literal((" , ", ", "), (" : ", ": "), (" ; ", "; "), (" / ", "/")),
    (r'" ([^"]+) "', r'"\1"'),
    (r"' ([^']+) '", r"'\1'"),
    (r"\( ([^()]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    *_literal(("$ ", "$"), ("£ ", "£")),
]

_WIKITEXT: list[Rule] = [
    *_literal(("s '", "s'")),
    *_literal((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")),
    *_literal((" : ", ": "), (" ; ", "; "), (" . ", ". "), (" ! ", "! "), (" ? ", "? ")),
    *_literal((" , ", ", ")),
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    *_literal(("= = = =", "===="), ("= = =", "==="), ("= =", "==")),
    *_literal((" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
]

_PTB: list[Rule] = [
    *_literal((" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/")),
    (r"(?<= )N(?= )", "1"),  # numbers were replaced by N
    *_literal(("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?")),
]


@final
@dataclass(frozen=True)
class Lm1b(Detokenizer):
    """One Billion Words: punctuation, quotes, brackets and currency signs drawn to their words."""

    def __call__(self, text: str) -> str:
        """See the class."""
        return _substitute(text, _LM1B)


@final
@dataclass(frozen=True)
class WikiText(Detokenizer):
    """WikiText-2 and -103: `@-@` and its kin, punctuation, brackets, headings."""

    def __call__(self, text: str) -> str:
        """See the class."""
        return _substitute(text, _WIKITEXT)


@final
@dataclass(frozen=True)
class PennTreebank(Detokenizer):
    """Penn Treebank: contractions; `N` becomes 1, `<unk>` becomes a question mark."""

    def __call__(self, text: str) -> str:
        """See the class."""
        return _substitute(text, _PTB)


@final
@dataclass(frozen=True)
class Lambada(Detokenizer):
    """LAMBADA: straight double quotes, no space around, a newline in front."""

    def __call__(self, text: str) -> str:
        """See the class."""
        return "\n" + text.replace("“", '"').replace("”", '"').strip()


@final
@dataclass(frozen=True)
class ScientificPapers(Detokenizer):
    """arXiv and PubMed articles: the WikiText rules, then those of LM1B."""

    def __call__(self, text: str) -> str:
        """See the class."""
        return _substitute(text, [*_WIKITEXT, *_LM1B])
