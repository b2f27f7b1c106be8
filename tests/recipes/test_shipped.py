"""Every shipped recipe is valid, says what it is, and comes with the package together with what it needs."""

import json
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dtrain
from dtrain.__main__ import main
from dtrain.recipe import dump_recipe, load_recipe, shipped_recipes
from dtrain.report import latency
from dtrain.stages.check import check_inputs
from tests.here import dtrain_here

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
    for name in ("tnews", "tnews_ensemble", "tnews_encoder", "noisy_student", "multi_exit"):
        parts = {part: getattr(load_recipe(name).data, part) for part in ("train", "valid", "test", "transfer")}
        moved = [f"data.{part}={data_folder.parent / paths[0]}" for part, paths in parts.items() if paths]
        check_inputs(load_recipe(name, moved))


@pytest.mark.parametrize("name", ["tnews_offline", "pretrain_small"])
def test_pretraining_recipes_fit_the_real_files(name, data_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(data_folder)
    check_inputs(load_recipe(name))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("name", ["thucnews_same_structure", "thucnews_other_structure", "sst2_bilstm"])
def test_other_recipes_fit_the_real_files(name, data_folder):
    data = load_recipe(name).data
    parts = {part: getattr(data, part)[0] for part in ("train", "valid", "test")}
    check_inputs(load_recipe(name, [f"data.{part}={data_folder.parent / path}" for part, path in parts.items()]))


def test_stsb_runs_on_an_extract_of_the_real_files(data_folder, tmp_path, monkeypatch):
    """Every stage, with GLUE's own columns; models as in the recipe, but small."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "dev"):
        lines = (data_folder / "stsb" / f"{part}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{part}.tsv").write_text("".join(lines[:1] + lines[1::40]), encoding="utf-8")
    check_inputs(
        load_recipe("stsb", [f"data.train={data_folder}/stsb/train.tsv", f"data.test={data_folder}/stsb/dev.tsv"])
    )
    small = "{type: siamese, embedding: 8, hidden: 4}"
    changes = ["data.train=train.tsv", "data.test=dev.tsv", "data.augment.n_iter=1", "report.latency=false"]
    changes += [f"students.*.{change}" for change in (f"model={small}", "epochs=1", "grid={}")]
    changes += [
        "teachers.bert.model={type: bert, size: tiny, layers: 1, vocabulary_size: 300}",
        "teachers.bert.epochs=1",
    ]
    dtrain_here("run", "stsb", "launch.processes=1", "--here", *changes)
    results = json.loads((tmp_path / "runs/stsb/report/results.json").read_text())
    assert results["rows"]["train"] == 130 and results["rows"]["test"] == 38
    assert {model["name"] for model in results["models"]} == {"bert", "siamese_scratch", "siamese_distilled"}
    assert all(-1 <= model["test"]["pearson"] <= 1 for model in results["models"])


def test_translation_runs_on_an_extract_of_the_real_files(data_folder, tmp_path, monkeypatch):
    """Every stage and every way to distil; models as in the recipe, but small."""
    pytest.importorskip("sacrebleu", reason="scores of seq2seq need sacrebleu")
    monkeypatch.chdir(tmp_path)
    whole = [f"data.{part}={data_folder}/captions_en_zh/{name}.tsv" for part, name in PAIRS.items()]
    check_inputs(load_recipe("translate_en_zh", whole))
    place = tmp_path / "data" / "captions_en_zh"
    place.mkdir(parents=True)
    for name, rows in (("train", 48), ("val", 8), ("test", 12)):
        lines = (data_folder / "captions_en_zh" / f"{name}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        (place / f"{name}.tsv").write_text("".join(lines[:rows]), encoding="utf-8")
    small = "{type: marian, hidden: 8, layers: 1, heads: 2, intermediate: 8"
    changes = ["data.max_length=12", "knowledge.beam=2", f"teachers.0.model={small}, vocabulary_size: 300}}"]
    changes += [f"students.*.{change}" for change in (f"model={small}, tokenizer: teacher}}", "grid={}", "epochs=1")]
    monkeypatch.setattr(latency, "ROWS", 4)
    monkeypatch.setattr(latency, "REPEATS", 1)
    assert main(["run", "translate_en_zh", "launch.processes=1", "teachers.0.epochs=1", *changes, "--here"]) == 0
    results = json.loads((tmp_path / "runs/translate_en_zh/report/results.json").read_text())
    names = {"teacher", "scratch", "word", "sequence", "interpolated", "word_sequence"}
    assert {model["name"] for model in results["models"]} == names
    keys = {"rows_per_second_cpu_64", "rows_per_second_cpu_64_beam", "bleu", "bleu_beam"}
    assert all(keys <= set(model) and 0 <= model["test"]["chrf"] <= 1 for model in results["models"])
    page = (tmp_path / "runs/translate_en_zh/report/report.md").read_text()
    assert "rows/s, CPU, batch 64, beam" in page and "batch 64, beam, 2 times)" in page


def test_events_run_on_an_extract_of_the_real_files(data_folder, tmp_path, monkeypatch):
    """Every stage, the teacher with given and with predicted arguments, and the phases; models as in the recipe, but small."""
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(data_folder)
    check_inputs(load_recipe("events"))
    Path("data").unlink()
    place = tmp_path / "data" / "cec"
    place.mkdir(parents=True)
    for name, rows in (("train", 60), ("dev", 10), ("test", 12)):
        lines = (data_folder / "cec" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (place / f"{name}.jsonl").write_text("".join(lines[:rows]), encoding="utf-8")
    changes = [f"{each}.*.model.{key}" for each in ("teachers", "students") for key in ("embedding=8", "lstm=4")]
    changes += ["teachers.*.epochs=1", "students.*.grid={}", "students.imitation.phases.*.epochs=1"]
    changes += [f"students.{name}.epochs=1" for name in ("text_only", "marginals", "reversal")]
    assert main(["run", "events", "launch.processes=1", "report.latency=false", *changes, "--here"]) == 0
    results = json.loads((tmp_path / "runs/events/report/triggers/results.json").read_text())
    names = {"informed", "text_only", "marginals", "imitation", "reversal"}
    assert {model["name"] for model in results["models"]} == names
    assert [row["annotated_by"] for row in results["annotated"]] == [None, "arguments"]
    assert all(0 <= row["parts"]["test"]["f1"] <= 1 for row in results["annotated"])
    assert [phase["name"] for phase in results["phases"]] == ["encoder", "discriminator", "adversarial"]


PAIRS = {"train": "train", "valid": "val", "test": "test"}


def every(source: Path, target: Path, step: int) -> None:
    """One line in `step` of a file."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(lines[::step]), encoding="utf-8")


def header_runs_nothing(name, folder):
    """The commands in a recipe's header, where `dtrain` does nothing."""
    subprocess.run(["bash", "-euc", "dtrain() { :; }\n" + header_commands(name)], cwd=folder, check=True)


def test_reviews_of_two_languages_run_on_an_extract_of_the_real_files(data_folder, tmp_path, monkeypatch):
    """Every stage and every member; small models stand for the pretrained ones."""
    monkeypatch.chdir(tmp_path)
    files = {"amazon_en/books.train.jsonl": 40, "amazon_en/books.dev.jsonl": 30, "amazon_en/books.test.jsonl": 100}
    files |= {
        "parallel_en_zh/tatoeba_cmn.txt": 1000,
        "captions_en_zh/train.tsv": 1000,
        "online_shopping/books.jsonl": 41,
    }
    for name, step in files.items():
        every(data_folder / name, tmp_path / "data" / name, step)
    header_runs_nothing("crosslingual_reviews", tmp_path)
    for name in ("all-MiniLM-L6-v2", "m3e-small"):
        (tmp_path / "data/encoders" / name).mkdir(parents=True)
    tiny = "{type: bert, size: tiny, hidden: 16, heads: 2, layers: 1, vocabulary_size: 300}"
    changes = [f"teachers.*.{change}" for change in (f"model={tiny}", "epochs=1")]
    changes += ["students.*.grid={}", "students.*.epochs=1", "data.max_length=24", "report.latency=false"]
    changes += [f"students.{name}.model={tiny}" for name in ("m3e", "m3e_adverse", "floor_m3e", "ceiling_m3e")]
    dtrain_here("run", "crosslingual_reviews", "launch.processes=1", "--here", *changes)
    results = json.loads((tmp_path / "runs/crosslingual_reviews/report/results.json").read_text())
    students = {"bilstm", "bilstm_adverse", "m3e", "m3e_adverse", "floor_m3e", "ceiling_m3e", "ceiling_bilstm"}
    assert {model["name"] for model in results["models"]} == {"english", "english_adverse", *students}
    rows = {model["name"]: model["test"]["rows"] for model in results["models"]}
    assert rows == {"english": 20, "english_adverse": 20} | dict.fromkeys(students, 47)
    scored = {model["name"] for model in results["models"] if model["accuracy"] is not None}
    assert scored == {"english", "english_adverse", "floor_m3e"}  # they have validation rows of their side


def test_headlines_run_on_an_extract_of_the_real_files(data_folder, tmp_path, monkeypatch):
    """Every stage; models as in the recipe, but small."""
    pytest.importorskip("sacrebleu", reason="scores of seq2seq need sacrebleu")
    monkeypatch.chdir(tmp_path)
    for name, step in {"tnews/train.json": 500, "tnews/dev.json": 1000, "captions_en_zh/train.tsv": 1000}.items():
        every(data_folder / name, tmp_path / "data" / name, step)
    every(data_folder / "captions_en_zh/test.tsv", tmp_path / "data/captions_en_zh/test.tsv", 100)
    header_runs_nothing("headlines", tmp_path)
    small = "{type: marian, hidden: 8, layers: 1, heads: 2, intermediate: 8"
    changes = ["data.max_length=12", "data.split.valid=0.1", "knowledge.beam=2", "report.latency=false"]
    changes += ["teachers.0.epochs=1", f"teachers.0.model={small}, vocabulary_size: 300}}"]
    changes += [f"students.*.{change}" for change in (f"model={small}, tokenizer: chinese}}", "epochs=1")]
    assert main(["run", "headlines", "launch.processes=1", *changes, "--here"]) == 0
    run = tmp_path / "runs/headlines"
    results = json.loads((run / "report/results.json").read_text())
    assert {model["name"] for model in results["models"]} == {"chinese", "scratch", "distilled", "zero_shot"}
    assert {model["name"] for model in results["models"] if model["bleu"] is None} == {"zero_shot"}
    metrics = json.loads((run / "students/zero_shot/metrics.json").read_text())
    assert metrics["training_rows"] == 24  # the pairs; of the rows with a headline none has an English side


def test_reviews_recipe_fits_every_domain(data_folder, tmp_path):
    """The commands in the recipe's header, where `dtrain` and `python` only write down what they were asked."""
    script = header_commands("reviews_distill")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "reviews_distill").symlink_to(data_folder / "reviews_distill")
    heard = 'dtrain() { echo "$@" >> asked; }; python() { :; }\n'
    subprocess.run(["bash", "-euc", heard + script], cwd=tmp_path, check=True)
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    domains = ["clothing", "fruit", "hotel", "pda", "shampoo"]
    assert [words[:3] for words in asked] == [
        ["run", "reviews_distill", f"name=reviews_{domain}"] for domain in domains
    ]
    for domain, words in zip(domains, asked, strict=True):
        moved = [change.replace("=data/", f"={tmp_path}/data/") for change in words[3:]]
        assert len(moved) == 3
        check_inputs(load_recipe("reviews_distill", moved))
        for file in ("train.txt", "dev.txt", "test.txt"):
            source = data_folder / "reviews_distill" / domain / file
            cleaned = tmp_path / "data" / "reviews_fit" / domain / file
            assert len(cleaned.read_bytes().splitlines()) > 0.99 * len(source.read_bytes().splitlines())


