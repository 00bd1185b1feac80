import torch

from src.probes.attentive_heads import HeadGrid


def grid(count):
    heads = HeadGrid.build(count, embed_dim=48, num_heads=3, num_classes=5, seed=0)
    with torch.no_grad():  # away from the zeros and ones of the initialisation, each head differently
        generator = torch.Generator().manual_seed(1)
        for p in heads.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return heads


def test_equals_the_classifiers_one_by_one():
    heads, x = grid(3), 2 * torch.randn(4, 10, 48, generator=torch.Generator().manual_seed(2)) + 1
    together, alone = heads(x), torch.stack([head(x) for head in heads])
    assert together.shape == (3, 4, 5)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    weight = torch.randn(together.shape, generator=torch.Generator().manual_seed(3))
    named = {name: p for name, p in heads.named_parameters() if p.requires_grad}
    got = torch.autograd.grad((together * weight).sum(), list(named.values()))
    want = torch.autograd.grad((alone * weight).sum(), list(named.values()))
    for name, a, b in zip(named, got, want):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4, msg=name)


def test_heads_start_alike_and_leave_the_global_generator_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    heads = HeadGrid.build(2, 48, 3, 5, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    first, second = (head.state_dict() for head in heads)
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = HeadGrid.build(1, 48, 3, 5, seed=1)[0].state_dict()
    assert not torch.equal(first["linear.weight"], other["linear.weight"])
