"""Half precision, parts on several devices, weights in shards, compiled parts, a quantized language model."""

import importlib.util

import pytest
import torch

from sca_hf import ScaForConditionalGeneration
from sca_hf.testing import tiny_image, tiny_model


@pytest.fixture
def inputs(processor):
    boxes = [[[3, 3, 40, 40], [20, 10, 70, 50]], [[1, 1, 30, 30]]]
    return processor([tiny_image(0), tiny_image(1)], input_boxes=boxes, return_tensors="pt")


@pytest.fixture
def whole(model, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def mixer_only(whole, tmp_path):
    loaded = ScaForConditionalGeneration.from_pretrained(whole)
    loaded.save_pretrained(tmp_path / "mixer", include_base_models=False)
    return tmp_path / "mixer"


def ids(model, inputs):
    return model.generate(**inputs, num_beams=2).sequences


@pytest.mark.parametrize("kind", ["whole", "mixer_only"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_says_nearly_the_same(request, model, inputs, kind, dtype):
    loaded = ScaForConditionalGeneration.from_pretrained(request.getfixturevalue(kind), dtype=dtype)
    weights = {name: weight.dtype for name, weight in loaded.named_parameters()}
    whole = {name for name, kept in weights.items() if kept != dtype}
    assert whole and all("positional_embedding" in name for name in whole)
    halves = inputs.to(dtype)
    assert halves["input_boxes"].dtype == torch.float32 and halves["pixel_values"].dtype == dtype
    found, expected = (one.generate(**halves.to(one.dtype)) for one in (loaded, model))
    assert found.pred_masks.dtype == dtype and torch.isfinite(found.pred_masks).all()
    likeness = torch.cosine_similarity(found.pred_masks.float().flatten(), expected.pred_masks.flatten(), dim=0)
    assert likeness > 0.99


@pytest.mark.parametrize("kind", ["whole", "mixer_only"])
def test_parts_can_lie_on_several_devices(request, model, inputs, tmp_path, kind):
    folder = request.getfixturevalue(kind)
    everywhere = ScaForConditionalGeneration.from_pretrained(folder, device_map={"": "cpu"})
    assert torch.equal(ids(everywhere, inputs), ids(model, inputs))
    split = {"sam": "cpu", "mixer": "cpu", "language_model": "disk"}
    offloaded = ScaForConditionalGeneration.from_pretrained(folder, device_map=split, offload_folder=tmp_path / "off")
    assert any(weight.is_meta for weight in offloaded.language_model.parameters())
    assert torch.equal(ids(offloaded, inputs), ids(model, inputs))


def test_weights_come_back_from_shards(model, inputs, tmp_path):
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    loaded = ScaForConditionalGeneration.from_pretrained(tmp_path / "shards")
    found = loaded.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


def test_encoder_and_language_model_compile(model, inputs):
    expected = ids(model, inputs)
    graphs = {"encoder": 0, "language model": 0}

    def counting(name):
        def backend(graph, example_inputs):
            graphs[name] += 1
            return graph.forward

        return backend

    model.sam.vision_encoder.compile(backend=counting("encoder"), fullgraph=True)
    model.language_model.compile(backend=counting("language model"))
    assert torch.equal(ids(model, inputs), expected)
    assert all(graphs.values())
    torch._dynamo.reset()


def test_a_mixer_only_repository_takes_a_quantized_language_model(inputs, tmp_path):
    if importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    # Not GPT-2: its layers are no `nn.Linear`, which is what torchao quantizes.
    tiny_model("smollm").save_pretrained(tmp_path / "whole")
    ScaForConditionalGeneration.from_pretrained(tmp_path / "whole").save_pretrained(
        tmp_path / "mixer", include_base_models=False
    )
    loaded = ScaForConditionalGeneration.from_pretrained(
        tmp_path / "mixer", quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )
    held = {name for name, value in loaded.named_parameters() if type(value.data) is not torch.Tensor}
    assert held and all(name.startswith("language_model.model.layers.") for name in held)
    assert ids(loaded, inputs).shape[:2] == (2, 2)
