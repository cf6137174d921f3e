"""The offline checks of launcher=eks: fields, webhooks, and what fails later."""

import copy
import functools
import inspect
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hydra_trainer.eks import schema
from hydra_trainer.eks.pod_rules import amount
from hydra_trainer.eks.rules import restricted_problems, rule_problems, webhook_problems
from hydra_trainer.eks.schema import Problem, schema_problems
from hydra_trainer.eks.shapes import Check
from hydra_trainer.eks.sweep import once
from hydra_trainer.instances import INSTANCES, instance

Object = dict[str, Any]

GOLDEN = Path(__file__).with_name("golden")
CRDS = Path(__file__).parents[2] / "shared" / "crds"

needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason="the CRDs are not there")


# ----------------------------------------------------------------------- manifests, and their parts


@functools.cache
def loaded(name: str) -> list[Object]:
    items: list[Object] = yaml.load((GOLDEN / f"{name}.yaml").read_text(), yaml.CSafeLoader)[
        "items"
    ]
    return items


def golden(name: str, kind: str = "") -> Object:
    """Return an object of a golden manifest: the job, or that of a kind."""
    found = [item for item in loaded(name) if kind in ("", item["kind"])][-1]
    return copy.deepcopy(found)


NAMES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))

POD = "spec.pytorchReplicaSpecs.Master.template.spec"
BOX = f"{POD}.containers[0]"
MANIFESTS: dict[str, Callable[[], Object]] = {
    "job": lambda: golden("pytorchjob-gpus"),
    "elastic": lambda: golden("pytorchjob-elastic"),
    "trainjob": lambda: golden("trainjob-runtime"),
    "trainjob-2.1": lambda: golden("trainjob-runtime-2.1"),
    "runtime": lambda: golden("trainjob", "TrainingRuntime"),
    "hyperpod": lambda: with_memory(golden("hyperpod")),
    "config": lambda: golden("pytorchjob", "ConfigMap"),
    "jobset": lambda: jobset(),
}


def with_memory(manifest: Object) -> Object:
    resources = manifest["spec"]["replicaSpecs"][0]["template"]["spec"]["containers"][0][
        "resources"
    ]
    for side in ("requests", "limits"):
        resources[side].setdefault("memory", "1800Gi")
    return manifest


def jobset() -> Object:
    """Return what Kubeflow Trainer makes of a TrainJob."""
    spec = golden("trainjob", "TrainingRuntime")["spec"]["template"]["spec"]
    spec["replicatedJobs"][0]["template"]["spec"]["completions"] = 2
    metadata = {"name": "digits-89abcdef"}
    api = "jobset.x-k8s.io/v1alpha2"
    return {"apiVersion": api, "kind": "JobSet", "metadata": metadata, "spec": spec}


def steps(path: str) -> list[str | int]:
    """Split a path as problems have it: a.b[0][nvidia.com/gpu] is a, b, 0, nvidia.com/gpu."""
    words = re.findall(r"\[([^]]*)\]|([^.[]+)", path)
    return [int(inner) if inner.isdigit() else inner or word for inner, word in words]


def at(node: Any, path: str) -> Any:
    for step in steps(path):
        node = node[step]
    return node


def change(manifest: Object, path: str, value: Any) -> Object:
    """Set what is at a path (a new item at the end of a list); ... takes it away."""
    *way, last = steps(path)
    node: Any = manifest
    for step in way:
        node = node.setdefault(step, {}) if isinstance(node, dict) else node[step]
    if value is ...:
        del node[last]
    elif isinstance(node, list) and last == len(node):
        node.append(value)
    else:
        node[last] = value
    return manifest


def changed(which: str, changes: Object) -> Object:
    manifest = MANIFESTS[which]()
    for path, value in changes.items():
        change(manifest, path, value)
    return manifest


def told(found: list[Problem], path: str, words: str) -> Problem:
    """Return the problem at a path that says some words; fail with what was found."""
    hits = [problem for problem in found if problem.path == path and words in problem.message]
    assert hits, "\n".join(f"{problem.path}: {problem.message}" for problem in found) or "nothing"
    return hits[0]


# ----------------------------------------------------------------------------------- what we render


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wrong_with_what_is_rendered(name: str) -> None:
    for item in loaded(name):
        if item["kind"] == "HyperPodPyTorchJob":
            item = with_memory(copy.deepcopy(item))
        assert schema_problems(item) + webhook_problems(item) + rule_problems(item) == []


