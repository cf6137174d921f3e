"""What fields a manifest has, and of what type: unknown ones and wrong ones, without a cluster.

The kinds of the operators are written down here. Of Kubernetes' own types, what our pods have is
here as well, and all else is looked up in the JSON schemas of the package kubernetes-validate: they
are 1.8 MB, and a dry run should not read them. Sources, compared field by field in a test:

- PyTorchJob: kubeflow/trainer v1.9.4, manifests/base/crds/kubeflow.org_pytorchjobs.yaml
- TrainJob, TrainingRuntime: kubeflow/trainer v2.3.0, and v2.1.0 for podTemplateOverrides
- HyperPodPyTorchJob: aws/sagemaker-hyperpod-cli, training/config (made from its CRD), and
  docs.aws.amazon.com/sagemaker/latest/dg/sagemaker-eks-elastic-training.html
"""

import functools
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra_trainer.problems import NONE, Problem, under

from .experiments import API as KATIB
from .experiments import EXPERIMENT, TRIAL
from .shapes import (
    Check,
    anything,
    boolean,
    either,
    fields,
    filled,
    int_or_text,
    integer,
    items,
    long_text,
    mapping,
    number,
    one_of,
    quantity,
    text,
)
from .sweep import once

__all__ = ["Problem", "schema_problems"]


def schema_problems(manifest: dict[str, Any]) -> list[Problem]:
    """Return unknown fields, missing ones, and values of a wrong type or out of their range.

    Args:
        manifest: one object. Of a kind that is not known here nothing is said.
    """
    metadata = manifest.get("metadata")
    found = METADATA(metadata) if metadata is not None else NONE
    return under("metadata", found) + _rest(manifest)


@once
def _rest(manifest: dict[str, Any]) -> list[Problem]:
    """Return what is wrong besides the metadata."""
    api, kind = str(manifest.get("apiVersion")), str(manifest.get("kind"))
    check = KINDS.get((api, kind)) or _core_kind(api, kind)
    return list(check({**manifest, "metadata": None})) if check else []


INTEGER = integer()
LONG = integer(-(2**63), 2**63 - 1)
NATURAL = integer(0)
TEXTS = mapping(text)
WORDS = items(text)


# ------------------------------------------------------------------ Kubernetes' own, from a package


def kubernetes(name: str, small: Check) -> Check:
    """Check with `small`, and what is not in it with the schema of io.k8s.api.<name>."""
    return either(small, lambda: _definition(f"io.k8s.api.{name}", False))


@functools.cache
def _definitions() -> dict[str, Any]:
    """Return the JSON schemas of the newest Kubernetes that kubernetes-validate has, or none.

    The package is not imported: it would take ten times as long as reading its file.
    """
    spec = find_spec("kubernetes_validate")
    if spec is None or spec.origin is None:
        return {}
    folder = Path(spec.origin).with_name("kubernetes-json-schema")
    found = sorted(folder.glob("v*-local-strict/_definitions.json"), key=_version)
    return dict(json.loads(found[-1].read_text())["$defs"]) if found else {}


def _version(path: Path) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", path.parent.name)]


@functools.cache
def _definition(name: str, own_kind: bool) -> Check | None:
    """Return the check of a definition. Only in Kubernetes' own kinds is a quantity a float too."""
    if name.endswith("resource.Quantity"):
        return _quantity_or_number if own_kind else quantity
    if name.endswith("intstr.IntOrString"):
        return int_or_text
    schema = _definitions().get(name)
    return None if schema is None else _converted(schema, own_kind)


def _quantity_or_number(value: Any) -> list[Problem]:
    return NONE if isinstance(value, float) else quantity(value)


def _converted(schema: dict[str, Any], own_kind: bool) -> Check:
    """Return the check for a JSON schema, of the few words that Kubernetes uses."""
    if "$ref" in schema:
        return _referred(schema["$ref"].rpartition("/")[2], own_kind)
    kinds = schema.get("type")
    kind = next(k for k in kinds if k != "null") if isinstance(kinds, list) else kinds
    if kind == "object" and "properties" in schema:
        known = {key: _converted(part, own_kind) for key, part in schema["properties"].items()}
        return fields(known, tuple(schema.get("required", ())))
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return mapping(_converted(schema["additionalProperties"], own_kind))
    if kind == "array":
        return items(_converted(schema["items"], own_kind))
    if kind == "string" and "enum" in schema:
        return one_of(*schema["enum"])
    plain = {"string": text, "boolean": boolean, "number": number}
    whole = INTEGER if schema.get("format") == "int32" else LONG
    return whole if kind == "integer" else plain.get(str(kind), anything)


