"""Muon: momentum whose updates are made orthogonal. The small VAE and classifiers take about half AdamW's steps."""
import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)    # of the quintic Newton-Schulz step (Jordan et al. 2024)
RMS = 0.2               # of an update's entries at rate 1, as AdamW's usually are (Liu et al. 2025, eq. 4)


def suits(parameter: torch.Tensor) -> bool:
    """Whether a parameter is a matrix, or a convolution's weight, that is large enough to be orthogonalised."""
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= 16


class Muon(torch.optim.Optimizer):
    """For parameters that `suits` accepts; a convolution's weight counts as (out, in × height × width)."""

    def __init__(self, parameters, lr: float, momentum: float = 0.9):
        super().__init__(parameters, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["average"] = torch.zeros_like(parameter)
                average = state["average"].lerp_(parameter.grad, 1 - group["momentum"])
                update = _orthogonal(parameter.grad.lerp(average, group["momentum"]).flatten(1))
                scale = RMS * max(update.shape) ** 0.5
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Approximately U Vᵀ of `matrix` = U S Vᵀ, by five Newton-Schulz steps in bfloat16."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).float()
