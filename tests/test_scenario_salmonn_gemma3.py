"""The report on Gemma 3 in SALMONN: a composite of a user's own, as a factory and in memory.

The report put NaN down to connectors with another epsilon than Gemma's, to paths to the token
embeddings, to the projection's initialisation, and replaced what was not a number by a constant.
Measured, the first makes no NaN and mostly no difference, the second is real, the third did not
change anything, and the last hides where it comes from. The decoder is Gemma 3 where transformers
has it (``tests/salmonn.py``).
"""

from __future__ import annotations

import copy
import importlib.metadata
from typing import Any

import pytest

import lora_doctor
from lora_doctor.sandbox.worker import Worker
from tests.scenario import holds, prove

torch = pytest.importorskip("torch")

from tests import salmonn  # noqa: E402

pytestmark = pytest.mark.slow

REPORT = "Gemma 3 in SALMONN"
TRAINED = ["ln_speech", "ln_audio", "speech_llama_proj"]
RECIPE = {"target_modules": r"llm\..*\.(q_proj|v_proj)", "modules_to_save": TRAINED}
UPSTREAM = {**RECIPE, "target_modules": r"llm\..*\.(q_proj|v_proj)|ears\.mix"}


def trained_plainly(factory: Any, recipe: Any = RECIPE) -> Any:
    """One step of a factory's model with PEFT alone."""

    def run() -> None:
        import peft

        model, batch = factory()
        model = peft.get_peft_model(model, peft.LoraConfig(**recipe)) if recipe else model
        model(**batch).loss.backward()

    return run


# --- epsilons -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_epsilon_beside_a_small_variance(worker: Worker, dtype: str) -> None:
    """A variance of 1e-4 at an epsilon of 1e-4: visible in every number format."""
    recipe = {**RECIPE, "dtype": dtype}
    diagnosis = prove(
        REPORT,
        f"connector's epsilon 1e-4, variance 1e-4, {dtype}",
        "LD401",
        "tests.salmonn:quiet",
        recipe,
        worker=worker,
        occurs=True,
        silently=True,
        plainly=trained_plainly(salmonn.quiet),
        by_hand=("tests.salmonn:quiet_repaired", recipe),
    )
    (finding,) = [item for item in diagnosis.findings if item.rule == "LD401"]
    assert finding.location.path == "ln_audio" and "1e-06" in finding.message
    # The report's remedy makes gradients larger, which is said with it.
    assert "larger" in finding.fixes[0].title and "not a remedy for NaN" in finding.fixes[0].title
    assert {fix.safety for fix in finding.fixes} == {"manual"}


