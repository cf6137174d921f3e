"""The process of an embedded cluster: python -m hydra_trainer.embedded --home FOLDER"""

from .cluster import Embedded
from .foreground import parser, serve


def main() -> None:
    arguments = parser("hydra_trainer.embedded", "cluster")
    arguments.add_argument(
        "--capacity",
        type=_amount,
        action="append",
        default=[],
        metavar="RESOURCE=NUMBER",
        help="what pods may ask for beside CPU and memory: nvidia.com/gpu=8",
    )
    given = arguments.parse_args()
    serve(
        given,
        lambda: Embedded(given.home, capacity=dict(given.capacity), wait=True),
        lambda cluster: f"export KUBECONFIG={cluster.kubeconfig}",
        Embedded.tidy,
    )


def _amount(text: str) -> tuple[str, int]:
    resource, _, number = text.partition("=")
    return resource, int(number)


if __name__ == "__main__":
    main()
