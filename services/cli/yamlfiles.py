"""Files that people write, as YAML: what is wrong with one is told with its place, and what was expected there."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from services.cli.failures import CommandError

MAX_PROBLEMS = 20

#: What is told of a broken rule, by its type (https://docs.pydantic.dev/latest/errors/validation_errors/); in braces
#: what pydantic tells of it. Pydantic's own words are for programmers.
_RULES = {
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "dict_type": "expected keys and values",
    "enum": "expected {expected}",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected at least {ge}",
    "int_from_float": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected at most {le}",
    "list_type": "expected a list",
    "literal_error": "expected {expected}",
    "missing": "is missing",
    "model_attributes_type": "expected keys and values",
    "model_type": "expected keys and values",
    "string_too_long": "expected at most {max_length} characters",
    "string_too_short": "expected at least {min_length} characters",
    "string_type": "expected text; put it in quotes",
    "too_long": "expected at most {max_length} of them",
    "too_short": "expected at least {min_length} of them",
}


def read(path: Path, *, others: str = "") -> Any:
    """Return what a file holds.

    Args:
        path: the file.
        others: what to say of those that there are, when it is not there.

    Raises:
        CommandError: it cannot be read, or is not YAML; tells the line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CommandError(f"{path}: there is no such file{others and f'; {others}'}") from None
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return yaml.safe_load(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CommandError(f"{path}, line {line}: cannot be read: it is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        why = ", ".join(filter(None, (error.context, error.problem)))
        raise CommandError(f"{path}{place}: is not YAML: {why}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise CommandError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error


def refusal(path: Path, kind: str, problems: Sequence[str]) -> CommandError:
    """Return what to raise for a file that is YAML, and no `kind`: the first MAX_PROBLEMS, each with its place."""
    told = "\n  ".join(problems[:MAX_PROBLEMS])
    rest = len(problems) - MAX_PROBLEMS
    return CommandError(f"{path}: is no {kind}:\n  {told}" + (f"\n  and {rest} more" if rest > 0 else ""))


def problem(error: Mapping[str, Any], keys: Collection[str], patterns: Mapping[str, str]) -> str:
    """Return one of pydantic's errors as place and what was expected there.

    Args:
        error: as `ValidationError.errors()` gives it.
        keys: all that the form knows.
        patterns: what its regular expressions mean, in words.
    """
    place = ""
    for part in error["loc"]:
        if part != "[key]":
            place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    kind = error["type"]
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(error["loc"][-1]), sorted(keys), n=1)
        rule = "unknown key" + (f"; did you mean {close[0]}?" if close else "")
    elif kind == "value_error":
        rule = str(error["ctx"]["error"])
    else:
        if kind == "string_pattern_mismatch":
            expected = f"expected {patterns[error['ctx']['pattern']]}"
        elif kind in _RULES:
            expected = _RULES[kind].format(**error.get("ctx", {}))
        else:
            expected = f"{error['msg'][:1].lower()}{error['msg'][1:]}"
        rule = expected if kind == "missing" else f"{expected}, not {error['input']!r:.60}"
    # What somebody else wrote stays on its line, and moves no cursor.
    rule = "".join(c if c.isprintable() else " " for c in rule)
    return f"{place}: {rule}" if place else rule
