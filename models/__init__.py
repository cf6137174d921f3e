"""One LightningModule per file. These modules import torch, torchmetrics and lightning only."""
