"""What laws of the lab refuse, with which sentence, and what they accept."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm.errors import UserError
from dlm.lab.laws import (
    Checksum,
    Dirichlet,
    Draws,
    Empirical,
    HiddenMarkov,
    Independent,
    Lazy,
    Letters,
    MarkovChain,
    MdsCode,
    MixtureOfProducts,
    Ngram,
    Pairs,
    Permutation,
    Product,
    Repeated,
    Table,
    Tunable,
    table_of,
)
from dlm.random import Key
from dlm.spec import build
from tests.unit.lab.law_cases import SWITCH


def code_evidence(length: int, symbols: int) -> torch.Tensor:
    return torch.randn(1, length, symbols, dtype=torch.float64)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "key": (
        lambda: Product(2, 2).sample(3, key=Key(0, torch.arange(2))),
        "3 samples need a key with as many rows, got 2",
    ),
    "table": (lambda: Product(30, 2).table(), r"a table of 2\^30 sequences is more than 1e\+06"),
    "length": (lambda: Repeated(0, 3), "at least 1, got length 0 and 3 symbols"),
    "symbols": (lambda: Pairs(2, 0), "at least 1, got length 2 and 0 symbols"),
    "entropy": (
        lambda: MixtureOfProducts(40, 2, 2, Dirichlet()).entropy(samples=1),
        "at least 2 samples, got 1",
    ),
    "curve": (
        lambda: MixtureOfProducts(40, 2, 2, Dirichlet()).curve(samples=0),
        "at least 2 samples, got 0",
    ),
    "no parts": (lambda: Independent([]), "at least one part, and a count from 1 on for each"),
    "counts": (lambda: Independent([Product(1, 2)], [1, 2]), "a count from 1 on for each"),
    "no copies": (lambda: Independent([Product(1, 2)], [0]), "a count from 1 on for each"),
    "parts": (
        lambda: Independent([Product(1, 2), Product(1, 3)]),
        "the parts of Independent must have the same symbols",
    ),
    "odd pairs": (lambda: Pairs(5, 3), "pairs need an even length, got 5"),
    "block": (lambda: Tunable(8, 2, 1, 0.5, 0.5), "blocks of at least 2 tokens .* got block 1"),
    "repeated": (lambda: Tunable(8, 2, 2, 1.5, 0.0), r"shares in \[0, 1\], .* repeated 1.5"),
    "checksums": (lambda: Tunable(8, 2, 2, 0.0, -0.1), r"shares in \[0, 1\], .* checksum -0.1"),
    "shares": (
        lambda: Tunable(8, 2, 4, 0.5, 0.9),
        "1 repeated blocks and 2 checksums of 4 tokens do not fit into 8",
    ),
    "stationary": (
        lambda: MarkovChain(3, 2, torch.eye(2)),
        "several stationary laws; say with initial where the chain begins",
    ),
    "stationary states": (
        lambda: HiddenMarkov(3, 2, 3, [[1, 0, 0], [0, 1, 0], [1, 1, 1]], Dirichlet()),
        "several stationary laws",
    ),
    "no states": (
        lambda: HiddenMarkov(3, 2, 0, Lazy(), Dirichlet()),
        "at least one state, got hidden 0",
    ),
    "no components": (
        lambda: MixtureOfProducts(3, 2, 0, Dirichlet()),
        "at least one component, got components 0",
    ),
    "short checksum": (lambda: Checksum(1, 3), "a length of at least 2, got 1"),
    "wide checksum": (
        lambda: Checksum(2, 5000).log_posterior(code_evidence(2, 5000)),
        "over 5000 symbols needs evidence that is even but for one symbol; with at most 4096",
    ),
    "wide checksum, marginal": (
        lambda: Checksum(2, 5000).log_marginal(code_evidence(2, 5000)),
        "over 5000 symbols needs evidence",
    ),
    "prime": (lambda: MdsCode(3, 4, 2), "a prime number of symbols .* got 4 symbols"),
    "prime square": (lambda: MdsCode(3, 9, 2), "a prime number of symbols .* got 9 symbols"),
    "one symbol": (lambda: MdsCode(1, 1, 1), "a prime number of symbols .* got 1 symbols"),
    "long code": (lambda: MdsCode(6, 5, 2), "length <= symbols, got 5 symbols, length 6"),
    "dimension": (lambda: MdsCode(3, 5, 4), "dimension <= length .* dimension 4"),
    "no dimension": (lambda: MdsCode(3, 5, 0), "1 <= dimension .* dimension 0"),
    "words": (
        lambda: MdsCode(7, 11, 6).log_posterior(code_evidence(7, 11)),
        r"sums over its 11\^6 words, more than 1e\+06",
    ),
    "words, marginal": (
        lambda: MdsCode(7, 11, 6).log_marginal(code_evidence(7, 11)),
        r"sums over its 11\^6 words",
    ),
    "no sequences": (
        lambda: Empirical(3, []),
        "at least one sequence of tokens, all of one length",
    ),
    "no draws": (lambda: Empirical(3, Draws(Pairs(4, 3), 0)), "at least one sequence"),
    "ragged": (lambda: Empirical(3, [[0, 1], [2]]), "at least one sequence .* of one length"),
    "flat": (lambda: Empirical(3, torch.tensor([0, 1])), "at least one sequence"),
    "floats": (lambda: Empirical(3, torch.rand(2, 2)), "at least one sequence of tokens"),
    "stored token": (lambda: Empirical(3, [[0, 3]]), r"a token outside \[0, 3\)"),
    "negative token": (lambda: Empirical(3, [[0, -1]]), r"a token outside \[0, 3\)"),
    "smoothing": (lambda: Empirical(3, [[0, 1]], 1.0), r"smoothing must be in \[0, 1\), got 1.0"),
    "below 0": (lambda: Empirical(3, [[0, 1]], -0.1), r"smoothing must be in \[0, 1\), got -0.1"),
    "file": (
        lambda: Ngram(3, 2, 2, Letters(Path("no/such/file"))),
        "cannot read the text 'no/such/file'",
    ),
    "order": (lambda: Ngram(3, 2, 1, [0, 1]), "an order from 2 on, .* got order 1"),
    "entries": (lambda: Ngram(3, 100, 4, [0] * 9), r"at most 1e\+07 entries .* 100 symbols"),
    "delta": (lambda: Ngram(3, 2, 2, [0, 1], 0.0), "a delta above 0, .* delta 0.0"),
    "short text": (lambda: Ngram(3, 2, 3, [0, 1]), "order 3 needs a text of at least as many"),
    "text of floats": (lambda: Ngram(3, 2, 2, torch.rand(5)), "whole numbers"),
    "table for a text": (lambda: Ngram(3, 2, 2, torch.zeros(5, 2).long()), "order 2 needs a text"),
    "token of a text": (
        lambda: Ngram(3, 2, 2, [0, 2]),
        r"the n-gram holds a token outside \[0, 2\)",
    ),
    "negative in a text": (lambda: Ngram(3, 2, 2, [0, -1]), r"a token outside \[0, 2\)"),
    "symbols of a permutation": (
        lambda: Permutation(3, 4),
        "as many symbols as tokens, got 4 and 3",
    ),
    "long permutation": (
        lambda: Permutation(17).log_posterior(code_evidence(17, 17)),
        "a length of at most 16, not 17, or masks",
    ),
    "long permutation, marginal": (
        lambda: Permutation(17).log_marginal(code_evidence(17, 17)),
        "a length of at most 16, not 17, or masks",
    ),
    "concentration": (lambda: Dirichlet(0.0), "concentration must be above 0, got 0.0"),
    "stay": (lambda: Lazy(1.0), r"stay must be in \[0, 1\), got 1.0; dlm.lab.laws.Repeated"),
    "negative stay": (lambda: Lazy(-0.1), r"stay must be in \[0, 1\), got -0.1"),
    "lazy rows": (lambda: Product(4, 3, Lazy()), "the transition of a chain, a square"),
    "negative": (lambda: Product(2, 2, [1.0, -1.0]), "weights must be finite numbers from 0 on"),
    "zeros": (
        lambda: MarkovChain(2, 2, [[0.0, 0.0], [1.0, 0.0]]),
        "transition must be .* some of each row above 0",
    ),
    "nan": (lambda: Repeated(2, 2, [1.0, math.nan]), "weights must be finite numbers"),
    "infinite": (lambda: Repeated(2, 2, [1.0, math.inf]), "weights must be finite numbers"),
    "overflow": (lambda: Repeated(2, 2, [1e308, 1e308]), "weights must be finite numbers"),
    "wide": (lambda: Product(4, 3, [1.0, 1.0]), r"shape \(4, 3\), got shape \(2,\)"),
    "one number": (lambda: Product(4, 3, [1.0]), r"shape \(4, 3\), got shape \(1,\)"),
    "column": (
        lambda: MarkovChain(2, 2, [[1.0], [2.0]]),
        r"transition must be numbers of shape \(2, 2\), got shape \(2, 1\)",
    ),
    "leading": (
        lambda: HiddenMarkov(2, 2, 2, SWITCH, [[1.0, 2.0]] * 3),
        r"emission must be numbers of shape \(2, 2\), got shape \(3, 2\)",
    ),
    "initial": (
        lambda: MarkovChain(2, 2, SWITCH, [[1.0, 2.0]]),
        r"initial must be numbers of shape \(2,\), got shape \(1, 2\)",
    ),
    "text for numbers": (lambda: Product(2, 2, ["a", "b"]), "weights must be numbers in rows"),
    "ragged rows": (
        lambda: MarkovChain(2, 2, [[1.0], [1.0, 2.0]]),
        "transition must be numbers in rows of one length",
    ),
    "large table": (
        lambda: Table(20, 2, Dirichlet()),
        r"a table of 2\^20 sequences is more than 1e\+06",
    ),
    "entries of a table": (lambda: Table(2, 2, [1.0] * 3), r"shape \(4,\), got shape \(3,\)"),
    "axes": (
        lambda: table_of(torch.rand(2, 3)),
        r"one axis of V entries for each token, got shape \(2, 3\)",
    ),
    "no axes": (lambda: table_of(torch.rand(())), r"each token, got shape \(\)"),
}


@pytest.mark.parametrize(("make", "match"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(make: Callable[[], Any], match: str):
    with pytest.raises(UserError, match=match):
        make()


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read the text"):
        Letters(path).text()


def test_a_wrong_word_in_a_yaml_is_refused():
    spec = {"_target_": "dlm.lab.laws.Ngram", "length": 3, "symbols": 2, "order": 2}
    with pytest.raises(UserError, match="smoothing must be 'add' or 'interpolated'"):
        build({**spec, "tokens": [0, 1, 1], "smoothing": "none"}, trust=("dlm",))


# -- what is accepted --------------------------------------------------------------------------


def test_tables_of_any_shape():
    numbers = [[0.1, 0.2], [0.3, 0.4]]
    nested, tensor = Table(2, 2, numbers), Table(2, 2, torch.tensor(numbers))
    flat = Table(2, 2, [n for row in numbers for n in row])
    for law in (nested, tensor, flat, table_of(torch.tensor(numbers))):
        torch.testing.assert_close(law.table(), torch.tensor(numbers).double())


def test_leading_dimensions_may_be_left_out():
    row = [1.0, 2.0]
    assert torch.equal(Product(3, 2, row).marginals(), Product(3, 2, [row] * 3).marginals())
    alike = MixtureOfProducts(3, 2, 2, [[row], [row[::-1]]])
    given = MixtureOfProducts(3, 2, 2, [[row] * 3, [row[::-1]] * 3])
    assert torch.equal(alike.table(), given.table())


def test_a_slow_chain_is_no_broken_one():
    rows = [[1 - 1e-13, 1e-13], [2e-13, 1 - 2e-13]]
    law = MarkovChain(2, 2, rows)
    assert law.initial.tolist() == pytest.approx([2 / 3, 1 / 3], rel=1e-2)


def test_an_ngram_takes_any_whole_numbers():
    text = [0, 1, 1, 0, 1]
    small, large = torch.tensor(text, dtype=torch.int16), torch.tensor(text)
    assert torch.equal(Ngram(3, 2, 2, small).table(), Ngram(3, 2, 2, large).table())
