"""Long runs: block by block, shown, interruptible, and resumed by the same settings alone."""

from tfexplain.runs.blocks import Arrays, OtherSettingsError, in_blocks, one_display
from tfexplain.runs.settings import architecture, attributes, differing, digest, settings

__all__ = [
    "Arrays",
    "OtherSettingsError",
    "architecture",
    "attributes",
    "differing",
    "digest",
    "in_blocks",
    "one_display",
    "settings",
]
