#!/usr/bin/env bash
set -euo pipefail
# the recipe is in the file, the run in here
export FORCE_TORCHRUN=1
llamafactory-cli train 09_named.yaml \
  output_dir=out/run1 \
  lora_rank=16
