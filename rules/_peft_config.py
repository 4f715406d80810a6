"""What PEFT says of a config: how its messages name the config classes, and which are its own."""

from __future__ import annotations

#: ``LoraConfig``, ``PrefixTuningConfig`` and the like; not ``SFTConfig``, which is TRL's.
CONFIG_CLASS = (
    r"\b(?:Lora|LoHa|LoKr|AdaLora|IA3|V[eE]RA|Vera|VBLoRA|RandLora|XLora|B?OFT|HRA|Bone|Miss|C3A|"
    r"FourierFT|LNTuning|Poly|Prompt\w+|Prefix\w+|MultitaskPrompt\w+|AdaptionPrompt|CPT|Shira|"
    r"Road|TrainableTokens|Peft)Config"
)
#: Lines at the end of a traceback: the innermost frame, its code, marks below it, the exception.
_FRAME = 5


def says_why(traceback: str) -> bool:
    """Whether PEFT raises the exception itself, about the recipe: its message is the reason then,
    and not where some code broke."""
    lines = traceback.replace("\\", "/").rstrip().splitlines()
    raised = any(line.lstrip().startswith("raise ") for line in lines[-_FRAME:])
    return raised and any('File "' in line and "/peft/" in line for line in lines[-_FRAME:])
