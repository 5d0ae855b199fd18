"""Properties of the outer step: what it computes, what it leaves alone, and who earns nothing."""

import dataclasses
import logging

import pytest
import torch
from torch.func import functional_call

from thurl.errors import UsageError
from thurl.training.bilevel import BilevelConfig, BilevelStep
from thurl.training.bilevel.mathematics import AdamState, adam_update, from_raw, raw_gradient, to_raw
from thurl.training.bilevel.step import random_state


TASKS = ("first", "second", "third")
CONFIG = BilevelConfig(TASKS, ("first",))


class Net(torch.nn.Module):
    """Two layers with BatchNorm, dropout and a parameter that no loss uses."""

    def __init__(self, dtype=torch.float64, dropout=0.3):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(5, 16), torch.nn.BatchNorm1d(16), torch.nn.Tanh(), torch.nn.Dropout(dropout)
        )
        self.heads = torch.nn.Linear(16, 3)
        self.unused = torch.nn.Parameter(torch.ones(2))
        self.frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.to(dtype)

    def forward(self, x):
        return self.frozen * self.heads(self.body(x.to(self.heads.weight.dtype)))


def batch(seed, count=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, size, dtype=dtype, generator=generator) for size in (5, 3))


def losses(net, absent=()):
    def compute(batch):
        x, y = batch
        values = ((net(x) - y) ** 2).mean(dim=0)
        present = torch.tensor([name not in absent for name in TASKS])
        return values * present, present

    return compute


def sgd(net, **options):
    return torch.optim.SGD(net.parameters(), **{"lr": 0.1, **options})


