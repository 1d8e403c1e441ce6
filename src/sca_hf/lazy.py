"""What waits until somebody uses it: exported names, and the registration of our classes with the Auto classes.

`import sca_hf` and the command line's help would otherwise take the seconds that torch and transformers need to load.
"""

from __future__ import annotations

import sys
from importlib import import_module


# As typing has it, which itself takes most of what importing this package takes. Until then Ctrl-C shows a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def lazy_exports(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes the `__getattr__` and `__dir__` of a package whose names are imported on first use.

    Args:
        package: The name of the package.
        exports: The names that it exports, by the module that they come from: `{".loading": ["load_regions"]}`.
    """
    homes = {name: module for module, names in exports.items() for name in names}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name], package), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})


class _Registration:
    """Registers our classes with the Auto classes as soon as both have been imported.

    Whoever imports `sca_hf` and an Auto class gets ours with it; whoever does not waits for neither. For that, the
    import of each watched module is followed by a step of our own; all other modules go their usual way.

    Args:
        partners: what to import once a module of the library has been imported, and to register with it.
    """

    def __init__(self, partners: Mapping[str, str]) -> None:
        self.partners = partners
        # Those that are there already, as the library is where its import comes first.
        self.imported = {name for pair in partners.items() for name in pair if name in sys.modules}
        self.executing: set[str] = set()

    def _watches(self, name: str) -> bool:
        # All of the library's: its modules import each other, and ours need them whole.
        return name.startswith(("transformers.", *_own_packages()))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds a watched module as the other finders do, and adds the step to it; None for any other module."""
        if not self._watches(fullname):
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_follow(module: ModuleType) -> None:
                self.executing.add(fullname)
                try:
                    _explained(execute, module)
                finally:
                    self.executing.discard(fullname)
                self.follow(fullname)

            spec.loader.exec_module = execute_and_follow  # type: ignore[method-assign]
        return spec

    def follow(self, name: str) -> None:
        """Takes the step after the import of a watched module."""
        self.imported.add(name)
        for theirs, ours in self.partners.items():
            if theirs not in self.imported:
                continue
            if ours not in sys.modules:
                # Not amid an import of what it may need itself: the end of that one comes here again.
                if not self.executing:
                    import_module(ours)
            elif name in (theirs, ours) and ours in self.imported:
                _register(ours)


def register_with_auto_classes() -> None:
    """Lets the Auto classes and the pipelines know ours, now or as soon as one of them is imported."""
    registration = _Registration(
        {
            "transformers.models.auto.configuration_auto": f"{__package__}.modeling.configuration_sca",
            "transformers.models.auto.modeling_auto": f"{__package__}.modeling.modeling_sca",
            "transformers.models.auto.processing_auto": f"{__package__}.processing.processing_sca",
            "transformers.pipelines": f"{__package__}.modeling.pipeline_sca",
        }
    )
    sys.meta_path.insert(0, registration)
    for name in list(registration.imported):
        registration.follow(name)


def _own_packages() -> list[str]:
    return [f"{__package__}.{folder}." for folder in ("modeling", "processing")]


def _register(ours: str) -> None:
    module = sys.modules[ours]
    config = import_module(f"{__package__}.modeling.configuration_sca").ScaConfig
    if ours.endswith(".configuration_sca"):
        import_module("transformers.models.auto.configuration_auto").AutoConfig.register(config.model_type, config)
    elif ours.endswith(".processing_sca"):
        import_module("transformers.models.auto.processing_auto").AutoProcessor.register(config, module.ScaProcessor)
    elif ours.endswith(".pipeline_sca"):
        module.register()
    else:
        auto = import_module("transformers.models.auto.modeling_auto")
        for name in ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMaskGeneration"):
            getattr(auto, name).register(config, module.ScaForConditionalGeneration)


def _explained(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Executes a module; says so where it fails because torchvision is broken."""
    try:
        execute(module)
    except (ImportError, RuntimeError):
        from .environment import explain_broken_torchvision

        explain_broken_torchvision()
        raise