def test_a_dry_run_loads_no_library_and_no_schema_files() -> None:
    program = f"""
import sys, yaml
from hydra_trainer.eks import rules, schema
for name in {[str(GOLDEN / f"{name}.yaml") for name in NAMES]}:
    for item in yaml.load(open(name), yaml.CSafeLoader)["items"]:
        schema.schema_problems(item), rules.webhook_problems(item), rules.rule_problems(item)
heavy = {{"jsonschema", "kubernetes_validate", "kubernetes", "torch", "lightning"}}
assert not heavy & set(sys.modules)
assert schema._definitions.cache_info().currsize == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --------------------------------------------------------------------------------------- the fields

FIELDS: list[tuple[str, Object, str, str]] = [
    (
        "job",
        {"spec.pytorchReplicaSpecs.Master.replicaz": 1},
        "spec.pytorchReplicaSpecs.Master.replicaz",
        "unknown field, but must be one of replicas, restartPolicy, template. Did you mean "
        "'replicas'?",
    ),
    ("job", {"spec.nprocPerNode": 8}, "spec.nprocPerNode", 'a string (put it in quotes: "8")'),
    ("job", {"spec.pytorchReplicaSpecs": ...}, "spec.pytorchReplicaSpecs", "Required value"),
    (
        "job",
        {"spec.pytorchReplicaSpecs.Worker.replicas": "one"},
        "spec.pytorchReplicaSpecs.Worker.replicas",
        'Invalid value: "one": must be an integer',
    ),
    ("job", {"spec.runPolicy.suspend": "yes"}, "spec.runPolicy.suspend", "true or false"),
    ("job", {"metadata.lables": {}}, "metadata.lables", "Did you mean 'labels'?"),
    (
        "job",
        {f"{BOX}.resources.limits[memory]": "lots"},
        f"{BOX}.resources.limits.memory",
        'Invalid value: "lots": must be a quantity, such as 2, 500m or 16Gi',
    ),
    (
        "job",
        {f"{BOX}.resources.limits[nvidia.com/gpu]": 0.5},
        f"{BOX}.resources.limits[nvidia.com/gpu]",
        "must be a quantity",
    ),
    ("job", {f"{BOX}.env[0].value": 1}, f"{BOX}.env[0].value", 'put it in quotes: "1"'),
    ("job", {f"{BOX}.comand": ["x"]}, f"{BOX}.comand", "unknown field. Did you mean 'command'?"),
    (
        "job",
        {f"{POD}.topologySpreadConstraints": [{"maxSkew": 1, "whenUnsatisfiable": "x"}]},
        f"{POD}.topologySpreadConstraints[0].topologyKey",
        "Required value",
    ),
    (
        "job",
        {f"{BOX}.livenessProbe": {"httpGet": {"port": True}}},
        f"{BOX}.livenessProbe.httpGet.port",
        "an integer or a string",
    ),
    ("trainjob", {"spec.trainer.numProcPerNode": "auto"}, "spec.trainer.numProcPerNode", "integer"),
    (
        "trainjob",
        {"spec.podTemplateOverrides": []},
        "spec.runtimePatches",  # the one belongs to 2.1, the other to 2.2
        "unknown field, but must be one of annotations",
    ),
    (
        "trainjob",
        {"spec.activeDeadlineSeconds": 0},
        "spec.activeDeadlineSeconds",
        "an integer of at least 1",
    ),
    ("trainjob", {"spec.runtimeRef.name": ""}, "spec.runtimeRef.name", "1 to 253 characters"),
    (
        "runtime",
        {"spec.mlPolicy.torch.numProc": 1},
        "spec.mlPolicy.torch.numProc",
        "unknown field, but must be one of envInjection.",
    ),
    (
        "runtime",
        {"spec.template.spec.failurePolicy": {"restartStrategy": "Recrate"}},
        "spec.template.spec.failurePolicy.restartStrategy",
        'Unsupported value: "Recrate": supported values: Recreate, BlockingRecreate, '
        "InPlaceRestart. Did you mean 'Recreate'?",
    ),
    (
        "hyperpod",
        {"spec.runPolicy.jobMaxRetries": 1},
        "spec.runPolicy.jobMaxRetries",
        "Did you mean 'jobMaxRetryCount'?",
    ),
    ("config", {"data.x": {"a": 1}}, "data.x", "Invalid value: an object: must be a string"),
    ("config", {"immutabel": True}, "immutabel", "Did you mean 'immutable'?"),
]


@pytest.mark.parametrize(("which", "changes", "path", "words"), FIELDS)
def test_a_field_that_is_not_right(which: str, changes: Object, path: str, words: str) -> None:
    found = schema_problems(changed(which, changes))
    assert told(found, path, words).severity == "error"
    assert len(found) == 1


GOOD: list[tuple[str, Object]] = [
    ("job", {f"{POD}.schedulerName": "volcano", f"{BOX}.lifecycle": {"preStop": {}}}),
    ("job", {f"{POD}.volumes[0]": {"name": "job", "nfs": {"server": "x", "path": "/"}}}),
    ("job", {f"{POD}.priorityClassName": None}),
    ("trainjob-2.1", {"spec.trainer.numProcPerNode": "auto", "spec.labels": {"a": "b"}}),
    ("hyperpod", {"spec.elasticPolicy": {"minReplicas": 1, "replicaDiscreteValues": [1, 2]}}),
]


@pytest.mark.parametrize(("which", "changes"), GOOD)
def test_fields_that_we_do_not_render_are_known(which: str, changes: Object) -> None:
    assert schema_problems(changed(which, changes)) == []


def test_kubernetes_own_kinds_are_looked_up() -> None:
    box = {"name": "x", "resources": {"limits": {"cpu": 0.5}}, "envs": []}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}}
    pod["spec"] = {"containers": [box]}
    found = schema_problems(pod)
    assert told(found, "spec.containers[0].envs", "Did you mean 'env'?") == found[0]
    assert len(found) == 1
    assert schema_problems({"apiVersion": "example.com/v1", "kind": "Strange", "x": 1}) == []


def test_without_kubernetes_validate_what_is_not_known_is_only_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent() -> Object:
        return {}

    monkeypatch.setattr(schema, "_definitions", absent)
    schema._definition.cache_clear()
    manifest = changed("job", {f"{POD}.shareProcessNamespace": True, f"{BOX}.image": 1})
    found = schema_problems(manifest)
    problem = told(found, f"{POD}.shareProcessNamespace", "pip install 'hydra-trainer[eks]'")
    assert problem.severity == "warning"
    assert told(found, f"{BOX}.image", "must be a string").severity == "error"
    schema._definition.cache_clear()


# ----------------------------------------------------------------- the fields against the real CRDs


@functools.cache
def crd(name: str) -> Object:
    """Return the schema of a CRD's only version."""
    text = (CRDS / f"{name}.yaml").read_text()
    found: Object = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"][0]["schema"]
    schema: Object = found["openAPIV3Schema"]
    return schema


