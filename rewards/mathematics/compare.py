"""Do two parsed mathematical objects mean the same? The rules are those of math-verify 0.9, judged by our own means.

Where math-verify swallows every exception into "different", only refusals of the mathematics itself count as
"different" here: running out of memory or stack goes up to the caller. Equality of expressions is decided by their
values to 30 digits at fixed points instead of `simplify`, which is slower and gives up sooner.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeVar, cast

import sympy
from latex2sympy2_extended import is_expr_of_only_symbols
from latex2sympy2_extended.logic import And
from latex2sympy2_extended.sets import FiniteSet
from sympy import Add, Basic, E, Eq, Expr, Interval, MatrixBase, MatrixExpr, Mul, Ne, Rational, S, Set, Symbol, Tuple
from sympy import FiniteSet as PlainFiniteSet
from sympy.core.function import AppliedUndef
from sympy.core.relational import GreaterThan, Relational, StrictGreaterThan

from rewards.mathematics.latex import PERCENT_SIGN
from rewards.mathematics.values import MathObject, equal_expressions, is_constant_multiple, refuse_immense
from rewards.result import Unscorable

_GREEK = ("gamma", "delta", "theta", "lambda", "xi", "pi", "sigma", "phi", "psi", "omega")
_T = TypeVar("_T")
_Object = TypeVar("_Object", bound=MathObject)
Relation = Relational | And


def attempt(action: Callable[[], _T]) -> _T | None:
    """Return the result, or None where the mathematics refuses. Exhausted memory or stack is raised, as no verdict."""
    try:
        return action()
    except (MemoryError, RecursionError, Unscorable):
        raise
    except Exception:  # sympy's refusals have no common type
        return None


def scaled(value: MathObject, factor: Fraction) -> MathObject:
    """Return a value in another unit; lists and relations have none that can be changed."""
    if factor == 1 or not isinstance(value, sympy.Expr):
        return value if factor == 1 else Symbol("another unit")
    return Mul(value, Rational(factor.numerator, factor.denominator), evaluate=False)


def proportional(gold: Sequence[MathObject | None], pred: Sequence[MathObject | None]) -> bool:
    """Tell whether the parts of two ratios are in proportion."""
    if not all(isinstance(part, sympy.Expr) for part in (*gold, *pred)):
        return False
    ours, theirs = cast(Sequence[Expr], gold), cast(Sequence[Expr], pred)
    if any(part.is_zero for part in (ours[0], theirs[0])):
        return all(map(same, ours, theirs))
    pairs = zip(ours[1:], theirs[1:], strict=True)
    return all(
        _same_expressions(Mul(one, theirs[0], evaluate=False), Mul(other, ours[0], evaluate=False))
        for one, other in pairs
    )


def same(gold: MathObject, pred: MathObject) -> bool:
    """Tell whether the prediction means what the reference does. The reference decides which form counts."""
    if gold == pred:
        return True
    gold, pred = _unwrap_assignments(gold, pred)
    if isinstance(gold, (Relational, And)) and isinstance(pred, (Relational, And)):
        return _same_relations(gold, pred)
    if isinstance(gold, (Set, Tuple)) or isinstance(pred, (Set, Tuple)):
        return _same_sets(gold, pred)
    if isinstance(gold, (Relational, And)) or isinstance(pred, (Relational, And)):
        return False
    if isinstance(gold, Symbol) or isinstance(pred, Symbol):
        return _same_symbols(gold, pred)
    if isinstance(gold, (MatrixBase, MatrixExpr)) or isinstance(pred, (MatrixBase, MatrixExpr)):
        return _same_matrices(gold, pred)
    return _same_expressions(gold, pred)


def _unwrap_assignments(gold: MathObject, pred: MathObject) -> tuple[MathObject, MathObject]:
    """Compare x=5 with 5 as 5 with 5. Chains keep their ends, and two assignments keep their left sides."""
    gold, pred = (
        _members(side) if isinstance(other, (Relational, And)) and not _is_equation(other) else side
        for side, other in ((gold, pred), (pred, gold))
    )
    gold, pred = _name_first(gold), _name_first(pred)
    gold_assigns, pred_assigns = _is_assignment(gold), _is_assignment(pred)
    gold_equates, pred_equates = _is_equation(gold), _is_equation(pred)
    if gold_assigns:
        gold = Eq(_relations(gold)[0].lhs, _relations(gold)[-1].rhs, evaluate=False)
    if pred_assigns:
        pred = Eq(_relations(pred)[0].lhs, _relations(pred)[-1].rhs, evaluate=False)
    if pred_equates and not gold_equates and not isinstance(gold, (Relational, And)):
        if not pred_assigns and not _is_true_sum(pred) and not _names_quantity(_relations(pred)[0].lhs):
            return gold, pred
        return gold, _relations(pred)[-1].rhs
    if gold_assigns and not pred_equates and not isinstance(pred, (Relational, And)):
        return _relations(gold)[-1].rhs, pred
    return gold, pred


def _name_first(expr: MathObject) -> MathObject:
    """Turn 5 = x into x = 5."""
    if isinstance(expr, Eq) and isinstance(expr.rhs, Symbol) and not expr.lhs.free_symbols:
        return Eq(expr.rhs, expr.lhs, evaluate=False)
    return expr


def _members(expr: MathObject) -> MathObject:
    """Take x in [1, 2], which the grammar reads as an equation with a set, for the set where it meets an inequality."""
    return expr.rhs if isinstance(expr, Eq) and isinstance(expr.rhs, Set) else expr


def _is_true_sum(equation: MathObject) -> bool:
    """Tell whether an equation is right: 9+3=12 announces 12, and 9+3=13 announces nothing."""
    sides = [side for relation in _relations(equation) for side in (relation.lhs, relation.rhs)]
    if not all(isinstance(side, sympy.Expr) and not side.free_symbols for side in sides):
        return False
    return all(_same_expressions(sides[0], side) for side in sides[1:])


def _names_quantity(expr: Basic) -> bool:
    """Tell whether a left side names a quantity, as a^2+b^2, |AB| and f(2) do. 2x+3 does not: 2x+3=5 says no answer."""
    if isinstance(expr, (Symbol, AppliedUndef)) or expr == S.NegativeOne:
        return True
    if isinstance(expr, (sympy.Pow, sympy.Function)):
        return _names_quantity(expr.args[0])
    return bool(expr.args) and all(map(_names_quantity, expr.args))


def _relations(expr: MathObject) -> list[Relational]:
    """Return the relations of a chain or of one relation."""
    return cast(list[Relational], _written(expr) if isinstance(expr, And) else [expr])


def _written(several: Basic) -> list[Basic]:
    """Return the parts of an object in the order in which they were written, where sympy would sort them."""
    return list(getattr(several, "_unsorted_args", several.args))


def _is_equation(expr: MathObject) -> bool:
    return isinstance(expr, (Relational, And)) and all(isinstance(part, Eq) for part in _relations(expr))


def _is_assignment(expr: MathObject) -> bool:
    if not _is_equation(expr):
        return False
    left = _relations(expr)[0].lhs
    return bool(is_expr_of_only_symbols(left)) or isinstance(left, AppliedUndef)


def _same_relations(gold: Relation, pred: Relation) -> bool:
    """Tell whether each relation of one has its like in the other: a<b is b>a, 2x=4y is x=2y."""
    left, right = _relations(gold), _relations(pred)
    return _match(left, right, _same_relation) or bool(attempt(lambda: _same_solutions(gold, pred)))


def _same_relation(gold: Relational, pred: Relational) -> bool:
    if isinstance(gold, (Eq, Ne)) or isinstance(pred, (Eq, Ne)):
        if type(gold) is not type(pred):
            return False
        if any(isinstance(side, (Set, Tuple)) for side in (*gold.args, *pred.args)):
            return same(gold.lhs, pred.lhs) and same(gold.rhs, pred.rhs)
        if same(gold.lhs, pred.lhs) and same(gold.rhs, pred.rhs):
            return True
        if gold.free_symbols != pred.free_symbols or not _of_numbers(gold, pred):
            return False
        return bool(attempt(lambda: is_constant_multiple(_difference(gold.args), _difference(pred.args))))
    strict = [isinstance(part, (sympy.StrictLessThan, StrictGreaterThan)) for part in (gold, pred)]
    if strict[0] != strict[1]:
        return False
    ordered = [part.args if _is_greater(part) else part.args[::-1] for part in (gold, pred)]
    if all(map(same, *ordered)):
        return True
    if gold.free_symbols != pred.free_symbols or not _of_numbers(gold, pred):
        return False
    positive = [_difference(sides) for sides in ordered]
    return bool(attempt(lambda: is_constant_multiple(*positive, positive=True)))


def _difference(sides: Sequence[Basic]) -> Expr:
    one, other = cast(Sequence[Expr], sides)
    return Add(one, Mul(-1, other, evaluate=False), evaluate=False)  # evaluated, 7^(10^10) is written out


def _of_numbers(*relations: Relational) -> bool:
    return all(isinstance(side, sympy.Expr) for relation in relations for side in relation.args)


def _is_greater(relation: Relational) -> bool:
    return isinstance(relation, (GreaterThan, StrictGreaterThan))


def _same_solutions(gold: Relation, pred: Relation) -> bool:
    """Tell whether inequalities in one unknown, or equations solved for each unknown, have the same solutions."""
    symbols = sorted(gold.free_symbols & pred.free_symbols, key=str)
    if gold.free_symbols != pred.free_symbols or not symbols:
        return False
    if not _is_equation(gold) or not _is_equation(pred):
        return len(symbols) == 1 and _as_real_set(gold) == _as_real_set(pred)
    if isinstance(gold, And) or isinstance(pred, And):
        return False
    refuse_immense(gold, pred)
    found = False
    for symbol in symbols:  # all symbols must agree: x(y-1)=0 and x(y-2)=0 have the same x
        one, other = (sympy.solve(equation, symbol) for equation in (gold, pred))
        if not _match(one, other, same):
            return False
        found = found or bool(one)
    return found


def _same_sets(gold: MathObject, pred: MathObject) -> bool:
    gold, pred = _comparable_sets(gold, pred)
    if isinstance(gold, Interval) and isinstance(pred, Interval):
        ends = gold.left_open == pred.left_open and gold.right_open == pred.right_open
        return ends and same(gold.start, pred.start) and same(gold.end, pred.end)
    if isinstance(gold, Interval) and isinstance(pred, (PlainFiniteSet, Tuple)):
        return gold.is_open is True and _same_elements(Tuple(gold.start, gold.end), pred)
    if isinstance(pred, Interval) and isinstance(gold, (PlainFiniteSet, Tuple)):
        return pred.is_open is True and _same_elements(gold, Tuple(pred.start, pred.end))
    if isinstance(gold, (PlainFiniteSet, Tuple)) and isinstance(pred, (PlainFiniteSet, Tuple)):
        return _same_elements(gold, pred)
    if not isinstance(gold, Set) or not isinstance(pred, Set):
        return False
    refuse_immense(gold, pred)
    one, other = attempt(gold.doit) or gold, attempt(pred.doit) or pred
    if one == other or attempt(lambda: one.symmetric_difference(other).is_empty) is True:
        return True
    parts = [list(part.args) if isinstance(part, sympy.Union) else [part] for part in (one, other)]
    return len(parts[0]) > 1 and _match(parts[0], parts[1], same)


def _comparable_sets(gold: MathObject, pred: MathObject) -> tuple[MathObject, MathObject]:
    """Turn inequalities into sets of real numbers where the other side is a set, and a lone element into a set."""
    sides = [gold, pred]
    for index, (side, other) in enumerate([(gold, pred), (pred, gold)]):
        members = _inequalities(side)
        listed = isinstance(other, (PlainFiniteSet, Tuple)) and not _inequalities(other)
        if members and not listed:
            sets = [attempt(lambda part=part: _as_real_set(part)) for part in members]
            if all(part is not None for part in sets):
                sides[index] = sympy.Union(*sets)
        elif not isinstance(side, (Set, Tuple)):
            sides[index] = FiniteSet(side)
    return sides[0], sides[1]


def _inequalities(expr: MathObject) -> list[Relation]:
    """Return an inequality, or the members of a set that holds nothing else; for all else return an empty list."""
    members = list(expr.args) if isinstance(expr, PlainFiniteSet) else [expr]
    unequal = all(isinstance(part, (Relational, And)) and not _is_equation(part) for part in members)
    return cast(list[Relation], members) if unequal else []


def _as_real_set(relation: Relation) -> Set:
    """Return the solutions on the real line. An applied function (0 < f(x) < 1) stands for the number that it is."""
    refuse_immense(relation)
    for applied in relation.atoms(AppliedUndef):
        parts = [part.subs(applied, Symbol("applied", real=True)) for part in _relations(relation)]
        relation = cast(Relation, sympy.And(*cast(list[Relational], parts)))
    conjuncts = cast(Sequence[Relational], relation.args if isinstance(relation, sympy.And) else [relation])
    sets = [_bound(part) or part.as_set() for part in conjuncts]
    return sympy.Intersection(*sets) if len(sets) > 1 else sets[0]


def _bound(relation: Relational) -> Set | None:
    """Turn x < 3 into an interval directly: sympy solves the inequality, which takes a hundred times as long."""
    flip = isinstance(relation.rhs, Symbol)
    symbol, number = (relation.rhs, relation.lhs) if flip else (relation.lhs, relation.rhs)
    if (
        not isinstance(symbol, Symbol)
        or not getattr(number, "is_extended_real", False)
        or isinstance(relation, (Eq, Ne))
    ):
        return None
    is_open = isinstance(relation, (sympy.StrictLessThan, StrictGreaterThan))
    above = _is_greater(relation) != flip
    return Interval(number, S.Infinity, is_open, True) if above else Interval(S.NegativeInfinity, number, True, is_open)


def _same_elements(gold: PlainFiniteSet | Tuple, pred: PlainFiniteSet | Tuple) -> bool:
    """Compare two sets in any order, but a tuple or a bare list in the order in which it was written."""
    if isinstance(gold, PlainFiniteSet) and isinstance(pred, PlainFiniteSet):
        return _match(list(gold.args), list(pred.args), same)
    ours, theirs = _written(gold), _written(pred)
    return len(ours) == len(theirs) and all(map(same, ours, theirs))


def _match(left: Sequence[_Object], right: Sequence[_Object], alike: Callable[[_Object, _Object], bool]) -> bool:
    """Pair every item of one side with its like on the other. Sorted first: then the first try nearly always fits."""
    if len(left) != len(right):
        return False
    if len(left) == 1:
        return alike(left[0], right[0])
    left, rest = _sorted(left), _sorted(right)
    for item in left:
        position = next((i for i, other in enumerate(rest) if alike(item, other)), None)
        if position is None:
            return False
        del rest[position]
    return True


def _sorted(items: Sequence[_Object]) -> list[_Object]:
    values = [attempt(lambda item=item: float(cast(Expr, item).evalf(15))) for item in items]
    order = sorted(range(len(items)), key=lambda i: (values[i] is None, values[i] or 0.0))
    return [items[i] for i in order]


def _same_symbols(gold: MathObject, pred: MathObject) -> bool:
    names = [_letters(side) for side in (gold, pred)]
    if None not in names and names[0] == names[1]:
        return True
    if isinstance(gold, Symbol) and isinstance(pred, Symbol):
        return False
    return _same_expressions(gold, pred)


def _letters(expr: MathObject) -> str | None:
    """Return the letters of a symbol or product. `\\text{ab}` is one symbol, `ab` a product; e is a letter too."""
    parts = expr.args if isinstance(expr, Mul) else (expr,)
    if not all(part == E or isinstance(part, Symbol) for part in parts):
        return None
    name = "".join("e" if part == E else str(part) for part in parts)
    return name if (len(name) == 1 and name != "E") or name.lower() in _GREEK else name.lower()


def _same_matrices(gold: MathObject, pred: MathObject) -> bool:
    refuse_immense(gold, pred)
    one, other = [attempt(side.doit) for side in (gold, pred)]
    if not isinstance(one, MatrixBase) or not isinstance(other, MatrixBase):
        return one is not None and one == other
    return one.shape == other.shape and all(map(same, one.flat(), other.flat()))


def _same_expressions(gold: MathObject, pred: MathObject) -> bool:
    (gold, gold_percent), (pred, pred_percent) = _split_percent(gold), _split_percent(pred)
    if gold_percent == pred_percent:
        return equal_expressions(gold, pred)
    marked, other = (gold, pred) if gold_percent else (pred, gold)
    share = Mul(cast(Expr, marked), Rational(1, 100), evaluate=False)
    return equal_expressions(marked, other) or equal_expressions(share, other)


def percentage(value: MathObject) -> MathObject:
    """Return the object with a percent sign behind it; lists and relations stay as they are."""
    return Mul(value, Symbol(PERCENT_SIGN, real=True), evaluate=False) if isinstance(value, sympy.Expr) else value


def _split_percent(expr: MathObject) -> tuple[MathObject, bool]:
    signs = [symbol for symbol in expr.free_symbols if str(symbol) == PERCENT_SIGN] if isinstance(expr, Mul) else []
    return (expr.xreplace(dict.fromkeys(signs, S.One)), True) if signs else (expr, False)
