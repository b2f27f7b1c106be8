"""`dtrain init` and `dtrain recipes copy`: a first recipe here, never over another file."""

import gzip
import json
import re
from pathlib import Path

import pytest

from dtrain.__main__ import main
from dtrain.recipe import load_recipe, shipped_recipes

TEXTS = ["物美价廉，下次还来", "太差了，不会再买", "包装很好，发货也快", "味道一般般，有点失望"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    folder = tmp_path / "shop"
    folder.mkdir()
    monkeypatch.chdir(folder)


def rows(count: int = 40) -> list[tuple[str, str]]:
    return [(str(number % 2), f"{TEXTS[number % 4]}{number}") for number in range(count)]


def first(name: str, text: str | bytes) -> tuple:
    """The recipe for a file of this content, loaded, and as it is written."""
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    assert main(["init", name]) == 0
    (written,) = Path().glob("*.yaml")
    return load_recipe(str(written)), written.read_text(encoding="utf-8")


def test_table_without_header_beside_other_parts(capsys) -> None:
    for name in ("dev.txt", "test.txt"):
        Path(name).write_text("0\t不好\n", encoding="utf-8")
    recipe, text = first("train.txt", "".join(f"{label}\t{words}\n" for label, words in rows()))
    assert "dtrain check shop.yaml" in capsys.readouterr().out
    assert recipe.name == "shop" and recipe.data.task == "classification"
    assert (recipe.data.format, recipe.data.header) == ("tsv", False)
    assert (recipe.data.columns.text, recipe.data.columns.label) == (1, 0)
    assert (recipe.data.train, recipe.data.valid, recipe.data.test) == (["train.txt"], ["dev.txt"], ["test.txt"])
    assert [student.teachers for student in recipe.students] == [["bert"], []]
    assert "# found beside it" in text and "rows: 0, 1" in text and "bert-base-chinese" in text


def test_recipe_of_the_sample_passes_check(capsys) -> None:
    sample = shipped_recipes()["quickstart"].parent / "samples" / "train.jsonl"
    assert main(["init", str(sample), "mine.yaml"]) == 0
    recipe = load_recipe("mine.yaml")
    assert recipe.data.columns.model_dump(exclude={"text_b", "span_end"}) == {
        "text": "text",
        "label": "label",
        "id": "id",
    }
    assert recipe.data.valid == [str(sample.with_name("valid.jsonl"))]
    assert main(["check", "mine.yaml", "teachers.0.model={type: bert, size: tiny}"]) == 0


def test_csv_with_header() -> None:
    lines = [
        "review,stars,when",
        *(f'"{words}, {number}",{label},2020' for number, (label, words) in enumerate(rows())),
    ]
    recipe, _ = first("opinions.csv", "\n".join(lines))
    assert recipe.name == "opinions" and recipe.data.header
    assert (recipe.data.columns.text, recipe.data.columns.label) == ("review", "stars")


def test_packed_csv() -> None:
    lines = ["review,stars", *(f'"{words}, {number}",{label}' for number, (label, words) in enumerate(rows()))]
    recipe, _ = first("opinions.csv.gz", gzip.compress("\n".join(lines).encode()))
    assert (recipe.data.columns.text, recipe.data.columns.label) == ("review", "stars")


def test_damaged_packed_file_is_bad_input(capsys) -> None:
    Path("opinions.csv.gz").write_bytes(b"review,stars\n")
    assert main(["init", "opinions.csv.gz"]) == 2
    assert "opinions.csv.gz: cannot be read: Not a gzipped file" in capsys.readouterr().err


def test_csv_with_a_text_longer_than_the_csv_module_reads_by_default() -> None:
    lines = ["review,stars", *(f"{words},{label}" for label, words in rows()), f"{'好' * 140_000},1"]
    recipe, _ = first("opinions.csv", "\n".join(lines))
    assert (recipe.data.columns.text, recipe.data.columns.label) == ("review", "stars")


def test_names_that_yaml_reads_otherwise_are_quoted() -> None:
    lines = [json.dumps({"yes": words, "no": f"{label}\n#"}) for label, words in rows()]
    recipe, _ = first("2020.jsonl", "\n".join(lines))
    assert (recipe.name, recipe.data.train) == ("2020", ["2020.jsonl"])
    assert (recipe.data.columns.text, recipe.data.columns.label) == ("yes", "no")


def test_pairs_by_names_and_by_place() -> None:
    lines = [json.dumps({"sentence1": words, "sentence2": words[::-1], "label": label}) for label, words in rows()]
    recipe, _ = first("train.jsonl", "\n".join(lines))
    assert recipe.data.task == "pairs"
    assert (recipe.data.columns.text, recipe.data.columns.text_b) == ("sentence1", "sentence2")
    Path("shop.yaml").unlink()
    recipe, _ = first("train.txt", "".join(f"{words}\t{words[::-1]}\t{label}\n" for label, words in rows()))
    assert (recipe.data.columns.text, recipe.data.columns.text_b, recipe.data.columns.label) == (0, 1, 2)


def test_entities_as_spans_and_as_tags() -> None:
    line = json.dumps({"text": "浙商银行的叶老桂", "label": {"name": {"叶老桂": [[5, 7]]}}})
    recipe, _ = first("train.json", f"{line}\n" * 20)
    assert recipe.data.task == "tagging" and recipe.students[0].model.type == "idcnn"
    Path("shop.yaml").unlink()
    recipe, text = first("train.bmes", "高 B-NAME\n勇 E-NAME\n： O\n\n" * 20)
    assert recipe.data.task == "tagging" and recipe.data.format == "auto"
    Path("shop.yaml").write_text(without_a_network(text), encoding="utf-8")
    assert load_recipe("shop.yaml").teachers[0].model.encoder is None


def test_encoding_is_guessed() -> None:
    recipe, _ = first("train.txt", "".join(f"{label}\t{words * 3}\n" for label, words in rows()).encode("gb18030"))
    assert recipe.data.encoding == "gb18030"


@pytest.mark.parametrize("text", ["", "\n\n", "只有文字\n没有标签\n", "{\n"])
def test_what_is_no_labelled_data_is_refused(text: str, capsys) -> None:
    Path("train.txt").write_text(text, encoding="utf-8")
    assert main(["init", "train.txt"]) == 2
    assert capsys.readouterr().err.startswith("dtrain: train.txt: ")
    assert not list(Path().glob("*.yaml"))


def test_nothing_is_written_over(capsys) -> None:
    Path("shop.yaml").write_text("mine", encoding="utf-8")
    Path("train.txt").write_text("".join(f"{label}\t{words}\n" for label, words in rows()), encoding="utf-8")
    assert main(["init", "train.txt"]) == 2
    assert main(["recipes", "copy", "mutual", "shop.yaml"]) == 2
    assert Path("shop.yaml").read_text(encoding="utf-8") == "mine"
    assert capsys.readouterr().err.count("shop.yaml: exists, and is not written over") == 2


def test_shipped_recipe_is_copied_with_its_comments(capsys) -> None:
    assert main(["recipes", "copy", "quickstart"]) == 0
    assert Path("quickstart.yaml").read_bytes() == shipped_recipes()["quickstart"].read_bytes()
    assert main(["recipes", "copy", "quickstart", "own.yaml"]) == 0
    assert load_recipe("own.yaml") == load_recipe("quickstart")
    assert main(["recipes", "copy", "quickstar"]) == 2
    assert "did you mean 'quickstart'?" in capsys.readouterr().err
    assert main(["recipes", "copy"]) == 2


def test_says_what_a_large_file_for_validation_costs_and_what_works_without_a_network() -> None:
    Path("dev.txt").write_text("0\t不好\n" * 2500, encoding="utf-8")
    recipe, text = first("train.txt", "".join(f"{label}\t{words}\n" for label, words in rows()))
    assert "scored on all 2,500 rows" in text and recipe.data.valid == ["dev.txt"]
    assert max(map(len, text.splitlines())) <= 120
    Path("offline.yaml").write_text(without_a_network(text), encoding="utf-8")
    assert main(["check", "offline.yaml"]) == 0
    assert load_recipe("offline.yaml").teachers[0].model.type == "textcnn"


def without_a_network(text: str) -> str:
    """The recipe with the commented lines of its teacher in place of those below them."""
    head, found, tail = re.split(r"    # smaller teacher .*\n((?:    #   .*\n){3})(?:    \w.*\n){3}", text)
    return head + found.replace("    #   ", "    ") + tail


def test_decimal_numbers_are_regression() -> None:
    lines = ["index\tgenre\tsentence1\tsentence2\tscore"]
    lines += [f"{n}\tnews\t{TEXTS[n % 4]}\t{TEXTS[n % 3]}{n}\t{n / 8:.3f}" for n in range(40)]
    recipe, text = first("train.tsv", "\n".join(lines) + "\n")
    assert recipe.data.task == "regression" and recipe.data.standardize
    found = recipe.data.columns.model_dump(exclude={"span_end"})
    assert found == {"text": "sentence1", "text_b": "sentence2", "label": "score", "id": "index"}
    assert "task: regression # two texts and a number with decimals" in text
    assert main(["check", "shop.yaml", "teachers.0.model={type: bert, size: tiny}"]) == 0


def test_numbers_of_json_lines_and_of_tables_without_a_header() -> None:
    rows_ = [{"text": TEXTS[n % 4] + str(n), "stars": None if n % 9 == 8 else n / 10} for n in range(40)]
    recipe, text = first("reviews.jsonl", "".join(json.dumps(row) + "\n" for row in rows_))
    assert recipe.data.task == "regression" and recipe.data.columns.label == "stars"
    assert "# one text and a number with decimals" in text
    Path("reviews.yaml").unlink()
    recipe, _ = first("plain.tsv", "".join(f"{TEXTS[n % 4]}{n}\t{n / 10}\n" for n in range(40)))
    assert recipe.data.task == "regression" and (recipe.data.columns.text, recipe.data.columns.label) == (0, 1)


def test_whole_numbers_and_a_column_called_label_are_classes() -> None:
    lines = ["text,stars,weight,label", *(f"{TEXTS[n % 4]}{n},{n % 5},{n / 7:.2f},{'ab'[n % 2]}" for n in range(40))]
    recipe, _ = first("rated.csv", "\n".join(lines) + "\n")
    assert recipe.data.task == "classification" and recipe.data.columns.label == "label"


def test_lists_of_labels() -> None:
    rows_ = [{"text": TEXTS[n % 4] + str(n), "tags": ["fast"] * (n % 2) + ["cheap"] * (n % 3 > 1)} for n in range(40)]
    recipe, text = first("tagged.jsonl", "".join(json.dumps(row) + "\n" for row in rows_))
    assert recipe.data.task == "multi_label" and recipe.data.columns.label == "tags"
    assert "# lists of labels, 2 different ones" in text and "rows: cheap, fast" in text
    assert main(["check", "tagged.yaml", "teachers.0.model={type: bert, size: tiny}"]) == 0
