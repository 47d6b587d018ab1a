"""Plants bugs in the loss engine, in LoRA's layers and in what feeds them; see mutate.py.

python tests/mutate_engine.py [WORD ...]        about half a minute a bug on one core
"""

import sys

import diffusers  # noqa: F401  loaded once, for all the forks
import mutate
import peft  # noqa: F401
import transformers  # noqa: F401

ENGINE, TRAINING, BACKBONES = "diffpref/engine", "diffpref/training", "diffpref/backbones"
ADAPTERS = f"{BACKBONES}/adapters"
TESTS = [f"tests/engine/test_{name}.py" for name in ("cuts", "modes", "plan", "costs")]
TESTS += [f"tests/training/test_{name}.py" for name in ("stream", "chain_stream", "stored_reference", "lora_backend")]
TESTS += [
    f"tests/backbones/test_{name}.py" for name in ("fused_lora", "lora_layers", "lora_copies", "guidance", "lora")
]
TESTS += [
    "tests/sources/test_on_policy.py::test_each_chain_runs_once_for_all_its_pairs",
    "tests/training/test_loop.py::test_accumulation_equals_a_larger_batch",
    "tests/engine/test_runs.py::test_a_streamed_reference_is_the_resident_one",
    "tests/training/test_loop.py::test_bfloat16_trains_float32_weights",
]
# The libraries above bring a plugin of pytest with them, which then comes too late to be rewritten.
TESTS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
MUTANTS = [
    # rows
    (f"{ENGINE}/rows.py", "names = part.keys or", "names = () or"),
    (f"{ENGINE}/rows.py", "group = place // k", "group = place % k"),
    (f"{ENGINE}/rows.py", "if separable else [tuple(range(len(groups)))]", "if True else [tuple(range(len(groups)))]"),
    (f"{ENGINE}/rows.py", "for other in joined[1:]:", "for other in joined[2:]:"),
    # the loss head
    (f"{ENGINE}/head.py", "total = total + gradient", "total = gradient"),
    (f"{ENGINE}/head.py", "torch.allclose(slope, slopes[one], 1e-4)", "True"),
    # the modes
    (f"{ENGINE}/modes/deferred.py", "slopes[row] / runner.unit", "slopes[row]"),
    (f"{ENGINE}/modes/deferred.py", "rows[:-micro_batch], rows[-micro_batch:]", "rows[:-1], rows[-1:]"),
    (f"{ENGINE}/modes/joint.py", "once = sorted(set(rows))", "once = rows"),
    (f"{ENGINE}/modes/joint.py", "= [each[places] for each in found]", "= [each[: len(rows)] for each in found]"),
    (f"{ENGINE}/modes/two_pass.py", "== 0\n", "== 1\n"),
    ("diffpref/types.py", "self.policy - self.reference)", "self.reference - self.policy)"),
    (f"{ENGINE}/scalars.py", "slopes * (share / len(scores))", "slopes * share"),
    (f"{ENGINE}/scalars.py", "total[row] + slope if row in total else slope", "slope"),
    (f"{ENGINE}/scalars.py", "row not in run for row", "row in run for row"),
    # gradients
    (f"{ENGINE}/gradients.py", "factor.to(scaled[0])", "factor.to(scaled[0]).abs()"),
    (f"{ENGINE}/gradients.py", "            p.grad = gradient\n\n\ndef add", "            pass\n\n\ndef add"),
    (f"{ENGINE}/independence.py", "torch.set_rng_state(cpu)", "pass"),
    (f"{ENGINE}/independence.py", "module.training or not module.track_running_stats", "False"),
    # the plan
    (f"{ENGINE}/modes/deferred.py", "return max(k - micro_batch, 0)", "return 0"),
    (f"{ENGINE}/modes/deferred.py", " + self.scratches(work.k, micro_batch) * work.gradient", ""),
    (f"{ENGINE}/modes/joint.py", "graph_bytes(work, work.joint", "graph_bytes(work, 1"),
    (f"{ENGINE}/plan.py", "not (work.cut and mode.repeats(work))", "True"),
    (f"{ENGINE}/plan.py", "[True] if checkpointing else", "[True] if False else"),
    (f"{ENGINE}/plan.py", "return work.cut if mode.cuts", "return True if mode.cuts"),
    (f"{ENGINE}/plan.py", "if work.cheap_scratch or not", "if True or not"),
    (f"{ENGINE}/build.py", "math.ceil(b * accumulation / pairs)", "math.ceil(b / pairs)"),
    (f"{ENGINE}/build.py", "if accumulation > 1 else 0", "if False else 0"),
    (f"{TRAINING}/engine.py", "or traits.takes is StepBatch", "or False"),
    # a step
    (f"{ENGINE}/step.py", "batch.candidates.scores, batch.shared)", "batch.candidates.scores, ())"),
    (f"{ENGINE}/modes/joint.py", "mean if accumulation == 1 else mean / accumulation", "mean"),
    (f"{ENGINE}/modes/deferred.py", "1 / accumulation", "1.0"),
    (f"{ENGINE}/modes/two_pass.py", "1 / accumulation", "1.0"),
    # the reference
    ("diffpref/probes/batch.py", "self.eps[group], self.t[group]]", "self.eps[group], self.t[0]]"),
    ("diffpref/probes/batch.py", "self.eps[group], self.t", "self.eps[0], self.t"),
    (f"{ENGINE}/stored.py", "        if changed:", "        if False:"),
    (f"{TRAINING}/engine.py", '"mixed_precision": config.run.mixed_precision,', ""),
    (f"{ENGINE}/reference.py", "if row in missing]", "]"),
    (f"{ADAPTERS}/streamed.py", "self._copy(out_to=None, in_from=self.policy)", "pass"),
    (f"{ADAPTERS}/reference.py", "isinstance(module, torch.nn.Linear | torch.nn.Conv2d)", "True"),
    # the order of the data
    ("diffpref/sources/chains.py", "in by_prompt.values() for", "in ([p] for p in range(len(self.pairs))) for"),
    ("diffpref/sources/chains.py", 'f"{chain} {step}"', 'f"{chain}"'),
    (f"{TRAINING}/stream.py", "step * processes + rank", "step * processes"),
    (f"{TRAINING}/stream.py", "if self._order[0] != epoch:", "if self._order[0] < 0:"),
    # precision
    (f"{TRAINING}/models.py", "accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)", "pass"),
    (f"{TRAINING}/models.py", 'enabled=adapter.autocast', "enabled=True"),
    (f"{TRAINING}/models.py", 'enabled=adapter.autocast', "enabled=False"),
    (f"{BACKBONES}/guidance.py", "torch.promote_types(found.dtype, torch.float32)", "found.dtype"),
    (f"{ADAPTERS}/fused_lora.py", "alpha=scale)", "alpha=1)"),
    (f"{ADAPTERS}/fused_lora.py", "of_b = of_b * ctx.scale", "pass"),
    (f"{ADAPTERS}/fused_lora.py", "of_h = of_h * ctx.scale", "pass"),
    (f"{ADAPTERS}/fused_lora.py", ".addmm_(of_h, down)", ""),
    (f"{ADAPTERS}/lora_layers.py", "copies = self.copied if self.copies.fresh else None", "copies = self.copied"),
    (f"{ADAPTERS}/lora_layers.py", "self.active_adapters != [name]", "False"),
    (f"{ADAPTERS}/lora_layers.py", "if self.disable_adapters or", "if"),
]  # fmt: skip


if __name__ == "__main__":
    mutate.TESTS, mutate.MUTANTS = TESTS, MUTANTS
    sys.exit(mutate.main())
