"""How error messages name the config classes of PEFT."""

from __future__ import annotations

#: ``LoraConfig``, ``PrefixTuningConfig`` and the like; not ``SFTConfig``, which is TRL's.
CONFIG_CLASS = (
    r"\b(?:Lora|LoHa|LoKr|AdaLora|IA3|V[eE]RA|Vera|VBLoRA|RandLora|XLora|B?OFT|HRA|Bone|Miss|C3A|"
    r"FourierFT|LNTuning|Poly|Prompt\w+|Prefix\w+|MultitaskPrompt\w+|AdaptionPrompt|CPT|Shira|"
    r"Road|TrainableTokens|Peft)Config"
)
