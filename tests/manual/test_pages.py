"""The manual and the README as text: links, structure, and every code block run, parsed or checked against the schema."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from dtrain.__main__ import _parse, main
from dtrain.manual import pages
from dtrain.recipe import load_recipe
from dtrain.recipe.source import parse
from tests.here import dtrain_here

ROOT = Path(__file__).parent.parent.parent
FILES = {name: pages.FOLDER / f"{name}.md" for name in (pages.INDEX, *pages.page_names())}
FILES["README"] = ROOT / "README.md"
LONGEST_README = 200
LANGUAGES = {"bash", "yaml", "python", "text"}
# What a fragment of a recipe lacks is taken from here.
REST = {
    "name": "fragment",
    "data": {"train": "train.jsonl", "transfer": "more.txt"},
    "teachers": [{"name": name, "model": {"type": "textcnn"}} for name in ("bert", "a", "b")],
    "students": [{"name": "bilstm", "model": {"type": "bilstm"}}],
}


def blocks(language: str) -> list:
    found = []
    for name, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found.append(pytest.param(match[1], id=f"{name}:{text[: match.start()].count(chr(10)) + 1}"))
    return found


def commands(script: str) -> list[list[str]]:
    """The words of each command; a line that ends with a backslash goes on."""
    lines = script.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.replace("<name>", "NAME"), comments=True))]


@pytest.mark.parametrize("script", blocks("bash"))
def test_commands_are_ones_that_the_command_line_takes(script: str) -> None:
    for words in commands(script):
        for place, word in enumerate(words):
            if word == "dtrain" and (place == 0 or words[place - 1] in ("|", "-m", "do", "&&", "time")):
                end = next((n for n in range(place, len(words)) if words[n] in ("|", ">", ">>", "&&", ";", "&")), None)
                _parse(words[place + 1 : end])
        if words[0] in ("bash", "sbatch") and not words[1].startswith("-"):
            assert (ROOT / words[1]).is_file(), words


def test_changes_on_the_command_line_fit_the_recipe_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dtrain run hotel.yaml KEY=VALUE`, where the page has a recipe of the name hotel."""
    monkeypatch.chdir(tmp_path)
    recipes = {
        f"{values['name']}.yaml": text
        for (text,) in (block.values for block in blocks("yaml"))
        if "name" in (values := parse(text))
    }
    for name, text in recipes.items():
        Path(name).write_text(text, encoding="utf-8")
    loaded = 0
    for block in blocks("bash"):
        for words in commands(block.values[0]):
            if words[0] == "dtrain" and words[2:3] and (words[2] in recipes or words[2] == "quickstart"):
                load_recipe(words[2], [word for word in words[3:] if re.match(r"[a-z_*.0-9]+=", word)])
                loaded += 1
    assert loaded >= 6


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipes_fit_the_schema(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = parse(text)
    if "name" not in values:
        values = {key: value for key, value in REST.items() if key != "data" or "tasks" not in values} | values
    Path("recipe.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    load_recipe("recipe.yaml")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the name, the teacher and the student that the pages speak of."""
    folder = tmp_path_factory.mktemp("run")
    rows = [{"text": f"{words}{n}", "label": words} for n in range(30) for words in ("sport", "money")]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    small = {"model": {"type": "textcnn", "filters": 4, "widths": [2]}, "epochs": 1}
    recipe = REST | {"name": "topics", "data": {"train": "train.jsonl"}}
    recipe |= {"teachers": [{"name": "bert", **small}], "students": [{"name": "bilstm", **small}]}
    (folder / "topics.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    dtrain_here("run", "topics.yaml", "--here", "--stages", "prepare,finetune,precompute,distill", folder=folder)
    return folder


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str, run_folder: Path) -> None:
    with contextlib.chdir(run_folder):
        exec(compile(code, "<page>", "exec"), {})


@pytest.mark.parametrize("place", ["teachers/bert", "students/bilstm"])
def test_the_code_of_a_model_card_runs(place: str, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = (run_folder / "runs" / "topics" / place / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    with contextlib.chdir(run_folder):
        exec(compile(code, "<card>", "exec"), {})
    assert "'label': " in capsys.readouterr().out
    for word in ("pipeline_tag: text-classification", "simplify", "`AutoModel`", "labels: money, sport", "train.jsonl"):
        assert word in card
    assert "licence: not given" in card and "validation rows: " in card


def test_cheap_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Those on the embedded sample that train nothing."""
    monkeypatch.chdir(tmp_path)
    run = set()
    for block in blocks("bash"):
        for words in commands(block.values[0]):
            cheap = words[:2] in (["dtrain", "help"], ["dtrain", "recipes"], ["dtrain", "stages"])
            cheap |= words[:3] == ["dtrain", "check", "quickstart"] or {"--dry-run", "--plan"} & {*words} != set()
            if cheap and "|" not in words and not any(word.endswith(".yaml") for word in words[2:3]):
                command = tuple(words[1:])
                if command not in run and not (command[:2] == ("recipes", "copy") and list(Path().glob("*.yaml"))):
                    assert main([*command]) == 0, words
                    run.add(command)
    assert len(run) >= 5 and ("check", "quickstart") in run


def test_readme_is_short_and_its_map_is_the_tree() -> None:
    """Every folder of the package is on the map, and nothing else."""
    text = FILES["README"].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_README
    on_map = set(re.findall(r"^  (\w+)/ ", text, re.MULTILINE))
    package = ROOT / "dtrain"
    files = [path.relative_to(package).parts for path in package.rglob("*.*") if path.suffix not in (".pyc", "")]
    assert on_map == {parts[0] for parts in files if len(parts) > 1 and not (package / parts[0]).is_symlink()}


@pytest.mark.parametrize("name", FILES)
def test_links_lead_somewhere(name: str) -> None:
    text = FILES[name].read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if not target.startswith("http"):
            assert (FILES[name].parent / target.partition("#")[0]).exists(), target
            assert name == "README" or ".." not in target, "a wheel holds nothing beyond dtrain/: see docs/results"


@pytest.mark.parametrize("name", FILES)
def test_structure(name: str) -> None:
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    fenced, rank = False, 0
    assert lines[0].startswith("# ")
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}: {line}"
        assert line == line.rstrip(), where
        assert (
            fenced
            or not line.startswith(("    ", "\t", "~~~"))
            and not line.lstrip().startswith("```") ^ line.startswith("```")
        ), f"{where}: a block that no test would see"
        if line.startswith("```"):
            assert line == "```" if fenced else line[3:] in LANGUAGES, where
            fenced = not fenced
        elif not fenced and (match := re.match(r"#+", line)):
            assert len(match[0]) <= rank + 1 and (number == 1 or len(match[0]) > 1), where
            rank = len(match[0])
            assert number == 1 or (lines[number - 2] == "" and lines[number] == ""), where
        elif not fenced and line.startswith("|") and lines[number - 2].startswith("|"):
            cells = [len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", each))) for each in lines[number - 2 : number]]
            assert cells[0] == cells[1], where
    assert not fenced and lines[-1] != ""