SPECS: dict[str, tuple[str, Check]] = {
    "PyTorchJob": ("kubeflow.org_pytorchjobs", schema.PYTORCHJOB),
    "TrainJob": ("trainer.kubeflow.org_trainjobs", schema.TRAINJOB),
    "TrainJob 2.1": ("trainer.kubeflow.org_trainjobs.v2.1.0", schema.TRAINJOB_2_1),
    "TrainingRuntime": ("trainer.kubeflow.org_trainingruntimes", schema.RUNTIME),
    "ClusterTrainingRuntime": ("trainer.kubeflow.org_clustertrainingruntimes", schema.RUNTIME),
}


def differences(check: Check, real: Object, path: str, all_of_it: bool = True) -> Iterator[str]:
    """Yield where a check and a CRD do not have the same fields; below `either`, fewer will do."""
    inside = inspect.getclosurevars(check).nonlocals
    shape = check.__qualname__.partition(".")[0]
    if (shape == "filled") != ("minProperties" in real) and all_of_it:
        yield f"{path}: may be empty: {shape != 'filled'}"
    if shape == "filled":
        rest = {key: value for key, value in real.items() if key != "minProperties"}
        yield from differences(inside["check"], rest, path)
    elif shape == "either":
        yield from differences(inside["small"], real, path, all_of_it=False)
    elif shape == "items":
        yield from differences(inside["check"], real["items"], f"{path}[]", all_of_it)
        if "maxItems" in real and check([{}] * (real["maxItems"] + 1))[0].path:
            yield f"{path}: longer than {real['maxItems']}"
    elif shape == "mapping":
        yield from differences(
            inside["check"], real["additionalProperties"], f"{path}.*", all_of_it
        )
    elif shape == "fields":
        known, there = inside["known"], real.get("properties", {})
        yield from (f"{path}.{key}: only here" for key in known.keys() - there.keys())
        missing = there.keys() - known.keys() if all_of_it else ()
        yield from (f"{path}.{key}: missing here" for key in missing)
        if set(inside["required"]) != set(real.get("required", ())):
            yield f"{path}: required {inside['required']}, there {real.get('required')}"
        for key in known.keys() & there.keys():
            yield from differences(known[key], there[key], f"{path}.{key}", all_of_it)
    else:
        yield from leaf_differences(check, real, path)


def leaf_differences(check: Check, real: Object, path: str) -> Iterator[str]:
    kinds: Object = {"string": "x", "integer": 3, "boolean": True}
    kind = real.get("type", "integer")
    good: list[Any] = [*real.get("enum", [kinds[kind]])]
    bad: list[Any] = [[], {}, *(value for other, value in kinds.items() if other != kind)]
    if real.get("x-kubernetes-int-or-string"):
        good, bad = (["2Gi", 1], ["lots", 0.5]) if "pattern" in real else (["x", 1], [0.5])
    good += [real[key] for key in ("minimum", "maximum") if key in real]
    bad += [real["minimum"] - 1] if "minimum" in real else []
    bad += ["x" * (real["maxLength"] + 1)] if "maxLength" in real else []
    bad += [""] if real.get("minLength") else []
    bad += ["bogus"] if "enum" in real else []
    yield from (f"{path}: {value!r} is refused" for value in good if check(value))
    yield from (f"{path}: {value!r} is accepted" for value in bad if not check(value))


@needs_crds
@pytest.mark.parametrize("kind", SPECS)
def test_the_fields_are_those_of_the_real_crd(kind: str) -> None:
    name, check = SPECS[kind]
    real = crd(name)["properties"]["spec"]
    assert list(differences(check, real, "spec")) == []


def test_what_we_know_of_pods_is_part_of_kubernetes_own_schemas() -> None:
    pods = schema._definitions()["io.k8s.api.core.v1.PodSpec"]
    assert list(differences(schema.POD_SPEC, resolved(pods), "spec", all_of_it=False)) == []


