"""3×3 convolutions of frozen weights by Winograd's algorithm on a CPU, with a third to half of the multiplications.

The algorithm is Lavin & Gray's (CVPR 2016), the code NNPACK's, which PyTorch carries and takes by itself only where
oneDNN is switched off. It differs from a direct convolution by 1e-5 of the largest output. The operator that reaches it
is private to PyTorch: where it is gone, or NNPACK is, `serves` says so.
"""
import dataclasses
import functools

import torch
from torch import nn

# On smaller pictures, or with fewer channels, transforming weights and pictures takes more than it saves.
SIDE, CHANNELS = 28, 64  # px; of the input
WIDE, LARGE = 128, 40  # channels, and px, of a diffusion model's VAE from which it pays


@functools.cache
def is_there():
    """True if this PyTorch has NNPACK for this processor."""
    # The question also sets NNPACK up, without which its operator fails.
    return (hasattr(torch, "_nnpack_spatial_convolution") and hasattr(torch, "_nnpack_available")
            and torch._nnpack_available())


def takes(module, value):
    """Whether `run` computes a layer of this input (n, channels, h, w) by Winograd's algorithm."""
    return (isinstance(module, nn.Conv2d) and module.in_channels >= CHANNELS and min(value.shape[2:]) >= SIDE
            and (module.kernel_size, module.stride, module.padding, module.groups) == ((3, 3), (1, 1), (1, 1), 1)
            and (value.device.type, value.dtype) == ("cpu", torch.float32) and is_there())


def serves(encoder, layers):
    """Whether `run` computes any layer of a caffe_nets.Encoder, on the way to `layers`, by Winograd's algorithm."""
    found = []
    encoder = dataclasses.replace(encoder, run=lambda module, value: (found.append(takes(module, value)),
                                                                      module(value))[1])
    encoder.shapes(layers)
    return any(found)


def run(module, value):
    """What module(value) gives, with the gradient of `value` but none of the weights."""
    if not takes(module, value):
        return module(value)
    return _Convolution.apply(value, module.weight, module.bias)


def faster(network):
    """The network, whose 3×3 convolutions of WIDE channels and LARGE pictures are computed by Winograd's algorithm, at
    inference, on a CPU in float32; all else as before."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels >= WIDE and module.kernel_size == (3, 3):
            module.forward = functools.partial(_forward, module)
    return network


def _forward(module, value):
    if torch.is_inference(value) and min(value.shape[2:]) >= LARGE and takes(module, value):
        return _convolved(value, module.weight, module.bias)
    return module._conv_forward(value, module.weight, module.bias)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(weight)
        return _convolved(inputs, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        weight, = ctx.saved_tensors
        turned = weight.transpose(0, 1).flip(2, 3).contiguous()
        return _convolved(gradient, turned, torch.zeros(len(turned))), None, None


def _convolved(inputs, weight, bias):
    """A picture at a time: of several NNPACK takes another algorithm, slower than oneDNN's."""
    inputs = inputs.contiguous()
    return torch.cat([torch._nnpack_spatial_convolution(one, weight, bias, 1) for one in inputs.split(1)])