def _referred(name: str, own_kind: bool) -> Check:
    """Return a check that looks its definition up when it is first needed: they are recursive."""

    def check(value: Any) -> list[Problem]:
        found = _definition(name, own_kind)
        return found(value) if found else NONE

    return check


@functools.cache
def _core_kind(api: str, kind: str) -> Check | None:
    """Return the check of one of Kubernetes' own kinds, if it is one and the package is there."""
    group, _, version = api.rpartition("/")
    wanted = {"group": group, "version": version, "kind": kind}
    for name, schema in _definitions().items():
        if wanted in schema.get("x-kubernetes-group-version-kind", ()):
            return _definition(name, True)
    return None


# --------------------------------------------------------------------------------- parts of objects

METADATA = fields(
    {
        **dict.fromkeys(("name", "generateName", "namespace", "uid", "resourceVersion"), text),
        **dict.fromkeys(("creationTimestamp", "deletionTimestamp", "selfLink"), text),
        **dict.fromkeys(("generation", "deletionGracePeriodSeconds"), LONG),
        **dict.fromkeys(("labels", "annotations"), TEXTS),
        "finalizers": WORDS,
        "ownerReferences": items(
            fields(
                {
                    **dict.fromkeys(("apiVersion", "kind", "name", "uid"), text),
                    **dict.fromkeys(("controller", "blockOwnerDeletion"), boolean),
                },
                ("apiVersion", "kind", "name", "uid"),
            )
        ),
        "managedFields": items(anything),
    }
)

TEMPLATE_METADATA = fields(
    {
        **dict.fromkeys(("name", "namespace"), text),
        **dict.fromkeys(("labels", "annotations"), TEXTS),
        "finalizers": WORDS,
    }
)
"""Of what is made from a template: the rest of the metadata is taken away by the server."""


def whole(spec: Check, required: tuple[str, ...] = ()) -> Check:
    """Return the check of an object with a spec and a status."""
    known = {"apiVersion": text, "kind": text, "metadata": METADATA, "spec": spec}
    return fields({**known, "status": anything}, required)


# -------------------------------------------------------------------------- what our pods look like

CONFIG_KEY = fields({"name": text, "key": text, "optional": boolean}, ("key",))

ENV_SOURCE = fields(
    {
        "secretKeyRef": CONFIG_KEY,
        "configMapKeyRef": CONFIG_KEY,
        "fieldRef": fields({"apiVersion": text, "fieldPath": text}, ("fieldPath",)),
        "resourceFieldRef": fields(
            {"containerName": text, "resource": text, "divisor": quantity}, ("resource",)
        ),
        "fileKeyRef": fields(
            {**dict.fromkeys(("key", "path", "volumeName"), text), "optional": boolean},
            ("key", "path", "volumeName"),
        ),
    }
)

ENV = fields({"name": text, "value": text, "valueFrom": ENV_SOURCE}, ("name",))

MOUNT = fields(
    {
        **dict.fromkeys(("name", "mountPath", "subPath", "subPathExpr"), text),
        **dict.fromkeys(("mountPropagation", "recursiveReadOnly"), text),
        "readOnly": boolean,
    },
    ("name", "mountPath"),
)

CONFIG_FILES = {
    "name": text,
    "optional": boolean,
    "defaultMode": INTEGER,
    "items": items(fields({"key": text, "path": text, "mode": INTEGER}, ("key", "path"))),
}

VOLUME = kubernetes(
    "core.v1.Volume",
    fields(
        {
            "name": text,
            "configMap": fields(CONFIG_FILES),
            "emptyDir": fields({"medium": text, "sizeLimit": quantity}),
            "hostPath": fields({"path": text, "type": text}, ("path",)),
            "persistentVolumeClaim": fields(
                {"claimName": text, "readOnly": boolean}, ("claimName",)
            ),
        },
        ("name",),
    ),
)

RESOURCES = fields(
    {
        **dict.fromkeys(("limits", "requests"), mapping(quantity)),
        "claims": items(fields({"name": text, "request": text}, ("name",))),
    }
)

PROFILE = fields({"type": text, "localhostProfile": text}, ("type",))

