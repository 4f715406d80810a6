"""The training contract, on what users really do: each test names a set-up and what it must say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from packaging.version import Version

pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

import torch  # noqa: E402

from lora_doctor.evidence import full, tiny  # noqa: E402
from lora_doctor.evidence.loaded_module import verify_module  # noqa: E402
from lora_doctor.recipe.recipe import make_recipe  # noqa: E402
from lora_doctor.results.verification import CHECKS, Verification  # noqa: E402
from lora_doctor.static.model_source import ModelSource  # noqa: E402

pytestmark = pytest.mark.slow
TRANSFORMERS = Version(transformers.__version__)
PEFT = Version(peft.__version__)
LIST = ["q_proj", "v_proj"]


def has_architecture(name: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return name in CONFIG_MAPPING_NAMES


def run(arch: str, **values: Any) -> Verification:
    """The contract on ``arch:NAME`` with a recipe of options, as the command line would run it."""
    if not has_architecture(arch):
        pytest.skip(f"this transformers has no {arch}")
    return run_source(ModelSource("arch", arch), **values)


def run_source(
    source: ModelSource, gather: Callable[..., dict[str, Any]] = tiny.gather, **values: Any
) -> Verification:
    recipe = make_recipe(values, where="test", origin="option")
    torch.manual_seed(1)  # whatever ran before must not matter
    result = Verification.from_json(gather(source.to_json(), recipe.to_json()))
    if result.outcome != "undetermined":
        assert [check.name for check in result.checks] == list(CHECKS)
    return result


def status(result: Verification) -> Mapping[str, str]:
    return {check.name: check.status for check in result.checks}


def failed(result: Verification) -> list[str]:
    return [check.name for check in result.failed_checks]


def healthy(result: Verification) -> None:
    assert result.outcome == "passed", (result.failed_checks, result.reason)
    assert all(group.with_gradient == group.count for group in result.adapters)
    assert all(group.moved == group.count for group in result.adapters)


def small_llama(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**values, **changes}))


class TestHealthy:
    """What works in real life passes, every check of it, and says its numbers."""

    @pytest.mark.parametrize(
        ("arch", "values"),
        [
            ("llama", {"target_modules": LIST, "task_type": "CAUSAL_LM"}),
            ("llama", {"target_modules": LIST, "lora_dropout": 0.1, "dtype": "bfloat16"}),
            ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
            ("llama", {"target_modules": ["q_proj", "embed_tokens"], "task_type": "CAUSAL_LM"}),
            ("gpt2", {"target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}),
            ("t5", {"target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}),
            ("bert", {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
            ("whisper", {"target_modules": LIST}),
            ("wav2vec2", {"target_modules": LIST}),
            ("qwen2_vl", {"target_modules": LIST, "task_type": "CAUSAL_LM"}),
            ("llava", {"target_modules": r".*language_model.*\.(q_proj|v_proj)"}),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_passes(self, arch: str, values: dict[str, Any]) -> None:
        result = run(arch, **values)
        healthy(result)
        assert result.step_seconds and result.model_parameters
        for name in ("forward", "gradients", "loss-falls", "save-reload", "merge"):
            check = result.check(name)
            assert check is not None and check.status == "passed" and check.value is not None

    def test_starts_at_the_base_models_loss(self) -> None:
        check = run("llama", target_modules=LIST).check("starts-at-base")
        assert check is not None and (check.status, check.value) == ("passed", 0.0)

    @pytest.mark.skipif(Version("0.9") > PEFT, reason="no DoRA in this PEFT")
    def test_dora_magnitudes_are_trained_too(self) -> None:
        result = run("llama", target_modules=LIST, use_dora=True)
        healthy(result)
        check = result.check("gradients")
        assert check is not None and check.value == "12 of 12"

    def test_experts_in_linear_layers(self) -> None:
        """One linear layer per expert: some may get no token, which is no failure."""
        result = run("mixtral", target_modules=["w1", "w2", "w3"], task_type="CAUSAL_LM")
        assert result.outcome == "passed", result.failed_checks

    def test_prompt_tuning_is_not_merged(self) -> None:
        result = run(
            "llama", peft_type="PROMPT_TUNING", num_virtual_tokens=4, task_type="CAUSAL_LM"
        )
        assert status(result)["merge"] == "skipped"
        assert not failed(result)

    def test_same_result_twice(self) -> None:
        first, second = (run("llama", target_modules=LIST) for _ in range(2))
        assert [c.value for c in first.checks] == [c.value for c in second.checks]


class TestTargets:
    def test_llava_reaches_into_the_vision_tower(self) -> None:
        """Llava takes the last but one vision layer's features: the last one learns nothing."""
        result = run("llava", target_modules=LIST, task_type="CAUSAL_LM")
        assert failed(result) == ["gradients"]
        check = result.check("gradients")
        assert check is not None and check.value == "12 of 16"
        vision = [group for group in result.adapters if "vision" in group.pattern]
        language = [group for group in result.adapters if "language" in group.pattern]
        assert vision and all(g.with_gradient == 1 and g.count == 2 for g in vision)
        assert all(group.batches == ("image+text",) for group in vision)
        assert all(set(group.batches) == {"image+text", "text"} for group in language)

    def test_phi3_has_fused_layers(self) -> None:
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        result = run("phi3", target_modules=names, task_type="CAUSAL_LM")
        assert failed(result) == ["attaches"]
        check = result.check("attaches")
        assert check is not None and "q_proj" in check.detail and "o_proj" not in check.detail

    def test_no_match_at_all(self) -> None:
        result = run("llama", target_modules=["query"], task_type="CAUSAL_LM")
        assert failed(result) == ["attaches"]
        assert result.failure is not None
        assert result.failure.message.startswith("Target modules {'query'} not found")
        assert result.failure.where.startswith("peft/tuners/tuners_utils.py:")
        skipped = [check for check in result.checks if check.status == "skipped"]
        assert all(check.detail == "not run: attaches failed" for check in skipped)

    @pytest.mark.skipif(Version("0.21") > PEFT, reason="experts are not converted")
    def test_converted_experts_refuse_dropout(self) -> None:
        names = ["q_proj", "gate_proj", "up_proj", "down_proj"]
        healthy(run("qwen3_moe", target_modules=names, task_type="CAUSAL_LM"))
        result = run("qwen3_moe", target_modules=names, lora_dropout=0.05)
        assert failed(result) == ["attaches"] and result.failure is not None
        assert "does not work with lora_dropout != 0" in result.failure.message


