"""What a class takes, read from its source: found on sys.path and parsed, never imported.

So a configuration is checked in milliseconds, without torch, and without running anybody's code.
Where the source does not tell (decorators, C code, a base class that cannot be found), functions
raise `Unsure`: only importing the class will tell.
"""

import ast
import functools
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

_DEPTH = 6  # imports and base classes that are followed from file to file


class Unsure(Exception):
    """The source does not tell; only running it would."""


class Place(NamedTuple):
    """Where a module lies: its source (None where there is none), and where its parts are."""

    file: Path | None
    folders: tuple[Path, ...]


class Parameter(NamedTuple):
    name: str
    annotation: str | None
    default: str | None  # None: required


class Signature(NamedTuple):
    parameters: tuple[Parameter, ...]
    open: bool  # takes any other keyword, too


def lookup(module: str, name: str, depth: int = 0) -> tuple[str, ast.ClassDef] | None:
    """Return the class that a module knows by a name, following imports; None: no such name."""
    if depth > _DEPTH:
        raise Unsure
    bound, stars = _source(module)
    statements = bound.get(name, ())
    if len(statements) == 1:
        return _definition(module, name, statements[0], depth)
    if statements:
        raise Unsure  # defined twice: which one counts depends on what happens at run time
    for star in stars:
        if found := lookup(_origin(module, star), name, depth + 1):
            return found
    if "__getattr__" in bound:
        raise Unsure
    return None


def _definition(
    module: str, name: str, statement: ast.stmt, depth: int
) -> tuple[str, ast.ClassDef]:
    if isinstance(statement, ast.ClassDef):
        return module, statement
    if isinstance(statement, ast.ImportFrom):
        original = next(a.name for a in statement.names if (a.asname or a.name) == name)
        if found := lookup(_origin(module, statement), original, depth + 1):
            return found
    raise Unsure


def _origin(module: str, statement: ast.ImportFrom) -> str:
    """Return the absolute name of the module that a from-import reads."""
    place = find_module(module)
    if not statement.level or place is None:
        return statement.module or ""
    package = module if place.folders else module.rpartition(".")[0]
    relative = "." * statement.level + (statement.module or "")
    try:
        return importlib.util.resolve_name(relative, package)
    except ImportError:
        raise Unsure from None


def _source(module: str) -> tuple[dict[str, tuple[ast.stmt, ...]], tuple[ast.ImportFrom, ...]]:
    place = find_module(module)
    if place is None or (place.file is None and not place.folders):
        raise Unsure
    if place.file is None:
        return {}, ()  # a folder without __init__.py
    try:
        return _parse(place.file, place.file.stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError):
        raise Unsure from None


@functools.lru_cache(maxsize=256)
def _parse(
    file: Path, changed: int
) -> tuple[dict[str, tuple[ast.stmt, ...]], tuple[ast.ImportFrom, ...]]:
    """Return what each name at the top of a file is bound by, and its star imports."""
    bound: dict[str, tuple[ast.stmt, ...]] = {}
    stars = []
    for statement in _statements(ast.parse(file.read_bytes(), str(file)).body):
        for name in _bound_names(statement):
            bound[name] = (*bound.get(name, ()), statement)
        if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
            stars.append(statement)
    return bound, tuple(stars)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a file, and of what is inside if, try and with."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for block in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, block, []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (alias.asname or alias.name.split(".")[0] for alias in names)
        case ast.Assign(targets=targets):
            found = [name for t in targets for name in ast.walk(t) if isinstance(name, ast.Name)]
            yield from (name.id for name in found if isinstance(name.ctx, ast.Store))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


def is_module(name: str) -> bool:
    return find_module(name) is not None


def find_module(name: str) -> Place | None:
    """Find a module without importing anything."""
    parent, _, last = name.rpartition(".")
    if not parent:
        return _from_spec(name)
    place = find_module(parent)
    for folder in place.folders if place else ():
        package, file = folder / last, folder / f"{last}.py"
        if (package / "__init__.py").is_file():
            return Place(package / "__init__.py", (package,))
        if file.is_file():
            return Place(file, ())
        if any(folder.glob(f"{last}.*.so")) or any(folder.glob(f"{last}.*.pyd")):
            return Place(None, ())
    if parent in sys.modules and (mapped := _from_spec(name)):
        return mapped  # a folder that lies elsewhere, such as our own models/
    spread = tuple(f / last for f in (place.folders if place else ()) if (f / last).is_dir())
    return Place(None, spread) if spread else None


def _from_spec(name: str) -> Place | None:
    try:
        spec: ModuleSpec | None = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    file = Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    if file and not file.is_file():  # in a zip file
        return Place(None, ())
    return Place(file, tuple(map(Path, spec.submodule_search_locations or ())))


def class_names(module: str) -> list[str]:
    """Return the public classes of a module; of a package that has none, those it imports."""
    bound, _ = _source(module)
    public = {name: first for name, (first, *_) in bound.items() if not name.startswith("_")}
    own = [name for name, first in public.items() if isinstance(first, ast.ClassDef)]
    return own or [n for n, f in public.items() if isinstance(f, ast.ImportFrom) and n[0].isupper()]


def submodules(module: str) -> list[str]:
    place = find_module(module)
    found = [path for folder in (place.folders if place else ()) for path in folder.iterdir()]
    names = {path.stem for path in found if path.suffix == ".py" or path.is_dir()}
    return sorted(name for name in names if name.isidentifier() and not name.startswith("_"))


def class_signature(module: str, found: tuple[str, ast.ClassDef]) -> Signature:
    """Return the arguments of a class, from its source.

    Raises:
        Unsure: a decorator, a metaclass, `__new__` or a base decides, in a way we cannot follow.
    """
    return _signature(*found, depth=0)


