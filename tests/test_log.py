"""Log lines on a terminal that also shows progress bars."""

import io
import re

import pytest
from tqdm import tqdm

from dtrain.log import say_anywhere, warn


class Terminal(io.StringIO):
    """A terminal of 80 columns that shows both streams of a process."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """The lines on the screen, after carriage returns, line feeds, cursor-up and erase-line sequences."""
        screen, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[AK]|.", self.getvalue(), re.DOTALL):
            if part == "\n":
                row += 1
                column = 0
                screen += [""] * (row == len(screen))
            elif part == "\r":
                column = 0
            elif part == "\x1b[A":
                row -= 1
            elif part == "\x1b[K":
                screen[row] = screen[row][:column]
            else:
                screen[row] = screen[row].ljust(column)[:column] + part + screen[row][column + 1 :]
                column += 1
        return [line.rstrip() for line in screen]


def test_lines_take_the_place_of_bars_of_this_process_and_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    with tqdm(total=4, desc="student bilstm", file=terminal, ncols=80, leave=False, mininterval=0) as bar:
        bar.update(1)
        say_anywhere("epoch 1")
        warn("slow")
        bar.update(1)
        shown = terminal.lines()
        assert shown[:2] == ["epoch 1", "warning: slow"] and shown[2].startswith("student bilstm:  50%")
    terminal.write("teacher bert:  10%|# |")  # a bar of another rank, which this process does not know
    say_anywhere("short")
    assert terminal.lines()[2:] == ["short", ""]


def test_lines_are_plain_where_no_terminal_is(capsys) -> None:
    say_anywhere("epoch 1")
    warn("slow")
    told = capsys.readouterr()
    assert told.out == "epoch 1\n" and told.err == "warning: slow\n"
