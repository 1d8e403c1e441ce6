"""Where the parts of a model lie: device maps that work, checked before weights are read, and weights that are away.

Our code reads the weights of SAM's mask decoder and of the mixer without calling the modules that hold them, so that
the hooks of accelerate, which bring weights and move inputs where a module is called, have to be asked for it. All
other parts are called as the library calls them.
"""

import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers.integrations.accelerate import _get_device_map, check_and_set_device_map


# What has to compute on one device, each by itself: modules, and for the library's "auto" their classes.
_BLOCKS = {
    "SAM's mask decoder": ("sam.mask_decoder", "sam.prompt_encoder", "sam.shared_image_embedding"),
    "the mixer": ("mixer",),
    "the detail encoder": ("detail_encoder",),
    "the second look": ("second_look",),
}
_AUTO = ("auto", "balanced", "balanced_low_0", "sequential")
_AWAY = ("cpu", "disk")


def resolve_device_map(model: Any, device_map: Any, max_memory: Mapping[Any, Any] | None) -> dict[str, Any]:
    """A device map by names of modules, from whatever `from_pretrained` takes.

    Args:
        model: made for this: whole, on the meta device, with weights in the precision that they will have.

    Raises:
        ValueError: the map leaves weights out, names what is not there, or cannot work.
    """
    if isinstance(device_map, str) and device_map in _AUTO:
        device_map = _infer(model, device_map, max_memory)
    elif not isinstance(device_map, Mapping):
        device_map = {"": "disk"} if device_map == "disk" else check_and_set_device_map(device_map)
    device_map = dict(device_map)
    for beside in ("detail_encoder", "second_look"):
        if "sam" in device_map and getattr(model, beside, None) is not None:
            device_map.setdefault(beside, device_map["sam"])
    _check_names(model, device_map)
    for name, place in device_map.items():
        _check_place(name or "the model", place)
        device_map[name] = "cpu" if _named(place) == "cpu" else place
    for name, source in model.all_tied_weights_keys.items():
        places = place_of(device_map, name), place_of(device_map, source)
        if "disk" in places and places[0] != places[1]:
            # Files hold one of two weights that are tied.
            device_map[name.rpartition(".")[0]] = places[1]
    device_map = _without_overlaps(model, device_map)
    check_blocks(device_map)
    return device_map


def _without_overlaps(model: nn.Module, device_map: dict[str, Any]) -> dict[str, Any]:
    """The same map in which no module lies in another: accelerate would put the inner one where the outer one is."""
    while (outer := next((key for key in device_map if _inner(device_map, key)), None)) is not None:
        place, module = device_map.pop(outer), model.get_submodule(outer)
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, _ in [*module.named_children(), *tensors]:
            device_map.setdefault(f"{outer}.{name}".lstrip("."), place)
    modules = {name for name, _ in model.named_modules()}
    accelerators = set(device_map.values()) - set(_AWAY)
    for name, place in device_map.items():
        if name not in modules and (place == "disk" or (place == "cpu" and accelerators)):
            raise ValueError(f"device_map puts {name} on {place} apart from its module, but only modules are fetched.")
    return device_map


def _inner(device_map: Mapping[str, Any], name: str) -> bool:
    return any(key != name and (not name or key.startswith(f"{name}.")) for key in device_map)


def _infer(model: Any, device_map: str, max_memory: Mapping[Any, Any] | None) -> dict[str, Any]:
    """What the library makes of "auto" and the like, with our blocks undivided."""
    # The encoder has a weight of its own beside its layers.
    whole = {type(model.get_submodule(name)).__name__ for name in [*_named_blocks(model), "sam.vision_encoder"]}
    model._no_split_modules = {*model._no_split_modules, *whole}
    inferred = _get_device_map(model, device_map, None if max_memory is None else dict(max_memory), None)
    # SAM's decoder is three modules, which it may part: the two small ones follow the large one.
    places = {name: place_of(inferred, name) for name in _named_blocks(model)}
    decoder, *others = _BLOCKS["SAM's mask decoder"]
    if "sam" not in inferred and "" not in inferred:
        inferred |= dict.fromkeys(others, places[decoder])
    return inferred


