"""The language front end: YAML text to a typed `Spec`."""

from nlc.language.library import Library
from nlc.language.load import load, loads
from nlc.language.spec import Spec

__all__ = ["Library", "Spec", "load", "loads"]
