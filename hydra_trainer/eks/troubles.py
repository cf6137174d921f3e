"""What goes wrong with a job on a cluster: how it is known, and what to type against it.

One table. Rows are looked up by the place where the trouble shows, then by the words that the
cluster, or the error, used for it.
"""

import re
from typing import NamedTuple


class Trouble(NamedTuple):
    """One class of trouble.

    `words` is a regular expression; its named groups fill `advice`, and so does what the caller
    knows of the job: namespace, claim, mount, and image, memory, gpus, nodes as they are now.
    """

    reason: str
    words: str
    advice: str


# The API server refuses to create the pods: events of the job.
REFUSED = (
    Trouble(
        "QuotaExceeded",
        r"exceeded quota: (?P<quota>[\w.-]+)",
        "Wait until other jobs end, or ask for less: resources.nodes, resources.gpus_per_node, "
        "resources.memory_per_node. See kubectl -n {namespace} describe quota {quota}.",
    ),
    Trouble(
        "QuotaNeedsRequests",
        r"failed quota: (?P<quota>[\w.-]+): must specify (?P<missing>[\w., :/-]+)",
        "Quota {quota} wants every pod to say what it needs. Type resources.cpus_per_node=N "
        "resources.memory_per_node=NGi.",
    ),
    Trouble(
        "LimitRange",
        r"(maximum|minimum) [\w./-]+ usage per (Container|Pod) is (?P<limit>\w+)",
        "The namespace has a LimitRange. Type resources.cpus_per_node and "
        "resources.memory_per_node within it. See kubectl -n {namespace} describe limits.",
    ),
    Trouble(
        "PodSecurity",
        r'violates PodSecurity "(?P<level>[\w-]+)',
        "The namespace enforces the Pod Security level {level}. Type launcher.restricted=true "
        "launcher.ipc_lock=false, use a claim where storage.mounts has a host path, or type "
        "launcher.namespace=ANOTHER. An init container init-pytorch is the "
        "operator's: its flag --pytorch-init-container-template-file gives it a security context.",
    ),
    Trouble(
        "ServiceAccountNotFound",
        r'serviceaccount "(?P<account>[^"]+)" not found',
        "Type launcher.service_account=ONE_THAT_EXISTS, or "
        "kubectl -n {namespace} create serviceaccount {account}.",
    ),
    Trouble(
        "PriorityClassNotFound",
        r"no PriorityClass with name (?P<priority>[\w.-]+) was found",
        "Type launcher.priority_class=ONE_THAT_EXISTS. See kubectl get priorityclasses.",
    ),
    Trouble(
        "AdmissionRefused",
        r"",
        "The cluster's own rules refuse the pods; the words above are theirs. launcher.labels, "
        "launcher.annotations and launcher.pod_overrides change what is sent.",
    ),
)

# The scheduler finds no node: the pod's PodScheduled condition.
UNSCHEDULABLE = (
    Trouble(
        "ClaimNotFound",
        r'persistentvolumeclaim "(?P<claim>[^"]+)" not found',
        "Type storage.mounts.{mount}.claim=ONE_THAT_EXISTS, or create {claim}. See "
        "kubectl -n {namespace} get pvc.",
    ),
    Trouble(
        "ClaimUnbound",
        r"unbound immediate PersistentVolumeClaims|bound to non-existent persistentvolume",
        "A claim has no volume yet: see kubectl -n {namespace} describe pvc {claim}. Its "
        "StorageClass may be missing, or the CSI driver. Another: storage.mounts.{mount}.claim.",
    ),
    Trouble(
        "Unschedulable",
        r"volume node affinity conflict",
        "The volume lies in another zone than the free nodes. Choose the volume's zone with "
        "launcher.node_selector, or a claim that every zone reaches (EFS): "
        "storage.mounts.{mount}.claim.",
    ),
    Trouble(
        "Unschedulable",
        r"Insufficient (?P<gpu>(nvidia|amd|aws\.amazon)\.com/\w+)",
        "No node has that many {gpu} free. Type a smaller resources.gpus_per_node{gpus} or "
        "resources.nodes{nodes}, another resources.instance_type, or wait. When nodes never have "
        "any, the device plugin is missing.",
    ),
    Trouble(
        "Unschedulable",
        r"Insufficient (?P<device>vpc\.amazonaws\.com/efa|hugepages-\w+)",
        "No node offers {device}. Type launcher.efa=0, or a resources.instance_type that has EFA.",
    ),
    Trouble(
        "Unschedulable",
        r"Insufficient memory",
        "Type a smaller resources.memory_per_node{memory}, or a larger resources.instance_type.",
    ),
    Trouble(
        "Unschedulable",
        r"Insufficient cpu",
        "Type a smaller resources.cpus_per_node, or a larger resources.instance_type.",
    ),
    Trouble(
        "Unschedulable",
        r"untolerated taint(\(s\))? \{(?P<taint>[^:}]+)",
        "The nodes are reserved by the taint {taint}. Add it to launcher.tolerations when they "
        "are meant for this job.",
    ),
    Trouble(
        "Unschedulable",
        r"node affinity/selector|no instance type",
        "No node has the labels that were asked for. See resources.instance_type, "
        "launcher.node_selector and launcher.spot; kubectl get nodes --show-labels.",
    ),
    Trouble(
        "Unschedulable",
        r"",
        "See resources.instance_type, launcher.node_selector and resources; kubectl get nodes.",
    ),
)

