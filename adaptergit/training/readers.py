"""Data files of every kind a task reads: tables, JSON lines, CoNLL, CoNLL-U, SQuAD's JSON, plain text, images."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from adaptergit.errors import DataError, no_file
from adaptergit.training.rows import NAME_IT, Data, Row

_CONLLU_REMARK = re.compile("#")
_CONLL_REMARK = re.compile(r"# (id\s|\w+ = )")
"""In front of a sentence; any other line that begins so may be about the token ``#``."""
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""What files of other encodings begin with, the longest first."""
_MAX_FIELD = 1 << 24
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_OBJECT = 'an example is a whole line: {"text": "…", "label": "…"}'
_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


def read_rows(path: str | Path, columns: Sequence[str] = ()) -> Data:
    """Read a whole file.

    Args:
        path: UTF-8. ``.csv`` and ``.tsv`` have a header line, ``.jsonl`` one object a line, ``.txt`` one ``text`` a
            line. ``.conll`` (``.bio``, ``.iob2``) has one token a line and gives rows with ``tokens``, ``tags`` (the
            last column) and ``0``, ``1`` …; ``.conllu`` rows with ``tokens`` and ``upos``, ``deprel`` …; ``.json`` is
            SQuAD's, with ``id``, ``question``, ``context`` and ``answers``. A folder of folders of images gives rows
            with ``image`` (its path) and ``label`` (its folder).
        columns: What must be there; a table's header is asked before its lines.

    Raises:
        NotFoundError: No such file.
        DataError: Another kind of file, a missing column, a line that cannot be read, no lines.
    """
    path = Path(path)
    if path.is_dir():
        return _read_images(path)
    _check_kind(path.suffix, path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise no_file(path) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
    return parse_rows(data, path.suffix, path, columns)


def parse_rows(data: bytes, kind: str, path: Path, columns: Sequence[str] = ()) -> Data:
    """Read the content of a file.

    Args:
        data: The whole content.
        kind: A suffix that :func:`read_rows` knows.
        path: What messages call it; a table's images are seen from its folder.
        columns: See :func:`read_rows`, as for what is raised.
    """
    kind = _check_kind(kind, path)
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "latin1")
        converted = f"iconv -f {encoding} -t utf-8"
        hint = f"convert it: {converted} {path} > NEW-FILE" if Path(path).is_file() else f"send it through {converted}"
        raise DataError("not UTF-8", where=f"{path}:{line}", hint=hint) from error
    rows = tuple(Row(values, f"{path}:{line}") for line, values in _READERS[kind](path, content, columns))
    if not rows:
        raise DataError(
            "the file holds no examples",
            where=str(path),
            hint="below the names of the columns, write one example a line" if kind in (".csv", ".tsv") else None,
        )
    return Data(path, rows, hashlib.sha256(data).hexdigest())


def _check_kind(kind: str, path: Path) -> str:
    if kind.lower() not in _READERS:
        hint = f"use {', '.join(_READERS)}, or a folder of images"
        raise DataError(f"{kind or 'no suffix'!r} is not a kind of data file", where=str(path), hint=hint)
    return kind.lower()


def _table(delimiter: str) -> Callable[[Path, str, Sequence[str]], Iterator[tuple[int, dict[str, Any]]]]:
    def read(path: Path, content: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        csv.field_size_limit(_MAX_FIELD)
        lines = io.StringIO(content, newline="")  # unlike splitlines(), ends lines at CR and LF only
        if delimiter == ",":
            reader = csv.reader(lines, strict=True)
        else:  # TSV as it is found in the field has no quoting
            reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
        try:
            header = next(reader, [])
            for column in columns:
                if header and column not in header:
                    known = _of_another_kind(header, delimiter) or f"columns: {', '.join(header)}{NAME_IT}"
                    raise DataError(f"there is no column {column!r}", where=f"{path}:1", hint=known)
            if twice := [column for column in header if header.count(column) > 1]:
                raise DataError("two columns have the same name", where=f"{path}:1", hint=f"rename one {twice[0]!r}")
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    what = f"{len(fields)} fields, the header names {len(header)}"
                    raise DataError(
                        what, where=f"{path}:{reader.line_num}", hint="is the delimiter right, are quotes closed?"
                    )
                yield reader.line_num, dict(zip(header, fields, strict=True))
        except csv.Error as error:
            hint = "is a quote not closed?" if "end of data" in str(error) else None
            raise DataError(
                f"not valid: {error}",
                where=f"{path}:{reader.line_num}",
                hint='inside quotes, write "" for a quote' if "expected after" in str(error) else hint,
            ) from error

    return read


def _of_another_kind(header: Sequence[str], delimiter: str) -> str | None:
    """Say what a table's columns are separated by, where it is not what its name says."""
    other = next((mark for mark in ";\t|," if mark != delimiter and len(header) == 1 and mark in header[0]), None)
    if other is None:
        return None
    return f"its columns are separated by {other!r}: .csv is for ',', .tsv for tabs"