def resolved(node: Object) -> Object:
    """Return a definition with its references filled in, as a CRD has them."""
    if "$ref" in node:
        node = schema._definitions()[node["$ref"].rpartition("/")[2]]
    if "oneOf" in node:  # a quantity; without the pattern that a CRD has
        return {"x-kubernetes-int-or-string": True, "pattern": ""}
    found = dict(node)
    if isinstance(node.get("type"), list):
        found["type"] = node["type"][0]
    if "properties" in node:
        found["properties"] = {key: resolved(part) for key, part in node["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            found[key] = resolved(node[key])
    return found


def strict(node: Any) -> Any:
    """Return a CRD's schema as a JSON schema that allows no unknown field."""
    if isinstance(node, list):
        return [strict(part) for part in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        types: Object = {"type": ["integer", "string"]}
        return {**types, "pattern": node["pattern"]} if "pattern" in node else types
    found = {
        key: {name: strict(part) for name, part in value.items()} if key == "properties" else value
        for key, value in node.items()
        if not key.startswith("x-kubernetes") and key not in ("description", "format")
    }
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            found[key] = strict(node[key])
    if "properties" in node:
        found.setdefault("additionalProperties", False)
    return found


def nodes(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(node, dict | list):
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            yield from nodes(node[key], (*path, key))


JUNK: tuple[Any, ...] = (
    "x",
    7,
    -1,
    True,
    2.5,
    [],
    {},
    {"strange": 1},
    ["x"],
    [{}],
    [[]],
    "1e999",
    ...,
)


def mutations(manifest: Object, number: int) -> Iterator[Object]:
    """Yield the spec with something else at some place, with a strange field, or without one."""
    dice = random.Random(0)
    places = [path for path in nodes(manifest["spec"]) if path]
    for path in dice.choices(places, k=number):
        mutant = copy.deepcopy(manifest)
        node = mutant["spec"]
        for step in path[:-1]:
            node = node[step]
        junk = dice.choice(JUNK)
        if junk is ...:
            del node[path[-1]]
        elif isinstance(node, dict) and junk == {"strange": 1}:
            node["strange"] = 1
        else:
            node[path[-1]] = copy.deepcopy(junk)
        yield mutant


REFEREES = {
    "pytorchjob-elastic": "kubeflow.org_pytorchjobs",
    "trainjob": "trainer.kubeflow.org_trainjobs",
    "trainjob-runtime": "trainer.kubeflow.org_trainjobs",
    "trainjob-runtime-2.1": "trainer.kubeflow.org_trainjobs.v2.1.0",
}


@needs_crds
@pytest.mark.parametrize("name", REFEREES)
def test_we_refuse_what_the_real_crd_refuses(name: str) -> None:
    from jsonschema import Draft202012Validator

    real = strict(crd(REFEREES[name])["properties"]["spec"])
    referee = Draft202012Validator(real)
    assert referee.is_valid(golden(name)["spec"])
    for mutant in mutations(golden(name), 60):
        found = schema_problems(mutant)
        assert (not found) == referee.is_valid(mutant["spec"]), (found, mutant["spec"])


def test_we_refuse_what_kubernetes_own_schema_refuses() -> None:
    from jsonschema import Draft202012Validator

    spec = at(golden("pytorchjob-gpus"), POD)
    spec["dnsConfig"] = {"options": [{"name": "ndots", "value": "1"}]}
    spec["topologySpreadConstraints"] = [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    ]
    del spec["containers"][0]["resources"]  # any string is a quantity there
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    definitions = {"$defs": schema._definitions()}
    referee = Draft202012Validator({**definitions, "$ref": "#/$defs/io.k8s.api.core.v1.Pod"})
    assert referee.is_valid(pod)
    for mutant in mutations(pod, 60):
        found = schema_problems(mutant)
        assert (not found) == referee.is_valid(mutant), (found, mutant["spec"])


# ------------------------------------------------------------------------------------- the webhooks

REPLICAS = "spec.pytorchReplicaSpecs"
CONTAINERS = f"{REPLICAS}[Master].template.spec.containers"
NODE = "spec.template.spec.replicatedJobs[0]"

DENIED: list[tuple[str, Object, str, str]] = [
    ("job", {"metadata.name": "1run"}, "metadata.name", "should match: a DNS-1035 label"),
    ("job", {"metadata.name": "x" * 64}, "metadata.name", "no more than 63 characters"),
    ("job", {"spec.runPolicy.managedBy": "me"}, "spec.runPolicy.managedBy", "Unsupported value"),
    (
        "elastic",
        {f"{REPLICAS}.Master": at(golden("pytorchjob-gpus"), f"{REPLICAS}.Master")}
        | {f"{REPLICAS}.Worker": ...},
        f"{REPLICAS}[Worker]",
        "must be configured if elastic policy is used",
    ),
    (
        "elastic",
        {"spec.elasticPolicy.nProcPerNode": 1},
        "spec.elasticPolicy.nProcPerNode",
        "Forbidden: must not be used with spec.nprocPerNode",
    ),
    ("job", {REPLICAS: ...}, REPLICAS, "Required value"),
    (
        "job",
        {f"{REPLICAS}.Chief": at(golden("pytorchjob-gpus"), f"{REPLICAS}.Worker")},
        f"{REPLICAS}[Chief]",
        'Unsupported value: "Chief": supported values: "Master", "Worker"',
    ),
    ("job", {f"{BOX}.image": ""}, f"{CONTAINERS}[0].image", "Required value"),
    ("job", {f"{BOX}.name": "torch"}, CONTAINERS, "at least one container with name pytorch"),
    ("job", {f"{REPLICAS}.Master.replicas": ...}, f"{REPLICAS}[Master].replicas", "must be 1"),
    ("job", {f"{REPLICAS}.Master.replicas": 2}, f"{REPLICAS}[Master].replicas", "must be 1"),
    ("job", {f"{REPLICAS}.Worker.replicas": 0}, f"{REPLICAS}[Worker].replicas", "at least 1"),
    ("trainjob", {"metadata.name": "a.b"}, "metadata.name", "RFC 1035"),
    ("trainjob", {"metadata.name": "x" * 64}, "metadata.name", "no more than 63"),
    ("trainjob", {"spec.managedBy": "me"}, "spec.managedBy", "trainjob-controller or kueue"),
    (
        "trainjob",
        {"spec.runtimeRef.kind": "Runtime"},
        "spec.runtimeRef",
        "unsupported runtime: Runtime.trainer.kubeflow.org",
    ),
    (
        "trainjob",
        {"spec.initializer": {"dataset": {"storageUri": "bucket/x"}}},
        "spec.initializer.dataset.storageUri",
        "scheme://",
    ),
    (
        "trainjob",
        {"spec.trainer.env[0].name": "PET_NNODES"},
        "spec.trainer.env",
        "must not have reserved envs, invalid envs configured: [PET_NNODES]",
    ),
    (
        "trainjob",
        {"spec.runtimePatches[0].manager": "me"},
        "spec.runtimePatches[0].manager",
        "domain-prefixed path",
    ),
    (
        "trainjob",
        {
            "spec.runtimePatches[0].trainingRuntimeSpec.template.spec.replicatedJobs[0].template"
            ".spec.template.spec.containers[0].env": [{"name": "A", "value": "1"}]
        },
        "spec.runtimePatches",
        "must not have envs for the dataset-initializer, model-initializer, node containers",
    ),
    ("runtime", {f"{NODE}.replicas": 2}, f"{NODE}.replicas", "always must be 1"),
    (
        "runtime",
        {f"{NODE}.template.spec.template.spec.containers[0].name": "main"},
        f"{NODE}.template.spec.template.spec.containers",
        "must contain the required container for the ancestor: trainer",
    ),
    ("jobset", {"metadata.name": "x" * 50}, "spec.replicatedJobs[0].name", "pod names generated"),
    ("jobset", {"metadata.name": "x" * 60}, "spec.replicatedJobs[0].name", "job names generated"),
]


@pytest.mark.parametrize(("which", "changes", "path", "words"), DENIED)
def test_what_the_webhooks_deny(which: str, changes: Object, path: str, words: str) -> None:
    told(webhook_problems(changed(which, changes)), path, words)


def test_the_webhooks_accept_what_only_fails_later() -> None:
    """As measured on a real control plane."""
    assert webhook_problems(changed("job", {"spec.runPolicy.cleanPodPolicy": "Sometimes"})) == []
    assert webhook_problems(changed("trainjob", {"spec.trainer.numNodes": 0})) == []
    assert webhook_problems(changed("jobset", {"metadata.name": "x" * 48})) == []


# --------------------------------------------------------------------------------- what fails later

EMPTY: Object = {"name": "spare", "emptyDir": {}}
INSTANCE = f"{POD}.nodeSelector[node.kubernetes.io/instance-type]"
GPU = f"{BOX}.resources.limits[nvidia.com/gpu]"
GPU_REQUEST = f"{BOX}.resources.requests[nvidia.com/gpu]"

LATER: list[tuple[str, Object, str, str]] = [
    # names
    ("job", {"metadata.name": "x" * 55}, "metadata.name", "64 characters, but may have 63. Type"),
    (
        "job",
        {"metadata.name": "x" * 53, f"{REPLICAS}.Worker.replicas": 101},
        "metadata.name",
        "a name of at most 52",
    ),
    ("elastic", {"metadata.name": "x" * 55}, "metadata.name", "-worker-3"),
    ("trainjob", {"metadata.name": "x" * 50}, "metadata.name", "-node-0-1-abcde"),
    ("job", {"metadata.labels.team": "a b"}, "metadata.labels", "the value of team must be"),
    ("job", {"metadata.labels": {"a/b/c": "x"}}, "metadata.labels", "a key must be a name"),
    ("job", {"metadata.annotations.big": "x" * 2**18}, "metadata.annotations", "Too long"),
    ("job", {f"{POD}.nodeSelector.x": "-"}, f"{POD}.nodeSelector", "the value of x must be"),
    ("job", {f"{POD}.serviceAccountName": "My"}, f"{POD}.serviceAccountName", "name of an object"),
    ("job", {f"{POD}.containers[1]": {"name": "pytorch"}}, f"{POD}.containers", "Duplicate value"),
    ("job", {f"{BOX}.name": "Py"}, f"{BOX}.name", "lower case"),
    ("job", {f"{BOX}.image": "Team/Train:1"}, f"{BOX}.image", "a name in lower case"),
    ("job", {f"{BOX}.image": "team/train :1"}, f"{BOX}.image", "REGISTRY/NAME:TAG"),
    # the environment
    ("job", {f"{BOX}.env[0].name": "A=B"}, f"{BOX}.env[0].name", "without '='"),
    ("job", {f"{BOX}.env[1].name": "HOME"}, f"{BOX}.env[1].name", "only the last one would count"),
    ("job", {f"{BOX}.env[0].name": "WORLD_SIZE"}, f"{BOX}.env[0].name", "set by the operator"),
    ("job", {f"{BOX}.env[0].name": "PET_X"}, f"{BOX}.env[0].name", "set by the operator"),
    ("job", {f"{BOX}.env[7].value": "x"}, f"{BOX}.env[7].valueFrom", "beside a value"),
    (
        "runtime",
        {f"{NODE}.template.spec.template.spec.containers[0].env[0].name": "PET_NNODES"},
        f"{NODE}.template.spec.template.spec.containers[0].env[0].name",
        "set by the operator",
    ),
    ("trainjob", {"spec.trainer.env[1].name": "HOME"}, "spec.trainer.env[1].name", "Duplicate"),
    (
        "job",
        {f"{BOX}.env[0]": {"name": "DB_PASSWORD", "value": "hunter2"}},
        f"{BOX}.env[0].value",
        "launcher.secrets.DB_PASSWORD=NAME/DB_PASSWORD",
    ),
    (
        "trainjob",
        {"spec.trainer.env[0]": {"name": "X", "value": "hf_" + "a" * 34}},
        "spec.trainer.env[0].value",
        "looks like a credential",
    ),
    (
        "job",
        {f"{BOX}.command[4]": "--pip=git+https://me:secret@host/repo"},
        f"{BOX}.command[4]",
        "a password or a token",
    ),
    ("trainjob", {"spec.trainer.image": "Team"}, "spec.trainer.image", "lower case"),
    # volumes
    ("job", {f"{BOX}.volumeMounts[0].name": "jop"}, f"{BOX}.volumeMounts[0].name", "mean 'job'?"),
    (
        "job",
        {f"{BOX}.volumeMounts[1].mountPath": "/hydra-trainer/job"},
        f"{BOX}.volumeMounts[1].mountPath",
        "unique",
    ),
    (
        "job",
        {f"{BOX}.volumeMounts[1].mountPath": "data"},
        f"{BOX}.volumeMounts[1].mountPath",
        "absolute",
    ),
    ("job", {f"{BOX}.volumeMounts[5].subPath": "../x"}, f"{BOX}.volumeMounts[5].subPath", "'..'"),
    ("job", {f"{POD}.volumes[2].name": "job"}, f"{POD}.volumes[2].name", "Duplicate value"),
    ("job", {f"{POD}.volumes[0].emptyDir": {}}, f"{POD}.volumes[0]", "configMap and emptyDir"),
    ("job", {f"{POD}.volumes[2].emptyDir": None}, f"{POD}.volumes[2]", "but has none"),
    (
        "job",
        {f"{POD}.volumes[3].emptyDir.medium": "memory"},
        f"{POD}.volumes[3].emptyDir.medium",
        "Did you mean 'Memory'?",
    ),
    (
        "job",
        {f"{POD}.volumes[3].emptyDir.sizeLimit": "1800Gi"},
        f"{BOX}.volumeMounts[3].name",
        "counts against the container's memory limit of 1800Gi",
    ),
    # resources
    (
        "job",
        {f"{BOX}.resources.limits.memory": ..., f"{BOX}.resources.requests.memory": ...},
        f"{BOX}.resources",
        "HugePages require cpu or memory",
    ),
    (
        "job",
        {f"{BOX}.resources.limits[hugepages-2Mi]": ...},
        f"{BOX}.volumeMounts[4].name",
        "hugepages",
    ),
    ("job", {GPU: ...}, GPU, "cannot be overcommitted"),
    ("job", {GPU: "4"}, GPU_REQUEST, "must be equal to the limit of 4"),
    ("job", {GPU: "7.5", GPU_REQUEST: "7.5"}, GPU, "a whole number"),
    (
        "job",
        {f"{BOX}.resources.requests.memory": "2000Gi"},
        f"{BOX}.resources.requests.memory",
        "at most the limit of 1800Gi",
    ),
    # the instance type
    ("job", {GPU: "16", GPU_REQUEST: "16"}, GPU, "p5.48xlarge has 8 GPUs"),
    (
        "job",
        {INSTANCE: "p4d.24xlarge"},
        f"{BOX}.resources.limits[vpc.amazonaws.com/efa]",
        "has 4 EFA",
    ),
    (
        "job",
        {INSTANCE: "p4d.24xlarge"},
        f"{BOX}.resources.limits.memory",
        "has 1152 GiB of memory",
    ),
    ("job", {INSTANCE: "trn1.32xlarge"}, GPU, "trn1.32xlarge has 0 GPUs"),
    (
        "hyperpod",
        {
            "spec.replicaSpecs[0].template.spec.nodeSelector": {
                "node.kubernetes.io/instance-type": "p5.48xlarge"
            }
        },
        "spec.replicaSpecs[0].template.spec.nodeSelector[node.kubernetes.io/instance-type]",
        "Type ml.p5.48xlarge.",
    ),
    # processes
    ("job", {"spec.nprocPerNode": "9"}, "spec.nprocPerNode", "at most the 8 GPUs"),
    ("job", {"spec.nprocPerNode": "0"}, "spec.nprocPerNode", "at least 1"),
    ("job", {"spec.nprocPerNode": "all"}, "spec.nprocPerNode", "one of auto, cpu, gpu"),
    ("elastic", {"spec.nprocPerNode": "gpu"}, "spec.nprocPerNode", "has no GPUs"),
    ("hyperpod", {"spec.nprocPerNode": "16"}, "spec.nprocPerNode", "at most the 8 GPUs"),
    ("trainjob", {"spec.trainer.numProcPerNode": 0}, "spec.trainer.numProcPerNode", "at least 1"),
    ("trainjob", {"spec.trainer.numNodes": 0}, "spec.trainer.numNodes", "at least 1"),
    ("trainjob", {"spec.trainer": ...}, "spec.trainer", "no pod is told of the others"),
    # policies
    (
        "job",
        {"spec.runPolicy.cleanPodPolicy": "Sometimes"},
        "spec.runPolicy.cleanPodPolicy",
        "supported values: Running, All, None",
    ),
    (
        "hyperpod",
        {"spec.runPolicy.cleanPodPolicy": "Running"},
        "spec.runPolicy.cleanPodPolicy",
        "All, None, OnlyComplete",
    ),
    ("hyperpod", {"spec.replicaSpecs": []}, "spec.replicaSpecs", "has no pods"),
    (
        "job",
        {f"{REPLICAS}.Master.restartPolicy": "Exitcode"},
        f"{REPLICAS}.Master.restartPolicy",
        "Did you mean 'ExitCode'?",
    ),
    (
        "job",
        {"spec.runPolicy.activeDeadlineSeconds": 0},
        "spec.runPolicy.activeDeadlineSeconds",
        "1",
    ),
    (
        "job",
        {f"{POD}.terminationGracePeriodSeconds": -1},
        f"{POD}.terminationGracePeriodSeconds",
        "0",
    ),
    ("job", {f"{BOX}.imagePullPolicy": "always"}, f"{BOX}.imagePullPolicy", "mean 'Always'?"),
    (
        "job",
        {f"{POD}.tolerations[0].effect": "NoScedule"},
        f"{POD}.tolerations[0].effect",
        "NoSchedule",
    ),
    ("job", {f"{POD}.tolerations[0].value": "x"}, f"{POD}.tolerations[0].value", "must be empty"),
    (
        "job",
        {"spec.runPolicy.schedulingPolicy": {"minAvailable": 3}},
        "spec.runPolicy.schedulingPolicy.minAvailable",
        "the job has 2 pods",
    ),
    # who finds whom
    (
        "elastic",
        {"spec.elasticPolicy": ...},
        f"{REPLICAS}.Master",
        "4 workers without a master do not find each other",
    ),
    ("elastic", {"spec.elasticPolicy.rdzvConf": []}, "spec.elasticPolicy.rdzvConf", "crashes"),
    (
        "elastic",
        {"spec.elasticPolicy.rdzvBackend": "c10"},
        "spec.elasticPolicy.rdzvBackend",
        "c10d",
    ),
    ("elastic", {"spec.elasticPolicy.minReplicas": 5}, "spec.elasticPolicy.minReplicas", "is 4"),
    ("elastic", {"spec.elasticPolicy.minReplicas": 0}, "spec.elasticPolicy.minReplicas", "least 1"),
    (
        "elastic",
        {f"{REPLICAS}.Worker.replicas": 1},
        f"{REPLICAS}.Worker.replicas",
        "between minReplicas 2 and maxReplicas 4",
    ),
    # jobs of a runtime
    (
        "runtime",
        {f"{NODE}.template.spec.template.spec.restartPolicy": "OnFailure"},
        f"{NODE}.template.spec.template.spec.restartPolicy",
        "must be Never with a podFailurePolicy",
    ),
    (
        "runtime",
        {f"{NODE}.template.spec.podFailurePolicy.rules[0].onExitCodes.values": [2, 1]},
        f"{NODE}.template.spec.podFailurePolicy.rules[0].onExitCodes.values",
        "in their order",
    ),
    (
        "runtime",
        {f"{NODE}.template.spec.podFailurePolicy.rules[0].onExitCodes.containerName": "x"},
        f"{NODE}.template.spec.podFailurePolicy.rules[0].onExitCodes.containerName",
        "no such container",
    ),
    (
        "runtime",
        {f"{NODE}.template.spec.podFailurePolicy.rules[0].action": "Fail"},
        f"{NODE}.template.spec.podFailurePolicy.rules[0].action",
        "FailJob",
    ),
    ("runtime", {f"{NODE}.template.metadata": {}}, "spec.template.spec.replicatedJobs", "label"),
    # ConfigMaps
    ("config", {"data.big": "x" * 2**20}, "data", "code.delivery=s3"),
    ("config", {"binaryData": {"code": "A" * 1_500_000}}, "data", "a ConfigMap holds 1048576"),
    ("config", {"data": {"a/b": "x"}}, "data[a/b]", "letters, digits"),
    (
        "config",
        {"binaryData": {"config.yaml": "AA=="}},
        "binaryData[config.yaml]",
        "in data as well",
    ),
    ("config", {"metadata.name": "Cfg"}, "metadata.name", "lower case"),
    ("config", {"data.x": "key: AKIA" + "A" * 16}, "data.x", "Put it into a Secret"),
]


@pytest.mark.parametrize(("which", "changes", "path", "words"), LATER)
def test_what_fails_later(which: str, changes: Object, path: str, words: str) -> None:
    assert told(rule_problems(changed(which, changes)), path, words).severity == "error"


WARNED: list[tuple[str, Object, str, str]] = [
    ("hyperpod", {"metadata.name": "x" * 49}, "metadata.name", "StatefulSet"),
    ("job", {INSTANCE: "p5.48xlage"}, INSTANCE, "Did you mean 'p5.48xlarge'?"),
    ("job", {INSTANCE: "p9.metal"}, INSTANCE, "It may be new, or misspelt."),
    ("job", {"spec.nprocPerNode": "4"}, "spec.nprocPerNode", "leaves 4 of 8 GPUs idle"),
    ("job", {"spec.nprocPerNode": "auto"}, "spec.nprocPerNode", "counts as 1 in the WORLD_SIZE"),
    ("job", {f"{POD}.volumes[6]": EMPTY}, f"{POD}.volumes[6].name", "no container mounts"),
    ("job", {f"{BOX}.env[0].name": "a b"}, f"{BOX}.env[0].name", "before Kubernetes 1.34"),
    ("job", {f"{POD}.restartPolicy": "Never"}, f"{POD}.restartPolicy", "Forbidden"),
    ("job", {"spec.runPolicy.backoffLimit": 3}, "spec.runPolicy.backoffLimit", "has no effect"),
    ("job", {f"{POD}.activeDeadlineSeconds": ...}, f"{POD}.activeDeadlineSeconds", "need one too"),
    ("elastic", {"spec.elasticPolicy.metrics": [{"type": "x"}]}, "spec.elasticPolicy.metrics", ""),
    (
        "elastic",
        {f"{REPLICAS}.Master": at(golden("pytorchjob-gpus"), f"{REPLICAS}.Master")},
        "spec.elasticPolicy",
        "Leave the Master out",
    ),
    (
        "trainjob-2.1",
        {"spec.podTemplateOverrides[0].spec.volumes[0]": EMPTY},
        "spec.podTemplateOverrides",
        "no container mounts",
    ),
]


@pytest.mark.parametrize(("which", "changes", "path", "words"), WARNED)
def test_what_may_fail_later(which: str, changes: Object, path: str, words: str) -> None:
    assert told(rule_problems(changed(which, changes)), path, words).severity == "warning"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", 2),
        (3, 3),
        ("500m", 0.5),
        ("1.5Gi", 1.5 * 2**30),
        ("2k", 2000),
        ("5E", 5e18),
        ("1e3", 1000),
        ("-1", -1),
        ("inf", None),
        ("1e999", None),
        ("Gi", None),
        ("", None),
        (True, None),
        ([], None),
    ],
)
def test_quantities(text: Any, number: float | None) -> None:
    assert amount(text) == number


def test_the_names_are_as_long_as_they_may_be() -> None:
    room = {"job": 54, "elastic": 54, "trainjob": 48, "hyperpod": 48}
    for which, length in room.items():
        assert rule_problems(changed(which, {"metadata.name": "x" * length})) == [], which


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "x" * 40,
    "A": "AKIA" + "Q" * 16,
    "B": "-----BEGIN RSA PRIVATE KEY-----",
    "C": "ghp_" + "a" * 36,
    "D": "postgres://me:pass@host/db",
    "E": "sk-" + "a" * 24,
    "F": "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.abc",
    "WANDB_API_KEY": "0123456789abcdef0123",
    "client_secret": "x",
    "GITHUB_TOKEN": "x",
}
NO_SECRETS = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "MAX_TOKENS": "4096",
    "SECRET_NAME": "wandb",
    "PASSWORD_FILE": "/run/secrets/x",
    "API_TOKEN": "$(OTHER)",
    "URL": "https://host:8080/a@b",
    "NCCL_SOCKET_IFNAME": "^lo,docker0",
    "TASK": "task-force-of-many-words-in-a-row",
}


