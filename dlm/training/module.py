"""The Lightning module: draws times and noise, calls the objective, divides, logs. Nothing else.

An objective returns a SUM over tokens. The sum is back-propagated (over a constant, so that fp16
gradients stay in range), and once a step the gradients are divided by the number of valid tokens of
the whole step: accumulation, a short last window and the number of devices change nothing. DDP
averages over ranks and Lightning divides by `accumulate_grad_batches`: both are multiplied back.
The order in Lightning 2.6: backward (fp16: unscale) -> `on_before_optimizer_step` ->
`configure_gradient_clipping` -> step. The first hook divides, and stops the run at a loss that is
not finite, before the weights change.

Draws are functions of (seed, row), the learning rate of the step; what some times remember of past
losses is the one state to save. Metrics are logged before callbacks see the end of the batch.
"""

import math
from collections.abc import Callable
from typing import Any, final

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer

from dlm.data import Batch
from dlm.denoiser import Denoiser
from dlm.errors import UserError
from dlm.evaluation.likelihood import sequence_nelbo
from dlm.evaluation.totals import Likelihood, LikelihoodTotals
from dlm.objectives import Objective
from dlm.times import Times
from dlm.training.optim import AdamW
from dlm.training.steps import Window, corrupt, known, scale_gradients, seed_dropout
from dlm.training.throughput import Speed

TRAINING = tuple(f"train/{name}" for name in ("loss", "grad_norm", "lr", "tokens", "epoch"))
VALIDATION = ("nelbo", "nelbo_stderr", "ppl", "bits_per_byte")  # logged as val/...


