"""InfoNCE and SigLIP against numbers worked by hand, the full matrix and finite differences; what a retrieval finds."""

from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from neuroimagen.contrastive.losses import found, info_nce, siglip

I2 = torch.eye(2, dtype=torch.float64)


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def full_info_nce(z, v, ids, scale):
    """By PyTorch's cross-entropy with soft targets, of the whole matrix and of its transpose."""
    logits, same = scale * z @ v.T, (ids[:, None] == ids).to(z)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def full_siglip(z, v, ids, scale, bias):
    """By PyTorch's binary cross-entropy of the whole matrix."""
    same = (ids[:, None] == ids).to(z)
    return F.binary_cross_entropy_with_logits(scale * z @ v.T + bias, same, reduction="sum") / len(z)


def example(n: int, seed: int, pictures: int):
    generator = torch.Generator().manual_seed(seed)
    z, v = (F.normalize(torch.randn(n, 5, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    ids = torch.randint(0, pictures, (n,), generator=generator)
    return z.requires_grad_(), v[ids % n], ids


def test_info_nce_by_hand():
    """Logits [[ln 3, 0], [0, ln 3]]: each softmax gives the truth 3/4."""
    assert info_nce(I2, I2, torch.arange(2), number(log(3))).item() == pytest.approx(log(4 / 3))
    # Trials 0 and 1 of one picture, scale ln 2: e^logits [[2, 2, 1], [2, 2, 1], [1, 1, 2]]. Evenly spread targets:
    # -ln(2/5) twice, -ln(2/4) once; the columns are the same.
    twins = I2[[0, 0, 1]]
    soft = info_nce(twins, twins, torch.tensor([7, 7, 4]), number(log(2))).item()
    assert soft == pytest.approx((2 * log(5 / 2) + log(2)) / 3)


def test_rows_and_columns_differ():
    """e^logits [[2, 1], [2, 1]]: rows give the truth 2/3 and 1/3, columns 1/2 each."""
    z, v = I2[[0, 0]], I2
    by_hand = (log(3 / 2) + log(3) + 2 * log(2)) / 4
    assert info_nce(z, v, torch.arange(2), number(log(2))).item() == pytest.approx(by_hand)


def test_siglip_by_hand():
    """Logits ln 4 - ln 2 on the diagonal, -ln 2 beside it: σ gives the truth 2/3 for each of the four pairs."""
    assert siglip(I2, I2, torch.arange(2), number(log(4)), number(-log(2))).item() == pytest.approx(2 * log(3 / 2))
    assert siglip(I2, I2, torch.zeros(2), number(log(4)), number(-log(2))).item() == pytest.approx(log(3 / 2) + log(3))


@given(
    st.integers(1, 12), st.integers(0, 99), st.integers(1, 12), st.integers(1, 13), st.sampled_from([1.0, 14.3, 100.0])
)
def test_in_chunks_they_are_those_of_the_full_matrix(n, seed, pictures, chunk, scale):
    z, v, ids = example(n, seed, pictures)
    s, b = number(scale).requires_grad_(), number(-3.0).requires_grad_()
    for ours, theirs, inputs in (
        (info_nce(z, v, ids, s, chunk), full_info_nce(z, v, ids, s), [z, s]),
        (siglip(z, v, ids, s, b, chunk), full_siglip(z, v, ids, s, b), [z, s, b]),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        for a, e in zip(torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * theirs, inputs), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-11)


def test_gradients_are_finite_differences():
    z, v, ids = example(6, 1, 4)
    s, b = number(5.0).requires_grad_(), number(-1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, s: info_nce(z, v, ids, s, 4), (z, s))
    assert torch.autograd.gradcheck(lambda z, s, b: siglip(z, v, ids, s, b, 4), (z, s, b))


def test_no_matrix_of_all_pairs_is_made():
    """The largest tensor of a step has chunk x B numbers."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.size = max(self.size, tensor.numel())
            return out

    z, v, ids = example(64, 0, 40)
    with Largest() as seen:
        (info_nce(z, v, ids, number(9.0), 8) + siglip(z, v, ids, number(9.0), number(-9.0), 8)).backward()
    assert seen.size == 8 * 64


def test_what_is_found():
    gallery = torch.eye(7)
    z = torch.tensor([[0.9, 0.1, 0, 0, 0, 0, 0], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0], [0] * 7, [torch.nan] * 7])
    truth = torch.tensor([0, 4, 2, 1])  # the nearest; the fifth; all are as near; no number
    assert found(z, gallery, truth).tolist() == [1, 2, 4]
    assert found(z, gallery, torch.tensor([0, 5, 2, 1]), chunk=3).tolist() == [1, 1, 4]
    assert found(z[:0], gallery, truth[:0]).tolist() == [0, 0, 0]
