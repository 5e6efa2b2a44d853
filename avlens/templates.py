"""How is a checkpoint's chat template run, so that it comes to an end whatever it says?

A template is a program. It runs in the sandbox in which transformers runs it, and its work is counted: a rendering may take so
many steps (turns of loops, operators, filters, calls), and each of these is charged, before it runs, with what it may build at
most. Released templates take some hundreds of steps.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

from jinja2 import Template, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from avlens.errors import PromptError

STEPS, BUILT = 100_000, 100_000_000
"""What a rendering may take: steps, and characters; an element of a list counts as so many:"""

ELEMENT = 100


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
                f"the checkpoint's chat template takes more than {STEPS:,} steps, or builds more than {BUILT:,} characters, to "
                "write one prompt. Take the template from the released checkpoint."
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
        its = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if its is self:  # One of the three below.
            return function(*given)
        _charge(context, math.fsum(map(_size, given)) if its is None else _product([its, *given], function.__name__))
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, charged with the length of its value."""
        if operator == "**":
            whole = isinstance(left, int) and isinstance(right, int)
            _charge(context, float(min(abs(right), BUILT + 1) * left.bit_length()) if whole else 0.0)
        elif operator in "*%":
            _charge(context, _product([left, right], operator))
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
        _charge(context, _product([value, *args, *options.values()], name))
        found = self.call_filter(name, value, args, options, context)
        return self.built(context, list(found) if isinstance(found, Iterator) else found)


class _Counting(NodeTransformer):
    """Puts `turn` into loops, `filtered` where filters are, `built` around what is written, listed, joined, compared or cut."""

    def visit(self, node: nodes.Node, *_: Any, **__: Any) -> Any:
        kept = _block_filter(node)
        self.generic_visit(node)
        match node:
            case nodes.AssignBlock() | nodes.FilterBlock() if kept is not None:
                node.filter = kept
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


def _block_filter(node: nodes.Node) -> Any:
    """The filters of a block, which stay as they are, apart from it: those without arguments build about what they are given."""
    if not isinstance(node, (nodes.AssignBlock, nodes.FilterBlock)):
        return None
    its: Any = node.filter
    node.filter = None
    one = its
    while one is not None:
        if one.args or one.kwargs or one.dyn_args is not None or one.dyn_kwargs is not None:
            raise _uncounted(one)
        one = one.node
    return its


def _uncounted(node: nodes.Filter) -> PromptError:
    return PromptError(
        f"line {node.lineno} of the checkpoint's chat template uses the filter {node.name!r} in a way that cannot be counted. "
        "Take the template from the released checkpoint."
    )


def _charge(context: Context, size: float) -> None:
    context.parent[_METER].charge(size)


def _size(value: Any) -> float:
    """Of a text or a list, with all that is in it."""
    found, left = 0.0, [value]
    while left and found <= BUILT:
        one = left.pop()
        if isinstance(one, (str, bytes)):
            found += len(one)
        elif isinstance(one, range):
            found += ELEMENT * len(one)
        elif isinstance(one, (list, tuple, set, dict)):
            found += ELEMENT * len(one)
            left.extend(chain(one, one.values()) if isinstance(one, dict) else one)
    return found


def _product(values: Sequence[Any], name: str) -> float:
    """The most that an operator, filter or method makes of some values; where it formats, widths in them count."""
    if name in ("default", "d"):
        return 0.0
    product = 1.0
    for value in values:
        size = float(min(abs(value), BUILT + 1)) if isinstance(value, int) else _size(value)
        if name in ("%", "format", "format_map") and isinstance(value, str):
            size = max(size, *(float(number) for number in re.findall("[0-9]+", value)), 0.0)
        product *= max(1.0, size)
    return product**2 if name == "sum" and len(values) > 1 else product  # Lists that are added are copied each time.
