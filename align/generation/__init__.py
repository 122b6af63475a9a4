"""Drawing answers from a model: the engines of a `sample` stage."""
