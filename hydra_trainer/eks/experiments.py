"""Katib's Experiment and Trial: their fields, and what Katib's webhook denies of an Experiment.

From kubeflow/katib: pkg/apis/controller/{common,experiments,trials}/v1beta1 for the fields, and
pkg/webhook/v1beta1/experiment/validator/validator.go for the rest. The CustomResourceDefinitions
themselves take any field, so a misspelt one would only be missing: here it is found.
"""

import re
from collections.abc import Iterator
from typing import Any

from hydra_trainer.problems import Problem, shown
from hydra_trainer.trees import dig, objects

from .shapes import Check, anything, boolean, fields, integer, items, mapping, number, one_of, text

Object = dict[str, Any]

API = "kubeflow.org/v1beta1"

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
NAME_LENGTH = 40
"""Characters of an Experiment's name: that of the Deployment for its suggestions is longer."""

DELIMITED = re.compile(r"\$\{trialParameters\.([^}]+)\}")
META = re.compile(r"\$\{trialSpec\.(Name|Namespace|Kind|APIVersion|(Annotations|Labels)\[.+\])\}")
GROUPS = re.compile(r".*\(.*\).*\(.*\).*")

NATURAL = integer(0)
SETTINGS = items(fields({"name": text, "value": text}))
ALGORITHM = fields({"algorithmName": text, "algorithmSettings": SETTINGS}, ("algorithmName",))

OBJECTIVE = fields(
    {
        "type": one_of("minimize", "maximize"),
        "goal": number,
        "objectiveMetricName": text,
        "additionalMetricNames": items(text),
        "metricStrategies": items(
            fields({"name": text, "value": one_of("min", "max", "latest")}, ("name", "value"))
        ),
    },
    ("type", "objectiveMetricName"),
)

SPACE = fields(
    {
        "min": text,
        "max": text,
        "step": text,
        "list": items(text),
        "distribution": one_of("uniform", "logUniform", "normal", "logNormal"),
    }
)
PARAMETER = fields(
    {
        "name": text,
        "parameterType": one_of("double", "int", "discrete", "categorical"),
        "feasibleSpace": SPACE,
    },
    ("name", "parameterType", "feasibleSpace"),
)

COLLECTOR = fields(
    {
        "collector": fields(
            {
                "kind": one_of(
                    "StdOut", "File", "TensorFlowEvent", "PrometheusMetric", "Custom", "Push"
                ),
                "customCollector": anything,
            },
            ("kind",),
        ),
        "source": fields(
            {
                "httpGet": anything,
                "fileSystemPath": fields({"path": text, "kind": text, "format": text}),
                "filter": fields({"metricsFormat": items(text)}),
            }
        ),
    }
)

TEMPLATE = fields(
    {
        "retain": boolean,
        "trialSpec": anything,
        "configMap": fields(
            {"configMapName": text, "configMapNamespace": text, "templatePath": text}
        ),
        "trialParameters": items(
            fields({"name": text, "description": text, "reference": text}, ("name", "reference"))
        ),
        "primaryPodLabels": mapping(text),
        "primaryContainerName": text,
        "successCondition": text,
        "failureCondition": text,
    },
    ("primaryContainerName", "successCondition", "failureCondition", "trialParameters"),
)

EXPERIMENT: Check = fields(
    {
        "parameters": items(PARAMETER),
        "objective": OBJECTIVE,
        "algorithm": ALGORITHM,
        "earlyStopping": ALGORITHM,
        "trialTemplate": TEMPLATE,
        "parallelTrialCount": integer(1),
        "maxTrialCount": integer(1),
        "maxFailedTrialCount": NATURAL,
        "metricsCollectorSpec": COLLECTOR,
        "nasConfig": anything,
        "resumePolicy": one_of("Never", "LongRunning", "FromVolume"),
    },
    ("objective", "algorithm", "trialTemplate", "parameters"),
)

TRIAL: Check = fields(
    {
        "objective": OBJECTIVE,
        "parameterAssignments": items(fields({"name": text, "value": text})),
        "earlyStoppingRules": anything,
        "runSpec": anything,
        "retainRun": boolean,
        "metricsCollector": COLLECTOR,
        "primaryPodLabels": mapping(text),
        "primaryContainerName": text,
        "successCondition": text,
        "failureCondition": text,
        "labels": mapping(text),
    }
)


