"""Live modules under plans of ``memcli.torch.plan``: the same bits, and memory to the byte."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import memcli.torch  # noqa: E402
from memcli.errors import AnswerIsNo, BadInput  # noqa: E402
from tests.conftest import ROOT  # noqa: E402

pytestmark = pytest.mark.torch

# Seconds of a search: these networks are small.
LIMIT = 1.5


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The comparison that ``benchmarks/module_architectures.py`` makes."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    torch.manual_seed(0)
    import module_training

    return module_training


class Tied(nn.Module):
    """Words in and out by one weight; the first layer is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True) for _ in range(3)
        )
        self.out = nn.Linear(32, 40, bias=False)
        self.out.weight = self.embed.weight
        self.layers[0].requires_grad_(False)

    def forward(self, words: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(words)
        for layer in self.layers:
            x = layer(x)
        scores = self.out(x)
        loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten()) if labels is not None else 0
        return {"loss": loss, "scores": scores}


class Branching(nn.Module):
    """Masks only where the mask has zeros, as Hugging Face's decoders do; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.scale = 2.0

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.calls += 1
        for layer in self.layers:
            x = torch.tanh(layer(x)) * self.scale
            if mask is not None and not mask.all():
                x = x.masked_fill(mask.logical_not(), 0.0)
        return x


def same_step(plain: nn.Module, model: nn.Module, *args: Any, **kwargs: Any) -> bool:
    """Whether a step of each gives the same gradients."""
    for module in (plain, model):
        module.zero_grad()
        torch.manual_seed(1)
        output = module(*args, **kwargs)
        (output if isinstance(output, Tensor) else output["loss"]).sum().backward()
    return all(
        torch.equal(a.grad, b.grad)
        for a, b in zip(plain.parameters(), model.parameters(), strict=True)
        if a.grad is not None and b.grad is not None
    )


@pytest.mark.parametrize("name", ["resnet", "vit", "tagger", "tied"])
def test_a_module_under_a_plan_trains_to_the_same_bits_in_the_memory_planned(
    benchmarks: Any, name: str
) -> None:
    """Two steps beside a copy without a plan; estimates are the measured bytes."""
    import module_networks as networks

    words = torch.randint(0, 40, (4, 20))
    cases = {
        # ReLU and the residual sum in place, BatchNorm, convolutions between the sum's operands
        "resnet": lambda: benchmarks.Case(
            networks.ResNet(blocks=(1, 2)), (torch.randn(2, 3, 32, 32),)
        ),
        # attention as one operator, Dropout(0.0), which hands on
        "vit": lambda: benchmarks.Case(networks.ViT(depth=3), (torch.randn(2, 3, 64, 64),)),
        "tagger": lambda: benchmarks.Case(networks.Tagger(), (words, words % 6)),
        "tied": lambda: benchmarks.Case(
            Tied(), (words,), {"labels": words}, autocast=torch.bfloat16
        ),
    }
    result = benchmarks.compared(cases[name](), "60%", time_limit=LIMIT)
    assert result.refused == ""
    assert result.wrong == []
    assert result.planned <= 0.6 * result.baseline
    if name != "tagger":  # its layers have work space of oneDNN's
        assert (result.measured, result.measured_baseline) == (result.planned, result.baseline)


def test_the_object_stays_the_users_own_and_is_given_back(tmp_path: Path) -> None:
    """Class, attributes, signature, copies and pickles, until the plan is taken off."""
    torch.manual_seed(0)
    model = Branching().train()
    x = torch.randn(8, 16)
    plan = memcli.torch.plan(model, x, budget="80%", time_limit=LIMIT)
    plain = copy.deepcopy(model)
    before = dict(model.__dict__)
    applied = plan.apply(model)
    assert applied is model
    assert isinstance(model, Branching)
    assert type(model).__name__ == "Branching"
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
    assert list(model.state_dict()) == list(plain.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.memory(x).peak == plan.planned_bytes
        assert same_step(copy.deepcopy(plain), other, x)
    seen: list[int] = []
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    assert same_step(plain, model, x)
    assert torch.equal(plain.calls, model.calls)  # the second run changed no buffer
    assert torch.equal(plain.eval()(x), model.eval()(x))
    assert len(seen) == 2
    handle.remove()
    path = tmp_path / "planned.pt2"
    plan.save(path)
    extra = {"memcli.plan.json": ""}
    program = torch.export.load(path, extra_files=extra)
    marks = [mark for _, _, mark in json.loads(extra["memcli.plan.json"])["nodes"]]
    assert len(marks) == sum(node.op == "call_function" for node in program.graph.nodes)
    assert 0 < sum(mark != "kept" for mark in marks) < len(marks)
    loaded = memcli.torch.load(path)
    assert loaded.memory(x).peak == pytest.approx(plan.planned_bytes, rel=0.01)
    assert list(loaded.state_dict()) == list(plain.state_dict())
    plan.remove(model)
    assert type(model) is Branching
    assert model.__dict__.keys() == before.keys()
    with plan.apply(model.train()) as under:
        assert under.memory(x).peak == plan.planned_bytes
    assert type(model) is Branching


def test_a_part_of_the_users_that_is_called_memory_stays_theirs() -> None:
    """The plan's figure is had from the plan then."""

    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))

        def forward(self, x: Tensor) -> Tensor:
            return self.memory(torch.tanh(x)).sigmoid()

    torch.manual_seed(0)
    model, x = Remembers().train(), torch.randn(32, 16)
    plain = copy.deepcopy(model)
    plan = memcli.torch.plan(model, x, budget="90%", time_limit=LIMIT)
    plan.apply(model)
    assert isinstance(model.memory, nn.Sequential)
    assert plan.memory(model, x).peak == plan.planned_bytes
    assert same_step(plain, model, x)


