"""python train.py [overrides]; python train.py --help"""

from cyberlm.__main__ import train

if __name__ == "__main__":
    train()
