"""The CIFAR networks written down from the papers in NumPy, float64: no layer, no Keras padding.

Weights are {layer name: [arrays in Keras' order]}; images are [batch, height, width, channels].
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def _conv(x, kernel, stride=1):
    """PyTorch's convolution with padding k // 2: the sum over a window around every pixel."""
    size = len(kernel)
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcij,ijco->nhwo", windows, kernel, optimize=True)


def _norm(x, scale, offset, mean, variance):
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + offset


def _group_norm(x, scale, offset):
    """Wu and He 2018, equations 1 to 4, in groups of four channels."""
    batch, height, width, channels = x.shape
    groups = x.reshape(batch, height * width, channels // 4, 4)
    mean = groups.mean(axis=(1, 3), keepdims=True)
    variance = ((groups - mean) ** 2).mean(axis=(1, 3), keepdims=True)
    return ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * scale + offset


def _relu(x):
    return np.maximum(x, 0)


def cifar_resnet(weights, x, blocks, norm=_norm):
    """He et al. 2016, 4.2, with option A; logits [batch, classes]."""
    x = _relu(norm(_conv(x, *weights["conv1"]), *weights["bn1"]))
    for stage in (1, 2, 3):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = _conv(x, *weights[f"{name}.conv1"], stride)
            y = _relu(norm(y, *weights[f"{name}.bn1"]))
            y = norm(_conv(y, *weights[f"{name}.conv2"]), *weights[f"{name}.bn2"])
            kept = x[:, ::stride, ::stride]
            x = y.copy()
            x[..., : kept.shape[-1]] += kept
            x = _relu(x)
    kernel, bias = weights["logits"]
    return x.mean(axis=(1, 2)) @ kernel + bias


def _standardized(arrays):
    """A kernel [height, width, in, out] with mean 0 and variance 1 / fan-in for each filter."""
    (kernel,) = arrays
    flat = kernel.reshape(-1, kernel.shape[-1])
    flat = (flat - flat.mean(axis=0)) / flat.std(axis=0) / np.sqrt(len(flat))
    return [flat.reshape(kernel.shape)]


def cifar_resnet_with_group_norm(weights, x, blocks):
    """The same with GroupNorm for BatchNorm, and standardized kernels (Qiao et al. 2019)."""
    weights = weights | {name: _standardized(w) for name, w in weights.items() if "conv" in name}
    return cifar_resnet(weights, x, blocks, _group_norm)


def wide_resnet(weights, x, blocks):
    """Zagoruyko and Komodakis 2016, table 1; logits [batch, classes]."""
    x = _conv(x, *weights["conv1"])
    for stage in (1, 2, 3):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            activated = _relu(_norm(x, *weights[f"{name}.bn1"]))
            y = _conv(activated, *weights[f"{name}.conv1"], stride)
            y = _relu(_norm(y, *weights[f"{name}.bn2"]))
            y = _conv(y, *weights[f"{name}.conv2"])
            if block == 0:
                x = _conv(activated, *weights[f"{name}.shortcut"], stride)
            x = x + y
    x = _relu(_norm(x, *weights["bn1"]))
    kernel, bias = weights["logits"]
    return x.mean(axis=(1, 2)) @ kernel + bias
