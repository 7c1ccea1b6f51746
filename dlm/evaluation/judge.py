"""A judge: what a causal language model makes of generated text.

Any causal model of transformers, from a folder on disk. A text is scored as it stands, without the
special tokens of the judge but its BOS before the first token, so the first token is scored too.
The nats of a text depend on the judge's tokenizer; per byte they compare across texts.

A judge rewards what it finds likely: text that repeats itself, or says little, scores well. Read
its perplexity beside the entropy of the samples (`dlm.evaluation.quality`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor

from dlm.errors import UserError


class Scores(NamedTuple):
    """Of each text: nats, float64 (N,); scored tokens of the judge and UTF-8 bytes, int64 (N,)."""

    nats: Tensor
    tokens: Tensor
    bytes: Tensor


@final
class Judge:
    """A causal language model that scores texts.

    Args:
        path: a folder in the format of transformers, with its tokenizer. Nothing is downloaded, no
            code of the folder is run.
        device: where it runs.
        dtype: of its weights.

    Raises:
        UserError: there is no such folder, or it holds no causal language model.
    """

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds of import

        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise UserError(f"there is no folder {str(path)!r} with a judge; see docs/quality.md")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{str(path)!r} holds no causal language model: {reason}") from error
        self._model = model.to(device).eval()
        self._device = torch.device(device)

    @property
    def context(self) -> int:
        """The longest text it reads, in its tokens, BOS included."""
        return int(self._model.config.max_position_embeddings)

    @torch.no_grad()
    def score(self, texts: Sequence[str], batch_size: int = 16) -> Scores:
        """Score texts.

        Args:
            texts: any; an empty one costs nothing.
            batch_size: texts at a time, of similar length; changes results by rounding only.

        Raises:
            UserError: a text longer than the judge's context: nothing is cut silently.
        """
        encoded = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        longest = max((len(ids) for ids in encoded), default=0) + 1
        if longest > self.context:
            raise UserError(
                f"a text has {longest} tokens of the judge, more than {self.context}; cut it first"
            )
        nats = torch.zeros(len(texts), dtype=torch.float64)
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), batch_size):
            batch = [i for i in order[start : start + batch_size] if encoded[i]]
            if batch:
                nats[batch] = self._batch([encoded[i] for i in batch])
        tokens = torch.tensor([len(ids) for ids in encoded])
        return Scores(nats, tokens, torch.tensor([len(text.encode()) for text in texts]))

    def _batch(self, rows: list[list[int]]) -> Tensor:
        first = self._tokenizer.bos_token_id
        first = self._tokenizer.eos_token_id if first is None else first
        if first is None:
            raise UserError("the judge has neither BOS nor EOS to put before the first token")
        width = 1 + max(len(row) for row in rows)
        ids = torch.full((len(rows), width), first, device=self._device)
        seen = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, 1 : 1 + len(row)] = torch.tensor(row, device=self._device)
            seen[n, : 1 + len(row)] = 1
        logits = self._model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), ids[:, 1:], reduction="none"
        )
        return (loss.double() * seen[:, 1:]).sum(-1).cpu()
