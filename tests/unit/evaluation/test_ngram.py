"""The 5-gram yardstick is a probability model, and the compressor table counts document bytes."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

SOURCE = Path(__file__).parents[3] / "benchmarks" / "compressors.py"
spec = importlib.util.spec_from_file_location("compressors", SOURCE)
assert spec is not None
assert spec.loader is not None
compressors = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compressors)

TEXT = b"the cat sat on the mat, and the hat that the cat had sat on the mat too; " * 3


@pytest.mark.parametrize("context", [b"the ", b"zzzz", b"e cz", b"t"])
@pytest.mark.parametrize("order", [1, 3, 5])
def test_every_context_has_a_law_over_bytes(context, order):
    model = compressors.KneserNey(TEXT, order)
    last = [model.probabilities(context + bytes([byte]))[-1] for byte in range(256)]
    assert min(last) > 0
    assert sum(last) == pytest.approx(1, abs=1e-12)


def test_longer_contexts_predict_text_like_the_training_text_better():
    bits = [-np.log2(compressors.KneserNey(TEXT, n).probabilities(TEXT)).mean() for n in (1, 2, 5)]
    assert bits[0] > bits[1] > bits[2]


def test_boundaries_cost_bits_and_count_no_bytes():
    rows = dict(compressors.measure(["abc"], ["q"], order=1))
    model = compressors.KneserNey(b"abc\n\n", 1)
    expected = -sum(math.log2(p) for p in model.probabilities(b"q\n\n"))
    assert rows["1-gram of bytes, modified Kneser-Ney"] == pytest.approx(expected)
