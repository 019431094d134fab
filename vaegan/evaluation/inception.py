"""The Inception network of the Fréchet Inception Distance, in the names of the published PyTorch weights."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

# A block is a tuple of branches whose outputs are concatenated. A branch is a tuple of steps: the name of a pool, a
# convolution (name, channels, kernel[, stride]), or a list of convolutions side by side. The 1x1 convolution after
# "average" does the pooling.
_average = partial(avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)  # as TensorFlow does
_POOLS = {
    "max": partial(max_pool2d, kernel_size=3, stride=1, padding=1),
    "halve": partial(max_pool2d, kernel_size=3, stride=2),
}


def _block_a(pool_channels: int) -> tuple:
    return (
        (("branch1x1", 64, 1),),
        (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        ("average", ("branch_pool", pool_channels, 1)),
    )


def _block_b() -> tuple:
    return (
        (("branch3x3", 384, 3, 2),),
        (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)),
        ("halve",),
    )


def _block_c(channels: int) -> tuple:
    across, down = (1, 7), (7, 1)
    return (
        (("branch1x1", 192, 1),),
        (("branch7x7_1", channels, 1), ("branch7x7_2", channels, across), ("branch7x7_3", 192, down)),
        (
            ("branch7x7dbl_1", channels, 1),
            ("branch7x7dbl_2", channels, down),
            ("branch7x7dbl_3", channels, across),
            ("branch7x7dbl_4", channels, down),
            ("branch7x7dbl_5", 192, across),
        ),
        ("average", ("branch_pool", 192, 1)),
    )


def _block_d() -> tuple:
    return (
        (("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)),
        (
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3, 2),
        ),
        ("halve",),
    )


def _block_e(pool: str) -> tuple:
    return (
        (("branch1x1", 320, 1),),
        (("branch3x3_1", 384, 1), [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]),
        (
            ("branch3x3dbl_1", 448, 1),
            ("branch3x3dbl_2", 384, 3),
            [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))],
        ),
        (pool, ("branch_pool", 192, 1)),
    )


class ConvolutionNormReLU(nn.Module):
    """Convolution without bias, batch norm and ReLU. Padded to keep the size unless `padding` says otherwise.

    averages: of the average pool before a 1x1 convolution. Before its ReLU the two commute, as the weights of an average
    sum to one, and after it there are fewer channels to pool.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], stride=1, padding=None, averages=False
    ):
        super().__init__()
        self.averages = averages
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        if padding is None:
            padding = (height // 2, width // 2) if stride == 1 else 0
        self.conv = nn.Conv2d(in_channels, out_channels, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return (_average(x) if self.averages else x).relu_()


class Mixed(nn.Module):
    """The branches of one block on the same input, concatenated along the channels."""

    def __init__(self, in_channels: int, branches: tuple):
        super().__init__()
        self.branches = branches
        for branch in branches:
            channels = in_channels
            averages = branch[0] == "average"
            for step in branch:
                if isinstance(step, str):
                    continue
                side_by_side = step if isinstance(step, list) else [step]
                for name, *shape in side_by_side:
                    setattr(self, name, ConvolutionNormReLU(channels, *shape, averages=averages))
                channels = sum(out_channels for _, out_channels, *_ in side_by_side)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(x, branch) for branch in self.branches], 1)

    def _branch(self, x: Tensor, branch: tuple) -> Tensor:
        for step in branch:
            if isinstance(step, str):
                x = _POOLS[step](x) if step in _POOLS else x
            elif isinstance(step, list):
                x = torch.cat([getattr(self, name)(x) for name, *_ in step], 1)
            else:
                x = getattr(self, step[0])(x)
        return x


class Inception(nn.Module):
    """Inception-v3 as in the TensorFlow graph of 2015-12-05 that FID is defined by (Heusel et al. 2017, appendix A1).

    It departs from Szegedy et al. 2016: average pools leave the padding out, the last block has a max pool (probably
    by mistake) and there are 1008 classes. `fc` is there for the Inception Score and for strict loading.
    """

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvolutionNormReLU(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvolutionNormReLU(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = ConvolutionNormReLU(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvolutionNormReLU(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvolutionNormReLU(80, 192, 3, padding=0)
        self.Mixed_5b = Mixed(192, _block_a(32))
        self.Mixed_5c = Mixed(256, _block_a(64))
        self.Mixed_5d = Mixed(288, _block_a(64))
        self.Mixed_6a = Mixed(288, _block_b())
        self.Mixed_6b = Mixed(768, _block_c(128))
        self.Mixed_6c = Mixed(768, _block_c(160))
        self.Mixed_6d = Mixed(768, _block_c(160))
        self.Mixed_6e = Mixed(768, _block_c(192))
        self.Mixed_7a = Mixed(768, _block_d())
        self.Mixed_7b = Mixed(1280, _block_e("average"))
        self.Mixed_7c = Mixed(2048, _block_e("max"))
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, 299, 299), about [-1, 1], to the pooled features (B, 2048)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_POOLS["halve"](x)))  # (B, 192, 71, 71)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_POOLS["halve"](x))))  # (B, 288, 35, 35)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))  # (B, 768, 17, 17)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B, 2048, 8, 8)
        return x.mean((2, 3))
