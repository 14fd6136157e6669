"""What tests of the commands share: which need packages that are no dependencies, and a demo that is run once a file."""

import contextlib
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
            assert main(["demo", "--part", part, "--quick", "--seed", "3", "--jobs", "1", "--output", str(folder)]) == 0
        return folder

    return run


@pytest.fixture(scope="module")
def rows(written):
    """The lines of the one table in the test file's folder ``written``."""
    (path,) = written.glob("*.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def tiny_settings():
    """A context in which every part of the quick demo trains for a moment."""

    @contextlib.contextmanager
    def patched():
        from ladderkern.cli import demo_frozen_lake, demo_images, demo_ladder, demo_training

        text = demo_training.Setting(
            steps=12, batch=2, length=16, hidden=48, layers=2, lr_warmup=2, held_out_share=0.001,
            spike_probability=0.4, spike_start=2, reset_interval=4, warmup_steps=2, unclipped_steps=1,
        )  # fmt: skip
        images = demo_frozen_lake.Setting(
            boards=3, held_out_boards=2, judged=6, codes=48, steps=4, batch=2, hidden=32, layers=1
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo_training, "QUICK", text)
            patch.setattr(demo_ladder, "QUICK", text)
            patch.setattr(demo_images, "QUICK", images)
            yield

    return patched


@pytest.fixture(scope="session")
def tiny_report(tmp_path_factory, tiny_settings):
    """The report of all parts of the quick demo, seed 3, in tiny settings."""
    folder = tmp_path_factory.mktemp("report")
    with tiny_settings():
        assert main(["demo", "--quick", "--seed", "3", "--jobs", "1", "--output", str(folder)]) == 0
    return folder / "report.html"
