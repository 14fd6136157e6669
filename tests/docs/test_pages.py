"""The pages: links lead somewhere, code blocks of the README run, and the commands that it names exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ladderkern

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
README = (ROOT / "README.md").read_text()


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ +(.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    for target in LINK.findall(FENCED.sub("", page.read_text())):
        if "://" in target:
            assert re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./#-]*)?", target), target
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:`|^ *)make ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert named
    assert named <= targets


def test_every_command_that_the_readme_names_has_help():
    commands = {c.split(" FILE")[0] for c in re.findall(r"`python -m ladderkern ([^`]+)`", README)}
    assert {"info", "prm report"} <= commands
    for command in sorted(commands):
        done = subprocess.run(
            [sys.executable, "-m", "ladderkern", *shlex.split(command), "--help"], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr


def test_python_blocks_of_the_readme_run(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the tests of transformers' models need it")
    from torch.distributed.device_mesh import init_device_mesh

    generator = torch.Generator().manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
    )
    model = torch.nn.Linear(16, 16)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        vq = torch.nn.Module()
        vq.embedding = torch.nn.Embedding(8, 4)
        names = {
            "model": model,
            "loss": model(torch.ones(1, 16)).sum(),
            "vq": vq,
            "logits": torch.randn(2, 6, 32, generator=generator, requires_grad=True),
            "labels": torch.randint(4, 12, (2, 6), generator=generator),
            "prm_logits": torch.randn(2, 6, 2, generator=generator),
            "input_ids": torch.tensor([[1, 9, 1, 9, 1, 1], [9, 1, 1, 1, 9, 1]]),
            "step_token_id": 9,
            "group_sizes": torch.tensor([2]),
            "llama": transformers.LlamaForCausalLM(config),
            "mesh": init_device_mesh("cpu", (1,), mesh_dim_names=("tp",)),
            "group": torch.distributed.group.WORLD,
            "branches": [],
            "x": torch.randn(3, 16, generator=generator),
            "update": torch.randn(3, 16, generator=generator),
            "weight": torch.ones(16),
            "ladderkern": ladderkern,
        }
        before = model.weight.detach().clone()
        blocks = [code for language, code in FENCED.findall(README) if language == "python"]
        assert len(blocks) >= 4
        for block in blocks:
            exec(block, names)
        assert not torch.equal(before, model.weight)
        assert names["best"].shape == (1,)
        assert torch.equal(names["stream"], names["x"] + names["update"])
    finally:
        torch.distributed.destroy_process_group()
