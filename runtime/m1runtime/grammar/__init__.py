"""Grammars: masks, forced tokens, and texts that always close within the token budget."""

from m1runtime.errors import BudgetError
from m1runtime.grammar.grammar import Grammar, ToolGrammar
from m1runtime.grammar.matcher import Constraint
from m1runtime.grammar.report import ToolSchemaReport, Unenforced

__all__ = ["BudgetError", "Constraint", "Grammar", "ToolGrammar", "ToolSchemaReport", "Unenforced"]