SECURITY = {
    **dict.fromkeys(("runAsUser", "runAsGroup"), LONG),
    "runAsNonRoot": boolean,
    **dict.fromkeys(("seccompProfile", "appArmorProfile"), PROFILE),
    "seLinuxOptions": fields(dict.fromkeys(("level", "role", "type", "user"), text)),
    "windowsOptions": fields(
        {
            **dict.fromkeys(
                ("gmsaCredentialSpec", "gmsaCredentialSpecName", "runAsUserName"), text
            ),
            "hostProcess": boolean,
        }
    ),
}

CONTAINER_SECURITY = fields(
    {
        **SECURITY,
        **dict.fromkeys(
            ("allowPrivilegeEscalation", "privileged", "readOnlyRootFilesystem"), boolean
        ),
        "capabilities": fields({"add": WORDS, "drop": WORDS}),
        "procMount": text,
    }
)

POD_SECURITY = fields(
    {
        **SECURITY,
        **dict.fromkeys(
            ("fsGroupChangePolicy", "seLinuxChangePolicy", "supplementalGroupsPolicy"), text
        ),
        "fsGroup": LONG,
        "supplementalGroups": items(LONG),
        "sysctls": items(fields({"name": text, "value": text}, ("name", "value"))),
    }
)

CONTAINER = fields(
    {
        **dict.fromkeys(("name", "image", "imagePullPolicy", "workingDir"), text),
        **dict.fromkeys(("terminationMessagePath", "terminationMessagePolicy"), text),
        **dict.fromkeys(("command", "args"), WORDS),
        "env": items(ENV),
        "resources": RESOURCES,
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": items(MOUNT),
    },
    ("name",),
)

TOLERATION = fields(
    {**dict.fromkeys(("key", "operator", "value", "effect"), text), "tolerationSeconds": LONG}
)

SELECTOR = fields(
    {
        "matchLabels": TEXTS,
        "matchExpressions": items(
            fields({"key": text, "operator": text, "values": WORDS}, ("key", "operator"))
        ),
    }
)

POD_AFFINITY = fields(
    {
        "requiredDuringSchedulingIgnoredDuringExecution": items(
            fields({"topologyKey": text, "labelSelector": SELECTOR}, ("topologyKey",))
        )
    }
)

AFFINITY = kubernetes("core.v1.Affinity", fields({"podAffinity": POD_AFFINITY}))

REFERENCES = items(fields({"name": text}))

POD_SPEC = fields(
    {
        **dict.fromkeys(("serviceAccountName", "priorityClassName", "restartPolicy"), text),
        **dict.fromkeys(("automountServiceAccountToken", "hostNetwork"), boolean),
        **dict.fromkeys(("terminationGracePeriodSeconds", "activeDeadlineSeconds"), LONG),
        "imagePullSecrets": REFERENCES,
        "nodeSelector": TEXTS,
        "tolerations": items(TOLERATION),
        "affinity": AFFINITY,
        "securityContext": POD_SECURITY,
        "containers": items(CONTAINER),
        "volumes": items(VOLUME),
    },
    ("containers",),
)

TEMPLATE = fields(
    {"metadata": TEMPLATE_METADATA, "spec": kubernetes("core.v1.PodSpec", POD_SPEC)},
)

# ----------------------------------------------------------------------- kubeflow.org/v1 PyTorchJob

METRIC = kubernetes("autoscaling.v2.MetricSpec", fields({"type": text}, ("type",)))

ELASTIC_POLICY = fields(
    {
        **dict.fromkeys(("minReplicas", "maxReplicas", "maxRestarts", "nProcPerNode"), INTEGER),
        **dict.fromkeys(("rdzvBackend", "rdzvHost", "rdzvId"), text),
        "rdzvPort": INTEGER,
        "rdzvConf": items(fields({"key": text, "value": text})),
        "standalone": boolean,
        "metrics": items(METRIC),
    }
)

RUN_POLICY = fields(
    {
        **dict.fromkeys(("cleanPodPolicy", "managedBy"), text),
        **dict.fromkeys(("backoffLimit", "ttlSecondsAfterFinished"), INTEGER),
        "activeDeadlineSeconds": LONG,
        "suspend": boolean,
        "schedulingPolicy": fields(
            {
                **dict.fromkeys(("minAvailable", "scheduleTimeoutSeconds"), INTEGER),
                **dict.fromkeys(("queue", "priorityClass"), text),
                "minResources": mapping(quantity),
            }
        ),
    }
)

