"""Plants one bug at a time in a copy of the core and reports which ones the tests let through.

    python tests/mutate.py [WORD ...]        only the bugs whose file or text contains a word

Exits 1 if a bug survived, if a text to replace is not there exactly once, or if the tests fail without any bug. The
copy is temporary; the checkout is only read. Each bug gets a forked process (Linux, macOS): about a second on one core.
"""

import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import beartype  # noqa: F401  loaded once, for all the forks
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# diffusers' own import costs more than all of these together, and no bug here needs it.
TESTS = ["tests/test_path.py", "tests/test_exact_log_ratio.py", "tests/test_probe_errors.py"]
TESTS += [f"tests/objectives/test_{name}.py" for name in ("dpo", "smpo", "rankdpo", "d3po", "ddo", "behaviour")]
TESTS += ["tests/test_inversion.py", "tests/test_transition.py"]
TESTS += [f"tests/kernels/test_{name}.py" for name in ("fused_error", "noising", "operators", "through_probes")]
TESTS += ["-k", "not diffusers"]

PATH, TYPES, PROBE, ERRORS = (f"diffpref/{name}.py" for name in ("path", "types", "probe", "errors"))
KERNEL, NOISING, DISPATCH = (f"diffpref/kernels/{name}.py" for name in ("error", "noising", "dispatch"))
INVERSION, NOISE, TRANSITION = (f"diffpref/{name}.py" for name in ("inversion", "noise", "transition"))
PUBLISHED = "examples/official_inversion.py"
DPO, SMPO, RANKDPO, D3PO, DDO = (f"diffpref/objectives/{name}.py" for name in ("dpo", "smpo", "rankdpo", "d3po", "ddo"))
# file, the text as it is, the bug
MUTANTS = [
    # the path
    (PATH, "(self.alpha(t), self.sigma(t))", "(self.sigma(t), self.alpha(t))"),
    (PATH, "(self.a(t), self.b(t))", "(self.b(t), self.a(t))"),
    (PATH, "self.alpha(t) * self.b(t) - self.sigma(t)", "self.alpha(t) * self.b(t) + self.sigma(t)"),
    (PATH, "(self.b(t) / d, -self.sigma(t) / d)", "(self.b(t) / d, self.sigma(t) / d)"),
    (PATH, "(self.b(t) / d, -self.sigma(t) / d)", "(self.b(t), -self.sigma(t))"),
    (PATH, "(-self.a(t) / d, self.alpha(t) / d)", "(self.a(t) / d, self.alpha(t) / d)"),
    (PATH, "(-self.a(t) / d, self.alpha(t) / d)", "(-self.a(t), self.alpha(t))"),
    (PATH, "(self.alpha(t) / self.sigma(t)) ** 2", "(self.sigma(t) / self.alpha(t)) ** 2"),
    (PATH, "(self.alpha(t) / self.sigma(t)) ** 2", "self.alpha(t) / self.sigma(t)"),
    (PATH, "(self.alpha(t) / self._determinant(t)) ** 2", "(self._determinant(t) / self.alpha(t)) ** 2"),
    (PATH, "(self.alpha(t) / self._determinant(t)) ** 2", "(self.sigma(t) / self._determinant(t)) ** 2"),
    (PATH, "(self.alpha(t) / self._determinant(t)) ** 2", "self.alpha(t) / self._determinant(t)"),
    (PATH, "coefficient.shape + (1,) * (x.ndim - coefficient.ndim)", "(1,) * (x.ndim - 1) + coefficient.shape"),
    (PATH, "to(device=x.device, dtype", "to(dtype"),
    (PATH, "values.to(t.device)[t]", "values[t]"),
    (PATH, "torch.promote_types(x.dtype, torch.float32))", "x.dtype)"),
    (PATH, "torch.promote_types(alphas_cumprod.dtype, torch.float32)", "alphas_cumprod.dtype"),
    (PATH, "torch.promote_types(first.dtype, second.dtype)", "first.dtype"),
    (PATH, "second).to(dtype)", "second)"),
    (PATH, "table.sqrt(), (1 - table).sqrt()", "table, 1 - table"),
    (PATH, "table.sqrt(), (1 - table).sqrt()", "(1 - table).sqrt(), table.sqrt()"),
    (PATH, "(at(-complements), alpha)", "(at(complements), at(-roots))"),
    (PATH, "(at(-complements), alpha)", "(alpha, at(-complements))"),
    (PATH, "(table >= 0) & (table <= 1)", "table <= 1"),
    (PATH, "(table >= 0) & (table <= 1)", "table >= 0"),
    (PATH, "values.to(t.device)[t]", "values.to(t.device)[t - 1]"),
    (PATH, "if t.dtype not in (torch.int32, torch.int64):", "if t.dtype == torch.float64:"),
    (PATH, "if prediction not in PREDICTIONS:", "if not prediction:"),
    (PATH, "alpha=lambda t: 1 - wide(t),\n        sigma=wide,", "alpha=wide,\n        sigma=lambda t: 1 - wide(t),"),
    (PATH, "lambda t: -torch.ones_like(wide(t))", "lambda t: torch.ones_like(wide(t))"),
    (PATH, "sigma=lambda t: t,", "sigma=lambda t: t**2,"),
    (PATH, "a=torch.ones_like,\n        b=torch.zeros_like,", "a=torch.zeros_like,\n        b=torch.ones_like,"),
    (PATH, "if not sigma_data > 0:", "if sigma_data < 0:"),
    # the log-ratio
    (TYPES, '"difference", self.policy - self.reference', '"difference", self.reference - self.policy'),
    (TYPES, '"difference", self.policy - self.reference', '"difference", (self.policy - self.reference).detach()'),
    (TYPES, "(0 - self.difference) / 2", "self.difference / 2"),
    (TYPES, "(0 - self.difference) / 2", "-self.difference / 2"),
    (TYPES, "(0 - self.difference) / 2", "0 - self.difference"),
    (TYPES, "self.difference) is None:", "self.difference) is not None:"),
    # the probe
    (PROBE, "noise_and_target(x0, noise,", "noise_and_target(x0, noise.flip(1),"),
    (PROBE, "noise_and_target(x0, noise,", "noise_and_target(x0, noise.flip(0),"),
    (PROBE, "(path.alpha, path.sigma, path.a, path.b))", "(path.sigma, path.alpha, path.a, path.b))"),
    (PROBE, "(path.alpha, path.sigma, path.a, path.b))", "(path.alpha, path.sigma, path.b, path.a))"),
    (PROBE, "values(t).to(x0.device)", "values(t)"),
    (PROBE, "eps.stride(1) == 0", "eps.stride(1) >= 0"),
    (PROBE, "return Probe(x_t, target, t, _unit", "return Probe(target, x_t, t, _unit"),
    (PROBE, "torch.promote_types(x.dtype, torch.float32))", "x.dtype)"),
    (PROBE, "torch.ones(x.shape[0], device", "torch.full(x.shape[:1], 0.5, device"),
    (PROBE, "torch.ones(x.shape[0], device=x.device,", "torch.ones(x.shape[0],"),
    (
        PROBE,
        "Probe(x_t, target, t, _unit_weight(x0), dict(cond or {})",
        "Probe(x_t, target, t, _unit_weight(x0), cond or {}",
    ),
    (PROBE, "Probe(x_t, target, t, _unit_weight(x0), dict(cond or {})", "Probe(x_t, target, t, _unit_weight(x0), {}"),
    (PROBE, "if t.shape != x.shape[:1]:", "if t.ndim != 1:"),
    (PROBE, "if eps.shape != x0.shape:", "if eps.ndim != x0.ndim:"),
    # the errors
    (ERRORS, "value.repeat_interleave(k, 0)", "value.repeat(k, *[1] * (value.ndim - 1))"),
    (ERRORS, "probe.t.repeat_interleave(k, 0)", "probe.t.repeat(k)"),
    (ERRORS, "probe.x_t.flatten(0, 1)", "probe.x_t.transpose(0, 1).flatten(0, 1)"),
    (ERRORS, "target.flatten(0, 1), weight)", "target.flatten(0, 1), 1 / weight)"),
    (ERRORS, "target.flatten(0, 1), weight)", "target.flatten(0, 1), torch.ones_like(weight))"),
    (ERRORS, "fused_error(*rows, probe.weight)", "fused_error(*rows, torch.ones_like(probe.weight))"),
    (ERRORS, "prediction.flatten(0, 1), reference.flatten(0, 1)", "reference.flatten(0, 1), prediction.flatten(0, 1)"),
    (ERRORS, "with torch.no_grad():", "with torch.enable_grad():"),
    (ERRORS, "predict(reference, probe)", "predict(policy, probe)"),
    (
        ERRORS,
        "errors_of(predict(policy, probe), of_reference",
        "errors_of(predict(policy, probe).detach(), of_reference",
    ),
    (ERRORS, "Errors(error, prediction_error(reference", "Errors(error, prediction_error(prediction.detach()"),
    (ERRORS, "probe.weight), difference)", "probe.weight), -difference)"),
    # the error's operator
    (KERNEL, "residual.square_().flatten(1).mean(1)", "residual.square_().flatten(1).sum(1)"),
    (KERNEL, "residual.square_().flatten(1).mean(1)", "residual.abs().flatten(1).mean(1)"),
    (KERNEL, "(other - goal).add_(residual)", "(other - goal).sub_(residual)"),
    (KERNEL, "(other - goal).add_(residual)", "residual * 2"),
    (KERNEL, "both.mul_(policy - other)", "both.mul_(other - policy)"),
    (KERNEL, "both.mul_(policy - other).flatten(1)", "(residual.square() - (other - goal).square()).flatten(1)"),
    (KERNEL, "weighted = error * weights", "weighted = error"),
    (KERNEL, "else difference * weights", "else difference"),
    (KERNEL, "weighted.clone() if reference", "torch.zeros_like(weighted) if reference"),
    (
        KERNEL,
        "weight.to(dtype).repeat_interleave(rows // max(weight.shape[0], 1))",
        "weight.to(dtype).repeat(rows // max(weight.shape[0], 1))",
    ),
    (KERNEL, "factor = 2 * of_rows", "factor = of_rows"),
    (KERNEL, "(to_error + to_difference)", "to_error"),
    (KERNEL, "(to_error + to_difference)", "to_difference"),
    (KERNEL, "/ max(elements, 1)\n", "\n"),
    (KERNEL, "slice(start, start + step)\n        policy", "slice(0, step)\n        policy"),
    (KERNEL, "slice(start, start + step)\n        gradient", "slice(0, step)\n        gradient"),
    (
        KERNEL,
        "error = prediction.new_empty(prediction.shape[0], dtype=wide(prediction, reference, target))",
        "error = prediction.new_empty(prediction.shape[0])",
    ),
    (KERNEL, 'check_constant("fused_error", reference=reference, target=target, weight=weight)', "pass"),
    (
        KERNEL,
        "ctx.save_for_backward(prediction, target, weight)",
        "ctx.save_for_backward(prediction, target.clone(), weight)",
    ),
    (KERNEL, "tensor.shape != prediction.shape", "tensor.ndim != prediction.ndim"),
    (KERNEL, "prediction.shape[0] % max(weight.shape[0], 1)", "False"),
    (KERNEL, "tensor.device != prediction.device", "False"),
    (DISPATCH, "tensors if t is not None), torch.float32)", "tensors if t is not None))"),
    # the noising's operator
    (NOISING, "mix(alpha, sigma), mix(a, b)", "mix(sigma, alpha), mix(a, b)"),
    (NOISING, "mix(alpha, sigma), mix(a, b)", "mix(alpha, sigma), mix(b, a)"),
    (NOISING, "coefficient.to(dtype).reshape", "coefficient.to(x.dtype).reshape"),
    (NOISING, "mixed.to(kept).contiguous()", "mixed.to(x0.dtype).contiguous()"),
    (NOISING, "mixed.to(kept).contiguous()", "mixed.to(kept)"),
    (NOISING, "alpha * to_x_t + a * to_target", "alpha * to_x_t - a * to_target"),
    (NOISING, "sigma * to_x_t + b * to_target", "sigma * to_x_t"),
    (NOISING, "to_eps.sum(1, keepdim=True)", "to_eps.mean(1, keepdim=True)"),
    (NOISING, 'check_constant("noise_and_target", alpha=alpha, sigma=sigma, a=a, b=b)', "pass"),
    # DPO
    (DPO, "-F.logsigmoid(", "F.logsigmoid("),
    (DPO, "-F.logsigmoid(", "-F.logsigmoid(-1 * "),
    (DPO, "-F.logsigmoid(", "-F.logsigmoid(2 * "),
    (DPO, "-F.logsigmoid(", "F.relu(-"),
    (DPO, "preference * (r[:, 0] - r[:, 1])", "(preference * 5e3) * ((r[:, 0] - r[:, 1]) / 5e3)"),
    (DPO, "(r[:, 0] - r[:, 1])", "(r[:, 0] + r[:, 1])"),
    (DPO, "(r[:, 0] - r[:, 1])", "(r[:, 1] - r[:, 0])"),
    (DPO, "(scores[:, 0] - scores[:, 1]).sign()", "(scores[:, 0] - scores[:, 1])"),
    (DPO, "(scores[:, 0] - scores[:, 1]).sign()", "torch.where(scores[:, 0] > scores[:, 1], 1.0, -1.0)"),
    (DPO, "if scores.shape[1] != 2:", "if scores.shape[1] < 2:"),
    (DPO, "(preference < 0).long()", "(preference > 0).long()"),
    (DPO, "drop = -r.gather", "drop = r.gather"),
    (DPO, " * preference.abs()", ""),
    (DPO, "F.relu(drop)", "drop"),
    (DPO, "F.relu(drop)", "F.relu(-drop)"),
    (DPO, "self.sft * drop", "self.sft * F.relu(drop)"),
    (DPO, "loss + self.beta * (self.anchor", "loss + (self.anchor"),
    (DPO, "loss + self.beta * (self.anchor", "loss - self.beta * (self.anchor"),
    (DPO, "if self.anchor or self.sft:", "if self.anchor and self.sft:"),
    (DPO, "if not self.beta > 0:", "if self.beta < 0:"),
    (DPO, "if not getattr(self, name) >= 0:", "if not getattr(self, name) >= -1:"),
    # SmPO
    (SMPO, "-F.logsigmoid(self", "-F.logsigmoid(-self"),
    (SMPO, "-F.logsigmoid(self", "-F.sigmoid(self"),
    (SMPO, "(reward[:, 0] - reward[:, 1]) / 2)", "reward[:, 0] - reward[:, 1])"),
    (SMPO, "(reward[:, 0] - reward[:, 1]) / 2)", "(reward[:, 1] - reward[:, 0]) / 2)"),
    (SMPO, "(reward[:, 0] - reward[:, 1]) / 2)", "(reward[:, 0] - reward[:, 1]).abs() / 2)"),
    (
        SMPO,
        "torch.tanh((",
        "((",
    ),
    (SMPO, "torch.tanh((", "torch.tanh(self.gamma * ("),
    (SMPO, "torch.tanh((", "torch.tanh(1.01 * ("),
    (SMPO, "= self.gamma * torch", "= torch"),
    (SMPO, "self.beta * (factor", "self.beta**2 * (factor"),
    (SMPO, "factor * (r[:, 0] - r[:, 1])", "factor * (r[:, 0] + r[:, 1])"),
    (SMPO, "factor * (r[:, 0] - r[:, 1])", "factor.detach() * (r[:, 0] - r[:, 1])"),
    (SMPO, "factor * (r[:, 0] - r[:, 1])", "factor * (r[:, 0] - r[:, 1]).detach()"),
    (SMPO, "scores.to(r.dtype)", "scores"),
    (SMPO, "if scores.shape[1] != 2:", "if scores.shape[1] < 2:"),
    (SMPO, "(scores >= 0) & (scores <= 1)", "(scores >= 0)"),
    (SMPO, "(scores >= 0) & (scores <= 1)", "(scores <= 1)"),
    (SMPO, "if not ((scores >= 0) & (scores <= 1)).all():", "if ((scores < 0) | (scores > 1)).any():"),
    (SMPO, "if not self.beta > 0:", "if self.beta < 0:"),
    (SMPO, "if not self.gamma > 0:", "if self.gamma < 0:"),
    (SMPO, "beta: float = 5000.0", "beta: float = 2500.0"),
    (SMPO, "gamma: float = 10.0", "gamma: float = 1.0"),
    # RankDPO
    (RANKDPO, "loss = -F.logsigmoid(", "loss = F.logsigmoid("),
    (RANKDPO, "(r[:, :, None] - r[:, None, :])", "(r[:, None, :] - r[:, :, None])"),
    (RANKDPO, "(r[:, :, None] - r[:, None, :])", "(2 * r[:, :, None] - 2 * r[:, None, :])"),
    (RANKDPO, "(r[:, :, None] - r[:, None, :])", "(r[:, :, None] - r[:, None, :].detach())"),
    (RANKDPO, "self.beta * (r", "self.beta**2 * (r"),
    (RANKDPO, "(weights * loss)", "loss"),
    (RANKDPO, "(weights * loss)", "(weights**2 * loss)"),
    (RANKDPO, "return total / (k * (k - 1) / 2)", "return total / (k * (k - 1))"),
    (RANKDPO, "return total / (k * (k - 1) / 2)", "return total / k"),
    (RANKDPO, ".clamp(min=torch.finfo(r.dtype).tiny)", ""),
    (RANKDPO, ".clamp(min=torch.finfo(r.dtype).tiny)", ".clamp(min=1)"),
    (RANKDPO, 'normalize == "pairs":', 'normalize != "weights":'),
    (RANKDPO, "rank = 1 + scores", "rank = scores"),
    (RANKDPO, "rank = 1 + scores", "rank = 2 + scores"),
    (RANKDPO, "descending=True", "descending=False"),
    (RANKDPO, "descending=True).argsort(1)", "descending=True)"),
    (RANKDPO, "rank.log1p()", "rank.log()"),
    (RANKDPO, "rank.log1p()", "rank"),
    (RANKDPO, "rank.log1p()", "(1 + rank).log10()"),
    (RANKDPO, "(1 + rank).log2()", "(1 + rank).log10()"),
    (RANKDPO, "(1 + rank).log2()", "(2 + rank).log2()"),
    (RANKDPO, 'self.discount == "ln"', 'self.discount == "log2"'),
    (RANKDPO, "1 / (rank", "-1 * (rank"),
    (RANKDPO, "(tied * inverse[:, None, :]).sum(2) / tied.sum(2)", "inverse"),
    (RANKDPO, "(tied * inverse[:, None, :]).sum(2) / tied.sum(2)", "(tied * inverse[:, None, :]).sum(2)"),
    (RANKDPO, "(tied * inverse[:, None, :]).sum(2) / tied.sum(2)", "(tied * inverse[:, None, :]).amax(2)"),
    (RANKDPO, "scores.exp2()", "scores"),
    (RANKDPO, "scores.exp2()", "scores.exp()"),
    (RANKDPO, "F.relu(gain[:, :, None] - gain[:, None, :])", "(gain[:, :, None] - gain[:, None, :])"),
    (RANKDPO, "F.relu(gain[:, :, None] - gain[:, None, :])", "F.relu(gain[:, None, :] - gain[:, :, None])"),
    (RANKDPO, " * (inverse[:, :, None] - inverse[:, None, :])", ""),
    (RANKDPO, " * (inverse[:, :, None] - inverse[:, None, :])", " * (inverse[:, None, :] - inverse[:, :, None])"),
    (RANKDPO, "scores.to(r.dtype)", "scores"),
    (RANKDPO, "if k < 2:", "if k < 1:"),
    (RANKDPO, "if k < 2:", "if k != 2:"),
    (RANKDPO, "(scores >= 0) & (scores <= 1)", "(scores >= 0)"),
    (RANKDPO, "(scores >= 0) & (scores <= 1)", "(scores <= 1)"),
    (RANKDPO, "if not self.beta > 0:", "if self.beta < 0:"),
    (RANKDPO, "not in known:", "in ():"),
    # D3PO
    (D3PO, "-F.logsigmoid(self", "-F.logsigmoid(-self"),
    (D3PO, "(scores - scores.flip(1)).sign()", "(scores.flip(1) - scores).sign()"),
    (D3PO, "(scores - scores.flip(1)).sign()", "(scores - scores.flip(1))"),
    (D3PO, "(scores - scores.flip(1)).sign()", "(2 * (scores > scores.flip(1)).double() - 1)"),
    (D3PO, ".sign().to(r.dtype)", ".sign()"),
    (D3PO, "self.beta * (preference", "self.beta**2 * (preference"),
    (D3PO, "(preference * r).sum(1)", "(preference * r).mean(1)"),
    (D3PO, "(preference * r).sum(1)", "(preference * r)[:, 0]"),
    (D3PO, "(preference * r).sum(1)", "(preference * r.exp()).sum(1)"),
    (D3PO, "math.log1p(-self.clip), math.log1p(self.clip)", "-self.clip, self.clip"),
    (D3PO, "math.log1p(-self.clip), math.log1p(self.clip)", "-math.log1p(self.clip), math.log1p(self.clip)"),
    (D3PO, "math.log1p(-self.clip), math.log1p(self.clip)", "math.log1p(-self.clip), -math.log1p(-self.clip)"),
    (D3PO, "math.log1p(-self.clip), math.log1p(self.clip)", "math.log1p(self.clip), math.log1p(-self.clip)"),
    (D3PO, "math.log1p(-self.clip), math.log1p(self.clip)", "math.log(0.9), math.log(1.1)"),
    (D3PO, "r = r.clamp(low, high)", "r = r.clamp(max=high)"),
    (D3PO, "r = r.clamp(low, high)", "r = r + (r.clamp(low, high) - r).detach()"),
    (D3PO, "r = r.clamp(low, high)", "r = r.exp().clamp(1 - self.clip, 1 + self.clip) - 1"),
    (D3PO, "torch.where(preference > 0,", "torch.where(preference < 0,"),
    (D3PO, "r.clamp(max=high), r.clamp(min=low)", "r.clamp(min=low), r.clamp(max=high)"),
    (D3PO, "r.clamp(max=high), r.clamp(min=low)", "r.clamp(max=high), r"),
    (D3PO, "r.clamp(max=high), r.clamp(min=low)", "r, r.clamp(min=low)"),
    (D3PO, 'if self.clip_style == "clamp":', 'if self.clip_style != "ppo":'),
    (D3PO, 'elif self.clip_style == "ppo":', "else:"),
    (
        D3PO,
        'clip_style: Literal["clamp", "ppo", "none"] = "clamp"',
        'clip_style: Literal["clamp", "ppo", "none"] = "ppo"',
    ),
    (D3PO, "if scores.shape[1] != 2:", "if scores.shape[1] < 2:"),
    (D3PO, "if not 0 < self.clip < 1:", "if self.clip >= 1:"),
    (D3PO, "if not 0 < self.clip < 1:", "if not 0 < self.clip:"),
    (D3PO, "if not self.beta > 0:", "if self.beta < 0:"),
    (D3PO, "if self.clip_style not in", "if None in"),
    # DDO
    (DDO, "-F.logsigmoid(self", "-F.logsigmoid(-self"),
    (DDO, "-F.logsigmoid(self", "-F.logsigmoid(2 * self"),
    (DDO, "(real - fake) * r", "r"),
    (DDO, "(real - fake) * r", "real * r"),
    (DDO, "(real - fake) * r", "(fake - real) * r"),
    (DDO, "(real - fake) * r", "(real - fake) * r.detach()"),
    (DDO, "self.beta * (", "self.beta**2 * ("),
    (DDO, "of_real + self.alpha * of_fake", "of_real + of_fake"),
    (DDO, "of_real + self.alpha * of_fake", "of_real - self.alpha * of_fake"),
    (DDO, "of_real + self.alpha * of_fake", "of_real + self.alpha**2 * of_fake"),
    (DDO, "of_real + self.alpha * of_fake", "self.alpha * of_real + of_fake"),
    (DDO, "of_real + self.alpha * of_fake", "self.alpha * (of_real + of_fake)"),
    (DDO, "kind / kind.sum(1, keepdim=True).clamp(min=1)", "kind"),
    (DDO, "kind / kind.sum(1, keepdim=True).clamp(min=1)", "kind / kind.shape[1]"),
    (DDO, "kind.sum(1, keepdim=True).clamp(min=1)", "kind.sum(1, keepdim=True)"),
    (DDO, "kind.sum(1, keepdim=True).clamp(min=1)", "kind.sum().clamp(min=1)"),
    (DDO, "in (real, fake))", "in (fake, real))"),
    (DDO, "* loss).sum(1)", "* loss).mean(1)"),
    (DDO, "is_real.to(r.dtype)", "is_real.to(scores.dtype)"),
    (DDO, "is_real = scores == 1", "is_real = scores > 0"),
    (DDO, "if not (is_real | (scores == 0)).all():", "if (scores < 0).any():"),
    (DDO, "if not self.alpha >= 0:", "if self.alpha < 0:"),
    (DDO, "if not self.alpha >= 0:", "if not self.alpha >= -1:"),
    (DDO, "if not self.beta > 0:", "if self.beta < 0:"),
    (DDO, "alpha: float = 4.0", "alpha: float = 1.0"),
    # shares and times of the path
    (PATH, "return sigma / (alpha + sigma)", "return sigma / alpha"),
    (PATH, "return sigma / (alpha + sigma)", "return alpha / (alpha + sigma)"),
    (PATH, "return sigma / (alpha + sigma)", "return sigma / (alpha**2 + sigma**2).sqrt()"),
    (PATH, "(complements / (roots + complements)).sort()", "(roots / (roots + complements)).sort()"),
    (PATH, "return order.to(share.device)[torch.where", "return torch.arange(len(order))[torch.where"),
    (PATH, "torch.where(nearer_below, below, above)", "torch.where(nearer_below, above, below)"),
    (PATH, "torch.where(nearer_below, below, above)", "above"),
    (PATH, "torch.where(nearer_below, below, above)", "below"),
    (PATH, "above.clamp(max=len(shares) - 1)", "above"),
    (PATH, "share / (1 - share)", "share / (1 + share)"),
    (PATH, "last=len(table) - 1", "last=len(table)"),
    (PATH, "last=1.0", "last=0.999"),
    (PATH, "last=math.inf", "last=100.0"),
    (PATH, "(t >= 0) & (t <= self.last)", "(t >= -1) & (t <= self.last)"),
    (PATH, "(t >= 0) & (t <= self.last)", "(t >= 0) & (t <= 1000)"),
    (PATH, " or not bool((self.sigma(t) > 0).all())", ""),
    (PATH, "not bool(inside.all())", "not bool(inside.any())"),
    # inversion
    (INVERSION, "@torch.no_grad()\n", ""),
    (INVERSION, "ratio * x + (sigma - ratio * sigma_here) * eps", "ratio * x + (sigma - sigma_here) * eps"),
    (INVERSION, "ratio * x + (sigma - ratio * sigma_here) * eps", "x + (sigma - sigma_here) * eps"),
    (INVERSION, "ratio * x + (sigma - ratio * sigma_here) * eps", "ratio * x + (sigma + ratio * sigma_here) * eps"),
    (INVERSION, "ratio = alpha / alpha_here", "ratio = alpha_here / alpha"),
    (
        INVERSION,
        "(alpha_here, sigma_here), (alpha, sigma) = ",
        "(alpha_here, sigma_here), (sigma, alpha) = ",
    ),
    (INVERSION, "return one, torch.zeros_like(one)", "return torch.zeros_like(one), one"),
    (
        INVERSION,
        "return like(path.alpha(t), x), like(path.sigma(t), x)",
        "return like(path.sigma(t), x), like(path.alpha(t), x)",
    ),
    (INVERSION, "estimate(x, there if here is None else here)", "estimate(x, there)"),
    (INVERSION, "estimate(above(estimates[-1]), there)", "estimate(above(estimates[-1]), there - 1)"),
    (INVERSION, "estimate(above(estimates[-1]), there)", "estimate(x, there)"),
    (INVERSION, "estimate(above(estimates[-1]), there)", "estimate(above(estimates[0]), there)"),
    (INVERSION, "for _ in range(renoise):", "for _ in range(renoise + 1):"),
    (INVERSION, "for _ in range(renoise):", "for _ in range(min(renoise, 1)):"),
    (INVERSION, "torch.stack(estimates).mean(0)", "torch.stack(estimates[1:]).mean(0)"),
    (INVERSION, "torch.stack(estimates).mean(0)", "torch.stack(estimates).sum(0)"),
    (INVERSION, "torch.stack(estimates).mean(0)", "torch.stack(estimates).mean((0, 1))"),
    (INVERSION, "if average else estimates[-1]", "if average else estimates[0]"),
    (INVERSION, "model.path.to_eps(model", "model.path.to_x0(model"),
    (INVERSION, "share * (step / steps)", "share * ((step - 1) / steps)"),
    (INVERSION, "share * (step / steps)", "share * (step / steps) ** 2"),
    (INVERSION, "for step in range(1, steps)]", "for step in range(1, steps + 1)]"),
    (INVERSION, "for level in inner), t]", "for level in inner), inner[-1] if inner else t]"),
    (INVERSION, "torch.minimum(level, t) for level in inner", "level for level in inner"),
    (INVERSION, "in levels(path, t, steps):", "in levels(path, t.amax().expand(len(t)), steps):"),
    (INVERSION, "        here = there\n", "        here = there if here is None else here\n"),
    (INVERSION, "if eta and here is not None:", "if eta:"),
    (INVERSION, "if eta and here is not None:", "if here is not None:"),
    (INVERSION, "x = x + like(eta * posterior_std", "x = x + like(eta**2 * posterior_std"),
    (
        INVERSION,
        "x = x + like(eta * posterior_std",
        "x = x + like(eta * posterior_std(path, there, here) ** 2 + 0 * posterior_std",
    ),
    (
        INVERSION,
        "x = x + like(eta * posterior_std(path, there, here)",
        "x = x + like(eta * posterior_std(path, here, there)",
    ),
    (
        PUBLISHED,
        "climbed + like(eta * posterior_std(path, there, here)",
        "climbed + like(eta * posterior_std(path, here, there)",
    ),
    (PUBLISHED, "climbed + like(eta * posterior_std", "climbed + like(0 * posterior_std"),
    (NOISE, "return sigma_s / sigma_t * (", "return sigma_t / sigma_s * ("),
    (NOISE, "return sigma_s / sigma_t * (", "return ("),
    (NOISE, "(ratio * sigma_s).square()", "sigma_s.square()"),
    (NOISE, "path.alpha(t) / path.alpha(s)", "path.alpha(s) / path.alpha(t)"),
    (NOISE, ".clamp(min=0).sqrt()", ".clamp(min=0)"),
    (NOISE, "for g in generator]", "for g in [generator[0]] * len(x)]"),
    (NOISE, "torch.randn(x.shape, generator=generator,", "torch.randn(x.shape,"),
    (NOISE, "if len(generator) != len(x):", "if len(generator) < len(x):"),
    (INVERSION, "sigma - ratio * sigma_here) * eps).to(x.dtype)", "sigma - ratio * sigma_here) * eps)"),
    (INVERSION, "    path.check_times(t)\n", ""),
    (INVERSION, "if t.shape != x0.shape[:1]:", "if t.ndim != 1:"),
    (INVERSION, "if steps < 1:", "if steps < 0:"),
    (INVERSION, "if renoise < int(average):", "if renoise < 0:"),
    (INVERSION, "if renoise < int(average):", "if average and renoise < 1:"),
    (INVERSION, "if not eta >= 0:", "if eta < 0:"),
    (PUBLISHED, "@torch.no_grad()\n", ""),
    (PUBLISHED, "(source < t)", "(source <= t)"),
    (PUBLISHED, "(source < t)", "(source < t[0] + 0 * t)"),
    (PUBLISHED, "climbed, x)\n", "x, climbed)\n"),
    (PUBLISHED, "torch.full_like(t, source), x, []", "torch.full_like(t, source + stride), x, []"),
    (PUBLISHED, "torch.full_like(t, source), x, []", "torch.full_like(t, max(source, 0)), x, []"),
    (PUBLISHED, "range(1 - stride,", "range(-stride,"),
    (PUBLISHED, "range(1 - stride,", "range(1,"),
    (PUBLISHED, "1 - stride + steps * stride,", "1000 - stride,"),
    (PUBLISHED, "min(max(index, 0), LEVELS - 1)", "min(max(index, 1), LEVELS - 1)"),
    (PUBLISHED, "ratio * like(path.sigma(here), x)", "like(path.sigma(here), x)"),
    (PUBLISHED, "range(renoise + 1)", "range(min(renoise, 1) + 1)"),
    (PUBLISHED, "average and len(estimates) > renoise", "average and False"),
    (PUBLISHED, "average and len(estimates) > renoise", "average"),
    (PUBLISHED, "average and len(estimates) > renoise", "len(estimates) > renoise"),
    (PUBLISHED, "gain * eps).to(x.dtype)", "gain * eps)"),
    (PUBLISHED, "path.last != LEVELS - 1", "path.last < LEVELS - 1"),
    (PUBLISHED, "path.last != LEVELS - 1", "path.last > LEVELS - 1"),
    (PUBLISHED, "if stride < 1:", "if stride < 0:"),
    # the probes of inversions and of steps
    (PROBE, "value.repeat_interleave(k, 0)", "value.repeat(k, *[1] * (value.ndim - 1))"),
    (PROBE, "t.repeat_interleave(k, 0),", "t.repeat(k),"),
    (PROBE, "unflatten(0, (b, k))", "unflatten(0, (k, b)).transpose(0, 1)"),
    (PROBE, "        renoise=renoise,\n", ""),
    (PROBE, "        average=average,\n", ""),
    (PROBE, "        eta=eta,\n", ""),
    (PROBE, "        generator=generator,\n", ""),
    (PROBE, "x_t = inverter(", "x_t = invert("),
    (PROBE, "(x_t - like(path.alpha(t), x0) * x0)", "(x_t - x0)"),
    (PROBE, "like(path.alpha(t), x0) * x0) / like(path.sigma(t), x0)", "like(path.alpha(t), x0) * x0)"),
    (PROBE, "path.target(x0, tau, t)", "path.target(x_t, tau, t)"),
    (PROBE, "path.target(x0, tau, t)", "tau"),
    (PROBE, "path.target(x0, tau, t)", "-path.target(x0, tau, t)"),
    (PROBE, "tau, t), t, _unit_weight(x0), dict(cond or {})", "tau, t), t, _unit_weight(x0), {}"),
    (PROBE, "(step.gain / step.std).square()", "(step.gain / step.std).abs()"),
    (PROBE, "(step.gain / step.std).square()", "(step.std / step.gain).square()"),
    (PROBE, "(step.gain / step.std).square()", "(step.gain / step.std).square() / 2"),
    (PROBE, "(step.gain / step.std).square()", "(1 / step.std).square()"),
    (PROBE, "(step.gain / step.std).square()", "_unit_weight(x_t)"),
    (PROBE, "square(), dict(cond or {})", "square(), {}"),
    (PROBE, "(x_s - like(step.keep, x_t) * x_t)", "(like(step.keep, x_t) * x_t - x_s)"),
    (PROBE, "(x_s - like(step.keep, x_t) * x_t)", "(x_s - x_t)"),
    (
        PROBE,
        "(x_s - like(step.keep, x_t) * x_t) / like(step.gain, x_t)",
        "(x_s - like(step.keep, x_t) * x_t) * like(step.gain, x_t)",
    ),
    (PROBE, "like(step.gain, x_t)).to(x_s.dtype)", "like(step.gain, x_t))"),
    (PROBE, "(rule or Ancestral())(path, t, s)", "Ancestral()(path, t, s)"),
    (PROBE, "(rule or Ancestral())(path, t, s)", "(rule or Ancestral(0.5))(path, t, s)"),
    (PROBE, "if not bool((s < t).all()):", "if not bool((s <= t).all()):"),
    (PROBE, "if not bool((s < t).all()):", "if not bool((s < t).any()):"),
    (PROBE, "    path.check_times(t)\n", ""),
    (PROBE, '    path.check_times(s, "s")\n', ""),
    (PROBE, "    _check_one_time_a_prompt(x_t, t)\n", ""),
    (PROBE, "    _check_one_time_a_prompt(x_t, s)\n", ""),
    (PROBE, "if not bool((step.std > 0).all()):", "if not bool((step.std >= 0).all()):"),
    (PROBE, "if x_s.shape != x_t.shape:", "if x_s.ndim != x_t.ndim:"),
    # stochastic steps
    (TRANSITION, "d = alpha * b - sigma * a", "d = alpha * b + sigma * a"),
    (TRANSITION, "(b * of_x0 - a * of_eps) / d", "(b * of_x0 + a * of_eps) / d"),
    (TRANSITION, "(alpha * of_eps - sigma * of_x0) / d", "(sigma * of_x0 - alpha * of_eps) / d"),
    (TRANSITION, "self.eta * posterior_std", "self.eta**2 * posterior_std"),
    (TRANSITION, "self.eta * posterior_std(path, t, s)", "self.eta * posterior_std(path, s, t)"),
    (TRANSITION, "path.sigma(s).square() - std.square()", "path.sigma(s).square() - std"),
    (TRANSITION, "path.sigma(s).square() - std.square()", "path.sigma(s).square()"),
    (TRANSITION, "path.sigma(s).square() - std.square()", "path.sigma(t).square() - std.square()"),
    (TRANSITION, "path, t, path.alpha(s), (", "path, t, path.alpha(t), ("),
    (TRANSITION, "eta: float = 1.0", "eta: float = 0.5"),
    (TRANSITION, "noise: float = 0.7", "noise: float = 1.0"),
    (TRANSITION, "self.noise * (t", "(t"),
    (TRANSITION, "self.noise * (t", "self.noise**2 * (t"),
    (TRANSITION, "        dt = s - t\n", "        dt = t - s\n"),
    (TRANSITION, "torch.where(t < 1, t, s)", "s"),
    (TRANSITION, "torch.where(t < 1, t, s)", "torch.where(t < 0.5, t, s)"),
    (TRANSITION, "torch.where(t < 1, t, s)", "t.clamp(max=0.999)"),
    (TRANSITION, "1 + g.square() / (2 * t) * dt, (", "1 - g.square() / (2 * t) * dt, ("),
    (TRANSITION, "1 + g.square() / (2 * t) * dt, (", "1 + g.square() / t * dt, ("),
    (TRANSITION, "g.square() * (1 - t) / (2 * t)", "g.square() / (2 * t)"),
    (TRANSITION, "g.square() * (1 - t) / (2 * t)", "g.square() * (1 - s) / (2 * t)"),
    (TRANSITION, "g * (-dt).sqrt()", "g * -dt"),
    (TRANSITION, "g * (-dt).sqrt()", "g"),
    (TRANSITION, "Step(of_x + keep, gain", "Step(of_x, gain"),
    (TRANSITION, "_combine(path, t, -of_v, of_v)", "_combine(path, t, of_v, -of_v)"),
    (TRANSITION, "_combine(path, t, -of_v, of_v)", "_combine(path, s, -of_v, of_v)"),
    (TRANSITION, "t.is_floating_point() and straight", "straight"),
    (TRANSITION, "t.is_floating_point() and straight", "t.is_floating_point()"),
    (TRANSITION, " - math.log(2 * math.pi) / 2", ""),
    (TRANSITION, " - math.log(2 * math.pi) / 2", " - math.log(2 * math.pi)"),
    (TRANSITION, " - std.log()", ""),
    (TRANSITION, " - std.log()", " + std.log()"),
    (TRANSITION, "((x_s - mean) / std).square() / 2", "((x_s - mean) / std).square()"),
    (TRANSITION, "((x_s - mean) / std).square() / 2", "(x_s - mean).square() / std / 2"),
    (TRANSITION, "density.flatten(1).mean(1)", "density.flatten(1).sum(1)"),
    (TRANSITION, "density.flatten(1).mean(1)", "density.mean().expand(len(density))"),
    (TRANSITION, "@torch.no_grad()\n", ""),
    (TRANSITION, "rule or Ancestral(), model.path", "Ancestral(), model.path"),
    (TRANSITION, "(times.diff() < 0).all()", "(times.diff() <= 0).all()"),
    (TRANSITION, "(times.diff() < 0).all()", "(times.diff() < 0).any()"),
    (TRANSITION, "len(times) < 2", "len(times) < 1"),
    (TRANSITION, "times.ndim != 1 or", "times.ndim == 0 or"),
    (TRANSITION, '    path.check_times(times, "times")\n', ""),
    (TRANSITION, "rule(path, t, s), model(x, t, cond or {})", "rule(path, t, s), model(x, s, cond or {})"),
    (TRANSITION, "rule(path, t, s), model(x, t, cond or {})", "rule(path, t, s), model(x, t, {})"),
    (TRANSITION, "* draw(x, generator)", "* draw(x, None)"),
    (TRANSITION, "like(step.std, x) * draw", "like(step.std, x).square() * draw"),
    (TRANSITION, "following = following.to(x.dtype)", "following = following.float()"),
    (TRANSITION, "log_density(step, prediction, x, following)", "log_density(step, prediction, following, x)"),
    (TRANSITION, "        x = following\n", ""),
    (TRANSITION, "chain.latents[-1], chain.times[-1]", "chain.latents[-1], chain.times[-2]"),
    (TRANSITION, "chain.latents[-1], chain.times[-1]", "chain.latents[-2], chain.times[-1]"),
    (TRANSITION, "with torch.no_grad():", "with torch.enable_grad():"),
    (TRANSITION, "model.path.to_x0(model(x, t, cond or {}), x, t)", "model.path.to_x0(model(x, t, {}), x, t)"),
    (TRANSITION, "model.path.to_x0(model(x, t, cond or {}), x, t)", "model.path.to_eps(model(x, t, cond or {}), x, t)"),
]


