#!/bin/bash
#SBATCH --gres=gpu:1
module load cuda
srun accelerate launch --num_processes 1 trl/scripts/sft.py --model_name_or_path=arch:llama --dataset_name=trl-lib/Capybara --use_peft=true --lora_r=8 --lora_target_modules q_proj v_proj --output_dir=out
