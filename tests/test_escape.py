"""Names and values of anybody act nowhere: terminal, Markdown, CSV, figures, messages, logs."""

import csv
import io
import itertools
import json
import logging
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from src.comparison.comparison import compare
from src.comparison.find import find_runs
from src.comparison.output import comma_separated, markdown, show
from src.config.output import Plain
from src.foreign import printable
from src.metric.base import Measurement
from src.report import escape
from src.report.card import Card
from src.report.figure import blank, picture_of
from src.report.jobs import print_jobs, write_jobs

ATTACKS = {
    "colour": "\x1b[31mred\x1b[0m",
    "clear": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "one byte": "\x9b2J",
    "bell": "a\x07\x08\x08b",
    "return": "good\rbad",
    "bidi": "abc\u202etxt.exe\u2066",
    "zero width": "a\u200bb\ufeff",
    "line": "a\u2028b\u2029c\x85d",
    "surrogate": "a\udcffb",
    "heading": "x\n# Owned\n\n- all good",
    "hash": "# Owned",
    "table": "a | b |\n|---|---|\n| 1",
    "pipes": "a\\|b||c\\\\|d",
    "script": "<script>alert(1)</script>",
    "image": "![x](http://attacker/pixel.png)",
    "link": "[click](javascript:alert(1))",
    "entity": "&lt;img src=x onerror=alert(1)&gt;",
    "bold": "**9.99**",
    "code": "`a` <b>``",
    "fence": "```\nrm",
    "markup": "[bold red]x[/bold red][/nope]",
    "rich link": "[link=http://attacker]x[/link]",
    "emoji": ":skull:",
    "sum": "=1+1",
    "call": "=cmd|' /C calc'!A0",
    "plus": "+1+1",
    "minus": "-2+3",
    "at": "@SUM(A1)",
    "semicolon": "a;=1+1",
    "tab": "\t=1+1",
    "blank": "  =1+1",
    "wide": "\uff1d1+1",
    "formula": "$\\frac$ and $x_{$",
    "markdown formula": "$\\href{http://attacker}{x}$",
}
READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
TABLE = {"table", "thead", "tbody", "tr", "th", "td"}
EACH = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def acts(text):
    """Characters that a terminal or an editor obeys, line ends aside."""
    bad = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return [letter for letter in text if unicodedata.category(letter) in bad and letter != "\n"]


@pytest.fixture
def runs(tmp_path):
    """Two runs with a foreign text wherever one may stand."""

    def make(text):
        for number in (1, 2):
            folder = tmp_path / f"run{number}"
            folder.mkdir()
            config = {
                "seed": 0,
                "model": {"_target_": "src.model.vae.VAE", "latent_dim": f"{text}{number}"},
                "note": text,
                f"set{text}": number,
                "provenance": {"git": text, "overrides": [text, "seed=0"]},
            }
            (folder / "config.yaml").write_text(json.dumps(config))
            name = f"test/fid_{text}"
            details = {"error": 0.5, "error_kind": text, "context": {"features": text, text: 1}}
            lacking = {"error": None, "reason": text, "context": {}}
            content = {
                name: 1.5 * number,
                f"test/{text}": None,
                "test/loss": -2.0,
                "details": {name: details, f"test/{text}": lacking},
                "context": {text: text, "weights": f"{text}{number}", "step": 4},
                "notes": [text],
            }
            (folder / "evaluation.json").write_text(json.dumps(content))
        return compare(find_runs([str(tmp_path)]), ["*"])

    return make


def check_markdown(page, headings, strong, attack):
    """Nothing but the page's own headings, lists, tables, code and bold texts, by a real reader.

    The attack is read as it was written.
    """
    assert not acts(page)
    page.encode()
    tokens = READER.parse(page)
    inner = [child for token in tokens for child in token.children or ()]
    known = {"text", "text_special", "code_inline", "strong_open", "strong_close"}
    assert {token.type for token in inner} <= known
    blocks = {token.type.removesuffix("_open").removesuffix("_close") for token in tokens}
    assert blocks <= {*["heading", "inline", "bullet_list", "list_item", "paragraph"], *TABLE}
    after = [(one.type, two) for one, two in itertools.pairwise(tokens) if two.type == "inline"]
    assert [two.content for one, two in after if one == "heading_open"][-3:] == headings
    assert sum(token.type == "strong_open" for token in inner) == strong
    for where in ("td_open", "paragraph_open"):
        texts = [read(two) for one, two in after if one == where]
        assert any(printable(attack).strip() in text for text in texts), texts
    assert not re.search(r"(?<!\\)\$", page.replace("\\\\", "").replace("`", ""))


def read(token):
    """The text of a paragraph or cell."""
    return "".join(child.content for child in token.children)


@EACH
def test_a_comparison_is_inert(runs, attack):
    comparison = runs(attack)
    page = markdown(comparison)
    headings = ["Comparison of 2 runs", "How it was measured", "Runs"]
    check_markdown(page, headings, 2, attack)
    shown = io.StringIO()
    show(comparison, Console(file=shown, width=160, highlight=False, emoji=False))
    assert not acts(shown.getvalue())
    if attack.isprintable():
        assert attack in shown.getvalue().replace("\n", "")
    check_csv(comma_separated(comparison))


