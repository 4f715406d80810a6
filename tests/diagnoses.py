"""Sample diagnoses for tests of the reports: plain objects, no model and no torch behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lora_doctor.recipe.edit import Edit, Patch
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import AppliedFix, Diagnosis, Gathered, Skipped
from lora_doctor.results.finding import Finding, Location, Measurement, Proof
from lora_doctor.results.fix import Execution, Fix
from lora_doctor.results.injection import Injection, Unmatched
from lora_doctor.results.memory_plan import MemoryPart, MemoryPlan, MemoryVariant
from lora_doctor.results.note import Note
from lora_doctor.results.observations import LayerReading, Observations
from lora_doctor.results.structure import ForwardParameter, HeadClass, ModuleGroup, Structure, Tower
from lora_doctor.results.supervision import (
    RowSet,
    ShownRow,
    Supervision,
    TokenizerFacts,
    TokenPiece,
)
from lora_doctor.results.verification import (
    CHECKS,
    AdapterGroup,
    BatchReport,
    Check,
    Failure,
    Verification,
)
from lora_doctor.static.model_source import ModelSource

ENVIRONMENT: Mapping[str, Any] = {
    "lora_doctor": "0.1.0",
    "python": "3.11.7",
    "platform": "Linux 6.1.0 x86_64",
    "packages": {
        "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "accelerate": "1.14.0",
        "bitsandbytes": None, "numpy": "2.3.1",
    },
}  # fmt: skip
_HELD = {
    "builds": (True, "", ""),
    "attaches": ("128 of 128 named", "as many as the recipe names", ""),
    "forward": (True, "", ""),
    "loss-finite": (6.931, "a finite number", ""),
    "gradients": ("128 of 128", "all adapters", ""),
    "steps": (5, "5 steps", ""),
    "adapters-move": ("128 of 128", "all adapters", ""),
    "frozen-stay": (0.0, "largest change is 0", ""),
    "loss-falls": (-0.4127, "below 0", ""),
    "save-reload": (0.0, "at most 1e-05", "largest difference of the logits"),
    "merge": (1.7e-06, "at most 1e-04", "largest difference of the logits"),
}


def module_group(path: str, count: int, shape: tuple[int, ...], **changes: Any) -> ModuleGroup:
    """Linear layers of an attention with the usual examples, but for the changes."""
    parameters = count
    for size in shape:
        parameters *= size
    examples = tuple(path.replace("*", str(index)) for index in range(min(count, 3)))
    group = ModuleGroup(
        path, path.rsplit(".", 1)[-1], "Linear", "linear", "attention", "model", count, shape,
        parameters, 0, examples,
    )  # fmt: skip
    return replace(group, **changes)


def structure(
    groups: tuple[ModuleGroup, ...], towers: tuple[Tower, ...], **changes: Any
) -> Structure:
    """A structure of these groups; all else is that of a plain causal language model."""
    total = sum(tower.parameters for tower in towers)
    values: dict[str, Any] = {
        "model_class": "Phi3ForCausalLM",
        "python_module": "transformers.models.phi3.modeling_phi3",
        "loaded_by": "AutoModelForCausalLM",
        "model_type": "phi3",
        "recipe": {"values": {}, "origins": {}, "complete": False},
        "groups": groups,
        "towers": towers,
        "injection": Injection(
            ok=True, wrapper="PeftModelForCausalLM",
            unmatched=(Unmatched("target_modules", "q_proj"),),
            adapter_parameters=4_456_448, trainable_parameters=4_456_448, total_parameters=total,
        ),
        "forward_parameters": (
            ForwardParameter("input_ids", False, True), ForwardParameter("labels", False, True),
        ),
        "forward_takes_any": True,
        "main_input_name": "input_ids",
        "wrapper_sends": ("input_ids", "attention_mask", "inputs_embeds", "labels"),
        "wrapper_sends_none": ("inputs_embeds",),
        "has_prepare_inputs": True,
        "can_generate": True,
        "is_encoder_decoder": False,
        "has_head": True,
        "head_classes": (HeadClass("AutoModelForCausalLM", "Phi3ForCausalLM", "CAUSAL_LM"),),
        "native_dtype": "bfloat16",
        "total_parameters": total,
        "input_embeddings": "model.embed_tokens",
        "supports_gradient_checkpointing": True,
    }  # fmt: skip
    return Structure(**{**values, **changes})


def verification(
    failing: Mapping[str, Any] | None = None, *, adapters: tuple[AdapterGroup, ...] = (),
    last: str = "merge", **changes: Any,
) -> Verification:  # fmt: skip
    """A contract that held, but for the checks in ``failing`` (name to value); after ``last``
    nothing was reached."""
    failing = failing or {}
    checks, reached = [], True
    for name in CHECKS:
        value, expected, detail = _HELD.get(name, (True, "", ""))
        if not reached:
            checks.append(Check(name, "skipped", None, expected, f"not reached: {last} failed"))
        elif name in failing:
            checks.append(Check(name, "failed", failing[name], expected, detail))
        else:
            checks.append(Check(name, "passed", value, expected, detail))
        reached = reached and name != last
    values: dict[str, Any] = {
        "outcome": "failed" if failing else "passed",
        "depth": "tiny",
        "device": "cpu",
        "dtype": "float32",
        "checks": tuple(checks),
        "adapters": adapters,
        "batches": (
            BatchReport(
                "text", {"input_ids": (2, 16), "attention_mask": (2, 16), "labels": (2, 16)},
                "labels", (6.931, 6.812, 6.743, 6.601, 6.5183),
            ),
        ),
        "model_class": "Phi3ForCausalLM",
        "model_parameters": 164_832,
        "steps": 5,
        "step_seconds": 0.0143,
        "peak_memory": 412 * 1024 * 1024,
        "seconds": 0.91,
    }  # fmt: skip
    return Verification(**{**values, **changes})


def phi3() -> Diagnosis:
    """Llama's seven names on a fused model: two of seven match, one safe edit repairs it."""
    asked = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    right = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    recipe = Recipe(
        {"target_modules": asked, "task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 32,
         "dtype": "bfloat16"},
        {"target_modules": "option", "task_type": "proposed", "r": "proposed",
         "lora_alpha": "proposed", "dtype": "proposed"},
    )  # fmt: skip
    ran = Execution("passed", "12 of 12 checks passed", "tiny")
    fix = Fix("name the fused projections", "safe", (Edit("target_modules", right),), None, ran)
    layers = "model.layers.*"
    groups = (
        module_group("model.embed_tokens", 1, (32064, 3072), kind="embedding", role="embedding",
                     class_name="Embedding"),
        module_group(f"{layers}.self_attn.qkv_proj", 32, (9216, 3072)),
        module_group(f"{layers}.self_attn.o_proj", 32, (3072, 3072), adapted=32),
        module_group(f"{layers}.mlp.gate_up_proj", 32, (16384, 3072), role="mlp"),
        module_group(f"{layers}.mlp.down_proj", 32, (3072, 8192), adapted=32, role="mlp"),
        module_group(f"{layers}.input_layernorm", 32, (3072,), kind="norm", role="other",
                     class_name="Phi3RMSNorm"),
        module_group("lm_head", 1, (32064, 3072), role="head", tower="lm_head"),
    )  # fmt: skip
    towers = (
        Tower("model", "language", "holds the token embedding and the decoder layers",
              3_722_000_000),
        Tower("lm_head", "head", "its outputs are as many as the vocabulary", 98_500_000),
    )  # fmt: skip
    found = Finding(
        "LD202", "target-modules-partly-unmatched", "error",
        "q_proj, k_proj, v_proj, gate_proj and up_proj name nothing in Phi3ForCausalLM: its "
        "projections are fused, so 85 % of the layers' linear weights would stay without adapter",
        Location("recipe", "target_modules"),
        (
            Measurement("entries that match nothing", asked[:3] + asked[4:6],
                    "PEFT 0.21.2, meta device"),
            Measurement("entries that match", {"o_proj": 32, "down_proj": 32},
                    "PEFT 0.21.2, meta device"),
            Measurement("linear layers without adapter", {"qkv_proj": 32, "gate_up_proj": 32},
                    "module tree of Phi3ForCausalLM"),
            Measurement("share of weights with adapter", 0.148, "module tree of Phi3ForCausalLM"),
        ),
        Proof("executed", "PEFT attached 64 adapters, none in qkv_proj or gate_up_proj"),
        (fix, Fix("use all-linear", "unsafe", (Edit("target_modules", "all-linear"),))),
        ("attaches",),
    )  # fmt: skip
    adapters_before = tuple(
        AdapterGroup(f"{layers}.{leaf}", 2, 2, 2, ("text",))
        for leaf in ("self_attn.o_proj", "mlp.down_proj")
    )
    adapters_after = tuple(
        AdapterGroup(f"{layers}.{leaf}", 2, 2, 2, ("text",))
        for leaf in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    )
    return Diagnosis(
        model=ModelSource("arch", "phi3"),
        recipe=recipe,
        depth="tiny",
        environment=ENVIRONMENT,
        findings=(found,),
        passed=("LD101", "LD102", "LD201", "LD203"),
        skipped=(
            Skipped("LD204", "fused-experts-passed-by", "the model has no experts"),
            Skipped("LD801", "unsafe-weights", "needs static evidence: arch: has no files"),
        ),
        gathered=(
            Gathered("environment", "package metadata", 0.004),
            Gathered("meta", "Phi3ForCausalLM on the meta device", 0.41, None, 380 << 20),
            Gathered("tiny", "Phi3ForCausalLM with 164,832 parameters", 0.91, None, 412 << 20),
            Gathered("static", "arch:phi3", 0.0, "an architecture has no files"),
        ),
        structure=structure(groups, towers),
        before=verification({"attaches": "64 of 224 named"}, adapters=adapters_before),
        after=verification(adapters=adapters_after),
        remaining=(),
        applied=(AppliedFix("LD202", fix),),
        fixed_recipe=recipe.edit(fix.edits),
        recipe_diff="",
        next_command="lora-doctor fix arch:phi3 --target-modules "
        "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj --apply",
        seconds=3.42,
    )


