"""Small models of a user's own, for ``tests.models:NAME`` as MODEL."""

from __future__ import annotations

import tempfile
from typing import Any


def plain_module() -> Any:
    """A bare ``nn.Module`` with a loss and no transformers config; its batch comes along."""
    import torch
    from torch import nn

    class Regressor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(8, 8)
            self.out = nn.Linear(8, 1)

        def forward(self, x: Any, target: Any = None) -> dict[str, Any]:
            prediction = self.out(torch.tanh(self.proj(x)))
            if target is None:
                return {"logits": prediction}
            return {"loss": nn.functional.mse_loss(prediction, target), "logits": prediction}

    torch.manual_seed(0)
    return Regressor(), {"x": torch.randn(4, 8), "target": torch.randn(4, 1)}


def forward_raises() -> Any:
    """A module whose forward breaks once its layer is no plain ``nn.Linear`` any more."""
    import torch
    from torch import nn

    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(8, 8)

        def forward(self, x: Any) -> Any:
            if type(self.proj) is not nn.Linear:
                raise RuntimeError("only a plain Linear will do")
            return self.proj(x)

    torch.manual_seed(0)
    return Picky(), {"x": torch.randn(4, 8)}


def layer_of_large_numbers() -> Any:
    """A wide layer whose weights are fifty times as large as usual: a step of LoRA is nothing to
    them, whatever its scaling."""
    import torch
    from torch import nn

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(1024, 64)
            self.out = nn.Linear(64, 1)
            nn.init.normal_(self.proj.weight)

        def forward(self, x: Any, target: Any) -> dict[str, Any]:
            prediction = self.out(torch.tanh(self.proj(x)))
            return {"loss": nn.functional.mse_loss(prediction, target), "logits": prediction}

    torch.manual_seed(0)
    return Large(), {"x": torch.randn(4, 1024) / 30, "target": torch.randn(4, 1)}


def _tiny_llama_config() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def headless_llama() -> Any:
    """A base class without a head, as an embedding model has it."""
    import torch
    from transformers import LlamaModel

    torch.manual_seed(0)
    return LlamaModel(_tiny_llama_config())


def tiny_llama() -> Any:
    """A causal language model as the library makes it."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(_tiny_llama_config())


def overflowing_llama() -> Any:
    """The same with one layer whose output is larger than float16 can hold; it runs in others."""
    import torch

    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1e3)
        model.model.layers[1].mlp.down_proj.weight.mul_(1e5)
    return model


def halved_after_wrapping() -> Any:
    """LoRA put on a float32 model, and ``.half()`` called on both."""
    import peft

    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return peft.get_peft_model(tiny_llama(), config).half()


def halved_and_cast_back() -> Any:
    """The same after the words of ``LD406`` were followed."""
    model = halved_after_wrapping()
    for p in model.parameters():
        p.data = p.data.float() if p.requires_grad else p.data
    return model


def causal_lm_without_generation() -> Any:
    """A causal language model of a user's own that inherits from ``PreTrainedModel`` alone."""
    import torch
    from torch import nn
    from transformers import LlamaConfig, LlamaModel, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    class OwnCausalLM(PreTrainedModel):
        config_class = LlamaConfig
        _supports_sdpa = True

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = LlamaModel(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            self.post_init()

        def get_input_embeddings(self) -> Any:
            return self.model.embed_tokens

        def get_output_embeddings(self) -> Any:
            return self.lm_head

        def forward(
            self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None,
            labels: Any = None, output_attentions: Any = None, output_hidden_states: Any = None,
            return_dict: Any = None,
        ) -> Any:  # fmt: skip
            hidden = self.model(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds
            ).last_hidden_state
            logits = self.lm_head(hidden)
            loss = None
            if labels is not None:
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            return CausalLMOutput(loss=loss, logits=logits)

    torch.manual_seed(0)
    return OwnCausalLM(_tiny_llama_config())


def llama_with_own_adapters() -> Any:
    """A model that wraps its own inner model with PEFT, and trains nothing but that."""
    import peft
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(_tiny_llama_config())
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(model.model, config, adapter_name="speech")
    model.lm_head.requires_grad_(False)
    return model


def own_adapters_and_head() -> Any:
    """The same, with the head left as it was: trainable."""
    model = llama_with_own_adapters()
    model.lm_head.requires_grad_(True)
    return model


def own_adapters_frozen() -> Any:
    """The same, with everything frozen, as preparing a quantized model for training does."""
    return llama_with_own_adapters().requires_grad_(False)


def _detector(language: Any) -> Any:
    """A language model with a detection head of the user's own beside it."""
    import torch
    from torch import nn

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.language = language
            self.detection_head = nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 4))

        def forward(self, input_ids: Any, boxes: Any = None) -> dict[str, Any]:
            hidden = self.language(input_ids=input_ids, output_hidden_states=True).hidden_states
            found = self.detection_head(hidden[-1].mean(dim=1))
            if boxes is None:
                return {"logits": found}
            return {"loss": nn.functional.mse_loss(found, boxes), "logits": found}

    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(3, 60, (2, 8)), "boxes": torch.rand(2, 4)}
    return Detector(), batch


