"""Optimizers as people write them for PyTorch, in the idioms of ten years: `trials(torch)` or `trials(sorix_dist)`."""

# ruff: noqa: C408, UP008, UP032
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any


def trials(torch: Any) -> dict[str, tuple[Callable[[Any], Any], str]]:
    """By name a function of parameters that makes an optimizer, and how `turn` calls it."""
    Optimizer = torch.optim.Optimizer

    class Lion(Optimizer):
        def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
            if not lr >= 0.0:
                raise ValueError("Invalid learning rate: {}".format(lr))
            defaults = dict(lr=lr, betas=betas, weight_decay=weight_decay)
            super().__init__(params, defaults)

        @torch.no_grad()
        def step(self, closure=None):
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    p.data.mul_(1 - group["lr"] * group["weight_decay"])
                    grad = p.grad
                    state = self.state[p]
                    if len(state) == 0:
                        state["exp_avg"] = torch.zeros_like(p)
                    exp_avg = state["exp_avg"]
                    beta1, beta2 = group["betas"]
                    update = exp_avg * beta1 + grad * (1 - beta1)
                    p.add_(update.sign_(), alpha=-group["lr"])
                    exp_avg.mul_(beta2).add_(grad, alpha=1 - beta2)
            return loss

    class AdaBelief(Optimizer):
        def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-16, weight_decay=0):
            super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

        def __setstate__(self, state):
            super().__setstate__(state)
            for group in self.param_groups:
                group.setdefault("weight_decouple", True)

        def step(self, closure=None):
            loss = None
            if closure is not None:
                loss = closure()
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    grad = p.grad.data
                    if grad.is_sparse:
                        raise RuntimeError("no sparse gradients")
                    state = self.state[p]
                    beta1, beta2 = group["betas"]
                    if len(state) == 0:
                        state["step"] = 0
                        state["exp_avg"] = torch.zeros_like(p.data, memory_format=torch.preserve_format)
                        state["exp_avg_var"] = torch.zeros_like(p.data, memory_format=torch.preserve_format)
                    p.data.mul_(1.0 - group["lr"] * group["weight_decay"])
                    exp_avg, exp_avg_var = state["exp_avg"], state["exp_avg_var"]
                    state["step"] += 1
                    bias_correction1 = 1 - beta1 ** state["step"]
                    bias_correction2 = 1 - beta2 ** state["step"]
                    exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
                    grad_residual = grad - exp_avg
                    exp_avg_var.mul_(beta2).addcmul_(grad_residual, grad_residual, value=1 - beta2)
                    denom = (exp_avg_var.add_(group["eps"]).sqrt() / math.sqrt(bias_correction2)).add_(group["eps"])
                    p.data.addcdiv_(exp_avg, denom, value=-group["lr"] / bias_correction1)
            return loss

    class Adan(Optimizer):
        def __init__(self, params, lr=1e-3, betas=(0.02, 0.08, 0.01), eps=1e-8, weight_decay=0.02, max_grad_norm=1.0):
            super().__init__(
                params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, max_grad_norm=max_grad_norm)
            )

        @torch.no_grad()
        def step(self, closure=None):
            global_grad_norm = torch.zeros(1, dtype=torch.float64)
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        global_grad_norm.add_(p.grad.pow(2).sum())
            clip = torch.clamp(
                self.param_groups[0]["max_grad_norm"] / (torch.sqrt(global_grad_norm) + 1e-8), max=1.0
            ).item()
            for group in self.param_groups:
                b1, b2, b3 = group["betas"]
                group["step"] = group.get("step", 0) + 1
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    state, grad = self.state[p], p.grad.mul_(clip)
                    if "pre_grad" not in state:
                        state["exp_avg"] = torch.zeros_like(p)
                        state["exp_avg_sq"] = torch.zeros_like(p)
                        state["exp_avg_diff"] = torch.zeros_like(p)
                        state["pre_grad"] = grad.clone()
                    diff = grad - state["pre_grad"]
                    state["exp_avg"].lerp_(grad, b1)
                    state["exp_avg_diff"].lerp_(diff, b2)
                    update = grad.add(diff, alpha=1 - b2)
                    state["exp_avg_sq"].mul_(1 - b3).addcmul_(update, update, value=b3)
                    denom = state["exp_avg_sq"].sqrt().add_(group["eps"])
                    p.addcdiv_(state["exp_avg"] + (1 - b2) * state["exp_avg_diff"], denom, value=-group["lr"])
                    p.div_(1 + group["lr"] * group["weight_decay"])
                    state["pre_grad"].copy_(grad)

    class LARS(Optimizer):
        def __init__(self, params, lr=0.1, momentum=0.9, weight_decay=1e-4, trust_coefficient=0.01, eps=1e-8):
            defaults = dict(
                lr=lr, momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust_coefficient, eps=eps
            )
            Optimizer.__init__(self, params, defaults)

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    d_p = p.grad
                    if d_p is None:
                        continue
                    p_norm = torch.norm(p.data)
                    g_norm = torch.norm(p.grad.data)
                    if p.ndim > 1 and p_norm != 0 and g_norm != 0:
                        lars_lr = (
                            p_norm
                            / (g_norm + p_norm * group["weight_decay"] + group["eps"])
                            * group["trust_coefficient"]
                        )
                        d_p = d_p.add(p, alpha=group["weight_decay"])
                        d_p *= lars_lr
                    param_state = self.state[p]
                    if "momentum_buffer" not in param_state:
                        buf = param_state["momentum_buffer"] = torch.clone(d_p).detach()
                    else:
                        buf = param_state["momentum_buffer"]
                        buf.mul_(group["momentum"]).add_(d_p)
                    p.add_(buf, alpha=-group["lr"])

    class SophiaLike(Optimizer):
        def __init__(self, params, lr=1e-2, betas=(0.9, 0.95), rho=0.04):
            super().__init__(params, {"lr": lr, "betas": betas, "rho": rho})

        @torch.no_grad()
        def update_hessian(self):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    state = self.state[p]
                    if len(state) == 0:
                        state["step"] = torch.tensor(0.0)
                        state["exp_avg"] = torch.zeros_like(p)
                        state["hessian"] = torch.zeros_like(p)
                    state["hessian"].mul_(group["betas"][1]).addcmul_(p.grad, p.grad, value=1 - group["betas"][1])

        @torch.no_grad()
        def step(self, closure=None, bs=16):
            for group in self.param_groups:
                params = [p for p in group["params"] if p.grad is not None]
                self._single(params, group, bs)

        def _single(self, params, group, bs):
            for p in params:
                state = self.state[p]
                state["step"] += 1
                state["exp_avg"].mul_(group["betas"][0]).add_(p.grad, alpha=1 - group["betas"][0])
                ratio = (state["exp_avg"].abs() / (group["rho"] * bs * state["hessian"] + 1e-15)).clamp(None, 1)
                p.addcmul_(state["exp_avg"].sign(), ratio, value=-group["lr"])

    class SAM(Optimizer):
        def __init__(self, params, base_optimizer, rho=0.05, adaptive=False, **kwargs):
            assert rho >= 0.0, f"Invalid rho, should be non-negative: {rho}"
            defaults = dict(rho=rho, adaptive=adaptive, **kwargs)
            super(SAM, self).__init__(params, defaults)
            self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
            self.param_groups = self.base_optimizer.param_groups
            self.defaults.update(self.base_optimizer.defaults)

        @torch.no_grad()
        def first_step(self, zero_grad=False):
            grad_norm = self._grad_norm()
            for group in self.param_groups:
                scale = group["rho"] / (grad_norm + 1e-12)
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    self.state[p]["old_p"] = p.data.clone()
                    e_w = (torch.pow(p, 2) if group["adaptive"] else 1.0) * p.grad * scale.to(p)
                    p.add_(e_w)
            if zero_grad:
                self.zero_grad()

        @torch.no_grad()
        def second_step(self, zero_grad=False):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    p.data = self.state[p]["old_p"]
            self.base_optimizer.step()
            if zero_grad:
                self.zero_grad()

        @torch.no_grad()
        def step(self, closure=None):
            assert closure is not None, "Sharpness Aware Minimization requires closure, but it was not provided"
            closure = torch.enable_grad()(closure)
            self.first_step(zero_grad=True)
            closure()
            self.second_step()

        def _grad_norm(self):
            norm = torch.norm(
                torch.stack(
                    [
                        ((torch.abs(p) if group["adaptive"] else 1.0) * p.grad).norm(p=2)
                        for group in self.param_groups
                        for p in group["params"]
                        if p.grad is not None
                    ]
                ),
                p=2,
            )
            return norm

        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)
            self.base_optimizer.param_groups = self.param_groups

    class Lookahead(Optimizer):
        def __init__(self, optimizer, k=2, alpha=0.5):
            self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}  # which torch 2 asks for
            self.optimizer, self.defaults = optimizer, optimizer.defaults
            self.k = k
            self.alpha = alpha
            self.param_groups = self.optimizer.param_groups
            self.state = defaultdict(dict)
            self.fast_state = self.optimizer.state
            for group in self.param_groups:
                group["counter"] = 0

        def update(self, group):
            for fast in group["params"]:
                param_state = self.state[fast]
                if "slow_param" not in param_state:
                    param_state["slow_param"] = torch.zeros_like(fast.data)
                    param_state["slow_param"].copy_(fast.data)
                slow = param_state["slow_param"]
                slow += (fast.data - slow) * self.alpha
                fast.data.copy_(slow)

        def update_lookahead(self):
            for group in self.param_groups:
                self.update(group)

        def step(self, closure=None):
            loss = self.optimizer.step(closure)
            for group in self.param_groups:
                if group["counter"] == 0:
                    self.update(group)
                group["counter"] += 1
                if group["counter"] >= self.k:
                    group["counter"] = 0
            return loss

    return {
        "Lion": (lambda ps: Lion(ps, lr=0.01, weight_decay=0.1), "plain"),
        "AdaBelief": (lambda ps: AdaBelief(ps, lr=0.01, weight_decay=0.1), "plain"),
        "Adan": (lambda ps: Adan(ps, lr=0.01), "plain"),
        "LARS": (lambda ps: LARS(ps), "plain"),
        "Sophia": (lambda ps: SophiaLike(ps), "hessian"),
        "SAM": (lambda ps: SAM(ps, torch.optim.SGD, lr=0.1, momentum=0.9), "closure"),
        "SAM two steps": (lambda ps: SAM(ps, torch.optim.Adam, rho=0.1, adaptive=True, lr=0.01), "two"),
        "Lookahead": (lambda ps: Lookahead(torch.optim.Adam(ps, lr=0.02)), "plain"),
        "Lookahead of Lion": (lambda ps: Lookahead(Lion(ps, lr=0.02)), "closure"),
    }


def turn(optimizer: Any, how: str, backward: Callable[[], Any]) -> Any:
    """One step of a trial."""

    def closure() -> Any:
        optimizer.zero_grad()
        return backward()

    if how == "closure":
        if type(optimizer).__name__ == "SAM":
            closure()
        return optimizer.step(closure)
    closure()
    if how == "hessian":
        optimizer.update_hessian()
    if how == "two":
        optimizer.first_step(zero_grad=True)
        backward()
        optimizer.second_step(zero_grad=True)
        return None
    return optimizer.step()