def _json_lines(path: Path, content: str, _columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            said = f"{error.msg}: column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise DataError(f"not JSON: {said}", where=f"{path}:{number}", hint=_OBJECT) from error
        if not isinstance(row, dict):
            raise DataError("expected one JSON object a line", where=f"{path}:{number}", hint=_OBJECT)
        yield number, row


def _text(_path: Path, content: str, _columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield number, {"text": line.strip()}


def _conll(path: Path, content: str, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, lines in _sentences(path, content, _CONLL_REMARK):
        if lines[0][0] == "-DOCSTART-":
            continue
        columns = list(zip(*lines, strict=True))
        if len(columns) < 2 and (not wanted or "tags" in wanted):
            raise DataError(
                "one column: a token, but no tag",
                where=f"{path}:{number}",
                hint="write the tag behind the token, with a tab or a space between",
            )
        named = {str(index): list(column) for index, column in enumerate(columns)}
        tags = {"tags": list(columns[-1])} if len(columns) > 1 else {}
        yield number, {"tokens": list(columns[0]), **tags, **named}


def _conllu(path: Path, content: str, _columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, lines in _sentences(path, content, _CONLLU_REMARK):
        if len(lines[0]) != len(_CONLLU):
            what = f"{len(lines[0])} columns, CoNLL-U has {len(_CONLLU)}"
            raise DataError(what, where=f"{path}:{number}", hint="columns are separated by tabs")
        # Neither multiword tokens (1-2) nor empty nodes (1.1) are words of the tree.
        words = [line for line in lines if line[0].isdigit()]
        if not words:
            raise DataError(
                "a sentence without words",
                where=f"{path}:{number}",
                hint="a word's line begins with its number: 1, 2 …",
            )
        named = {name: list(column) for name, column in zip(_CONLLU, zip(*words, strict=True), strict=True)}
        yield number, {"tokens": named["form"], **named}


def _sentences(path: Path, content: str, remark: re.Pattern[str]) -> Iterator[tuple[int, list[list[str]]]]:
    """Yield the number of the first line and the fields of all lines, sentence by sentence."""
    lines: list[list[str]] = []
    first = 1
    for number, line in enumerate([*content.split("\n"), ""], 1):
        line = line.rstrip("\r")
        if remark.match(line) and (not lines or remark is _CONLLU_REMARK):
            continue
        if line.strip():
            # Other spaces than these are part of a token: no-break spaces in numbers, for example.
            fields = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
            if lines and len(fields) != len(lines[0]):
                what = f"{len(fields)} columns, the line before has {len(lines[0])}"
                hint = "one token a line, its columns with tabs or spaces between; an empty line ends a sentence"
                raise DataError(what, where=f"{path}:{number}", hint=hint)
            first = first if lines else number
            lines.append(fields)
        elif lines:
            yield first, lines
            lines = []


def _squad(path: Path, content: str, _columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not JSON: {error}",
            where=str(path),
            hint="a file with an object on each line is called .jsonl" if "Extra data" in str(error) else None,
        ) from error
    if isinstance(whole, list):
        what = "a .json file is read as SQuAD's, and this is a list of rows"
        raise DataError(what, where=str(path), hint="rows go into .jsonl: one object on each line")
    try:
        for article in whole["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [] if question.get("is_impossible") else question.get("answers", [])
                    row = {"id": question["id"], "question": question["question"], "context": paragraph["context"]}
                    yield 1, {**row, "answers": answers}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"not in SQuAD's format: {error!r} is missing or wrong",
            where=str(path),
            hint="data > paragraphs > context, qas > id, question, answers > text, answer_start; rows go into .jsonl",
        ) from error


def _read_images(folder: Path) -> Data:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES and path.is_file())
    if not found:
        raise DataError("the folder holds no images", where=str(folder), hint="one folder for each label")
    rows, digest = [], hashlib.sha256()
    for path in found:
        relative = path.relative_to(folder)
        if len(relative.parts) != 2:
            raise DataError("an image in no label's folder", where=str(path), hint="FOLDER/label/image.png")
        digest.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()} {relative.as_posix()}\n".encode())
        rows.append(Row({"image": str(path), "label": relative.parts[0]}, str(path)))
    return Data(folder, tuple(rows), digest.hexdigest())


_READERS: dict[str, Callable[[Path, str, Sequence[str]], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _squad,
    ".txt": _text,
    ".conllu": _conllu,
    ".conll": _conll,
    ".bio": _conll,
    ".iob2": _conll,
}