def healthy() -> Diagnosis:
    """A recipe that we proposed, and that held."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    values = {"task_type": "CAUSAL_LM", "target_modules": targets, "r": 16, "lora_alpha": 32,
              "dtype": "bfloat16"}  # fmt: skip
    layers = "model.layers.*"
    groups = tuple(
        module_group(f"{layers}.{path}", 32, (4096, 4096), adapted=32, role=role)
        for role, path in [
            *(("attention", f"self_attn.{name}") for name in targets[:4]),
            *(("mlp", f"mlp.{name}") for name in targets[4:]),
        ]
    )
    towers = (Tower("model", "language", "holds the decoder layers", 6_738_000_000),)
    return Diagnosis(
        model=ModelSource("arch", "llama"),
        recipe=Recipe(values, dict.fromkeys(values, "proposed")),
        depth="tiny",
        environment=ENVIRONMENT,
        passed=("LD101", "LD102", "LD201", "LD202", "LD203", "LD204"),
        structure=structure(groups, towers, model_class="LlamaForCausalLM", model_type="llama"),
        before=verification(
            adapters=tuple(AdapterGroup(g.pattern, 2, 2, 2, ("text",)) for g in groups)
        ),
        gathered=(Gathered("meta", "LlamaForCausalLM on the meta device", 0.4),),
        seconds=2.31,
    )


def wrapper_fails() -> Diagnosis:
    """A remote-code model whose construction raises; a patch of the process repairs it."""
    message = "'Phi4MMModel' object has no attribute 'prepare_inputs_for_generation'"
    fix = Fix(
        "give PEFT's wrapper a class that can be asked for its inputs", "safe",
        patch=Patch("peft_missing_prepare_inputs", {"classes": ["Phi4MMModel"]}),
    )  # fmt: skip
    by_hand = Fix("ask the author of the repository to inherit from GenerationMixin", "manual")
    failure = Failure(
        "builds", "AttributeError", message, "model.embed_tokens_extend", "peft_model.py:1879",
        "Traceback (most recent call last):\n"
        '  File "modeling_phi4mm.py", line 1962, in __init__\n'
        "    self.model = get_peft_model(self.model, vision_lora_config)\n"
        f"AttributeError: {message}\n",
    )  # fmt: skip
    finding = Finding(
        "LD101",
        "missing-prepare-inputs",
        "error",
        "PeftModelForCausalLM asks Phi4MMModel for prepare_inputs_for_generation, which it lacks: "
        "the repository calls get_peft_model on the headless model in its own __init__",
        Location("file", "modeling_phi4mm.py", 1962),
        (
            Measurement("exception", f"AttributeError: {message}", "run, transformers 5.23.0"),
            Measurement(
                "bases of Phi4MMModel", ["Phi4MMPreTrainedModel"], "modeling_phi4mm.py:1701"
            ),
        ),
        Proof("executed", "building the model raised"),
        (fix, by_hand),
        ("builds",),
    )
    return Diagnosis(
        model=ModelSource("hub", "microsoft/Phi-4-multimodal-instruct",
                          "93f923e1a7727d1c4f446756212d9d3e8fcc5d81", True),
        recipe=Recipe({"task_type": "CAUSAL_LM", "load_in_4bit": True}, {
            "task_type": "file", "load_in_4bit": "file"}),
        depth="tiny",
        environment=ENVIRONMENT,
        findings=(finding,),
        skipped=(Skipped("LD203", "targets-outside", "the class cannot be built on meta"),),
        before=verification({"builds": "AttributeError"}, last="builds", failure=failure,
                            batches=(), steps=0, step_seconds=None),
        next_command="lora-doctor fix microsoft/Phi-4-multimodal-instruct --apply",
        seconds=8.9,
    )  # fmt: skip


def vision_language() -> Diagnosis:
    """Three towers; adapters in the vision tower get no gradient on text batches."""
    language, vision = "model.language_model.layers.*", "model.visual.blocks.*"
    names = (("attention", "self_attn.q_proj"), ("attention", "self_attn.k_proj"),
             ("attention", "self_attn.v_proj"), ("attention", "self_attn.o_proj"),
             ("mlp", "mlp.gate_proj"), ("mlp", "mlp.up_proj"),
             ("mlp", "mlp.down_proj"))  # fmt: skip
    groups = (
        module_group("model.visual.patch_embed.proj", 1, (1280, 3, 2, 14, 14), kind="conv",
                     role="other", tower="model.visual", class_name="Conv3d"),
        module_group(f"{vision}.attn.qkv", 32, (3840, 1280), tower="model.visual"),
        module_group(f"{vision}.attn.proj", 32, (1280, 1280), tower="model.visual"),
        *(module_group(f"{vision}.mlp.{leaf}", 32, (3420, 1280), adapted=32, role="mlp",
                       tower="model.visual") for leaf in ("gate_proj", "up_proj", "down_proj")),
        module_group("model.visual.merger.mlp.*", 2, (5120, 5120), role="projector",
                     tower="model.visual.merger"),
        module_group("model.language_model.embed_tokens", 1, (152064, 3584), kind="embedding",
                     role="embedding", tower="model.language_model", class_name="Embedding"),
        *(module_group(f"{language}.{path}", 28, (3584, 3584), adapted=28, role=role,
                       tower="model.language_model") for role, path in names),
        module_group("lm_head", 1, (152064, 3584), role="head", tower="lm_head"),
    )  # fmt: skip
    towers = (
        Tower("model.visual", "vision", "its first module takes pixels (Conv3d, 3 channels)",
              632_000_000),
        Tower("model.visual.merger", "projector", "joins the vision tower to the language tower",
              44_600_000),
        Tower("model.language_model", "language", "holds the token embedding", 7_070_000_000),
        Tower("lm_head", "head", "its outputs are as many as the vocabulary", 545_000_000),
    )  # fmt: skip
    adapters = (
        *(AdapterGroup(f"{vision}.mlp.{leaf}", 2, 0, 0, (), (f"model.visual.blocks.0.mlp.{leaf}",))
          for leaf in ("gate_proj", "up_proj", "down_proj")),
        *(AdapterGroup(f"{language}.{path}", 2, 2, 2, ("text", "image+text")) for _, path in names),
    )  # fmt: skip
    targets = [path.rsplit(".", 1)[1] for _, path in names]
    recipe = Recipe({"target_modules": targets, "task_type": "CAUSAL_LM", "r": 16},
                    dict.fromkeys(("target_modules", "task_type", "r"), "file"))  # fmt: skip
    regex = r"model\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    fix = Fix("keep the adapters in the language tower", "unsafe",
              (Edit("target_modules", regex),))  # fmt: skip
    finding = Finding(
        "LD203", "targets-outside-language-tower", "warning",
        "gate_proj, up_proj and down_proj also match 96 layers of the vision tower, which get no "
        "gradient from text batches",
        Location("module", "model.visual.blocks.*.mlp"),
        (Measurement("adapters in the vision tower", 96, "PEFT 0.21.2, meta device"),
         Measurement("of these with gradient", 0, "tiny run, text batch"),
         Measurement("learning rate needed", float("nan"), "not a number, on purpose")),
        Proof("measured", "96 of 292 adapters sit in model.visual"),
        (fix,),
    )  # fmt: skip
    second = replace(
        finding, rule="LD404", name="lora-scaling-far-off", severity="info",
        message="lora_alpha is not set; PEFT takes 8, so the updates are scaled by 0.5",
        location=Location("recipe", "lora_alpha"),
        evidence=(Measurement("lora_alpha / r", 0.5, "PEFT 0.21.2"),),
        proof=Proof("inferred", "LoraConfig's default"), fixes=(),
    )  # fmt: skip
    return Diagnosis(
        model=ModelSource("folder", "./Qwen2.5-VL-7B-Instruct", folder="/data/Qwen2.5-VL"),
        recipe=recipe,
        depth="tiny",
        environment=ENVIRONMENT,
        findings=(second, finding),
        passed=("LD101", "LD102", "LD201"),
        skipped=(Skipped("LD204", "fused-experts", "the model has no experts"),),
        structure=structure(
            groups, towers, model_class="Qwen2_5_VLForConditionalGeneration",
            model_type="qwen2_5_vl", loaded_by="AutoModelForImageTextToText",
        ),
        before=verification({"gradients": "196 of 292"}, adapters=adapters),
        after=verification(
            adapters=adapters[3:],
            batches=(
                BatchReport("text", {"input_ids": (2, 16)}, "labels",
                            (7.1, 7.02, 6.9, 6.8)),
                BatchReport("image+text", {"input_ids": (2, 48), "pixel_values": (128, 1176),
                            "image_grid_thw": (2, 3)}, "labels",
                            (7.4, 7.2, float("nan"), 6.9)),
            ),
        ),
        remaining=(second,),
        applied=(AppliedFix("LD203", fix),),
        fixed_recipe=recipe.edit(fix.edits),
        recipe_diff="--- qlora.yaml\n+++ qlora.yaml\n@@ -1,3 +1,3 @@\n r: 16\n"
        "-target_modules: [q_proj, k_proj]\n+target_modules: regex\n",
        next_command="lora-doctor fix ./Qwen2.5-VL-7B-Instruct --recipe qlora.yaml "
        "--unsafe-fixes --apply",
        seconds=6.2,
    )  # fmt: skip


def undetermined() -> Diagnosis:
    """Nothing found and nothing proven: the batch could not be made."""
    return Diagnosis(
        model=ModelSource("factory", "salmonn.build:model", trust_remote_code=True),
        recipe=Recipe({"r": 8}, {"r": "argument"}),
        depth="tiny",
        environment=ENVIRONMENT,
        passed=("LD201",),
        before=Verification.undetermined(
            "no batch could be made: forward wants 'spectrogram', whose shape nothing tells",
            depth="tiny",
        ),
        seconds=1.4,
    )


def static_only() -> Diagnosis:
    """Only files were read; no rule found anything."""
    return Diagnosis(
        model=ModelSource("hub", "org/model"),
        recipe=Recipe(),
        depth="static",
        environment={"packages": {}},
        passed=("LD701",),
        seconds=0.05,
    )


def hostile(text: str) -> Diagnosis:
    """``text`` in every place that a model repository can write to."""
    base = phi3()
    finding = Finding(
        text, text, "error", text, Location("module", text),
        (Measurement(text, text, text), Measurement("list", [text, {text: text}], text)),
        Proof("executed", text),
        (Fix(text, "safe", (Edit(text, text), Edit("target_modules", [text]))),
         Fix(text, "unsafe", patch=Patch(text, {text: text})), Fix(text, "manual")),
    )  # fmt: skip
    group = replace(
        module_group(text, 3, (2, 2), adapted=1, tower=text),
        class_name=text, leaf=text, examples=(text,),
    )  # fmt: skip
    note = Note("step", text, text)
    run = verification(
        adapters=(AdapterGroup(text, 3, 1, 1, (text,), (text,)),),
        failure=Failure(text, text, text, text, text, text),
        batches=(BatchReport(text, {text: (2,)}, text, (1.0, float("inf")), (note,)),),
        checks=(Check(text, "failed", text, text, text), Check("builds", "passed", text)),
        outcome="failed", device=text, dtype=text, model_class=text, patches=(text,), notes=(note,),
        reason=text,
    )  # fmt: skip
    assert base.structure is not None
    return replace(
        base,
        model=ModelSource("hub", text, text),
        recipe=Recipe({"target_modules": [text], text: text}, {"target_modules": "file"}),
        environment={"packages": {"torch": text}, text: text},
        findings=(finding,), remaining=(finding,), passed=(text,),
        skipped=(Skipped(text, text, text),),
        gathered=(Gathered(text, text, 0.1), Gathered(text, text, 0.1, text)),
        structure=replace(
            base.structure, model_class=text, groups=(group,), model_type=text, notes=(note,),
            towers=(Tower(text, "other", text, 12),),
        ),
        before=run, after=run, fixed_recipe=Recipe({text: text}), recipe_diff=text,
        next_command=text, undetermined=text, notes=(note,),
    )  # fmt: skip


def big(layers: int = 126, kinds: int = 400) -> Diagnosis:
    """A huge model with many kinds of modules and a finding with long tables."""
    base = vision_language()
    assert base.structure is not None
    towers = tuple(
        Tower(f"model.tower_{index}", "language" if index == 0 else "other", "a part", 10**11)
        for index in range(12)
    )
    groups = tuple(
        module_group(
            f"model.tower_{index % 12}.layers.*.block_{index // 12}.rather_long_name_{index}",
            layers, (16384, 16384), adapted=layers if index % 3 else 0,
            tower=f"model.tower_{index % 12}",
        )
        for index in range(kinds)
    )  # fmt: skip
    finding = replace(
        base.findings[1],
        evidence=tuple(
            Measurement(
                f"layer {index}", [f"model.layers.{index}.x.{j}" for j in range(20)], "meta"
            )
            for index in range(200)
        ),
    )
    return replace(
        base,
        structure=replace(
            base.structure, groups=groups, towers=towers, total_parameters=4 * 10**11
        ),
        findings=(finding,) * 60,
        skipped=tuple(Skipped(f"LD{i}", "name", "reason " * 20) for i in range(300)),
    )


def observed(layers: int = 4, **changes: Any) -> Observations:
    """Readings of layers whose activations grow, the first without a gradient."""
    readings = tuple(
        LayerReading(f"model.layers.{index}", "float16", 10.0 ** (index + 1),
                     gradient_norm=0.5 * index or None)
        for index in range(layers)
    )  # fmt: skip
    return Observations(layers=readings, **changes)


def memory_plan(**changes: Any) -> MemoryPlan:
    """A recipe of about 20 GiB and one alternative of about 6."""

    def variant(name: str, weights: int, activations: int) -> MemoryVariant:
        parts = (
            MemoryPart("weights, not quantized", weights << 30, "3 float32 × 4", "counted"),
            MemoryPart("trained weights", 1 << 28, "39 float32 × 4", "counted"),
            MemoryPart("activations", activations << 30, "alive at once", "measured",
                       (activations << 30) * 9 // 10, (activations << 30) * 11 // 10),
            MemoryPart("CUDA context", 1 << 29, "the driver", "assumed"),
        )  # fmt: skip
        return MemoryVariant(name, {}, parts)

    values: dict[str, Any] = {
        "batch_size": 1, "length": 512, "batch_size_from": "the recipe",
        "length_from": "the recipe", "optimizer": "adamw_torch", "inputs": {"input_ids": (1, 512)},
        "recipe": variant("recipe", 14, 5), "alternatives": (variant("4-bit", 4, 1),),
    }  # fmt: skip
    return MemoryPlan(**{**values, **changes})


def supervision(**changes: Any) -> Supervision:
    """Two rows of data, one of them cut; their texts are there."""
    texts = ("<s>", " What", " is", " it", "?", " private", "</s>")
    pieces = tuple(TokenPiece(text, index > 4) for index, text in enumerate(texts))
    values: dict[str, Any] = {
        "origin": "rows.jsonl", "loss_on": "completion", "loss_from": "the rows' own form",
        "rows_total": 2, "rows_seen": 2, "tokens": 14, "supervised_tokens": 4,
        "tokenizer": TokenizerFacts(eos_id=2, names={"2": "</s>"}), "max_length": 7,
        "median_length": 7, "longest": 9, "longest_row": 2, "over_limit": RowSet(1, (2,)),
        "shown": (ShownRow(1, 7, 2, 7, pieces),
                  ShownRow(2, 7, 2, 9, pieces, 0, (TokenPiece(" end", True),))),
    }  # fmt: skip
    return Supervision(**{**values, **changes})


def every_section() -> Diagnosis:
    """Findings, a repaired contract, charts, memory, data: everything that a page can show."""
    base = vision_language()
    assert base.before is not None and base.after is not None
    return replace(
        base,
        before=replace(base.before, observations=observed()),
        after=replace(base.after, observations=observed()),
        memory_plan=memory_plan(), supervision=supervision(samples="all"),
        notes=(Note("step", "a note"),),
    )  # fmt: skip


ALL = {
    "phi3": phi3,
    "healthy": healthy,
    "wrapper_fails": wrapper_fails,
    "vision_language": vision_language,
    "undetermined": undetermined,
    "static_only": static_only,
    "big": big,
}
