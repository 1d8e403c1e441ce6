"""Run a model whose parts lie on accelerators of their own, on tensors that have devices and no values.

    python tests/modeling/several_devices.py

An operation on tensors of two devices is an error there, as on the devices. Run by test_placements.py in a process of
its own: an accelerator that is made up cannot be taken back.
"""

import itertools

import torch
from accelerate.hooks import attach_execution_device_hook
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from sca_hf.testing import tiny_model


PLACES = {"sam": "made_up:0", "detail_encoder": "made_up:1", "mixer": "made_up:2", "language_model": "made_up:3"}


def move(part: torch.nn.Module, place: str) -> None:
    """Give every weight and buffer a device; values have none."""
    for module in part.modules():
        for tensors in (module._parameters, module._buffers):
            for key, value in tensors.items():
                if value is not None:
                    empty = torch.empty(value.shape, dtype=value.dtype, device=place)
                    tensors[key] = torch.nn.Parameter(empty) if tensors is module._parameters else empty


def check(sam: str, detail: list[int] | None, hooks: bool, inputs: str) -> None:
    """Show masks, and compare them and captions with what is known."""
    model = tiny_model("llama3", sam, detail_widths=detail, mask_loss_weight=1.0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for name, part in model.named_children():
            move(part, PLACES[name])
            if hooks:
                attach_execution_device_hook(part, PLACES[name])
        pixels = torch.empty(2, 3, 64, 64, device=inputs)
        prompts = {"input_boxes": torch.empty(2, 2, 4, device=inputs)}
        ids = torch.ones(2, 2, 5, dtype=torch.long, device=inputs)
        captions = {"input_ids": ids, "attention_mask": ids, "labels": ids}
        with torch.no_grad():
            read = model(pixel_values=pixels, **prompts, **captions)
            masks = torch.empty(2, 2, 32, 32, device=inputs)
            learned = model(pixel_values=pixels, **prompts, **captions, mask_labels=masks)
            shown = model(pixel_values=pixels, **prompts)
    returned = (read.logits, read.prefix_embeds, read.loss, learned.loss, shown.pred_masks)
    assert {tensor.device for tensor in returned} == {torch.device(PLACES["sam"])}


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend("made_up")
    for combination in itertools.product(("sam", "sam_hq"), (None, [4, 4, 8]), (True, False), ("made_up:0", "cpu")):
        check(*combination)
        print(*combination)
