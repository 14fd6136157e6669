"""What tests of the commands share: which need packages that are no dependencies, and a demo that is run once a file."""

import csv
import importlib.util

import pytest

from ladderkern.cli import main


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(*packages): skip the test where one of them is not installed")


def pytest_collection_modifyitems(items):
    for item in items:
        needed = [name for marker in item.iter_markers("needs") for name in marker.args]
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"not installed, the demo extra has it: {', '.join(missing)}"))


@pytest.fixture(scope="module")
def run_demo(tmp_path_factory):
    """``run_demo(part, module, setting)``: the folder that this part of the quick demo, seed 3, wrote in another setting."""

    def run(part, module, setting):
        folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "QUICK", setting)
            assert main(["demo", "--only", part, "--quick", "--seed", "3", "--output", str(folder)]) == 0
        return folder

    return run


@pytest.fixture(scope="module")
def rows(written):
    """The lines of the one table in the test file's folder ``written``."""
    (path,) = written.glob("*.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
