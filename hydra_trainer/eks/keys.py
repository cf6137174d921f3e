"""Which key of the configuration a field of a manifest comes from."""

import re

POD = r"template\.(metadata|spec)\b|\.runtimePatches\b|\.podTemplateOverrides\b"
LIMITS = r"\b(resources|resourcesPerNode)\b.*"

KEYS = (
    (r"^metadata\.name$", "name"),
    (r"\bnodeSelector\[(node|beta)\.kubernetes\.io/instance-type\]$", "resources.instance_type"),
    (r"\bnodeSelector\b", "launcher.node_selector"),
    (r"\btolerations\b", "launcher.tolerations"),
    (r"\baffinity\b", "launcher.together"),
    (r"\btemplate\.metadata\.labels\b", "launcher.labels"),
    (r"\btemplate\.metadata\.annotations\b", "launcher.annotations"),
    (r"\bimagePullSecrets\b", "launcher.image_pull_secrets"),
    (r"\bimagePullPolicy$", "launcher.image_pull_policy"),
    (r"\bimage$", "launcher.image"),
    (r"\bserviceAccountName$", "launcher.service_account"),
    (r"\bpriorityClassName$", "launcher.priority_class"),
    (r"\bschedulingPolicy\b", "launcher.scheduling_policy"),
    (r"\benv\[\d+\]", "launcher.env"),
    (rf"{LIMITS}\bmemory\b", "resources.memory_per_node"),
    (rf"{LIMITS}\bcpu\b", "resources.cpus_per_node"),
    (rf"{LIMITS}\bhugepages-2Mi\b", "launcher.hugepages"),
    (rf"{LIMITS}/efa\b", "launcher.efa"),
    (rf"{LIMITS}/gpu\b", "resources.gpus_per_node"),
    (r"\bemptyDir\.sizeLimit$", "launcher.shm_size"),
    (r"\bactiveDeadlineSeconds$", "launcher.active_deadline"),
    (r"\bterminationGracePeriodSeconds$", "launcher.grace"),
    (r"\bttlSecondsAfterFinished$", "launcher.ttl"),
    (r"\b(nprocPerNode|numProcPerNode)$", "resources.processes_per_node"),
    (r"\bminReplicas$", "resources.min_nodes"),
    (r"\b(replicas|maxReplicas|numNodes)$", "resources.nodes"),
    (r"\bmaxRestarts$", "launcher.max_restarts"),
    (r"\b(jobMaxRetryCount|backoffLimit)$", "launcher.attempts"),
    (r"\bpersistentVolumeClaim\b|\bvolumeMounts\b|\bhostPath\b", "storage.mounts"),
    (r"\brunAsUser$", "launcher.run_as_user"),
    (r"\bfsGroup$", "launcher.fs_group"),
    (r"\bruntimeRef\b", "launcher.runtime"),
    (r"^binaryData\b", "code.delivery"),
    (POD, "launcher.pod_overrides"),
)
"""What is found in a path, and the key: the first that fits."""


def key_of(path: str) -> str | None:
    """Return the key of the configuration to change, for the path of a Problem."""
    return next((key for pattern, key in KEYS if re.search(pattern, path)), None)


def with_key(path: str, message: str) -> str:
    """Return a message that names the key to change, if it does not name one yet."""
    key = key_of(path)
    if key is None or key in message or re.search(r"\b(launcher|resources|code)\.\w", message):
        return message
    return f"{message.rstrip('.')}. It comes from {key}."
