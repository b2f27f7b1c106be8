"""`dtrain help`: what it shows, how fast, and what it says where there is nothing."""

import re
import subprocess
import sys
import time

import pytest

from dtrain.__main__ import _parse, main
from dtrain.manual import pages, terminal


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["help", *words]) == 0
    return capsys.readouterr().out


def test_lists_the_pages_and_shows_one(capsys) -> None:
    listed = shown(capsys)
    assert all(f"- [{name}](" in listed for name in pages.page_names())
    assert shown(capsys, "exit-codes") == shown(capsys, "exit_codes") == pages.read("exit-codes")


@pytest.mark.parametrize("key", ["students.0.optimizer.lr", "students.*.optimizer.lr", "teachers.0.optimizer.lr"])
def test_key_is_shown_with_type_default_range_and_sentence(capsys, key: str) -> None:
    text = " ".join(shown(capsys, key).split())
    assert "`lr` (number over 0; default 0.001): the learning rate after warm-up" in text
    assert f"`{key.replace('0', 'N').replace('*', 'N')}` (of Optimizer)" in text
    assert "batch_size" not in text


def test_name_of_a_member_stands_for_its_number(capsys) -> None:
    assert "`students.N.optimizer.lr` (of Optimizer)" in shown(capsys, "students.bilstm.optimizer.lr")
    assert main(["help", "bilstm.optimizer.lr"]) == 2


def test_key_of_several_kinds_of_models_is_shown_for_each(capsys) -> None:
    text = shown(capsys, "students.3.model.hidden")
    assert all(f"(of Model {kind})" in text for kind in ("bilstm", "siamese", "text_rcnn"))
    assert "(of Model textcnn)" not in text
    assert "`launch.stages.NAME`" in pages.read("recipe-keys")
    assert "processes of this stage" in " ".join(shown(capsys, "launch.stages.finetune.processes").split())


def test_section_heading_and_end_of_a_path_are_found(capsys) -> None:
    noisy = shown(capsys, "students.0.noisy")
    assert "`noisy` (section Noisy, or null" in noisy and "\n## Noisy\n" in noisy and "- `token_noise`" in noisy
    assert "T^2 KL" in shown(capsys, "soft_targets")
    seeds = shown(capsys, "seed")
    assert "\n`students.N.seed` (of Teachers and students)" in seeds and seeds.startswith("`seed` (of Recipe)\n")
    assert "--partition" in shown(capsys, "submit")
    assert "teachers.N.schedule.warmup" in shown(capsys, "schedule.warmup")


def test_measured_results_are_shown(capsys) -> None:
    assert shown(capsys, "results/store_read") == shown(capsys, "results/store_read.md")
    assert shown(capsys, "results/store_read").startswith("# ")
    assert main(["help", "results/store_reads"]) == 2
    assert "did you mean 'results/store_read'?" in capsys.readouterr().err


def test_search_names_page_and_section(capsys) -> None:
    lines = shown(capsys, "--search", "SMOOTHL1").splitlines()
    assert lines and all(line.startswith("losses: feature_hint: ") for line in lines)


def test_what_is_not_there_is_refused_with_what_is_near(capsys) -> None:
    assert main(["help", "soft_target"]) == 2
    assert "did you mean 'soft_targets'?" in capsys.readouterr().err
    assert main(["help", "students.0.optimizer.rate"]) == 2
    assert main(["help", "--search", "xyzzy"]) == 2


def test_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; begin = time.process_time(); from dtrain.__main__ import main;"
        "main(['help', 'students.0.optimizer.lr']);"
        "print(time.process_time() - begin, [n for n in ('torch', 'pydantic', 'yaml', 'numpy') if n in sys.modules])"
    )
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    seconds, _, heavy = done.stdout.splitlines()[-1].partition(" ")
    assert heavy == "[]"
    assert float(seconds) < 0.3, f"{time.perf_counter() - begin:.2f} s on the clock"


def test_is_paged_on_a_terminal_as_that_shows_it(monkeypatch, capsys) -> None:
    paged: list[str] = []
    monkeypatch.setattr("pydoc.pager", paged.append)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["help", "exit-codes"]) == 0
    assert [terminal.rendered(pages.read("exit-codes"), 60)] == paged and capsys.readouterr().out == ""
    assert main(["help", "--search", "fp16"]) == 0
    assert all(len(line) <= 60 for line in plain(paged[1]).splitlines()) and "losses" not in paged[0]


def test_without_a_command_says_where_to_begin(capsys) -> None:
    """The exit code is that of a wrong command line: a script whose variable is empty must not go on."""
    assert main([]) == 2
    told = capsys.readouterr()
    assert told.out == "" and all(len(line) <= 80 for line in told.err.splitlines())
    said = re.findall(r"^  (dtrain .*?)(?:  |$)", told.err, re.MULTILINE)
    for command in said:
        words = command.split()[1:]
        assert words == ["-h"] or _parse(words)
    assert "dtrain help first-steps" in said and len(said) >= 6


def plain(text: str) -> str:
    """Without what makes letters bold or underlined."""
    return re.sub(".\b", "", text)


def test_the_welcome_and_the_manual_say_the_same_time(capsys) -> None:
    assert main([]) == 2
    (told,) = re.findall(r"dtrain run quickstart .*\((.+)\)", capsys.readouterr().err)
    assert told in " ".join(pages.read("first-steps").split())
