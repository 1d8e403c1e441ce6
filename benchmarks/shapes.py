"""What the parts of the benchmark share: the shapes, the random model and inputs, how results are printed."""

from dataclasses import dataclass

import torch
from transformers import GPT2Config, SamConfig

from sca_hf.modeling.configuration_sca import ScaConfig
from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration


TOLERANCE = 1e-4


@dataclass
class Size:
    """What is run: `regions` for the times, `many` for the memory, `trained` for a training step."""

    image_size: int = 1024
    regions: int = 64
    many: int = 1000
    trained: int = 16
    layers: int = 12
    new_tokens: int = 20
    vision_layers: int = 12
    text_layers: int = 12


QUICK = Size(image_size=256, regions=16, many=128, trained=4, layers=4, new_tokens=6, vision_layers=3, text_layers=3)


def build_model(size: Size, device: torch.device) -> ScaForConditionalGeneration:
    """A random model in the shape of SAM ViT-B and GPT-2, whose regions get different captions."""
    torch.manual_seed(0)
    grid = size.image_size // 16
    sam = SamConfig(
        # The default of 1e-10 would leave all images alike.
        vision_config={"image_size": size.image_size, "initializer_range": 0.02, "num_pos_feats": 128},
        prompt_encoder_config={"image_size": size.image_size, "image_embedding_size": grid},
    )
    if size.vision_layers < 12:
        sam.vision_config.num_hidden_layers = size.vision_layers
        sam.vision_config.global_attn_indexes = [size.vision_layers - 1]
    text = GPT2Config(n_layer=size.text_layers, eos_token_id=None, bos_token_id=None, pad_token_id=0)
    mixer = {"num_hidden_layers": size.layers}
    model = ScaForConditionalGeneration(ScaConfig(sam_config=sam, text_config=text, mixer_config=mixer)).eval()
    with torch.no_grad():
        # With fresh weights masks are all but zero, and captions hardly depend on the region.
        for part in (model.sam.mask_decoder, model.mixer):
            for name, parameter in part.named_parameters():
                if parameter.ndim > 1 and name != "task_tokens.weight":
                    parameter.normal_(0.0, 0.06)
    return model.to(device)


def random_boxes(count: int, image_size: int, device: torch.device) -> torch.Tensor:
    """Boxes (1, count, 4), xyxy in pixels of the resized image."""
    corners = torch.rand(1, count, 2, 2, generator=torch.Generator().manual_seed(1)) * image_size
    return torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=-1).to(device)


def random_pixels(size: Size, device: torch.device) -> torch.Tensor:
    """One normalized image (1, 3, H, W), float32."""
    return torch.randn(1, 3, size.image_size, size.image_size, generator=torch.Generator().manual_seed(2)).to(device)


def report(title: str, seconds: dict[str, float], floor: float) -> None:
    """Print the times, how many times faster ours is, and how near to its matrix products alone."""
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:12} {value:9.3f} s   {value / seconds['ours']:.2f} x ours", flush=True)
    print(f"  {'products':12} {floor:9.3f} s   {floor / seconds['ours']:.0%} of ours", flush=True)


def agree(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Print the largest difference; is it within the tolerance?"""
    difference = (ours.flatten() - theirs.flatten()).abs().max().item()
    print(f"  {what}: within {difference:.1e} (values up to {theirs.abs().max().item():.2g})")
    return difference <= TOLERANCE * max(1.0, theirs.abs().max().item())
