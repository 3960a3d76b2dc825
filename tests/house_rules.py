"""The rules of the house, each as a function from source text to what breaks it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePath

ROOMS = (
    *("search_config", "config", "arguments", "schema", "files", "randomness", "own_code"),
    *("widths", "cost", "latency_table", "ledger", "models", "starting"),
    *("slimmable", "search", "methods", "width_search"),
    *("processes", "data", "evaluation", "tracking", "training", "operator_times", "latency"),
    *("survey", "reporting", "bundle", "latency_command", "cli"),
)
"""The rooms of pareco in their order; a room uses only rooms before it."""

HOUSES = ("pareco", "baselines", "replications", "tests")
"""The packages in their order."""

_DRAWS = ("bernoulli", "multinomial", "normal", "rand", "randint", "randn", "randperm")
_DRAWS_IN_PLACE = ("bernoulli_", "exponential_", "normal_", "random_", "uniform_")
_PATTERNS = ("compile", "findall", "finditer", "fullmatch", "match", "search", "split", "sub")
_PARTS = ("endswith", "partition", "removeprefix", "removesuffix", "rpartition", "startswith")


def imports(source: str) -> set[str]:
    """Return the full names of all modules that are imported, on first use or by name too.

    What is imported from the root of a package counts as a module of it; relative imports begin
    with a dot.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            within = {f"{module}.{alias.name}" for alias in node.names}
            found |= {module} if "." in module else within
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            found |= set(list(_strings(node.args))[:1])
    return found


def imported_too_early(place: PurePath, source: str) -> set[str]:
    """Return the imports of a file of ours that its place in HOUSES and ROOMS does not allow."""
    house, own = place.parts[0], PurePath(place.parts[1]).stem
    wrong = set()
    for name in imports(source):
        package, room = [*name.split("."), ""][:2]
        if package == house == "pareco":
            allowed = room in ROOMS[: ROOMS.index(own) + 1]
        else:
            allowed = package not in HOUSES[HOUSES.index(house) + 1 :] and package != ""
        if not allowed:
            wrong.add(name)
    return wrong


def branches(source: str, names: Collection[str]) -> set[str]:
    """Return the names that the source compares with, matches or looks up.

    Of a regular expression, and of a test of a part of a word, the part is returned that a name
    begins with or, with `in`, has in it.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            constants = set(_strings([node.left, *node.comparators]))
            found |= constants & set(names)
            if isinstance(node.ops[0], ast.In | ast.NotIn) and isinstance(node.left, ast.Constant):
                parts = {each for each in constants if len(each) > 3}
                found |= {part for part in parts if any(part in name for name in names)}
        elif isinstance(node, ast.MatchValue):
            found |= set(_strings([node.value])) & set(names)
        elif isinstance(node, ast.Subscript):
            found |= set(_strings([node.slice])) & set(names)
        elif isinstance(node, ast.Call) and _called(node) in (*_PATTERNS, *_PARTS):
            words = re.findall("[a-z][a-z_-]{3,}", " ".join(_strings(node.args)))
            found |= {word for word in words if any(name.startswith(word) for name in names)}
    return found


def tables(source: str, names: Collection[str]) -> set[str]:
    """Return the names that the source holds: in a collection, as a key, or as a default.

    A default is that of a parameter, of a field or of a class; what a call passes by keyword as
    `focus`, `method` or `baseline` is held too.
    """
    held: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            held += node.keys
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            held += node.elts
        elif isinstance(node, ast.arguments):
            held += [*node.defaults, *node.kw_defaults]
        elif isinstance(node, ast.ClassDef):
            assigned = (each for each in node.body if isinstance(each, ast.Assign | ast.AnnAssign))
            held += [each.value for each in assigned]
        elif isinstance(node, ast.keyword) and node.arg in ("focus", "method", "baseline"):
            held.append(node.value)
    return set(_strings(each for each in held if isinstance(each, ast.Constant))) & set(names)


def draws_from_a_global_stream(source: str) -> set[str]:
    """Return the calls of random functions that are given no generator."""
    found = {name for name in imports(source) if re.match(r"random\b|numpy\.random", name)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if re.match(r"(np|numpy)\.random\.(?!Generator)", text):
                found.add(text)
        elif isinstance(node, ast.Call):
            text, given = ast.unparse(node.func), [each.arg for each in node.keywords]
            draws = _called(node) in _DRAWS_IN_PLACE or text in [f"torch.{x}" for x in _DRAWS]
            if (draws and "generator" not in given) or text in ("torch.manual_seed", "torch.seed"):
                found.add(text)
    return found


def fields(source: str) -> dict[tuple[str, str], bool]:
    """Return the fields of a file's classes, and of each whether a text stands below it."""
    return {
        (each.name, ast.unparse(node.target)): isinstance(following, ast.Expr)
        for each in ast.walk(ast.parse(source))
        if isinstance(each, ast.ClassDef)
        for node, following in zip(each.body, [*each.body[1:], None], strict=True)
        if isinstance(node, ast.AnnAssign)
    }


