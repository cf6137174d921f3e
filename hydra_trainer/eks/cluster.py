"""A cluster, as the launcher needs it: a few verbs on plain dicts, each safe to give again.

Nothing here knows what a job is. Objects go in and come out as the API's JSON.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlencode

from hydra_trainer.retry import Attempts, Retry, Trouble

from . import marks
from .connection import Connection, Request
from .logs import QUIET, Log, Wanted
from .refusals import Absent, AlreadyExists, ApiError, Call, Expired
from .watch import MARGIN, Event, Object, Watch

__all__ = ["AlreadyExists", "ApiError", "Cluster", "Retry", "resource_of"]


Objects = list[Object]

PAGE = 500  # objects a list call, as kubectl asks for
COMPRESSED = {"Accept-Encoding": "gzip"}
STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

METHODS = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "patch": "PATCH",
    "delete": "DELETE",
}

CLUSTER_SCOPED = frozenset(
    {
        "clusterqueues",
        "clustertrainingruntimes",
        "customresourcedefinitions",
        "namespaces",
        "nodes",
        "persistentvolumes",
        "priorityclasses",
        "resourceflavors",
        "selfsubjectaccessreviews",
        "storageclasses",
        "workloadpriorityclasses",
    }
)


class Cluster:
    """One namespace of one cluster, through the official `kubernetes` client (30 to 37).

    A resource is named as `pods` or `pytorchjobs.kubeflow.org/v1`. May be shared by threads.
    Every method raises LaunchError, in words that say what to type, when the server cannot be
    reached within the budget of `retry` or does not accept the credentials, and its child ApiError
    when the server refuses.

    Args:
        context: a context of the kubeconfig; None for the current one.
        namespace: None for the one that the context names.
        kubeconfig: a file; None for those that kubectl reads.
        retry: how often and how long a request is tried, and by which clock.
    """

    def __init__(
        self,
        context: str | None = None,
        namespace: str | None = None,
        kubeconfig: str | None = None,
        *,
        retry: Retry | None = None,
    ) -> None:
        self._connection = Connection(context, namespace, kubeconfig, retry or Retry())

    @property
    def context(self) -> str:
        """The name of the context. Raises LaunchError when there is no kubeconfig, or no such."""
        return self._connection.context.name

    @property
    def namespace(self) -> str:
        """The namespace. Raises LaunchError when none was given and the context names none."""
        return self._connection.namespace

    def close(self) -> None:
        """Break off what other threads are asking: watches, logs. Nothing can be asked any more."""
        self._connection.close()

    def server_time(self) -> float | None:
        """Seconds since 1970 by the server's clock, which stamps the objects; None before it
        answered."""
        return self._connection.server_time()

    def get(self, resource: str, name: str) -> Object | None:
        """Return an object, or None where there is no such."""
        return self._find(self._request("get", resource, name))

    def list(self, resource: str, *, labels: str = "", fields: str = "") -> tuple[Objects, str]:
        """Return the objects that match the selectors, and the resourceVersion they are of."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        try:
            return self._pages(resource, query, PAGE)
        except Expired:  # the first page was too long ago for a later one
            return self._pages(resource, query, None)

    def version(self) -> str:
        """Return the server's version, such as v1.36.2."""
        return str(self._connection.ask(_of("/version"))["gitVersion"])

    def served(self, group_version: str) -> frozenset[str]:
        """Return the resources of an API such as kubeflow.org/v1; none where it is not served."""
        try:
            answer = self._connection.ask(_of(f"/apis/{group_version}"))
        except ApiError as error:
            if error.code != 404:
                raise
            return frozenset()
        return frozenset(item["name"] for item in answer["resources"])

    def exists(self, resource: str, name: str) -> bool:
        """Tell whether an object is there, without what it holds: it may be a secret."""
        request = self._request("get", resource, name)._replace(headers={"Accept": METADATA})
        return self._find(request) is not None

    def create(self, manifest: Object, *, dry_run: bool = False) -> Object:
        """Create an object and return it as the server has it. Unknown fields are refused.

        Where an earlier try may have come through, its object is looked for and returned: there
        is never a second one. With `dry_run` the server only says what it would do.

        Raises AlreadyExists when the name was taken before.
        """
        request = self._creation(manifest, dry_run)
        attempts = self._connection.attempts(request.call)
        in_doubt = False
        while True:
            try:
                return self._connection.answer(request)
            except Trouble as error:
                trouble = error
                in_doubt = in_doubt or (trouble.reached and not dry_run)
            except ApiError as error:
                may_be_ours = in_doubt and isinstance(error, AlreadyExists)
                if not may_be_ours and not _is_conflict(error):
                    raise
                trouble = Trouble(error.message)
            self._connection.pause(attempts, trouble)
            if in_doubt and (found := self._created(manifest, attempts)):
                return found

    def own(self, manifest: Object, owner: Object) -> None:
        """Let `owner`, as the server returned it, own an object too: it goes when all owners did.

        Nothing happens where the object is owned already. Raises ApiError when it is not there.
        """
        reference = {key: owner[key] for key in ("apiVersion", "kind")}
        reference |= {key: owner["metadata"][key] for key in ("name", "uid")}
        resource, name = resource_of(manifest), manifest["metadata"]["name"]
        if "." in resource:
            self._add_owner(resource, name, reference)
        else:  # the server merges the owners of a built-in kind by their uid
            patch = self._patch(resource, name, STRATEGIC, [reference])
            headers = {**patch.headers, "Accept": METADATA}  # not all that it holds
            self._connection.ask(patch._replace(headers=headers))

    def delete(self, resource: str, name: str) -> None:
        """Delete an object; what it owns follows. Deleting what is not there does nothing."""
        self._find(self._request("delete", resource, name, propagationPolicy="Background"))

    def watch(
        self,
        resource: str,
        *,
        labels: str = "",
        fields: str = "",
        since: str,
        known: Iterable[Object] = (),
        timeout: float = 120.0,
    ) -> Iterator[Event]:
        """Yield (ADDED | MODIFIED | DELETED, object) for every change from `since` on, for ever.

        `since` and `known` are what `list` returned. Each change is told once: the watch is
        renewed every `timeout` seconds, after a silence and after it broke; where the server has
        forgotten the version, the objects are listed again and the difference is told. Such a
        DELETED carries metadata only. Without `known`, it may be missing for an object that never
        changed, and an ADDED be told of one that was there.
        """

        def request(version: str) -> Request:
            asked = self._request(
                "watch",
                resource,
                watch="true",
                labelSelector=labels,
                fieldSelector=fields,
                resourceVersion=version,
                allowWatchBookmarks="true",
                timeoutSeconds=f"{timeout:.0f}",
            )
            return asked._replace(silence=timeout + MARGIN, stream=True)

        def list_all() -> tuple[Objects, str]:
            return self.list(resource, labels=labels, fields=fields)

        return Watch(self._connection, request, list_all, since, known).events()

    def logs(
        self,
        pod: str,
        *,
        container: str,
        follow: bool = False,
        since: str | None = None,
        previous: bool = False,
        tail: int | None = None,
    ) -> Iterator[str]:
        """Yield the lines of a container's log, without their ends and without time stamps.

        With `follow`, wait for the pod and its container to start, and go on until the pod has
        ended or is gone; a connection that breaks is taken up again without a gap or a repeat.
        Without it, a container that has not started has no lines. Another pod that takes the name
        is another log.

        Args:
            since: only what was written from this time on, such as 2026-11-24T12:00:00Z.
            previous: the log of the container that ran in the pod before the last restart.
            tail: only so many of the last lines.
        """
        wanted = Wanted(pod, container, follow and not previous, since, previous, tail)
        return Log(self._connection, wanted, self._log_request, self.get, self._await_pod).lines()

    def allowed(self, verb: str, resource: str, subresource: str = "") -> bool:
        """Ask the server whether this user may do something (SelfSubjectAccessReview)."""
        plural, group, _ = _parts(resource)
        attributes = {
            "namespace": self._namespace_of(resource),
            "verb": verb,
            "group": group,
            "resource": plural,
            "subresource": subresource,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {k: v for k, v in attributes.items() if v}},
        }
        request = self._request("create", resource_of(review))
        answer = self._connection.ask(request._replace(body=review))
        return bool(answer["status"].get("allowed"))

    def _pages(
        self, resource: str, query: dict[str, str], limit: int | None
    ) -> tuple[Objects, str]:
        items: Objects = []
        version, token = "", ""
        while True:
            page = {"limit": str(limit or ""), "continue": token}
            request = self._request("list", resource, **query, **page)
            answer = self._connection.ask(request._replace(headers=COMPRESSED))
            items += _items(answer)
            meta = answer["metadata"]
            version, token = version or meta["resourceVersion"], meta.get("continue") or ""
            if not token:
                return items, version

    def _creation(self, manifest: Object, dry_run: bool) -> Request:
        request = self._request(
            "create",
            resource_of(manifest),
            fieldManager=marks.MANAGER,
            fieldValidation="Strict",
            dryRun="All" if dry_run else "",
        )
        call = request.call._replace(name=manifest["metadata"]["name"])
        return request._replace(call=call, body=manifest)

    def _created(self, manifest: Object, attempts: Attempts) -> Object | None:
        """Return what an earlier try has created, if it has."""
        request = self._request("get", resource_of(manifest), manifest["metadata"]["name"])
        found = self._find(request, attempts)
        if found is None or _is_same(manifest, found):
            return found
        raise AlreadyExists(f"{request.call.what} exists already.", 409, "AlreadyExists", "")

    def _find(self, request: Request, attempts: Attempts | None = None) -> Object | None:
        """Return the answer, or None where there is no such object."""
        try:
            return _lean(self._connection.ask(request, attempts))
        except ApiError as error:
            if isinstance(error, Absent):
                return None
            raise

    def _add_owner(self, resource: str, name: str, reference: Object) -> None:
        """Custom resources know no merge of lists: write the whole one, if it is still as read."""
        request = self._request("get", resource, name)
        attempts = self._connection.attempts(request.call)
        while True:
            meta = self._connection.ask(request)["metadata"]
            owners = meta.get("ownerReferences") or []
            if reference["uid"] in [owner["uid"] for owner in owners]:
                return
            patch = self._patch(resource, name, MERGE, [*owners, reference])
            patch.body["metadata"]["resourceVersion"] = meta["resourceVersion"]
            try:
                self._connection.ask(patch)
                return
            except ApiError as error:
                if not _is_conflict(error):
                    raise
                self._connection.pause(attempts, Trouble(error.message))

    def _patch(self, resource: str, name: str, kind: str, owners: Objects) -> Request:
        request = self._request("patch", resource, name, fieldManager=marks.MANAGER)
        body = {"metadata": {"ownerReferences": owners}}
        return request._replace(body=body, headers={"Content-Type": kind})

    def _log_request(self, wanted: Wanted) -> Request:
        request = self._request(
            "get",
            "pods",
            wanted.pod,
            subresource="log",
            container=wanted.container,
            timestamps="true",
            follow="true" if wanted.follow else "",
            previous="true" if wanted.previous else "",
            sinceTime=wanted.since or "",
            tailLines="" if wanted.tail is None else str(wanted.tail),
        )
        return request._replace(silence=QUIET, stream=True, headers={"Accept": "*/*"})

    def _await_pod(
        self, name: str, is_ready: Callable[[Object], bool], may_come: bool
    ) -> Object | None:
        """Return the pod once it satisfies the function; None when it is deleted before.

        A pod that is not there is waited for where it `may_come`.
        """
        fields = f"metadata.name={name}"
        pods, since = self.list("pods", fields=fields)
        if not pods and not may_come:
            return None
        if pods and is_ready(pods[0]):
            return pods[0]
        for kind, pod in self.watch("pods", fields=fields, since=since, known=pods):
            if kind == "DELETED":
                return None
            if is_ready(pod):
                return pod
        return None

    def _namespace_of(self, resource: str) -> str:
        return "" if _parts(resource)[0] in CLUSTER_SCOPED else self.namespace

    def _request(
        self,
        verb: str,
        resource: str,
        name: str = "",
        *,
        subresource: str = "",
        **query: str,
    ) -> Request:
        """Return the request for a verb, as RBAC calls it; empty values of the query are left."""
        namespace = self._namespace_of(resource)
        path = _path(resource, namespace)
        for part in (name, subresource):
            path += f"/{quote(part, safe='')}" if part else ""
        if query:
            path += _query(*query.items())
        return Request(Call(verb, resource, namespace, name, subresource), METHODS[verb], path)


