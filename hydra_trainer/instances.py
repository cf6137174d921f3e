"""EC2 instance types that people train on, and what each has.

Figures: docs.aws.amazon.com/ec2/latest/instancetypes/ac.html and .../efa-acc-inst-types.html in the
EC2 user guide; compared with what AWS's own tools carry, which is made from the EC2 API:
INSTANCE_RESOURCES of aws/sagemaker-hyperpod-cli (2026-03) and reference/instance-types.md of
aws/karpenter-provider-aws. A type that is not here may be new: it is not refused.
"""

from typing import NamedTuple

ML = "ml."
"""What SageMaker's names of the same types begin with, on HyperPod's nodes too."""


class Instance(NamedTuple):
    """What one machine has: GPUs and their name, EFA interfaces, vCPUs, memory in GiB.

    The name is that of the accelerator also where it is no GPU, and `gpus` 0.
    """

    gpus: int
    gpu: str
    efa: int
    vcpus: int
    memory_gib: int


def instance(name: str) -> Instance | None:
    """Return what a type has, by EC2's name or SageMaker's; None: not known here."""
    return INSTANCES.get(name.removeprefix(ML))


INSTANCES: dict[str, Instance] = {
    "p3.2xlarge": Instance(1, "V100", 0, 8, 61),
    "p3.8xlarge": Instance(4, "V100", 0, 32, 244),
    "p3.16xlarge": Instance(8, "V100", 0, 64, 488),
    "p3dn.24xlarge": Instance(8, "V100", 1, 96, 768),
    "p4d.24xlarge": Instance(8, "A100", 4, 96, 1152),
    "p4de.24xlarge": Instance(8, "A100-80GB", 4, 96, 1152),
    "p5.4xlarge": Instance(1, "H100", 1, 16, 256),
    "p5.48xlarge": Instance(8, "H100", 32, 192, 2048),
    "p5e.48xlarge": Instance(8, "H200", 32, 192, 2048),
    "p5en.48xlarge": Instance(8, "H200", 16, 192, 2048),
    "p6-b200.48xlarge": Instance(8, "B200", 8, 192, 2048),
    "p6-b300.48xlarge": Instance(8, "B300", 16, 192, 4096),
    "p6e-gb200.36xlarge": Instance(4, "GB200", 8, 144, 960),  # its CPUs are ARM
    "g4dn.xlarge": Instance(1, "T4", 0, 4, 16),
    "g4dn.2xlarge": Instance(1, "T4", 0, 8, 32),
    "g4dn.4xlarge": Instance(1, "T4", 0, 16, 64),
    "g4dn.8xlarge": Instance(1, "T4", 1, 32, 128),
    "g4dn.12xlarge": Instance(4, "T4", 1, 48, 192),
    "g4dn.16xlarge": Instance(1, "T4", 1, 64, 256),
    "g4dn.metal": Instance(8, "T4", 1, 96, 384),
    "g5.xlarge": Instance(1, "A10G", 0, 4, 16),
    "g5.2xlarge": Instance(1, "A10G", 0, 8, 32),
    "g5.4xlarge": Instance(1, "A10G", 0, 16, 64),
    "g5.8xlarge": Instance(1, "A10G", 1, 32, 128),
    "g5.12xlarge": Instance(4, "A10G", 1, 48, 192),
    "g5.16xlarge": Instance(1, "A10G", 1, 64, 256),
    "g5.24xlarge": Instance(4, "A10G", 1, 96, 384),
    "g5.48xlarge": Instance(8, "A10G", 1, 192, 768),
    "g6.xlarge": Instance(1, "L4", 0, 4, 16),
    "g6.2xlarge": Instance(1, "L4", 0, 8, 32),
    "g6.4xlarge": Instance(1, "L4", 0, 16, 64),
    "g6.8xlarge": Instance(1, "L4", 1, 32, 128),
    "g6.12xlarge": Instance(4, "L4", 1, 48, 192),
    "g6.16xlarge": Instance(1, "L4", 1, 64, 256),
    "g6.24xlarge": Instance(4, "L4", 1, 96, 384),
    "g6.48xlarge": Instance(8, "L4", 1, 192, 768),
    "g6e.xlarge": Instance(1, "L40S", 0, 4, 32),
    "g6e.2xlarge": Instance(1, "L40S", 0, 8, 64),
    "g6e.4xlarge": Instance(1, "L40S", 0, 16, 128),
    "g6e.8xlarge": Instance(1, "L40S", 1, 32, 256),
    "g6e.12xlarge": Instance(4, "L40S", 1, 48, 384),
    "g6e.16xlarge": Instance(1, "L40S", 1, 64, 512),
    "g6e.24xlarge": Instance(4, "L40S", 2, 96, 768),
    "g6e.48xlarge": Instance(8, "L40S", 4, 192, 1536),
    "gr6.4xlarge": Instance(1, "L4", 0, 16, 128),
    "gr6.8xlarge": Instance(1, "L4", 1, 32, 256),
    "g7e.2xlarge": Instance(1, "RTX-PRO-6000", 0, 8, 64),
    "g7e.4xlarge": Instance(1, "RTX-PRO-6000", 0, 16, 128),
    "g7e.8xlarge": Instance(1, "RTX-PRO-6000", 1, 32, 256),
    "g7e.12xlarge": Instance(2, "RTX-PRO-6000", 1, 48, 512),
    "g7e.24xlarge": Instance(4, "RTX-PRO-6000", 2, 96, 1024),
    "g7e.48xlarge": Instance(8, "RTX-PRO-6000", 4, 192, 2048),
    # EFA of g7: from its bandwidths, 175 to 700 Gbps, by the cards of g7e (400 to 1600).
    "g7.2xlarge": Instance(1, "RTX-PRO-4500", 0, 8, 32),
    "g7.4xlarge": Instance(1, "RTX-PRO-4500", 0, 16, 64),
    "g7.8xlarge": Instance(1, "RTX-PRO-4500", 0, 32, 128),
    "g7.12xlarge": Instance(2, "RTX-PRO-4500", 1, 48, 192),
    "g7.24xlarge": Instance(4, "RTX-PRO-4500", 2, 96, 384),
    "g7.48xlarge": Instance(8, "RTX-PRO-4500", 4, 192, 768),
    "trn1.2xlarge": Instance(0, "Trainium", 0, 8, 32),
    "trn1.32xlarge": Instance(0, "Trainium", 8, 128, 512),
    "trn1n.32xlarge": Instance(0, "Trainium", 16, 128, 512),
    "trn2.3xlarge": Instance(0, "Trainium2", 1, 12, 128),
    "trn2.48xlarge": Instance(0, "Trainium2", 16, 192, 2048),
    "m7i.large": Instance(0, "", 0, 2, 8),
    "m7i.xlarge": Instance(0, "", 0, 4, 16),
    "m7i.2xlarge": Instance(0, "", 0, 8, 32),
    "m7i.4xlarge": Instance(0, "", 0, 16, 64),
    "m7i.8xlarge": Instance(0, "", 0, 32, 128),
    "m7i.12xlarge": Instance(0, "", 0, 48, 192),
    "m7i.16xlarge": Instance(0, "", 0, 64, 256),
    "m7i.24xlarge": Instance(0, "", 0, 96, 384),
    "m7i.48xlarge": Instance(0, "", 1, 192, 768),
    "c7i.large": Instance(0, "", 0, 2, 4),
    "c7i.xlarge": Instance(0, "", 0, 4, 8),
    "c7i.2xlarge": Instance(0, "", 0, 8, 16),
    "c7i.4xlarge": Instance(0, "", 0, 16, 32),
    "c7i.8xlarge": Instance(0, "", 0, 32, 64),
    "c7i.12xlarge": Instance(0, "", 0, 48, 96),
    "c7i.16xlarge": Instance(0, "", 0, 64, 128),
    "c7i.24xlarge": Instance(0, "", 0, 96, 192),
    "c7i.48xlarge": Instance(0, "", 1, 192, 384),
    "m5.large": Instance(0, "", 0, 2, 8),
    "m5.xlarge": Instance(0, "", 0, 4, 16),
    "m5.2xlarge": Instance(0, "", 0, 8, 32),
    "m5.4xlarge": Instance(0, "", 0, 16, 64),
    "m5.12xlarge": Instance(0, "", 0, 48, 192),
    "m5.24xlarge": Instance(0, "", 0, 96, 384),
    "c5.xlarge": Instance(0, "", 0, 4, 8),
    "c5.2xlarge": Instance(0, "", 0, 8, 16),
    "c5.4xlarge": Instance(0, "", 0, 16, 32),
    "c5.9xlarge": Instance(0, "", 0, 36, 72),
    "c5.18xlarge": Instance(0, "", 0, 72, 144),
}
