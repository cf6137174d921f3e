"""What launcher=eks sends, without a cluster: golden manifests, names, and what is refused."""

import base64
import copy
import functools
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hydra_trainer import config, launcher, storage
from hydra_trainer.bundle import Bundle, collect
from hydra_trainer.eks import manifests, marks
from hydra_trainer.eks.options import Options
from hydra_trainer.errors import ConfigError
from hydra_trainer.job import JobSpec

GOLDEN = Path(__file__).with_name("golden")
CODE = Bundle({}, "0123456789abcdef")
IDENTITY = "89abcdef01234567"
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    config.register()
    GlobalHydra.instance().clear()
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        yield


def job(*words: str) -> tuple[JobSpec, Options]:
    """Return a job and the options of launcher=eks, from a command line."""
    made, options = composed(words)
    return replace(made, config=copy.deepcopy(made.config)), options


@functools.cache
def composed(words: tuple[str, ...]) -> tuple[JobSpec, Options]:
    plain = config.validate(compose("config", ["launcher=eks", *words]))
    named = {k: v for k, v in plain["launcher"].items() if k != "_target_"}
    made = config.to_job(plain, Path("runs/x"))
    name = f"{made.name[:-9]}-89abcdef"  # the rest of it depends on every line of this package
    made.config["run"] = {"name": name, "dir": "", "identity": IDENTITY, "code_digest": CODE.digest}
    return replace(made, name=name, code=CODE, identity=IDENTITY), Options(**named)


def rendered(*words: str) -> dict[str, Any]:
    return manifests.manifests(*job(*words))


def last(*words: str) -> dict[str, Any]:
    """Return the job itself."""
    found: dict[str, Any] = rendered(*words)["items"][-1]
    return found