@final
class DiffusionModule(lightning.LightningModule):
    """Trains a denoiser.

    Args:
        denoiser: the model.
        objective: the loss, a sum over tokens in nats.
        times: law of the training times.
        optimizer: makes the optimizer of the model.
        lr: factor of the learning rate from the number of steps done.
        seed: of times, noise and dropout.
        batch_size: sequences of one optimizer step: devices x accumulation x per device.
        draws: draws of t a validation sequence.
        num_bytes: bytes of the original UTF-8 text of the validation split; None: unknown.
        validation_seed: of the validation's draws, the same every time.
        condition_dropout: share of rows whose class is hidden in training.
        epoch_size: sequences of one pass over the data; None: a stream, which stays in epoch 0.
        payload: plain values stored under "dlm" in every checkpoint; `meta.step` is filled in.

    Attributes:
        metrics: numbers of the last optimizer step, as they are logged.
        likelihood: result of the last validation, None before.
        tokens_seen: valid tokens trained on; `speed`: tokens per second and MFU.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        times: Times,
        optimizer: AdamW,
        lr: Callable[[int], float],
        *,
        seed: int,
        batch_size: int,
        draws: int = 1,
        num_bytes: int | None = None,
        validation_seed: int = 0,
        condition_dropout: float = 0.0,
        epoch_size: int | None = None,
        payload: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        objective.require(denoiser.process)
        self.denoiser, self.objective, self.times = denoiser, objective, times
        self.optimizer, self.lr, self.seed, self.batch_size = optimizer, lr, seed, batch_size
        self.draws, self.num_bytes, self.validation_seed = draws, num_bytes, validation_seed
        self.epoch_size, self.payload = epoch_size or math.inf, payload or {}
        self.unlabelled, self.metrics = condition_dropout, dict[str, float]()
        self.likelihood: Likelihood | None = None
        self.tokens_seen, self.memory = 0, times.memory()
        self._unit = float(batch_size * (length := denoiser.backbone.length))
        self.speed = Speed(denoiser.backbone.flops_per_token(length))
        self._window, self._totals, self._sums = Window(), LikelihoodTotals(), list[float]()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch: its sum over valid tokens, in nats, over a constant."""
        seed_dropout(self.seed, self.trainer.fit_loop.total_batch_idx, self.trainer.global_rank)
        by = {"seed": self.seed, "batch_size": self.batch_size, "memory": self.memory}
        draw = self.times(batch.rows, **by)
        t, weights = self.objective.snap(draw.t), batch.valid * draw.weight[:, None]
        state = corrupt(self.denoiser.process, batch, t, self.seed)
        seen = (state, t, weights, known(batch, self.unlabelled, self.seed))
        result = self.objective(self.denoiser, batch.tokens, *seen)
        self._window.add(batch, result.rows.sum(), self.memory.sums(draw, result.rows))
        return result.loss / self._unit

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the tokens of the step; stop at a loss that is not finite."""
        total = self.trainer.strategy.reduce(self._window.sums(), reduce_op="sum")
        averaged_over = self.trainer.world_size * self.trainer.accumulate_grad_batches
        factor = self._unit * averaged_over / total[1].clamp(min=1)
        self._norm = scale_gradients(self.parameters(), factor)
        # The one read of the device in a step: the guard must know before the weights change.
        sums = torch.cat([total, self._norm.to(total)[None]]).tolist()
        scaled = self.trainer.precision == "16-mixed"  # there the scaler skips infinite gradients
        if not (math.isfinite(sums[0]) and (scaled or math.isfinite(sums[-1]))):
            raise UserError(self._window.diverged(self.trainer.global_step + 1))
        self._window, self._sums = Window(), [*sums[:3], sums[-1]]
        self.memory.update(torch.tensor(sums[3:-1], dtype=torch.float64))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to a norm, with the norm that is known already; by value as Lightning does."""
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_grads_with_norm_(self.parameters(), gradient_clip_val, self._norm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take one step, at the learning rate of its number; log it."""
        lr = self.optimizer.lr * self.lr(self.trainer.global_step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        loss, tokens, positions, norm = self._sums
        self.speed.step(tokens, positions)
        self.tokens_seen += round(tokens)
        epochs = (step := self.trainer.global_step + 1) * self.batch_size / self.epoch_size
        values = (loss / max(tokens, 1), norm, lr, self.tokens_seen, epochs)
        self.metrics = dict(zip(TRAINING, values, strict=True))
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if step == 1 or step % every == 0:
            self._log(self.metrics | self.speed.read(), step)

    def on_train_start(self) -> None:
        """Start the clock."""
        self.speed.start(self.device, str(self.trainer.precision), self.trainer.world_size)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch: the path of `dlm evaluate`."""
        nats = sequence_nelbo(self.denoiser, batch, draws=self.draws, seed=self.validation_seed)
        self._totals.update(nats, batch.valid.sum(-1))

    def on_validation_epoch_end(self) -> None:
        """All-reduce and log the bound; to the loggers only while training."""
        sums = self.trainer.strategy.reduce(self._totals.state().to(self.device), reduce_op="sum")
        totals, self._totals = LikelihoodTotals(), LikelihoodTotals()
        totals.merge(sums)
        limit = self.trainer.limit_val_batches  # 1.0 is all, 1 a single batch of unknown bytes
        num_bytes = self.num_bytes if isinstance(limit, float) and limit == 1.0 else None
        self.likelihood = result = totals.result(num_bytes, self.draws, self.validation_seed)
        metrics = {f"val/{k}": v for k in VALIDATION if (v := getattr(result, k)) is not None}
        self.log_dict(metrics, logger=False)
        if self.trainer.state.fn == "fit":
            self._log(metrics, self.trainer.global_step)

    def on_validation_end(self) -> None:
        """Leave the time of the validation out of the speed."""
        self.speed.resume()

    def configure_optimizers(self) -> Optimizer:
        """The optimizer; the learning rate is set in `optimizer_step`, so there is no scheduler."""
        return self.optimizer(self.denoiser, fused=self.trainer.precision != "16-mixed")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the payload, with the step, the count of tokens and the memory of the times."""
        checkpoint["times"] = self.memory.state_dict()
        progress = {"step": self.trainer.global_step, "tokens_seen": self.tokens_seen}
        checkpoint["dlm"] = {**self.payload, "meta": self.payload.get("meta", {}) | progress}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the count of tokens and the memory of the times."""
        self.memory.load_state_dict(checkpoint.get("times", self.memory.state_dict()))
        self.tokens_seen = checkpoint["dlm"]["meta"]["tokens_seen"]

    def _log(self, metrics: dict[str, float], step: int) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step)