def test_other_calls_are_recorded_by_what_forward_reads_of_them() -> None:
    """Values of inputs, plain attributes and shapes; each call runs what the module runs."""
    torch.manual_seed(0)
    model = Branching().train()
    plain = copy.deepcopy(model)
    x, ones = torch.randn(8, 16), torch.ones(8, 16, dtype=torch.bool)
    some = torch.rand(8, 16) > 0.5
    plan = memcli.torch.plan(model, x, mask=ones, budget="80%", time_limit=LIMIT)
    plan.apply(model)
    assert same_step(plain, model, x, mask=ones)
    with pytest.warns(UserWarning, match="other operators"):
        assert same_step(plain, model, x, mask=some)
    assert same_step(plain, model, torch.randn(3, 16), mask=ones[:3])
    plain.scale = model.scale = 3.0
    assert same_step(plain, model, x, mask=ones)


def test_results_and_errors_are_those_of_the_command() -> None:
    """JSON, the table, budgets in bytes and of everything, and plans that there are not."""
    model = Branching().train()
    x = torch.randn(64, 16)
    plan = memcli.torch.plan(
        model, x, budget=30_000, loss=lambda y: y.square().mean(), time_limit=LIMIT
    )
    said = plan.to_json()
    assert said["memory"]["planned_bytes"] <= 30_000 < said["memory"]["baseline_bytes"]
    assert said["model"]["path"] == "Branching"
    assert said["shapes"] == {"x": [64, 16]}
    assert "planned" in str(plan)
    assert "lambda" in " ".join(said["notes"])
    fixed = 4 * 4 * (6 * 16 * 17) + 4 * 64 * 16 + 8  # weights, gradients, Adam's two, x, calls
    whole = memcli.torch.plan(model, x, memory=fixed + 30_000, optimizer="adamw", time_limit=LIMIT)
    assert 20_000 < whole.planned_bytes <= 30_000
    with pytest.raises(AnswerIsNo, match="the least is") as error:
        memcli.torch.plan(model, x, budget="1KiB", time_limit=LIMIT)
    assert error.value.nearest["memory"]["planned_bytes"] > 1024
    with pytest.raises(AnswerIsNo, match="parameters"):
        memcli.torch.plan(model, x, memory="1KiB")
    with pytest.raises(BadInput, match="evaluation mode"):
        memcli.torch.plan(model.eval(), x)


def test_the_largest_batch_of_a_module_fits_and_one_more_does_not() -> None:
    """Both answers by the module's own figures."""
    torch.manual_seed(0)
    model = Branching().train()
    found = memcli.torch.fit(
        model, lambda n: {"x": torch.randn(n, 16)}, memory="256KiB", time_limit=LIMIT
    )
    assert 0 < found.baseline_batch < found.batch
    fixed = found.fitted.planned.breakdown.total - found.fitted.planned.breakdown.pool
    x = torch.randn(found.batch, 16)
    assert found.plan.apply(model).memory(x=x).peak + fixed <= 256 * 1024
    inputs = 64 * (found.batch - found.baseline_batch)
    plain = model.memory(x=torch.randn(found.baseline_batch, 16), plan=False).peak
    more = model.memory(x=torch.randn(found.baseline_batch + 1, 16), plan=False).peak
    assert plain + fixed - inputs <= 256 * 1024 < more + fixed - inputs + 64


