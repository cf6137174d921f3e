"""The configuration, installed as hydra_trainer.conf."""