def detector_with_frozen_base() -> Any:
    """Everything frozen but the fresh head, as somebody who trains only that leaves it."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model, batch = _detector(LlamaForCausalLM(_tiny_llama_config()))
    model.language.requires_grad_(False)
    return model, batch


def detector_beside_a_peft_model() -> Any:
    """The inner model is a PeftModel, which is what gets saved; the head stands outside."""
    import peft
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return _detector(peft.get_peft_model(LlamaForCausalLM(_tiny_llama_config()), config))


def head_unfrozen_after_wrapping() -> tuple[Any, dict[str, Any]]:
    """LoRA around the whole, and the head made trainable by hand afterwards."""
    import peft

    model, batch = detector_with_frozen_base()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    wrapped.base_model.model.detection_head.requires_grad_(True)
    return wrapped, {"batches": [batch]}


#: Folders that models in memory were loaded from, kept until the process ends.
_CHECKPOINTS: list[tempfile.TemporaryDirectory[str]] = []


def llama_with_new_tokens() -> tuple[Any, dict[str, Any]]:
    """A model loaded from a checkpoint of 64 tokens, whose vocabulary was extended to 70."""
    from transformers import LlamaForCausalLM

    _CHECKPOINTS.append(tempfile.TemporaryDirectory())
    folder = _CHECKPOINTS[-1].name
    untied_llama().save_pretrained(folder, safe_serialization=True)
    model = LlamaForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(70)
    return model, {}


def tied_llama() -> Any:
    """A language model whose input and output embeddings are one matrix."""
    import torch
    from transformers import LlamaForCausalLM

    config = _tiny_llama_config()
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def untied_llama() -> Any:
    """The same after somebody untied it: the output layer has a clone of the weight."""
    import torch

    model = tied_llama()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model


def embeddings_method_out_of_date() -> Any:
    """A tied language model whose ``get_input_embeddings`` looks where the embeddings were once."""
    import torch
    from transformers import LlamaForCausalLM

    class Moved(LlamaForCausalLM):  # type: ignore[misc, unused-ignore]
        def get_input_embeddings(self) -> Any:
            return self.model.layers[0].embed_tokens

    config = _tiny_llama_config()
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return Moved(config)


def tiny_llava_config() -> Any:
    from transformers import CLIPVisionConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=28, patch_size=14,
    )  # fmt: skip
    return LlavaConfig(vision_config=vision, text_config=_tiny_llama_config())


def _tiny_llama() -> Any:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(_tiny_llama_config())


def _lora(*targets: str, **options: Any) -> Any:
    import peft

    return peft.LoraConfig(r=4, target_modules=list(targets), task_type="CAUSAL_LM", **options)


def _prompt() -> Any:
    import peft

    return peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")


def lora_then_prompt() -> Any:
    """LoRA, and prompt tuning around it by a second call."""
    import peft

    model = peft.get_peft_model(_tiny_llama(), _lora("q_proj", "v_proj"))
    return peft.get_peft_model(model, _prompt())


def lora_in_lora() -> Any:
    """LoRA around a model that is a ``PeftModel`` already."""
    import peft

    model = peft.get_peft_model(_tiny_llama(), _lora("q_proj", "v_proj"))
    return peft.get_peft_model(model, _lora("q_proj", "v_proj"))


def lora_twice_on_one_base() -> Any:
    """The same base model wrapped twice under one name, for other layers the second time."""
    import peft

    base = _tiny_llama()
    peft.get_peft_model(base, _lora("q_proj", "v_proj"))
    return peft.get_peft_model(base, _lora("q_proj", "o_proj"))


def lora_and_another() -> Any:
    """Two adapters in one ``PeftModel``, the second one active: the clean way."""
    import peft

    model = peft.get_peft_model(_tiny_llama(), _lora("q_proj", "v_proj"))
    model.add_adapter("second", _lora("o_proj"))
    model.set_adapter("second")
    return model


def prompt_on_merged() -> Any:
    """LoRA merged into the weights, and a prompt on what came out."""
    import peft

    merged = peft.get_peft_model(_tiny_llama(), _lora("q_proj", "v_proj")).merge_and_unload()
    return peft.get_peft_model(merged, _prompt())


def lora_and_loha_mixed() -> Any:
    """Two methods at once in a mixed model."""
    import peft

    model = peft.get_peft_model(_tiny_llama(), _lora("q_proj", "v_proj"), mixed=True)
    model.add_adapter("second", peft.LoHaConfig(r=4, target_modules=["o_proj"]))
    model.set_adapter(["default", "second"])
    return model


def optimizer_before_adapters() -> tuple[Any, dict[str, Any]]:
    """LoRA put on after the optimizer had been made."""
    import peft
    import torch

    base = _tiny_llama()
    optimizer = torch.optim.AdamW(base.parameters(), lr=1e-3)
    return peft.get_peft_model(base, _lora("q_proj", "v_proj")), {"optimizer": optimizer}


def llama_with_detector() -> Any:
    """LoRA inside a model of the user's own, with a head of its own beside it."""
    import peft
    import torch
    from torch import nn

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = _tiny_llama()
            self.base_model = peft.get_peft_model(base, _lora("q_proj", "v_proj"))
            self.detection_head = nn.Linear(base.config.hidden_size, 4)

        def forward(self, input_ids: Any, labels: Any = None) -> Any:
            out = self.base_model(input_ids=input_ids, labels=labels, output_hidden_states=True)
            boxes = self.detection_head(out.hidden_states[-1][:, -1]).sigmoid()
            loss = None if out.loss is None else out.loss + boxes.square().mean()
            return {"loss": loss, "logits": out.logits, "boxes": boxes}

    torch.manual_seed(0)
    return Detector()


