"""Fine-tune Llama 3 on multiple-choice security questions, and measure what it gained."""

__version__ = "0.1.0"
