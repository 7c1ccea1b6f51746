"""What compressors and a character 5-gram model make of the embedded corpus, in bits per byte.

The yardsticks of the results ledger, on the same validation text as `dlm evaluate`. Documents are
joined by blank lines; as in `dlm evaluate`, the boundaries cost bits while the bytes counted are
those of the documents alone. gzip and xz are given twice: on the validation text alone, and as the
increment when it is appended to the training text (what a compressor that has seen the training
text pays; gzip looks back 32 KiB only). The 5-gram model sees the training text and is an
interpolated modified Kneser-Ney model over bytes, so that no text is out of its vocabulary.

    python benchmarks/compressors.py [--order 5] [--out FILE.md]
"""

import argparse
import gzip
import lzma
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import final

import numpy as np

BYTES = 256


def modified_discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts of n-grams counted once, twice, and three times or more; shape (4,), 0 for none.

    Source: Chen and Goodman 1999, eq. 26.
    """
    n1, n2, n3, n4 = (max(int((counts == c).sum()), 1) for c in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    raw = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.clip(raw, 0, np.arange(4))


@final
class NgramTable:
    """Counts of one order: sorted n-gram codes, their discounted counts, and context statistics."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray):
        discounts = modified_discounts(counts)[np.minimum(counts, 3)]
        self.grams, self.kept = grams, counts - discounts
        self.contexts, where = np.unique(grams >> 8, return_inverse=True)
        self.totals = np.bincount(where, weights=counts)
        self.backoff = np.bincount(where, weights=discounts) / self.totals

    def interpolate(self, grams: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p(w | h) = kept(hw) / total(h) + backoff(h) p_lower(w | h'); unseen h: p_lower."""
        at, seen = _find(self.grams, grams)
        kept = np.where(seen, self.kept[at], 0.0)
        at, seen = _find(self.contexts, grams >> 8)
        return np.where(seen, kept / self.totals[at] + self.backoff[at] * lower, lower)


@final
class KneserNey:
    """Interpolated modified Kneser-Ney model over bytes.

    The highest order counts occurrences, a lower one counts the distinct bytes seen before the
    n-gram; order 1 is interpolated with 1/256.

    Args:
        text: training text.
        order: length of the longest n-gram, 1 to 7 (the code of one fits 64 bits).
    """

    def __init__(self, text: bytes, order: int = 5):
        if not 1 <= order <= 7:
            raise ValueError(f"order must be in 1..7, got {order}")
        grams, counts = np.unique(_codes(text, order), return_counts=True)
        self.tables = [NgramTable(grams, counts)]
        for n in range(order - 1, 0, -1):
            grams, counts = np.unique(grams & ((1 << 8 * n) - 1), return_counts=True)
            self.tables.append(NgramTable(grams, counts))
        self.tables.reverse()

    def probabilities(self, text: bytes) -> np.ndarray:
        """p(byte | the bytes before it) for each byte, shape (len(text),)."""
        p = np.full(len(text), 1 / BYTES)
        for n, table in enumerate(self.tables, start=1):
            p[n - 1 :] = table.interpolate(_codes(text, n), p[n - 1 :])
        return p


def _codes(text: bytes, order: int) -> np.ndarray:
    """Each n-gram as one integer, the last byte lowest; shape (len(text) - order + 1,)."""
    symbols = np.frombuffer(text, np.uint8).astype(np.int64)
    length = max(len(symbols) - order + 1, 0)
    codes = np.zeros(length, np.int64)
    for i in range(order):
        codes = codes << 8 | symbols[i : i + length]
    return codes


def _find(table: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position of each value in a sorted table, and whether it is there."""
    at = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return at, table[at] == values


def measure(train: Iterable[str], validation: Iterable[str], order: int) -> list[tuple[str, float]]:
    """Bits per byte of the validation text, one (name, value) per yardstick."""
    documents = list(validation)
    num_bytes = sum(len(document.encode()) for document in documents)
    train_text, text = _join(train), _join(documents)
    compressors: dict[str, Callable[[bytes], bytes]] = {
        "gzip -9": lambda data: gzip.compress(data, 9, mtime=0),
        "xz -9": lambda data: lzma.compress(data, preset=9),
    }
    rows = []
    for name, compress in compressors.items():
        alone = len(compress(text))
        increment = len(compress(train_text + text)) - len(compress(train_text))
        rows += [
            (f"{name}, validation text alone", 8 * alone / num_bytes),
            (f"{name}, increment after the training text", 8 * increment / num_bytes),
        ]
    bits = -np.log2(KneserNey(train_text, order).probabilities(text)).sum()
    rows.append((f"{order}-gram of bytes, modified Kneser-Ney", float(bits) / num_bytes))

    return rows


def _join(documents: Iterable[str]) -> bytes:
    return "".join(f"{document}\n\n" for document in documents).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="Bits per byte of compressors.")
    parser.add_argument("--order", type=int, default=5, help="length of the longest n-gram")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file too")
    args = parser.parse_args()
    from dlm.data.sources import Austen  # here, so that the tests need no corpus

    corpus = Austen()
    rows = measure(corpus.documents("train"), corpus.documents("validation"), args.order)
    table = "\n".join(
        ["| model | bits per byte |", "|---|---|", *(f"| {name} | {v:.3f} |" for name, v in rows)]
    )
    print(table)
    if args.out:
        args.out.write_text(f"# Compressors on the validation text\n\n{table}\n")


if __name__ == "__main__":
    main()