def pod(*words: str) -> dict[str, Any]:
    """Return the pod spec of the master."""
    found: dict[str, Any] = last(*words)["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    return found


# ----------------------------------------------------------------------------------------- golden

WORDS = {
    "pytorchjob": [],
    "pytorchjob-gpus": [
        "storage=efs",
        "name=my run",
        "resources.nodes=2",
        "resources.gpus_per_node=8",
        "resources.instance_type=p5.48xlarge",
        "resources.memory_per_node=1800Gi",
        "data.batch_size=64",
        "launcher.image=registry/train:1",
        "launcher.namespace=team",
        "launcher.queue=team-queue",
        "launcher.service_account=hydra-trainer-pods",
        "launcher.spot=true",
        "launcher.together=rack",
        "launcher.active_deadline=86400",
        "launcher.priority_class=research",
        "+launcher.env={WANDB_PROJECT: digits}",
        "+launcher.secrets={WANDB_API_KEY: wandb/key}",
    ],
    "pytorchjob-elastic": [
        "storage=fsx",
        "resources.nodes=4",
        "resources.min_nodes=2",
        "data.batch_size=96",
        "launcher.image=registry/train:1",
    ],
    "pytorchjob-s3": [
        "storage=s3",
        "storage.s3.bucket=my-bucket",
        "storage.s3.region=eu-central-1",
        "data=cifar10",
        "data.cache='${mount:cache}'",
        "launcher.image=registry/train:1",
        "launcher.service_account=hydra-trainer-pods",
    ],
    "trainjob": ["launcher.api=trainjob", "storage=efs", "resources.nodes=2"],
    "trainjob-runtime": [
        "launcher.api=trainjob",
        "launcher.runtime=torch-distributed",
        "storage=efs",
        "resources.nodes=2",
    ],
    "trainjob-runtime-2.1": [
        "launcher.api=trainjob",
        "launcher.runtime=torch-distributed",
        "launcher.trainer_version=2.1",
        "storage=efs",
        "resources.nodes=2",
    ],
    "hyperpod": [
        "launcher.api=hyperpod",
        "storage=fsx",
        "resources.nodes=2",
        "resources.gpus_per_node=8",
        "resources.instance_type=ml.p5.48xlarge",
        "resources.memory_per_node=1800Gi",
    ],
}


@pytest.mark.parametrize("name", WORDS)
def test_the_manifests_are_these(name: str) -> None:
    found = rendered(*WORDS[name])
    assert launcher.text(found) == launcher.text(rendered(*WORDS[name]))
    # The code is checked below; it changes with every line of this package.
    found["items"] = [i for i in found["items"] if not i["metadata"]["name"].endswith(CODE.digest)]
    found["items"][-1]["metadata"]["annotations"][marks.DIGEST] = "..."
    text = launcher.text(found)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"if this is right: WRITE_GOLDEN=1 pytest {__file__}"


def test_the_code_travels_and_comes_out_the_same(tmp_path: Path) -> None:
    spec, options = job()
    (tmp_path / "own.py").write_text("x = 1\n")
    bundle = Bundle({"pkg/own.py": tmp_path / "own.py"}, "ab" * 8)
    code = manifests.manifests(replace(spec, code=bundle), options)["items"][1]
    assert code["metadata"]["name"] == "hydra-trainer-code-" + "ab" * 8
    archive = base64.b64decode(code["binaryData"]["code.tar.gz"])
    assert archive == bundle.archive()
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert opened.getnames() == ["pkg/own.py"]
        assert (opened.getmembers()[0].mtime, opened.getmembers()[0].uid) == (0, 0)


def test_a_digest_tells_other_settings_apart() -> None:
    def digest(*words: str) -> str:
        return str(last(*words)["metadata"]["annotations"][marks.DIGEST])

    assert digest() == digest("launcher.detach=true", "launcher.context=other")
    assert digest() != digest("launcher.grace=60")
    assert last()["metadata"]["name"] == last("launcher.grace=60")["metadata"]["name"]


def test_what_no_run_imports_makes_no_other_job(tmp_path: Path) -> None:
    """Two work trees that differ in a README have the same code, and so the same digest."""
    spec, options = job()

    def digest(readme: str) -> Any:
        path = tmp_path / readme
        path.write_text(readme)
        bundle = Bundle({"README.md": path}, CODE.digest)
        made = manifests.manifests(replace(spec, code=bundle), options)["items"]
        return made[1]["binaryData"], made[-1]["metadata"]["annotations"][marks.DIGEST]

    (one, first), (two, second) = digest("before"), digest("after")
    assert one != two and first == second


def test_the_folder_that_an_embedded_cluster_writes_to_makes_no_other_job() -> None:
    """Two sweeps that have the same job find it in the other one's folder."""
    spec, options = job("launcher.embedded=true")

    def digest(output: str) -> tuple[str, str]:
        made = manifests.manifests(replace(spec, output=output), options)["items"][-1]
        return json.dumps(made["spec"]), made["metadata"]["annotations"][marks.DIGEST]

    (one, first), (two, second) = digest("/here/sweeps/a/job"), digest("/here/sweeps/b/job")
    assert one != two and first == second


def test_tests_and_docs_do_not_travel_unless_a_target_names_them(tmp_path: Path) -> None:
    for name in ("train.py", "pkg/model.py", "pkg/tests/data.py", "pkg/test_model.py", "docs/a.md"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)

    def sent(*targets: str) -> set[str]:
        files = collect(tmp_path, targets).files
        return {name for name in files if not name.startswith("hydra_trainer/")}

    assert sent() == {"train.py", "pkg/model.py", "pkg/tests/data.py"}
    named = sent("tests.drill.Drill")  # our own: it is what Python finds
    assert "tests/drill.py" in named and "tests/test_eks_render.py" not in named


# ------------------------------------------------------------------------------------------ names


@settings(max_examples=300, deadline=None)
@given(name=st.text(min_size=1, max_size=90), nodes=st.integers(1, 1200))
def test_any_name_gives_names_that_kubernetes_takes(name: str, nodes: int) -> None:
    spec, options = job()
    spec = replace(spec, name=f"{name}-89abcdef")
    spec = replace(spec, resources=replace(spec.resources, nodes=nodes))
    for api, longest in (
        ("pytorchjob", f"-worker-{nodes}"),
        ("trainjob", f"-node-0-{nodes}-abcde"),
        ("hyperpod", "-" + 10 * "x"),
    ):
        found = manifests.job_name(spec, replace(options, api=api))
        assert LABEL.fullmatch(found) and found.endswith("-89abcdef")
        assert len(found + longest) <= 63


@settings(max_examples=300, deadline=None)
@example("\n")
@example("a\n...\n")
@example("a\n\n...")
@given(text=st.text())
def test_the_worker_gets_exactly_what_was_composed(text: str) -> None:
    spec, options = job()
    spec.config["name"] = text
    data = manifests.manifests(spec, options)["items"][0]["data"]["config.yaml"]
    printed = launcher.text({"data": {"config.yaml": data}})
    # As the API sends it, in JSON, and as kubectl reads it, from YAML: to the letter.
    assert json.loads(json.dumps(data)) == data
    assert yaml.load(printed, yaml.CSafeLoader)["data"]["config.yaml"] == data
    got = yaml.safe_load(data)  # with the parser of the worker
    assert (got["name"], got["model"]) == (text, spec.config["model"])


def test_what_kubernetes_would_fill_in_is_escaped() -> None:
    env = pod("+launcher.env={X: 'a $(HOME) b'}")["spec"]["containers"][0]["env"]
    assert {"name": "X", "value": "a $$(HOME) b"} in env


# ---------------------------------------------------------------------------------- pods and mounts


def test_a_mount_is_where_the_worker_looks_for_it() -> None:
    found = rendered("storage=efs", "data=cifar10")
    spec = found["items"][-1]["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    container = spec["containers"][0]
    written = yaml.safe_load(found["items"][0]["data"]["config.yaml"])
    assert written["data"]["root"] == "${mount:data}/cifar10"
    assert written["run"]["dir"].startswith("${mount:output}/cifar10".replace("cifar10", "convnet"))
    env = {item["name"]: item.get("value") for item in container["env"]}
    mounts = {item["mountPath"]: item for item in container["volumeMounts"]}
    assert mounts[env["HYDRA_TRAINER_MOUNT_DATA"]]["readOnly"] is True
    assert mounts[env["HYDRA_TRAINER_MOUNT_OUTPUT"]]["subPath"] == "runs"
    claims = [v["persistentVolumeClaim"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [{"claimName": "efs-claim"}]  # one volume for both
    run_dir = next(word for word in container["command"] if word.startswith("--run-dir="))
    assert run_dir.startswith("--run-dir=/mnt/runs/convnet-")


def test_what_is_streamed_is_its_place_in_s3() -> None:
    found = rendered("storage=s3", "data=cifar10", "data.cache='${mount:cache}'")
    spec = found["items"][-1]["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    container = spec["containers"][0]
    env = {item["name"]: item.get("value") for item in container["env"]}
    assert env["HYDRA_TRAINER_MOUNT_DATA"] == "s3://your-bucket/data"
    mounts = {item["mountPath"]: item["name"] for item in container["volumeMounts"]}
    volumes = {item["name"]: item for item in spec["volumes"]}
    assert volumes[mounts[env["HYDRA_TRAINER_MOUNT_CACHE"]]]["emptyDir"] == {}
    assert len(mounts) == len(volumes) == 5  # job, code, work, shm, and the cache


def test_a_run_that_is_kept_in_s3_needs_no_claim() -> None:
    spec, options = job("storage.output=s3://bucket/runs")
    found = manifests.manifests(spec, options)
    assert not manifests.forgets(spec, options)
    assert "persistentVolumeClaim" not in json.dumps(found)
    written = yaml.safe_load(found["items"][0]["data"]["config.yaml"])
    assert written["run"]["dir"] == f"${{mount:_scratch}}/{spec.name}"
    container = found["items"][-1]["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"][
        "containers"
    ][0]
    assert f"--run-dir=/hydra-trainer/work/runs/{spec.name}" in container["command"]
    env = {item["name"]: item.get("value") for item in container["env"]}
    assert env["HYDRA_TRAINER_MOUNT__SCRATCH"] == "/hydra-trainer/work/runs"


def test_where_s3_is_reaches_every_client_in_the_pod() -> None:
    words = ["storage.s3.endpoint=http://store:9000", "storage.s3.region=eu-west-1"]
    env = {
        item["name"]: item.get("value")
        for item in pod("storage=s3", *words)["spec"]["containers"][0]["env"]
    }
    assert env["AWS_ENDPOINT_URL_S3"] == "http://store:9000"
    assert env["AWS_REGION"] == "eu-west-1"
    named = {item["name"] for item in pod(*words)["spec"]["containers"][0]["env"]}
    assert not named & {"AWS_REGION", "AWS_ENDPOINT_URL_S3"}  # a job without S3 needs neither


def test_the_embedded_cluster_has_the_s3_of_this_machine() -> None:
    def embedded(*words: str) -> bool:
        made = rendered("launcher.embedded=true", *words)["items"]
        roles = made[-1]["spec"]["pytorchReplicaSpecs"]
        env = {
            item["name"]: item.get("value")
            for item in roles["Master"]["template"]["spec"]["containers"][0]["env"]
        }
        config = yaml.safe_load(made[0]["data"]["config.yaml"])
        found = bool(config["storage"]["s3"]["embedded"])
        assert env.get(storage.EMBEDDED) == (str(storage.embedded_home()) if found else None)
        return found

    assert embedded("storage=s3") is True
    assert embedded("storage=s3", "storage.s3.endpoint=http://store:9000") is False
    assert embedded() is False


def test_the_embedded_cluster_writes_where_a_local_run_would() -> None:
    volumes = pod("launcher.embedded=true")["spec"]["volumes"]
    paths = [volume["hostPath"]["path"] for volume in volumes if "hostPath" in volume]
    assert paths == [str(Path("runs").absolute())]


def test_a_pod_is_what_pod_security_restricted_accepts() -> None:
    spec = pod()["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = spec["containers"][0]["securityContext"]
    assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert not any("hostPath" in volume for volume in spec["volumes"])


def test_pod_overrides_are_merged_by_name() -> None:
    override = (
        "+launcher.pod_overrides={spec: {hostNetwork: true, containers: "
        "[{name: pytorch, workingDir: /x, env: [{name: HOME, value: /y}]}]}}"
    )
    found = pod(override)["spec"]
    assert found["hostNetwork"] is True
    assert [c["name"] for c in found["containers"]] == ["pytorch"]
    container = found["containers"][0]
    assert container["workingDir"] == "/x" and container["command"][0] == "python"
    assert {"name": "HOME", "value": "/y"} in container["env"] and len(container["env"]) > 1


def test_a_launcher_option_is_absent_until_it_is_set() -> None:
    text = launcher.text(last())
    for word in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "queue-name"):
        assert word not in text, word


# --------------------------------------------------------------------------------- what is refused

REFUSED = {
    "launcher.image=null": ["launcher.image has no value", "launcher.image=REGISTRY/NAME:TAG"],
    "launcher.api=pytorchjobs": ["'pytorchjobs'", "Did you mean 'pytorchjob'?"],
    "launcher.api=trainjob resources.min_nodes=1": [
        "resources.min_nodes",
        "launcher.api=pytorchjob",
    ],
    "launcher.runtime=torch-distributed": ["launcher.runtime", "launcher.api=trainjob"],
    "resources.nodes=3 resources.min_nodes=2 data.batch_size=96 resources.processes_per_node=2": [],
    "resources.nodes=3 resources.min_nodes=2 data.batch_size=99": ["divisible", "2 nodes (2)"],
    "+launcher.secrets={KEY: hf_abcdefgh}": ["launcher.secrets.KEY", "SECRET/KEY"],
    "launcher.together=region": ["'region'", "zone, rack"],
    "data=cifar10": ["storage.mounts.data is ~/data", "storage=efs"],
    "storage=efs storage.mounts.output.kind=s3 +storage.mounts.output.access=csi": [
        "storage.output is in the mount 'output' of kind s3 with access csi",
        "rename",
        "storage.output=s3://BUCKET/PREFIX",
    ],
    "storage=efs storage.mounts.output.kind=s3": ["output.uri has no value", "output.access=csi"],
    "storage=efs +storage.mounts.output.read_only=true": ["'output', which is read-only"],
    "storage=s3 data=cifar10 storage.mounts.data.access=fastfile": [
        "storage.mounts.data.access is 'fastfile', an input mode of SageMaker",
        "storage.mounts.data.access=stream",
    ],
    "storage=s3 data=cifar10 storage.mounts.data.access=csi": [
        "storage.mounts.data.claim has no value",
        "storage.mounts.data.access=stream",
    ],
    "storage=s3 storage.s3.embedded=true": ["no pod of a cluster", "launcher.embedded=true"],
    "storage=efs data=cifar10 storage.mounts.data.claim=null": [
        "storage.mounts.data.claim has no value"
    ],
}


@pytest.mark.parametrize("words", [words for words in REFUSED if REFUSED[words]])
def test_bad_input(words: str) -> None:
    split = re.split(r" (?=[\w.+]+=)", words)
    with pytest.raises(ConfigError) as caught:
        rendered(*split)
    for part in REFUSED[words]:
        assert part in str(caught.value)


def test_code_that_is_too_large_names_its_largest_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(2**20))
    spec, options = job()
    with pytest.raises(ConfigError) as caught:
        manifests.manifests(replace(spec, code=Bundle({"weights.bin": path}, "0" * 16)), options)
    for part in ("weights.bin (1,024 KiB)", "delivery=volume", "delivery=s3", "delivery=image"):
        assert part in str(caught.value)


def test_mistakes_in_mounts_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        job("storage=efs", "storage.mounts.data.kind=fsz", "storage.mounts.output.path=mnt")
    assert "storage.mounts.data.kind is 'fsz'" in str(caught.value)
    assert "Did you mean 'fsx'?" in str(caught.value)
    assert "storage.mounts.output.path is 'mnt'" in str(caught.value)


def test_a_run_anew_is_the_same_job_that_sets_the_last_one_aside() -> None:
    spec, options = job()
    again = manifests.manifests(replace(spec, again=True), options)["items"][-1]
    once = manifests.manifests(spec, options)["items"][-1]
    assert again["metadata"] == once["metadata"]
    words = again["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
    assert "--again" in words["command"]
