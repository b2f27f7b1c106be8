"""predict: rows in, labels out, by the same path as training."""

import dataclasses
import gzip
import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import torch

from dtrain import Predictor
from dtrain.data import tokenizer_name
from dtrain.errors import InputError
from dtrain.models import load
from dtrain.predict import blocks
from dtrain.predict import texts as predict_texts
from dtrain.stages import predict


def predicted(run, world, tmp_path, **options):
    output = tmp_path / "predictions"
    options = {"model": None, "input": None, "form": "jsonl", **options}
    predict.run(run.recipe, world, run.folder, output=str(output), **options)
    return output.read_text(encoding="utf-8").splitlines()


def test_answers_are_the_models_own(run, world, tmp_path):
    lines = [json.loads(line) for line in predicted(run, world, tmp_path, model="cnn-seed2")]
    member = next(member for member in run.recipe.students if member.name == "cnn-seed2")
    part, model = (
        run.data.part("test", tokenizer_name(member)),
        load(run.folder.model("students", "cnn-seed2")),
    )
    assert [line["id"] for line in lines] == list(range(500, 512))
    assert [line["line"] for line in lines] == list(range(1, 13))
    assert [line["text"] for line in lines] == list(part.rows()["text"])
    for position, line in enumerate(lines):
        with torch.no_grad():
            shares = model(**part.collate([position])).logits[0].softmax(0)
        assert line["label"] == run.data.labels[int(shares.argmax())]
        assert line["score"] == pytest.approx(float(shares.max()), abs=1e-5)
        assert list(line["scores"]) == run.data.labels
        assert sum(line["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_a_file_gives_what_the_prepared_rows_give(run, world, tmp_path):
    prepared = predicted(run, world, tmp_path, model="bert")
    assert predicted(run, world, tmp_path, model="bert", input=run.recipe.data.test[0]) == prepared


def test_plain_lines_are_normalised_as_in_training(run, world, tmp_path, monkeypatch):
    (tmp_path / "plain.txt").write_text("电影ABC\n電影ＡＢＣ \n\n", encoding="utf-8")
    lines = [json.loads(line) for line in predicted(run, world, tmp_path, input=str(tmp_path / "plain.txt"))]
    assert [line["id"] for line in lines] == [0, 1, 2]
    assert [line["text"] for line in lines] == ["电影ABC", "電影ＡＢＣ ", ""]  # as given
    assert lines[0]["scores"] == lines[1]["scores"] != lines[2]["scores"]
    monkeypatch.setattr(predict_texts, "STDIN", tmp_path / "plain.txt")
    assert [json.loads(line) for line in predicted(run, world, tmp_path, input="-")] == lines


def test_the_best_student_by_valid_is_taken(run, world, tmp_path, capsys):
    # Their metrics.json say 0.31, 0.32, 0.33 for the seeds 1, 2, 3, and 0.30 for the one from scratch.
    assert predicted(run, world, tmp_path) == predicted(run, world, tmp_path, model="cnn-seed3")
    assert "warning" not in capsys.readouterr().err  # one student failed, of which the report tells


def test_students_that_the_recipe_describes_otherwise_are_not_asked_and_told(run, world, tmp_path, capsys):
    changed = run.recipe.model_copy(deep=True)
    next(student for student in changed.students if student.name == "cnn-seed3").epochs += 1
    found = predicted(dataclasses.replace(run, recipe=changed), world, tmp_path)
    told = capsys.readouterr().err
    assert "warning: not trained for this recipe, and so not asked: cnn-seed3; keys that were changed on the" in told
    assert found == predicted(run, world, tmp_path, model="cnn-seed2")


def test_clue_submission(run, world, tmp_path):
    lines = [json.loads(line) for line in predicted(run, world, tmp_path, form="clue", model="cnn-seed1")]
    wanted = [json.loads(line)["label"] for line in predicted(run, world, tmp_path, model="cnn-seed1")]
    assert lines == [
        {"id": 500 + position, "label": label, "label_desc": f"news_{label}"} for position, label in enumerate(wanted)
    ]


def test_tab_separated(run, world, tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"id": "a", "sentence": "电\\t影\\n"}\n{"id": "b", "sentence": "x"}\n', encoding="utf-8"
    )
    lines = predicted(run, world, tmp_path, form="tsv", input=str(tmp_path / "rows.jsonl"))
    assert lines[0] == "id\tlabel\tscore\ttext\tline"
    assert [line.split("\t")[4] for line in lines[1:]] == ["1", "2"]
    assert [line.split("\t")[0] for line in lines[1:]] == ["a", "b"]
    assert [line.split("\t")[3] for line in lines[1:]] == ["电 影", "x"]


def test_stdout_holds_the_lines_alone(run, world, tmp_path, monkeypatch):
    stdout = io.StringIO()
    monkeypatch.setattr("sys.stdout", stdout)
    predict.run(run.recipe, world, run.folder, model="bert", input=None, output=None, form="jsonl")
    assert len([json.loads(line) for line in stdout.getvalue().splitlines()]) == 12


def folder_answers(place, world, tmp_path, **options):
    output = tmp_path / "of-the-folder"
    predict.run_folder(place, world, **{"model": None, "input": None, "form": "jsonl", **options}, output=str(output))
    return output.read_text(encoding="utf-8").splitlines()


def test_a_model_folder_is_enough(run, world, tmp_path, monkeypatch):
    """One that was copied elsewhere reads files laid out as the recipe's, and answers as the recipe does."""
    place, test = tmp_path / "copied", run.recipe.data.test[0]
    shutil.copytree(run.folder.model("students", "cnn-seed1"), place)
    wanted = predicted(run, world, tmp_path, model="cnn-seed1", input=test)
    assert folder_answers(place, world, tmp_path, input=test) == wanted
    with open(test, encoding="utf-8") as file:
        texts = [json.loads(line)["sentence"] for line in file]
    predictor = Predictor(place)
    assert [json.loads(line)["scores"] for line in wanted] == [answer["scores"] for answer in predictor(texts)]
    with pytest.raises(InputError, match="is a model for task 'classification'; give one text a row"):
        predictor(texts, texts)
    with pytest.raises(InputError, match="give a list of texts, not one text"):
        predictor("text")
    with pytest.raises(InputError, match="row 1: must be a text, found int"):
        predictor(["text", 3])
    with pytest.raises(InputError, match="row 0: holds half of a surrogate pair"):
        predictor(["\ud83d"])
    (place / "preprocessing.json").unlink()
    with pytest.raises(InputError, match="preprocessing.json: is missing"):
        Predictor(place)


def test_folders_that_are_no_models_and_devices_that_are_not_here(run, tmp_path):
    (tmp_path / "predict.py").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    for place, message in {
        tmp_path / "run": "is a run folder; name a model folder in it, as .*students/NAME",
        tmp_path / "absent": "absent: no such folder",
        tmp_path: "is an exported model",
    }.items():
        with pytest.raises(InputError, match=message):
            Predictor(place)
    with pytest.raises(InputError, match=r"device: 'gpu' is unknown \(cpu, cuda, "):
        Predictor(run.folder.model("teachers", "bert"), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device: 'cuda': torch sees no GPU here"):
            Predictor(run.folder.model("teachers", "bert"), device="cuda")


def test_a_table_of_one_column_is_told_how_it_is_read(run, world, tmp_path):
    (tmp_path / "one.tsv").write_text("球队\n股票\n", encoding="utf-8")
    with pytest.raises(InputError, match="one.tsv:1: .*give --columns text=0"):
        predicted(run, world, tmp_path, input=str(tmp_path / "one.tsv"), columns=["text=1"])


def test_a_beam_is_for_models_that_write(run, world, tmp_path):
    place = run.folder.model("students", "cnn-seed1")
    told = r"beam: is for models that write texts \(task seq2seq\), and .*cnn-seed1 writes none"
    with pytest.raises(InputError, match=f"^{told}"):
        Predictor(place, beam=2)
    for options in ({"beam": 2}, {"beam": 2, "length_penalty": 0.5}):
        with pytest.raises(InputError, match=f"^--{told}"):
            predicted(run, world, tmp_path, model="cnn-seed1", **options)
    with pytest.raises(InputError, match="--length-penalty: is of a beam; give --beam, too"):
        predicted(run, world, tmp_path, model="cnn-seed1", length_penalty=0.5)
    assert not (tmp_path / "predictions").exists()


def test_a_predictor_computes_in_the_precision_that_it_is_given(run):
    place, texts = run.folder.model("teachers", "bert"), ["电影演员", "股票", "球赛" * 9]
    whole, half = (Predictor(place, precision=name)(texts) for name in ("fp32", "bf16"))
    scores = [[[answer["scores"][label] for label in run.data.labels] for answer in found] for found in (whole, half)]
    assert scores[0] != scores[1]
    assert np.allclose(*scores, atol=0.01)  # bf16 keeps 8 bits
    with pytest.raises(InputError, match="precision: 'half' is unknown"):
        Predictor(place, precision="half")
    with pytest.raises(InputError, match="precision: fp16 needs a GPU"):
        Predictor(place, precision="fp16")


def test_files_of_all_kinds_for_a_model_folder(run, world, tmp_path, monkeypatch):
    place = run.folder.model("students", "cnn-seed1")
    texts = ["电影演员", "股票", ""]
    rows = [json.dumps({"title": text, "n": 3}) for text in texts]
    (tmp_path / "new.jsonl").write_text("\n".join(rows))
    with gzip.open(tmp_path / "new.jsonl.gz", "wt") as file:
        file.write("\n".join(rows))
    datasets.Dataset.from_dict({"title": texts}).to_parquet(tmp_path / "new.parquet")
    (tmp_path / "new.csv").write_text("title;n\n" + "".join(f"{text};3\n" for text in texts), encoding="gb18030")
    answers = [answer["scores"] for answer in Predictor(place)(texts)]
    for name, options in {
        "new.jsonl": {},
        "new.jsonl.gz": {},
        "new.parquet": {},
        "new.csv": {"encoding": "gb18030", "delimiter": ";"},
    }.items():
        # The same bytes as a file, and as standard input.
        monkeypatch.setattr(predict_texts, "STDIN", tmp_path / name)
        for source in (str(tmp_path / name), "-"):
            found = folder_answers(
                place,
                world,
                tmp_path,
                input=source,
                columns=["text=title"],
                **options,
                **({"format": "csv"} if source == "-" and name.endswith("csv") else {}),
            )
            assert [json.loads(line)["scores"] for line in found] == answers, (name, source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--input: a model folder has no rows; name a file, or - for stdin"),
        ({"model": "bert", "input": "x"}, "--model: chooses among the models of a recipe"),
        ({"input": "other.jsonl"}, r"other.jsonl:1: has no 'sentence' .*; give --columns text=NAME"),
    ],
)
def test_what_a_model_folder_refuses(run, world, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(InputError, match=message):
        folder_answers(run.folder.model("students", "cnn-seed1"), world, tmp_path, **options)
    assert not (tmp_path / "of-the-folder").exists()


def test_which_model_answers_is_said_on_stderr(run, world, tmp_path, capsys):
    predicted(run, world, tmp_path, model="cnn-seed3")
    assert capsys.readouterr().err == f"predict: student cnn-seed3 ({run.folder.model('students', 'cnn-seed3')})\n"
    place = run.folder.model("teachers", "bert")
    folder_answers(place, world, tmp_path, input=run.recipe.data.test[0])
    assert capsys.readouterr().err == f"predict: {place}\n"


def test_rows_of_a_generator_are_answered_as_they_come(run, monkeypatch):
    """Blocks are small here, so that a generator that is asked for everything at once would be seen."""
    monkeypatch.setattr(blocks, "ROWS", 5)
    predictor = Predictor(run.folder.model("students", "cnn-seed1"), batch_tokens=32)
    texts = [("球赛股票电影" * 3)[: n % 17] for n in range(23)]
    asked = []

    def rows():
        for text in texts:
            asked.append(text)
            yield text

    found = predictor.stream(rows())
    first = next(found)
    assert len(asked) <= 6
    answers = [first, *found]
    assert answers == predictor(texts) and len(answers) == 23
    monkeypatch.setattr(blocks, "CHARACTERS", 20)
    assert [len(block) for block in blocks.blocks(["a" * 15, "b" * 15, "c" * 50, "d", "e"])] == [1, 1, 1, 2]


def test_both_texts_of_a_pair_are_needed():
    with pytest.raises(InputError, match="row 1: has no second text"):
        list(blocks.blocks(["a", "b"], ["c"]))
    with pytest.raises(InputError, match="row 0: has no first text"):
        list(blocks.blocks([], ["c"]))


def test_several_threads_share_a_predictor(run):
    predictor = Predictor(run.folder.model("teachers", "bert"))
    texts = [("电影球赛股票的了在"[n % 5 :] + "x" * (n % 3)) for n in range(40)]
    wanted = predictor(texts)
    with ThreadPoolExecutor(4) as pool:
        assert all(found == wanted for found in pool.map(predictor, [texts] * 12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": "cnn-seed4"},
            r"--model: no model 'cnn-seed4'; did you mean 'cnn-seed.'\? \(allowed: bert, ",
        ),
        ({"model": "broken"}, "--model: broken: not trained yet .* must be changed here, too"),
        ({"form": "conll"}, r"--form: 'conll' is not for task 'classification' \(allowed: jsonl, tsv, clue\)"),
        ({"format": "conll"}, r"--format: 'conll' is not for task 'classification' \(allowed: jsonl, tsv, csv, "),
        ({"format": "tsv"}, "--format and --columns: are of a file that --input names"),
        ({"input": "absent.txt"}, "--input: absent.txt: no such file"),
        ({"input": "bad.jsonl"}, "bad.jsonl:2: 'sentence' must be a text, found the number 3"),
        ({"input": "other.jsonl"}, "other.jsonl:1: has no 'sentence'"),
        ({"input": "empty.txt"}, "--input: .*empty.txt: the file is empty"),
    ],
)
def test_bad_input_writes_nothing(run, world, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"sentence": "x"}\n{"sentence": 3}\n')
    (tmp_path / "other.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match=message):
        predicted(run, world, tmp_path, **options)
    assert not (tmp_path / "predictions").exists()


def test_a_pipe_and_a_link_are_written_to(run, world, tmp_path):
    """A file that took the place of /dev/null would break the machine, one in the place of a link leaves its target old."""
    options = {"model": "bert", "input": None, "form": "jsonl"}
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)  # a dozen lines wait in it
    try:
        predict.run(run.recipe, world, run.folder, output=str(tmp_path / "pipe"), **options)
        found = os.read(reader, 1 << 16).decode("utf-8")
    finally:
        os.close(reader)
    (tmp_path / "link").symlink_to(tmp_path / "answers")
    predict.run(run.recipe, world, run.folder, output=str(tmp_path / "link"), **options)
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert (tmp_path / "answers").read_text(encoding="utf-8") == found and len(found.splitlines()) == 12


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (".", "--output: .*: is a folder; name a file in it"),
        ("file/answers", "--output: .*/file/answers: .*/file is a file, not a folder"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(run, world, tmp_path, monkeypatch, output, message):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr(predict, "load", lambda _: pytest.fail("the work has begun"))
    with pytest.raises(InputError, match=message):
        predict.run(run.recipe, world, run.folder, model=None, input=None, output=str(tmp_path / output), form="jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
