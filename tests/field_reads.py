"""Which attributes of a code base's classes are read, from its source alone.

What an expression is an instance of follows from annotations: of parameters, fields, properties
and return values, from assignments of such, and from construction. What that cannot tell counts
as not read, so `images.mean()` is no reading of a configuration's field `mean`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping

Function = ast.FunctionDef | ast.AsyncFunctionDef


def fields_read(declared: str, sources: Iterable[str]) -> set[tuple[str, str]]:
    """Return class and field of every read, in the sources, of the classes of a declaring source.

    Reads in the declaring source, such as the checks of its classes, do not count.
    """
    own = ast.parse(declared)
    others = [ast.parse(source) for source in sources]
    owners = {node.name for node in own.body if isinstance(node, ast.ClassDef)}
    reading = _Reading([own, *others], owners)
    for tree in others:
        reading.block(tree, {}, "")
    return reading.found


class _Reading:
    """The classes of a code base, and what was read of some of them."""

    def __init__(self, trees: list[ast.Module], owners: set[str]) -> None:
        """Learn the attributes of all classes, and what functions return."""
        self.owners, self.found = owners, set[tuple[str, str]]()
        nodes = [node for tree in trees for node in ast.walk(tree)]
        self.classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
        self.returned = {
            each.name: each.returns for tree in trees for each in _functions(tree.body)
        }
        self.attributes = {name: self._annotated(node) for name, node in self.classes.items()}
        for name, node in self.classes.items():  # those that __init__ and other methods set
            for method in _functions(node.body):
                env = self._parameters(method, name)
                for target, value in _assignments(method):
                    if isinstance(target, ast.Attribute) and _named(target.value) == "self":
                        self.attributes[name].setdefault(target.attr, self.type_of(value, env))

    def _annotated(self, node: ast.ClassDef) -> dict[str, str | None]:
        """Return the class names of a class's annotated fields and of what its methods return."""
        fields = [each for each in ast.walk(node) if isinstance(each, ast.AnnAssign)]
        return {_named(each.target): self._class_in(each.annotation) for each in fields} | {
            each.name: self._class_in(each.returns) for each in _functions(node.body)
        }

    def _class_in(self, annotation: ast.expr | None) -> str | None:
        """Return the one known class that an annotation is, be it optional or in quotes."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            return self._class_in(ast.parse(annotation.value, mode="eval").body)
        if isinstance(annotation, ast.BinOp):
            return self._class_in(annotation.left) or self._class_in(annotation.right)
        name = _named(annotation)
        return name if name in self.classes else None

    def _parameters(self, function: Function, owner: str) -> dict[str, str | None]:
        every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        env = {each.arg: self._class_in(each.annotation) for each in every}
        return env | {"self": owner} if owner and "self" in env else env

    def type_of(self, node: ast.expr | None, env: Mapping[str, str | None]) -> str | None:
        """Return the name of the class that an expression is an instance of; None if unknown."""
        if isinstance(node, ast.Name):
            return env.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(self.type_of(node.value, env), node.attr)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                return self.type_of(node.func, env)
            name = _named(node.func)
            if name == "replace" and node.args:
                return self.type_of(node.args[0], env)
            return name if name in self.classes else self._class_in(self.returned.get(name))
        return None

    def _attribute(self, owner: str | None, name: str) -> str | None:
        """Return the class of an attribute of a class or of the classes that it comes from."""
        if owner not in self.classes:
            return None
        bases = [self._attribute(_named(base), name) for base in self.classes[owner].bases]
        return self.attributes[owner].get(name) or next(filter(None, bases), None)

    def block(self, node: ast.AST, env: Mapping[str, str | None], owner: str) -> None:
        """Take note of every read in a module, class or function, and in those inside it."""
        env = dict(env)
        for target, value in _assignments(node):
            if isinstance(target, ast.Name):
                env[target.id] = self.type_of(value, env)
        for each in _inside(node):
            if isinstance(each, Function):
                self.block(each, env | self._parameters(each, owner), owner)
            elif isinstance(each, ast.ClassDef):
                self.block(each, env, each.name)
            elif isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Load):
                read_of = self.type_of(each.value, env)
                if read_of in self.owners:
                    self.found.add((str(read_of), each.attr))


def _functions(body: Iterable[ast.stmt]) -> Iterator[Function]:
    yield from (each for each in body if isinstance(each, Function))


def _named(node: ast.AST | None) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what a node holds, in order, without what is inside inner functions and classes."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, Function | ast.ClassDef):
            yield from _inside(child)


def _assignments(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Yield target and value of each assignment, tuples one by one."""
    for each in _inside(node):
        if isinstance(each, ast.Assign):
            for target in each.targets:
                if isinstance(target, ast.Tuple) and isinstance(each.value, ast.Tuple):
                    yield from zip(target.elts, each.value.elts, strict=False)
                else:
                    yield target, each.value
        elif isinstance(each, ast.NamedExpr | ast.AnnAssign):
            yield each.target, each.value
