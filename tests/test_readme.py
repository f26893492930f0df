"""The README's code runs as it stands, and its first lines are those that .ci/run executes."""

import json
import re
import subprocess
from pathlib import Path

import lightning as L
import pytest
import torch

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -e '.[{}]'"
RUN = INSTALL.format("recipes") + " && .venv/bin/stablelightning run digits"
TEST = INSTALL.format("test") + " && .venv/bin/pytest"


def blocks(language):
    text = README.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


PYTHON = blocks("python")
(SUBCLASS,) = (block for block in PYTHON if "StableMixin" in block)
OTHERS = [block for block in PYTHON if block != SUBCLASS]


def test_the_two_lines_stand_first():
    first = re.search(r"^```\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert first.group(1).splitlines() == [RUN, TEST]


def test_ci_reads_the_same_two_lines():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (function,) = re.findall(r"^readme_line\(\) \{.*?^\}", script, re.DOTALL | re.MULTILINE)
    for number, line in ((1, RUN), (2, TEST)):
        told = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"clone={ROOT}\n{function}\nreadme_line {number}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.rstrip("\n") == line


@pytest.mark.parametrize("code", OTHERS, ids=range(len(OTHERS)))
def test_a_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Lightning logs into the working folder
    with torch.random.fork_rng():
        exec(compile(code, str(README), "exec"), {"__name__": "readme"})


def test_the_subclass_example_has_fifteen_lines_and_learns(tmp_path, monkeypatch):
    assert sum(bool(line.strip()) for line in SUBCLASS.splitlines()) == 15
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    with torch.random.fork_rng():
        L.seed_everything(0, verbose=False)
        exec(compile(SUBCLASS, str(README), "exec"), names)
    scores = {key: float(value) for key, value in names["trainer"].callback_metrics.items()}
    assert scores["test/accuracy"] > 0.9, json.dumps(scores)
    assert scores["uncertainty/accuracy_mc"] > 0.9
    assert scores["uncertainty/epistemic"] > 0


def test_every_link_leads_somewhere():
    text = README.read_text(encoding="utf-8") + (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
