export CUDA_VISIBLE_DEVICES=0
swift sft 09_named.yaml --lora_rank 16
