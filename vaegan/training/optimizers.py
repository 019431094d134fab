"""The players' optimizers, and their state as named tensors."""

import torch
from torch import Tensor, nn


def build_optimizer(module: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); decay on matrices and kernels, not on biases, normalisations, scales and what is
    learned a class, of which most rows get no gradient in a step."""
    parameters, kernels = list(module.parameters()), _kernels(module)
    decayed, others = [p for p in parameters if p in kernels], [p for p in parameters if p not in kernels]
    if weight_decay == 0:  # then one group, of which each takes a tenth of a millisecond of a small network's step
        decayed, others = [], decayed + others
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=fused)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the order in which its state counts them."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def add_l1_gradient(module: nn.Module, weight: float) -> None:
    """Add the gradient of weight * sum |w| over matrices and kernels to the gradients that are there."""
    kernels = _kernels(module)
    parameters = [p for p in module.parameters() if p in kernels and p.grad is not None]
    torch._foreach_add_([p.grad for p in parameters], torch._foreach_sign(parameters), alpha=weight)


def _kernels(module: nn.Module) -> set[nn.Parameter]:
    """Parameters that are regularised: matrices and kernels, but for embeddings of classes."""
    by_class = {p for part in module.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    return {p for p in module.parameters() if p.ndim > 1} - by_class


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of the optimizer as tensors named `index.field`, index counting its parameters."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, fields in state.items() for name, value in fields.items()}


def fits(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor] | None) -> bool:
    """Whether `load_optimizer_tensors` can take these: for each parameter all of Adam's fields, of its shape, or none. One
    that has not stepped yet has none."""
    parameters = parameters_of(optimizer)
    if tensors is None:
        return False
    fields: dict[str, set[str]] = {}
    for name, value in tensors.items():
        index, _, field = name.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            return False
        shape = () if field == "step" else parameters[int(index)].shape
        if value.shape != shape or not value.is_floating_point():
            return False
        fields.setdefault(index, set()).add(field)
    return all(names == {"step", "exp_avg", "exp_avg_sq"} for names in fields.values())


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = parameters_of(optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, field = name.split(".", 1)
        parameter = parameters[int(index)]
        # In the parameter's memory layout, which the fused kernels take for granted; and a copy in any case.
        same = value.shape == parameter.shape
        value = torch.empty_like(parameter, requires_grad=False).copy_(value) if same else value.clone()
        state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
