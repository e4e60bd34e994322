"""python train.py [overrides]; python train.py --help"""

from cyberlm.__main__ import run_command

if __name__ == "__main__":
    run_command("train")
