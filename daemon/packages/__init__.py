"""Model packages: the contents of model.toml, read without torch and without running the model's code."""

from .formats import FORMATS
from .manifest import read_manifest
from .package import ModelPackage
from .range_checks import RangeCheck

__all__ = ["FORMATS", "ModelPackage", "RangeCheck", "read_manifest"]