@pytest.mark.parametrize("name", [*SECRETS, *NO_SECRETS])
def test_credentials_belong_into_secrets(name: str) -> None:
    value = (SECRETS | NO_SECRETS)[name]
    found = rule_problems(changed("job", {f"{BOX}.env": [{"name": name, "value": value}]}))
    assert [problem.path for problem in found] == [f"{BOX}.env[0].value"] * (name in SECRETS)
    assert not any(value in problem.message for problem in found if len(value) > 1)


# ------------------------------------------------------------------------------------- Pod Security

UNRESTRICTED: list[tuple[str, Any, str]] = [
    ("hostNetwork", True, "hostNetwork"),
    ("volumes[0]", {"name": "x", "hostPath": {"path": "/"}}, "volumes[0].hostPath"),
    ("securityContext.runAsNonRoot", ..., "containers[0].securityContext.runAsNonRoot"),
    ("securityContext.runAsUser", 0, "containers[0].securityContext.runAsUser"),
    ("securityContext.seccompProfile", ..., "containers[0].securityContext.seccompProfile.type"),
    (
        "securityContext.sysctls",
        [{"name": "kernel.msgmax", "value": "1"}],
        "securityContext.sysctls[0].name",
    ),
    ("containers[0].securityContext.privileged", True, "containers[0].securityContext.privileged"),
    (
        "containers[0].securityContext.allowPrivilegeEscalation",
        ...,
        "containers[0].securityContext.allowPrivilegeEscalation",
    ),
    (
        "containers[0].securityContext.capabilities.add",
        ["IPC_LOCK"],
        "containers[0].securityContext.capabilities.add",
    ),
    (
        "containers[0].securityContext.capabilities.drop",
        [],
        "containers[0].securityContext.capabilities.drop",
    ),
    ("containers[0].ports", [{"hostPort": 1}], "containers[0].ports[0].hostPort"),
]


