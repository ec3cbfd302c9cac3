"""Rows that run out of memory are done again in halves, and the update is the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_project import small_settings
from test_update import LIVELY, Descent, _error, _samples, make_policy

from cahl_core.errors import MemoryLimitError
from cahl_core.policy.packing import Packed
from cahl_core.training import update as update_module
from cahl_core.training.distributed import Workers
from cahl_core.training.row_budget import RowBudget
from cahl_core.training.update import update


class Refusal:
    """Lets rows of at most ``limit`` tokens through; fails in the forward or in the backward pass."""

    def __init__(self, limit: int, monkeypatch: pytest.MonkeyPatch, within: str) -> None:
        self.limit, self.within, self.refused = limit, within, 0
        self.real: Callable[..., Any] = update_module.row_logprobs
        monkeypatch.setattr(update_module, "row_logprobs", self)

    def __call__(self, policy: Any, row: Packed, *args: Any) -> Any:
        too_long = len(row) > self.limit
        if too_long and self.within == "forward":
            self._refuse()
        scored = self.real(policy, row, *args)
        if too_long and torch.is_grad_enabled():
            # some of the adapter's gradients are added up by then
            parameter = policy.parameters("planner")[2]
            handle = parameter.register_post_accumulate_grad_hook(lambda p: self._refuse())
            self.hooks = [*getattr(self, "hooks", []), handle]
        else:
            for handle in getattr(self, "hooks", []):
                handle.remove()
        return scored

    def _refuse(self) -> None:
        self.refused += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


@pytest.mark.parametrize("within", ["forward", "backward"])
@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_gradients_equal_those_of_an_undisturbed_run(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, within: str, importance: str
) -> None:
    settings = small_settings(
        row_tokens=4000, inner_epochs=2, importance=importance, loss_type="gspo", planner=LIVELY
    )
    calm, disturbed = (Descent(make_policy(tiny_backbone), "planner") for _ in range(2))
    samples = _samples(calm.policy, count=8, noise=0.1)
    workers = Workers()
    expected = update({"planner": samples}, {"planner": calm}, settings, 0, workers)["planner"]
    refusal = Refusal(40, monkeypatch, within)
    said: list[str] = []
    budget = RowBudget(settings, said.append)
    found = update(
        {"planner": samples}, {"planner": disturbed}, settings, 0, workers, budget=budget
    )["planner"]
    assert refusal.refused == found.oom_splits == budget.splits > 0
    for one, other in zip(calm.gradients, disturbed.gradients, strict=True):
        assert _error(other, one) < 1e-5
    assert len(calm.gradients) == len(disturbed.gradients) == 2
    first, second = expected.metrics(workers), found.metrics(workers)
    for name in set(first) - {"packed_tokens", "oom_splits"}:
        assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-5), name
    # said once for every change, and kept
    assert len(said) == len(set(said)) <= budget.splits
    assert f"at most {budget.tokens} tokens" in said[-1]
    assert "CUDA out of memory. Tried to allocate 2.00 GiB.)" in said[0]
    assert budget.tokens <= 40 or max(len(s.prompt) for s in samples) > 40


def test_the_smaller_budget_is_kept_and_nothing_fails_again(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(row_tokens=4000, planner=LIVELY)
    trainee = Descent(make_policy(tiny_backbone), "planner")
    samples = _samples(trainee.policy, count=8)
    refusal = Refusal(40, monkeypatch, "forward")
    budget = RowBudget(settings)
    for expected in (True, False):
        before = refusal.refused
        update({"planner": samples}, {"planner": trainee}, settings, 0, Workers(), budget=budget)
        assert (refusal.refused > before) == expected


def test_a_single_sequence_that_does_not_fit_names_what_to_change(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainee = Descent(make_policy(tiny_backbone), "planner")
    samples = _samples(trainee.policy)
    Refusal(5, monkeypatch, "backward")
    with pytest.raises(MemoryLimitError, match=r"one sequence of \d+ tokens does not fit") as found:
        settings = small_settings(planner={"kl_weight": 0.0})
        update({"planner": samples}, {"planner": trainee}, settings, 0, Workers())
    assert "model.gradient_checkpointing=true" in found.value.hint
    assert all(p.grad is None for p in trainee.parameters)


def test_sharded_weights_are_not_split_but_explained(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(row_tokens=4000)
    trainee = Descent(make_policy(tiny_backbone), "planner")
    Refusal(40, monkeypatch, "forward")
    budget = RowBudget(settings, divisible=False)
    with pytest.raises(MemoryLimitError, match=r"a packed row of .* does not fit") as found:
        update(
            {"planner": _samples(trainee.policy)},
            {"planner": trainee},
            settings,
            0,
            Workers(),
            budget=budget,
        )
    assert "lower train.row_tokens (now 4000)" in found.value.hint


def test_other_failures_pass_through_and_leave_no_gradient(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainee = Descent(make_policy(tiny_backbone), "planner")
    monkeypatch.setattr(Refusal, "_refuse", lambda self: 1 / 0)
    Refusal(5, monkeypatch, "backward")
    samples = _samples(trainee.policy)
    with pytest.raises(ZeroDivisionError):
        settings = small_settings(planner={"kl_weight": 0.0})
        update({"planner": samples}, {"planner": trainee}, settings, 0, Workers())
    assert all(p.grad is None for p in trainee.parameters)


def test_a_prompt_over_the_budget_has_a_row_of_its_own_and_is_named_once(
    tiny_backbone: Path,
) -> None:
    settings = small_settings(row_tokens=18, planner=LIVELY)
    packed, whole = (Descent(make_policy(tiny_backbone), "planner") for _ in range(2))
    samples = _samples(packed.policy)
    said: list[str] = []
    budget = RowBudget(settings, said.append)
    for _ in range(2):
        update({"planner": samples}, {"planner": packed}, settings, 0, Workers(), budget=budget)
    long = small_settings(row_tokens=4000, planner=LIVELY)
    update({"planner": samples}, {"planner": whole}, long, 0, Workers())
    assert _error(packed.gradients[0], whole.gradients[0]) < 1e-5
    assert said and "is over train.row_tokens=18" in said[0]
    assert len(said) == len(set(said)) <= len(samples)


LIMITED = """
import resource, sys, types
sys.path[:0] = [{tests!r}, {unit!r}]
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_update import make_policy, _samples, Descent
from small_project import small_settings
from cahl_core.policy.engine import Completion
from cahl_core.training.distributed import Workers
from cahl_core.training.row_budget import RowBudget
from cahl_core.training.tree import Sample
from cahl_core.training.update import update

