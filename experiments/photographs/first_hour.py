"""What someone sees who tries a model on ten photographs, by a box and by a point on each: one contact sheet.

    python -m experiments.photographs.first_hour --model MODEL --output docs/images/first_hour.jpg

The prompts were drawn by hand, before any model had seen them. Masks, prompts and captions are drawn as
`sca-hf caption --overlay` does.
"""

import argparse
from pathlib import Path

from sca_hf.captioning import caption_images, draw_captions, load
from sca_hf.drawing import SheetTile, draw_sheet
from sca_hf.files import save_picture
from sca_hf.processing.region_prompts_sca import RegionPrompt

from .data import data_folder


# Photograph -> what to look at: a box, a point; pixels.
PROMPTS = {
    "astronaut": ([20, 10, 365, 512], [400, 460]),
    "cameraman_gray": ([0, 60, 335, 512], [130, 250]),
    "cat_chelsea": ([30, 0, 420, 300], [200, 150]),
    "cat_in_banana_tree": ([315, 172, 372, 262], [345, 215]),
    "coffee_cup": ([170, 18, 410, 312], [366, 280]),
    "cyclist_on_road": ([362, 145, 478, 395], [430, 220]),
    "dog_behind_windshield": ([185, 125, 325, 275], [250, 200]),
    "fighter_jet": ([72, 163, 478, 285], [320, 215]),
    "rocket_launch": ([308, 125, 337, 408], [322, 300]),
    "vintage_kitchen": ([498, 110, 632, 355], [280, 260]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, repository id or sca-tiny")
    parser.add_argument("--data", type=Path, help="folder of the sets (default: data, else $SCA_SHARED/data)")
    parser.add_argument("--output", type=Path, required=True, help="picture, .png or .jpg")
    options = parser.parse_args()
    folder = data_folder(options.data) / "photos"
    loaded, tiles = load(options.model), []
    for name, (box, point) in PROMPTS.items():
        for kind, prompt in (("box", RegionPrompt(box=box)), ("point", RegionPrompt(points=[point], labels=[1]))):
            ((picture, found),) = caption_images(*loaded, [str(folder / f"{name}.jpg")], [[prompt]])
            tiles.append(SheetTile(draw_captions(picture, found), [(found[0].text, (60, 62, 68))], f"{name}, {kind}"))
    save_picture(draw_sheet(tiles, f"{Path(options.model).name} on ten photographs", columns=4), options.output)


if __name__ == "__main__":
    main()
