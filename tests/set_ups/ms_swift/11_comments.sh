#!/bin/bash
# ---- data ----   it's "quoted" here
DATA=x.jsonl   # 训练数据
swift sft --model arch:llama \
  --tuner_type lora --torch_dtype bfloat16 \
  --dataset $DATA \
  --target_modules "q_proj" "v_proj" \
  --lora_rank 8
echo done