# The image does not come: a container that waits.
IMAGE = (
    Trouble(
        "InitImagePull",
        r"\balpine:3\.10\b",
        "This is the image of init-pytorch, which the training operator puts before workers and "
        "takes from Docker Hub. Its flag --pytorch-init-container-image names another copy; jobs "
        "with resources.min_nodes do without it.",
    ),
    Trouble(
        "ImageNameInvalid",
        r"InvalidImageName|couldn't parse image|invalid reference format",
        "Type launcher.image=REGISTRY/REPOSITORY:TAG{image}.",
    ),
    Trouble(
        "ImagePullDenied",
        r"unauthorized|denied|no basic auth|403 Forbidden|authentication required|"
        r"authorization failed",
        "The registry does not let the node in. Type launcher.image_pull_secrets=[NAME]; on ECR "
        "the node's role needs AmazonEC2ContainerRegistryReadOnly. A wrong name looks the same: "
        "launcher.image{image}.",
    ),
    Trouble(
        "ImageNotFound",
        r"not found|manifest unknown|does not exist|no such image",
        "Type launcher.image=ONE_THAT_EXISTS{image}. See the registry for its tags.",
    ),
    Trouble(
        "ImagePullLimited",
        r"toomanyrequests|rate limit",
        "Docker Hub limits pulls. Copy the image to ECR and type launcher.image=THAT{image}, or "
        "give credentials: launcher.image_pull_secrets=[NAME].",
    ),
    Trouble(
        "ImagePull",
        r"",
        "See launcher.image{image} and launcher.image_pull_secrets; a node without a way to the "
        "registry (NAT, VPC endpoint) looks like this too.",
    ),
)

# Everything is there but the container cannot be made: waiting reasons, FailedMount.
CONTAINER = (
    Trouble(
        "SecretNotFound",
        r'secret "(?P<secret>[^"]+)" not found|references non-existent secret key: (?P<key>\S+)',
        "Type launcher.secrets.VARIABLE=SECRET/KEY with a secret that exists, or create it: "
        "kubectl -n {namespace} create secret generic {secret} --from-literal=KEY=VALUE.",
    ),
    Trouble(
        "SecretKeyNotFound",
        r"couldn't find key (?P<key>\S+) in Secret (?P<secret>\S+)",
        "Secret {secret} has no key {key}: correct launcher.secrets, or the secret.",
    ),
    Trouble(
        "ConfigMapNotFound",
        r'configmap "(?P<configmap>[^"]+)" not found',
        "What belongs to the job was deleted, or is not there yet. Cancel the job and run the "
        "same command again.",
    ),
    Trouble(
        "RunsAsRoot",
        r"runAsNonRoot|run as root|non-numeric user",
        "The image starts as root, which the job forbids. Type "
        "launcher.run_as_user=1000, or use an image whose USER is a number above 0.",
    ),
    Trouble(
        "ProgramNotFound",
        r'exec: "(?P<program>[^"]+)": (executable file not found|stat )',
        "The image has no {program}. Type launcher.image=ONE_WITH_PYTHON{image}.",
    ),
    Trouble(
        "OutOfAddresses",
        r"failed to assign an IP address",
        "The subnet has no free addresses: wait, or ask the cluster's administrator for "
        "prefix delegation in the VPC CNI.",
    ),
    Trouble(
        "MountFailed",
        r"MountVolume|mount volumes|AttachVolume|mount failed",
        "The storage does not answer. For EFS and FSx: a mount target in the node's subnet, port "
        "2049 or 988 open to it, the CSI driver on the node. The claim: "
        "storage.mounts.{mount}.claim{claim_now}.",
    ),
    Trouble("ContainerNotMade", r"", "See launcher.pod_overrides and launcher.image."),
)