def fields_read(declared: str, sources: Iterable[str]) -> set[tuple[str, str]]:
    """Return class and field of every read, in the sources, of the classes of a declaring source.

    A read is an attribute of something whose last name is annotated somewhere with the class, so
    `images.mean()` is none of a configuration's field `mean`. Reads in the declaring source, such
    as the checks of its classes, do not count.
    """
    others = [node for source in sources for node in ast.walk(ast.parse(source))]
    owners = set(classes(declared))
    held: set[tuple[str, str]] = set()
    for node in [*ast.walk(ast.parse(declared)), *others]:
        if isinstance(node, ast.arg | ast.AnnAssign):
            name = node.arg if isinstance(node, ast.arg) else _last_name(node.target)
            words = re.findall(r"\w+", ast.unparse(node.annotation or ast.Constant("")))
            held |= {(name, word) for word in words if word in owners}
    for node in (each for each in others if isinstance(each, ast.Assign)):  # by another name
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            given = {(_last_name(to), _last_name(value)) for to, value in pairs}
            held |= {(to, owner) for to, value in given for name, owner in held if name == value}
    read = [node for node in others if isinstance(node, ast.Attribute)]
    reads = {(_last_name(each.value), each.attr) for each in read if isinstance(each.ctx, ast.Load)}
    return {(owner, field) for name, owner in held for by, field in reads if by == name}


def classes(source: str) -> list[str]:
    """Return the names of all classes of a file."""
    return [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def method_names_in(source: str) -> list[str]:
    """Return what the classes of a file call themselves: the values of `name = ...`."""
    return re.findall(r"^    name = \"(\w+)\"$", source, re.MULTILINE)


def mixed_up(files: Iterable[PurePath]) -> set[str]:
    """Return the names of modules, without a plural's s, that more than one file or folder has."""
    modules = {file.parent if file.stem == "__init__" else file.with_suffix("") for file in files}
    counts = Counter(module.name.removesuffix("s") for module in modules)
    return {name for name, count in counts.items() if count > 1}


def not_derived(experiments: Mapping[str, str]) -> set[str]:
    """Return the experiments, of sources by name, that are neither a diff nor a parent.

    A diff is a `replace` of an imported EXPERIMENT. Built anew may only be one that another one
    imports, or the only one on its data set.
    """
    imported = {name for source in experiments.values() for name in imports(source)}
    built = {
        name: re.findall(r"\bDataConfig\(\s*name=\"(\w+)\"", source)
        for name, source in experiments.items()
        if re.search(r"^EXPERIMENT = Experiment\(", source, re.MULTILINE)
    }
    times = Counter(data for each in built.values() for data in each)
    wrong = {
        name
        for name, data in built.items()
        if f"replications.{name}.experiment" not in imported and times[data[0]] > 1
    }
    diff = re.compile(
        r"import EXPERIMENT as (\w+)$(?s:.*)^EXPERIMENT = replace\(\s*\1,", re.MULTILINE
    )
    others = {name: source for name, source in experiments.items() if name not in built}
    return wrong | {name for name, source in others.items() if not diff.search(source)}


def places_of_a_machine(text: str) -> list[str]:
    """Return the beginnings of absolute paths that a text names."""
    return [each for each in ("/work/", "/tmp/", "/home/", "/root/", "/Users/") if each in text]


def dead_links(folder: Path, text: str) -> list[str]:
    """Return the targets of a document's links to files that are not there."""
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    return [target for target in targets if not (folder / target).exists()]


def _last_name(node: ast.expr) -> str:
    """Return the last name of a dotted expression."""
    return ast.unparse(node).rpartition(".")[2]


def _called(call: ast.Call) -> str:
    """Return the last name of what is called."""
    return _last_name(call.func)


def _strings(nodes: Iterable[ast.expr]) -> Iterator[str]:
    """Yield the constant strings in expressions, those in f-strings too."""
    for node in nodes:
        for each in ast.walk(node):
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                yield each.value
