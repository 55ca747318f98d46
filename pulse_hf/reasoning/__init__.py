"""Prompts, the engines that answer them, rationales of training targets, and trees of thought."""

from pulse_hf.reasoning.generator import Generation, Generator, Sampling, open_generator
from pulse_hf.reasoning.prompts import Prompt, PromptBudget
from pulse_hf.reasoning.tree_of_thought import Tree, TreeSettings, grow_trees

__all__ = [
    "Generation",
    "Generator",
    "Prompt",
    "PromptBudget",
    "Sampling",
    "Tree",
    "TreeSettings",
    "grow_trees",
    "open_generator",
]
