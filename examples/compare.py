"""Evaluate a model and three pruned ones together, and ask which differences are more than chance.

Runs within a minute on two CPU cores; with so few questions hardly any difference is significant.
"""

import streamline as sl

model, tokenizer = sl.load("smollm2-135m-instruct")
models = {"dense": model}

with sl.session(model, tokenizer, n_samples=2, length=256) as session:
    for method in ("shortgpt", "llm-streamline-none", "random-layers"):
        models[method] = session.prune(method, sparsity=0.2)

    # The models share their layers: each is run once per batch, whatever their number.
    result = session.evaluate(models, "piqa,arc_easy", limit=5, data="packaged", perplexity=512)

print(result)
print(sl.compare(result, reference="dense"))
result.to_pandas().to_csv("evaluation.csv")
