"""Reading of the files that wandb writes offline."""

import json
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record


def wandb_records(file: Path) -> Iterator[Record]:
    """What wandb wrote into a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    data, position, parts = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:  # the rest of a block that holds no header is padding
            position += left
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or last part
            yield Record.FromString(parts)
            parts = b""


def wandb_run(job: Path) -> dict[str, object]:
    """Id, group, name, configuration and exit code of the one offline run in a job's folder."""
    (file,) = job.glob("wandb/offline-run-*/run-*.wandb")
    found: dict[str, object] = {"folder": file.parent}
    config: dict[str, object] = {}
    for record in wandb_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"id": record.run.run_id, "group": record.run.run_group, "name": record.run.display_name}
        if kind == "exit":
            found["exit"] = record.exit.exit_code
        updates = record.run.config.update if kind == "run" else record.config.update if kind == "config" else ()
        config |= {item.key: json.loads(item.value_json) for item in updates if item.key}
    return found | {"config": config}
