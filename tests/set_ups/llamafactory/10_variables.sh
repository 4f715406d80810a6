MODEL="arch:llama"
TARGET=q_proj,v_proj
RANK=16
OUT=out

torchrun --nproc_per_node 2 src/train.py --stage sft --do_train true \
	--model_name_or_path "$MODEL" --finetuning_type lora \
	--lora_target ${TARGET} --lora_rank $RANK --lora_alpha $RANK \
	--dataset identity --template llama3 --output_dir $OUT --bf16 true
