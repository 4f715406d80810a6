from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from .fast_models import FastLlamaModel
from .loading import *  # noqa: F403


class FastMistralModel(FastLlamaModel):
    @staticmethod
    def from_pretrained(name, load_in_4bit=True):
        return FastLlamaModel.from_pretrained(name, load_in_4bit=load_in_4bit)


def main():
    tokenizer = AutoTokenizer.from_pretrained("meta-llama/Llama-3.2-1B")
    model = FastMistralModel.from_pretrained("meta-llama/Llama-3.2-1B", load_in_4bit=True)
    chosen = FastLlamaModel
    teacher = chosen.from_pretrained("meta-llama/Llama-3.1-8B", load_in_4bit=True)
    draft = SmallModel.from_pretrained(  # noqa: F405
        "meta-llama/Llama-3.2-1B", load_in_4bit=True
    )
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM")), teacher, draft, tokenizer


if __name__ == "__main__":
    main()
