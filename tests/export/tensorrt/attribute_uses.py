"""Reads from source code which attributes of TensorRT it uses, and under which conditions on the build plan.

``trt`` is the module. The class of an object is known from ``x = trt.Class(...)``, from the return type of a method in the real
bindings, or from an annotation ``x: tensorrt.Class``. Functions that are called are followed.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, replace

Surface = dict[str, dict[str, str]]
"""Members of each class of the bindings (``""`` for the module), and the class that each returns (``""`` if unknown)."""


@dataclass(frozen=True)
class Use:
    """An attribute of the module (``owner == ""``) or of one of its classes.

    Args:
        owner: class, or ``""``.
        member: attribute, ``""`` where the plan names it.
        guards: fields of the plan that must be set for the code to run.
        line: of the source.
        from_plan: field of the plan that names the member.
    """

    owner: str
    member: str
    guards: frozenset[str]
    line: int
    from_plan: str | None = None


@dataclass
class Scope:
    """The facts at a place in the code: classes of variables, loop variables over fields of the plan, guards."""

    types: dict[str, str]
    loops: dict[str, str] = field(default_factory=dict)
    guards: frozenset[str] = frozenset()

    def under(self, test: ast.expr) -> Scope:
        """The scope of code that runs if ``test`` holds; it shares the variables."""
        return replace(self, guards=self.guards | plan_fields(test))

    def over(self, loop: ast.For) -> Scope:
        """The scope of a loop's body."""
        fields = plan_fields(loop.iter)
        name = name_of(loop.target)
        return replace(self, loops={**self.loops, name: next(iter(fields))}) if fields and name else self


class Uses:
    """Collects the uses of functions and of everything they call.

    Args:
        source: of one or more modules, joined.
        returns: surface of the bindings.
        roots: functions to start from.
    """

    def __init__(self, source: str, returns: Surface, roots: tuple[str, ...]) -> None:
        tree = ast.parse(source.replace("from __future__ import annotations\n", ""))
        self.functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        self.returns = returns
        self.found: set[Use] = set()
        self.mismatches: list[str] = []
        self.visited: set[tuple[str, frozenset[str]]] = set()
        for root in roots:
            self.follow(root, frozenset())

    def follow(self, name: str, guards: frozenset[str]) -> None:
        """Reads a function once for each set of guards that it is called under."""
        if (name, guards) in self.visited:
            return
        self.visited.add((name, guards))
        node = self.functions[name]
        types = {a.arg: annotated(a.annotation) for a in node.args.args}
        known = {argument: owner for argument, owner in types.items() if owner is not None}
        self.block(node.body, Scope({**known, "trt": ""}, guards=guards))

    def block(self, body: list[ast.stmt], scope: Scope) -> None:
        for statement in body:
            self.statement(statement, scope)

    def statement(self, node: ast.stmt, scope: Scope) -> None:
        if isinstance(node, ast.If):
            self.expression(node.test, scope)
            self.block(node.body, scope.under(node.test))
            self.block(node.orelse, scope)
        elif isinstance(node, ast.For):
            self.expression(node.iter, scope)
            self.block(node.body, scope.over(node))
        elif isinstance(node, ast.With):
            for item in node.items:
                self.expression(item.context_expr, scope)
            self.block(node.body, scope)
        elif isinstance(node, ast.Try):
            for part in (node.body, node.orelse, node.finalbody, *(handler.body for handler in node.handlers)):
                self.block(part, scope)
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                self.expression(base, scope)
            self.block(node.body, scope)
        elif isinstance(node, ast.FunctionDef):
            self.block(node.body, scope)
        else:
            self.plain(node, scope)

    def plain(self, node: ast.stmt, scope: Scope) -> None:
        """Any other statement; assignments give the class of a variable."""
        for child in ast.iter_child_nodes(node):
            self.expression(child, scope)
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and name_of(node.targets[0]):
            made = self.type_of(node.value, scope)
            if made is not None:
                scope.types[name_of(node.targets[0])] = made
        if isinstance(node, ast.AnnAssign) and (owner := annotated(node.annotation)):
            scope.types[name_of(node.target)] = owner

    def expression(self, node: ast.AST, scope: Scope) -> None:
        if isinstance(node, ast.IfExp):
            self.expression(node.test, scope)
            self.expression(node.body, scope.under(node.test))
            self.expression(node.orelse, scope)
            return
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value, scope)
            if owner is not None and not node.attr.startswith("__"):
                self.found.add(Use(owner, node.attr, scope.guards, node.lineno))
        if isinstance(node, ast.Call):
            self.call(node, scope)
        for part in getattr(node, "generators", ()):
            owner = self.type_of(part.iter, scope)
            scope = replace(scope, types=scope.types | {name_of(part.target): owner}) if owner else scope
        for child in ast.iter_child_nodes(node):
            self.expression(child, scope)

    def call(self, node: ast.Call, scope: Scope) -> None:
        """Follows calls of the source's own functions, and finds ``getattr(trt.Enum, <a name from the plan>)``."""
        called = name_of(node.func)
        if called in self.functions:
            self.follow(called, scope.guards)
            for argument, parameter in zip(node.args, self.functions[called].args.args):
                given, wanted = self.type_of(argument, scope), annotated(parameter.annotation)
                if given and given != wanted and parameter.arg != "value" and not annotated_any(parameter):
                    self.mismatches.append(
                        f"line {node.lineno}: {parameter.arg} of {called} is {wanted}, given {given}"
                    )
        if called == "getattr" and len(node.args) == 2:
            owner = self.type_of(node.args[0], scope)
            fields = plan_fields(node.args[1]) or {scope.loops[n] for n in names(node.args[1]) if n in scope.loops}
            if owner is not None and fields:
                self.found.add(Use(owner, "", scope.guards, node.lineno, next(iter(fields))))

    def type_of(self, node: ast.expr, scope: Scope) -> str | None:
        """``""`` for the module, the class of an object or the class itself, None for anything else."""
        if isinstance(node, ast.Name):
            return scope.types.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value, scope)
            if owner is None:
                return None
            name = f"{owner}.{node.attr}".lstrip(".")
            return name if name in self.returns else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = self.type_of(node.func.value, scope)
            if owner == "":
                return node.func.attr
            returned = self.returns.get(owner, {}).get(node.func.attr) if owner else None
            return returned if returned and returned in self.returns else None
        if isinstance(node, ast.ListComp):
            return self.type_of(node.elt, scope)
        return None


def name_of(node: ast.AST) -> str:
    """A plain name, else ``""``."""
    return node.id if isinstance(node, ast.Name) else ""


def names(node: ast.AST) -> set[str]:
    """All names in an expression."""
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def annotated(node: ast.expr | None) -> str | None:
    """Class of ``x: tensorrt.Class``, ``""`` of ``x: ModuleType``, else None."""
    is_trt = isinstance(node, ast.Attribute) and name_of(node.value) == "tensorrt"
    return node.attr if is_trt else "" if node is not None and ast.unparse(node) == "ModuleType" else None


def annotated_any(parameter: ast.arg) -> bool:
    """True for parameters that take any object."""
    return parameter.annotation is not None and ast.unparse(parameter.annotation) in ("Any", "object")


def plan_fields(node: ast.AST) -> frozenset[str]:
    """Fields of ``plan`` in an expression."""
    attributes = (child for child in ast.walk(node) if isinstance(child, ast.Attribute))
    return frozenset(child.attr for child in attributes if name_of(child.value) == "plan")
