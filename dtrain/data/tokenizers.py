"""Tokenizers: one for all students counted on the text, one of its own for every transformer.

Students read characters (or words between white space) without [CLS] and [SEP], pairs as `a [SEP] b`.
A transformer brings its tokenizer (pretrained), is given vocab.txt, or gets a WordPiece vocabulary of the text in
which Chinese characters stay single; for tagging one of single characters only. All are saved as Hugging Face
folders that AutoTokenizer loads.
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
TARGET_FILE = "target_tokenizer.json"  # in a tokenizer's folder: what is written, where it has a vocabulary of its own
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer_name(member: Teacher | Student) -> str:
    """The tokenizer a model reads with: a transformer's or a given model's own by the member's name, else `students`."""
    return member.tokenizer


def _own_tokenizer(member: Teacher | Student) -> EncoderSpec | ExternalSpec | None:
    """The section that brings a member's tokenizer, if it has one of its own."""
    model: object = member.model
    return model if isinstance(model, ExternalSpec) else encoder_of(member.model)


def tokenizer_specs(recipe: Recipe) -> dict[str, EncoderSpec | ExternalSpec | None]:
    """Every tokenizer that the recipe's rows are read with: name -> the section that brings it, None for the students'.

    The recipe may be that of one of several tasks: a transformer of another task may bring it.

    Raises InputError where two different ones would have the same name.
    """
    problems = Problems()
    specs: dict[str, EncoderSpec | ExternalSpec | None] = {}
    borrowed: dict[str, None] = {}
    teachers: list[tuple[str, Teacher | Student]] = [(f"teachers.{i}", t) for i, t in enumerate(recipe.teachers)]
    for key, member in teachers + [(f"students.{i}", s) for i, s in enumerate(recipe.students)]:
        name, own = tokenizer_name(member), member.vocabulary
        spec = _own_tokenizer(member)
        if isinstance(spec, EncoderSpec) and spec.tokenizer:
            borrowed[name] = None  # the other member's section says what it is
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
    """What of a model section decides its tokenizer; members with the same share one."""
    if isinstance(spec, ExternalSpec):
        return (spec.type, spec.folder)
    return (spec.pretrained, spec.vocabulary, spec.vocabulary_size, *spec.reading) if spec else (None,)


def check_tokenizers(recipe: Recipe) -> None:
    """Names and vocabulary files; raises InputError. Needs no torch (loading a pretrained tokenizer would)."""
    tokenizer_specs(recipe)
    for view in recipe.views():
        for name, spec in tokenizer_specs(view).items():
            if spec is None and view.data.vocabulary.file:
                read_vocabulary(view.data.vocabulary.file, f"{view.data.key}.vocabulary.file")
            elif isinstance(spec, EncoderSpec) and spec.vocabulary:
                bert_vocabulary(spec.vocabulary, name)


def tasks_reading(recipe: Recipe, name: str) -> list[str]:
    """The tasks whose rows are read with the tokenizer `name` of the recipe of one task, that task among them.

    A vocabulary is counted on the text of all of them. Students without a tokenizer of their own share one in each task.
    """
    whole = recipe.whole
    members: list[Teacher | Student] = [*whole.teachers, *whole.students]
    own = vocabulary_of(name)
    readers = [] if own == STUDENTS else [member for member in members if member.vocabulary == own]
    tasks = {task for member in readers for task in whole.tasks_of(member)}
    return [task for task in whole.task_names if task in tasks] or [recipe.task]


def sides_reading(recipe: Recipe, name: str) -> list[str]:
    """The sides of rows whose text the vocabulary of a tokenizer is counted on: of all that read with it.

    Students without a tokenizer of their own share one for each side.
    """
    own, side = vocabulary_of(name), side_of(name)
    if own == STUDENTS or not side:
        return [side]
    members: list[Teacher | Student] = [*recipe.teachers, *recipe.students]
    read = {member.reads for member in members if member.vocabulary == own}
    return [each for each in recipe.data.sides if each in read]


def read_vocabulary(name: str, key: str) -> list[str]:
    """Tokens of a vocabulary file, one a line, in order; raises InputError naming the line."""
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
    """Tokens of a BERT's vocab.txt; raises InputError naming the line, or a special token that it lacks."""
    tokens = read_vocabulary(file, f"{name}: model.vocabulary")
    missing = [special for special in SPECIALS if special not in tokens]
    if missing:
        raise InputError(f"{name}: model.vocabulary: {file}: has no {', '.join(missing)}")
    return tokens
