"""Peak memory of a real step on the CPU, each in a process of its own: stock peft jointly, and ours in each mode."""

import json
import pickle
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.counted import PEER
from diffpref.counting.architectures import Architecture
from diffpref.counting.steps import Setup, make_ready, our_step
from diffpref.engine.modes import MODES

ROOT = Path(__file__).parents[1]
PAIRS = 4
MIB = 2**20
SMALL = Architecture(
    "SDXL of 50 M parameters",
    "StableDiffusionXLPipeline",
    {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [80, 160, 320],
        "norm_num_groups": 16,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "attention_head_dim": [2, 5, 10],
        "transformer_layers_per_block": [1, 1, 2],
        "cross_attention_dim": 512,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 64,
        "projection_class_embeddings_input_dim": 512 + 6 * 64,
    },
    text_lengths=(77, 77),
)
STEPS = (PEER, *MODES)


def memory(repeats: int) -> tuple[list[dict[str, Any]], str]:
    """Peak MiB above the model in each step, medians over processes, and a Markdown table."""
    found: dict[str, list[float]] = {step: [] for step in STEPS}
    for _ in range(repeats):
        for step in STEPS:
            found[step].append(growth(step, SMALL))
    peer = statistics.median(found[STEPS[0]])
    rows: list[dict[str, Any]] = []
    lines = [f"{SMALL.name}, LoRA of rank 64, {PAIRS} pairs, float32, medians of {repeats}:", ""]
    lines += ["| step | peak MiB above the model | range | share of the peer's |", "| --- | --- | --- | --- |"]
    for step, values in found.items():
        middle = statistics.median(values)
        rows.append({"step": step, "mib": middle, "all": values, "share": middle / peer})
        lines.append(f"| {step} | {middle:.0f} | {min(values):.0f} to {max(values):.0f} | {middle / peer:.2f} |")
    return rows, "\n".join(lines)


def growth(step: str, architecture: Architecture) -> float:
    """Peak MiB above the model that a step takes, in a new process: one that was larger before does not grow."""
    command, given = [sys.executable, "-m", "benchmarks.cpu", step], pickle.dumps(architecture)
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"bench cpu: the process of {step} failed: {done.stderr.decode(errors='replace')[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])["mib"]


def _status(name: str) -> float:
    """A figure of this process's memory, in MiB."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(name)) * 1024 / MIB


def _growth_here(step: str, architecture: Architecture) -> float:
    """What `growth` returns, of this process, which must be new."""
    from benchmarks.peers import make_stock, peer_step

    stock = step == PEER
    ready = (make_stock if stock else make_ready)(Setup(architecture, 256, precision="no"), "cpu")
    probe = ready.probe(PAIRS, 2)
    # Linux forgets the peak so far.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    with ready.autocast() as region:
        if stock:
            peer_step(ready.network, ready.policy, probe, 5000.0)
        else:
            our_step(ready, region, probe, MODES[step]())
    return _status("VmHWM") - before


if __name__ == "__main__":
    from diffpref.run.quiet import quiet_libraries

    quiet_libraries()
    print(json.dumps({"mib": _growth_here(sys.argv[1], pickle.load(sys.stdin.buffer))}))
