"""Train a classifier of noisy text that guides a model: see docs/guidance.md.

    python scripts/train_classifier.py --checkpoint austen --label novel --output runs/novels

Tokenizer, noise process, length, packing and data are those of the checkpoint; `--label` names the
field of the data that holds the class, where the model was trained without.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dlm.checkpoint import load
from dlm.classifier import accuracy, fit, save
from dlm.cli.common import number, pick_device, say, screen
from dlm.data import class_names, prepare
from dlm.errors import UserError
from dlm.networks import TextClassifier
from dlm.spec import build

ALPHAS = (0.05, 0.25, 0.5, 1.0)


def main(arguments: list[str]) -> int:
    """Train, measure on the validation split, write."""
    parser = argparse.ArgumentParser(description="Train a classifier of noisy text.")
    parser.add_argument("--checkpoint", required=True, help="a model, as for dlm generate")
    parser.add_argument("--output", required=True, help="the folder of the classifier")
    parser.add_argument("--label", help="field of the class; default: that of the training")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    try:
        train(parser.parse_args(arguments))
    except UserError as error:
        print(f"train_classifier: {error}", file=sys.stderr)
        return 2
    return 0


def train(keys: argparse.Namespace) -> None:
    """What the arguments say."""
    console, model = screen(), load(keys.checkpoint)
    data = model.meta["data"] | ({"label": keys.label} if keys.label else {})
    source = build(data, path="data")
    classes = class_names(source, model.tokenizer)
    if not classes:
        raise UserError("the data of this checkpoint has no classes; name their field by --label")
    packing, length = build(model.meta["packing"], path="packing"), model.meta["length"]
    rows = {
        split: prepare(source, split, model.tokenizer, packing, length, classes=classes)
        for split in source.splits
        if split in ("train", "validation")
    }
    process = model.denoiser.process
    spec = {
        "num_states": process.num_states,
        "num_classes": len(classes),
        "length": length,
        "width": keys.width,
        "depth": keys.depth,
        "heads": keys.heads,
    }
    torch.manual_seed(keys.seed)
    classifier = TextClassifier(**spec).to(pick_device(None))

    def report(step: int, loss: float) -> None:
        if step % max(1, keys.steps // 10) == 0:
            say(console, f"step {step}: {loss:.3f} nats")

    fit(
        classifier,
        process,
        rows["train"],
        steps=keys.steps,
        batch_size=keys.batch_size,
        lr=keys.lr,
        seed=keys.seed,
        on_step=report,
    )
    save(classifier, keys.output, spec=spec, classes=classes, model=model)
    if "validation" in rows:
        for alpha, share in accuracy(classifier, process, rows["validation"], ALPHAS).items():
            say(console, f"validation, alpha {alpha}: {number(100 * share, 1)} % right")
    say(console, f"wrote {keys.output}; it knows {', '.join(classes)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