@pytest.mark.parametrize(("where", "value", "path"), UNRESTRICTED)
def test_what_a_restricted_namespace_refuses(where: str, value: Any, path: str) -> None:
    spec = at(golden("pytorchjob-gpus"), POD)
    assert restricted_problems(spec) == []
    found = restricted_problems(change(spec, where, value))
    told(found, path, "Forbidden by Pod Security restricted")
    assert len(found) == 1


# -------------------------------------------------------------------------------- any input, sweeps


@pytest.mark.parametrize("which", MANIFESTS)
def test_no_manifest_makes_a_check_fail(which: str) -> None:
    """Whatever stands wherever: what is wrong is returned, never raised."""
    for mutant in mutations({"spec": MANIFESTS[which]()}, 150):
        for check in (schema_problems, webhook_problems, rule_problems):
            assert all(isinstance(problem, Problem) for problem in check(mutant["spec"]))


def renamed(manifest: Object, name: str) -> Object:
    """Return another job of the same sweep."""
    text = yaml.dump(manifest, Dumper=yaml.CSafeDumper)
    found: Object = yaml.load(text.replace(manifest["metadata"]["name"], name), yaml.CSafeLoader)
    return found


OF_A_SWEEP = [case[:2] for case in [*LATER[6:40:3], *WARNED] if case[2] != "metadata.name"]


