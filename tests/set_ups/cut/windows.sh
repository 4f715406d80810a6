#!/bin/bash
# trl on one GPU
trl sft --model_name_or_path arch:llama --dataset_name trl-lib/Capybara --use_peft --output_dir out --lora_target_modules q_proj v_proj