PYTORCHJOB = fields(
    {
        "nprocPerNode": text,
        "runPolicy": RUN_POLICY,
        "elasticPolicy": ELASTIC_POLICY,
        "pytorchReplicaSpecs": mapping(
            fields({"replicas": INTEGER, "restartPolicy": text, "template": TEMPLATE})
        ),
    },
    ("pytorchReplicaSpecs",),
)

# ---------------------------------------------------- sagemaker.amazonaws.com/v1 HyperPodPyTorchJob

LOG_RULE = fields(
    {
        **dict.fromkeys(("name", "logPattern", "stopPattern", "operator"), text),
        **dict.fromkeys(
            ("expectedRecurringFrequencyInSeconds", "expectedStartCutOffInSeconds"), INTEGER
        ),
        **dict.fromkeys(("metricEvaluationDataPoints", "metricThreshold"), INTEGER),
    },
    ("name", "logPattern"),
)

HYPERPOD_RUN_POLICY = fields(
    {
        **dict.fromkeys(("activeDeadlineSeconds", "faultDeadlineSeconds"), LONG),
        "startupDeadlineSeconds": LONG,
        **dict.fromkeys(("jobMaxRetryCount", "ttlSecondsAfterFinished"), INTEGER),
        "cleanPodPolicy": text,
        "suspend": boolean,
        "logMonitoringConfiguration": items(LOG_RULE),
        "restartPolicy": fields(
            dict.fromkeys(
                ("evalPeriodSeconds", "maxFullJobRestarts", "numRestartBeforeFullJobRestart"),
                INTEGER,
            ),
            ("evalPeriodSeconds",),
        ),
    }
)

HYPERPOD = fields(
    {
        "nprocPerNode": text,
        "runPolicy": HYPERPOD_RUN_POLICY,
        "replicaSpecs": items(
            fields(
                {
                    "name": text,
                    **dict.fromkeys(("replicas", "spares", "maxReplicas"), INTEGER),
                    "template": TEMPLATE,
                },
                ("name",),
            )
        ),
        "elasticPolicy": fields(
            {
                **dict.fromkeys(("minReplicas", "maxReplicas", "replicaIncrementStep"), INTEGER),
                "replicaDiscreteValues": items(INTEGER),
                **dict.fromkeys(
                    ("gracefulShutdownTimeoutInSeconds", "scalingTimeoutInSeconds"), INTEGER
                ),
                **dict.fromkeys(
                    ("faultyScaleDownTimeoutInSeconds", "scaleUpSnoozeTimeInSeconds"), INTEGER
                ),
            }
        ),
    }
)

# ------------------------------------------------------------------ jobset.x-k8s.io/v1alpha2 JobSet

POLICY_RULE = fields(
    {
        "action": text,
        "onExitCodes": fields(
            {"containerName": text, "operator": text, "values": items(INTEGER)},
            ("operator", "values"),
        ),
        "onPodConditions": items(fields({"type": text, "status": text}, ("type",))),
    },
    ("action",),
)

BATCH_JOB = fields(
    {
        **dict.fromkeys(("parallelism", "completions", "backoffLimit"), INTEGER),
        **dict.fromkeys(("backoffLimitPerIndex", "maxFailedIndexes"), INTEGER),
        "ttlSecondsAfterFinished": INTEGER,
        "activeDeadlineSeconds": LONG,
        **dict.fromkeys(("completionMode", "managedBy", "podReplacementPolicy"), text),
        **dict.fromkeys(("manualSelector", "suspend"), boolean),
        "selector": SELECTOR,
        "podFailurePolicy": fields({"rules": items(POLICY_RULE)}, ("rules",)),
        "successPolicy": fields(
            {"rules": items(fields({"succeededCount": INTEGER, "succeededIndexes": text}))},
            ("rules",),
        ),
        "template": TEMPLATE,
    },
    ("template",),
)

REPLICATED_JOB = fields(
    {
        **dict.fromkeys(("name", "groupName"), text),
        "replicas": INTEGER,
        "dependsOn": items(
            fields({"name": text, "status": one_of("Ready", "Complete")}, ("name", "status")), 5
        ),
        "template": fields({"metadata": TEMPLATE_METADATA, "spec": BATCH_JOB}),
    },
    ("name", "template"),
)