def test_the_measured_change_is_the_true_one(worker: Worker) -> None:
    """The numbers in the finding are those of two LayerNorms on the same features."""
    model, batch = salmonn.quiet()
    with torch.no_grad():
        features = model.ears(batch["input_features"])
        width = features.shape[-1:]
        small, large = (torch.layer_norm(features, width, eps=eps) for eps in (1e-6, 1e-4))
        change = float((small - large).norm() / large.norm())
    diagnosis = lora_doctor.check("tests.salmonn:quiet", RECIPE, worker=worker)
    assert diagnosis.before is not None
    (norm,) = [item for item in diagnosis.before.observations.norms if item.path == "ln_audio"]
    (effect,) = [item for item in norm.effects if item.epsilon == 1e-6]
    assert effect.change == pytest.approx(change, rel=1e-3)
    assert norm.variance[1] == pytest.approx(float(features.var(-1, unbiased=False).median()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_epsilon_beside_a_variance_of_one(worker: Worker, dtype: str) -> None:
    """The report's own case: it changes the output by 0.005 per cent, which bf16 rounds away."""
    prove(
        REPORT,
        f"connector's epsilon 1e-4, variance 1, {dtype}",
        "LD401",
        "tests.salmonn:loud",
        {**RECIPE, "dtype": dtype},
        worker=worker,
        occurs=False,
        plainly=trained_plainly(salmonn.loud),
    )


def test_epsilon_of_pretrained_norms_that_was_changed(worker: Worker) -> None:
    """The other remedy one reads: give the decoder the connectors' epsilon."""
    prove(
        REPORT,
        "decoder's epsilon changed after loading",
        "LD401",
        "tests.salmonn:changed_after_loading",
        RECIPE,
        worker=worker,
        occurs=True,
        silently=True,
        plainly=trained_plainly(salmonn.changed_after_loading),
        by_hand=("tests.salmonn:loud", RECIPE),
    )


def test_epsilon_that_vanishes_in_fp16(worker: Worker) -> None:
    """A hand-written norm adds 1e-8 in fp16, where it is zero: padding becomes NaN."""
    recipe = {**RECIPE, "dtype": "float16"}
    prove(
        REPORT,
        "hand-written norm's epsilon is zero in fp16",
        "LD410",
        "tests.salmonn:vanishing",
        recipe,
        worker=worker,
        occurs=True,
        silently=True,
        by_hand=("tests.salmonn:loud", recipe),
    )


def test_torchs_own_norm_adds_epsilon_in_float32(worker: Worker) -> None:
    """The same number in ``nn.LayerNorm`` is harmless, whatever the dtype."""
    layer = torch.nn.LayerNorm(8, eps=1e-12).half()
    assert torch.isfinite(layer(torch.zeros(2, 8, dtype=torch.float16))).all()
    prove(
        REPORT,
        "nn.LayerNorm's epsilon 1e-12 in fp16",
        "LD410",
        "tests.salmonn:minute",
        {**RECIPE, "dtype": "float16"},
        worker=worker,
        occurs=False,
    )


# --- the projection -----------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["projection_too_large", "projection_too_small"])
def test_projection_out_of_scale(worker: Worker, factory: str) -> None:
    prove(
        REPORT,
        factory.replace("_", " "),
        "LD405",
        f"tests.salmonn:{factory}",
        RECIPE,
        worker=worker,
        occurs=True,
        silently=True,
        plainly=trained_plainly(getattr(salmonn, factory)),
        by_hand=("tests.salmonn:projection_in_scale", RECIPE),
    )


def test_default_projection(worker: Worker) -> None:
    """torch's default fits Gemma, which scales its embeddings, and not a decoder that does not.

    Told, not warned of. The ratio is measured here by hand; Gemma 2 scales later, in its forward.
    """
    model, batch = salmonn.loud()
    heard = []
    model.speech_llama_proj.register_forward_hook(lambda m, i, output: heard.append(output))
    with torch.no_grad():
        model(**batch)
        tokens = model.llm.get_input_embeddings()(batch["input_ids"])
        ratio = float(heard[0].pow(2).mean().sqrt() / tokens.pow(2).mean().sqrt())
    diagnosis = prove(
        REPORT,
        "torch's default projection",
        "LD405",
        "tests.salmonn:loud",
        RECIPE,
        worker=worker,
        occurs=ratio > 10,
        silently=True,
        by_hand=("tests.salmonn:projection_in_scale", RECIPE),
    )
    assert all(item.severity == "info" for item in diagnosis.findings if item.rule == "LD405")
    assert diagnosis.before is not None
    (reading,) = diagnosis.before.observations.connections
    assert reading.output_rms / reading.reference_rms == pytest.approx(ratio, rel=1e-3)
    assert reading.path == "speech_llama_proj" and reading.fresh and reading.trainable


# --- the way to the token embeddings ------------------------------------------------------------


def test_embeddings_by_a_path_that_peft_moves(worker: Worker) -> None:
    """The report's third cause, which is one: the language model was wrapped on its own."""
    diagnosis = prove(
        REPORT,
        "token embeddings by a path, decoder wrapped",
        "LD103",
        "tests.salmonn:adapted_by_path",
        {},
        worker=worker,
        occurs=True,
        plainly=trained_plainly(salmonn.adapted_by_path, None),
        by_hand=("tests.salmonn:adapted", {}),
    )
    (finding,) = [item for item in diagnosis.findings if item.rule == "LD103"]
    assert "self.llm.model.embed_tokens" in finding.message
    assert "self.llm.get_input_embeddings()" in finding.fixes[0].title


def test_embeddings_by_a_path_inside_the_wrapper(worker: Worker) -> None:
    """Wrapped as a whole, the path inside is what it was."""
    prove(
        REPORT,
        "token embeddings by a path, composite wrapped",
        "LD103",
        "tests.salmonn:by_path",
        RECIPE,
        worker=worker,
        occurs=False,
        plainly=trained_plainly(salmonn.by_path),
    )


def test_embeddings_by_their_weight(worker: Worker) -> None:
    """PEFT before 0.8 does not pass on the weight of embeddings that are trained whole."""
    recipe = {**RECIPE, "modules_to_save": [*TRAINED, "embed_tokens"]}
    prove(
        REPORT,
        "token embeddings by their weight, in modules_to_save",
        "LD103",
        "tests.salmonn:by_weight",
        recipe,
        worker=worker,
        occurs=holds({"peft": "<0.8"}),
        plainly=trained_plainly(salmonn.by_weight, recipe),
        by_hand=("tests.salmonn:loud", recipe),
    )


def test_checkpointing_of_a_quantized_model_without_embeddings(worker: Worker) -> None:
    """CLIP has two towers and no embeddings of the whole, which preparing it for training asks for.

    An encoder of sound, as in the report, has none either."""

    def plainly() -> None:
        import peft
        from transformers import CLIPConfig, CLIPModel

        tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "intermediate_size": 32}  # fmt: skip
        vision = {**tower, "image_size": 16, "patch_size": 8}
        model = CLIPModel(CLIPConfig(text_config=tower, vision_config=vision))
        model.is_loaded_in_8bit = True  # as bitsandbytes leaves it; before 4.45 that takes a GPU
        peft.prepare_model_for_kbit_training(model)

    diagnosis = prove(
        REPORT,
        "checkpointing in 8 bit, no input embeddings",
        "LD107",
        "arch:clip",
        {
            "target_modules": ["q_proj", "v_proj"],
            "load_in_8bit": True,
            "gradient_checkpointing": True,
        },
        worker=worker,
        occurs=holds({"transformers": "<5"}),
        plainly=plainly,
    )
    if holds({"transformers": ">=4.45,<5"}):
        assert diagnosis.after is not None
        assert not [note for note in diagnosis.after.notes if note.is_unproven]


# --- what is not finite -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "factory", "repaired", "place", "told"),
    [
        ("NaN in the forward", "silence", "silence_repaired", "prepare",
         ("LogPower, float32", "makes non-finite values", "inputs", "outputs")),
        ("NaN in the backward", "steep", "steep_repaired", "compress",
         ("Onsets, float32", "hand back a gradient", "inputs", "outputs", "ears.mix.lora")),
        ("NaN replaced by a constant loss", "silence_hidden", "silence_repaired", "prepare",
         ("LogPower, float32", "makes non-finite values", "the loss is finite all the same")),
    ],
)  # fmt: skip
def test_what_is_not_finite_is_located(
    worker: Worker, failure: str, factory: str, repaired: str, place: str, told: tuple[str, ...]
) -> None:
    """The first module, its input and output ranges and its dtype; never a constant instead."""
    diagnosis = prove(
        REPORT,
        failure,
        "LD001",
        f"tests.salmonn:{factory}",
        UPSTREAM,
        worker=worker,
        occurs=True,
        silently=True,
        by_hand=(f"tests.salmonn:{repaired}", UPSTREAM),
    )
    (finding,) = [item for item in diagnosis.findings if item.rule == "LD001"]
    text = " ".join(str(measure.value) for measure in finding.evidence)
    assert place in text and all(part in text for part in told), text


