#!/usr/bin/env bash
# One machine, several GPUs: `scripts/torchrun.sh 8 run_dir=runs/big backbone=small length=1024`.
# The batch of a step is devices x trainer.accumulate_grad_batches x batch_size; the same numbers
# come out as on one device with the batch of all. `resume=true` continues after a stop.
set -euo pipefail
devices=$1
shift
exec torchrun --standalone --nproc-per-node="$devices" -m dlm.cli.main \
    train trainer.accelerator=cuda trainer.devices="$devices" "$@"
