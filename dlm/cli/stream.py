"""`stream=true` of `dlm generate`: the text on the screen as its blocks are finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from rich.console import Console

from dlm.cli.common import say
from dlm.evaluation.generation import Decoder, TextStream
from dlm.samplers.blocks import Block


@final
class BlockPrinter:
    """An `on_block` that prints; one text runs on, several are told apart by a line before each.

    Args:
        console: where to.
        tokenizer: decodes the tokens.
        names: of the texts of the batch.
        lengths: of the texts; what lies behind is padding.
    """

    def __init__(
        self, console: Console, tokenizer: Decoder, names: Sequence[str], lengths: Sequence[int]
    ) -> None:
        self.console, self.names, self.lengths = console, names, lengths
        self.streams = [TextStream(tokenizer) for _ in names]
        if len(names) == 1:
            say(console, f"--- {names[0]}")

    def __call__(self, block: Block) -> None:
        """Print what the block adds to each text."""
        for index, tokens in enumerate(block.tokens.tolist()):
            real = tokens[: max(0, self.lengths[index] - block.start)]
            text = self.streams[index].push(real)
            last = block.start < self.lengths[index] <= block.start + len(tokens)
            if last:
                text += self.streams[index].end()
            if not real:
                continue
            if len(self.names) == 1:
                self._write(text + "\n" * last)
            else:
                upto = block.start + len(real)
                say(self.console, f"--- {self.names[index]}, tokens {block.start} to {upto - 1}")
                say(self.console, text)

    def _write(self, text: str) -> None:
        """Text without a line break of ours, at once."""
        self.console.print(text, end="", markup=False, highlight=False, emoji=False, soft_wrap=True)
        self.console.file.flush()