def _named_blocks(model: nn.Module) -> list[str]:
    names = [name for names in _BLOCKS.values() for name in names]
    return [name for name in names if getattr(model, name.split(".")[0], None) is not None]


def place_of(device_map: Mapping[str, Any], name: str) -> Any:
    """Where a device map puts a module: its own entry, or that of the nearest module around it."""
    while name and name not in device_map:
        name = name.rpartition(".")[0]
    return device_map.get(name)


def _check_names(model: nn.Module, device_map: Mapping[str, Any]) -> None:
    known = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    if unknown := sorted(set(device_map) - known):
        parts = [name for name, child in model.named_children() if child is not None]
        raise ValueError(f"device_map names {unknown[0]!r}, which the model does not have; its parts are {parts}.")
    left_out = [name for name in model.state_dict() if place_of(device_map, name) is None]
    if left_out:
        raise ValueError(f"device_map leaves out {left_out[0]} and {len(left_out) - 1} more: name every part, or ''.")


def _check_place(name: str, place: Any) -> None:
    try:
        kind = "disk" if place == "disk" else torch.device(_named(place)).type
    except (RuntimeError, TypeError, ValueError):
        kind = "meta"
    if kind == "meta":
        raise ValueError(f"device_map puts {name} on {place!r}; expected a device (0, 'cuda:1', 'cpu') or 'disk'.")
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if kind not in _AWAY and (torch.device(_named(place)).index or 0) >= count:
        raise ValueError(f"device_map puts {name} on {place}, but torch finds {count} accelerators here.")


def check_blocks(device_map: Mapping[str, Any]) -> None:
    """Raise where a device map divides what computes together.

    What lies on the CPU or the disk computes on an accelerator, if there is one: on which of several is not known.
    """
    accelerators = {place for place in map(_named, device_map.values()) if place not in _AWAY}
    for title, names in _BLOCKS.items():
        places = {_named(place_of(device_map, name)) for name in names}
        places |= {
            _named(place) for key, place in device_map.items() if any(key.startswith(f"{name}.") for name in names)
        }
        divided = len(places - set(_AWAY) - {None}) > 1
        unknown = places & accelerators and places & set(_AWAY) and len(accelerators) > 1
        if divided or unknown:
            shown = " and ".join(sorted(str(place) for place in places))
            raise ValueError(
                f"device_map divides {title} ({', '.join(names)}) between {shown}, but its weights are read together: "
                f"give it one place. docs/distributed.md has the placements that work."
            )


def _named(place: Any) -> Any:
    if place is None or place in _AWAY:
        return place
    device = torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    return "cpu" if device.type == "cpu" else str(device)


def part_of(device_map: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The device map of one part of the model, by the names within it."""
    own = {key.removeprefix(part).lstrip("."): place for key, place in device_map.items() if key.split(".")[0] == part}
    return own or {"": device_map[""]}


def _hooks(module: nn.Module) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", () if hook is None else (hook,))


def computes_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16; another converts each number."""
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return platform.machine() in ("arm64", "aarch64") or any(getattr(torch.cpu, name, bool)() for name in known)


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes, wherever its weights lie."""
    for part in module.modules():
        for hook in _hooks(part):
            if (device := getattr(hook, "execution_device", None)) is not None:
                return torch.device(device)
        for tensor in part.parameters(recurse=False):
            return tensor.device
    return torch.device("cpu")


@contextmanager
def weights_at_hand(*modules: nn.Module | None) -> Iterator[None]:
    """Within, weights that accelerate keeps elsewhere, and brings for calls only, can be read without calls."""
    known = [part for module in modules if module is not None for part in module.modules()]
    # Asked for what it does not have, a module takes its time.
    parts = [part for part in known if "_hf_hook" in vars(part)]
    away = [(part, hook) for part in parts for hook in _hooks(part) if getattr(hook, "offload", False)]
    with ExitStack() as stack:
        for part, hook in away:
            hook.pre_forward(part)
            stack.callback(hook.post_forward, part, None)
        yield


__all__ = ["check_blocks", "computes_bfloat16", "execution_device", "part_of", "resolve_device_map", "weights_at_hand"]