def copy_to(folder: Path) -> None:
    for name in ("diffpref", "examples", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def run_tests(folder: Path) -> int:
    """pytest's exit code on the package in this folder; for a process of its own, whose modules it fills."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # before the installed package
    sys.dont_write_bytecode = True
    code = int(pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *TESTS]))
    assert Path(str(sys.modules["diffpref"].__file__)).is_relative_to(folder), "the tests ran on another copy"
    return code


def failing_test(folder: Path) -> str | None:
    """The first test that fails on the package in this folder, or None."""
    log = folder / "log.txt"
    sys.stdout.flush()
    if (child := os.fork()) == 0:  # torch and the test tools are loaded already
        code = 70
        try:
            with log.open("w") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            code = run_tests(folder)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return None
    lines = log.read_text(encoding="utf-8").splitlines()
    if status != 1 and not any(line.startswith("ERROR tests") for line in lines):
        raise RuntimeError("pytest did not run:\n" + "\n".join(lines[-20:]))
    return next(line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR")))


def main() -> int:
    words = sys.argv[1:]
    torch.set_num_threads(1)  # a thread pool would not survive the fork
    mutants = [mutant for mutant in MUTANTS if not words or any(word in " ".join(mutant) for word in words)]
    problems = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_to(folder)
        if (failure := failing_test(folder)) is not None:
            print(f"no bug planted, and yet: {failure}")
            return 1
        start = time.monotonic()
        for name, text, bug in mutants:
            source = (ROOT / name).read_text(encoding="utf-8")
            if source.count(text) != 1:
                problems += 1
                print(f"NOT FOUND ONCE  {name}: {text!r} is there {source.count(text)} times", flush=True)
                continue
            mutated = source.replace(text, bug)
            compile(mutated, name, "exec")  # a bug that no test is needed for proves nothing
            (folder / name).write_text(mutated, encoding="utf-8")
            failure = failing_test(folder)
            (folder / name).write_text(source, encoding="utf-8")
            problems += failure is None
            outcome = "SURVIVED" if failure is None else "killed  "
            print(f"{outcome}  {name}: {text!r} -> {bug!r}  {failure or ''}", flush=True)
    print(f"{len(mutants)} bugs, {problems} not killed, {time.monotonic() - start:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
