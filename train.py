"""Train a model.

python train.py                              the default job, here
python train.py optim.lr=3e-4                with another learning rate
python train.py resources.processes_per_node=2     two ranks
python train.py debug=default                one batch of everything, for a debugger
python train.py --help                       what can be chosen
"""

from hydra_trainer.app import main

if __name__ == "__main__":
    main()
