"""Every shipped recipe is valid, says what it is, and comes with the package together with what it needs."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dtrain
from dtrain.__main__ import main
from dtrain.recipe import dump_recipe, load_recipe, shipped_recipes
from dtrain.stages.check import check_inputs

ROOT = Path(dtrain.__file__).parent.parent


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_recipe_is_valid_and_keeps_its_meaning_when_written_out(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name  # so that runs/<name> is where one looks
    written = tmp_path / "recipe.yaml"
    written.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(written)) == recipe


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_first_line_describes_the_recipe(name, capsys):
    first = shipped_recipes()[name].read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# \S.{20,118}", first)
    assert main(["recipes"]) == 0
    assert re.search(rf"^{name} .*{re.escape(first[2:])}$", capsys.readouterr().out, re.MULTILINE)


def test_quickstart_finds_its_data_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_inputs(load_recipe("quickstart"))
    assert list(tmp_path.iterdir()) == []


def test_tnews_recipes_fit_the_real_files(data_folder):
    for name in ("tnews", "tnews_ensemble", "noisy_student", "multi_exit"):
        parts = {part: getattr(load_recipe(name).data, part) for part in ("train", "valid", "test", "transfer")}
        moved = [f"data.{part}={data_folder.parent / paths[0]}" for part, paths in parts.items() if paths]
        check_inputs(load_recipe(name, moved))


@pytest.mark.parametrize("name", ["thucnews_same_structure", "thucnews_other_structure", "sst2_bilstm"])
def test_other_recipes_fit_the_real_files(name, data_folder):
    data = load_recipe(name).data
    parts = {part: getattr(data, part)[0] for part in ("train", "valid", "test")}
    check_inputs(load_recipe(name, [f"data.{part}={data_folder.parent / path}" for part, path in parts.items()]))


@pytest.mark.parametrize("domain", ["clothing", "fruit", "hotel", "pda", "shampoo"])
def test_reviews_recipe_fits_every_domain(domain, data_folder, tmp_path):
    text = shipped_recipes()["reviews_distill"].read_text(encoding="utf-8")
    program = re.search(r"awk -F'\\t' '(.*)'  makes", text)[1]  # the recipe's own advice on the published files
    moved = []
    for part, file in {"train": "train.txt", "transfer": "dev.txt", "test": "test.txt"}.items():
        source = data_folder / "reviews_distill" / domain / file
        cleaned = subprocess.run(["awk", "-F\t", program, source], check=True, capture_output=True).stdout
        assert len(cleaned.splitlines()) > 0.99 * len(source.read_bytes().splitlines())
        (tmp_path / file).write_bytes(cleaned)
        moved.append(f"data.{part}={tmp_path / file}")
    check_inputs(load_recipe("reviews_distill", moved))


def test_quickstart_compares_a_student_with_its_like_from_scratch():
    students = {student.name: student for student in load_recipe("quickstart").students}
    taught, alone = students["bilstm"], students["bilstm_scratch"]
    assert taught.teachers and not alone.teachers
    differing = {"name", "teachers", "losses", "rows"}
    assert taught.model_dump(exclude=differing) == alone.model_dump(exclude=differing)


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_takes_the_config(path):
    from accelerate.commands.config.config_args import load_config_from_file

    assert path.read_text(encoding="utf-8").startswith("# ")
    config = load_config_from_file(str(path))  # raises on a key it does not know
    # `use_cpu` would start one process, or several that never connect.
    assert not config.use_cpu
    assert config.num_processes > 1


def test_pins_are_within_the_ranges_of_the_package():
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["test"]]
    lines = (ROOT / "launch" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().split("==") for line in lines if "==" in line)
    for requirement in asked:
        assert pins[requirement.name.lower()] in requirement.specifier, requirement


def test_source_archive_and_wheel_hold_what_is_read_at_run_time(tmp_path):
    """The wheel is built from the archive, so that what is missing there is missing here."""
    build = "import sys, setuptools.build_meta as backend; getattr(backend, 'build_' + sys.argv[1])(sys.argv[2])"
    run = [sys.executable, "-c", build]
    subprocess.run([*run, "sdist", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    source = next(path for path in tmp_path.iterdir() if path.is_dir())
    subprocess.run([*run, "wheel", str(tmp_path)], cwd=source, check=True, capture_output=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    package = ROOT / "dtrain"
    expected = [path.relative_to(ROOT).as_posix() for path in package.rglob("*.*") if path.is_file()]
    expected = [name for name in expected if "/__pycache__/" not in name]
    assert sorted(set(expected) - names) == []
    assert {"dtrain/accelerate_configs/ddp.yaml", "dtrain/recipes/samples/train.jsonl"} <= names
