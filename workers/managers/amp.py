"""AMPManager: in which precision a trial computes, from autocast to the optimizer's step.

Invariant: parameters and optimizer state stay in float32; only the computation is in less.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch

from workers.managers.base import BaseProcessManager
from workers.managers.cuda import CUDAManager
from workers.protocol.errors import WorkerLacksError

Precision = Literal["auto", "bf16", "fp16", "tf32", "fp32"]
Float32Matmul = Literal["auto", "highest", "high", "medium"]


class PrecisionPolicy:
    """One precision at work: autocast, loss scaling and gradient clipping of one training.

    Args:
        name: bf16 or fp16 under autocast, tf32 or fp32 without.
        device: Where the training computes.
    """

    def __init__(self, name: Literal["bf16", "fp16", "tf32", "fp32"], device: torch.device) -> None:
        self.name = name
        self._device = device
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """The context of each forward pass."""
        return torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of `loss` (a scalar), scaled where fp16 needs it."""
        scaled: torch.Tensor = self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Iterable[torch.nn.Parameter],
        max_grad_norm: float | None,
        *,
        guard: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Clip the gradients, step, and clear them; the gradients' norm before, a scalar.

        With fp16, a step whose gradients overflowed is left out and the scale is halved
        (Micikevicius et al., 2018, arXiv:1710.03740).

        Args:
            optimizer: A fused one, where there is a guard.
            parameters: What is clipped.
            max_grad_norm: To which norm; None clips nothing.
            guard: A scalar such as the loss. Where it, or the norm, is not finite, the step is left
                out, and neither weights nor the optimizer's state change.
        """
        self._scaler.unscale_(optimizer)
        weights = list(parameters)
        norm = torch.nn.utils.get_total_norm(
            [weight.grad for weight in weights if weight.grad is not None]
        )
        if max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(weights, max_grad_norm, norm)
        if guard is None or self._scaler.is_enabled():
            self._scaler.step(optimizer)
        else:
            _step_if(optimizer, guard.isfinite() & norm.isfinite())
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm

    @property
    def is_scaled(self) -> bool:
        """Whether losses are scaled, and steps whose gradients overflow are left out."""
        return self._scaler.is_enabled()

    def state_dict(self) -> dict[str, Any]:
        """The loss scale; empty where nothing is scaled."""
        state: dict[str, Any] = self._scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the loss scale of `state_dict`."""
        if state:
            self._scaler.load_state_dict(state)


def _multiply_in_float32(precision: Literal["highest", "high", "medium"]) -> None:
    """Say it whatever it was: a trial must not depend on what ran here before."""
    torch.set_float32_matmul_precision(precision)
    cudnn: Any = torch.backends.cudnn
    for owner in (cudnn.conv, cudnn.rnn):
        owner.fp32_precision = "ieee" if precision == "highest" else "tf32"


def _step_if(optimizer: Any, is_good: torch.Tensor) -> None:
    """Step where a bool scalar on the device is true; it is not waited for.

    The way in which `torch.amp.GradScaler` tells a fused optimizer.
    """
    optimizer.found_inf = (~is_good).float()
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf


class AMPManager(BaseProcessManager):
    """Chooses the precision that the device of this process can do."""

    def __init__(self, cuda: CUDAManager) -> None:
        super().__init__()
        self._cuda = cuda

    def policy(
        self, precision: Precision = "auto", float32_matmul: Float32Matmul = "auto"
    ) -> PrecisionPolicy:
        """The policy of one training; sets how this process multiplies in float32.

        Args:
            precision: `auto` takes bf16 where the GPU has it, else fp16; fp32 on the CPU.
            float32_matmul: As of `torch.set_float32_matmul_precision`. `auto` is `high` on a GPU,
                and `highest` for fp32 and on the CPU.

        Raises:
            WorkerLacksError: The device cannot compute in it.
        """
        name = self._automatic() if precision == "auto" else precision
        problem = self._problem(name)
        if problem is not None:
            raise WorkerLacksError(
                f"precision = {name!r}: {problem}; use auto, which takes {self._automatic()} here"
            )
        if float32_matmul == "auto":
            is_lower = self._cuda.is_cuda and name != "fp32"
            float32_matmul = "high" if is_lower else "highest"
        _multiply_in_float32(float32_matmul)
        return PrecisionPolicy(name, self._cuda.device)

    def _automatic(self) -> Literal["bf16", "fp16", "fp32"]:
        if not self._cuda.is_cuda:
            return "fp32"
        return "bf16" if self._cuda.supports_bf16() else "fp16"

    def _problem(self, name: str) -> str | None:
        if name in {"fp16", "tf32"} and not self._cuda.is_cuda:
            return "there is no GPU in this process"
        if name == "bf16" and self._cuda.is_cuda and not self._cuda.supports_bf16():
            return "this GPU has no bfloat16"
        if name == "tf32" and not self._cuda.supports_tf32():
            return "this GPU has no TensorFloat-32"
        return None
