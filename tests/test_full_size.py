"""What the shrunk model takes and the class at full size does not is no healthy recipe."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lora_doctor.census import row
from lora_doctor.census.pairs import Pair
from lora_doctor.engine import registry
from lora_doctor.engine.case import Case
from lora_doctor.engine.diagnose import diagnose, diagnose_and_fix
from lora_doctor.engine.limits import Limits
from lora_doctor.engine.settings import Settings
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.results.diagnosis import patches_of
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.model_source import parse_model

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
CLASS = "AutoModelForCausalLM"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """Zamba 2 lists the tied weights of its later layers by patterns, on which PEFT fails; one
    layer of each kind, as the tiny model has them, ties nothing."""
    asks = hasattr(peft.tuners.tuners_utils.BaseTuner, "_get_module_names_tied_with_embedding")
    if not asks or transformers.__version__.startswith("5") or not has("Zamba2Config"):
        pytest.skip("this PEFT does not ask, or this transformers has no patterns")
    with Worker(threads=1) as found:
        yield found


def has(name: str) -> bool:
    return hasattr(transformers, name)


def case_of(worker: Worker) -> Case:
    recipe = as_recipe({"model_class": CLASS})
    return Case(parse_model("arch:zamba2"), recipe, Settings("tiny", "cpu"), worker)


def test_the_census_does_not_call_it_trained(worker: Worker) -> None:
    found = row.judge(Pair(CLASS, "zamba2"), worker, Limits())
    cell = found.cells["recipe"]
    assert cell.status == "no" and "(LD106)" in cell.reason, cell
    # That nothing is adapted at full size is no sign that these adapters learn nothing.
    assert "embed_tokens" not in str(found.recipe["target_modules"])


def test_without_a_rule_that_explains_it_the_refusal_is_reported(worker: Worker) -> None:
    rules = [rule for rule in registry.find_rules() if rule.code != "LD106"]
    diagnosis = diagnose(case_of(worker), rules)
    assert diagnosis.before is not None and diagnosis.before.outcome == "passed"
    assert diagnosis.verdict == "findings"
    assert [finding.rule for finding in diagnosis.findings] == ["LD001"]
    assert "rpartition" in diagnosis.findings[0].message


def test_the_patch_lets_it_train(worker: Worker) -> None:
    diagnosis = diagnose_and_fix(case_of(worker), registry.find_rules())
    assert [patch.name for patch in patches_of(diagnosis)] == ["no_embeddings_to_tie"]
    assert diagnosis.after is not None and diagnosis.after.outcome == "passed"
    assert diagnosis.remaining == ()
