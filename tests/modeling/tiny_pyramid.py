"""In the place of timm's RepViT, which needs torchvision: maps of four strides. Imports nothing of this package."""

from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class PyramidConfig(PreTrainedConfig):
    model_type = "tiny_pyramid"
    widths: list[int] | tuple[int, ...] = (8, 12, 16, 20)
    num_channels: int = 3


class Pyramid(PreTrainedModel):
    config_class = PyramidConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        widths = [3, *config.widths]
        strides = [4, 2, 2, 2]
        self.stages = nn.ModuleList(
            nn.Conv2d(before, after, stride, stride)
            for before, after, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.post_init()

    def forward(self, pixel_values, **kwargs):
        maps = []
        for stage in self.stages:
            pixel_values = stage(pixel_values).tanh()
            maps.append(pixel_values)
        return BaseModelOutput(last_hidden_state=maps)


AutoConfig.register("tiny_pyramid", PyramidConfig, exist_ok=True)
AutoModel.register(PyramidConfig, Pyramid, exist_ok=True)
