"""Trains the model for photographs and measures it: one command that can be stopped, and resumes where it was.

    python -m experiments.photographs --output runs/photographs --seed 0

Needs the packages that the pretrained parts come in (towers.py and u2net.py name them, with the hashes of their files)
and the folder of the sets. Stages, each done once; what no seed changes is done once for all of them:

  towers      NanoDet-g and EfficientNet-Lite0, converted
  u2net       U2-Net small, converted
  data        the split of the photographs and of the small sets, and pictures from outside
  names       what NanoDet finds in pictures of the train side
  language    a tokenizer and a small language model that have all names
  start       the model before training
  boxes       boxes.yaml: the U-Net that draws the final masks; its steps are chosen on the side `choice`
  first       first_look.yaml: first words and first masks; its steps are chosen there too
  second      second_look.yaml: the U-Net after the first look, from points too
  words       begun again, by regression: the language model, and how the mixer reads what its eyes see
  confidence  fitted with pictures of neither kind
  model       settings of anything mode, chosen there too; half precision, card, licenses, CREDITS.md
  unsure      how often it is unsure of what it knows, and of what it does not
  report      all figures on the side `test`, which the card then has too
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sca_hf.captioning import load
from sca_hf.files import read_json, staged, to_json, write_whole
from sca_hf.training.recipe.run import run_recipe

from ..sca_tiny.bundle import bundle
from . import data, outside, report, towers
from .language import train_language
from .measure import read_pictures
from .names import write_names
from .reader import fit_reader
from .recipe import HERE, WORDS, read_recipe
from .small_sets import write_small_sets
from .start import begin_words, save, start_model
from .swapped_names import SwappedNamesTrainer
from .thresholds import GRIDS, choose_settings


SIZE_LIMIT = 25_000_000
# The frame: stretched to a square of 768 pixels, of which the eyes see every second; features on a grid of 24 x 24.
TOWERS = {"image_size": 768, "patch_size": 32, "reduction": 2}
# Of 296 names on the side `choice`, 92 of them of medium or large things there: 76 % of these are found, and of the
# others 96 % are not; at -11, which suits sca-tiny, 91 and 52 %.
_FIND_THRESHOLD = -2.0
_NAMED = ("coco_permissive", "coco_permissive_2", "taco_litter", "signs")


@dataclass
class Road:
    """Where everything lies, and how far it goes.

    Attributes:
        output: folder of all seeds.
        seed: of the split, and of all training.
        folder: of all sets.
        steps: at most so many in each stage of training; None for as many as the recipes say.
        lite0: folder of EfficientNet-Lite0's file, where its package is not installed.
    """

    output: Path
    seed: int
    folder: Path
    steps: int | None = None
    lite0: Path | None = None

    @property
    def own(self) -> Path:
        """The folder of the seed."""
        return self.output / f"seed-{self.seed}"

    def towers(self, done: Path) -> None:
        config = towers.ScaTowersConfig(**TOWERS)
        towers.save_towers(towers.build_towers(config, lite0=self.lite0), done)

    def u2net(self, done: Path) -> None:
        from . import u2net  # which needs onnx, that no other stage does

        write_whole(done, u2net.save(u2net.read_weights(u2net.SOURCE)))

    def data(self, done: Path) -> None:
        pictures = data.divided(self.folder, self.seed)
        with staged(done) as part:
            data.write(pictures, part, self.folder, self.seed)
            write_small_sets(part, self.folder)
            outside.write_outside(part, self.folder)
        print(data.summary(pictures), flush=True)

    def names(self, done: Path) -> None:
        write_names(self.output / "towers", self.own / "data", done, self.folder, _NAMED)

    def language(self, done: Path) -> None:
        train_language(done.parent, self.own / "data", self.steps, self.seed)

    def start(self, done: Path) -> None:
        start_model(self.output / "towers", done, self.seed, self.own / "language" / "text")

    def boxes(self, done: Path) -> None:
        print(run_recipe(read_recipe("boxes.yaml", self.output, self.seed, self.folder, self.steps)), flush=True)

    def first(self, done: Path) -> None:
        recipe = read_recipe("first_look.yaml", self.output, self.seed, self.folder, self.steps)
        print(run_recipe(recipe, trainer_class=SwappedNamesTrainer), flush=True)

    def second(self, done: Path) -> None:
        print(run_recipe(read_recipe("second_look.yaml", self.output, self.seed, self.folder, self.steps)), flush=True)

    def words(self, done: Path) -> None:
        recipe = read_recipe(WORDS, self.output, self.seed, self.folder, self.steps)
        model, processor = load(str(self.own / "second" / "model"))
        torch.manual_seed(self.seed)
        begin_words(model, processor.tokenizer, self.own / "language" / "text")
        fit_reader(model, processor, recipe, **({} if self.steps is None else {"regions": 40}))
        save(done, model, processor)

    def confidence(self, done: Path) -> None:
        recipe = read_recipe(WORDS, self.output, self.seed, self.folder, self.steps)
        model, processor = load(str(self.own / "words"))
        regions = {} if self.steps is None else {"regions": 40}
        fit = outside.fit(model, processor, recipe, self.own / "data", self.folder, self.seed, **regions)
        print(fit, flush=True)
        save(done, model, processor)

    def model(self, done: Path) -> None:
        """Settings, half precision, and what must travel with the weights."""
        trained = self.own / "confident"
        model, processor = load(str(trained))
        records = read_pictures(self.folder, self.seed, "choice")
        quick = {} if self.steps is None else {"grids": GRIDS[:1]}
        settings, rows = choose_settings(model.eval(), processor, records if not quick else records[:2], **quick)
        write_whole(self.own / "anything.json", to_json(rows[:50]))
        print(f"anything mode: {rows[0]}", flush=True)
        processor.anything_settings, processor.find_threshold = settings, _FIND_THRESHOLD
        with tempfile.TemporaryDirectory(dir=self.own) as draft:
            bundled = bundle(trained, Path(draft) / "model")
            processor.save_pretrained(bundled)
            for name, source in {
                "README.md": HERE / "card.md",
                "CREDITS.md": self.own / "data" / "CREDITS.md",
                "NOTICE.md": HERE / "NOTICE.md",
                "LICENSE": HERE.parents[1] / "LICENSE",
            }.items():
                shutil.copyfile(source, bundled / name)
            size = folder_size(bundled)
            print(f"the model takes {size / 1e6:.1f} MB", flush=True)
            if size > SIZE_LIMIT:
                raise SystemExit(f"the model takes {size / 1e6:.1f} MB, more than {SIZE_LIMIT / 1e6:.0f}.")
            with staged(done) as part:
                shutil.copytree(bundled, part, dirs_exist_ok=True)

    def unsure(self, done: Path) -> None:
        found = outside.measure_unsure(self.own / "model", self.own / "data", self.folder, data.SETS)
        write_whole(done, to_json(found))
        for name, told in found.items():
            print(f"unsure of {name}: {told['box']:.3f} from boxes, {told['point']:.3f} from points", flush=True)

    def report(self, done: Path) -> None:
        own = ["--model", str(self.own / "model"), "--seeds", str(self.seed), "--data", str(self.folder)]
        report.main([*own, "--output", str(done.parent), "--page", str(self.own / "model" / "README.md")])


def folder_size(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def stages(road: Road) -> dict[str, tuple[Callable[[Path], None], Path]]:
    """Each stage in its order: what does it, and the file or folder that says that it is done."""
    own, output = road.own, road.output
    return {
        "towers": (road.towers, output / "towers"),
        "u2net": (road.u2net, output / "u2net_small.safetensors"),
        "data": (road.data, own / "data"),
        "names": (road.names, own / "names"),
        "language": (road.language, own / "language" / "text"),
        "start": (road.start, own / "start"),
        "boxes": (road.boxes, own / "boxes" / "model"),
        "first": (road.first, own / "first" / "model"),
        "second": (road.second, own / "second" / "model"),
        "words": (road.words, own / "words"),
        "confidence": (road.confidence, own / "confident"),
        "model": (road.model, own / "model"),
        "unsure": (road.unsure, own / "unsure.json"),
        "report": (road.report, own / "report" / "test.json"),
    }


def run(road: Road, last: str | None = None) -> None:
    """Does the stages that are not done yet, up to and with `last`, else all."""
    settings = {"seed": road.seed, "steps": road.steps}
    noted = road.own / "road.json"
    if noted.is_file() and (known := read_json(noted, dict)) != settings:
        raise SystemExit(f"{road.own} was begun with {known}, not {settings}: name another --output, or remove it.")
    road.own.mkdir(parents=True, exist_ok=True)
    write_whole(noted, to_json(settings))
    for name, (work, done) in stages(road).items():
        if not done.exists():
            print(f"{name} ...", flush=True)
            work(done)
        if name == last:
            return


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of all seeds; a seed's own is seed-N in it")
    parser.add_argument("--seed", type=int, default=0, help="of split and training (%(default)s)")
    parser.add_argument("--data", type=Path, help="folder of the sets (default: data, else $SCA_SHARED/data)")
    parser.add_argument("--steps", type=int, help="at most so many in each stage of training, for a quick try")
    parser.add_argument("--lite0", type=Path, help="folder of EfficientNet-Lite0's .pth, if its package is elsewhere")
    parser.add_argument("--until", metavar="STAGE", help="the last stage to do (default: all)")
    options = parser.parse_args(arguments)
    road = Road(options.output, options.seed, data.data_folder(options.data), options.steps, options.lite0)
    if options.until not in (None, *stages(road)):
        parser.error(f"--until {options.until}: expected one of {', '.join(stages(road))}")
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps {options.steps}: expected at least 1")
    run(road, options.until)


if __name__ == "__main__":
    main()