@pytest.mark.parametrize(("which", "changes"), OF_A_SWEEP)
def test_what_is_wrong_with_one_job_of_a_sweep_is_wrong_with_all(
    which: str, changes: Object
) -> None:
    first = changed(which, changes)
    other = renamed(first, "other-0123abcd")
    answers = [rule_problems(manifest) for manifest in (first, other, first, other)]
    assert answers[0] == answers[2] and answers[1] == answers[3]
    assert [problem.path for problem in answers[0]] == [problem.path for problem in answers[1]]
    assert answers[0] != []


def test_jobs_of_a_sweep_are_looked_at_once_and_others_anew() -> None:
    seen = []

    @once
    def check(manifest: Object) -> list[Problem]:
        seen.append(manifest["metadata"]["name"])
        return []

    job = golden("pytorchjob-elastic")
    names = ["run-0000000a", "run-0000000b", "run-0000000c", "longer-0000000d", "short"]
    for name in names:
        check(renamed(job, name))
    check(change(renamed(job, "run-0000000e"), "spec.elasticPolicy.maxReplicas", 5))
    assert seen == ["run-0000000a", "longer-0000000d", "short", "run-0000000e"]


# ----------------------------------------------------------------------------------- instance types


def test_instance_types() -> None:
    assert instance("ml.p5.48xlarge") == instance("p5.48xlarge") == INSTANCES["p5.48xlarge"]
    assert INSTANCES["p5.48xlarge"] == (8, "H100", 32, 192, 2048)
    assert instance("p5.49xlarge") is None
    for name, machine in INSTANCES.items():
        assert re.fullmatch(r"[a-z0-9-]+\.(\d*x?large|metal)", name)
        assert machine.vcpus > 0 and machine.memory_gib >= 2 * machine.vcpus
        assert bool(machine.gpus) == name.startswith(("p", "g"))