class Values(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * 2 if y.sum() > 0 else y


class Draws(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.rand(()) < 0.5 else x * self.weight.sum()


class Overwrites(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return super().forward(x)


class Checkpoints(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(super().forward, x, use_reentrant=False)


class Cached(nn.Linear):
    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        return super().forward(x)


class Cache:
    def __init__(self) -> None:
        self.keys: list[Tensor] = []


@pytest.mark.parametrize(
    ("kind", "kwargs", "said"),
    [
        (Values, {}, r"reads the value of a tensor that the network computes.*test_module_plans"),
        (Draws, {}, "branches on random numbers"),
        (Overwrites, {}, "changes its input x in place"),
        (Checkpoints, {}, "recomputes by itself"),
        (Cached, {"cache": Cache()}, "a Cache, an object that it may change"),
    ],
)
def test_what_no_graph_can_hold_is_refused_in_its_own_words(
    kind: type[nn.Module], kwargs: dict[str, Any], said: str
) -> None:
    """And nothing of the module is changed."""
    model = kind(4, 4).train()
    x = torch.randn(3, 4)
    given, weight = x.clone(), model.weight
    with pytest.raises(BadInput, match=said) as error:
        memcli.torch.plan(model, x, **kwargs)
    assert error.value.hint
    assert torch.equal(x, given)
    assert model.weight is weight
    assert type(model) is kind


class Rounded(torch.autograd.Function):
    """The straight-through estimator: forward rounds, backward hands on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 1)


class OfItsOwn(nn.Module):
    """A backward function of the user's, a part under autocast and one without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            with torch.no_grad():
                scale = x.abs().amax(1, keepdim=True)
            x = F.gelu(layer(Rounded.apply(x))) * scale
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = x + layer(x).float()
        return x


def test_parts_with_rules_of_their_own_keep_them(benchmarks: Any) -> None:
    """Backward functions of the user's, autocast inside of forward, ``no_grad``."""
    case = benchmarks.Case(OfItsOwn(), (torch.randn(64, 32),))
    result = benchmarks.compared(case, "60%", time_limit=LIMIT)
    assert (result.refused, result.wrong) == ("", [])
    assert (result.measured, result.measured_baseline) == (result.planned, result.baseline)


class TestPackages:
    """Models and trainers of other packages, where these are installed."""

    def gpt2(self) -> Any:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        sizes = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
        config = transformers.GPT2Config(vocab_size=64, bos_token_id=0, eos_token_id=0, **sizes)
        return transformers.GPT2LMHeadModel(config).train()

    def llama(self) -> Any:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        return transformers.LlamaForCausalLM(config).train()

    @pytest.mark.parametrize("name", ["gpt2", "llama"])
    def test_decoders_of_hugging_face(self, benchmarks: Any, name: str) -> None:
        """With the loss, an attention mask and the cache that they make by default."""
        words = torch.randint(1, 64, (2, 16))
        kwargs = {"input_ids": words, "labels": words, "attention_mask": torch.ones_like(words)}
        case = benchmarks.Case(getattr(self, name)(), (), kwargs)
        result = benchmarks.compared(case, "70%", time_limit=LIMIT)
        assert (result.refused, result.wrong) == ("", [])

    def test_the_trainer_trains_it_unchanged(self, tmp_path: Any) -> None:
        """Losses and parameters of ``transformers.Trainer``; saved, and generated from."""
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        model = self.gpt2()
        words = torch.randint(1, 64, (2, 16))
        plan = memcli.torch.plan(
            model, input_ids=words, labels=words, budget="80%", time_limit=LIMIT
        )
        plain = copy.deepcopy(model)
        plan.apply(model)
        data = [{"input_ids": row, "labels": row} for row in torch.randint(1, 64, (6, 16))]
        losses = []
        for module in (plain, model):
            settings = transformers.TrainingArguments(
                str(tmp_path),
                per_device_train_batch_size=2,
                max_steps=3,
                report_to=[],
                use_cpu=True,
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
                bf16=True,
            )
            trainer = transformers.Trainer(model=module, args=settings, train_dataset=data)
            trainer.train()
            losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
        assert losses[0] == losses[1]
        assert len(losses[0]) == 3
        assert all(map(torch.equal, plain.parameters(), model.parameters()))
        model.save_pretrained(tmp_path)
        again = type(plain).from_pretrained(tmp_path)
        assert all(map(torch.equal, again.parameters(), model.parameters()))
        made = model.eval().generate(words, max_new_tokens=2, do_sample=False, pad_token_id=0)
        assert made.shape == (2, 18)
