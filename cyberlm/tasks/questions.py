"""The name that a multiple-choice example has in what is written for multiple choice alone."""

from cyberlm.tasks.task import LETTERS, Example

__all__ = ["LETTERS", "Question"]

Question = Example
