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
    """Content of the one offline run in a job's folder.

    Id, group, name, configuration and exit code; `history`: values of each key by time; `axes` and `best`: of each
    metric that is defined, its x axis and the summary it asks for; `plots`: wandb's chart of each key; `artifacts`:
    their types; `summary`.
    """
    (file,) = job.glob("wandb/offline-run-*/run-*.wandb")
    found: dict[str, object] = {"folder": file.parent}
    config: dict[str, object] = {}
    history: dict[str, list[object]] = {}
    axes, best, plots, artifacts, summary = {}, {}, {}, {}, {}
    for record in wandb_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"id": record.run.run_id, "group": record.run.run_group, "name": record.run.display_name}
        if kind == "exit":
            found["exit"] = record.exit.exit_code
        for item in record.history.item:
            history.setdefault(item.key or "/".join(item.nested_key), []).append(json.loads(item.value_json))
        if kind == "metric":
            axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            best[record.metric.name] = [name for name in ("min", "max") if getattr(record.metric.summary, name)]
        if kind == "artifact":
            artifacts[record.artifact.name] = (
                record.artifact.type,
                [e.path for e in record.artifact.manifest.contents],
            )
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for item in record.config.update:
            if list(item.nested_key[:2]) == ["_wandb", "visualize"]:
                plots[item.nested_key[2]] = json.loads(item.value_json)["panel_config"]["panelDefId"]
        updates = record.run.config.update if kind == "run" else record.config.update if kind == "config" else ()
        config |= {item.key: json.loads(item.value_json) for item in updates if item.key}
    found |= {"config": config, "history": history, "axes": axes, "best": best}
    return found | {"plots": plots, "artifacts": artifacts, "summary": summary}
