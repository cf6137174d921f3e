"""AWS's Deep Learning Containers for training with PyTorch: which there are, and where.

Facts of 2026-11-24 out of sagemaker-core 2.27.0, sagemaker/core/image_uri_config/pytorch.json and
pytorch-amzn2023.json; a test compares them where that package is installed.
"""

import re
from typing import NamedTuple

from hydra_trainer.errors import ConfigError, did_you_mean


class Release(NamedTuple):
    """The containers of one version of PyTorch: their repository, and their tags."""

    repository: str
    gpu: str
    cpu: str


def _ubuntu(version: str, python: str) -> Release:
    tag = f"{version}-{{}}-{python}"
    return Release("pytorch-training", tag.format("gpu"), tag.format("cpu"))


def _amazon(version: str, cuda: str) -> Release:
    tag = f"{version}-{{}}-amzn2023-sagemaker"
    return Release("pytorch", tag.format(cuda), tag.format("cpu"))


RELEASES = {
    "2.4.0": _ubuntu("2.4.0", "py311"),
    "2.5.1": _ubuntu("2.5.1", "py311"),
    "2.6.0": _ubuntu("2.6.0", "py312"),
    "2.7.1": _ubuntu("2.7.1", "py312"),
    "2.8.0": _ubuntu("2.8.0", "py312"),
    "2.9.0": _ubuntu("2.9.0", "py312"),
    "2.10.0": _ubuntu("2.10.0", "py313"),
    "2.11": _amazon("2.11", "cu130"),
    "2.12": _amazon("2.12", "cu130"),
    "2.13": _amazon("2.13", "cu133"),
    "2.14": _amazon("2.14", "cu133"),
}

ACCOUNT = "763104351884"
SMP_ACCOUNT = "658645717510"

REGIONS = {
    **dict.fromkeys(("us-east-1", "us-east-2", "us-west-1", "us-west-2"), ACCOUNT),
    **dict.fromkeys(("ca-central-1", "sa-east-1"), ACCOUNT),
    **dict.fromkeys(("eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3"), ACCOUNT),
    **dict.fromkeys(("ap-northeast-1", "ap-northeast-2", "ap-south-1"), ACCOUNT),
    **dict.fromkeys(("ap-southeast-1", "ap-southeast-2"), ACCOUNT),
    "af-south-1": "626614931356",
    "ap-east-1": "871362719292",
    "ap-east-2": "975050140332",
    "ap-northeast-3": "364406365360",
    "ap-south-2": "772153158452",
    "ap-southeast-3": "907027046896",
    "ap-southeast-4": "457447274322",
    "ap-southeast-5": "550225433462",
    "ap-southeast-6": "633930458069",
    "ap-southeast-7": "590183813437",
    "ca-west-1": "204538143572",
    "cn-north-1": "727897471807",
    "cn-northwest-1": "727897471807",
    "eu-central-2": "380420809688",
    "eu-isoe-west-1": "371248457586",
    "eu-south-1": "692866216735",
    "eu-south-2": "503227376785",
    "eusc-de-east-1": "204133271717",
    "il-central-1": "780543022126",
    "me-central-1": "914824155844",
    "me-south-1": "217643126080",
    "me-west-1": "124382933778",
    "mx-central-1": "637423239942",
    "us-gov-east-1": "446045086412",
    "us-gov-west-1": "442386744353",
    "us-iso-east-1": "886529160074",
    "us-isob-east-1": "094389454867",
    "us-isof-east-1": "303241398832",
    "us-isof-south-1": "454834333376",
}
"""The account that has the containers, for each region."""

SECRET = ("us-iso-", "us-isob-", "us-isof-", "eu-isoe-", "eusc-")
OLD = ("2.4.0", "2.5.1", "2.6.0", "2.7.1")
MISSING = {
    **dict.fromkeys(OLD, (*SECRET, "me-west-")),
    "2.8.0": SECRET,
    "2.14": (*SECRET, "cn-", "us-gov-"),
}
"""Regions that do not have a version: what their names begin with."""

DOMAINS = {
    "cn-": "amazonaws.com.cn",
    "eusc-": "amazonaws.eu",
    "eu-isoe-": "cloud.adc-e.uk",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
    "us-isof-": "csp.hci.ic.gov",
}
"""Where it is not amazonaws.com. Source: botocore's partitions.json."""


