"""`python -m cyberlm.export run=RUN to=merged|gguf|adapter`: a finished run as others can load it."""

from cyberlm.__main__ import export

if __name__ == "__main__":
    export()
