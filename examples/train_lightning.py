"""Certified training for two norms in a LightningModule.

Lightning has the loop, the optimizer's steps, checkpoints and logs; the module adds a loss from
``build_loss`` and a radius that grows with the epochs. A network is trained on scikit-learn's
digits and certified for both norms.

Usage:
    pip install lightning
    python examples/train_lightning.py
    python examples/train_lightning.py --loss joint --epochs 20
"""

import argparse

import lightning
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lirpa_multinorm import (
    BoundedModule,
    CertifySettings,
    PerturbationL2Box,
    PerturbationLinf,
    build_loss,
    certify,
)
from lirpa_multinorm.data import load
from lirpa_multinorm.models import cnn_small, shi_init_
from lirpa_multinorm.training import Schedule

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.4)]
#: SABR's small box for l_inf; for l_2 no region, but the network's Lipschitz constant.
OPTIONS = {"ratio_inf": 0.4, "region_2": "lipschitz"}
CERTIFY = CertifySettings(methods=["IBP", "CROWN-IBP", "CROWN"])


class CertifiedClassifier(lightning.LightningModule):
    """A classifier that is trained by a certified loss of several norms."""

    def __init__(self, model: nn.Module, loss: str, epochs: int) -> None:
        super().__init__()
        self.model = model
        self.loss = build_loss(loss, SETS, **OPTIONS)
        self.schedule = Schedule("10%", "60%", kappa_start=0.5, kappa_end=0.2).in_epochs(epochs)
        # Not a submodule: it shares the model's weights, which would be in checkpoints twice.
        object.__setattr__(self, "bounded", BoundedModule(model, perturbations=SETS))

    def forward(self, x):
        """Classify images (B, C, H, W)."""
        return self.model(x)

    def training_step(self, batch, index):
        """Return the mixture of the natural and the certified loss that the schedule asks for."""
        x, y = batch
        now = self.current_epoch + index / self.trainer.num_training_batches
        scale, kappa = self.schedule.eps_scale(now), self.schedule.kappa(now)
        if kappa == 1:
            return F.cross_entropy(self(x), y)
        result = self.loss(self.bounded, x, y, eps_scale=scale)  # makes the clean pass as well
        self.log("certified_loss", result.value.detach(), prog_bar=True)
        return kappa * F.cross_entropy(result.logits, y) + (1 - kappa) * result.value

    def configure_optimizers(self):
        """Return Adam with a cosine."""
        optimizer = torch.optim.Adam(self.model.parameters(), lr=5e-3)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return [optimizer], [rates]


def main():
    """Train, certify, print what is certified."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--loss", choices=["max", "joint"], default="max", help="of both norms")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=200, help="test images that are certified")
    options = parser.parse_args()
    lightning.seed_everything(0, verbose=False)
    data = load("digits")
    images = TensorDataset(data.x_train, data.y_train)
    loader = DataLoader(images, batch_size=64, shuffle=True, drop_last=True)
    module = CertifiedClassifier(
        shi_init_(cnn_small(data.in_shape, 10)), options.loss, options.epochs
    )
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar"], False)
    trainer = lightning.Trainer(max_epochs=options.epochs, accelerator="cpu", **quiet)
    trainer.fit(module, loader)
    x, y = data.x_test[: options.images], data.y_test[: options.images]
    shares = certify(module.model.eval(), x, y, SETS, CERTIFY).summary()
    print("; ".join(entry.title() for entry in SETS) + f"; {len(x)} test images")
    print(f"clean {100 * shares['clean']:.1f} %", end=", ")
    print(f"certified for both {100 * shares['certified_union']:.1f} %")


if __name__ == "__main__":
    main()
