"""The end of a run: of one in rounds, its own folder gets the result; and the hub gets the folder, where asked."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from accelerate import PartialState

from diffpref.backbones.identity import BASE_FILE
from diffpref.run.done import mark_done
from diffpref.run.hub import open_page, push
from diffpref.training.groups import Hub
from diffpref.training.output import describe_output, put_weights
from diffpref.training.rounds import Basis


def open_page_of(hub: Hub, folder: Path) -> str | None:
    """The run's page on the hub, where one is wanted; the main process makes it, the others have none.

    Raises:
        ValueError: no token, or a hub that refuses.
    """
    if not hub.push_to_hub or not PartialState().is_main_process:
        return None
    return open_page(hub.hub_model_id or folder.resolve().name, private=hub.hub_private_repo)


def finish(basis: Basis, result: Path, page: str | None, settings: Mapping[str, object]) -> None:
    """Let the run's folder hold the result, with a card and a marker, if a folder inside it does; then push.

    Args:
        basis: what the whole run was built on, not a round of it.
        result: the folder of the trained weights.
        page: of the hub; None for none.
        settings: the run's flat keys.
    """
    folder = basis.run.output_dir
    if result != folder and PartialState().is_main_process:
        put_weights(result, folder, basis.family.component)
        # What the run started from is what its first round did.
        if (first := folder / "round-1" / "train" / BASE_FILE).is_file():
            shutil.copyfile(first, folder / BASE_FILE)
        describe_output(basis.adapter, basis.family, basis.objective, settings, folder, basis.prompt)
        mark_done(folder, result=result.relative_to(folder).as_posix())
    if page is not None:
        basis.say(f"on the hub: {push(folder, page)}")