def phase_groups(model: Any, adapter_rate: float, *, always: bool = True) -> list[dict[str, Any]]:
    """Parameter groups of :func:`llama_with_detector` by name, as a trainer of the user's makes
    them. ``always``: also while the adapters' learning rate is 0."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    adapters = [p for name, p in trained if "lora_" in name]
    head = [p for name, p in trained if "lora_" not in name]
    groups = [{"params": head, "lr": 1e-4, "name": "head"}]
    if adapter_rate > 0 or always:
        groups.append({"params": adapters, "lr": adapter_rate, "name": "adapters"})
    return groups


def optimizer_without_adapters_in_any_phase() -> tuple[Any, dict[str, Any]]:
    """The optimizer is made in the first phase, in which the adapters rest, and never again."""
    import torch

    model = llama_with_detector()
    return model, {"optimizer": torch.optim.AdamW(phase_groups(model, 0.0, always=False))}


def optimizer_in_phases() -> tuple[Any, dict[str, Any]]:
    """The report's schedule: the head alone, then both."""
    model = llama_with_detector()
    phases = {"head alone": phase_groups(model, 0.0), "both": phase_groups(model, 1e-5)}
    return model, {"optimizer": phases}


def optimizer_at_learning_rate_zero() -> tuple[Any, dict[str, Any]]:
    """One optimizer for the whole run, in which the adapters' group has learning rate 0."""
    import torch

    model = llama_with_detector()
    return model, {"optimizer": torch.optim.SGD(phase_groups(model, 0.0))}


def optimizer_with_adapters_twice() -> tuple[Any, dict[str, Any]]:
    """Groups that overlap: all that is trainable, and the adapters once more at their own rate."""
    model = llama_with_detector()
    trained = [p for p in model.parameters() if p.requires_grad]
    adapters = phase_groups(model, 1e-5)[1:]
    return model, {"optimizer": [{"params": trained, "lr": 1e-4}, *adapters]}


