"""The process of an embedded service: python -m hydra_trainer.embedded.sagemaker --home FOLDER"""

from pathlib import Path

from hydra_trainer.embedded.foreground import parser, serve

from .service import Service


def main() -> None:
    arguments = parser("hydra_trainer.embedded.sagemaker", "service")
    arguments.add_argument(
        "--file-system",
        type=_mapping,
        action="append",
        default=[],
        metavar="ID=FOLDER",
        help="the folder that stands for a file system: fs-0123456789abcdef0=/data",
    )
    arguments.add_argument(
        "--no-limits", dest="limits", action="store_false", help="never throttle a client"
    )
    arguments.add_argument(
        "--only-buckets-there-are",
        dest="make_buckets",
        action="store_false",
        help="make no bucket that is used and not there",
    )
    given = arguments.parse_args()
    folders = dict(given.file_system)
    serve(
        given,
        lambda: Service(
            given.home,
            file_systems=folders,
            limits=given.limits,
            make_buckets=given.make_buckets,
            wait=True,
        ),
        lambda service: f"export AWS_ENDPOINT_URL={service.endpoint}",
    )


def _mapping(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    return name, Path(folder).absolute()


if __name__ == "__main__":
    main()