def oracle(net, optimizer, weights, train, outer, scale=None):
    """dF/dlambda by differentiating through the virtual step, written independently; no randomness."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters() if p.requires_grad}
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    own = {name: (group, p) for group in optimizer.param_groups for name, p in net.named_parameters()
           if any(p is other for other in group["params"])}  # fmt: skip
    weights = weights.clone().requires_grad_()

    def values(parameters, data):
        output = functional_call(net, {**parameters, **buffers}, (data[0],))
        return ((output - data[1]) ** 2).mean(dim=0)

    total = (weights * values(parameters, train)).sum()
    gradients = torch.autograd.grad(total, list(parameters.values()), create_graph=True, allow_unused=True)
    moved = {}
    for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
        group, parameter = own[name]
        gradient = torch.zeros_like(value) if gradient is None else gradient
        state = optimizer.state.get(parameter, {})
        if "momentum_buffer" in state:
            gradient = gradient + group["momentum"] * state["momentum_buffer"]
        if scale is not None:
            gradient = gradient * scale[name]
        moved[name] = value - group["lr"] * (gradient + group["weight_decay"] * value)
    (result,) = torch.autograd.grad(values(moved, outer)[0], weights)
    return result


def adamw(net):
    decayed, others = [net.body[0].weight, net.heads.weight], [net.body[0].bias, net.heads.bias, net.unused]
    norm = list(net.body[1].parameters())
    groups = [{"params": decayed, "weight_decay": 0.1, "lr": 0.05}, {"params": others + norm, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.02)


OPTIMIZERS = {
    "sgd": lambda net: sgd(net, weight_decay=0.05),
    "momentum": lambda net: sgd(net, momentum=0.9),
    "adamw in two groups": adamw,
}


def warmed(net, optimizer):
    """A few ordinary steps, so that the optimizer has a state."""
    for seed in range(3):
        optimizer.zero_grad()
        losses(net)(batch(seed))[0].sum().backward()
        optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("method", ["two_forward", "autograd", "exact"])
def test_outer_gradient_against_differentiating_through_the_virtual_step(name, method):
    net = Net(dropout=0.0)
    optimizer = OPTIMIZERS[name](net)
    warmed(net, optimizer)
    outer = BilevelStep(dataclasses.replace(CONFIG, method=method, init={"second": 0.5, "third": 2.0}))
    expected = oracle(net, optimizer, outer.weights, batch(10), batch(11))
    report = outer.step(net, optimizer, losses(net), [batch(10)], [batch(11)])
    found = -report.alpha * report.hypergradient
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=scale * (1e-12 if method == "exact" else 1e-4))
    assert torch.equal(found.sign(), expected.sign())


def test_adams_scale_in_the_virtual_step():
    net = Net(dropout=0.0)
    optimizer = adamw(net)
    warmed(net, optimizer)
    scale = {}
    for group in optimizer.param_groups:
        for name, parameter in net.named_parameters():
            state = optimizer.state.get(parameter)
            if state and any(parameter is other for other in group["params"]):
                corrected = state["exp_avg_sq"] / (1 - 0.999 ** state["step"].item())
                scale[name] = 1 / (corrected.sqrt() + 1e-8)
    scale["unused"] = torch.ones(2)
    expected = oracle(net, optimizer, torch.ones(3, dtype=torch.float64), batch(10), batch(11), scale)
    reports = {}
    for virtual in ("adam", "sgd"):
        outer = BilevelStep(dataclasses.replace(CONFIG, method="exact", virtual=virtual))
        report = outer.step(net, optimizer, losses(net), [batch(10)], [batch(11)])
        reports[virtual] = -report.alpha * report.hypergradient
    torch.testing.assert_close(reports["adam"], expected, rtol=1e-11, atol=0)
    assert not torch.allclose(reports["sgd"], expected, rtol=0.1)


def test_two_forward_passes_give_the_official_value():
    reports = []
    for method in ("two_forward", "autograd"):
        net = Net()
        warmed(net, sgd(net))
        torch.manual_seed(1)
        outer = BilevelStep(dataclasses.replace(CONFIG, method=method))
        reports.append(outer.step(net, sgd(net), losses(net), [batch(10)], [batch(11)]))
    torch.testing.assert_close(reports[0].hypergradient, reports[1].hypergradient, rtol=1e-9, atol=0)
    assert bool((reports[0].hypergradient != 0).all())


def _snapshot(net):
    return {name: (value, value.data_ptr(), value.clone()) for name, value in net.state_dict(keep_vars=True).items()}


def _unchanged(net, before):
    for name, value in net.state_dict(keep_vars=True).items():
        held, place, content = before[name]
        assert value is held and value.data_ptr() == place and torch.equal(value, content), name


@pytest.mark.parametrize("method", ["two_forward", "autograd", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_buffers_and_gradients_are_left_alone(method, dtype):
    net = Net(dtype).train()
    optimizer = sgd(net, momentum=0.9)
    warmed(net, optimizer)
    losses(net)(batch(4, dtype=dtype))[0].sum().backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    before = _snapshot(net)
    outer = BilevelStep(dataclasses.replace(CONFIG, method=method))
    report = outer.step(net, optimizer, losses(net), [batch(10, dtype=dtype)], [batch(11, dtype=dtype)])
    assert not report.skipped and net.body[1].num_batches_tracked == 4
    _unchanged(net, before)
    assert all(torch.equal(net.get_parameter(name).grad, value) for name, value in gradients.items())


@pytest.mark.parametrize("call", [1, 2, 3])  # in the training, outer and first shifted pass
def test_an_error_in_a_pass_leaves_the_model_as_it_was(call):
    net = Net()
    before, calls = _snapshot(net), []

    def failing(data):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("out of memory")
        return losses(net)(data)

    with pytest.raises(RuntimeError, match="out of memory"):
        BilevelStep(CONFIG).step(net, sgd(net), failing, [batch(10)], [batch(11)])
    _unchanged(net, before)


def test_the_graph_of_the_training_pass_survives():
    """One training pass serves both the virtual and the real step: its graph is used again after the exchange."""
    net = Net()
    warmed(net, sgd(net))
    state = random_state()
    values, _ = losses(net)(batch(10))
    parameters = [p for p in net.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(values.sum(), parameters, retain_graph=True, allow_unused=True)
    outer = BilevelStep(CONFIG)
    report = outer.step(
        net, sgd(net), losses(net), [batch(10)], [batch(11)], gradients=gradients, random_states=[state]
    )
    again = torch.autograd.grad(values.sum(), parameters, allow_unused=True)
    for a, b in zip(gradients, again, strict=True):
        assert a is b is None or torch.equal(a, b)
    # And the outer step from these gradients is the one that computes them itself, dropout included.
    net = Net()
    warmed(net, sgd(net))
    torch.set_rng_state(state[0])
    itself = BilevelStep(CONFIG).step(net, sgd(net), losses(net), [batch(10)], [batch(11)])
    assert torch.equal(report.hypergradient, itself.hypergradient)


def test_dropout_drops_the_same_on_both_sides():
    """Else the difference of two masks, divided by 2 eps, would drown the gradient."""
    net = Net(dropout=0.5)
    outer = {name: BilevelStep(dataclasses.replace(CONFIG, method=name)) for name in ("two_forward", "exact")}
    found = {}
    for name, step in outer.items():
        torch.manual_seed(7)
        found[name] = step.step(net, sgd(net), losses(net), [batch(10)], [batch(11)]).hypergradient
    torch.testing.assert_close(found["two_forward"], found["exact"], rtol=1e-3, atol=1e-6)


def test_passes_that_only_measure_draw_no_random_numbers():
    """Training and outer pass draw; the two shifted ones repeat the training pass."""
    net = Net()
    torch.manual_seed(7)
    BilevelStep(CONFIG).step(net, sgd(net), losses(net), [batch(10)], [batch(11)])
    after = torch.get_rng_state()
    torch.manual_seed(7)
    losses(net)(batch(10))
    losses(net)(batch(11))
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("method", ["two_forward", "exact"])
def test_micro_batches_count_as_their_mean(method):
    net = Net(dropout=0.0).eval()  # BatchNorm of half a batch would be another function

    def halves(data):
        return [tuple(part[:4] for part in data), tuple(part[4:] for part in data)]

    config = dataclasses.replace(CONFIG, method=method)
    whole = BilevelStep(config).step(net, sgd(net), losses(net), [batch(10)], [batch(11)])
    parts = BilevelStep(config).step(net, sgd(net), losses(net), halves(batch(10)), halves(batch(11)))
    torch.testing.assert_close(parts.hypergradient, whole.hypergradient, rtol=1e-9, atol=1e-12)
    assert parts.outer_loss == pytest.approx(whole.outer_loss, rel=1e-12)


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positive", ["clamp", "none", "softplus"])
def test_an_absent_task_earns_nothing(positive):
    net = Net(dropout=0.0)
    outer = BilevelStep(dataclasses.replace(CONFIG, positive=positive, lr=0.1))
    optimizer = sgd(net)
    present = outer.step(net, optimizer, losses(net), [batch(0)], [batch(1)]).weights  # gives the moments a value
    state = {name: value.clone() for name, value in outer.state_dict().items()}
    for seed in range(3):
        report = outer.step(net, optimizer, losses(net, {"second"}), [batch(seed)], [batch(seed + 20)])
        assert report.present.tolist() == [True, False, True] and report.hypergradient[1] == 0
    assert all(torch.equal(value[1], state[name][1]) for name, value in outer.state_dict().items())
    assert report.weights[1] == present[1] and (report.weights != present).tolist() == [True, False, True]


def test_a_primary_task_without_labels_in_the_outer_batch_moves_nothing():
    net = Net()

    def outer_only(data):
        values, present = losses(net)(data)
        return (values * torch.tensor([0.0, 1.0, 1.0]), present) if data[0].shape[0] == 5 else (values, present)

    outer = BilevelStep(CONFIG)
    report = outer.step(net, sgd(net), outer_only, [batch(0)], [batch(1, count=5)])
    assert "norm 0" in report.skipped and report.weights.tolist() == [1.0, 1.0, 1.0] and report.outer_loss == 0


def test_a_loss_that_is_not_finite_moves_nothing():
    net = Net()

    def broken(data):
        values, present = losses(net)(data)
        return (values if torch.is_grad_enabled() else values / 0), present

    report = BilevelStep(CONFIG).step(net, sgd(net), broken, [batch(0)], [batch(1)])
    assert "not finite" in report.skipped and report.weights.tolist() == [1.0, 1.0, 1.0]


def _pushed_down(positive, caplog):
    """The second task predicts the opposite of the first: its weight falls."""
    net = Net(dropout=0.0)
    outer = BilevelStep(dataclasses.replace(CONFIG, positive=positive, lr=0.2, init=0.5))
    weights = []

    def opposed(data):
        output = net(data[0])[:, 0]
        return torch.stack([((output - data[1][:, 0]) ** 2).mean(), ((output + data[1][:, 0]) ** 2).mean(),
                            ((output - 1) ** 2).mean()]), None  # fmt: skip

    with caplog.at_level(logging.WARNING):
        for _ in range(12):
            weights.append(outer.step(net, sgd(net), opposed, [batch(3)], [batch(3)]).weights[1].item())
    return weights


def test_positive_none_goes_below_zero(caplog):
    assert _pushed_down("none", caplog)[-1] < -0.5 and not caplog.records


def test_positive_clamp_stops_at_zero_and_says_so_once(caplog):
    weights = _pushed_down("clamp", caplog)
    assert weights[-1] == 0 and min(weights) == 0
    said = [record.getMessage() for record in caplog.records if "'second'" in record.getMessage()]
    assert said == ["The weight of task 'second' reached 0: it works against first"]


def test_positive_softplus_stays_above_zero(caplog):
    weights = _pushed_down("softplus", caplog)
    assert 0 < weights[-1] < 0.2 and all(a > b for a, b in zip(weights, weights[1:], strict=False))


def test_softplus_and_its_chain_rule():
    weights = torch.tensor([1e-3, 0.5, 1.0, 30.0], dtype=torch.float64)
    raw = to_raw(weights, "softplus")
    torch.testing.assert_close(from_raw(raw, "softplus"), weights, rtol=1e-12, atol=0)
    variable = raw.clone().requires_grad_()
    outer_gradient = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    (from_raw(variable, "softplus") * outer_gradient).sum().backward()
    torch.testing.assert_close(raw_gradient(outer_gradient, raw, "softplus"), variable.grad)


def test_adam_is_that_of_torch_where_all_tasks_are_present():
    raw = torch.tensor([1.0, 0.3, -2.0], dtype=torch.float64)
    variable = raw.clone().requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=0.01, betas=(0.8, 0.95), eps=1e-6)
    state, everyone = AdamState.zeros(3), torch.ones(3, dtype=torch.bool)
    for seed in range(5):
        gradient = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        variable.grad = gradient.clone()
        optimizer.step()
        raw, state = adam_update(raw, gradient, state, lr=0.01, betas=(0.8, 0.95), eps=1e-6, present=everyone)
    torch.testing.assert_close(raw, variable.detach(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("positive", ["clamp", "softplus"])
def test_saved_state_goes_on_as_if_nothing_had_happened(positive):
    net = Net(dropout=0.0)
    config = dataclasses.replace(CONFIG, positive=positive)
    whole, first = BilevelStep(config), BilevelStep(config)
    for seed in range(2):
        for outer in (whole, first):
            outer.step(net, sgd(net), losses(net), [batch(seed)], [batch(seed + 5)])
    second = BilevelStep(config)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.weights, whole.weights)
    reports = [outer.step(net, sgd(net), losses(net), [batch(8)], [batch(9)]) for outer in (whole, second)]
    assert torch.equal(reports[0].weights, reports[1].weights) and reports[0].weights[0] != 1
    with pytest.raises(UsageError, match="has 3 task weights, this run 2"):
        BilevelStep(BilevelConfig(TASKS[:2], TASKS[:1])).load_state_dict(first.state_dict())


def test_the_learning_rate_in_the_outer_gradient_stops_the_weights():
    """Why `scale_by_lr` is off: at 1e-6 the official gradient drowns in Adam's eps."""
    moved = {}
    for scale_by_lr in (False, True):
        net = Net(dropout=0.0)
        outer = BilevelStep(dataclasses.replace(CONFIG, scale_by_lr=scale_by_lr, lr=1e-3))
        report = outer.step(net, sgd(net, lr=1e-9), losses(net), [batch(0)], [batch(1)])
        moved[scale_by_lr] = float((report.weights - 1).abs().max())
    assert moved[False] == pytest.approx(1e-3, rel=1e-3) and moved[True] < 3e-4


