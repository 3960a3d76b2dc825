"""PareCO and four baselines on CIFAR-10 with ResNet-20: the parent of the CIFAR experiments.

Where each number comes from ("code": the command for CIFAR-100 and ResNet-56 in the authors'
readme.md, and what joslim.py and utils/drivers.py do with it, github.com/enyac-group/Joslim):

- schedule, code: 5 epochs of warm-up, then linear decay to zero; batch 128; rate 0.1 for 256
  images, so 0.05; fp32. Paper: 200 epochs, as the readme says (its command: 300).
- optimizer, code: momentum 0.9 without Nesterov, weight decay 5e-4 on all but batch norm and
  biases, label smoothing 0.1 (a default), batch norm by each process (the command has one).
- images, code: 32 x 32, crops from 4 pixels of black padding, flips. Ours: CIFAR's own mean and
  deviation (code: ImageNet's).
- widths, code: multipliers from 0.42; two sampled in a step; 20 uniform ones first. Ours: new ones
  every 156 steps, which its formula gives for the paper's 1000 (its command: 235 in 300 epochs).
- search: as in `imagenet_mbv2`.
- losses of the search, paper: on the current training batch (code: on a batch of test images).
- network, He et al. (arXiv 1512.03385, section 4.2): 16, 32 and 64 channels.
- ours: the same recipe for CIFAR-10 and the other ResNets; the front chosen on 5,000 images; batch
  norm re-calibrated on 5,120, as US-Net on ImageNet (code: all training images); three seeds.
"""

from pareco.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    NetworkConfig,
    SearchConfig,
    TrainingConfig,
)
from replications.scales import Scale, narrowed, on_cpu

EXPERIMENT = Experiment(
    name="cifar10_resnet20",
    network=NetworkConfig(name="cifar_resnet20", base_width=16, alpha_min=0.42),
    data=DataConfig(
        name="cifar10",
        image_size=32,
        mean=(125.3, 123.0, 113.9),
        std=(63.0, 62.1, 66.7),
        in_memory=True,
        search_split="batch",
        search_images=5_000,
        crop_padding=4,
        crop_padding_mode="constant",
        flip=True,
    ),
    training=TrainingConfig(
        epochs=200,
        batch_size=128,
        lr_per_256=0.1,  # 0.05 for a batch of 128
        warmup_epochs=5,
        momentum=0.9,
        nesterov=False,
        weight_decay=5e-4,
        label_smoothing=0.1,
        sampled_per_step=2,
        ask_every_steps=156,  # 1000 widths in 200 epochs of 390 steps
        precision="fp32",
        sync_batch_norm=False,
    ),
    evaluation=EvaluationConfig(calibration_images=5_120, batch_size=256),
    search=SearchConfig(initial_widths=20),
    methods=("pareco", "pareco_exact", "us_net", "s_net", "random_widths", "two_stage"),
    seeds=(0, 1, 2),
)


def settled(part: str, *, seeds: int) -> Scale:
    """Return the scale for a CPU that is long enough for an order of methods, with 8 channels.

    Or `part` of the published ones. The length was chosen for `cifar10_vgg`, before its runs.
    """
    of_length = on_cpu(
        image_size=16,
        train_images=45_000,
        epochs=15,
        ask_every_steps=75,
        search_images=2_000,
        test_images=10_000,
        calibration_images=1_024,
        seeds=seeds,
    )
    return narrowed(of_length, 8, part, lr_per_256=0.2, nesterov=True)


SCALES = {"cpu": settled("1/2", seeds=3)}
