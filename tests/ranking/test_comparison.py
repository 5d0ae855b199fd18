import json
from pathlib import Path

import pytest
import torch

from thurl.ranking import fidelity, preference_probability


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vqr1_rewards.json").read_text())


def _column(name: str, dtype=torch.float64) -> torch.Tensor:
    return torch.tensor([case[name] for case in GOLDEN["fidelity_cases"]], dtype=dtype)


def test_golden_preference_and_fidelity_in_float64():
    p = preference_probability(_column("pred1"), _column("pred2"), _column("var1"), _column("var2"))
    torch.testing.assert_close(p, _column("p_f64"), atol=1e-9, rtol=0)
    torch.testing.assert_close(fidelity(p, _column("gt")), _column("reference_f64"), atol=1e-9, rtol=0)


def test_golden_fidelity_in_float32_as_the_official_code_computes_it():
    f32 = torch.float32
    p = preference_probability(*(_column(name, f32) for name in ("pred1", "pred2", "var1", "var2")))
    result = fidelity(p, _column("gt", f32))
    assert result.dtype == f32
    torch.testing.assert_close(result, _column("official_f32", f32), atol=1e-4, rtol=0)


def test_known_values():
    # arXiv 2505.14460 with the official eps of 1e-6 in all three places.
    expected = {(1.0, 1.0): 1.0010, (0.0, 1.0): 0.0020, (0.5, 1.0): 0.7081, (0.5, 0.5): 1.000002, (1.0, 0.5): 0.7081}
    for (p, g), value in expected.items():
        assert float(fidelity(torch.tensor(p), torch.tensor(g))) == pytest.approx(value, abs=1e-4)
    # Both variances zero: sqrt(eps) = 1e-3 is one standard deviation.
    assert float(preference_probability(3.001, 3.0, 0.0, 0.0)) == pytest.approx(0.8413, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_shape_and_symmetry(dtype):
    a = torch.linspace(1, 5, 4, dtype=dtype)[:, None]
    b = torch.linspace(1, 5, 3, dtype=dtype)[None, :]
    p = preference_probability(a, b, 0.3, 0.2)
    assert p.dtype == dtype and p.shape == (4, 3)
    swapped = preference_probability(b, a, 0.2, 0.3)
    tolerance = {torch.float64: 1e-15, torch.float32: 1e-6}.get(dtype, 1e-2)
    torch.testing.assert_close(p + swapped, torch.ones_like(p), atol=tolerance, rtol=0)
    assert bool((p >= 0).all() and (p <= 1).all())


def test_numbers_and_integer_tensors():
    assert preference_probability(4, 2, 1, 1).dtype == torch.get_default_dtype()
    p = preference_probability(torch.tensor([4, 2]), 3, 1, 1)
    assert p.dtype.is_floating_point and float(p.sum()) == pytest.approx(1.0)


def test_gradients_against_finite_differences():
    generator = torch.Generator().manual_seed(0)
    a, b, va, vb = (torch.rand(5, dtype=torch.float64, generator=generator) + 0.5 for _ in range(4))
    inputs = [tensor.requires_grad_() for tensor in (a, b, va, vb)]
    g = torch.tensor([1.0, 0.0, 0.5, 0.3, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: fidelity(preference_probability(*x), g), inputs)


def test_gradient_stays_finite_at_certainty():
    mean = torch.tensor([1e4, -1e4], dtype=torch.float32, requires_grad=True)
    fidelity(preference_probability(mean, 0.0, 0.0, 0.0), torch.tensor([0.0, 1.0])).sum().backward()
    assert bool(torch.isfinite(mean.grad).all())
