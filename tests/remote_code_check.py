"""Load a saved repository without this package and describe regions: the same on every supported transformers.

    python tests/remote_code_check.py REPOSITORY RESULTS.npz

Run by tests/test_remote_code.py in fresh processes, and by hand with the Python of any environment that has
transformers, torch and pillow. Imports nothing of sca_hf, and makes sure that nothing else can.
"""

import sys


def example_batch() -> dict:
    """Two images of different sizes with three and one regions, prompts of every kind."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.new("RGB", (50, 70), "teal")]
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:40, 30:70] = True
    return {
        "images": images,
        "input_boxes": [[[3, 4, 60, 50], None, None], [[5, 5, 45, 60]]],
        "input_points": [[None, [[20, 30], [70, 50]], None], [[[25, 30]]]],
        "input_labels": [[None, [1, 0], None], [[1]]],
        "input_masks": [[None, None, mask], [None]],
    }


def describe(model, processor) -> dict:
    """Ids, masks, scores and texts of the example batch, as arrays."""
    import numpy as np

    inputs = processor(**example_batch(), return_tensors="pt")
    outputs = model.generate(**inputs, num_beams=2)
    captions = [text for image in processor.batch_decode(outputs) for text in image]
    settings = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    everything = processor.caption_anything(model, example_batch()["images"][0], settings)
    return {
        "ids": outputs.sequences.numpy(),
        "masks": outputs.pred_masks.float().numpy(),
        "scores": outputs.caption_scores.float().numpy(),
        "captions": np.array(captions),
        "everything": np.array([f"{record['bbox']} {record['caption']}" for record in everything]),
    }


def main(repository: str, results: str) -> None:
    """Load with three lines, describe, and save the results."""
    sys.modules["sca_hf"] = None  # an import of it fails from here on

    import numpy as np
    import transformers
    from transformers import AutoModel, AutoProcessor, pipeline

    model = AutoModel.from_pretrained(repository, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    found = describe(model, processor)

    pipe = pipeline("region-captioning", model=repository, trust_remote_code=True)
    records = pipe(**example_batch(), num_beams=2)
    found["pipeline_captions"] = np.array([record["caption"] for image in records for record in image])
    whole = pipeline("image-text-to-text", model=repository, trust_remote_code=True)
    found["whole_image_caption"] = np.array(whole(example_batch()["images"][0], text="")[0]["generated_text"])
    np.savez(results, version=transformers.__version__, module=type(model).__module__, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
