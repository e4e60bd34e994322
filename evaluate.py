"""python evaluate.py [overrides]; python evaluate.py --help"""

from cyberlm.__main__ import evaluate

if __name__ == "__main__":
    evaluate()