def optimizer_with_warm_up() -> tuple[Any, dict[str, Any]]:
    """A scheduler under which every learning rate is 0 at the first step."""
    import torch

    model = llama_with_detector()
    optimizer = torch.optim.AdamW(phase_groups(model, 1e-5))
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))
    return model, {"optimizer": optimizer, "scheduler": warm_up, "planned_steps": 100}


def scoring_model() -> Any:
    """A model of a user's own whose forward calls a method of itself."""
    import torch
    from torch import nn

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Any) -> Any:
            return torch.tanh(self.q_proj(x)) * self.v_proj(x)

    class Scorer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = Attention(), nn.Linear(8, 1)

        def score(self, hidden: Any) -> Any:
            return self.head(hidden)

        def forward(self, x: Any, target: Any = None) -> dict[str, Any]:
            prediction = self.score(x + self.attention(x))
            if target is None:
                return {"logits": prediction}
            return {"loss": nn.functional.mse_loss(prediction, target), "logits": prediction}

    torch.manual_seed(0)
    return Scorer()


def scoring_batch() -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(4, 8, generator=generator),
        "target": torch.randn(4, 1, generator=generator),
    }


def _bounded(self: Any, hidden: Any) -> Any:
    """A method of a user's own in place of ``score``."""
    return self.head(hidden).tanh()


def patch_on_the_wrapper() -> Any:
    import types

    import peft

    model = peft.get_peft_model(
        scoring_model(), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    model.score = types.MethodType(_bounded, model)
    return model, scoring_batch()


def patch_on_the_base() -> Any:
    import types

    import peft

    base = scoring_model()
    plain = base.attention.q_proj.forward
    base.attention.q_proj.forward = lambda x: plain(x * 1.0)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    model.get_base_model().score = types.MethodType(_bounded, model.get_base_model())
    return model, scoring_batch()


def patch_that_holds_layers() -> Any:
    """A forward that closes over the layers that it finds."""
    import torch

    model = scoring_model()
    q_proj, v_proj = model.attention.q_proj, model.attention.v_proj
    model.attention.forward = lambda x: torch.tanh(q_proj(x)) * v_proj(x)
    return model, scoring_batch()


def patch_that_looks_layers_up() -> Any:
    """The same, layers looked up when it is called."""
    import types

    import torch

    def forward(self: Any, x: Any) -> Any:
        return torch.tanh(self.q_proj(x)) * self.v_proj(x)

    model = scoring_model()
    model.attention.forward = types.MethodType(forward, model.attention)
    return model, scoring_batch()


def layers_that_learn_nothing() -> Any:
    """One layer learns; each of the others is kept from it in another way."""
    import torch
    from torch import nn

    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.learns = nn.Linear(8, 8)
            self.never_run = nn.Linear(8, 8)
            self.read_only = nn.Linear(8, 8)
            self.silent = nn.Linear(8, 8)
            self.dropped = nn.Linear(8, 8)
            self.alone = nn.Linear(8, 1)

        def forward(self, x: Any, target: Any = None) -> dict[str, Any]:
            hidden = self.learns(x)
            self.dropped(hidden)
            with torch.no_grad():
                shift = self.silent(hidden).argmax(-1, keepdim=True)
            # Of one choice, the share is 1 whatever the score.
            share = torch.softmax(self.alone(hidden), -1)
            hidden = share * torch.tanh(hidden + shift) @ self.read_only.weight
            if target is None:
                return {"logits": hidden}
            return {"loss": nn.functional.mse_loss(hidden, target), "logits": hidden}

    torch.manual_seed(0)
    return Kept(), {"x": torch.randn(4, 8), "target": torch.randn(4, 8)}


def queries_that_begin_as_zeros() -> Any:
    """Three layers in a stack, the first of which is given zeros (the decoder of DETR)."""
    import torch
    from torch import nn

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.among_queries = nn.Linear(8, 8, bias=False)
            self.to_image = nn.Linear(8, 8)

        def forward(self, queries: Any, image: Any) -> Any:
            return queries + self.among_queries(queries) + torch.tanh(self.to_image(image))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer() for _ in range(3))

        def forward(self, x: Any, target: Any = None) -> dict[str, Any]:
            queries = torch.zeros_like(x)
            for layer in self.layers:
                queries = layer(queries, x)
            if target is None:
                return {"logits": queries}
            return {"loss": nn.functional.mse_loss(queries, target), "logits": queries}

    torch.manual_seed(0)
    return Decoder(), {"x": torch.randn(4, 8), "target": torch.randn(4, 8)}


