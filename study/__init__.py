"""The paper's experiments on top of `maskclip`: methods, runs, notebooks, report."""
