"""Named tuples that are made past their classes: nothing else would notice a field too few."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("cluster", "node", "psp", "tio", "workloads")
MAKER = "tuple.__new__"


def made_past_their_classes():
    """(module, line, class, elements, tree) of each call of ``tuple.__new__``, by its own name or another."""
    for path in sorted(one for floor in FLOORS for one in (ROOT / floor).rglob("*.py")):
        text = path.read_text()
        if MAKER in text:
            yield from calls(".".join(path.relative_to(ROOT).with_suffix("").parts), ast.parse(text))


def calls(module, tree):
    above = {below: node for node in ast.walk(tree) for below in ast.iter_child_nodes(node)}
    names = {MAKER} | {ast.unparse(one.targets[0]) for one in assignments(tree) if ast.unparse(one.value) == MAKER}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            kind, elements = ast.unparse(node.args[0]), node.args[1]
            around = node
            while not isinstance(around, ast.FunctionDef):
                around = above[around]
            if isinstance(elements, ast.Name):  # Made a line before.
                (elements,) = [
                    one.value for one in assignments(around) if ast.unparse(one.targets[0]) == elements.id
                ]
            yield module, node.lineno, above[around].name if kind == "cls" else kind, elements, tree


def assignments(tree):
    return [one for one in ast.walk(tree) if isinstance(one, ast.Assign)]


def length(elements, namespace, fields, tree):
    """How many elements there will be; a slice is taken to be one of an object of the same class."""
    assert isinstance(elements, ast.Tuple), f"expected the fields one by one, got {ast.unparse(elements)}"
    count = 0
    for one in elements.elts:
        if not isinstance(one, ast.Starred):
            count += 1
        elif isinstance(one.value, ast.Subscript) and isinstance(one.value.slice, ast.Slice):
            part = eval(f"slice({ast.unparse(one.value.slice.lower or ast.Constant(None))},"
                        f"{ast.unparse(one.value.slice.upper or ast.Constant(None))})", namespace)  # fmt: skip
            count += len(fields[part])
        elif isinstance(one.value, ast.Call):
            count += arity(one.value, tree)
        else:
            count += len(eval(ast.unparse(one.value), namespace))
    return count


def arity(call, tree):
    """How many values a function of the module says that it returns."""
    (says,) = [one.returns for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and one.name == call.func.id]
    assert ast.unparse(says.value) == "tuple"
    assert isinstance(says.slice, ast.Tuple)
    return len(says.slice.elts)


FOUND = list(made_past_their_classes())


def test_those_are_found():
    kinds = {one[2] for one in FOUND}
    assert kinds >= {"Entered", "Expected", "GuestBooks", "Message", "Stopped", "VmState"}


@pytest.mark.parametrize(
    ("module", "line", "kind", "elements", "tree"), FOUND, ids=[f"{one[2]} in {one[0]}" for one in FOUND]
)
def test_one_that_is_made_past_its_class_has_all_of_its_fields(module, line, kind, elements, tree):
    namespace = vars(importlib.import_module(module))
    fields = namespace[kind]._fields
    assert length(elements, namespace, fields, tree) == len(fields), f"{module}, line {line}: {kind}"
