"""Documents out of local files: txt, jsonl, csv, tsv, parquet. One pass, bounded memory.

Text files: documents are separated by blank lines; in a file without a blank line between two lines
of text, every line is a document. The other formats: one row, one document, in the named field.
A second field may hold the class of the document. Empty documents are skipped. Text is UTF-8 (a
byte-order mark is allowed), line ends may be `\\n` or `\\r\\n`. Every complaint names the file and
the line (or row).
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dlm.errors import UserError, nearest

Fields = tuple[str, ...]  # of the text, then of the class if there is one; or their values
_KEYS = ("data.field", "data.label")
TEXT_SUFFIXES = (".txt", ".text", "")


def read_documents(
    path: Path, field: str, limit: int, label: str | None = None
) -> Iterator[tuple[str, str | None]]:
    """The non-empty documents of one file, in order, each with its class.

    Args:
        path: the file; its suffix says what it is.
        field: column or key that holds the text (ignored for text files).
        limit: longest line and longest document allowed, in bytes: what memory must hold at once.
        label: column or key that holds the class, a text or a whole number; None: no classes.

    Raises:
        UserError: an unknown kind of file, an empty file, a missing field, wrong encoding or a line
            that is too long, with file and line.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(suffix for suffix in READERS if suffix)
        raise UserError(f"{path}: unknown kind of file '{path.suffix}'; known are {known}")
    try:
        empty = path.stat().st_size == 0
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if empty:
        raise UserError(f"{path}: the file is empty; take it out or give another path")
    if label is not None and reader is _text:
        raise UserError(
            f"{path}: a text file has no field '{label}'; data.label needs jsonl, csv, tsv or "
            "parquet files"
        )
    count = 0
    for document, *classes in reader(path, (field,) if label is None else (field, label), limit):
        if document:
            count += 1
            yield document, classes[0] if classes else None
    if not count:
        raise UserError(f"{path}: the file holds no text; take it out or give another path")


def _lines(path: Path, limit: int) -> Iterator[tuple[int, str]]:
    """Numbered lines, decoded, with their line ends; never more than `limit` bytes at once."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            if len(line) > limit:
                raise UserError(
                    f"{path}, line {number}: longer than {limit / 2**20:g} MiB; "
                    "break the line or raise data.max_line_mb"
                )
            yield number, _decode(line, path, number)


def _decode(line: bytes, path: Path, number: int) -> str:
    if b"\0" in line:
        raise UserError(
            f"{path}, line {number}: holds zero bytes, so it is not UTF-8 text (UTF-16?); "
            "convert the file to UTF-8"
        )
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at position "
            f"{error.start + 1}); convert the file to UTF-8"
        ) from error


def _text(path: Path, fields: Fields, limit: int) -> Iterator[Fields]:
    del fields  # the whole file is text
    if not _has_blank_line_inside(path, limit):
        for _, line in _lines(path, limit):
            yield (line.rstrip("\r\n") if line.strip() else "",)
        return
    paragraph: list[str] = []
    size = 0
    for number, line in _lines(path, limit):
        if line.strip():
            paragraph.append(line.rstrip("\r\n"))
            size += len(line)
            if size > limit:
                raise UserError(
                    f"{path}, line {number}: the document that ends here is longer than "
                    f"{limit / 2**20:g} MiB; separate documents by blank lines or raise "
                    "data.max_line_mb"
                )
        elif paragraph:
            yield ("\n".join(paragraph),)
            paragraph, size = [], 0
    if paragraph:
        yield ("\n".join(paragraph),)


def _has_blank_line_inside(path: Path, limit: int) -> bool:
    """Whether a blank line stands between two lines of text, so that such lines separate."""
    seen_text = seen_blank = False
    for _, line in _lines(path, limit):
        if not line.strip():
            seen_blank = seen_text
        elif seen_blank:
            return True
        else:
            seen_text = True
    return False


def _jsonl(path: Path, fields: Fields, limit: int) -> Iterator[Fields]:
    for number, line in _lines(path, limit):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); write one object per line") from error
        if not isinstance(record, dict):
            raise UserError(
                f"{where}: a JSON {type(record).__name__}, not an object; write one object per line"
            )
        _require(fields, list(record), where)
        yield _strings([record[field] for field in fields], where, fields)


def _csv(path: Path, fields: Fields, limit: int) -> Iterator[Fields]:
    return _table(path, fields, limit, ",")


def _tsv(path: Path, fields: Fields, limit: int) -> Iterator[Fields]:
    return _table(path, fields, limit, "\t")


def _table(path: Path, fields: Fields, limit: int, delimiter: str) -> Iterator[Fields]:
    csv.field_size_limit(limit)  # the default of 128 KiB is short for a document
    rows = csv.reader((line for _, line in _lines(path, limit)), delimiter=delimiter)
    try:
        header = next(rows, [])
        _require(fields, header, f"{path}, line 1")
        columns = [header.index(field) for field in fields]
        for row in rows:
            if row and len(row) != len(header):
                raise UserError(
                    f"{path}, line {rows.line_num}: {len(row)} columns where the header has "
                    f"{len(header)}; quote text that holds '{delimiter}'"
                )
            if row:
                where = f"{path}, line {rows.line_num}"
                yield _strings([row[column] for column in columns], where, fields)
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}; is a quote left open?") from error


def _parquet(path: Path, fields: Fields, limit: int) -> Iterator[Fields]:
    del limit  # parquet is read in row groups, not in lines
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _require(fields, file.schema_arrow.names, str(path))
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=list(dict.fromkeys(fields))):
                columns = [batch.column(field).to_pylist() for field in fields]
                for values in zip(*columns, strict=True):
                    row += 1
                    yield _strings(values, f"{path}, row {row}", fields)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a readable parquet file ({error})") from error


def _require(fields: Fields, names: list[str], where: str) -> None:
    for key, field in zip(_KEYS, fields, strict=False):
        if field not in names:
            there = ", ".join(names) or "none"
            raise UserError(
                f"{where}: no field '{field}' (there: {there}); set {key}, {nearest(field, names)}"
            )


def _strings(values: Sequence[object], where: str, fields: Fields) -> Fields:
    """The text as it is, and the class as text if there is one."""
    text, *labels = values
    classes = [
        str(label) if isinstance(label, int) else _string(label, where, field)
        for label, field in zip(labels, fields[1:], strict=True)
    ]
    if "" in classes:
        raise UserError(f"{where}: field '{fields[1]}' is empty; every document needs a class")
    return _string(text, where, fields[0]), *classes


def _string(value: object, where: str, field: str) -> str:
    if not isinstance(value, str):
        kind = "empty (null)" if value is None else f"of type {type(value).__name__}"
        raise UserError(f"{where}: field '{field}' is {kind}, not text")
    return value


READERS: dict[str, Callable[[Path, Fields, int], Iterator[Fields]]] = {
    **dict.fromkeys(TEXT_SUFFIXES, _text),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _jsonl),
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
