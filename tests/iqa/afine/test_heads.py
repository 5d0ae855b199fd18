"""The two heads of A-FINE against their formulas, written out once more."""

from types import SimpleNamespace

import torch
from torch.nn.functional import gelu, softplus

from thurl.iqa.afine.features import AFineFeatures
from thurl.iqa.afine.heads import FidelityHead, NaturalnessHead, initialise


WIDTH, BLOCKS = 4, 2
CONFIG = SimpleNamespace(
    tower=SimpleNamespace(hidden_size=WIDTH, num_hidden_layers=BLOCKS),
    projection_size=5,
    head_size=6,
    channels=(3, WIDTH, WIDTH),
    similarity_eps=1e-10,
)


def features(seed, pictures=2):
    generator = torch.Generator().manual_seed(seed)
    levels = tuple(torch.rand(pictures, 7, channels, generator=generator) for channels in CONFIG.channels)
    mean = torch.cat([level.mean(1) for level in levels], 1)
    variance = torch.cat([level.var(1, correction=0) for level in levels], 1)
    return AFineFeatures(levels, mean, variance, (8, 8))


def test_naturalness_projects_every_block_with_one_matrix():
    torch.manual_seed(0)
    head, x = NaturalnessHead(CONFIG), features(1)
    z = [x.mean[:, :3], x.variance[:, :3]]
    for block in range(BLOCKS):
        here = slice(3 + block * WIDTH, 3 + (block + 1) * WIDTH)
        z.append(head.projection(torch.cat([x.mean[:, here], x.variance[:, here]], 1)))
    wanted = head.score(gelu(head.hidden(torch.cat(z, 1)))).squeeze(1)
    torch.testing.assert_close(head(x.mean, x.variance), wanted)


def test_fidelity_is_one_minus_the_weighted_similarities():
    torch.manual_seed(0)
    head, x, y = FidelityHead(CONFIG), features(1), features(2)
    initialise(head)
    a, b, c = softplus(head.alpha), softplus(head.beta), CONFIG.similarity_eps
    total = a.sum() + b.sum()
    joined = [torch.cat([(p * q).mean(1) for p, q in zip(x.levels, y.levels, strict=True)], 1)]
    covariance = joined[0] - x.mean * y.mean
    s1 = (2 * x.mean * y.mean + c) / (x.mean**2 + y.mean**2 + c)
    s2 = (2 * covariance + c) / (x.variance + y.variance + c)
    wanted = 1 - ((a * s1 + b * s2) / total).sum(1)
    torch.testing.assert_close(head(x, y), wanted, atol=1e-5, rtol=1e-4)
    assert head(x, x).abs().max() < 1e-6