class TestSingleLayers:
    """Recipes that name layers of the full model, run on one that has two."""

    @pytest.mark.parametrize(
        "values",
        [
            {"target_modules": LIST, "layers_to_transform": [30, 31]},
            {"target_modules": ["model.layers.31.self_attn.q_proj"]},
        ],
        ids=["layers_to_transform", "target_modules"],
    )
    def test_numbers_are_fitted(self, values: dict[str, Any]) -> None:
        result = run("llama", **values)
        healthy(result)
        assert any("31" in note.text for note in result.notes)

    def test_a_regex_cannot_be_fitted(self) -> None:
        result = run("llama", target_modules=r".*layers\.(30|31)\..*q_proj")
        assert result.outcome == "undetermined" and "target_modules" in result.reason

    def test_a_regex_without_numbers_is_judged(self) -> None:
        assert failed(run("llama", target_modules=r".*\.w1")) == ["attaches"]


class TestWrongClassOrTask:
    def test_headless_llama_as_causal_lm(self) -> None:
        """Refused by PEFT since GenerationMixin left PreTrainedModel; before, in the forward."""
        result = run("llama", model_class="LlamaModel", target_modules=LIST, task_type="CAUSAL_LM")
        assert result.outcome == "failed" and result.failure is not None
        if Version("4.50") <= TRANSFORMERS:
            assert result.failure.check == "attaches"
            assert "prepare_inputs_for_generation" in result.failure.message
        else:
            assert result.failure.check == "forward"
            assert "unexpected keyword argument 'labels'" in result.failure.message

    def test_whisper_as_seq2seq(self) -> None:
        result = run("whisper", target_modules=LIST, task_type="SEQ_2_SEQ_LM")
        assert failed(result) == ["forward"] and result.failure is not None
        assert result.failure.type == "TypeError" and "'input_ids'" in result.failure.message
        assert "\n" not in result.failure.message and len(result.failure.message) < 200

    def test_instructblip(self) -> None:
        result = run("instructblip", target_modules=LIST, task_type="CAUSAL_LM")
        if Version("4.57") <= TRANSFORMERS:
            healthy(result)
        else:
            assert failed(result) == ["forward"] and result.failure is not None
            assert "'inputs_embeds'" in result.failure.message