def test_when_the_weights_are_updated():
    outer = BilevelStep(dataclasses.replace(CONFIG, every=3, warmup=2))
    assert [step for step in range(10) if outer.due(step)] == [2, 5, 8]


def test_a_learning_rate_of_zero_still_has_a_direction():
    net = Net(dropout=0.0)
    report = BilevelStep(CONFIG).step(net, sgd(net, lr=0.0), losses(net), [batch(0)], [batch(1)])
    assert not report.skipped and bool((report.hypergradient != 0).all())


def test_half_precision_weights_are_refused():
    net = Net(torch.bfloat16)
    with pytest.raises(UsageError, match="torch.bfloat16.*Keep float32 weights"):
        BilevelStep(CONFIG).step(net, sgd(net), losses(net), [batch(0)], [batch(1)])


def test_settings_are_checked_all_at_once():
    with pytest.raises(UsageError) as error:
        BilevelConfig(("a", "a"), ("b",), init={"c": 1.0}, lr=0, positive="abs", betas=(1.0, 0.9), every=0)
    text = str(error.value)
    for part in (
        "`tasks` is",
        "`primary` is",
        "'c', which is no task",
        "`lr` is 0",
        "'abs'",
        "`betas`",
        "`every` is 0",
    ):
        assert part in text
    with pytest.raises(UsageError, match="`init` of 'a' is 0.*softplus.*> 0"):
        BilevelConfig(("a",), ("a",), init=0.0, positive="softplus")
    with pytest.raises(UsageError, match="`init` of 'a' is -1.0.*clamp.*>= 0"):
        BilevelConfig(("a",), ("a",), init=-1.0)
    assert BilevelConfig(["a", "b"], ["b"], init={"b": 0.1}).starts == (1.0, 0.1)
