"""One worker: keeps the stage that it last worked on in memory, so that a model is loaded once for all its shards."""

import gc

import torch

from diffpref.labelling.stages import Report, Stage, Work, do_shard


def device_of(number: int) -> torch.device:
    """The accelerator for a worker of that number, in turn over those that are there; else the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None, "one is available"
    return torch.device(kind.type, number % torch.accelerator.device_count())


class Worker:
    """Does shards of stages, one after the other."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device = device
        self._name = ""
        self._work: Work | None = None
        if threads:
            torch.set_num_threads(threads)

    def __call__(self, stage: Stage, shard: int, report: Report) -> None:
        """Do one shard; loads the stage's model where the last shard was of another stage."""
        if self._name != stage.name:
            self.close()
            self._work, self._name = stage.open(self.device), stage.name
        assert self._work is not None, "it was opened above"
        do_shard(stage, self._work, shard, report)

    def close(self) -> None:
        """Give back the memory of the last stage."""
        if self._work is None:
            return
        self._name, self._work = "", None
        if self.device.type != "cpu":
            # A pipeline's cycles would keep its weights on the accelerator until the collector happens to run.
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
