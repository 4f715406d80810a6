trl sft --config 10_named.yaml --lora_r 8 --output_dir "out/1" --seed 1
