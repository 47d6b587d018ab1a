"""A run's plan and engine, from what its settings, its backbone and its models say."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from diffpref.backbones import Family
from diffpref.backbones.adapters import Adapter, Streamed
from diffpref.backbones.guidance import guided
from diffpref.engine import build
from diffpref.engine.modes import Auto, Mode
from diffpref.engine.plan import Plan
from diffpref.engine.step import Engine
from diffpref.engine.stored import StoredErrors, attention_of, open_store, path_identity
from diffpref.probes import AnyBatch, ProbeChoice, Stage
from diffpref.training.groups import LossEngine, Run
from diffpref.training.models import Models
from diffpref.training.optimizers import Optimizer
from diffpref.training.rounds import Source
from diffpref.types import Backbone, Cond, Objective, Probe


@dataclass(frozen=True, kw_only=True)
class Works:
    """What the engine of a run is made from, whatever its steps are going to hold."""

    accelerator: Accelerator
    family: Family
    models: Models
    probe: ProbeChoice
    source: Source
    adapter: Adapter
    settings: LossEngine
    accumulation: int
    """Batches of a step."""
    empty: Cond
    """The unconditional prompt, for guidance in the loss."""
    streamed: Streamed | None
    """What puts the reference's weights in the network's place; made before any weight moves."""

    def guided(self, model: Backbone) -> Backbone:
        """The model under the guidance of the loss."""
        return guided(model, self.probe.traits.guidance, self.empty)

    def plan(self, mode: Mode | Auto, optimizer: Optimizer, example: AnyBatch, kept: Plan | None) -> Plan:
        """The plan of a run, from a batch on the device; see `make_plan`."""
        x0, b_k = example.candidates.x0[:1, :1], example.candidates.scores.shape
        cond = {name: value[:1] for name, value in example.candidates.cond.items()}
        network = self.models.network
        return build.make_plan(
            mode,
            self.accelerator,
            network=network,
            policy=self.guided(self.family.backbone(network)),
            example=Probe(x0, x0, example.t[:1], torch.ones(1, device=x0.device), cond),
            sizes=build.sizes(*b_k, chains=self.source.gives.together, accumulation=self.accumulation),
            cheap_scratch=self.adapter.added,
            state_bytes=optimizer.state_bytes,
            budget_gib=self.settings.memory_budget_gib,
            kept=kept,
        )

    def engine(
        self,
        plan: Plan,
        objective: Objective,
        *,
        scores: torch.Tensor,
        run: Run,
        identity: str,
        stored: StoredErrors | None,
    ) -> Engine:
        """The engine that follows the plan.

        Args:
            scores: of a batch, on which the objective is tried.
            identity: of the run, which its stored inversions depend on.
        """
        family, models, traits = self.family, self.models, self.probe.traits
        wrapped, reference = self.guided(models.policy), self.guided(models.reference)
        stage = Stage(
            policy=wrapped,
            reference=reference,
            weight=family.loss_weight,
            rule=traits.rule(family.step),
            seed=run.seed,
            identity=identity,
            folder=run.output_dir / "inversions",
        )
        # Weights that are streamed come in once for the whole window, which also holds all pairs of a chain's step.
        whole = self.streamed is not None or self.source.gives.together > 0
        return build.build_engine(
            plan,
            self.accelerator,
            network=models.network,
            prepared=models.prepared,
            policy=self.guided(family.backbone(models.network)),
            wrapped=wrapped,
            reference=reference,
            objective=objective,
            scores=scores,
            prober=self.probe.build(stage),
            reference_batch=self.settings.reference_batch,
            window=self.accumulation if whole else 0,
            inverts=traits.runs_reference,
            loaded=nullcontext if self.streamed is None else self.streamed.loaded,
            stored=stored,
        )

    def stored(self, run: Run, flat: Mapping[str, object], cache: Path) -> StoredErrors | None:
        """The reference's errors that earlier epochs and runs have kept, where the settings keep them.

        Args:
            flat: the run's flat keys.
            cache: the folder of latents, next to which the errors lie.
        """
        if not self.settings.stored_reference:
            return None
        base = asdict(self.family.checkpoint)
        weights, adapters = base.pop("network_weights"), base.pop("base_adapters")
        what = {
            "base": {**base, "base_adapters": adapters} if adapters else base,
            "network_weights": str(weights),
            "probe": dict(self.probe.identity()),
            "path": path_identity(self.family.path, self.family.loss_weight),
        }
        how = {
            "weights": self.models.base_hash,
            "adapter": flat["adapter"],
            "reference_memory": flat.get("reference_memory", "resident"),
            "mixed_precision": run.mixed_precision,
            "allow_tf32": run.allow_tf32,
            "attention": attention_of(self.models.network),
            "device": self.accelerator.device.type,
        }
        return open_store(cache / "reference", what, how, main=self.accelerator.is_main_process)
