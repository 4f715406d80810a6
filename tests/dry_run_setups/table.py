"""The set-ups. Each style has healthy ones, and twins that a single edit has broken."""

from __future__ import annotations

from tests.dry_run_setups.setups import Setup, broken, healthy

_DATA = ("datasets",)
_TRL = ("trl", "datasets")
_LIGHTNING = ("lightning",)
_HYDRA = ("hydra", "datasets")
_SENTENCES = ("sentence_transformers", "datasets")
_NOTEBOOK = ("nbclient", "ipykernel", "jupyter_core", "trl", "datasets")
_LLAMAFACTORY = ("llamafactory",)
_AXOLOTL = ("axolotl",)
_SWIFT = ("swift",)
_4BIT = ("bitsandbytes",)

_ARGPARSE = (
    healthy("argparse", "trainer_argparse.py", needs=_DATA),
    healthy("argparse, other values on the command line", "trainer_argparse.py",
            "--lora_r", "64", "--lr", "1e-4", "--lora_target_modules", "q_proj", "k_proj", "v_proj",
            "o_proj", "gate_proj", "up_proj", "down_proj", needs=_DATA),
    broken("argparse: a target of another architecture", "trainer_argparse.py", "LD202",
           "--lora_target_modules", "q_proj", "query_key_value", needs=_DATA),
    broken("argparse: no target matches", "trainer_argparse.py", ("LD002", "LD201"),
           "--lora_target_modules", "query_key_value", needs=_DATA),
    broken("argparse: adapters out of reach of the optimizer", "trainer_argparse.py",
           "LD502", needs=_DATA,
           edits={"    model.print_trainable_parameters()\n":
                  "    model.requires_grad_(False)\n"}),
    broken("argparse: answers cut by the length limit", "trainer_argparse.py", "LD901",
           "--cutoff_len", "8", needs=_DATA),
    healthy("argparse: mapped before it is split", "trainer_argparse.py", needs=_DATA, edits={
        "data.train_test_split(test_size=40, seed=42)":
        "data.map(tokenize, remove_columns=data.column_names).train_test_split(test_size=40)",
        '["train"].shuffle(seed=0).map(tokenize, remove_columns=data.column_names)': '["train"]',
        'split["test"].map(tokenize, remove_columns=data.column_names)': 'split["test"]'}),
    broken("argparse: nothing to resume from", "trainer_argparse.py", "LD002", needs=_DATA,
           edits={"trainer.train()": "trainer.train(resume_from_checkpoint=True)"}),
    broken("argparse: no token ends the answers", "trainer_argparse.py", "LD905", needs=_DATA,
           edits={"(question + answer + [tokenizer.eos_token_id])": "(question + answer)",
                  "* len(question) + answer + [tokenizer.eos_token_id])":
                  "* len(question) + answer)"}),
)  # fmt: skip
_HF_ARGUMENTS = (
    healthy("HfArgumentParser", "trainer_hf_arguments.py", "--output_dir", "out",
            "--per_device_train_batch_size", "4", "--learning_rate", "2e-4", "--bf16",
            needs=_DATA),
    broken("HfArgumentParser: padded by the end of turns", "trainer_hf_arguments.py", "LD906",
           "--output_dir", "out", "--use_pad", "<|im_end|>", needs=_DATA),
    broken("HfArgumentParser: warm-up longer than the run", "trainer_hf_arguments.py", "LD917",
           "--output_dir", "out", "--warmup_steps", "500", "--num_train_epochs", "1", needs=_DATA),
    broken("HfArgumentParser: a learning rate of 0", "trainer_hf_arguments.py", "LD510",
           "--output_dir", "out", "--learning_rate", "0", needs=_DATA),
    broken("HfArgumentParser: a scaling out of scale", "trainer_hf_arguments.py", "LD404",
           "--output_dir", "out", "--lora_alpha", "4096", needs=_DATA),
)  # fmt: skip
_SFT = (
    healthy("SFT", "trl_sft.py", needs=_TRL),
    healthy("SFT with packing", "trl_sft.py", needs=_TRL,
            edits={"assistant_only_loss=True,": "packing=True,",
                   "max_length=512": "max_length=256"}),
    broken("SFT: a template without generation marks", "trl_sft.py", "LD002", needs=_TRL,
           edits={'model_id = "llama"': 'model_id = "llama-base"'}),
    broken("SFT: answers that end where generation does not stop", "trl_sft.py", "LD918",
           needs=_TRL,
           edits={'model_id = "llama"': 'model_id = "llama-base"',
                  "    assistant_only_loss=True,\n": ""}),
    broken("SFT: a loss setting for other rows", "trl_sft.py", "LD903", needs=_TRL,
           edits={"assistant_only_loss=True": "completion_only_loss=True"}),
    healthy("SFT in 4 bits on prompts and completions", "trl_sft_qlora.py", needs=(*_TRL, *_4BIT)),
    broken("SFT in 4 bits: a module name misspelled", "trl_sft_qlora.py", "LD202",
           needs=(*_TRL, *_4BIT), edits={'"gate_proj", "up_proj"': '"gate_proj", "up_project"'}),
    broken("SFT in 4 bits: a limit that cuts the answers", "trl_sft_qlora.py", "LD905",
           needs=(*_TRL, *_4BIT), edits={"max_length=256": "max_length=24"}),
)  # fmt: skip
_OTHER_TRL = (
    healthy("DPO with a reference model", "trl_dpo.py", needs=_TRL),
    broken("DPO: a target of another architecture", "trl_dpo.py", "LD202", needs=_TRL,
           edits={'["q_proj", "k_proj", "v_proj"]': '["q_proj", "v_proj", "c_attn"]'}),
    broken("DPO: warm-up longer than the run", "trl_dpo.py", "LD917", needs=_TRL,
           edits={"max_steps=200": "max_steps=15"}),
    healthy("GRPO", "trl_grpo.py", needs=_TRL),
    broken("DPO: both answers are the same", "trl_dpo.py", "LD928", needs=_TRL,
           edits={'split="train")\n':
                  'split="train")\n'
                  'dataset = dataset.map(lambda row: {"rejected": row["chosen"]})\n'}),
    broken("GRPO: a reward that reads no completion", "trl_grpo.py", "LD938", needs=_TRL,
           edits={"[-abs(20 - len(completion)) for": "[1.0 for"}),
    healthy("GRPO: a reward that noise never gets", "trl_grpo.py", needs=_TRL,
            edits={"[-abs(20 - len(completion)) for":
                   "[float('The answer is' in completion) for"}),
    broken("GRPO: a learning rate of 0", "trl_grpo.py", "LD510", needs=_TRL,
           edits={"learning_rate=1e-5": "learning_rate=0.0"}),
    healthy("KTO", "trl_kto.py", needs=_TRL),
    broken("KTO: a target of another architecture", "trl_kto.py", "LD202", needs=_TRL,
           edits={'["q_proj", "v_proj"]': '["q_proj", "v_proj", "c_attn"]'}),
    broken("KTO: wanted answers only", "trl_kto.py", "LD948", needs=_TRL,
           edits={"[False] * len": "[True] * len"}),
    healthy("reward model", "trl_reward.py", needs=_TRL),
    broken("reward model: the task type of another class", "trl_reward.py", "LD101", needs=_TRL,
           edits={"TaskType.SEQ_CLS": "TaskType.CAUSAL_LM"}),
)  # fmt: skip
_LOOPS = (
    healthy("accelerate loop", "accelerate_loop.py", needs=_DATA),
    healthy("accelerate launch", "accelerate_loop.py", needs=_DATA,
            command=("accelerate", "launch", "--cpu", "--num_processes", "1", "--num_machines", "1",
                     "--mixed_precision", "no", "--dynamo_backend", "no", "accelerate_loop.py")),
    broken("accelerate loop: an optimizer from before the adapters", "accelerate_loop.py", "LD503",
           needs=_DATA, edits={
               "    model = get_peft_model(model, config)\n": "",
               "    steps = math.ceil": "    model = get_peft_model(model, config)\n"
               "    steps = math.ceil"}),
    broken("accelerate loop: adapters twice", "accelerate_loop.py", "LD505", needs=_DATA,
           edits={"    model = get_peft_model(model, config)\n":
                  "    model = get_peft_model(model, config)\n"
                  "    model = get_peft_model(model, config)\n"}),
    healthy("bare loop", "bare_loop.py", sample=True),
    healthy("torchrun, one process", "bare_loop.py",
            command=("torchrun", "--standalone", "--nproc_per_node", "1", "bare_loop.py")),
    broken("bare loop: the answers' end is masked", "bare_loop.py", "LD904",
           edits={"labels = [-100] * len(before) + after[\"input_ids\"]":
                  "labels = [-100] * len(before) + after[\"input_ids\"][:-1] + [-100]"},
           sample=True),
    broken("bare loop: labels of -1", "bare_loop.py", "LD914",
           edits={"pad_sequence(labels, True, -100)": "pad_sequence(labels, True, -1)"}),
    broken("bare loop: labels are shifted twice", "bare_loop.py", "LD926",
           edits={"torch.tensor(ids), torch.tensor(labels)":
                  "torch.tensor(ids), torch.tensor([*labels[1:], -100])"}),
    broken("bare loop: the base model is saved", "bare_loop.py", "LD640",
           edits={"model.save_pretrained(f": "model.get_base_model().save_pretrained(f"}),
    broken("bare loop: a schedule that nobody steps", "bare_loop.py", "LD510",
           edits={"        scheduler.step()\n": ""}),
    broken("bare loop: gradients are cleared before the step", "bare_loop.py", "LD518",
           edits={"loss.backward()\n": "loss.backward()\n        optimizer.zero_grad()\n"}),
    broken("bare loop: everything trains", "bare_loop.py", "LD602",
           edits={"model.to(cfg.device)": "model.requires_grad_(True).to(cfg.device)"}),
    healthy("distillation", "distillation.py", needs=_DATA),
    broken("distillation: the student's optimizer holds the teacher", "distillation.py", "LD503",
           needs=_DATA,
           edits={"student.parameters() if p.requires_grad]": "teacher.parameters()]"}),
)  # fmt: skip
_CLASSES = (
    healthy("text classification", "classification.py", needs=_DATA),
    broken("text classification: too few classes", "classification.py", "LD914", needs=_DATA,
           edits={"num_labels=3": "num_labels=2"}),
    broken("text classification: a scaling out of scale", "classification.py", "LD404", needs=_DATA,
           edits={"lora_alpha=16": "lora_alpha=8192"}),
    broken("text classification: a new head that nothing saves", "classification.py", "LD606",
           needs=_DATA, edits={"        task_type=TaskType.SEQ_CLS,\n": ""}),
    healthy("text classification: a new head that is named", "classification.py", needs=_DATA,
            edits={"        task_type=TaskType.SEQ_CLS,\n":
                   "        modules_to_save=['classifier'],\n"}),
    broken("text classification: the first rows of a sorted set", "classification.py", "LD948",
           needs=_DATA, edits={'split="train")\n': 'split="train").sort("label")\n'
                               'dataset = dataset.select(range(90))\n'}),
    healthy("token classification", "token_classification.py", needs=_DATA),
    broken("token classification: classes that count from 1", "token_classification.py", "LD914",
           needs=_DATA, edits={"else tags[word])": "else tags[word] + 1)"}),
    broken("token classification: all masked", "token_classification.py", "LD901", needs=_DATA,
           edits={"word is None or word == previous": "word is None or tags[word] < 9"}),
    healthy("masked language model", "masked_language_model.py", needs=_DATA),
    broken("masked language model: names of another architecture", "masked_language_model.py",
           "LD202",
           needs=_DATA, edits={'["query", "key", "value"]': '["query", "value", "v_lin"]'}),
    healthy("image classification", "image_classification.py", needs=(*_DATA, "PIL")),
    broken("image classification: checkpointing without gradients at its inputs",
           "image_classification.py", "LD501", needs=(*_DATA, "PIL"),
           edits={"        fp16=True,\n": "        gradient_checkpointing=True,\n"
                  "        gradient_checkpointing_kwargs={'use_reentrant': True},\n"}),
    broken("image classification: a new head that nothing saves", "image_classification.py",
           "LD606", needs=(*_DATA, "PIL"), edits={'    modules_to_save=["classifier"],\n': ""}),
    healthy("T5 with generation", "t5_seq2seq.py", needs=_DATA),
    broken("T5: labels are padded with the padding token", "t5_seq2seq.py", "LD925", needs=_DATA,
           edits={'rows["output"]], truncation=True)':
                  'rows["output"]], truncation=True, padding="max_length", max_length=64)'}),
    broken("T5: names of another architecture", "t5_seq2seq.py", "LD202", needs=_DATA,
           edits={'["q", "v"]': '["q", "v", "q_proj"]'}),
)  # fmt: skip
_MODALITIES = (
    healthy("Whisper", "whisper_seq2seq.py", needs=_DATA),
    broken("Whisper: a target that is not there", "whisper_seq2seq.py", "LD202", needs=_DATA,
           edits={'["q_proj", "v_proj"]': '["q_proj", "v_proj", "o_proj"]'}),
    broken("Whisper: the task type of texts", "whisper_seq2seq.py", "LD102", needs=_DATA,
           edits={'lora_dropout=0.05': 'lora_dropout=0.05, task_type="SEQ_2_SEQ_LM"'}),
    healthy("LLaVA", "llava_sft.py", needs=("PIL",)),
    broken("LLaVA: adapters in the vision tower", "llava_sft.py", "LD203", needs=("PIL",),
           edits={'r".*language_model.*\\.(q_proj|k_proj|v_proj|o_proj)"': '["q_proj", "v_proj"]'}),
    healthy("Qwen2-VL, flash attention asked for", "qwen2_vl_sft.py", needs=("PIL",)),
    broken("Qwen2-VL: fewer places than the image has features", "qwen2_vl_sft.py", "LD002",
           needs=("PIL",),
           edits={"int(grid.prod() // images.merge_size**2)": "int(grid.prod() // 8)"}),
    broken("LLaVA: everything is masked", "llava_sft.py", "LD901", needs=("PIL",),
           edits={"labels[labels == processor.tokenizer.pad_token_id]": "labels[labels > 0]"}),
)  # fmt: skip
_FRAMEWORKS = (
    healthy("Lightning", "lightning_module.py", needs=_LIGHTNING),
    broken("Lightning: a head start that the optimizer misses", "lightning_module.py", "LD503",
           needs=_LIGHTNING, edits={
               "if p.requires_grad]": "if not p.requires_grad]"}),
    broken("Lightning: a target of another architecture", "lightning_module.py", "LD202",
           needs=_LIGHTNING, edits={'["q_proj", "v_proj"]': '["q_proj", "v_proj", "Wqkv"]'}),
    healthy("Fabric", "fabric_loop.py", needs=_LIGHTNING),
    broken("Fabric: gradients are never reset", "fabric_loop.py", "LD528", needs=_LIGHTNING,
           edits={"        optimizer.zero_grad()\n": ""}),
    healthy("Hydra", "hydra_train.py", needs=_HYDRA),
    healthy("Hydra, overridden", "hydra_train.py", "lora.r=32", "training.learning_rate=1e-4",
            needs=_HYDRA),
    broken("Hydra: a target of another architecture", "hydra_train.py", "LD202",
           "lora.target_modules=[q_proj,query_key_value]", needs=_HYDRA),
    broken("Hydra: warm-up longer than the run", "hydra_train.py", "LD917",
           "training.warmup_steps=1000", needs=_HYDRA),
    healthy("dataclasses, and a loss of its own", "dataclass_config.py", needs=_DATA),
    broken("dataclasses: rank-stabilized and scaled once more", "dataclass_config.py", "LD404",
           needs=_DATA, edits={"lora_alpha: int = 32": "lora_alpha: int = 1024",
                               "use_rslora: bool = False": "use_rslora: bool = True"}),
    healthy("sentence-transformers", "sentence_transformers_train.py", needs=_SENTENCES),
    broken("sentence-transformers: a target that is not there", "sentence_transformers_train.py",
           "LD202", needs=_SENTENCES, edits={'["query", "value"]': '["query", "value", "k_lin"]'}),
    healthy("an adapter trained on", "continue_adapter.py", needs=_DATA),
    broken("an adapter trained on: loaded for inference", "continue_adapter.py", "LD502",
           needs=_DATA, edits={", is_trainable=True": ""}),
    healthy("add_adapter", "add_adapter.py", needs=_DATA),
    broken("add_adapter: a target that is not there", "add_adapter.py", "LD202", needs=_DATA,
           edits={'["q_proj", "v_proj"]': '["q_proj", "v_proj", "qkv"]'}),
    healthy("new tokens", "new_tokens.py", needs=_DATA),
    healthy("a module of one's own", "own_module.py"),
    broken("a module of one's own: a target that is not there", "own_module.py", "LD202",
           edits={'["query", "value"]': '["query", "value", "k_lin"]',
                  "nn.Linear(768, ": "nn.Linear(encoder.config.hidden_size, "}, sample=True),
    broken("a module of one's own: its adapters are loaded frozen", "own_module.py", "LD502",
           edits={"        self.encoder = get_peft_model(encoder, config)\n":
                  "        self.encoder = get_peft_model(encoder, config)\n"
                  "        self.encoder.requires_grad_(False)\n"}),
    healthy("notebook", "notebook.py", needs=_NOTEBOOK, command=("notebook.ipynb",)),
    broken("notebook: adapters of a cell that ran twice", "notebook.py", "LD505", needs=_NOTEBOOK,
           command=("notebook.ipynb",), edits={
               "model.print_trainable_parameters()\n":
               "model = get_peft_model(model, LoraConfig(target_modules=['q_proj'], "
               "task_type='CAUSAL_LM'))\n"}),
)  # fmt: skip
_SWIFT_SFT = (
    "swift", "sft", "--model", "llama", "--model_type", "llama", "--template", "chatml",
    "--dataset", "data/chats.jsonl", "--tuner_type", "lora", "--per_device_train_batch_size", "2",
    "--num_train_epochs", "1", "--output_dir", "output", "--max_length", "512",
)  # fmt: skip
_LAUNCHERS = (
    healthy("LLaMA-Factory", "llamafactory.yaml", needs=_LLAMAFACTORY,
            command=("llamafactory-cli", "train", "llamafactory.yaml")),
    healthy("LLaMA-Factory, the file alone", "llamafactory.yaml", needs=_LLAMAFACTORY,
            command=("llamafactory.yaml",)),
    broken("LLaMA-Factory: a target of another architecture", "llamafactory.yaml", "LD202",
           needs=_LLAMAFACTORY, command=("llamafactory.yaml",),
           edits={"q_proj,v_proj": "q_proj,v_proj,query_key_value"}),
    broken("LLaMA-Factory: warm-up longer than the run", "llamafactory.yaml", "LD917",
           needs=_LLAMAFACTORY, command=("llamafactory.yaml",),
           edits={"warmup_ratio: 0.1": "warmup_steps: 900"}),
    healthy("axolotl, the file alone", "axolotl.yaml", needs=_AXOLOTL, command=("axolotl.yaml",)),
    broken("axolotl: a target of another architecture", "axolotl.yaml", "LD202", needs=_AXOLOTL,
           command=("axolotl.yaml",),
           edits={"[q_proj, v_proj]": "[q_proj, query_key_value]"}),
    broken("axolotl: a learning rate of 0", "axolotl.yaml", "LD510", needs=_AXOLOTL,
           command=("axolotl.yaml",), edits={"learning_rate: 0.0002": "learning_rate: 0.0"}),
    healthy("ms-swift", "bare_loop.py", needs=_SWIFT,
            command=(*_SWIFT_SFT, "--target_modules", "q_proj", "v_proj")),
    broken("ms-swift: a target of another architecture", "bare_loop.py", "LD202", needs=_SWIFT,
           command=(*_SWIFT_SFT, "--target_modules", "q_proj", "query_key_value")),
    healthy("trl sft", "trl_config.yaml", needs=_TRL,
            command=("trl", "sft", "--config", "trl_config.yaml")),
    broken("trl sft: a target of another architecture", "trl_config.yaml", "LD202", needs=_TRL,
           command=("trl", "sft", "--config", "trl_config.yaml", "--lora_target_modules", "q_proj",
                    "query_key_value")),
)  # fmt: skip
_TWO = ("torchrun", "--standalone", "--nproc_per_node", "2")
_ONE_GPU_EACH = {', device_map="auto"': ""}
_SAVED_BY_ALL = {"model.save_pretrained(args.output_dir)": "trainer.save_model(args.output_dir)"}
_PROCESSES = (
    healthy("two processes: torchrun", "trainer_argparse.py", needs=_DATA,
            command=(*_TWO, "trainer_argparse.py"), edits=_ONE_GPU_EACH),
    broken("two processes: device_map", "trainer_argparse.py", "LD546", needs=_DATA,
           command=(*_TWO, "trainer_argparse.py")),
    healthy("two processes: accelerate launch", "trainer_argparse.py",
            needs=(*_DATA, "accelerate"), edits=_ONE_GPU_EACH,
            command=("accelerate", "launch", "--num_processes", "2", "trainer_argparse.py")),
    healthy("two processes: arguments before the model", "trainer_hf_arguments.py", needs=_DATA,
            command=(*_TWO, "trainer_hf_arguments.py", "--output_dir", "out", "--bf16")),
    healthy("two processes: GRPO", "trl_grpo.py", needs=_TRL,
            command=("accelerate", "launch", "--num_processes", "2", "trl_grpo.py")),
    broken("two processes: a loop for one", "bare_loop.py", "LD541",
           command=(*_TWO, "bare_loop.py")),
    healthy("FSDP 2", "trainer_argparse.py", needs=(*_DATA, "accelerate"),
            edits={**_ONE_GPU_EACH, **_SAVED_BY_ALL},
            command=("accelerate", "launch", "--config_file", "fsdp2.yaml",
                     "trainer_argparse.py")),
    broken("FSDP 2: saved by the script itself", "trainer_argparse.py", "LD542",
           needs=(*_DATA, "accelerate"), edits=_ONE_GPU_EACH,
           command=("accelerate", "launch", "--config_file", "fsdp2.yaml",
                    "trainer_argparse.py")),
    broken("FSDP 2: a sharded state dict", "trainer_argparse.py", "LD542",
           needs=(*_DATA, "accelerate"), edits={**_ONE_GPU_EACH, **_SAVED_BY_ALL},
           command=("accelerate", "launch", "--config_file", "fsdp2_sharded.yaml",
                    "trainer_argparse.py")),
    broken("FSDP 1: names that PEFT 0.21 does not find", "trainer_argparse.py", "LD542",
           needs=(*_DATA, "accelerate"), edits={**_ONE_GPU_EACH, **_SAVED_BY_ALL},
           command=("accelerate", "launch", "--config_file", "fsdp1_full.yaml",
                    "trainer_argparse.py")),
    broken("FSDP 1: a sharded state dict", "trainer_argparse.py", "LD542",
           needs=(*_DATA, "accelerate"), edits={**_ONE_GPU_EACH, **_SAVED_BY_ALL},
           command=("accelerate", "launch", "--config_file", "fsdp1.yaml",
                    "trainer_argparse.py")),
)  # fmt: skip
_ZERO3 = {
    "bf16=True,": """bf16=True,
            deepspeed={
                "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
                "bf16": {"enabled": "auto"},
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
            },"""
}
_DEEPSPEED = (
    healthy("DeepSpeed: ZeRO 3", "trainer_argparse.py", needs=(*_DATA, "deepspeed"),
            command=(*_TWO, "trainer_argparse.py"),
            edits={**_ONE_GPU_EACH, **_SAVED_BY_ALL, **_ZERO3}),
    broken("DeepSpeed: ZeRO 3, saved by the script itself", "trainer_argparse.py", "LD542",
           needs=(*_DATA, "deepspeed"), edits={**_ONE_GPU_EACH, **_ZERO3},
           command=(*_TWO, "trainer_argparse.py", "--lora_r", "64")),
    broken("DeepSpeed: a script that takes no --local_rank", "trainer_argparse.py", "LD002",
           needs=(*_DATA, "deepspeed"),
           command=("deepspeed", "--num_gpus", "2", "trainer_argparse.py")),
    healthy("DeepSpeed: ZeRO 2 by accelerate's launcher", "accelerate_loop.py",
            needs=(*_DATA, "deepspeed"),
            command=("accelerate", "launch", "--use_deepspeed", "--zero_stage", "2",
                     "--num_processes", "2", "accelerate_loop.py")),
)  # fmt: skip
SETUPS: tuple[Setup, ...] = (
    *_ARGPARSE, *_HF_ARGUMENTS, *_SFT, *_OTHER_TRL, *_LOOPS, *_CLASSES, *_MODALITIES, *_FRAMEWORKS,
    *_LAUNCHERS, *_PROCESSES, *_DEEPSPEED,
)  # fmt: skip