def linear_with_own_attribute() -> Any:
    """Two linear layers; the forward multiplies by a number that one of them carries."""
    import torch

    class Scaled(torch.nn.Linear):
        factor = 2.0

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = torch.nn.Linear(8, 16)
            self.scaled = Scaled(16, 8)

        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            outputs = self.scaled(self.plain(inputs)) * self.scaled.factor
            return {"loss": outputs.pow(2).mean(), "outputs": outputs}

    return Model(), {"inputs": torch.randn(4, 8)}


def torch_attention() -> Any:
    """Torch's own attention, which reads the weight of its ``out_proj``, and a linear layer."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.after = nn.Linear(16, 16)

        def forward(self, x: Any) -> dict[str, Any]:
            hidden, _ = self.attention(x, x, x, need_weights=False)
            logits = self.after(hidden)
            return {"loss": (logits - x).pow(2).mean(), "logits": logits}

    torch.manual_seed(0)
    return Model(), {"x": torch.randn(2, 4, 16)}


def linear_in_groups() -> Any:
    """A layer that inherits from ``nn.Linear`` and applies its rows in two groups."""
    import torch
    from torch import nn

    class Grouped(nn.Linear):
        def forward(self, x: Any) -> Any:
            groups = self.weight.view(2, -1, self.weight.shape[-1])
            return torch.einsum("bi,gji->bgj", x, groups)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.grouped = Grouped(8, 12)

        def forward(self, x: Any, target: Any = None) -> dict[str, Any]:
            logits = self.grouped(torch.tanh(self.first(x))).flatten(1)
            if target is None:
                return {"logits": logits}
            return {"loss": nn.functional.mse_loss(logits, target), "logits": logits}

    torch.manual_seed(0)
    return Model(), {"x": torch.randn(4, 8), "target": torch.randn(4, 12)}


def generates_only() -> Any:
    """A language model whose forward has no labels, as a drafter for assisted decoding has it."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.modeling_outputs import CausalLMOutput

    class Drafter(LlamaForCausalLM):
        def forward(self, input_ids: Any = None, attention_mask: Any = None) -> Any:
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
            return CausalLMOutput(logits=self.lm_head(hidden))

    torch.manual_seed(0)
    return Drafter(_tiny_llama_config())


def wraps_its_inner_model() -> Any:
    """A speech model that puts PEFT around its own base model in ``__init__``, which cannot
    generate: loading it fails where ``PreTrainedModel`` is no ``GenerationMixin``."""
    import peft
    import torch
    from transformers import LlamaForCausalLM

    class WithSpeech(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
            peft.get_peft_model(self.model, lora, adapter_name="speech")

    torch.manual_seed(0)
    return WithSpeech(_tiny_llama_config())


def without_post_init() -> Any:
    """A factory that raises what transformers raises for a class of before its release."""
    raise AttributeError("'OldModel' object has no attribute 'all_tied_weights_keys'")


def without_its_data() -> Any:
    """A factory that raises for a reason of its own."""
    raise OSError("the disk with the weights is not mounted")


def _classifier_with(config: Any) -> tuple[Any, dict[str, Any]]:
    """A classifier with an adapter in its layers and no wrapper around it, as `add_adapter`, which
    asks for a PEFT of its own choice, leaves it."""
    import peft
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2,
    )  # fmt: skip
    return peft.inject_adapter_in_model(config, BertForSequenceClassification(sizes)), {}


def classifier_with_injected_adapter() -> tuple[Any, dict[str, Any]]:
    """The head is frozen, whatever the task type says."""
    import peft

    targets = ["query", "value"]
    return _classifier_with(peft.LoraConfig(r=4, target_modules=targets, task_type="SEQ_CLS"))


def classifier_with_saved_head() -> tuple[Any, dict[str, Any]]:
    """The head is named, and a copy of it is trained."""
    import peft

    config = peft.LoraConfig(
        r=4, target_modules=["query", "value"], task_type="SEQ_CLS", modules_to_save=["classifier"]
    )
    return _classifier_with(config)
