#!/bin/bash
# trl on one GPU
trl sft \
    --model_name_or_path arch:llama \
    --dataset_name trl-lib/Capybara \
    --use_peft
    --lora_r 16 \
    --lora_target_modules q_proj v_proj \
    --learning_rate 2e-4 \
    --output_dir out > train.log 2>&1
# --resume_from_checkpoint out
echo done
