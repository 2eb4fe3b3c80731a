from .client import *
from .client import __all__ as __all__

__version__: str
