"""Judge a LoRA run on tiny-sdxl or tiny-sd3 against its base, on captions that no training and no labelling saw.

    python examples/judge_run.py runs/tiny-sdxl-rankdpo-label [--captions 292] [--sheet sheet.png]

Both models draw the held-out captions from the same seeds in stock diffusers; the embedded judge, which shares nothing
with the rewards, says how often the tuned picture is more in OpenMoji's hand, and whether it still shows its caption.
"""

import argparse
from pathlib import Path

from compare_methods import HAND, draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the output_dir of a training run")
    parser.add_argument("--captions", type=int, default=292, help="how many of the 292 held-out captions")
    parser.add_argument("--sheet", type=Path, help="write base and tuned pictures of some captions to this PNG")
    args = parser.parse_args()
    from diffpref.data.decode import decode
    from diffpref.data.preferences import read_preferences
    from diffpref.demo.compare import compare_hands
    from diffpref.demo.judge import Judge
    from diffpref.files.embedded import embedded
    from diffpref.report.grid import side_by_side
    from diffpref.run.quiet import quiet_libraries
    from diffpref.training.settings import from_yaml

    quiet_libraries()
    config = from_yaml(args.run / "config.yaml")
    model = Path(config.model.pretrained_model_name_or_path)
    rows = read_preferences(embedded("assets/emoji-pairs/heldout.parquet"))
    real = [decode(row.images[row.scores.index(max(row.scores))]) for row in rows]
    captions = [rows[place].prompt for place in range(0, len(rows), max(1, len(rows) // args.captions))][
        : args.captions
    ]
    base, tuned = draw(model, None, captions, config), draw(model, args.run, captions, config)
    judge = Judge.load(embedded("assets/judge"))
    result = compare_hands(judge, base=base, tuned=tuned, captions=captions, artist=HAND, real=real)
    for name, first, second in result.table():
        print(f"{name:44} {first!s:>24} {second!s:>24}")
    if args.sheet is not None:
        few = range(0, len(captions), max(1, len(captions) // 12))
        side_by_side([base[i] for i in few], [tuned[i] for i in few], [captions[i] for i in few]).save(args.sheet)


if __name__ == "__main__":
    main()
