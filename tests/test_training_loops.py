"""Training loops that lose their gradients are told from those that only look so.

Each text is a loop as people write it; what torch makes of it was tried for each kind: backward
raises, or the optimizer steps on nothing."""

from __future__ import annotations

import ast
import textwrap

import pytest

from lora_doctor.static.script.cleared_gradients import cleared_gradients
from lora_doctor.static.script.eval_mode import left_in_eval
from lora_doctor.static.script.kept_gradients import discarded, never_reset
from lora_doctor.static.script.lost_losses import lost_losses

_HEAD = """
import torch
import torch.nn.functional as F
from torch import nn
crit = nn.CrossEntropyLoss()
"""


def read(text: str) -> ast.Module:
    return ast.parse(_HEAD + textwrap.dedent(text))


_WITHOUT_GRADIENTS = [
    """\
for batch in loader:
    with torch.no_grad():
        outputs = model(**batch)
    loss = outputs.loss
    loss.backward()
""",
    """\
for batch in loader:
    loss = model(**batch).loss.detach()
    accelerator.backward(loss)
""",
    """\
for batch in loader:
    with torch.inference_mode():
        logits = model(batch["x"]).logits
    loss = crit(logits.view(-1, 9), batch["labels"].view(-1))
    (loss / 4).backward()
""",
    """\
for step, batch in enumerate(loader):
    loss = torch.tensor(model(**batch).loss)
    scaler.scale(loss).backward()
""",
    """\
class T(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        with torch.no_grad():
            outputs = model(**inputs)
        loss = outputs.loss
        return (loss, outputs) if return_outputs else loss
""",
    """\
class T(Trainer):
    @torch.no_grad()
    def compute_loss(self, model, inputs, return_outputs=False, **kw):
        return model(**inputs).loss
""",
    """\
@torch.no_grad()
def forward(batch):
    return model(**batch).loss
for batch in loader:
    loss = forward(batch)
    loss.backward()
""",
    """\
for batch in loader:
    out = model(**batch)
    loss = F.cross_entropy(out.logits.detach(), batch["labels"])
    loss = loss / accum
    loss.backward()
""",
    """\
torch.set_grad_enabled(False)
for batch in loader:
    loss = model(**batch)[0]
    loss.backward()
""",
]
_HEALTHY = [
    """\
for batch in loader:
    with torch.no_grad():
        teacher_logits = teacher(**batch).logits
    out = model(**batch)
    loss = out.loss + F.kl_div(out.logits, teacher_logits)
    loss.backward()
    total += loss.item()
    loss = loss.detach()
""",
    """\
for batch in loader:
    with torch.no_grad():
        reps = model(batch)
    leaf = reps.detach().requires_grad_()
    loss = crit(leaf, labels)
    loss.backward()
    g = leaf.grad
    model(batch).backward(g)
""",
    """\
total = torch.tensor(0.0)
for batch in loader:
    total = total + model(**batch).loss
total.backward()
""",
    """\
loss = 0
for batch in loader:
    loss += model(**batch).loss
    loss.backward()
    loss = 0
""",
    """\
@torch.no_grad()
def evaluate(model, loader):
    for b in loader:
        loss = model(**b).loss
    return loss.item()
for batch in loader:
    loss = model(**batch).loss
    loss.backward()
    v = evaluate(model, loader)
""",
    """\
with torch.no_grad():
    model = build()
for batch in loader:
    loss = model.loss(batch)
    loss.backward()
""",
    """\
for batch in loader:
    with torch.set_grad_enabled(phase == "train"):
        loss = model(**batch).loss
    loss.backward()
""",
    """\
class T(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        with torch.no_grad():
            ref = self.ref(**inputs).logits
        out = model(**inputs)
        loss = F.mse_loss(out.logits, ref)
        return (loss, out) if return_outputs else loss
    def prediction_step(self, model, inputs):
        with torch.no_grad():
            return model(**inputs).loss
""",
    """\
def step(x):
    if x.mask is None:
        loss = torch.tensor(0.0, requires_grad=True)
    else:
        loss = model(x).loss
    loss.backward()
""",
    """\
for batch in loader:
    try:
        loss = model(**batch).loss
    except RuntimeError:
        loss = torch.tensor(0.0)
    loss.backward()
""",
    """\
with torch.no_grad():
    embeds = encoder(x)
for _ in range(3):
    pred = head(embeds)
    loss = crit(pred, y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
""",
    """\
optimizer.zero_grad()
loss = model(x).loss
loss.backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
scheduler.step()
""",
    """\
class T(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = self.compute_loss(model, inputs)
        self.accelerator.backward(loss)
        return loss.detach() / self.args.gradient_accumulation_steps
""",
    """\
optimizer.zero_grad()
optimizer.step()
for b in loader:
    model(**b).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
""",
    """\
for b in loader:
    optimizer.zero_grad()
    train_step(model, b)
    optimizer.step()
""",
    """\
for b in loader:
    d_loss(b).backward()
    opt_d.step()
    opt_g.zero_grad()
    g_loss(b).backward()
    opt_g.step()
    opt_d.zero_grad()
""",
    """\
def closure():
    optimizer.zero_grad()
    loss = model(x).loss
    loss.backward()
    return loss
for b in loader:
    optimizer.zero_grad()
    optimizer.step(closure)
""",
]
_HEALTHY += [  # gradients that others compute or write
    """\
for b in loader:
    optimizer.zero_grad()
    loss = engine.step(b)
    optimizer.step()
""",
    """\
for b in loader:
    model(**b).loss.backward()
    grads = {p: p.grad.clone() for p in parameters}
    optimizer.zero_grad()
    for p in parameters:
        p.grad = grads[p]
    optimizer.step()
""",
    """\
class L(LightningModule):
    def training_step(self, batch, index):
        loss = self.model(**batch).loss
        self.update(loss)
        return loss.detach()
    def update(self, loss):
        self.manual_backward(loss)
""",
]
_CLEARED = [
    """\
for b in loader:
    loss = model(**b).loss
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()
""",
    """\
for i, b in enumerate(loader):
    loss = model(**b).loss
    accelerator.backward(loss)
    if i % 4 == 0:
        self.optimizer.zero_grad()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        scheduler.step()
""",
]
_LEFT_IN_EVAL = [
    """\
for epoch in range(3):
    for b in loader:
        model(**b).loss.backward()
    model.eval()
    check(model)
""",
    """\
def evaluate(m, data):
    m.eval()
    with torch.no_grad():
        return [m(**b).loss for b in data]
for epoch in range(3):
    for b in loader:
        accelerator.backward(model(**b).loss)
    evaluate(model, data=held)
""",
]
_LEFT_IN_EVAL += [
    """\
def build(name):
    return get_peft_model(load(name), config)
def fit(network, teacher):
    for epoch in range(3):
        for b in loader:
            teacher(**b)
            network(**b).loss.backward()
        network.eval()
small = build("small")
fit(small, load("large"))
""",
    """\
model = get_peft_model(load("small"), config)
ddp, optimizer = accelerator.prepare(model, optimizer)
for epoch in range(3):
    for b in loader:
        accelerator.backward(ddp(**b).loss)
    ddp.eval()
""",
]
_BACK_IN_TRAINING = [
    """\
for epoch in range(3):
    teacher.eval()
    for b in loader:
        with torch.no_grad():
            wanted = teacher(**b).logits
        distance(model(**b).logits, wanted).backward()
""",
    """\
model = get_peft_model(load("small"), config)
for b in loader:
    critic.eval()
    critic(inputs_embeds=model(**b).logits).loss.backward()
    copied = copy.deepcopy(model)
    copied.eval()
    print(copied(**b).loss)
""",
    """\
while True:
    for b in loader:
        model(**b).loss.backward()
    if step >= 1000:
        model.eval()
        print(model(**held).loss)
        break
""",
    """\
for b in loader:
    model.eval()
    ids = model.generate(**b)
    set_train_mode(model)
    model(input_ids=ids, labels=ids).loss.backward()
""",
    """\
for epoch in range(3):
    model.train()
    for b in loader:
        model(**b).loss.backward()
    model.eval()
""",
    """\
def evaluate(m, data):
    m.eval()
    found = [m(**b).loss for b in data]
    m.train()
    return found
for epoch in range(3):
    for b in loader:
        model(**b).loss.backward()
    evaluate(model, held)
""",
    """\
for epoch in range(3):
    for b in loader:
        model(**b).loss.backward()
model.eval()
""",
    """\
for b in loader:
    teacher.eval()
    loss = model(**b).loss
    loss.backward()
""",
    """\
def train_epoch(m):
    m.train()
for epoch in range(3):
    train_epoch(model)
    for b in loader:
        model(**b).loss.backward()
    model.eval()
""",
]