def denied(manifest: Object, spec: Object) -> Iterator[Problem]:
    """Yield what Katib's webhook says no to."""
    name = dig(manifest, "metadata").get("name")
    if isinstance(name, str) and not (NAME.fullmatch(name) and len(name) <= NAME_LENGTH):
        words = "lower case letters, digits and '-', beginning with a letter, 40 at most"
        yield Problem("metadata.name", f"Invalid value: {shown(name)}: must be {words}")
    yield from _counts(spec)
    objective = dig(spec, "objective")
    if objective.get("objectiveMetricName") in (objective.get("additionalMetricNames") or ()):
        text = "Invalid value: must not contain spec.objective.objectiveMetricName"
        yield Problem("spec.objective.additionalMetricNames", text)
    if not objects(spec, "parameters"):
        yield Problem("spec.parameters", "Required value")
    for index, one in enumerate(objects(spec, "parameters")):
        yield from _parameter(f"spec.parameters[{index}]", one)
    yield from _template(spec)
    source = dig(spec, "metricsCollectorSpec", "source", "filter")
    for index, pattern in enumerate(source.get("metricsFormat") or ()):
        if isinstance(pattern, str) and not GROUPS.match(pattern):
            path = f"spec.metricsCollectorSpec.source.filter.metricsFormat[{index}]"
            yield Problem(path, f"Invalid value: {shown(pattern)}: needs two groups: name, value")


def _counts(spec: Object) -> Iterator[Problem]:
    most = spec.get("maxTrialCount")
    for key in ("parallelTrialCount", "maxFailedTrialCount"):
        count = spec.get(key)
        if isinstance(count, int) and isinstance(most, int) and count > most:
            text = f"Invalid value: {count}: must be at most spec.maxTrialCount, {most}"
            yield Problem(f"spec.{key}", text)


def _parameter(path: str, one: Object) -> Iterator[Problem]:
    space, kind = dig(one, "feasibleSpace"), one.get("parameterType")
    if kind in ("double", "int"):
        if space.get("list"):
            yield Problem(f"{path}.feasibleSpace.list", f"Invalid value: not for a {kind}")
        for key in ("min", "max"):
            if not space.get(key):
                yield Problem(f"{path}.feasibleSpace.{key}", "Required value")
    elif {"min", "max", "step"} & space.keys():
        text = f"Invalid value: only a list is for a {kind}"
        yield Problem(f"{path}.feasibleSpace", text)


def _template(spec: Object) -> Iterator[Problem]:
    path, template = "spec.trialTemplate", dig(spec, "trialTemplate")
    if ("trialSpec" in template) == ("configMap" in template):
        yield Problem(path, "Required value: one of trialSpec and configMap")
    run = dig(template, "trialSpec")
    if not run:
        return
    used = set(DELIMITED.findall(str(run)))
    known = {one.get("name") for one in objects(spec, "parameters")}
    names: list[Any] = []
    for index, one in enumerate(objects(template, "trialParameters")):
        where, name = f"{path}.trialParameters[{index}]", one.get("name")
        reference = str(one.get("reference"))
        if name in names:
            yield Problem(f"{where}.name", f"Duplicate value: {shown(name)}")
        names.append(name)
        if reference not in known and not META.fullmatch(reference):
            text = f"Invalid value: {shown(reference)}: is none of spec.parameters"
            yield Problem(f"{where}.reference", text)
        if name not in used:
            text = f"Invalid value: {shown(name)}: is not used in trialSpec"
            yield Problem(f"{where}.name", text)
    for name in sorted(used - set(names)):
        text = f"Invalid value: ${{trialParameters.{name}}} is none of trialParameters"
        yield Problem(path, text)
    for key in ("name", "namespace"):
        if dig(run, "metadata").get(key):
            text = "Invalid value: must be left out: each Trial has its own"
            yield Problem(f"{path}.trialSpec.metadata.{key}", text)
    for key in ("apiVersion", "kind"):
        if not run.get(key):
            yield Problem(f"{path}.trialSpec.{key}", "Required value")
