"""What is done to the gradients and the values of many parameters at once."""

from sorix_dist.nn.utils.clip import clip_grad_norm_, clip_grad_value_
from sorix_dist.nn.utils.vector import parameters_to_vector, vector_to_parameters

__all__ = ["clip_grad_norm_", "clip_grad_value_", "parameters_to_vector", "vector_to_parameters"]
