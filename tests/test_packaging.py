"""What is shipped: the links, the wheel, the version, the public names, and a tidy repository."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from importlib.metadata import version
from pathlib import Path

import pytest

import nlc

ROOT = Path(__file__).resolve().parent.parent
LINKS = {"passes": "../passes", "backends": "../backends", "specs": "../specs"}
MAX_BYTES = 1_000_000

# A path of one machine, as against a path in the repository such as `docs/work/`.
MACHINE_PATH = re.compile(r"(?<![\w.}\-*])/(?:work|root|home|Users|opt)/")
REGISTRY_HOST = re.compile(
    r"pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|download\.pytorch\.org|deb\.debian\.org|anaconda\.org|crates\.io"
)


def _repository_files() -> list[Path]:
    """Files that git tracks, and new ones that it does not ignore."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs git and a checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    names = sorted(set(filter(None, listing.split("\0"))))
    return [ROOT / name for name in names if (ROOT / name).is_symlink() or (ROOT / name).is_file()]


def _text_of(path: Path) -> str | None:
    """The text of a file, or None for a link or binary data."""
    if path.is_symlink():
        return None
    data = path.read_bytes()
    return None if b"\0" in data else data.decode()


def _lines_matching(pattern: re.Pattern[str]) -> list[str]:
    hits = []
    for path in _repository_files():
        for number, line in enumerate((_text_of(path) or "").splitlines(), start=1):
            if pattern.search(line):
                hits.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return hits


def _project() -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the repository, so that nothing is left in the tree and no stale build is found."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("needs setuptools 77 or newer")
    source = tmp_path_factory.mktemp("source")
    for path in _repository_files():
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target, follow_symlinks=False)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (built,) = out.glob("nlc-*.whl")
    return zipfile.ZipFile(built)


@pytest.mark.parametrize("name", LINKS)
def test_subpackage_is_a_link_to_the_folder_at_the_top(name: str) -> None:
    link = ROOT / "nlc" / name

    assert link.is_symlink(), f"nlc/{name} must be a symbolic link (on Windows: git config core.symlinks true)"
    assert link.readlink().as_posix() == LINKS[name]
    assert (link / "__init__.py").is_file()


def test_wheel_has_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    expected = set()
    for path in _repository_files():
        parts = path.relative_to(ROOT).parts
        if path.is_symlink() or path.name == "README.md" or parts[0] not in {"nlc", *LINKS}:
            continue
        expected.add("/".join(parts if parts[0] == "nlc" else ("nlc", *parts)))
    assert any(name.startswith("nlc/specs/") and name.endswith(".yaml") for name in expected)
    assert "nlc/py.typed" in expected

    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert packed == expected


def test_wheel_carries_the_licence_and_the_command(wheel: zipfile.ZipFile) -> None:
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)

    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
    assert "nlc = nlc.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_version_is_the_same_everywhere(wheel: zipfile.ZipFile) -> None:
    declared = _project()["version"]

    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    assert message_from_bytes(wheel.read(metadata))["Version"] == declared
    assert getattr(nlc, "__version__", declared) == declared


def test_every_direct_dependency_has_a_pin() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*table["dependencies"], *(name for extra in table["optional-dependencies"].values() for name in extra)]
    pins = re.findall(r"^([\w.-]+)==\S+$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)

    missing = {re.split(r"[<>=!~\[; ]", name)[0].lower() for name in required} - {pin.lower() for pin in pins}

    assert missing == set()


def test_public_names_exist() -> None:
    public: list[str] = list(getattr(nlc, "__all__", ()))

    assert len(public) == len(set(public))
    for name in public:
        assert hasattr(nlc, name), f"nlc.__all__ names {name!r}, which nlc does not have"


def test_no_file_names_a_path_of_one_machine() -> None:
    assert _lines_matching(MACHINE_PATH) == []


def test_no_file_names_a_package_registry() -> None:
    assert _lines_matching(REGISTRY_HOST) == []


def test_no_file_is_larger_than_a_megabyte() -> None:
    large = [str(path.relative_to(ROOT)) for path in _repository_files() if not path.is_symlink() and path.stat().st_size > MAX_BYTES]

    assert large == []
