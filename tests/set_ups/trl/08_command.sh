trl sft \
    --model_name_or_path arch:llama \
    --dataset_name trl-lib/Capybara \
    --use_peft \
    --lora_r 32 \
    --lora_alpha 16 \
    --lora_target_modules q_proj v_proj \
    --output_dir out
