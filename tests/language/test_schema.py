"""The JSON schema for editors, and the form of a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlc.language import loads
from nlc.language.library import MAPS
from nlc.language.schema import FORMS, json_schema
from nlc.language.spec import Learner, Level, Spec, Write

jsonschema: Any = pytest.importorskip("jsonschema")
ROOT = Path(__file__).parents[2] / "specs"
ERRORS = Path(__file__).parents[1] / "errors"
SCHEMA = ROOT / "spec-v1.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(json_schema())
LIBRARY = sorted(path for path in ROOT.glob("*/*.yaml") if path.parent.name != MAPS)
FORM_CASES = sorted(p for code in ("NLC101", "NLC102", "NLC103", "NLC104", "NLC105") for p in (ERRORS / code).glob("*.yaml"))
# What only merged templates show, or what the schema cannot say.
BEYOND_THE_SCHEMA = {"preset", "no_store", "half_a_store", "empty_learn"}


def names_in(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(names_in, node))
    if not isinstance(node, dict):
        return set()
    return set(node.get("properties", {})).union(*map(names_in, node.values()))


def test_the_committed_schema_is_current(snapshot: Callable[[Path, str], None]) -> None:
    snapshot(SCHEMA, json.dumps(json_schema(), indent=2) + "\n")


def test_the_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_library_agrees_with_the_schema(path: Path) -> None:
    text = path.read_text()

    assert text.startswith("# yaml-language-server: $schema=../spec-v1.schema.json\n")
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize("path", FORM_CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_editors_see_most_wrong_forms(path: Path) -> None:
    valid = VALIDATOR.is_valid(yaml.safe_load(path.read_text()))

    assert valid == (path.stem in BEYOND_THE_SCHEMA)


def test_every_key_is_described() -> None:
    keys = [field for form in FORMS.values() for field in form.model_fields.values()]

    assert all(field.description for field in keys)


def test_every_key_of_a_form_is_a_part_of_the_typed_spec() -> None:
    parts: dict[str, Any] = {"spec": Spec, "level": Level, "learner": Learner, "learn": Write}
    own = {"nlc", "templates", "use"}

    for name, part in parts.items():
        assert set(FORMS[name].model_fields) - own <= set(part.__dataclass_fields__)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_forms_are_strict_and_frozen(form: Any) -> None:
    assert form.model_config["extra"] == "forbid"
    assert form.model_config["frozen"] and form.model_config["strict"]


def test_json_is_yaml() -> None:
    spec = {"nlc": 1, "name": "a", "inputs": {"x": ["K"]}, "outputs": {"y": "x"}}

    assert VALIDATOR.is_valid(spec)
    assert loads(json.dumps(spec)).name == "a"