def image(torch: str, gpu: bool, region: str) -> str:
    """Return the image for a version of PyTorch ("2.13", "2.5.1") in a region.

    Raises:
        ConfigError: AWS has none; it names the versions or the regions that there are.
    """
    version = _version(torch)
    if region not in REGIONS:
        raise ConfigError(
            f"launcher.region is {region!r}, where no container of AWS is known."
            f"{did_you_mean(region, REGIONS)} Type launcher.image=ACCOUNT.dkr.ecr.{region}."
            "amazonaws.com/NAME:TAG for an image of yours."
        )
    if region.startswith(MISSING.get(version, ("-",))):
        there = [name for name in RELEASES if not region.startswith(MISSING.get(name, ("-",)))]
        raise ConfigError(
            f"launcher.torch is {torch!r}, but in {region} AWS has containers for "
            f"{', '.join(there)} only. Type launcher.torch={there[-1]}."
        )
    release = RELEASES[version]
    tag = release.gpu if gpu else release.cpu
    return f"{REGIONS[region]}.dkr.ecr.{region}.{_domain(region)}/{release.repository}:{tag}"


def _version(torch: str) -> str:
    """Return the key of a release: "2.13" for 2.13, 2.13.1 and 2.13.1+cu133, "2.5.1" for 2.5."""
    given = torch.partition("+")[0]
    for known, release in RELEASES.items():
        newer = release.repository == "pytorch" and given.startswith(f"{known}.")
        older = "." in given and known.startswith(f"{given}.")
        if given == known or older or newer:
            return known
    # 2.10 without quotes is the number 2.1 to YAML.
    quotes = " 2.10 needs quotes: 'launcher.torch=\"2.10\"'." if given == "2.1" else ""
    newest = list(RELEASES)[-1]
    raise ConfigError(
        f"launcher.torch is {torch!r}, but AWS has containers for {', '.join(RELEASES)}.{quotes} "
        f"Type launcher.torch={newest}, or launcher.image=... for an image of yours."
    )


def _domain(region: str) -> str:
    found = (domain for start, domain in DOMAINS.items() if region.startswith(start))
    return next(found, "amazonaws.com")


# ------------------------------------------------------------------------------- what an image is

IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr(?:-fips)?\.[a-z0-9-]+\.[a-z0-9.-]+/"
    r"(?P<repository>pytorch|pytorch-training|smdistributed-modelparallel)"
    r":(?P<tag>(?P<torch>\d+\.\d+(?:\.\d+)?)(?:-[\w.-]*)?)"
)


def framework_of(image: str) -> tuple[str, bool] | None:
    """Return the version of PyTorch in an image of AWS, and whether it is for GPUs."""
    found = _of_aws(image)
    if found is None:
        return None
    return found["torch"], "cpu" not in found["tag"].split("-")


def _of_aws(image: str) -> re.Match[str] | None:
    found = IMAGE.fullmatch(image)
    known = found is not None and found["account"] in (*REGIONS.values(), SMP_ACCOUNT)
    return found if known else None


# ---------------------------------------------------------------------------------------- SMDDP

SMDDP_TYPES = ("ml.p4d.24xlarge", "ml.p4de.24xlarge")

SMDDP_IMAGES = {
    "pytorch-training": (
        *("1.11.0", "1.12.0", "1.12.1", "1.13.1", "2.0.0", "2.0.1", "2.1.0", "2.2.0", "2.3.0"),
    ),
    "smdistributed-modelparallel": ("2.1.2", "2.2.0", "2.4.1"),
}
"""Versions of PyTorch of the images that have the library, which ended with its 2.5.0 of 2024.
Source: docs.aws.amazon.com/sagemaker/latest/dg/distributed-data-parallel-support.html"""


def smddp_problem(image: str, instance_type: str) -> str | None:
    """Return why SageMaker's data parallel library does not work there, as a sentence, or None.

    Of an image that is not AWS's nothing is said: it may have the library.
    """
    if instance_type not in SMDDP_TYPES:
        return f"it runs on {' and '.join(SMDDP_TYPES)}, not on {instance_type}."
    found = _of_aws(image)
    if found is None:
        return None
    named = framework_of(image)
    if named and named[1] and found["torch"] in SMDDP_IMAGES.get(found["repository"], ()):
        return None
    newest = SMDDP_IMAGES["smdistributed-modelparallel"][-1]
    return (
        f"{found['repository']}:{found['tag']} does not have it. The last image of AWS with it is "
        f"{SMP_ACCOUNT}.dkr.ecr.REGION.amazonaws.com/smdistributed-modelparallel:{newest}-gpu-"
        "py311-cu121."
    )
