"""`python -m cyberlm.chat run=RUN`: a tuned model answers in the terminal."""

from cyberlm.__main__ import chat

if __name__ == "__main__":
    chat()
