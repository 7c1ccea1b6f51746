"""`blocks.*` of `dlm generate`: a sampler that runs block by block, and how that is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from dlm.errors import UserError
from dlm.samplers import Sampler
from dlm.samplers.blocks import BlockSampler
from dlm.spec import TARGET


@final
@dataclass(frozen=True)
class Blocks:
    """The keys of `blocks` in `configs/generate.yaml`."""

    size: int | None
    context: int | None

    def around(self, sampler: Sampler, limit: int) -> BlockSampler | None:
        """The sampler in blocks; None without a size.

        Args:
            sampler: draws one block.
            limit: the longest sequence that the network takes.

        Raises:
            UserError: numbers that make no window or one that the network does not take.
        """
        if self.size is None:
            if self.context is not None:
                raise UserError(f"blocks.context={self.context} needs blocks.size")
            return None
        if not 1 <= self.size <= limit:
            raise UserError(
                f"blocks.size must be from 1 to {limit} for this model, got {self.size}"
            )
        most = limit - self.size
        context = most if self.context is None else self.context
        if not 0 <= context <= most:
            raise UserError(
                f"blocks.context must be from 0 to {most} with blocks.size={self.size} for this "
                f"model, which takes {limit} tokens at once, got {context}"
            )
        return BlockSampler(sampler, self.size, context)


def blocks_spec(blocks: BlockSampler | None, sampler: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a sampler in blocks, as a plain `_target_` dict.

    Args:
        blocks: None for the sampler as it is.
        sampler: the spec of the sampler of one block.
    """
    if blocks is None:
        return dict(sampler)
    target = f"{BlockSampler.__module__}.{BlockSampler.__name__}"
    settings = {"size": blocks.size, "context": blocks.context}
    return {TARGET: target, "sampler": dict(sampler), **settings}