def _of(path: str) -> Request:
    return Request(Call("get", path, "", ""), "GET", path)


def resource_of(manifest: Object) -> str:
    """Return the name of a manifest's resource: `pytorchjobs.kubeflow.org/v1` for a PyTorchJob.

    By the rule that controllers and kubectl guess by: lower case, and an English plural.
    """
    kind, version = manifest["kind"].lower(), manifest["apiVersion"]
    plural = kind[:-1] + "ies" if kind.endswith("y") else kind + ("es" if kind[-1] == "s" else "s")
    return plural if version == "v1" else f"{plural}.{version}"


def _parts(resource: str) -> tuple[str, str, str]:
    """Split `pytorchjobs.kubeflow.org/v1` into plural, group and version; `pods` has no group."""
    plural, _, rest = resource.partition(".")
    group, _, version = rest.partition("/")
    assert not group or version, f"{resource} lacks its version"
    return plural, group, version or "v1"


@lru_cache
def _path(resource: str, namespace: str) -> str:
    plural, group, version = _parts(resource)
    parts = ["apis", group, version] if group else ["api", "v1"]
    parts += ["namespaces", namespace] if namespace else []
    return "".join(f"/{quote(part, safe='')}" for part in (*parts, plural))


@lru_cache
def _query(*pairs: tuple[str, str]) -> str:
    given = urlencode([(key, value) for key, value in pairs if value])
    return f"?{given}" if given else ""


