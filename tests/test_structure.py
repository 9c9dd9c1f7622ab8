"""The rules that keep the code small and in layers."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONF, ROOT
from hygiene import problems

SOURCES = sorted((ROOT / "src").rglob("*.py"))
TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
).stdout.splitlines()
MIRRORED = ("model", "schedule", "sampler", "network", "dataset", "features", "metric", "callback")
BIN = Path(sys.executable).parent
RECIPES = {
    "model": {"beta_vae"},
    "network": {"unet_small"},
    "callback": {"lr_monitor"},
    "metric": {"fast", "full", "none"},
}


def tool(*words):
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_go_down():
    tool(BIN / "lint-imports")


def test_ruff_finds_nothing():
    tool(BIN / "ruff", "check", ".")
    tool(BIN / "ruff", "format", "--check", ".")


@pytest.mark.skipif(not TRACKED, reason="not a git checkout")
def test_files_are_clean():
    assert [
        line for name in TRACKED if (ROOT / name).is_file() for line in problems(ROOT / name)
    ] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_functions_and_signatures_are_small(path):
    text = path.read_text()
    assert text.count("\n") < 250
    most = 12 if path.parent.name == "network" else 8
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            arguments = [
                a.arg for a in node.args.args + node.args.kwonlyargs if a.arg not in ("self", "cls")
            ]
            assert node.end_lineno - node.lineno + 1 < 40, f"{node.name} has 40 lines or more"
            assert len(arguments) <= most, f"{node.name} takes {len(arguments)} arguments"
            for argument in node.args.args + node.args.kwonlyargs:
                assert argument.annotation or argument.arg in ("self", "cls"), (
                    f"{node.name}: {argument.arg}"
                )


def test_inheritance_is_flat():
    own = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                own[node.name] = [b.id for b in node.bases if isinstance(b, ast.Name)]

    def depth(name):
        return (
            1 + max((depth(base) for base in own[name] if base in own), default=0)
            if name in own
            else 0
        )

    assert max(map(depth, own)) <= 3  # two levels below a base of ours


@pytest.mark.parametrize("group", MIRRORED)
def test_every_option_has_its_file(group):
    for path in (CONF / group).glob("*.yaml"):
        if path.stem not in RECIPES.get(group, ()):
            target = re.search(r"_target_: src\.(\w+)\.", path.read_text())
            assert target, path
            assert target[1] == group
            known = {p.stem for p in (ROOT / "src" / group).glob("*.py")}
            assert path.stem in known or group == "model", path


def test_targets_exist():
    for path in CONF.rglob("*.yaml"):
        for target in re.findall(r"_target_: ([\w.]+)", path.read_text()):
            module, _, name = target.rpartition(".")
            assert hasattr(importlib.import_module(module), name), f"{path}: {target}"


def test_nothing_heavy_is_imported_before_the_configuration():
    heavy = "{'torch', 'pytorch_lightning', 'wandb', 'matplotlib'}"
    code = (
        "import sys, src.train, src.sample, src.evaluate, src.compare; "
        f"print({heavy} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_no_unsafe_loading():
    for path in SOURCES:
        assert not re.search(
            r"weights_only\s*=\s*False|allow_pickle\s*=\s*True", path.read_text()
        ), path


def test_what_the_theory_points_at_exists():
    text = (ROOT / "docs" / "theory.md").read_text()
    references = set(re.findall(r"`((?:src|tests)/[\w/]+\.py)::([\w.]+)`", text))
    assert len(references) > 60
    for name, symbol in references:
        found = set()
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.ClassDef):
                found |= {node.name} | {
                    f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)
                }
                found |= {
                    f"{node.name}.{n.target.id}" for n in node.body if isinstance(n, ast.AnnAssign)
                }
            elif isinstance(node, ast.FunctionDef):
                found.add(node.name)
        assert symbol in found, f"{name}::{symbol}"


def test_links_of_the_documents_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "outputs" / "README.md"]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"
