"""`python -m cyberlm.serve run=RUN`: a tuned model answers programs."""

from cyberlm.__main__ import serve

if __name__ == "__main__":
    serve()
