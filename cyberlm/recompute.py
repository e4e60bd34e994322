"""`python -m cyberlm.recompute RUN`: every figure of a run again, without a model."""

from cyberlm.__main__ import recompute

if __name__ == "__main__":
    recompute()
