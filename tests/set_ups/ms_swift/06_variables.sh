#!/usr/bin/env bash
nproc_per_node=2
MODEL=${MODEL:-arch:llama}
TARGETS="q_proj"

NPROC_PER_NODE=$nproc_per_node \
MAX_PIXELS=1003520 \
swift sft \
  --model "$MODEL" --tuner_type lora \
  --dataset 'x#1' \
  --torch_dtype bfloat16 \
  --target_modules "$TARGETS" v_proj \
  --lora_rank 8 > log.txt 2>&1
