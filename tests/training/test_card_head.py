"""The metadata at the top of a model card, which model hubs read."""

import pytest
import yaml

from dtrain.errors import InputError
from dtrain.recipe import load_recipe
from dtrain.training.card import card_head


@pytest.mark.parametrize("language", ["zh", "no", "pt-BR"])
def test_is_yaml_between_two_lines(language: str) -> None:
    first, head, rest = (card_head(language, pipeline_tag="text-classification") + "# name\n").split("---\n")
    assert (first, rest) == ("", "# name\n")
    assert yaml.safe_load(head) == {
        "library_name": "dtrain",
        "language": language,
        "pipeline_tag": "text-classification",
    }


def test_names_no_language_that_the_recipe_does_not_name() -> None:
    assert card_head(None) == "---\nlibrary_name: dtrain\n---\n"


def test_a_language_is_a_tag_and_no_name() -> None:
    assert load_recipe("quickstart", ["language=zh"]).language == "zh"
    with pytest.raises(InputError, match="language: .*pattern.*found 'Chinese'"):
        load_recipe("quickstart", ["language=Chinese"])