@pytest.mark.parametrize("text", _WITHOUT_GRADIENTS)
def test_a_loss_without_gradients_is_found(text: str) -> None:
    """`element 0 of tensors does not require grad` is what torch says to each."""
    (found,) = lost_losses(read(text))
    lines = (_HEAD + textwrap.dedent(text)).split("\n")
    assert "backward" in lines[found.line - 1] or "return" in lines[found.line - 1]
    assert found.why.code.split("(")[0] in lines[found.why.line - 1]


@pytest.mark.parametrize("text", [*_HEALTHY, *_CLEARED])
def test_a_loss_that_may_have_gradients_is_not(text: str) -> None:
    """Teachers, logging, gradient caching and the trainers' own steps are healthy."""
    assert lost_losses(read(text)) == []


@pytest.mark.parametrize("text", _CLEARED)
def test_gradients_cleared_before_the_step_are_found(text: str) -> None:
    """The optimizer's only step finds no gradient."""
    (found,) = cleared_gradients(read(text))
    assert (found.code.endswith("zero_grad()"), found.step_code.endswith("step()")) == (True, True)


@pytest.mark.parametrize("text", [*_HEALTHY, *_WITHOUT_GRADIENTS])
def test_the_usual_orders_are_not(text: str) -> None:
    assert list(cleared_gradients(read(text))) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        *((text, True) for text in _LEFT_IN_EVAL),
        *((text, False) for text in _BACK_IN_TRAINING),
    ],
)
def test_evaluation_mode_after_the_first_evaluation(text: str, found: bool) -> None:
    """Dropout stays off from the second epoch on, and so does checkpointing."""
    assert (left_in_eval(read(text)) is not None) is found