def check_csv(text):
    """No cell that a spreadsheet computes, with commas or semicolons as the ends of cells."""
    assert not acts(text)
    rows = list(csv.reader(io.StringIO(text)))
    assert len({len(row) for row in rows}) == 1
    for cell in [*(cell for row in rows for cell in row), *text.replace("\n", ";").split(";")]:
        head = cell.lstrip(' "')[:1]
        number = re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", cell)
        assert number or head not in ("=", "+", "-", "@", "\uff1d"), cell


@EACH
def test_a_card_is_inert(tmp_path, capsys, attack):
    card = Card(attack, {attack: attack, "sampler": [attack]}, notes=[attack])
    number = Measurement(1.0, 0.5, attack, context={attack: attack, "scale": attack})
    card.add("test", {attack: number, f"fid_{attack}": number})
    card.add("val", {attack: Measurement(None, reason=attack)}, split=attack)
    card.write(tmp_path)
    page = (tmp_path / "evaluation.md").read_text()
    headings = ["Samples", "Losses and the rest", "Context"]
    check_markdown(page, headings, 0, attack)
    json.loads((tmp_path / "evaluation.json").read_text())
    card.show()
    assert not acts(capsys.readouterr().out)


@EACH
def test_the_table_of_jobs_is_inert(tmp_path, capsys, attack):
    job = {
        "number": 0,
        "overrides": [attack, "seed=1"],
        "status": attack,
        "metric": -0.5,
        "metric_name": attack,
        "run_dir": f"/tmp/{attack}",
        "detail": attack,
        "name": attack,
    }
    write_jobs([job], tmp_path / "jobs.csv")
    text = (tmp_path / "jobs.csv").read_text()
    check_csv(text)
    assert ",-0.5," in text
    print_jobs([job], tmp_path / "jobs.csv")
    shown = capsys.readouterr().out
    assert not acts(shown)
    assert shown.count("\n") == 3


@EACH
def test_messages_and_logs_are_inert(cli, tmp_path, attack):
    (tmp_path / "a").mkdir()
    config = {"model": {"a": 1}, "provenance": {"git": [attack]}}
    (tmp_path / "a/config.yaml").write_text(json.dumps(config))
    done = cli("compare", "a")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert not acts(done.err)
    record = logging.LogRecord("src.x", logging.INFO, "", 0, "hello %s", (attack,), None)
    assert not acts(Plain().format(record))


@pytest.mark.parametrize("name", ["colour", "clear", "title", "bidi", "return"])
def test_a_path_that_acts_is_shown_in_letters(cli, name):
    done = cli("compare", f"none{ATTACKS[name]}")
    assert (done.code, done.err.count("\n")) == (4, 1)
    assert not acts(done.err)
    assert "\\" in done.err


@pytest.mark.parametrize("name", ["colour", "bidi"])
def test_a_path_of_another_entry_point_is_shown_in_letters(cli, name):
    done = cli("sample", f"ckpt_path=none{ATTACKS[name]}")
    assert (done.code, done.err.count("\n")) == (4, 1)
    assert not acts(done.err)


@EACH
def test_figures_show_names_as_they_are(attack):
    figure = blank(3, 2)
    axes = figure.subplots()
    axes.plot([1, 2], [1, 2], label=escape.label(attack))
    axes.legend()
    assert isinstance(picture_of(figure), np.ndarray)


@given(st.text())
def test_nothing_is_lost_or_acts(text):
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert "\n" not in escape.inline(text)
    back = re.sub(r"\\([^a-z0-9\s])", r"\1", escape.inline(shown))
    assert back == shown
    assert escape.cell(escape.code(text)).count("|") == escape.cell(text).count("\\|")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-1.5, "-1.5"),
        ("-1.5", "-1.5"),
        ("+2e-3", "+2e-3"),
        ("=2", "'=2"),
        ("-x", "'-x"),
        ("-1+1", "'-1+1"),
        ("a-b", "a-b"),
        (None, ""),
        ("a;-b", "a;'-b"),
        ("-inf", "'-inf"),
        (True, "True"),
    ],
)
def test_numbers_stay_numbers(value, shown):
    assert escape.comma_separated([["x", value]]) == f"x,{shown}\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("test/fid_classifier_360", "test/fid_classifier_360"),
        ("_a_ b_", "\\_a\\_ b\\_"),
        ("a*b", "a\\*b"),
        ("p(x | z) > 0.5", "p(x | z) > 0.5"),
        ("C:\\x", "C:\\\\x"),
    ],
)
def test_plain_text_stays_legible(text, shown):
    assert escape.inline(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [("# a", "\\# a"), ("  - a", "  \\- a"), ("1. a", "1\\. a"), ("12) a", "12\\) a"), ("a", "a")],
)
def test_a_line_begins_nothing(text, shown):
    assert escape.line(text) == shown
