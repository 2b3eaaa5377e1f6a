"""Records as data files, and rows as what is compared of them."""

import csv
import json

RECORDS = [
    {"text": "Das Zimmer war ruhig.", "label": "good", "language": "German", "id": "1"},
    {"text": 'She said "no", twice', "label": "bad", "language": "en", "id": "2"},
    {"text": "两个字\tand a tab", "label": "bad", "language": "cmn", "id": "3"},
]


def write(path, records):
    """The records in the format that the file's name says."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix.lower() == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def facts(rows):
    return [(row.text, row.label, row.language, row.domain, row.key) for row in rows]