def test_reviews_recipe_prints_the_mean_over_domains(tmp_path):
    def group(name, accuracy):
        return {"name": name, "test": {"accuracy": {"mean": accuracy, "std": None}}}

    found = {"fruit": (0.5, 0.75), "hotel": (0.75, 0.875), "distill": (0.0, 0.0)}  # the last is the recipe's own name
    for domain, (scratch, distilled) in found.items():
        place = tmp_path / "runs" / f"reviews_{domain}" / "report"
        place.mkdir(parents=True)
        groups = [group("bert", 1.0), group("bilstm_scratch", scratch), group("bilstm_distilled", distilled)]
        (place / "results.json").write_text(json.dumps({"groups": groups}))
    _, _, program = header_commands("reviews_distill").partition("done\npython -c ")
    done = subprocess.run(
        ["bash", "-euc", f"'{sys.executable}' -c {program}"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "bilstm_scratch 0.625 over 2 domains",
        "bilstm_distilled 0.8125 over 2 domains",
    ]


def test_the_larger_model_of_pretrain_small_is_larger():
    """The header's last command; with a `size` alone the recipe's own widths would stay."""
    *_, command = header_commands("pretrain_small").replace("\\\n", " ").splitlines()
    dtrain_, run, name, *changes = shlex.split(command)
    assert (dtrain_, run, name) == ("dtrain", "run", "pretrain_small")
    recipe = load_recipe(name, changes)
    (scratch,) = [teacher for teacher in recipe.teachers if teacher.name == "scratch"]
    for model in (recipe.pretrain.model, scratch.model):
        assert (model.type, model.size, model.hidden, model.layers) == ("nezha", "small", None, None)
    assert recipe.pretrain.phases[0].batch_size == 512 and recipe.name != name


def test_noisy_student_goes_round_by_round(tmp_path, monkeypatch):
    """The header's second command: the first round's student as the teacher, as it is."""
    monkeypatch.chdir(tmp_path)
    (command,) = [line for line in header_commands("noisy_student").splitlines() if "_2" in line]
    dtrain_, run, name, *changes = shlex.split(command)
    assert (dtrain_, run, name) == ("dtrain", "run", "noisy_student")
    first, second = load_recipe(name), load_recipe(name, changes)
    assert second.name != first.name
    (teacher,) = second.teachers
    known = [f"{first.output_dir}/{first.name}/students/{student.name}" for student in first.students]
    assert teacher.source in known
    assert [student.teachers for student in second.students if student.noisy] == [[teacher.name]] * 3


def header_commands(name):
    """The commands in a recipe's first comment: its lines that are set in."""
    lines = shipped_recipes()[name].read_text(encoding="utf-8").splitlines()
    head = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#   ") for line in head if line.startswith("#   "))


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
    links = {"dtrain/accelerate_configs/ddp.yaml", "dtrain/docs/results/tnews.md"}
    assert links | {"dtrain/py.typed", "dtrain/recipes/samples/train.jsonl"} <= names
