"""What changes the fingerprint of code, and which code an experiment is made of."""

import dataclasses

import pytest

from experiments import code

LIBRARY = {
    "research/__init__.py": "",
    "research/model.py": "from research.inner import scale\n\ndef loss(x):\n    return scale(x)\n",
    "research/inner.py": "def scale(x):\n    return x * 0.5\n",
    "research/other.py": "import research.model\n",
    "experiments/__init__.py": "",
    "experiments/running.py": "import json\n\nfrom research import model\n",
}


@pytest.fixture
def library(tmp_path):
    """Writes a small library, with some files changed, and takes its fingerprint."""
    versions = iter(range(100))

    def fingerprint(**changed):
        root = tmp_path / str(next(versions))
        for name, text in (LIBRARY | {f"research/{key}.py": text for key, text in changed.items()}).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return code.fingerprint((), root)

    return fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "# why\ndef scale(x):\n    return x * 0.5  # half\n",
        '"""The module."""\n\ndef scale(x):\n    """Half of it."""\n    return x * 0.5\n',
        "def scale(\n    x,\n):\n\n    return (x * 0.5)\n",
    ],
)
def test_comments_docstrings_and_layout_do_not_count(library, text):
    assert library(inner=text) == library()


@pytest.mark.parametrize(
    "text",
    [
        "def scale(x):\n    return x * 0.25\n",
        "def scale(y):\n    return y * 0.5\n",
        "def scale(x, *more):\n    return x * 0.5\n",
        "async def scale(x):\n    return x * 0.5\n",
    ],
)
def test_everything_else_counts(library, text):
    assert library(inner=text) != library()


def test_only_modules_that_are_imported_count(library):
    assert library(other="import research.inner\nx = 1\n") == library()
    used = "import research.other\n" + LIBRARY["research/model.py"]
    assert library(model=used) != library(model=used, other="import research.inner\nx = 1\n")


def test_the_modules_of_the_classes_in_a_config_count(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Part:
        size: int = 3

    Part.__module__ = "research.other"
    for name, text in LIBRARY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    without, having = code.fingerprint((3,), tmp_path), code.fingerprint(((Part(),),), tmp_path)
    assert without != having
    assert "research.other" in code.modules({"research.other"}, tmp_path)


def test_an_experiment_is_made_of_attention_and_not_of_tables():
    names = code.modules({code.ROOT})
    assert {"research.attention.core", "research.training.step", "research.evaluation.likelihood"} <= names
    assert not {"research.analysis.tables", "experiments.launch", "experiments.tabulate"} & names