class TestCheckpointing:
    def test_reentrant_by_default(self) -> None:
        """Before transformers 5 the default is reentrant, and nothing in front requires grad."""
        result = run("llama", target_modules=LIST, gradient_checkpointing=True)
        if Version("5") <= TRANSFORMERS:
            healthy(result)
        else:
            assert failed(result) == ["gradients"] and result.failure is not None
            assert "does not require grad" in result.failure.message

    def test_not_reentrant(self) -> None:
        healthy(
            run(
                "llama",
                target_modules=LIST,
                gradient_checkpointing=True,
                gradient_checkpointing_kwargs={"use_reentrant": False},
            )
        )

    @pytest.mark.skipif(Version("5") <= TRANSFORMERS, reason="inputs require grad by themselves")
    def test_reentrant_with_something_trainable_at_the_head_is_silent(self) -> None:
        result = run(
            "llama",
            target_modules=["q_proj", "lm_head"],
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": True},
        )
        assert failed(result) == ["gradients"]
        check = result.check("gradients")
        assert check is not None and check.value == "2 of 6"


class TestNumbers:
    def test_fp16_adapters_cannot_be_unscaled(self) -> None:
        """PEFT before 0.12 leaves adapters in fp16, which a GradScaler refuses."""
        result = run("llama", target_modules=LIST, dtype="float16")
        if Version("0.12") <= PEFT:
            healthy(result)
        else:
            assert failed(result) == ["steps"] and result.failure is not None
            assert "unscale FP16 gradients" in result.failure.message

    def test_fp16_overflow_names_the_module(self) -> None:
        """Activations beyond 65504 are NaN in fp16: the first module that makes them is named."""
        model = small_llama()
        with torch.no_grad():
            # Finite in fp32; 500 * 500 summed over 64 inputs is not in fp16.
            model.model.layers[1].mlp.up_proj.weight.fill_(500.0)
            model.model.layers[1].post_attention_layernorm.weight.fill_(500.0)
        result = verify_module(model.half(), {"target_modules": LIST})
        assert failed(result) == ["loss-finite"] and result.failure is not None
        assert result.failure.module == "model.layers.1.mlp.up_proj"
        assert "float16" in result.failure.message and "makes" in result.failure.message

    @pytest.mark.skipif(Version("0.12") > PEFT, reason="leaves adapters in fp16")
    @pytest.mark.parametrize("size", [1e-5, 0.0])
    def test_a_gradient_that_is_zero_at_a_small_scale_alone(self, size: float) -> None:
        """In fp16 a Trainer scales the loss by 65536: what arrives then is a gradient."""
        model = small_llama()
        with torch.no_grad():
            model.model.layers[0].self_attn.o_proj.weight.mul_(size)
        result = verify_module(model, {"target_modules": ["q_proj"], "fp16": True})
        assert failed(result) == ([] if size else ["gradients"])

    def test_non_finite_gradient_names_the_first_parameter(self) -> None:
        class Root(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = torch.nn.Linear(4, 4)
                self.outer = torch.nn.Linear(4, 4)

            def forward(self, x: Any) -> Any:
                hidden = self.inner(x)
                # sqrt has an infinite slope at zero: a finite loss, a gradient that is NaN.
                return self.outer(hidden) + (hidden - hidden).clamp(min=0).sqrt()

        result = verify_module(
            Root(), {"target_modules": ["inner", "outer"]}, {"x": torch.randn(2, 4)}
        )
        assert failed(result) == ["gradients"] and result.failure is not None
        assert result.failure.module.startswith("inner")

    def test_tied_head_does_not_merge(self) -> None:
        """Merging into a tied head also changes the embedding."""
        result = run("gpt2", target_modules=["c_attn", "lm_head"], task_type="CAUSAL_LM")
        assert failed(result) == ["merge"]
        check = result.check("merge")
        assert check is not None and check.value > 1e-2 and "lm_head" in check.detail

    @pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
    def test_quantized(self, bits: str) -> None:
        pytest.importorskip("bitsandbytes")
        result = run("llama", target_modules=LIST, task_type="CAUSAL_LM", **{bits: True})
        healthy(result)
        unproven = [note for note in result.notes if note.is_unproven]
        if Version("4.50") <= TRANSFORMERS:
            assert not unproven and status(result)["merge"] == "skipped"
        else:
            assert len(unproven) == 1 and "No GPU found" in unproven[0].text


def test_a_copy_that_runs_first_leaves_the_8_bit_weights_to_the_original() -> None:
    """bitsandbytes moves them into the layer in its first forward."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from lora_doctor.nn.copying import structural_copy

    torch.manual_seed(0)
    values, inputs = torch.randn(64, 64), torch.randn(4, 64)

    def in_8_bits() -> torch.nn.Module:
        layer = bitsandbytes.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
        layer.weight = bitsandbytes.nn.Int8Params(
            values.clone(), requires_grad=False, has_fp16_weights=False
        )
        return torch.nn.Sequential(layer).to("cpu")

    try:
        in_8_bits()(inputs)
    except (NotImplementedError, RuntimeError, AssertionError, AttributeError) as error:
        pytest.skip(f"bitsandbytes alone computes no 8 bits here: {error}")
    model = in_8_bits()
    expected = structural_copy(model)(inputs)
    assert torch.allclose(model(inputs), expected)
    assert torch.allclose(expected, inputs @ values.T + model[0].bias, atol=1.0)


def snapshot(model: Any) -> dict[str, Any]:
    """Everything about a module that must be the same afterwards."""
    return {
        "weights": {k: (v.data_ptr(), v.clone()) for k, v in model.state_dict().items()},
        "grad": {n: (p.requires_grad, p.grad is None) for n, p in model.named_parameters()},
        "training": [module.training for module in model.modules()],
        "classes": [type(module) for module in model.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
        "config": model.config.to_dict() if hasattr(model, "config") else None,
    }


def unchanged(model: Any, before: dict[str, Any]) -> None:
    after = snapshot(model)
    weights, seen = before.pop("weights"), after.pop("weights")
    assert before == after
    assert weights.keys() == seen.keys()
    for name, (address, value) in weights.items():
        assert seen[name][0] == address and torch.equal(seen[name][1], value), name


class TestLoadedModule:
    @pytest.mark.parametrize("wrapped", [False, True], ids=["base", "peft"])
    def test_the_users_module_stays_as_it_is(self, wrapped: bool) -> None:
        model = small_llama()
        if wrapped:
            model = peft.get_peft_model(model, peft.LoraConfig(target_modules=LIST))
            model.enable_input_require_grads()
        model.model.eval()
        before = snapshot(model)
        state, dtype = torch.get_rng_state(), torch.get_default_dtype()
        result = verify_module(model, None if wrapped else {"target_modules": LIST})
        healthy(result)
        unchanged(model, before)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.get_default_dtype() == dtype and torch.is_grad_enabled()

    @pytest.mark.skipif(Version("0.10") > PEFT, reason="no olora in this PEFT")
    def test_starts_that_rewrite_the_weights_get_their_own(self) -> None:
        model = small_llama()
        before = snapshot(model)
        healthy(verify_module(model, {"target_modules": LIST, "init_lora_weights": "olora"}))
        unchanged(model, before)

    def test_inside_no_grad(self) -> None:
        with torch.no_grad():
            healthy(verify_module(small_llama(), {"target_modules": LIST}))
            assert not torch.is_grad_enabled()

    def test_all_weights_trainable(self) -> None:
        """Somebody unfroze the base after get_peft_model: it would all be trained."""
        model = peft.get_peft_model(small_llama(), peft.LoraConfig(target_modules=LIST))
        model.requires_grad_(True)
        result = verify_module(model)
        assert "attaches" in failed(result)
        check = result.check("attaches")
        assert check is not None and "other parameters are trainable" in check.detail

    def test_frozen_adapters(self) -> None:
        model = peft.get_peft_model(small_llama(), peft.LoraConfig(target_modules=LIST))
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
        result = verify_module(model)
        check = result.check("attaches")
        assert check is not None and check.status == "failed"
        assert "4 adapter parameters are frozen" in check.detail

    def test_lora_on_a_peft_model_loses_its_weights(self) -> None:
        """Twice get_peft_model: it trains, and what is saved does not load onto the base."""
        config = peft.LoraConfig(target_modules=LIST)
        model = peft.get_peft_model(peft.get_peft_model(small_llama(), config), config)
        result = verify_module(model)
        assert "save-reload" in failed(result)

    @pytest.mark.parametrize("forgets", [False, True])
    def test_experts_that_rounding_picks(self, forgets: bool) -> None:
        """Merged in half precision a token between two experts gets the other one. That is no
        failure of merging, and a merge that loses an adapter still is one."""

        class Router(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.layer = torch.nn.Linear(32, 32)

            def forward(self, x: Any) -> Any:
                out = self.layer(x)
                return out + (out > 0)

        model = peft.get_peft_model(Router(), peft.LoraConfig(target_modules=["layer"]))
        model.to(torch.bfloat16)
        if forgets:
            whole = model.base_model.model.layer
            whole.get_delta_weight = lambda name: torch.zeros_like(whole.base_layer.weight)
        batch = {"x": torch.randn(64, 32).to(torch.bfloat16)}
        result = verify_module(model, batches=batch, random_weights=True)
        merge = result.check("merge")
        assert merge.value > 0.03
        assert merge.status == ("failed" if forgets else "passed"), merge

    def test_the_wrapper_of_peft_refuses_what_the_base_takes(self) -> None:
        """Nothing is wrong with the base, and its forward is not at fault either."""

        class Sound(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(8, 8)

            def forward(self, sound: Any) -> Any:
                return self.layer(sound)

        config = peft.LoraConfig(target_modules=["layer"], task_type="FEATURE_EXTRACTION")
        model = peft.get_peft_model(Sound(), config)
        result = verify_module(model, batches={"sound": torch.randn(2, 8)})
        assert failed(result) == ["forward"]
        assert "unexpected keyword argument 'input_ids'" in result.check("forward").detail

    def test_own_wrapper_that_forgets_its_adapters(self) -> None:
        """A forward that never reaches the adapted layer trains nothing of it."""

        class Wrapper(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used = torch.nn.Linear(8, 8)
                self.forgotten = torch.nn.Linear(8, 8)

            def forward(self, x: Any) -> Any:
                return self.used(x)

        result = verify_module(
            Wrapper(), {"target_modules": ["used", "forgotten"]}, {"x": torch.randn(2, 8)}
        )
        assert failed(result) == ["gradients"]
        assert [g.pattern for g in result.adapters if g.with_gradient == 0] == ["forgotten"]

    def test_base_that_does_not_run(self) -> None:
        class Broken(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(8, 8)

            def forward(self, x: Any) -> Any:
                raise RuntimeError("needs a camera")

        result = verify_module(Broken(), {"target_modules": ["layer"]}, {"x": torch.randn(2, 8)})
        assert result.outcome == "undetermined"
        assert "the base model does not run without adapters" in result.reason
        assert "needs a camera" in result.reason and "test_contract.py" in result.reason


class TestFull:
    def test_folder(self, tmp_path: Any) -> None:
        small_llama().save_pretrained(tmp_path, safe_serialization=True)
        source = ModelSource("folder", str(tmp_path), folder=str(tmp_path))
        result = run_source(source, full.gather, target_modules=LIST, task_type="CAUSAL_LM")
        healthy(result)
        assert result.depth == "full" and result.dtype == "float32"

    def test_pickled_weights_are_never_loaded(self, tmp_path: Any) -> None:
        model = small_llama()
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        source = ModelSource("folder", str(tmp_path), folder=str(tmp_path))
        result = run_source(source, full.gather, target_modules=LIST)
        assert result.outcome == "undetermined" and "pickled" in result.reason

    def test_merge_layer_by_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is too large to copy is merged one layer at a time."""

        from lora_doctor.model import training_setup

        monkeypatch.setattr(training_setup, "COPY_BYTES", 0)
        result = verify_module(small_llama(), {"target_modules": LIST})
        healthy(result)
        check = result.check("merge")
        assert check is not None and "layer by layer" in check.detail