def _signature(module: str, node: ast.ClassDef, depth: int) -> Signature:
    decorators = {_last_name(decorator) for decorator in node.decorator_list}
    if node.keywords or decorators - {"dataclass", "final", "runtime_checkable"}:
        raise Unsure
    if "dataclass" in decorators and not _methods(node, "__init__"):
        return Signature(tuple(_fields(module, node, depth)), False)
    if functions := _methods(node, "__init__"):
        return _from_init(functions[-1])
    if _methods(node, "__new__"):
        raise Unsure
    base = _base(module, node, depth)
    return _signature(*base, depth + 1) if base else Signature((), False)


def _base(module: str, node: ast.ClassDef, depth: int) -> tuple[str, ast.ClassDef] | None:
    """Return the one base class that matters; None: there is none."""
    bases = [base for base in node.bases if _last_name(base) not in ("object", "ABC", "Generic")]
    if not bases:
        return None
    if len(bases) > 1 or not isinstance(bases[0], ast.Name):
        raise Unsure
    if found := lookup(module, bases[0].id, depth + 1):
        return found
    raise Unsure


def _methods(node: ast.ClassDef, name: str) -> list[ast.FunctionDef]:
    found = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == name]
    plain = [f for f in found if not f.decorator_list]
    if found and not plain:
        raise Unsure
    return plain


def _from_init(function: ast.FunctionDef) -> Signature:
    args = function.args
    if len(args.posonlyargs) > 1:
        raise Unsure
    named = [*args.posonlyargs, *args.args][1:]
    defaults: list[ast.expr | None] = [None] * (len(named) - len(args.defaults))
    defaults += args.defaults[-len(named) :] if named else []
    pairs = [*zip(named, defaults, strict=True)]
    pairs += zip(args.kwonlyargs, args.kw_defaults, strict=True)
    return Signature(
        tuple(Parameter(a.arg, _text(a.annotation), _text(d)) for a, d in pairs),
        args.kwarg is not None,
    )


def _fields(module: str, node: ast.ClassDef, depth: int) -> Iterator[Parameter]:
    """Yield the arguments of a dataclass, those of its base first."""
    fields: dict[str, Parameter] = {}
    if base := _base(module, node, depth):
        fields |= {field.name: field for field in _signature(*base, depth + 1).parameters}
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)) if field := _field(name, statement):
                fields[name] = field
    yield from fields.values()


def _field(name: str, statement: ast.AnnAssign) -> Parameter | None:
    annotation, value = statement.annotation, statement.value
    if _last_name(annotation) in ("ClassVar", "KW_ONLY"):
        return None
    if _last_name(annotation) == "InitVar":
        raise Unsure
    if not (isinstance(value, ast.Call) and _last_name(value) == "field"):
        return Parameter(name, _text(annotation), _text(value))
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    if "init" in given:
        return None if _text(given["init"]) == "False" else Parameter(name, None, "...")
    default = given.get("default") or given.get("default_factory")
    return Parameter(name, _text(annotation), _text(default))


def _last_name(node: ast.expr) -> str:
    """Return `Name` of Name, module.Name, Name[...] and Name(...)."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=inner) | ast.Call(func=inner):
            return _last_name(inner)
    return ""


def _text(node: ast.expr | None) -> str | None:
    return None if node is None else ast.unparse(node)


def inspect_class(found: type) -> tuple[inspect.Signature, Signature] | None:
    """Return the arguments of an imported class; None where it does not tell (C code)."""
    try:
        real = inspect.signature(found)
    except (TypeError, ValueError):
        return None
    keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [
        Parameter(p.name, None, None if p.default is p.empty else repr(p.default))
        for p in real.parameters.values()
        if p.kind in keywords
    ]
    opened = any(p.kind is p.VAR_KEYWORD for p in real.parameters.values())
    return real, Signature(tuple(parameters), opened)


def fits(annotation: str | ast.expr, value: Any) -> bool:
    """Say whether a plain value can be what an annotation asks for; unknown annotations take all.

    int is not bool, float takes int, and a list is as good as a tuple: YAML has no tuples.
    """
    match ast.parse(annotation, mode="eval").body if isinstance(annotation, str) else annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str() as text):
            return fits(text, value)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return fits(left, value) or fits(right, value)
        case ast.Subscript(value=outer, slice=inner):
            return _fits_inside(_last_name(outer), inner, value)
        case ast.Name(id="bool"):
            return isinstance(value, bool)
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="float"):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.Name(id="str"):
            return isinstance(value, str)
    return True


def _fits_inside(outer: str, inner: ast.expr, value: Any) -> bool:
    """`fits` for outer[inner]."""
    items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    match outer:
        case "Optional":
            return value is None or fits(inner, value)
        case "Union":
            return any(fits(item, value) for item in items)
        case "Literal":
            return any(value == o and type(value) is type(o) for o in _options(items))
        case "list" | "List" | "Sequence":
            return isinstance(value, list) and all(fits(inner, item) for item in value)
        case "tuple" | "Tuple":
            return isinstance(value, list) and _fits_tuple(items, value)
    return True


def _options(items: list[ast.expr]) -> list[Any]:
    return [item.value for item in items if isinstance(item, ast.Constant)]


def _fits_tuple(items: list[ast.expr], value: list[Any]) -> bool:
    if len(items) == 2 and isinstance(items[1], ast.Constant) and items[1].value is ...:
        return all(fits(items[0], item) for item in value)
    return len(items) == len(value) and all(map(fits, items, value))
