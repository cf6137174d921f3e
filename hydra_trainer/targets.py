"""What a `_target_` in the config may name, whether its arguments fit, and how it is built.

Everything is refused that is not known to be wanted. Three looks at a `_target_`:

1. `check_targets` reads the name: nothing is imported, so it runs before anything is submitted.
2. `signature_problems` compares the arguments with the source of the class (source.py).
3. `instantiate` imports the name and looks at what it really is. A name can be an alias, so what
   counts is the module and the base classes of the object that was found.

`instantiate` does the work of hydra.utils.instantiate by itself. Hydra resolves interpolations a
second time while it builds, so an escaped one could grow into a `_target_` that nobody checked;
it deep-copies arguments; and HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE in the environment opens its
block list. None of that can happen here.

Imports neither torch nor lightning, nor anybody's package before `instantiate` is called.
"""

import ast
import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import ConfigError, HydraTrainerError, did_you_mean
from .source import (
    Parameter,
    Signature,
    Unsure,
    class_names,
    class_signature,
    find_module,
    fits,
    inspect_class,
    is_module,
    lookup,
    submodules,
)

TRUSTED = ("hydra_trainer", "torch", "lightning", "torchmetrics")
"""Packages that a `_target_` may name without being asked."""

PLACES = {
    "torch": ("torch.nn", "torch.optim"),
    "lightning": ("lightning.pytorch.callbacks", "lightning.pytorch.loggers"),
    "torchmetrics": tuple(
        f"torchmetrics.{part}"
        for part in (
            "aggregation",
            "classification",
            "clustering",
            "collections",
            "nominal",
            "regression",
            "retrieval",
            "segmentation",
            "wrappers",
        )
    ),
}
"""The parts of others' packages that a config has a use for. torchmetrics.image, .text, .audio,
.video and .multimodal are left out: they load pretrained weights from paths that the config gives.
"""

KINDS = (
    "torch.nn.modules.module.Module",  # and so LightningModule, torchmetrics.Metric
    "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
    "lightning.pytorch.callbacks.callback.Callback",
    "lightning.fabric.loggers.logger.Logger",
)
"""What a class from one of PLACES must derive from. By name, so that nothing is imported."""

SHORTCUTS = ("torchmetrics",)
"""Packages whose classes are known by a short name, such as torchmetrics.Accuracy. What it is an
alias of is looked at when it is built."""

RESERVED = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
"""Hydra's keys of a node; all others are keyword arguments."""

OWN_NODE = {
    "model": " model=own starts without the defaults of model=convnet.",
    "data": " data=own starts without the defaults of data=digits.",
}
"""What to type where a user's own class stumbles over the arguments of one of ours."""

_MISSING = "???"
_EXAMPLES = {"int": "1", "float": "0.1", "bool": "true", "str": "text"}


# ---------------------------------------------------------------------------- 1. read the name


def check_targets(node: Any, trusted: Iterable[str], key: str = "") -> list[str]:
    """Return what is wrong with every `_target_` at any depth of `node`, one sentence or two each.

    Args:
        node: a DictConfig, ListConfig, or plain containers with their interpolations resolved.
        trusted: TRUSTED, and the prefixes in `trusted_modules`. A prefix covers whole names:
            `torch` (or `torch.`) covers torch.nn, but not torchevil.
        key: where `node` lies in the config, such as `model`.

    Raises:
        ConfigError: an interpolation in `node` has no value.
    """
    prefixes, problems = _prefixes(trusted)
    for where, found in _target_nodes(_plain(node, key), key):
        problems += _node_problems(found, prefixes, where)
    return problems


