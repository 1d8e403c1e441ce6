"""Training runs of a test, alone or in one of several processes:

torchrun --nproc-per-node 2 tests/training/distributed_run.py runs.json
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import IterableDataset
from safetensors.torch import save_file

from sca_hf.modeling import generation_sca
from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.processing.masks_sca import encode_rle
from sca_hf.processing.processing_sca import ScaProcessor
from sca_hf.testing import CAPTIONS, tiny_config, tiny_image, tiny_model, tiny_tokenizer
from sca_hf.training.arguments import ScaTrainingArguments
from sca_hf.training.trainer import ScaTrainer
from sca_hf.yaml_files import read_yaml


CONFIGS = Path(__file__).parents[2] / "examples" / "distributed"


def launched_with(name):
    """What `accelerate launch` hands to its processes of one of our configurations, but for the precision."""
    options = read_yaml(CONFIGS / f"{name}.yaml")["fsdp_config"]
    return {"ACCELERATE_USE_FSDP": "true"} | {option.upper(): str(value) for option, value in options.items()}


def records(count):
    """Images of one to four regions, with masks: what falls to two processes is never equally much."""
    made = []
    for seed in range(count):
        regions = []
        for k in range(1 + seed % 4):
            left, top = 4 + 14 * k, 4 + 9 * k
            box = [left, top, left + 18 + seed % 5, top + 20]
            mask = torch.zeros(60, 80, dtype=torch.bool)
            mask[box[1] : box[3], box[0] : box[2]] = True
            text = CAPTIONS[(seed + k) % len(CAPTIONS)]
            region = {"region_id": str(k), "box": [float(x) for x in box], "mask": encode_rle(mask.numpy())}
            regions.append(region | {"captions": [text, text.split(" ", 2)[2]], "category": None})
        made.append(
            {"image": tiny_image(seed), "image_id": str(seed), "width": 80, "height": 60, "task": "caption"}
            | {"regions": regions}
        )
    return made


def make_trainer(folder, count=16, sharded=False, streamed=False, start=None, **arguments):
    """A [`ScaTrainer`] of the tiny model, or of the one saved in the folder `start`."""
    torch.set_num_threads(1)
    model = tiny_model() if start is None else ScaForConditionalGeneration.from_pretrained(start)
    settings = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
    settings |= {"lr_scheduler_type": "constant", "sample_sheet": 0}
    if "WORLD_SIZE" in os.environ:
        settings["ddp_backend"] = "gloo"
    args = ScaTrainingArguments(str(folder), **(settings | arguments))
    if sharded:
        os.environ.update(launched_with("fsdp2"))
        # Accelerate shards on accelerators only; that the device is a CPU makes no difference to what it then does.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    processor = ScaProcessor.from_config(tiny_config(), tiny_tokenizer())
    data = records(count)
    train = IterableDataset.from_generator(records, gen_kwargs={"count": count}) if streamed else data
    return ScaTrainer(model, args, train_dataset=train, eval_dataset=data[:5], processing_class=processor)


def run(folder, evaluate=False, resume=False, refused=False, **settings):
    """Trains; leaves the trained weights, the log and what the model says of the evaluation set in `folder`."""
    if refused:
        with pytest.raises(ValueError, match=refused):
            make_trainer(folder, **settings)
        return
    trainer = make_trainer(folder, **settings)
    positions = set()
    for part in trainer.model.modules():
        if hasattr(part, "positional_embedding"):
            part.register_forward_hook(lambda part, _, encoded: positions.add(str(encoded.dtype)))
    trainer.train(resume_from_checkpoint=resume)
    left = {"log": trainer.state.log_history, "positions": sorted(positions)}
    if evaluate:
        # A token that the model says early or late: captions differ in length, and processes in the steps they need.
        trainer.accelerator.unwrap_model(trainer.model).generation_config.eos_token_id = 314
        # One region at a time: where weights are shards, processes must still make as many calls as each other.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generation_sca, "_CPU_LANGUAGE_MODEL_BYTES", 1)
            left["metrics"] = trainer.evaluate()
        left["captions"] = [[p.record, p.region, p.caption] for p in trainer.predictions]
    model = trainer.accelerator.unwrap_model(trainer.model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.is_world_process_zero():
        save_file({name: weights[name].contiguous() for name in trained}, Path(folder) / "trained.safetensors")
        (Path(folder) / "left.json").write_text(json.dumps(left))


if __name__ == "__main__":
    for settings in json.loads(Path(sys.argv[1]).read_text()):
        run(**settings)
    torch.distributed.destroy_process_group()
