"""How is a checkpoint's chat template run, so that it comes to an end?

A template is a program. It runs in the sandbox in which transformers runs it, and its work is counted: a rendering may take so
many steps (turns of loops, operators, filters, calls), and each of these is charged, before it runs, with what it may build at
most. Released templates take some hundreds of steps.

Refused besides, since nobody can say how much they build: widths that are given to a format (`%*d`, `{:{}}`), integers of more
than `LARGEST` bits, filters with `*args`, generators inside of lists. Filters that are slow by nature (`striptags`, `wordwrap`)
are charged with the square of what they read. What is counted are the steps and values of jinja as it is released: a filter
that takes longer than it is charged for would not be noticed.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

from jinja2 import Template, nodes
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from avlens.errors import PromptError

STEPS, BUILT = 100_000, 100_000_000
"""What a rendering may take: steps, and characters; an element of a list counts as so many:"""

ELEMENT = 100

LARGEST = 4096
"""Bits of the largest integer."""

_FORMATS = frozenset({"%", "format", "format_map"})
_SLOW = frozenset({"decode", "encode", "pprint", "striptags", "sum", "urlize", "wordwrap"})
"""Filters and methods that may take the square of what they are given."""


def render(source: str, **variables: Any) -> str:
    """What a chat template writes.

    Raises:
        PromptError: If it takes more than it may.
    """
    return _compiled(source).render({**variables, _METER: Meter()})


@dataclass
class Meter:
    """What a rendering has taken."""

    steps: int = 0
    built: float = 0.0

    def charge(self, size: float) -> None:
        """One step more, which may build so much.

        Raises:
            PromptError: If that is too much.
        """
        self.steps += 1
        self.built += size
        if self.steps > STEPS or self.built > BUILT:
            raise PromptError(
                f"the checkpoint's chat template takes more than {STEPS:,} steps, or may build more than {BUILT:,} characters, "
                "to write one prompt. Take the template from the released checkpoint."
            )


_METER = "the meter"
"""No name that a template can write."""


@lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment  # Theirs would compute constants.
    ours = _Counted(
        trim_blocks=theirs.trim_blocks, lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
    )  # fmt: skip
    ours.filters = theirs.filters
    ours.globals = {name: value for name, value in theirs.globals.items() if name != "lipsum"}
    return ours.from_string(source)


class _Counted(ImmutableSandboxedEnvironment):
    """A sandbox that counts."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> Any:
        return super()._generate(_Counting().visit(source), *args, **kwargs)

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        """A call; a method is charged with the product of what it is given."""
        given = [
            *args,
            *(value for name, value in kwargs.items() if not name.startswith("_")),
        ]  # The others are jinja's.
        its = getattr(function, "__self__", getattr(getattr(function, "__wrapped__", None), "__self__", None))
        if its is self:  # One of the three below.
            return function(*given)
        if its is not None:
            _charge(context, _product(its, given, function.__name__))
        else:
            _charge(context, 0.0 if isinstance(function, Macro) else math.fsum(map(_read, given)))
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, charged with the length of its value."""
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * abs(right)
            _charge(context, math.inf if bits > LARGEST else 0.0)
        elif operator == "*" and (isinstance(left, Collection) or isinstance(right, Collection)):
            text, times = (left, right) if isinstance(left, Collection) else (right, left)
            _charge(context, _product(text, [times], operator))
        elif operator == "%" and isinstance(left, (str, bytes)):
            _charge(context, _product(left, [right], operator))
        else:
            _charge(context, _size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def turn(self, context: Context) -> bool:
        """A loop's next turn."""
        _charge(context, 0.0)
        return True

    def built(self, context: Context, value: Any) -> Any:
        """What is put into a list, joined or compared."""
        _charge(context, _size(value))
        return value

    def filtered(self, context: Context, name: str, options: dict[str, Any], value: Any, *args: Any) -> Any:
        """A filter's value, charged with the product of what it is given."""
        of_each = name == "map" and any(isinstance(arg, str) and arg in {*_FORMATS, *_SLOW, "round"} for arg in args)
        _charge(context, math.inf if of_each else _product(value, [*args, *options.values()], name))
        found = self.call_filter(name, value, args, options, context)
        if isinstance(found, Iterator) and not isinstance(found, LoopContext):
            return iter(self.built(context, list(found)))
        return self.built(context, found)


class _Counting(NodeTransformer):
    """Puts `turn` into loops, `filtered` where filters are, `built` around what is written, listed, joined, compared or cut."""

    def visit(self, node: nodes.Node, *_: Any, **__: Any) -> Any:
        if isinstance(node, (nodes.AssignBlock, nodes.FilterBlock)) and node.filter is not None:
            return [self.visit(part) for part in _block_and_filter(node)]
        self.generic_visit(node)
        match node:
            case nodes.For():
                node.body.insert(0, nodes.ExprStmt(_own("turn")))
                node.test = node.test and nodes.And(_own("turn"), node.test)
            case nodes.Filter():
                return _filtered(node)
            case nodes.Output() | nodes.Concat():
                node.nodes = [_built(one) for one in node.nodes]
            case nodes.Compare() | nodes.Operand():
                node.expr = _built(node.expr)
            case nodes.Test():
                node.node, node.args = _built(node.node), [_built(one) for one in node.args]
            case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load") | nodes.Getitem(arg=nodes.Slice()):
                return _built(node)
        return node


