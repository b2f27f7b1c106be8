"""Which tokenizers a recipe needs: one that all students share, and one for every transformer.

Students read characters (or words between white space) without [CLS] and [SEP], and pairs as `a [SEP] b`; their
vocabulary is counted on the text. A transformer has its pretrained tokenizer, that of a given vocab.txt, or a
WordPiece vocabulary learnt from the text, in which Chinese characters are single tokens; for tagging, one of single
characters only. All are saved as Hugging Face folders that AutoTokenizer loads.
"""

from __future__ import annotations

from dtrain.data.files import existing_file
from dtrain.data.lines import numbered_lines
from dtrain.data.problems import Problems
from dtrain.errors import InputError
from dtrain.recipe.models import EncoderSpec, ExternalSpec, encoder_of
from dtrain.recipe.schema import Recipe
from dtrain.recipe.sides import side_of, vocabulary_of
from dtrain.recipe.training import Student, Teacher
from dtrain.recipe.values import OF_STUDENTS

STUDENTS = OF_STUDENTS
TARGET_FILE = "target_tokenizer.json"  # in a tokenizer's folder: the tokenizer of target texts, if they have their own
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer_name(member: Teacher | Student) -> str:
    """The name of a member's tokenizer: that of the member for a transformer or a given model, else `students`."""
    return member.tokenizer


def _own_tokenizer(member: Teacher | Student) -> EncoderSpec | ExternalSpec | None:
    """The model section that defines a member's tokenizer; None where the member reads with the students' tokenizer."""
    model: object = member.model
    return model if isinstance(model, ExternalSpec) else encoder_of(member.model)


def tokenizer_specs(recipe: Recipe) -> dict[str, EncoderSpec | ExternalSpec | None]:
    """Every tokenizer that encodes the recipe's rows: name -> the model section that defines it (None: the students').

    Where `recipe` is one of several tasks, a transformer of another task may define it.

    Raises InputError where two different tokenizers would have the same name.
    """
    problems = Problems()
    specs: dict[str, EncoderSpec | ExternalSpec | None] = {}
    borrowed: dict[str, None] = {}
    teachers: list[tuple[str, Teacher | Student]] = [(f"teachers.{i}", t) for i, t in enumerate(recipe.teachers)]
    for key, member in teachers + [(f"students.{i}", s) for i, s in enumerate(recipe.students)]:
        name, own = tokenizer_name(member), member.vocabulary
        spec = _own_tokenizer(member)
        if isinstance(spec, EncoderSpec) and spec.tokenizer:
            borrowed[name] = None  # the section of another member defines it
        elif spec is not None and own == STUDENTS:
            problems.add(f"{key}.name: {own!r} is what the students' tokenizer is called; choose another name")
        elif spec is not None and name in specs and identity_of(spec) != identity_of(specs[name]):
            problems.add(f"{key}.name: {own!r} is also a teacher, with another tokenizer; choose another name")
        else:
            specs.setdefault(name, spec)
    problems.raise_if_any()
    whole = recipe.whole
    members: list[Teacher | Student] = [*whole.students, *whole.teachers]
    owners = {member.name: member for member in members}
    for name in borrowed:
        specs.setdefault(name, _own_tokenizer(owners[vocabulary_of(name)]))
    return specs


def identity_of(spec: EncoderSpec | ExternalSpec | None) -> tuple[object, ...]:
    """The values of a model section that its tokenizer depends on; members with equal values share a tokenizer."""
    if isinstance(spec, ExternalSpec):
        return (spec.type, spec.folder)
    return (spec.pretrained, spec.vocabulary, spec.vocabulary_size, *spec.reading) if spec else (None,)


def check_tokenizers(recipe: Recipe) -> None:
    """Raises InputError for conflicting names and malformed vocabulary files.

    Pretrained tokenizers are not loaded, which would need torch.
    """
    tokenizer_specs(recipe)
    for view in recipe.views():
        for name, spec in tokenizer_specs(view).items():
            if spec is None and view.data.vocabulary.file:
                read_vocabulary(view.data.vocabulary.file, f"{view.data.key}.vocabulary.file")
            elif isinstance(spec, EncoderSpec) and spec.vocabulary:
                bert_vocabulary(spec.vocabulary, name)


def tasks_reading(recipe: Recipe, name: str) -> list[str]:
    """The tasks whose rows are read with the tokenizer `name`; its vocabulary is counted on the text of all of them.

    The students' tokenizer is that of one task only.

    Args:
        recipe: a recipe with one task, which is among the result.
    """
    whole = recipe.whole
    members: list[Teacher | Student] = [*whole.teachers, *whole.students]
    own = vocabulary_of(name)
    readers = [] if own == STUDENTS else [member for member in members if member.vocabulary == own]
    tasks = {task for member in readers for task in whole.tasks_of(member)}
    return [task for task in whole.task_names if task in tasks] or [recipe.task]


def sides_reading(recipe: Recipe, name: str) -> list[str]:
    """The sides of rows on which a tokenizer's vocabulary is counted: those of all members that read with it.

    The students' tokenizer is that of one side only.
    """
    own, side = vocabulary_of(name), side_of(name)
    if own == STUDENTS or not side:
        return [side]
    members: list[Teacher | Student] = [*recipe.teachers, *recipe.students]
    read = {member.reads for member in members if member.vocabulary == own}
    return [each for each in recipe.data.sides if each in read]


def read_vocabulary(name: str, key: str) -> list[str]:
    """Tokens of a vocabulary file with one token per line, in order.

    Raises InputError, which names the line, for an empty line, a repeated token or an empty file.
    """
    problems = Problems()
    seen: dict[str, int] = {}
    for number, token in numbered_lines(existing_file(name, key), name, problems):
        if not token:
            problems.add(f"{name}:{number}: a token is missing (empty line)")
        elif token in seen:
            problems.add(f"{name}:{number}: token {token!r} is already in line {seen[token]}")
        else:
            seen[token] = number
    problems.raise_if_any()
    if not seen:
        raise InputError(f"{key}: {name}: the file is empty")
    return list(seen)


def bert_vocabulary(file: str, name: str) -> list[str]:
    """Tokens of a BERT's vocab.txt; raises InputError as `read_vocabulary`, and where a special token is missing."""
    tokens = read_vocabulary(file, f"{name}: model.vocabulary")
    missing = [special for special in SPECIALS if special not in tokens]
    if missing:
        raise InputError(f"{name}: model.vocabulary: {file}: has no {', '.join(missing)}")
    return tokens
