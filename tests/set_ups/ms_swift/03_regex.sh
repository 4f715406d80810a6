CUDA_VISIBLE_DEVICES=0 \
swift sft \
    --model arch:llama \
    --tuner_type lora \
    --dataset 'AI-ModelScope/alpaca-gpt4-data-zh#500' \
              'swift/self-cognition#500' \
    --torch_dtype bfloat16 \
    --num_train_epochs 1 \
    --per_device_train_batch_size 1 \
    --learning_rate 1e-4 \
    --lora_rank 8 \
    --lora_alpha 32 \
    --target_regex '.*\.(q|v)_proj' \
    --gradient_accumulation_steps 16 \
    --output_dir output