settings = small_settings(row_tokens=40000, planner={{"kl_weight": 0.0}})
policy = make_policy(Path({folder!r}))
samples = []
for i in range(24):
    tokens = [3 + (i * 31 + t * 7) % 250 for t in range(700)]
    done = Completion(tokens, [-5.0] * 700, "", True)
    samples.append(Sample([*range(10, 40), i + 3], done, advantage=(-1.0) ** i))

def gradients(budget):
    trainee = Descent(make_policy(Path({folder!r})), "planner")
    update({{"planner": samples}}, {{"planner": trainee}}, settings, 0, Workers(), budget=budget)
    return trainee.gradients[0]

plain = gradients(RowBudget(small_settings(row_tokens=1500)))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {room}, resource.RLIM_INFINITY))
budget = RowBudget(settings, print)
found = gradients(budget)
error = float((found - plain).norm() / plain.norm())
print("splits", budget.splits, "error", error)
assert budget.splits > 0 and error < 1e-5
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux only")
def test_a_real_refusal_of_the_system_ends_in_the_same_gradients(tiny_backbone: Path) -> None:
    unit = Path(__file__).parent
    code = LIMITED.format(
        tests=str(unit.parents[1]), unit=str(unit), folder=str(tiny_backbone), room=40 * 2**20
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ran out of memory" in done.stdout
