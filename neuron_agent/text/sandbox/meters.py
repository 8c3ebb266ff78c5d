"""How a template is changed before it is compiled: meters where it could go on without end.

A meter is a method of the environment, called from within the template. It knows only syntax trees;
what a meter does is the environment's business.
"""

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer


class GenerationTag(Extension):
    """`{% generation %}` marks what the assistant wrote, for training: here it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Meters(NodeTransformer):
    """Puts calls of the environment's meters where a template could go on without end."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        if node.test is not None:  # it is run for items that never come to the body
            items: list[nodes.Expr] = [node.iter]  # type: ignore[list-item]
            node.iter = _call("pass_items", items, node)
        return _count_turns(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        return _count_turns(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        return _count_turns(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("join_texts", node.nodes, node)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _limit(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _limit(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _limit(node) if node.ctx == "load" else node


def _count_turns(node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
    constants = sum(len(each.data) for each in node.find_all(nodes.TemplateData))
    turn = _call("pass_turn", [nodes.Const(constants)], node)
    node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
    return node


def _limit(node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Expr:
    """Return a literal that is limited, unless it is the same each time."""
    try:
        node.as_const()
    except nodes.Impossible:
        return _call("limit_value", [node], node)
    return node


def _call(meter: str, arguments: list[nodes.Expr], node: nodes.Node) -> nodes.Call:
    method = nodes.EnvironmentAttribute(meter)
    return nodes.Call(method, arguments, [], None, None, lineno=node.lineno)
