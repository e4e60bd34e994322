"""Floors of a classification source, by five-fold cross-validation over all of its rows; needs no language model.

python bench/task_floors.py data=tram                    the most frequent class, and TF-IDF with a linear SVM
python bench/task_floors.py data=cti_rcm data.dir=FOLDER   of files at hand

Clusters are groups (reports of TRAM) where the source states them, else near-duplicates.
"""

import sys
from collections import Counter

import hydra
import numpy as np
from sklearn.metrics import f1_score
from sklearn.model_selection import GroupKFold, KFold

from cyberlm.config.commands import register_schemas
from cyberlm.config.compose import conf_folder
from cyberlm.config.rules import build_config
from cyberlm.config.schema import EvaluateConfig
from cyberlm.data.sources import load_sources
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.classification import tfidf_svm
from cyberlm.runs.run_folder import register_resolvers
from cyberlm.tasks.task import make_task


def main(overrides: list[str]) -> None:
    register_schemas()
    register_resolvers()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        config = build_config(hydra.compose("evaluate", overrides), EvaluateConfig)
    questions = load_sources(config.data, make_task(config))[0].questions
    texts = np.array([question.question for question in questions], dtype=object)
    labels = np.array([question.answer for question in questions])
    clusters = EvalSet(config, questions).clusters
    name, most = Counter(labels.tolist()).most_common(1)[0]
    print(f"{config.data.name}: {len(labels)} rows, {len(set(labels))} classes, {len(set(clusters))} clusters")
    print(f"  most frequent class ({name}): {most / len(labels):.1%}")
    for what, folds in (
        ("clusters kept whole", GroupKFold(5)),
        ("random folds", KFold(5, shuffle=True, random_state=0)),
    ):
        given = np.empty_like(labels)
        for train, test in folds.split(texts, labels, clusters if isinstance(folds, GroupKFold) else None):
            given[test] = tfidf_svm(texts[train].tolist(), texts[test].tolist(), labels[train].tolist())
        macro = f1_score(labels, given, average="macro", zero_division=0)
        print(f"  TF-IDF and a linear SVM, {what}: {(given == labels).mean():.1%}, macro-F1 {macro:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
