"""The algebra of the chunk-parallel passes in float64, forward and all gradients, against the sequential reference."""

import pytest
import torch

from src.ops.selective_scan.inputs import Direction, ScanInputs
from src.ops.selective_scan.reference import selective_scan_reference, step_size

B, E, N = 2, 5, 4


def passes(u, delta, A, Bm, C, D, bias, z, grad, T):
    """(out, gradients of the eight inputs) by end states, a carry over chunks, and every chunk by itself."""
    L = u.shape[-1]
    dt, slope = step_size(delta, bias, True), torch.sigmoid(delta + bias[:, None])
    chunks = [range(low, min(low + T, L)) for low in range(0, L, T)]
    decay = [torch.exp(dt[..., t, None] * A) for t in range(L)]
    push = [(dt * u)[..., t, None] * Bm[:, None, :, t] for t in range(L)]
    whole = [torch.exp(A * dt[..., c.start : c.stop].sum(-1)[..., None]) for c in chunks]  # a chunk's decay
    end = []
    for c in chunks:
        h = torch.zeros(B, E, N).to(u)
        for t in c:
            h = decay[t] * h + push[t]
        end.append(h)
    entering = [torch.zeros_like(end[0])]
    for k in range(len(chunks) - 1):
        entering.append(whole[k] * entering[k] + end[k])
    before, y = [None] * L, torch.empty_like(u)
    for c, h in zip(chunks, entering):
        for t in c:
            before[t] = h
            h = decay[t] * h + push[t]
            y[..., t] = (h * C[:, None, :, t]).sum(-1) + D * u[..., t]
    gate = torch.sigmoid(z)
    g = grad * z * gate
    leaving = []  # by each chunk alone: the gradient of the state that enters it
    for c in chunks:
        dh = torch.zeros_like(end[0])
        for t in reversed(c):
            dh = (dh + g[..., t, None] * C[:, None, :, t]) * decay[t]
        leaving.append(dh)
    behind = [torch.zeros_like(end[0]) for _ in chunks]
    for k in reversed(range(len(chunks) - 1)):
        behind[k] = leaving[k + 1] + whole[k + 1] * behind[k + 1]
    du, ddelta, dB, dC = (torch.empty_like(x) for x in (u, delta, Bm, C))
    dA = torch.zeros(B, E, N).to(u)
    for c, dh in zip(chunks, behind):
        for t in reversed(c):
            dh = dh + g[..., t, None] * C[:, None, :, t]
            dC[:, :, t] = (g[..., t, None] * (decay[t] * before[t] + push[t])).sum(1)
            dB[:, :, t] = (dh * (dt * u)[..., t, None]).sum(1)
            dx = (dh * Bm[:, None, :, t]).sum(-1)
            dh = dh * decay[t]
            through = dh * before[t]
            dA += through * dt[..., t, None]
            du[..., t] = dx * dt[..., t] + D * g[..., t]
            ddelta[..., t] = ((through * A).sum(-1) + dx * u[..., t]) * slope[..., t]
    dz = grad * y * gate * (1 + z * (1 - gate))
    return y * z * gate, (du, ddelta, dA.sum(0), dB, dC, (g * u).sum((0, 2)), ddelta.sum((0, 2)), dz)


@pytest.mark.parametrize(("length", "T"), [(77, 16), (64, 16), (16, 16), (5, 16), (33, 1)])
def test_chunks_side_by_side_give_the_sequential_scan(length, T):
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    along = [new(B, E, length), new(B, E, length)]
    A = -torch.rand(E, N, generator=generator, dtype=torch.float64) * 4
    tensors = [*along, A, new(B, N, length), new(B, N, length), new(E), new(E), new(B, E, length)]
    leaves = [x.clone().requires_grad_() for x in tensors]
    grad = new(B, E, length)
    want = selective_scan_reference(ScanInputs((Direction(*leaves[:7]),), leaves[7], True))
    out, got = passes(*tensors, grad, T)
    assert (out - want).abs().max() < 1e-12
    for expected, actual in zip(torch.autograd.grad(want, leaves, grad), got):
        assert (actual - expected).abs().max() < 1e-12 * max(1.0, expected.abs().max().item())