#: ``OPTIMIZER``, ``BATCHES`` and the rest are as in most scripts.
_ACCUMULATED = """
    for i, batch in enumerate(loader):
        {before}
        loss = model(**batch).loss / steps
        loss.backward()
        if (i + 1) % steps == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            {after}
"""


@pytest.mark.parametrize(
    ("before", "after", "more", "lost"),
    [
        ("optimizer.zero_grad()", "scheduler.step()", "", True),
        ("pass", "optimizer.zero_grad()", "", False),
        ("optimizer.zero_grad()", "scheduler.step()", "steps = 1", False),
        ("optimizer.zero_grad() if i % steps == 0 else None", "pass", "", False),
    ],
)
def test_gradients_reset_for_each_micro_batch_are_found(
    before: str, after: str, more: str, lost: bool
) -> None:
    """Only the last micro-batch counts; resetting every n-th time, or with n = 1, is healthy."""
    text = textwrap.dedent(_ACCUMULATED.format(before=before, after=after)) + more
    assert bool(list(discarded(ast.parse(text)))) is lost


@pytest.mark.parametrize(
    ("first", "seldom", "other"),
    [
        ("opt_d.zero_grad()", "opt_g.step()", "pass"),
        ("net_d.zero_grad(); d_loss.backward(); opt_d.step()", "opt_g.step()", "pass"),
        ("optimizer.zero_grad()", "report(); optimizer.step()", "optimizer.step()"),
    ],
)
def test_a_step_now_and_then_beside_other_steps_accumulates_nothing(
    first: str, seldom: str, other: str
) -> None:
    """Two optimizers that take turns, and a step in both branches, were taken for accumulation."""
    text = f"""
for i, batch in enumerate(loader):
    {first}
    model(**batch).loss.backward()
    if i % 5 == 0:
        {seldom}
    else:
        {other}
"""
    assert not list(discarded(ast.parse(text)))


_NEVER = """
import torch
for batch in loader:
    loss = model(**batch).loss
    loss.backward()
    {step}
"""


@pytest.mark.parametrize(
    ("step", "found"),
    [
        ("optimizer.step()", True),
        ("self.optimizer.step()", True),
        ("scaler.step(optimizer); scaler.update()", True),
        ("optimizer.step(); optimizer.zero_grad()", False),
        ("optimizer.step()\n    for p in model.parameters(): p.grad = None", False),
        ("optimizer.step(closure)", False),
        ("scheduler.step()", False),
        ("optimizer.step()\n    from helpers import tidy\n    tidy(model)", False),
        ("optimizer.step()\n    model = get_peft_model(base, config)", False),
    ],
)
def test_a_loop_without_any_reset_is_found(step: str, found: bool) -> None:
    """What may reset the gradients in another way, or in a file of the user's, is left alone."""
    text = _NEVER.format(step=step)
    assert bool(list(never_reset(ast.parse(text), text, frozenset({"torch"})))) is found


@pytest.mark.parametrize(
    ("before", "found"), [("pass", True), ("model = build()", False), ("model = clone()", False)]
)
def test_a_step_in_a_function_that_a_loop_calls_is_read_with_the_loop(
    before: str, found: bool
) -> None:
    """A new model for each round has no old gradients, wherever it is made."""
    text = f"""
import torch

def build():
    return AutoModel.from_pretrained("m")

def clone():
    return build()

def train(model, batch):
    model(**batch).loss.backward()
    optimizer.step()

for batch in loader:
    {before}
    train(model, batch)
"""
    assert bool(list(never_reset(ast.parse(text), text, frozenset({"torch"})))) is found
