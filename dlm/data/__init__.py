"""Data: documents out of files and hubs, tokens, rows, batches.

`Source` (documents by split) -> `Tokenizer` (text to states) -> `prepare` (tokens on disk, once) ->
`Blocks` (rows by a `Packing`) -> `Batch`. The Lightning part is in `dlm.data.module`, the
Hugging Face part loads `datasets` and `transformers` only when used.
"""

from dlm.data.hub import HubDataset
from dlm.data.packing import Batch, Document, Packing, Pad, Row, Wrap, batches, collate
from dlm.data.prepare import Blocks, class_names, prepare, token_counts
from dlm.data.sources import Austen, LabelledSource, Source, StreamingSource, TextFiles
from dlm.data.tokenizer_sources import Bpe, Char, Pretrained, TokenizerSource
from dlm.data.tokenizers import Tokenizer

__all__ = [
    "Austen",
    "Batch",
    "Blocks",
    "Bpe",
    "Char",
    "Document",
    "HubDataset",
    "LabelledSource",
    "Packing",
    "Pad",
    "Pretrained",
    "Row",
    "Source",
    "StreamingSource",
    "TextFiles",
    "Tokenizer",
    "TokenizerSource",
    "Wrap",
    "batches",
    "class_names",
    "collate",
    "prepare",
    "token_counts",
]
