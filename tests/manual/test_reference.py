"""The reference pages are those that the code gives, and nothing in the code goes without its sentence."""

import pytest
from pydantic import Field

from dtrain import errors
from dtrain.__main__ import COMMANDS, parser
from dtrain.losses import registry
from dtrain.manual import pages, reference
from dtrain.recipe.schema import Launch, Recipe
from dtrain.stages import option


@pytest.mark.parametrize("name", reference.pages())
def test_page_is_current(name: str) -> None:
    assert pages.read(name) == reference.pages()[name], "run: python -m dtrain.manual.reference"


class LaunchWithMore(Launch):
    """A section with a key that nobody describes."""

    undescribed: int = 0


class RecipeWithMore(Recipe):
    """A recipe with a key that is described, and a section with one that is not."""

    more: LaunchWithMore = Field(default=LaunchWithMore())  # a section of this test


class DescribedLaunch(Launch):
    """A section whose new key is described."""

    described: int = 3  # times that the test says so


class DescribedRecipe(Recipe):
    """A recipe in which everything is described."""

    # a section
    # of this test
    more: DescribedLaunch = DescribedLaunch()


def test_key_without_a_sentence_is_refused() -> None:
    with pytest.raises(reference.Undocumented, match=r"LaunchWithMore\.undescribed$"):
        reference.recipe_keys(RecipeWithMore)
    page = reference.recipe_keys(DescribedRecipe)
    assert "- `described` (whole number; default 3): times that the test says so\n" in page
    assert "keys): a section of this test" in " ".join(page.split())


def test_loss_without_a_formula_or_a_described_parameter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))

    def told(student_logits, *, power: float = 2.0):
        """sum_c |z_c|^p.

        Args:
            student_logits: float [B, C].
            power: p.
        """

    told.__module__ = "dtrain.losses.told"
    registry.register("logits")(told)
    assert "- `power` (number; default 2): p." in reference.losses()

    def half_told(student_logits, *, power: float = 2.0):
        """sum_c |z_c|^p.

        Args:
            student_logits: float [B, C].
        """

    registry.register("logits")(half_told)  # not of the package: nothing is asked of it
    reference.losses()
    half_told.__module__ = "dtrain.losses.told"
    with pytest.raises(reference.Undocumented, match="half_told: its docstring lacks power"):
        reference.losses()


def test_option_and_exit_code_without_a_sentence_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text, options = COMMANDS["check"]
    monkeypatch.setitem(COMMANDS, "check", (text, (*options, option("--silent"))))
    with pytest.raises(reference.Undocumented, match="dtrain check: silent has no help"):
        reference.commands()
    monkeypatch.setattr(errors, "EXIT_SOMEHOW", 3, raising=False)
    with pytest.raises(reference.Undocumented, match="EXIT_SOMEHOW"):
        reference.exit_codes()


def test_every_command_is_on_the_page() -> None:
    page = pages.read("commands")
    assert all(f"\n## {name}\n" in page for name in COMMANDS)
    parser().parse_args(["help", "losses"])
