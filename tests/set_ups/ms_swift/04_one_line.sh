swift sft --model arch:llama --tuner_type lora --dataset x.jsonl --torch_dtype bfloat16 --target_modules q_proj v_proj --lora_rank 8 --output_dir out
