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
TESTS += ["tests/objectives/test_dpo.py", "tests/objectives/test_behaviour.py", "-k", "not diffusers"]

PATH, TYPES, PROBE, ERRORS, DPO = (
    f"diffpref/{name}.py" for name in ("path", "types", "probe", "errors", "objectives/dpo")
)
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
    (PATH, "alpha, sigma, at(-complements), alpha", "alpha, sigma, at(complements), at(-roots)"),
    (PATH, "alpha, sigma, at(-complements), alpha", "alpha, sigma, alpha, at(-complements)"),
    (PATH, "(table >= 0) & (table <= 1)", "table <= 1"),
    (PATH, "(table >= 0) & (table <= 1)", "table >= 0"),
    (PATH, "values.to(t.device)[t]", "values.to(t.device)[t - 1]"),
    (PATH, "if t.dtype not in (torch.int32, torch.int64):", "if t.dtype == torch.float64:"),
    (PATH, "if prediction not in PREDICTIONS:", "if not prediction:"),
    (PATH, "lambda t: 1 - wide(t), wide,", "wide, lambda t: 1 - wide(t),"),
    (PATH, "lambda t: -torch.ones_like(wide(t))", "lambda t: torch.ones_like(wide(t))"),
    (PATH, "GaussianPath(torch.ones_like, lambda t: t,", "GaussianPath(torch.ones_like, lambda t: t**2,"),
    (PATH, "t: t, torch.ones_like, torch.zeros_like)", "t: t, torch.zeros_like, torch.ones_like)"),
    (PATH, "if not sigma_data > 0:", "if sigma_data < 0:"),
    # the log-ratio
    (TYPES, "(self.reference - self.policy) / 2", "(self.policy - self.reference) / 2"),
    (TYPES, "(self.reference - self.policy) / 2", "(self.reference - self.policy)"),
    # the probe
    (PROBE, "x_t=path.noise(x0, eps, t)", "x_t=path.noise(x0, eps.flip(1), t)"),
    (PROBE, "target=path.target(x0, eps, t)", "target=path.target(path.noise(x0, eps, t), eps, t)"),
    (PROBE, "target=path.target(x0, eps, t)", "target=eps"),
    (PROBE, "torch.promote_types(x0.dtype, torch.float32))", "x0.dtype)"),
    (PROBE, "torch.ones(x0.shape[0], device", "torch.full(x0.shape[:1], 0.5, device"),
    (PROBE, "torch.ones(x0.shape[0], device=x0.device,", "torch.ones(x0.shape[0],"),
    (PROBE, "dict(cond or {})", "cond or {}"),
    (PROBE, "dict(cond or {})", "{}"),
    (PROBE, "if t.shape != x0.shape[:1]:", "if t.ndim != 1:"),
    (PROBE, "if eps.shape != x0.shape:", "if eps.ndim != x0.ndim:"),
    # the errors
    (ERRORS, "value.repeat_interleave(k, 0)", "value.repeat(k, *[1] * (value.ndim - 1))"),
    (ERRORS, "probe.t.repeat_interleave(k, 0)", "probe.t.repeat(k)"),
    (ERRORS, "probe.x_t.flatten(0, 1)", "probe.x_t.transpose(0, 1).flatten(0, 1)"),
    (ERRORS, "flatten(2).mean(2)", "flatten(2).sum(2)"),
    (ERRORS, "squared.flatten(2).mean(2)", "squared.flatten(2).mean(2).sqrt()"),
    (ERRORS, "- target.to(wide)).square()", "- target.to(wide)).abs()"),
    (ERRORS, "prediction.to(wide) - target.to(wide)", "(prediction - target).to(wide)"),
    (ERRORS, "target.dtype), torch.float32)", "target.dtype), target.dtype)"),
    (ERRORS, " * weight.to(wide)[:, None]", ""),
    (ERRORS, " * weight.to(wide)[:, None]", " / weight.to(wide)[:, None]"),
    (ERRORS, "with torch.no_grad():", "with torch.enable_grad():"),
    (ERRORS, "model_error(reference, probe)", "model_error(policy, probe)"),
    (ERRORS, "policy=model_error(policy, probe)", "policy=model_error(policy, probe).detach()"),
    (ERRORS, "reference=reference_error)", "reference=model_error(reference, probe))"),
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
]


def copy_to(folder: Path) -> None:
    for name in ("diffpref", "tests"):
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