# --- in memory ----------------------------------------------------------------------------------


def test_a_loaded_composite_with_a_batch(worker: Worker) -> None:
    """``check(model, batches=...)``: the same finding, and the model stays as it is."""
    model, batch = salmonn.quiet()
    before = copy.deepcopy(model.state_dict())
    repaired, _ = salmonn.quiet_repaired()
    prove(
        REPORT,
        "connector's epsilon 1e-4, loaded module",
        "LD401",
        model,
        RECIPE,
        worker=worker,
        occurs=True,
        silently=True,
        by_hand=(repaired, RECIPE),
        batches=[batch],
    )
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loaded_composite_without_a_batch(worker: Worker) -> None:
    """A batch is made from the signature. Its sound is made up: what depends on it is told only."""
    model, _ = salmonn.quiet()
    diagnosis = lora_doctor.check(model, RECIPE, worker=worker)
    assert diagnosis.before is not None and diagnosis.before.outcome == "passed"
    assert diagnosis.before.observations.inputs == "made"
    measured = [item for item in diagnosis.findings if item.rule in ("LD401", "LD405")]
    assert measured and {item.severity for item in measured} == {"info"}


def test_which_decoder_this_stack_has() -> None:
    """The rows are Gemma 3's where transformers has it."""
    from packaging.version import Version

    name = type(salmonn.gemma()).__name__
    has_gemma3 = Version(importlib.metadata.version("transformers")) >= Version("4.50")
    assert (name == "Gemma3ForCausalLM") == has_gemma3
