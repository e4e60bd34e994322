"""Makes a workspace of wandb with the panels of docs/dashboards.md: python docs/wandb_workspace.py ENTITY [PROJECT]

It needs `pip install wandb-workspaces`, `wandb login` and the network: a workspace is kept by wandb's server alone.
"""

import sys

import wandb_workspaces.reports.v2 as panels
from wandb_workspaces.workspaces import Section, Workspace

MODELS = ("base", "tuned")


def curves(*names: str, log_y: bool = False) -> list[panels.LinePlot]:
    """One panel a name, by optimizer step."""
    return [panels.LinePlot(title=name, x="trainer/global_step", y=[name], log_y=log_y) for name in names]


def chart(name: str, kind: str, **fields: str) -> panels.CustomChart:
    """A chart that runs log when they end."""
    query = {"summaryTable": {"tableKey": f"{name}_table"}}
    return panels.CustomChart(query=query, chart_name=kind, chart_fields=fields, chart_strings={"title": name})


def axes(*columns: panels.Config | panels.SummaryMetric) -> panels.ParallelCoordinatesPlot:
    return panels.ParallelCoordinatesPlot(columns=[panels.ParallelCoordinatesPlotColumn(column) for column in columns])


def workspace(entity: str, project: str) -> Workspace:
    confusion = [
        chart(
            f"confusion_of_letters/{model}",
            "wandb/confusion_matrix/v1",
            **{"Actual": "right", "Predicted": "chosen", "nPredictions": "questions"},
        )
        for model in MODELS
    ]
    topics = [chart(f"accuracy_by_topic/{model}", "wandb/bar/v0", label="topic", value="accuracy") for model in MODELS]
    lines = {"step": "confidence", "lineKey": "model", "lineVal": "share right"}
    settings = [panels.Config(key) for key in ("method.name", "method.lora.rank", "optim.learning_rate", "seed")]
    outcomes = [panels.SummaryMetric("val/best_option_nll"), panels.SummaryMetric("test/tuned/accuracy")]
    sections = {
        "Validation": curves("val/option_nll", "val/accuracy"),
        "Training": [*curves("train/loss", "train/learning_rate"), *curves("train/gradient_norm", log_y=True)],
        "Cost": curves("train/tokens_per_second", "train/peak_memory_gib"),
        "Test questions": [
            panels.BarPlot(title="accuracy, likelihood", metrics=[f"test/{model}/accuracy" for model in MODELS]),
            panels.BarPlot(title="tuned minus base", metrics=["test/difference", "test/difference_generation"]),
            panels.WeavePanelSummaryTable(table_name="predictions"),
        ],
        "Evidence": [*confusion, chart("reliability", "wandb/lineseries/v0", **lines), *topics],
        "Sweep": [axes(*settings, *outcomes)],
    }
    opened = [Section(name=name, panels=shown, is_open=True) for name, shown in sections.items()]
    return Workspace(name="cyberlm", entity=entity, project=project, sections=opened)


if __name__ == "__main__":
    workspace(sys.argv[1], *(sys.argv[2:3] or ["cyberlm"])).save()
