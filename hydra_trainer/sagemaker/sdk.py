"""The same request through the SageMaker Python SDK, for teams whose tools hook into it."""

import os
from typing import Any

from hydra_trainer.errors import LaunchError

from .account import Account, explained


def create(account: Account, request: dict[str, Any]) -> None:
    """Create a training job through `sagemaker.core.resources.TrainingJob`.

    Raises:
        LaunchError: the SDK is not installed, or what `Account.create` raises.
    """
    try:
        from sagemaker.core.resources import TrainingJob
        from sagemaker.core.utils.code_injection.codec import transform
    except ImportError:
        raise LaunchError(
            "launcher.client is 'sdk', but the SageMaker Python SDK is not installed. Type pip "
            "install 'sagemaker>=3.27', or launcher.client=boto3, which sends the same."
        ) from None
    words = transform(request, "CreateTrainingJobRequest")
    if account.endpoint:
        os.environ["AWS_ENDPOINT_URL"] = account.endpoint  # the SDK makes clients of its own
    with explained():
        TrainingJob.create(**words, session=account.session, region=account.region)