def _items(answer: Object) -> Objects:
    """Return the objects of a list, each with what a list says only once."""
    kind = {"apiVersion": answer["apiVersion"], "kind": answer["kind"].removesuffix("List")}
    return [_lean({**kind, **item}) for item in answer.get("items") or []]


def _lean(obj: Object) -> Object:
    """Leave away which manager set which field: half of the object, and of no use here."""
    obj.get("metadata", {}).pop("managedFields", None)
    return obj


def _is_same(manifest: Object, found: Object) -> bool:
    """Whether an object is the one that was sent: by its digest, else by all that was sent."""
    digests = [
        (obj["metadata"].get("annotations") or {}).get(marks.DIGEST) for obj in (manifest, found)
    ]
    return digests[0] == digests[1] if any(digests) else _covers(found, manifest)


def _covers(found: Any, sent: Any) -> bool:
    """Whether everything that was sent is there; the server may have added defaults."""
    if isinstance(sent, dict) and isinstance(found, dict):
        return all(key in found and _covers(found[key], value) for key, value in sent.items())
    if isinstance(sent, list) and isinstance(found, list):
        return len(sent) == len(found) and all(map(_covers, found, sent))
    return bool(found == sent)


def _is_conflict(error: ApiError) -> bool:
    """Whether somebody else wrote at the same time: an owner list, or a quota's count."""
    return error.code == 409 and error.reason == "Conflict"