def _prefixes(trusted: Iterable[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the usable prefixes, and what is wrong with the others."""
    assert not isinstance(trusted, str)
    good, problems = [], []
    for entry in trusted:
        parts = str(entry).removesuffix(".").split(".")
        if not all(map(str.isidentifier, parts)):
            problems.append(
                f"trusted_modules has {entry!r}, but takes dotted names of packages. "
                "Type 'trusted_modules=[mypkg]'."
            )
        elif parts[0] in sys.stdlib_module_names:
            problems.append(
                f"trusted_modules has {entry!r}, but the standard library is never trusted: it "
                f"runs any program. Leave it out, and {_wrap('model._target_')}"
            )
        else:
            good.append(".".join(parts))
    return tuple(dict.fromkeys(good)), problems


def _node_problems(node: dict[Any, Any], prefixes: tuple[str, ...], key: str) -> list[str]:
    where, target = _join(key, "_target_"), node["_target_"]
    problems = []
    if not _dotted(target):
        problems.append(
            f"{where} is {target!r}, but must be the dotted path of a class. "
            f"Type {where}=mypkg.MyClass."
        )
    elif refusal := _refusal(target, prefixes, where):
        problems.append(f"{where} is {target!r}, but {refusal}")
    for name in ("_partial_", "_recursive_"):
        if not isinstance(node.get(name, False), bool):
            problems.append(
                f"{_join(key, name)} is {node[name]!r}, but must be true or false. "
                f"Type {_join(key, name)}=true."
            )
    if not isinstance(node.get("_args_", []), list):
        problems.append(f"{_join(key, '_args_')} is {node['_args_']!r}, but must be a list.")
    if "_convert_" in node:
        problems.append(
            f"{_join(key, '_convert_')} is {node['_convert_']!r}, but classes always get plain "
            f"lists and dicts. {_drop(_join(key, '_convert_'))}"
        )
    return problems


def _dotted(target: Any) -> bool:
    parts = target.split(".") if isinstance(target, str) else []
    return len(parts) > 1 and all(map(str.isidentifier, parts))


def _refusal(target: str, prefixes: tuple[str, ...], where: str) -> str | None:
    """Return why a name is refused, or None."""
    parts = target.split(".")
    owned = parts[0] in TRUSTED
    if outside := _outside(target, prefixes, where):
        return outside
    for part in parts[1:]:
        if part.startswith("_" if owned else "__"):
            return f"{part!r} is private. Name a public class, or {_wrap(where)}"
    for depth, part in enumerate(parts[1:], start=2):
        if part in sys.stdlib_module_names and not is_module(".".join(parts[:depth])):
            parent = ".".join(parts[: depth - 1])
            return (
                f"{part!r} is a module of the standard library that {parent} happens to import. "
                f"Name a class that is defined in a trusted package, or {_wrap(where)}"
            )
    if owned and not parts[-1][0].isupper():
        return f"{parts[-1]!r} is not the name of a class. Name a class, or {_wrap(where)}"
    return None


def _outside(name: str, prefixes: tuple[str, ...], where: str) -> str | None:
    """Return why a dotted name is in no trusted place, or None."""
    root = name.split(".")[0]
    if root in sys.stdlib_module_names:
        return f"the standard library is never built from a config. Instead {_wrap(where)}"
    if not _covered(name, prefixes):
        return _untrusted(name, prefixes)
    short = root in SHORTCUTS and name.count(".") == 1
    if root not in PLACES or short or _covered(name, _places(root, prefixes)):
        return None
    return (
        f"of {root}, a config may build only what is in {', '.join(_places(root, prefixes))}. "
        f"Name a class there, or {_wrap(where)}"
    )


def _untrusted(name: str, prefixes: tuple[str, ...]) -> str:
    root = name.split(".")[0]
    hint = did_you_mean(root, prefixes)
    ours = find_module(f"hydra_trainer.{root}")
    if ours and find_module(root) in (None, ours):  # models/ as it lies in a checkout
        hint = f" Did you mean 'hydra_trainer.{name}'?"
    users = [prefix for prefix in prefixes if prefix not in TRUSTED]
    return (
        f"only code of {', '.join(prefixes)} is trusted.{hint} If you trust {root}, type "
        f"'trusted_modules=[{','.join([*users, root])}]'."
    )


def _covered(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _places(root: str, prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """Return PLACES, and those that the user adds: `trusted_modules=[torchmetrics.text]`."""
    added = tuple(prefix for prefix in prefixes if prefix.startswith(f"{root}."))
    return PLACES[root] + added


def _wrap(where: str) -> str:
    return (
        "write a class of your own that does what you need and type "
        f"{where}=mypkg.MyClass 'trusted_modules=[mypkg]'."
    )


# ---------------------------------------------------------------------------- 2. read the source


def signature_problems(
    node: dict[str, Any], key: str, ignore: Collection[str] = ("info",)
) -> list[str]:
    """Return how the arguments in `node`, and in nodes inside it, do not fit their classes.

    The source is found on sys.path and read, never imported. Where it does not tell (decorators,
    C code, a base class that cannot be found), nothing is reported: `instantiate` will tell.

    Args:
        node: plain containers, resolved; `_target_`s as `check_targets` accepts them.
        key: where it lies in the config, such as `model`.
        ignore: keys of `node` itself that its class never sees or that the code passes.
    """
    problems = []
    for where, found in _target_nodes(node, key):
        if _dotted(found["_target_"]):
            problems += _source_problems(found, where, ignore if found is node else ())
    return problems


def _source_problems(node: dict[str, Any], key: str, ignore: Collection[str]) -> list[str]:
    target = node["_target_"]
    try:
        module, names = _split(target, key)
        signature = class_signature(module, _class(target, module, names, key))
    except Unsure:
        return []
    except ConfigError as error:
        return error.problems
    except SyntaxError as error:
        return [f"{_join(key, '_target_')} is {target!r}, but {_broken(error)}"]
    return _call_problems(signature, node, key, ignore)


def _broken(error: SyntaxError) -> str:
    return f"line {error.lineno} of {error.filename} is not Python: {error.msg}. Mend it."


def _split(target: str, key: str) -> tuple[str, list[str]]:
    """Split a dotted path into its module, found on disk, and the names inside it."""
    parts = target.split(".")
    depth = 0
    while depth < len(parts) and find_module(".".join(parts[: depth + 1])):
        depth += 1
    if depth == 0:
        raise ConfigError(_no_module(target, parts[0], key))
    depth = min(depth, len(parts) - 1)
    return ".".join(parts[:depth]), parts[depth:]


def _class(target: str, module: str, names: list[str], key: str) -> tuple[str, ast.ClassDef]:
    """Return the class that `names` lead to, and the module it is defined in.

    Raises:
        ConfigError: there is no such class.
        Unsure: it cannot be told.
    """
    found = lookup(module, names[0])
    if found and len(names) == 1:
        return found
    if found:
        raise Unsure  # a class inside a class
    if is_module(f"{module}.{names[0]}"):
        raise ConfigError(_only_module(target, key))
    if len(names) > 1:
        missing = f"{module}.{names[0]}"
        raise ConfigError(_no_module(target, missing, key, submodules(module)))
    raise ConfigError(_no_class(target, module, names[0], key, class_names(module)))


def _call_problems(
    signature: Signature, node: dict[str, Any], key: str, ignore: Collection[str] = ()
) -> list[str]:
    given = {n: v for n, v in node.items() if n not in RESERVED and n not in ignore}
    known = {parameter.name: parameter for parameter in signature.parameters}
    elsewhere = {*ignore, *list(known)[: len(node.get("_args_", ()))]}
    partial = node.get("_partial_", False)
    unknown = [] if signature.open else [name for name in given if name not in known]
    problems = [_unknown(str(name), node["_target_"], key, signature) for name in unknown]
    if problems and not _covered(node["_target_"], TRUSTED):
        problems[0] += OWN_NODE.get(key, "")
    for name, parameter in known.items():
        if name in given:
            problems += _value_problems(parameter, given[name], node["_target_"], key)
        elif parameter.default is None and not partial and name not in elsewhere:
            problems.append(_required(parameter, node["_target_"], key))
    return problems


def _unknown(name: str, target: str, key: str, signature: Signature) -> str:
    names = [parameter.name for parameter in signature.parameters]
    takes = [f"{p.name}={p.default}" if p.default else p.name for p in signature.parameters]
    return (
        f"{_join(key, name)} is not an argument of {target}.{did_you_mean(name, names)} It takes "
        f"{', '.join(takes) or 'none'}. {_drop(_join(key, name))}"
    )


def _required(parameter: Parameter, target: str, key: str) -> str:
    kind = f" ({parameter.annotation})" if parameter.annotation else ""
    where = _join(key, parameter.name)
    return f"{where} has no value, but {target} needs one{kind}. {_give(f'+{where}')}"


def _value_problems(parameter: Parameter, value: Any, target: str, key: str) -> list[str]:
    where, annotation = _join(key, parameter.name), parameter.annotation
    if isinstance(value, str) and value == _MISSING:
        return [f"{where} has no value. {_give(where)}"]
    if annotation is None or (value is None and parameter.default == "None"):
        return []
    if (isinstance(value, dict) and "_target_" in value) or fits(annotation, value):
        return []
    example = _EXAMPLES.get(annotation.split(" | ")[0])
    if parameter.default and parameter.default[0].isdigit():
        example = parameter.default
    hint = f" Type {where}={example}." if example and "[" not in where else ""
    return [
        f"{where} is {_short(value)} ({type(value).__name__}), but {target} takes "
        f"{annotation}.{hint}"
    ]


# ---------------------------------------------------------------------------- 3. import and build


def instantiate(node: Any, trusted: Iterable[str], key: str, **extra: Any) -> Any:
    """Check `node`, import its classes, and build it, inner nodes first.

    Hydra's words mean what they mean there: `_target_`, `_args_`, `_partial_` (a functools.partial
    instead of an object), `_recursive_: false` (inner nodes are passed as they are). Classes get
    plain Python containers. A node without `_target_` gives a dict or list of what is inside it.

    Args:
        node: a DictConfig, ListConfig, or plain containers with their interpolations resolved.
        trusted: TRUSTED, and the prefixes in `trusted_modules`.
        key: where `node` lies in the config, such as `model`.
        extra: more keyword arguments for the outermost class; they win over those in `node`, and
            are passed as they are.

    Raises:
        ConfigError: a `_target_` is refused, cannot be imported or is not there; the class does
            not take these arguments, or says so with a ValueError. Anything else that a
            constructor raises comes through, with a note that names the key.
    """
    plain = _plain(node, key)
    if problems := check_targets(plain, trusted, key):
        raise ConfigError(problems)
    assert not extra or (isinstance(plain, dict) and "_target_" in plain)
    return _build(plain, _prefixes(trusted)[0], key, extra)


def _build(node: Any, prefixes: tuple[str, ...], key: str, extra: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_build(item, prefixes, f"{key}[{i}]", {}) for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {n: _build(value, prefixes, _join(key, n), {}) for n, value in node.items()}
    found = _load(node["_target_"], prefixes, key)
    call = {str(n): value for n, value in node.items() if n not in RESERVED}
    call["_args_"] = node.get("_args_", [])
    if node.get("_recursive_", True):
        call = {n: _build(value, prefixes, _join(key, n), {}) for n, value in call.items()}
    return _call(found, node, call | extra, key)


def _load(target: str, prefixes: tuple[str, ...], key: str) -> type:
    """Import what a checked `_target_` names, and look at what it is.

    Raises:
        ConfigError: it is not there, or is not what may be built.
    """
    found = _locate(target, key)
    where = _join(key, "_target_")
    if refusal := _identity_refusal(found, target, prefixes, where):
        raise ConfigError(f"{where} is {target!r}, but {refusal}")
    assert isinstance(found, type)
    return found


def _identity_refusal(found: Any, target: str, prefixes: tuple[str, ...], where: str) -> str | None:
    if not isinstance(found, type) or issubclass(found, type):
        kind = type(found).__name__.removeprefix("builtin_function_or_method") or "function"
        return f"that is a {kind}, and only classes are built. Name a class, or {_wrap(where)}"
    real = f"{found.__module__}.{found.__qualname__}"
    alias = "" if real == target else f"that is another name of {real}, and "
    if outside := _outside(real, prefixes, where):
        return alias + outside
    names = {f"{base.__module__}.{base.__qualname__}" for base in found.__mro__}
    if real.split(".")[0] in PLACES and not names.intersection(KINDS):
        kinds = ", ".join(kind.rsplit(".", 1)[-1] for kind in KINDS)
        return f"{alias}it is none of the kinds that may be built ({kinds}). Or {_wrap(where)}"
    return None


def _locate(target: str, key: str) -> Any:
    """Import the modules of a dotted path one by one and return what its end names.

    Only modules under their own name are walked through: in `mypkg.os.system`, `os` is an alias.
    """
    first, *rest = target.split(".")
    found: Any = _import(first, target, key)
    if found is None:
        raise ConfigError(_no_module(target, first, key))
    path = first
    for part in rest[:-1]:
        parent, path = found, f"{path}.{part}"
        inside = isinstance(parent, ModuleType)
        found = (_import(path, target, key) if inside else None) or _attribute(parent, part)
        if found is None and inside:
            raise ConfigError(_no_module(target, path, key, submodules(parent.__name__)))
        if isinstance(found, ModuleType) and found.__name__ != path:
            raise ConfigError(_alias(target, path, found.__name__, key))
    last = _attribute(found, rest[-1])
    if last is None:
        raise ConfigError(_no_class(target, path, rest[-1], key, _classes_of(found)))
    return last


def _import(name: str, target: str, key: str) -> ModuleType | None:
    """Import a module; None: there is no such module.

    Raises:
        ConfigError: it imports something that is not installed.
    """
    where = _join(key, "_target_")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and _covered(name, [error.name]):
            return None
        raise ConfigError(
            f"{where} is {target!r}, but {name} imports {error.name}, which is not installed. "
            f"Type: pip install {error.name}"
        ) from error
    except ImportError as error:
        raise ConfigError(f"{where} is {target!r}, but {name} fails to import: {error}") from error
    except Exception as error:
        error.add_note(f"while {name} was imported for {where}={target}")
        raise


def _attribute(owner: Any, name: str) -> Any:
    return getattr(owner, name, None)


def _classes_of(owner: Any) -> list[str]:
    return [name for name in dir(owner) if isinstance(getattr(owner, name, None), type)]


def _call(found: type, node: dict[str, Any], given: dict[str, Any], key: str) -> Any:
    args = given.pop("_args_")
    partial, target = node.get("_partial_", False), node["_target_"]
    if partial:
        given = {n: v for n, v in given.items() if not (isinstance(v, str) and v == _MISSING)}
    _check_call(found, target, args, given, key, partial)
    if partial:
        return functools.partial(found, *args, **given)
    try:
        return found(*args, **given)
    except HydraTrainerError:
        raise
    except Exception as error:
        if problem := _construction_problem(error, target, key):
            raise ConfigError(problem) from error
        error.add_note(f"while {key}, a {target}, was built")
        raise


def _check_call(
    found: type, target: str, args: list[Any], given: dict[str, Any], key: str, partial: bool
) -> None:
    """Compare a call with the signature, so that a TypeError from inside is told apart.

    Raises:
        ConfigError: the class does not take these arguments.
    """
    if (read := inspect_class(found)) is None:
        return
    real, signature = read
    call = {"_target_": target, "_args_": args, "_partial_": partial}
    if problems := _call_problems(signature, call | given, key):
        raise ConfigError(problems)
    try:
        (real.bind_partial if partial else real.bind)(*args, **given)
    except TypeError as error:
        raise ConfigError(f"{key} does not fit {target}: {error}.") from error


def _construction_problem(error: Exception, target: str, key: str) -> str | None:
    """Return the sentence for an error that is about the arguments or a package; else None."""
    text = str(error)
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        named = re.search(rf"\b{re.escape(key)}\.\w", text)
        return text if named else f"{key} ({target}): {text}"
    if isinstance(error, ImportError):
        name = f" Type: pip install {error.name}" if error.name else ""
        return f"{key} ({target}) needs a package that is not installed: {text}.{name}"
    passed_on = "unexpected keyword argument" in text or "required positional argument" in text
    if isinstance(error, TypeError) and passed_on:
        return f"{key} does not fit {target}: {text}."
    return None


# ---------------------------------------------------------------------------- words and walks


def _plain(node: Any, key: str) -> Any:
    """Return plain containers: dicts and lists all the way down.

    Raises:
        ConfigError: an interpolation has no value.
    """
    if OmegaConf.is_config(node):
        try:
            return OmegaConf.to_container(node, resolve=True, enum_to_str=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key or 'the config'} cannot be resolved: {error}") from error
    if isinstance(node, dict):
        return {name: _plain(value, _join(key, name)) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value, f"{key}[{index}]") for index, value in enumerate(node)]
    return node


def _target_nodes(node: Any, key: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield (key, node) for every node with a `_target_`, the outermost first."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, value in node.items():
            yield from _target_nodes(value, _join(key, name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _target_nodes(value, f"{key}[{index}]")


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _drop(key: str) -> str:
    return "Leave it out." if "[" in key else f"Type ~{key} to leave it out."


def _give(key: str) -> str:
    # Hydra's overrides do not reach into lists.
    return "Give it one in the file." if "[" in key else f"Type {key}=... on the command line."


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _no_module(target: str, module: str, key: str, known: Iterable[str] = ()) -> str:
    where = _join(key, "_target_")
    hint = did_you_mean(module.rsplit(".", 1)[-1], known)
    text = f"{where} is {target!r}, but there is no module {module}.{hint}"
    if _covered(module, TRUSTED):
        return f"{text} Type {where}={module.rpartition('.')[0] or module}.NAME."
    return (
        f"{text} It must be importable: type PYTHONPATH=/folder/of/it before the command, or "
        f"pip install -e that folder. Python looks first in {sys.path[0] or Path.cwd()}."
    )


def _no_class(target: str, module: str, name: str, key: str, known: list[str]) -> str:
    has = f" It has {', '.join(sorted(known)[:12])}." if known else ""
    return (
        f"{_join(key, '_target_')} is {target!r}, but {module} has no {name}."
        f"{did_you_mean(name, known)}{has} Type {_join(key, '_target_')}={module}.NAME."
    )


def _only_module(target: str, key: str) -> str:
    where = _join(key, "_target_")
    has = ", ".join(class_names(target)[:12]) or "none"
    return (
        f"{where} is {target!r}, but that is a module, and only classes are built. Its classes: "
        f"{has}. Type {where}={target}.NAME."
    )


def _alias(target: str, path: str, real: str, key: str) -> str:
    where = _join(key, "_target_")
    return (
        f"{where} is {target!r}, but {path} is another name of the module {real}. "
        f"Type {where}={real}{target.removeprefix(path)}, if that is trusted."
    )