# The pods ran: how they ended.
ENDED = (
    Trouble(
        "DeadlineExceeded",
        r"^DeadlineExceeded|longer than specified deadline",
        "Type a larger launcher.active_deadline (seconds) and run the same command: it goes on "
        "from the last checkpoint.",
    ),
    Trouble(
        "OOMKilled",
        r"^OOMKilled",
        "The container needed more memory than its limit. Type a larger resources.memory_per_node"
        "{memory}, or a smaller data.batch_size or data.num_workers. /dev/shm counts too: "
        "launcher.shm_size.",
    ),
    Trouble(
        "Evicted",
        r"^Evicted(?s:.*)(EmptyDir volume|ephemeral|low on resource: ephemeral-storage|disk)",
        "The node's disk ran full. Write to a mount instead (storage.output), or give the nodes "
        "larger disks; a volume that outgrew its limit is named above (launcher.shm_size for "
        "/dev/shm).",
    ),
    Trouble(
        "Evicted",
        r"^Evicted",
        "The node ran short of what the pod had not asked for. Type resources.memory_per_node=NGi"
        "{memory}, so that it is reserved, and run the same command.",
    ),
    Trouble(
        "Preempted",
        r"^(PreemptionByScheduler|Preempt(ed|ing))",
        "A job of higher priority took the node. Run the same command, or type "
        "launcher.priority_class=A_HIGHER_ONE.",
    ),
    Trouble(
        "NodeLost",
        r"^(NodeLost|NodeShutdown|DeletionByTaintManager|DeletionByPodGC|EvictionByEvictionAPI|"
        r"TerminationByKubelet|Terminated|Shutdown)$",
        "Its node went away (spot, drain or a fault). Run the same command: it goes on from the "
        "last checkpoint. launcher.spot=false asks for nodes that are not taken back.",
    ),
    Trouble(
        "CudaOutOfMemory",
        r"CUDA out of memory|\bOutOfMemoryError\b|CUBLAS_STATUS_ALLOC_FAILED",
        "The GPU has too little memory. Type a smaller data.batch_size with a larger "
        "trainer.accumulate_grad_batches, trainer.precision=bf16-mixed, or trainer.strategy=fsdp.",
    ),
    Trouble(
        "RendezvousTimeout",
        r"Rendezvous\w*Error|client socket has timed out|failed to connect to \S+:\d+|"
        r"(Address|Name or service) not known",
        "The pods did not find each other. See that all of them run, then the network: port 23456 "
        "or 29500 between pods (NetworkPolicy, istio sidecars). More patience: "
        "trainer.start_timeout.",
    ),
    Trouble(
        "CollectiveTimeout",
        r"Watchdog caught collective operation timeout|Some NCCL operations have failed or timed|"
        r"Timed out waiting \d+ ?ms|(NCCL|gloo).{0,80}time(d )?-?out|Collective\w* time(d )?-?out",
        "One rank kept the others waiting: read the log of the rank that is named, and of those "
        "that say nothing. If a step really takes that long, type a larger "
        "trainer.steady_timeout. +launcher.env.NCCL_DEBUG=INFO tells more.",
    ),
    Trouble(
        "NoSpace",
        r"No space left on device|Disk quota exceeded|Errno 28",
        "A disk is full. Checkpoints: checkpoint.keep_last, storage.output on a larger mount; "
        "/dev/shm: launcher.shm_size.",
    ),
    Trouble(
        "SharedMemoryFull",
        r"^SIGBUS$|DataLoader worker .* killed by signal: Bus error",
        "/dev/shm was full. Type a larger launcher.shm_size, or data.num_workers=0.",
    ),
    Trouble(
        "PackageNotFound",
        r"^(ModuleNotFoundError|ImportError)\b",
        "The image lacks a package. Type code.pip=[PACKAGE==VERSION], or use a launcher.image "
        "that has it.",
    ),
    Trouble(
        "ConfigError",
        r"^exit code 2$",
        "The configuration is wrong; the message says which key. Running it again cannot help.",
    ),
    Trouble(
        "Killed",
        r"^SIGKILL$",
        "Killed from outside, most often by the kernel, short of memory: a larger "
        "resources.memory_per_node{memory}, or a smaller data.batch_size. Or the grace period "
        "ran out: launcher.grace.",
    ),
    Trouble(
        "Stopped",
        r"^exit code (143|130)$",
        "It saved and stopped. Run the same command: it goes on from the last checkpoint.",
    ),
    Trouble(
        "Signal",
        r"^SIG(SEGV|ABRT|ILL|FPE)$",
        "Native code crashed. Try another launcher.image, trainer.compile=false, or "
        "data.num_workers=0, to see which part it is.",
    ),
    Trouble(
        "PeerLost",
        r"^lost peer$",
        "This rank only noticed that another one went away; that one's pod is gone, and with it "
        "its last words. Run the same command: it goes on from the last checkpoint.",
    ),
    Trouble(
        "BackoffLimit",
        r"reached the specified backoff limit|max(imum)? number of restarts|ReachedMaxRestarts",
        "It was started again as often as launcher.attempts allows, and failed each time.",
    ),
    Trouble(
        "UserError",
        r"^exit code 1$",
        "The training code raised: the traceback says where. Running it again cannot help.",
    ),
    Trouble("Failed", r"", "See the log: hydra-trainer logs HANDLE --all."),
)

TROUBLES: dict[str, tuple[Trouble, ...]] = {
    "refused": REFUSED,
    "unschedulable": UNSCHEDULABLE,
    "image": IMAGE,
    "container": CONTAINER,
    "ended": ENDED,
}
"""By place. The last row of a place takes what no other row knows."""


def find(place: str, words: str) -> tuple[Trouble, dict[str, str]]:
    """Return the first row of a place that fits, and what its words named."""
    for row in TROUBLES[place]:
        if found := re.search(row.words, words, re.IGNORECASE | re.MULTILINE):
            return row, {key: value for key, value in found.groupdict().items() if value}
    raise AssertionError(f"no row of {place!r} takes the rest")