FAILURE_RULE = fields(
    {
        "name": text,
        "action": one_of(
            "FailJobSet",
            "RestartJobSet",
            "RestartJobSetAndIgnoreMaxRestarts",
            "RestartJob",
            "RestartJobAndIgnoreMaxRestarts",
        ),
        **dict.fromkeys(("onJobFailureReasons", "onJobFailureMessagePatterns"), WORDS),
        "targetReplicatedJobs": WORDS,
    },
    ("name", "action"),
)

CLAIM = kubernetes("core.v1.PersistentVolumeClaim", fields({}))

JOBSET = fields(
    {
        "replicatedJobs": items(REPLICATED_JOB),
        "suspend": boolean,
        "managedBy": text,
        "ttlSecondsAfterFinished": NATURAL,
        "coordinator": fields(
            {"replicatedJob": text, "jobIndex": LONG, "podIndex": LONG}, ("replicatedJob",)
        ),
        "network": fields(
            {
                **dict.fromkeys(("enableDNSHostnames", "publishNotReadyAddresses"), boolean),
                "subdomain": text,
            }
        ),
        "startupPolicy": fields(
            {"startupPolicyOrder": one_of("AnyOrder", "InOrder")}, ("startupPolicyOrder",)
        ),
        "successPolicy": fields(
            {"operator": one_of("All", "Any"), "targetReplicatedJobs": WORDS}, ("operator",)
        ),
        "failurePolicy": fields(
            {
                "maxRestarts": INTEGER,
                "restartStrategy": one_of("Recreate", "BlockingRecreate", "InPlaceRestart"),
                "rules": items(FAILURE_RULE),
            }
        ),
        "volumeClaimPolicies": items(
            fields(
                {
                    "templates": items(CLAIM, 50),
                    "retentionPolicy": fields({"whenDeleted": one_of("Delete", "Retain")}),
                }
            ),
            50,
        ),
    }
)

# ---------------------------------------------------- trainer.kubeflow.org/v1alpha1 TrainingRuntime

ENV_TARGET = fields(
    {"jobName": long_text(253, 1), "containerNames": items(long_text(63), 8, 1)},
    ("jobName", "containerNames"),
)

RUNTIME = filled(
    fields(
        {
            "mlPolicy": fields(
                {
                    "numNodes": INTEGER,
                    "torch": fields({"envInjection": fields({"targets": items(ENV_TARGET, 16)})}),
                    "mpi": fields(
                        {
                            "mpiImplementation": one_of("OpenMPI", ""),
                            "numProcPerNode": INTEGER,
                            "runLauncherAsNode": boolean,
                            "sshAuthMountPath": long_text(4096),
                        }
                    ),
                    "flux": fields({"numProcPerNode": INTEGER}),
                    **dict.fromkeys(("jax", "xgboost"), fields({})),
                }
            ),
            "podGroupPolicy": fields(
                {
                    "coscheduling": fields({"scheduleTimeoutSeconds": INTEGER}),
                    "volcano": fields(
                        {
                            "networkTopology": fields(
                                {"highestTierAllowed": LONG, "mode": one_of("hard", "soft")}
                            )
                        }
                    ),
                }
            ),
            "template": filled(fields({"metadata": TEMPLATE_METADATA, "spec": JOBSET})),
        }
    )
)

# ----------------------------------------------------------- trainer.kubeflow.org/v1alpha1 TrainJob

MANY = 128  # of containers, environment variables, volumes ...

INITIALIZER = fields(
    {
        "storageUri": long_text(2048),
        "env": items(ENV, MANY),
        "secretRef": fields({"name": text}),
    }
)


def _trainer(processes: Check) -> Check:
    return fields(
        {
            "image": long_text(500),
            **dict.fromkeys(("command", "args"), items(long_text(2**20), MANY)),
            "env": items(ENV, MANY),
            "numNodes": INTEGER,
            "numProcPerNode": processes,
            "resourcesPerNode": RESOURCES,
        }
    )


def _pod_patch(securities: bool) -> dict[str, Check]:
    """Return what of a pod can be patched: security contexts and the grace period since 2.2."""
    container = {
        "name": long_text(253, 1),
        "env": items(ENV, MANY),
        "volumeMounts": items(MOUNT, MANY),
        **({"securityContext": CONTAINER_SECURITY} if securities else {}),
    }
    later = {
        "securityContext": POD_SECURITY,
        "terminationGracePeriodSeconds": integer(0, 2**63 - 1),
    }
    return {
        "serviceAccountName": long_text(253),
        "nodeSelector": TEXTS,
        "affinity": AFFINITY,
        "tolerations": items(TOLERATION, MANY),
        "volumes": items(VOLUME, MANY),
        **dict.fromkeys(("containers", "initContainers"), items(fields(container, ("name",)), 64)),
        "schedulingGates": items(fields({"name": text}, ("name",)), 16),
        "imagePullSecrets": items(fields({"name": text}), 64),
        **(later if securities else {}),
    }