def _own(name: str, *args: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), [nodes.ContextReference(), *args], [], None, None)


def _built(node: nodes.Expr) -> nodes.Call:
    """Fixed text is charged for too: a loop may write it often."""
    return _own("built", nodes.Const(node.data) if isinstance(node, nodes.TemplateData) else node)


def _filtered(node: nodes.Filter) -> nodes.Call:
    if node.node is None or node.dyn_args is not None or node.dyn_kwargs is not None:
        raise _uncounted(node)
    options = nodes.Dict([nodes.Pair(nodes.Const(one.key), one.value) for one in node.kwargs])
    return _own("filtered", nodes.Const(node.name), options, node.node, *node.args)


def _block_and_filter(node: Any) -> tuple[nodes.Stmt, nodes.Stmt]:
    """A block with a filter, as a block without one, of no name that a template can write, and what the filter makes of it."""
    text: nodes.Expr = object.__new__(nodes.InternalName)  # As jinja's parser makes them.
    nodes.Node.__init__(text, "text_of_block", lineno=node.lineno)
    innermost = node.filter
    while innermost.node is not None:
        innermost = innermost.node
    innermost.node, line = text, node.lineno
    if isinstance(node, nodes.FilterBlock):
        after: nodes.Stmt = nodes.Output([node.filter], lineno=line)
    else:
        after = nodes.Assign(node.target, node.filter, lineno=line)
    return nodes.AssignBlock(text, None, node.body, lineno=line), after


def _uncounted(node: nodes.Filter) -> PromptError:
    return PromptError(
        f"line {node.lineno} of the checkpoint's chat template uses the filter {node.name!r} in a way that cannot be counted. "
        "Take the template from the released checkpoint."
    )


def _charge(context: Context, size: float) -> None:
    context.parent[_METER].charge(size)


def _size(value: Any) -> float:
    """Of a text or a list, with all that is in it; infinite if nobody knows, or if an integer is too large."""
    found, left = 0.0, [value]
    while left and found <= BUILT:
        one = left.pop()
        if isinstance(one, (str, bytes)):
            found += len(one)
        elif isinstance(one, int):
            found += math.inf if one.bit_length() > LARGEST else 0.0
        elif isinstance(one, range):
            found += ELEMENT * len(one)
        elif isinstance(one, (Namespace, Mapping)):
            its = one._Namespace__attrs if isinstance(one, Namespace) else one
            found += ELEMENT * (1 + len(its))
            left.extend(chain(its, its.values()))
        elif isinstance(one, Collection):
            found += ELEMENT * len(one)
            left.extend(one)
        elif isinstance(one, _Listed):
            left.append(list(copy(one)))
        elif isinstance(one, Iterator) and not isinstance(one, LoopContext):
            found = math.inf
    return found


_Listed: Any = type(iter([]))
"""What filters return instead of generators."""


def _read(value: Any) -> float:
    """The size of what is read to its end; how much a loop has left is not known."""
    return math.inf if isinstance(value, LoopContext) else _size(value)


def _product(value: Any, given: Sequence[Any], name: str) -> float:
    """The most that an operator, filter or method makes of a value and what it is given."""
    if name in ("default", "d") or (name in ("length", "count") and isinstance(value, Collection)):
        return 0.0
    if name in _FORMATS:
        return _formatted(value, given)
    numbers = [float(min(abs(one), BUILT + 1)) for one in given if isinstance(one, int)]
    if name == "round":
        return math.inf if any(number > LARGEST for number in numbers) else 0.0
    its = 0.0 if isinstance(value, LoopContext) and name in ("changed", "cycle") else _read(value)
    sizes = [its, *(_read(one) for one in given), *numbers]
    product = math.prod(max(1.0, size) for size in sizes)
    return (
        product**2 if name in _SLOW and (name != "sum" or given) else product
    )  # Lists that are added are copied each time.


def _formatted(value: Any, given: Sequence[Any]) -> float:
    """What formatting may write: a width is a number in the format; one that is given besides may be any."""
    size = max(1.0, math.fsum(map(_read, given)))
    if not isinstance(value, (str, bytes)):
        return max(1.0, _read(value)) * size
    text = value if isinstance(value, str) else value.decode("latin-1")
    if _WIDTH_GIVEN.search(text.replace("%%", "")) or _FIELD_IN_FIELD.search(text.replace("{{", "")):
        return math.inf
    return size * max(1.0, len(text), *(float(number) for number in re.findall(r"\d+", text)))


_WIDTH_GIVEN = re.compile(r"%(\([^)]*\))?[^%a-zA-Z]*\*")
_FIELD_IN_FIELD = re.compile(r"\{[^{}]*\{")
