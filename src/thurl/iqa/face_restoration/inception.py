"""The networks behind FID: Inception-v3 with the weights of the original TensorFlow code, and torchvision's own.

`fid_network` has the layout of `pt_inception-2015-12-05-*.pth`, the ported weights that nearly all published FID
values use. It is torchvision's Inception-v3 (arXiv 1512.00567) for 1008 classes without the auxiliary head, except:
- average pooling inside the blocks A, C and E does not count the padding, and
- the last block pools with a maximum instead of a mean (a slip of the original that the weights depend on).

`torchvision_network` is the unchanged one; its distances are not comparable with published FID and get another name.
Input of both: RGB in [-1, 1], resized to 299x299, bilinear without anti-aliasing, as the official code does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import inception as tv

from thurl.errors import DataError


__all__ = ["FEATURES", "fid_network", "inception_features", "torchvision_network"]

FEATURES = 2048
"""Length of the features: the last average pooling."""

_SIDE = 299
_TRUNK = (
    ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2")
    + tuple(f"Mixed_5{letter}" for letter in "bcd")
    + tuple(f"Mixed_6{letter}" for letter in "abcde")
    + tuple(f"Mixed_7{letter}" for letter in "abc")
)


def fid_network(state: Mapping[str, Any] | None = None) -> nn.Module:
    """The FID network in evaluation mode.

    Args:
        state: tensors of the released file, from `thurl.training.released_files.read_checkpoint`; None leaves
            random weights, for tests.

    Raises:
        DataError: tensors that are missing, fit nowhere, or have another shape.
    """
    blocks = [tv.BasicConv2d, _BlockA, tv.InceptionB, _BlockC, tv.InceptionD, _BlockE, tv.InceptionAux]
    network = tv.Inception3(num_classes=1008, aux_logits=False, inception_blocks=blocks, init_weights=False)
    network.Mixed_7c = _LastBlock(2048)
    return _loaded(network, state, "pt_inception-2015-12-05")


def torchvision_network(state: Mapping[str, Any] | None = None) -> nn.Module:
    """torchvision's Inception-v3 in evaluation mode; its auxiliary head, where the file has one, is left out.

    Args:
        state: state dict of `torchvision.models.inception_v3`; None leaves random weights, for tests.

    Raises:
        DataError: as `fid_network`.
    """
    network = tv.Inception3(num_classes=1000, aux_logits=False, init_weights=False)
    if state is not None:
        state = {name: value for name, value in state.items() if not name.startswith("AuxLogits.")}
    return _loaded(network, state, "torchvision's inception_v3")


@torch.no_grad()
def inception_features(network: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """Features of pictures.

    Args:
        network: from `fid_network` or `torchvision_network`.
        pictures: (B, 3, H, W) RGB in [-1, 1], float32.

    Returns:
        (B, 2048) float32.
    """
    x = functional.interpolate(pictures, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    for name in _TRUNK:
        x = network.get_submodule(name)(x)
    return x.mean(dim=(2, 3))


def _loaded(network: nn.Module, state: Mapping[str, Any] | None, what: str) -> nn.Module:
    if state is not None:
        own = network.state_dict()
        counters = {name for name in own if name.endswith("num_batches_tracked")}  # older files do not have them
        problems = [f"{name} is missing" for name in own if name not in state and name not in counters]
        problems += [f"{name} fits nowhere" for name in state if name not in own]
        problems += [
            f"{name} has the shape {tuple(state[name].shape)}, {tuple(own[name].shape)} is needed"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ]
        if problems:
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise DataError(f"not a file of {what}: {'; '.join(problems[:5])}{more}")
        network.load_state_dict(dict(state), strict=False)
    return network.eval().requires_grad_(False)


def _chain(block: nn.Module, x: torch.Tensor, *names: str) -> torch.Tensor:
    for name in names:
        x = block.get_submodule(name)(x)
    return x


def _mean_pool(x: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _BlockA(tv.InceptionA):
    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [
            self.branch1x1(x),
            _chain(self, x, "branch5x5_1", "branch5x5_2"),
            _chain(self, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            self.branch_pool(_mean_pool(x)),
        ]


class _BlockC(tv.InceptionC):
    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [
            self.branch1x1(x),
            _chain(self, x, "branch7x7_1", "branch7x7_2", "branch7x7_3"),
            _chain(self, x, *(f"branch7x7dbl_{number}" for number in range(1, 6))),
            self.branch_pool(_mean_pool(x)),
        ]


class _BlockE(tv.InceptionE):
    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        return _mean_pool(x)

    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        single, double = self.branch3x3_1(x), _chain(self, x, "branch3x3dbl_1", "branch3x3dbl_2")
        return [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self._pool(x)),
        ]


class _LastBlock(_BlockE):
    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(x, 3, stride=1, padding=1)
