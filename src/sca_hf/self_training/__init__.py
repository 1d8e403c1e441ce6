"""Growing a model from pictures that nobody has labeled: what `sca-hf self-train` does, without the command line."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports


if TYPE_CHECKING:
    from .judging import Judged, JudgeRun, judge
    from .learning import learn
    from .manifest import label_records, read_manifest
    from .proposing import ProposeRun, propose
    from .rounds import RoundSettings, RoundsResult, run_rounds
    from .settings import SelectionSettings
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            ".judging": ["JudgeRun", "Judged", "judge"],
            ".learning": ["learn"],
            ".manifest": ["label_records", "read_manifest"],
            ".proposing": ["ProposeRun", "propose"],
            ".rounds": ["RoundSettings", "RoundsResult", "run_rounds"],
            ".settings": ["SelectionSettings"],
        },
    )


__all__ = [
    "JudgeRun",
    "Judged",
    "ProposeRun",
    "RoundSettings",
    "RoundsResult",
    "SelectionSettings",
    "judge",
    "label_records",
    "learn",
    "propose",
    "read_manifest",
    "run_rounds",
]
