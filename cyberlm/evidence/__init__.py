"""What stands behind an accuracy: collected from predictions and questions, written, read, and told."""

from cyberlm.evidence.collecting import (
    EVIDENCE_FILE,
    EVIDENCE_VERSION,
    Answers,
    Evidence,
    ModelEvidence,
    Setting,
    collect,
    read_evidence,
    write_evidence,
)
from cyberlm.evidence.comparison import compare
from cyberlm.evidence.telling import differences, figures, sentences, summary

__all__ = [
    "EVIDENCE_FILE",
    "EVIDENCE_VERSION",
    "Answers",
    "Evidence",
    "ModelEvidence",
    "Setting",
    "collect",
    "compare",
    "differences",
    "figures",
    "read_evidence",
    "sentences",
    "summary",
    "write_evidence",
]
