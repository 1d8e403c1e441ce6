"""Draw the README's picture and put under its programs what they print, with the bundled model of now.

    python docs/refresh.py

`tests/test_readme.py` fails where README and model say different things; this brings them together again.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from sca_hf.captioning import caption_images, draw_captions, load
from sca_hf.data.scenes import render_scene
from sca_hf.processing.region_prompts_sca import RegionPrompt


ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
SEED = 20_000_010
SHOWN = re.compile(r"(```python\n)(.*?)(```\n\n```text\n)(.*?)(```)", re.DOTALL)


def draw() -> None:
    """Renders the scene and the model's answers over it, in few enough colors for a small file."""
    scene = render_scene(SEED)
    scene.to_pil().save(IMAGES / "scene.png", optimize=True)
    prompts = [
        RegionPrompt(points=[list(thing.point)], labels=[1]) if index % 2 else RegionPrompt(box=list(thing.box))
        for index, thing in enumerate(scene.objects)
    ]
    model, processor = load(device="cpu")
    ((picture, regions),) = caption_images(model, processor, [str(IMAGES / "scene.png")], [prompts])
    drawn = draw_captions(picture, regions)
    drawn = drawn.resize((720, round(720 * drawn.height / drawn.width)), Image.Resampling.LANCZOS)
    drawn.quantize(256, dither=Image.Dither.NONE).save(IMAGES / "regions.png", optimize=True)
    for region in regions:
        print(f"{region.number}  {region.text}")


def fill() -> None:
    """Runs each program of the README that has an output under it, and replaces that output."""
    readme = ROOT / "README.md"

    def run(shown: re.Match[str]) -> str:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(IMAGES / "scene.png", folder)
            program = [sys.executable, "-c", shown[2]]
            printed = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=True).stdout
        return shown[1] + shown[2] + shown[3] + printed + shown[5]

    readme.write_text(SHOWN.sub(run, readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    draw()
    fill()