TARGETS = {"targetJobs": items(fields({"name": long_text(253, 1)}, ("name",)))}

PATCHED_JOB = fields(
    {
        "name": long_text(253, 1),
        "template": fields(
            {
                "metadata": TEMPLATE_METADATA,
                "spec": fields(
                    {
                        "template": fields(
                            {"metadata": TEMPLATE_METADATA, "spec": fields(_pod_patch(True))}
                        )
                    }
                ),
            }
        ),
    },
    ("name",),
)

RUNTIME_PATCH = fields(
    {
        "manager": long_text(253, 1),
        "time": text,
        "trainingRuntimeSpec": fields(
            {
                "template": fields(
                    {
                        "metadata": TEMPLATE_METADATA,
                        "spec": fields({"replicatedJobs": items(PATCHED_JOB, 100)}),
                    }
                )
            }
        ),
    },
    ("manager",),
)

TRAINJOB_COMMON: dict[str, Check] = {
    "runtimeRef": fields(
        {**dict.fromkeys(("apiGroup", "kind"), long_text(253)), "name": long_text(253, 1)},
        ("name",),
    ),
    "initializer": fields(dict.fromkeys(("dataset", "model"), INITIALIZER)),
    "suspend": boolean,
    "managedBy": long_text(253),
}

TRAINJOB = fields(
    {
        **TRAINJOB_COMMON,
        "trainer": _trainer(INTEGER),
        "activeDeadlineSeconds": integer(1, 2**63 - 1),
        "runtimePatches": items(RUNTIME_PATCH, 16),
    },
    ("runtimeRef",),
)

TRAINJOB_2_1 = fields(
    {
        **TRAINJOB_COMMON,
        "trainer": _trainer(int_or_text),
        **dict.fromkeys(("labels", "annotations"), TEXTS),
        "podTemplateOverrides": items(
            fields(
                {**TARGETS, "metadata": TEMPLATE_METADATA, "spec": fields(_pod_patch(False))},
                ("targetJobs",),
            )
        ),
    },
    ("runtimeRef",),
)

TRAINJOB_2_0 = fields(
    {
        **TRAINJOB_COMMON,
        "trainer": _trainer(int_or_text),
        **dict.fromkeys(("labels", "annotations"), TEXTS),
        "podSpecOverrides": items(fields({**TARGETS, **_pod_patch(False)}, ("targetJobs",))),
    },
    ("runtimeRef",),
)

OVERRIDES: dict[str, Check] = {
    "podTemplateOverrides": TRAINJOB_2_1,
    "podSpecOverrides": TRAINJOB_2_0,
}


def _trainjob(spec: Any) -> list[Problem]:
    """Check the spec of a TrainJob as the version of the trainer does that has its fields."""
    given = spec if isinstance(spec, dict) else {}
    return next((OVERRIDES[key] for key in OVERRIDES if key in given), TRAINJOB)(spec)


# -------------------------------------------------------------------------------------------- kinds

CONFIG_MAP = fields(
    {
        **dict.fromkeys(("apiVersion", "kind"), text),
        "metadata": METADATA,
        **dict.fromkeys(("data", "binaryData"), TEXTS),
        "immutable": boolean,
    }
)

TRAINER = "trainer.kubeflow.org/v1alpha1"

KINDS: dict[tuple[str, str], Check] = {
    ("v1", "ConfigMap"): CONFIG_MAP,
    ("kubeflow.org/v1", "PyTorchJob"): whole(PYTORCHJOB),
    (TRAINER, "TrainJob"): whole(_trainjob),
    (TRAINER, "TrainingRuntime"): whole(RUNTIME),
    (TRAINER, "ClusterTrainingRuntime"): whole(RUNTIME),
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): whole(JOBSET),
    ("sagemaker.amazonaws.com/v1", "HyperPodPyTorchJob"): whole(HYPERPOD),
    (KATIB, "Experiment"): whole(EXPERIMENT),
    (KATIB, "Trial"): whole(TRIAL),
}
